"""The benchmark protocol on tiny photos, with upscalers whose scores are known."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from tfcorr.config import EvaluateConfig, PairSource, PhotoRule
from tfcorr.refsr.evaluation import (
    ScoreCache,
    Statistic,
    evaluate,
    list_digest,
    run_benchmark,
    table,
    write_result,
)
from tfcorr.refsr.photos import DataError, excluded, find_pairs


class Copier:
    """Gives the reference back, or the bicubic image where there is none; counts its calls."""

    def __init__(self, fail_after=None):
        self.calls = 0
        self.fail_after = fail_after

    def upscale(self, low_res, reference=None):
        if self.calls == self.fail_after:
            raise KeyboardInterrupt
        self.calls += 1
        size = (4 * low_res.shape[1], 4 * low_res.shape[0])
        if reference is None:
            return np.asarray(Image.fromarray(low_res).resize(size, Image.Resampling.BICUBIC))
        assert reference.dtype == np.uint8 and reference.shape[0] % 4 == reference.shape[1] % 4 == 0
        return reference[: size[1], : size[0]]


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        truth = rng.integers(60, 190, (41, 46, 3))
        for name, image in (("input", truth), ("true", truth + 4), ("other", truth[::-1])):
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{name}{i}.png")
    with open(tmp_path / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "reference", "unrelated"])
        writer.writerows([f"input{i}.png", f"true{i}.png", f"other{i}.png"] for i in range(3))
    return find_pairs([PairSource(csv=str(tmp_path / "list.csv"))], str(tmp_path))


def unrelated(pairs):
    return [p.input.parent / p.columns["unrelated"] for p in pairs]


def test_protocol(pairs):
    result = evaluate(
        Copier(), pairs, references=("true", "unrelated", "none"), unrelated=unrelated(pairs), border=4
    )
    # 4 grey levels too bright everywhere: Y is too large by 4 (65.481 + 128.553 + 24.966) / 255.
    expected = 20 * np.log10(255 / (4 * 219 / 255))
    assert result["summary"]["true"]["psnr_y"]["mean"] == pytest.approx(expected, abs=1e-6)
    assert result["summary"]["true"]["psnr_y"]["error"] == pytest.approx(0, abs=1e-9)
    assert result["summary"]["none"] == result["summary"]["bicubic"]
    assert result["differences"]["none - bicubic"] == {"mean": 0.0, "error": 0.0, "count": 3}
    assert result["differences"]["true - unrelated"]["mean"] > 10
    # Bicubic, independently: cut to 40x44, Pillow down and up, Y on the inner 32x36 pixels.
    image = Image.open(pairs[0].input).crop((0, 0, 44, 40))
    up = image.resize((11, 10), Image.Resampling.BICUBIC).resize((44, 40), Image.Resampling.BICUBIC)
    difference = (np.asarray(up, float) - np.asarray(image, float))[4:-4, 4:-4]
    luma = difference @ np.array([65.481, 128.553, 24.966]) / 255
    psnr = 10 * np.log10(255**2 / np.mean(luma**2))
    assert result["images"][0]["bicubic"]["psnr_y"] == pytest.approx(psnr, abs=1e-6)
    text = table(result)
    assert "bicubic" in text and "true - unrelated" in text and "3 images" in text
    json.dumps(result)


def test_standard_error():
    values = [1.0, 2.0, 4.0, 9.0]
    statistic = Statistic.of(values)
    assert statistic.mean == 4.0
    assert statistic.error == pytest.approx(np.std(values, ddof=1) / 2)
    assert Statistic.of([3.0]) == Statistic(3.0, 0.0, 1)


def test_an_interrupted_evaluation_goes_on(pairs, tmp_path):
    path = tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Copier(fail_after=2), pairs, cache=ScoreCache(path, "model a"))
    with open(path, "a") as file:
        file.write('{"key": "model a", "ima')
    second = Copier()
    result = evaluate(second, pairs, cache=ScoreCache(path, "model a"))
    assert second.calls == 1
    fresh = evaluate(Copier(), pairs)
    assert result["summary"] == fresh["summary"]
    other = Copier()
    evaluate(other, pairs, cache=ScoreCache(path, "model b"))
    assert other.calls == 3


def test_files_that_cannot_be_read(pairs):
    pairs[1].reference.write_bytes(b"no image")
    result = evaluate(Copier(), pairs)
    assert len(result["images"]) == 2
    assert list(result["skipped"]) == [str(pairs[1].reference)]
    for pair in pairs:
        pair.input.unlink()
    with pytest.raises(DataError, match="none of the 3 pairs can be read"):
        evaluate(Copier(), pairs)


def test_wrong_calls(pairs):
    with pytest.raises(DataError, match="expected true, unrelated, none, got similar"):
        evaluate(Copier(), pairs, references=("similar",))
    with pytest.raises(DataError, match="unrelated references: 0 for 3 pairs"):
        evaluate(Copier(), pairs, references=("unrelated",))


def test_result_is_whole_or_not_there(tmp_path):
    write_result(tmp_path / "deep" / "result.json", {"a": 1})
    assert json.loads((tmp_path / "deep" / "result.json").read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        write_result(tmp_path / "deep" / "result.json", {"a": object()})
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["result.json"]


def test_the_list_that_ships():
    source = PairSource(
        csv="refsr/lists/albums_test.csv",
        input_path="albums/{scene}/{input}",
        reference_path="albums/{scene}/{reference}",
    )
    pairs = find_pairs([source], "/data")
    assert len(pairs) == 78
    held_out = [PhotoRule("et"), PhotoRule("nle_tower"), PhotoRule("lund", ("026", "027", "028"))]
    others = [p.input.parent.parent / p.columns["unrelated"] for p in pairs]
    for pair, other in zip(pairs, others, strict=True):
        assert pair.input != pair.reference
        for photo in (pair.input, pair.reference, other):
            assert excluded(photo.parent.name, photo, held_out)
        assert other.parent.name != pair.scene
    # A published table belongs to one list.
    assert list_digest(pairs, others) == "d6d30d4d183a"


def test_run_benchmark(pairs, tmp_path, monkeypatch):
    import hashlib

    from tfcorr.refsr import predictor

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.weights.h5").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    card = {
        "name": "m",
        "job": "super-resolution",
        "architecture": {},
        "checksums": {"model.weights.h5": digest},
    }
    (folder / "card.json").write_text(json.dumps(card))
    monkeypatch.setattr(predictor.SuperResolver, "from_pretrained", lambda *args, **kwargs: Copier())
    config = EvaluateConfig(
        stage="evaluate",
        model=str(folder),
        pairs=PairSource(csv=str(tmp_path / "list.csv")),
        output=str(tmp_path / "out" / "result.json"),
        references=("true", "unrelated"),
        limit=2,
        data_root=str(tmp_path),
    )
    lines = []
    result = run_benchmark(config, report=lines.append)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    assert result["model"] == {"name": "m", "sha256": digest}
    assert len(lines) == 2 and lines[0].startswith("1/2")
