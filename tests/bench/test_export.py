"""The comparison of exports: every contestant in a process of its own, on the same pair."""

import json

import numpy as np
import pytest
from PIL import Image

from tfcorr import cli
from tfcorr.bench.export import CONTESTANTS, Measured, marked_pairs, table
from tfcorr.errors import UsageError
from tfcorr.serving.export import trial_image


def test_table():
    rows = [
        Measured("python", 14.1, 0.5, 300.0, 30.0, 0.0),
        Measured("onnx", 7.0, 0.25, 99.6, 29.9875, 0.0125),
    ]
    head, _, *body = table(rows, "PSNR-Y, dB").splitlines()
    assert head == "| | size, MB | time, s | memory, MB | PSNR-Y, dB | lost, dB |"
    assert body == [
        "| python | 14.1 | 0.50 | 300 | 30.000 | +0.000 |",
        "| onnx | 7.0 | 0.25 | 100 | 29.988 | +0.013 |",
    ]


def test_contestants_have_names_of_their_own():
    names = [contestant.name for contestant in CONTESTANTS]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_comparison(tiny_model_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    sample = tmp_path / "sample"
    sample.mkdir()
    for number, (name, side) in enumerate([("low_res", 16), ("reference", 70), ("ground_truth", 64)]):
        picture = np.rint(255 * trial_image(side, side, seed=number)).astype(np.uint8)
        Image.fromarray(picture).save(sample / f"{name}.png")
    options = ["--sample", str(sample), "--work", str(tmp_path / "work"), "--only", "onnx"]
    options += ["--crop", "12", "--repeats", "1", "--threads", "1", "--json", str(tmp_path / "rows.json")]
    assert cli.main(["bench", "export", str(tiny_model_folder), *options]) == 0
    assert "| onnx |" in capsys.readouterr().out
    python, onnx = json.loads((tmp_path / "rows.json").read_text())
    assert (python["name"], onnx["name"]) == ("python", "onnx")
    assert python["lost"] == 0
    assert abs(onnx["lost"]) < 0.01
    for row in (python, onnx):
        assert 5 < row["quality"] < 30
        assert row["seconds"] > 0
        assert row["memory"] > 0
        assert row["megabytes"] > 1


@pytest.fixture
def marked(tmp_path):
    """A list of one pair: the target is the source moved by (48, 32) pixels, of 240 x 160."""
    picture = np.rint(255 * trial_image(200, 300, seed=0)).astype(np.uint8)
    for name, cut in (("one", picture[32:192, 48:288]), ("other", picture[:160, :240])):
        Image.fromarray(cut).save(tmp_path / f"{name}.png")
    marks = tmp_path / "marks.csv"
    columns = "category,source,target,source_x,source_y,target_x,target_y,source_box,target_box"
    marks.write_text(f"{columns}\nthing,one.png,other.png,10;100,20;60,58;148,52;92,0;0;100;80,0;0;9;9\n")
    return marks


def test_marked_pairs_are_scored_as_published(marked):
    trials = marked_pairs(marked, marked.parent, 96)
    assert trials.quality == "PCK@0.1, %"
    (trial,) = trials.inputs
    assert {name: image.shape for name, image in trial.items()} == dict.fromkeys(
        ("source", "target"), (96, 96, 3)
    )
    # From the marked pair's target into its source, in pixels of 96 x 96.
    true = np.tile(np.float32([-48 * 95 / 239, -32 * 95 / 159]), (96, 96, 1))
    assert trials.score([{"flow": true}]) == 100
    assert trials.score([{"flow": np.zeros_like(true)}]) == 0
    half = true.copy()
    half[:, 48:] = 0
    assert trials.score([{"flow": half}]) == 50


def test_pairs_without_marks(marked):
    marked.write_text("category,source,target\nthing,one.png,other.png\n")
    with pytest.raises(UsageError, match="no pair with marked points"):
        marked_pairs(marked, marked.parent, 96)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("c2-compact", ["--pairs", "p", "--images", "i"], "give --sample, no --pairs"),
        ("pmd-birds", ["--sample", "s"], "give --pairs and --images alone"),
        ("matcher-cpu", ["--sample", "s"], "models for correspondence cannot be exported"),
    ],
)
def test_what_does_not_go_with_the_model(tmp_path, capsys, model, options, message):
    assert cli.main(["bench", "export", model, *options, "--work", str(tmp_path / "work")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_comparison_of_a_matcher(marked, tmp_path, capsys):
    pytest.importorskip("ai_edge_litert", reason="needs the extra 'tflite'")
    options = ["--pairs", str(marked), "--images", str(marked.parent), "--work", str(tmp_path / "work")]
    options += ["--only", "tflite-float32", "--repeats", "1", "--json", str(tmp_path / "rows.json")]
    assert cli.main(["bench", "export", "pmd-birds", *options]) == 0
    assert "| PCK@0.1, % | lost, % |" in capsys.readouterr().out
    python, tflite = json.loads((tmp_path / "rows.json").read_text())
    assert (python["name"], tflite["name"], tflite["lost"]) == ("python", "tflite-float32", 0)
