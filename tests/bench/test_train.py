"""tfcorr bench train: steps of every stage, tiny, on made-up photographs."""

import json
import time
from types import SimpleNamespace

import pytest

from tfcorr import cli
from tfcorr.bench import train, train_work

SMALL = {
    "refsr/student_cpu": ["data.crop=64"],
    "refsr/restorer_gan_cpu": ["data.crop=64", "data.patch=64", "loss.adversarial.features=2"],
    "semantic/birds_cpu": ["size=64", "teacher.synthetic.pool=4"],
}


def job(config, tmp_path, **changes):
    return {
        "config": config,
        "overrides": SMALL.get(config, []),
        "data_root": None,
        "made_up": str(tmp_path / "data"),
        "precision": "float32",
        "halvings": 0,
        "batch": 2,
        "threads": None,
        "steps": 2,
        "repeats": 1,
        **changes,
    }


@pytest.mark.parametrize("config", SMALL)
def test_steps(config, tmp_path):
    measured = train_work._times(job(config, tmp_path))
    assert len(measured["waits"]) == len(measured["works"]) == 2
    assert measured["batch"] == 2
    assert min(measured["works"]) > 0 and min(measured["waits"]) >= 0 and measured["input_s"] > 0
    row = train._row(config, "float32", measured)
    assert 0 <= row["idle_share"] < 1
    assert row["steps_per_s"] == pytest.approx(2 / sum(row["times_s"]))
    if config == "refsr/restorer_gan_cpu":
        assert 0 <= row["cacheable_share"] < row["fixed_share"]
    else:
        assert row["fixed_share"] is None and row["cacheable_share"] is None


@pytest.mark.parametrize("slow", ["input", "step"])
def test_waiting_is_told_from_work(slow, tmp_path, monkeypatch):
    def batches():
        while True:
            time.sleep(0.3 * (slow == "input"))
            yield {}

    def step(batch):
        time.sleep(0.3 * (slow == "step"))
        return {"loss": 0.0}

    stage = SimpleNamespace(
        name="a stage", trainer=None, samples=SimpleNamespace(batch=lambda number: {}, batch_size=2)
    )
    monkeypatch.setattr(train_work, "_stage", lambda job: stage)
    monkeypatch.setattr(train_work, "_first_steps", lambda stage, count, more=0: (step, batches()))
    row = train._row("refsr/student_cpu", "float32", train_work._times(job("refsr/student_cpu", tmp_path)))
    assert (row["idle_share"] > 0.5) == (slow == "input")
    assert row["median_s"] >= 0.3


@pytest.mark.slow
def test_command(tmp_path, capsys):
    target = tmp_path / "figures.json"
    options = ["refsr/teacher_cpu", "--set", "data.crop=64", "--quick", "--threads", "1", "--repeats", "1"]
    options += ["--doublings", "1", "--precision", "mixed_bfloat16", "--no-memory", "--json", str(target)]
    assert cli.main(["bench", "train", *options]) == 0
    result = json.loads(target.read_text())
    assert [row["batch"] for row in result["rows"]] == [1, 2]
    assert {row["precision"] for row in result["rows"]} == {"mixed_bfloat16"}
    assert "refsr/teacher_cpu" in capsys.readouterr().out


def test_wrong_settings():
    for arguments in ({"steps": 0}, {"configs": []}):
        with pytest.raises(ValueError, match="must be at least 1"):
            train.run(**arguments)
