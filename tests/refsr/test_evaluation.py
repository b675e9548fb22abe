"""The benchmark protocol on tiny photos, with upscalers whose scores are known."""

import csv
import dataclasses
import hashlib
import json
import os

import numpy as np
import pytest
from PIL import Image

from tfcorr.config import PairSource, PublishedSet, load_config
from tfcorr.refsr.evaluation import (
    Contender,
    ScoreCache,
    Statistic,
    degrade,
    evaluate,
    texture_strength,
)
from tfcorr.refsr.layouts import find_cases
from tfcorr.refsr.photos import DataError
from tfcorr.refsr.reports import benchmark_markdown, benchmark_table


class Copier:
    """Gives the reference back, or the bicubic image where there is none; notes its calls."""

    model = None

    def __init__(self, fail_after=None):
        self.calls = []
        self.fail_after = fail_after

    def upscale(self, low_res, reference=None):
        if len(self.calls) == self.fail_after:
            raise KeyboardInterrupt
        self.calls.append((low_res, reference))
        size = (4 * low_res.shape[1], 4 * low_res.shape[0])
        if reference is None:
            return np.asarray(Image.fromarray(low_res).resize(size, Image.Resampling.BICUBIC))
        assert reference.dtype == np.uint8 and reference.shape[0] % 4 == reference.shape[1] % 4 == 0
        return reference[: size[1], : size[0]]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        # The contrast, and with it the texture, rises.
        truth = rng.integers(128 - 20 * (i + 1), 128 + 20 * (i + 1), (41, 46, 3))
        for name, image in (("input", truth), ("true", truth + 4), ("other", truth[::-1])):
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{name}{i}.png")
    with open(tmp_path / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "reference", "unrelated", "level"])
        writer.writerows([f"input{i}.png", f"true{i}.png", f"other{i}.png", f"L{i // 2}"] for i in range(3))
    return tmp_path


@pytest.fixture
def cases(folder):
    source = PairSource(csv=str(folder / "list.csv"))
    return find_cases(source, None, str(folder), unrelated_path="{unrelated}")


def run(upscaler, cases, references=("true",), cache=None, **arguments):
    return evaluate([Contender("copier", upscaler, references, cache or ScoreCache())], cases, **arguments)


def test_protocol(cases):
    result = run(Copier(), cases, ("true", "unrelated", "none"), border=4)
    # 4 grey levels too bright everywhere: Y is too large by 4 (65.481 + 128.553 + 24.966) / 255.
    expected = 20 * np.log10(255 / (4 * 219 / 255))
    assert result["summary"]["true"]["psnr_y"]["mean"] == pytest.approx(expected, abs=1e-6)
    assert result["summary"]["true"]["psnr_y"]["error"] == pytest.approx(0, abs=1e-9)
    assert result["summary"]["none"] == result["summary"]["bicubic"]
    assert result["differences"]["none - bicubic"] == {"mean": 0.0, "error": 0.0, "count": 3}
    assert result["differences"]["true - unrelated"]["mean"] > 10
    # Bicubic, independently: cut to 40x44, Pillow down and up, Y on the inner 32x36 pixels.
    image = Image.open(cases[0].input).crop((0, 0, 44, 40))
    up = image.resize((11, 10), Image.Resampling.BICUBIC).resize((44, 40), Image.Resampling.BICUBIC)
    difference = (np.asarray(up, float) - np.asarray(image, float))[4:-4, 4:-4]
    luma = difference @ np.array([65.481, 128.553, 24.966]) / 255
    psnr = 10 * np.log10(255**2 / np.mean(luma**2))
    assert result["images"][0]["bicubic"]["psnr_y"] == pytest.approx(psnr, abs=1e-6)
    json.dumps(result)


def test_subsets(cases):
    result = run(Copier(), cases, group_by=["level"], texture=True)
    assert {name: part["count"] for name, part in result["subsets"].items()} == {
        "level L0": 2,
        "level L1": 1,
        "texture": 1,
    }
    # A third of three inputs: the one with the highest contrast.
    assert result["texture"] == [f"{cases[2].input.parent.name}/input2.png"]
    assert result["subsets"]["texture"]["summary"] == result["subsets"]["level L1"]["summary"]
    levels = [row["bicubic"]["psnr_y"] for row in result["images"]]
    assert result["subsets"]["level L0"]["summary"]["bicubic"]["psnr_y"]["mean"] == pytest.approx(
        np.mean(levels[:2])
    )
    with pytest.raises(DataError, match="the list has no column 'size'"):
        run(Copier(), cases, group_by=["size"])


def test_texture_strength():
    y, x = np.mgrid[:20, :30]
    ramp = np.repeat((3 * x + 4 * y)[..., None], 3, axis=2).astype(np.uint8)
    # Grey rises by 5 a pixel along its steepest line, Y by 219 / 255 of that.
    assert texture_strength(ramp) == pytest.approx(5 * 219 / 255, rel=1e-6)


def test_several_models(cases):
    contenders = [Contender("ours", Copier(), ("true", "none")), Contender("plain", Copier(), ("none",))]
    result = evaluate(contenders, cases, texture=True)
    assert list(result["summary"]) == ["bicubic", "ours: true", "ours: none", "plain: none"]
    assert list(result["differences"]) == [
        "ours: true - bicubic",
        "ours: none - bicubic",
        "plain: none - bicubic",
        "ours: true - ours: none",
        # A model that takes no reference is set against everything that the first one makes.
        "ours: true - plain: none",
        "ours: none - plain: none",
    ]
    assert result["differences"]["ours: none - plain: none"]["mean"] == 0
    text, document = benchmark_table(result), benchmark_markdown(result)
    for name in ("ours: true", "plain: none", "texture, 1 image", "bicubic"):
        assert name in text and name in document
    with pytest.raises(DataError, match="names occur twice: a, a"):
        evaluate([Contender("a", Copier()), Contender("a", Copier())], cases)


def test_references_are_used_one_after_the_other(folder):
    # Two inputs with each of two references: every reference comes once, for both inputs.
    (folder / "crossed.csv").write_text(
        "input,reference\ninput0.png,true0.png\ninput0.png,true1.png\n"
        "input1.png,true0.png\ninput1.png,true1.png\n"
    )
    cases = find_cases(PairSource(csv=str(folder / "crossed.csv")), None, str(folder))
    upscaler = Copier()
    result = run(upscaler, cases)
    first, second = (np.asarray(Image.open(folder / f"true{i}.png").crop((0, 0, 44, 40))) for i in range(2))
    used = [reference for _, reference in upscaler.calls]
    for given, expected in zip(used, (first, first, second, second), strict=True):
        np.testing.assert_array_equal(given, expected)
    # And the result is in the order of the list.
    assert [row["references"]["true"][0][-9:] for row in result["images"]] == ["true0.png", "true1.png"] * 2


def test_published_padding(cases):
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 256, (24, 40, 3), np.uint8)
    reference = rng.integers(0, 256, (37, 21, 3), np.uint8)
    small, (given,) = degrade(truth, [reference], "none")
    assert small.shape == (6, 10, 3) and given.shape == (36, 20, 3)
    small, (given,) = degrade(truth, [reference], "published")
    assert small.shape == (9, 10, 3) and given.shape == (36, 40, 3)
    padded = np.zeros((36, 40, 3), np.uint8)
    padded[:24] = truth
    expected = Image.fromarray(padded).resize((10, 9), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(small, np.asarray(expected))
    np.testing.assert_array_equal(given[:, :20], reference[:36, :20])
    assert not given[:, 20:].any()
    # The result is cut back: with equal sizes nothing changes.
    assert run(Copier(), cases, padding="published")["summary"] == run(Copier(), cases)["summary"]


def test_published_padding_as_the_published_data_set_class(golden):
    case = golden("data_prep", "test_padded")
    truth = case["input_rgb_uint8"]
    height, width = case["original_size"]
    small, (given,) = degrade(truth[:height, :width], [case["ref_rgb_uint8"]], "published")
    for ours, theirs in ((small, case["img_in_lq"]), (given, case["img_ref"])):
        expected = np.rint(np.moveaxis(theirs, 0, -1) * 255)
        assert ours.shape == expected.shape
        assert np.abs(ours - expected).max() <= 1


def test_standard_error():
    values = [1.0, 2.0, 4.0, 9.0]
    statistic = Statistic.of(values)
    assert statistic.mean == 4.0
    assert statistic.error == pytest.approx(np.std(values, ddof=1) / 2)
    assert Statistic.of([3.0]) == Statistic(3.0, 0.0, 1)


def test_an_interrupted_evaluation_goes_on(cases, tmp_path):
    path = tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(Copier(fail_after=2), cases, cache=ScoreCache(path, "model a"))
    with open(path, "a") as file:
        file.write('{"key": "model a", "ima')
    second = Copier()
    result = run(second, cases, cache=ScoreCache(path, "model a"))
    assert len(second.calls) == 1
    assert result["summary"] == run(Copier(), cases)["summary"]
    other = Copier()
    run(other, cases, cache=ScoreCache(path, "model b"))
    assert len(other.calls) == 3


def test_files_that_cannot_be_read(cases):
    cases[1].references["true"][0].write_bytes(b"no image")
    result = run(Copier(), cases)
    assert len(result["images"]) == 2
    assert list(result["skipped"]) == [str(cases[1].references["true"][0])]
    for case in cases:
        case.input.unlink()
    with pytest.raises(DataError, match="none of the 3 images can be read"):
        run(Copier(), cases)


def test_wrong_calls(cases):
    with pytest.raises(DataError, match=r"references: 'all' is not there for input0\.png, which has: true"):
        run(Copier(), cases, ("all",))
    with pytest.raises(DataError, match="padding: expected none or published, got 'zero'"):
        run(Copier(), cases, padding="zero")


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.weights.h5").write_bytes(b"weights")
    card = {
        "name": "m",
        "job": "super-resolution",
        "architecture": {},
        "checksums": {"model.weights.h5": hashlib.sha256(b"weights").hexdigest()},
    }
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def test_benchmark(folder, model_folder, monkeypatch):
    from tfcorr.refsr import benchmark

    monkeypatch.setattr(benchmark, "load_upscaler", lambda card, memory, registration: Copier())
    monkeypatch.setattr(benchmark, "parameter_count", lambda model: {"total": 12})
    config = load_config(
        "refsr/evaluate_albums",
        [
            f"model={model_folder}",
            f"pairs={{csv: {folder / 'list.csv'}}}",
            "unrelated_path='{unrelated}'",
            'references=["true", unrelated]',
            f"output={folder / 'out' / 'result.json'}",
            f"data_root={folder}",
            "limit=2",
        ],
    )
    lines = []
    result, table = benchmark.run(config, report=lines.append)
    assert json.loads((folder / "out" / "result.json").read_text()) == result
    digest = hashlib.sha256(b"weights").hexdigest()
    assert result["models"] == {"m": {"sha256": digest, "parameters": {"total": 12}}}
    assert result["protocol"]["padding"] == "none" and len(result["protocol"]["list"]) == 12
    assert len(lines) == 4 and lines[0].startswith("1/4")
    assert "level L0, 2 images" in table
    document = (folder / "out" / "result.md").read_text()
    assert "| true - unrelated |" in document and digest[:12] in document
    pytest.importorskip("matplotlib")
    plot = (folder / "out" / "result.svg").read_bytes()
    benchmark.run(config, report=lines.append)
    assert (folder / "out" / "result.svg").read_bytes() == plot
    # A second model in the same table; two of one name are told apart by their folders.
    both = dataclasses.replace(config, model=None, models=(str(model_folder), str(model_folder)))
    result, _ = benchmark.run(both, report=lines.append)
    assert list(result["models"]) == ["m", f"m ({model_folder})"]


@pytest.mark.skipif("TFCORR_DATA" not in os.environ, reason="TFCORR_DATA names no folder of data sets")
@pytest.mark.parametrize(("name", "psnr", "ssim"), [("set5", 28.43, 0.811), ("set14", 26.09, 0.7048)])
def test_bicubic_on_public_sets(name, psnr, ssim):
    cases = find_cases(None, PublishedSet(layout="images", folder=name), os.environ["TFCORR_DATA"])
    result = run(Copier(), cases, ("none",))
    assert result["summary"]["bicubic"]["psnr_y"]["mean"] == pytest.approx(psnr, abs=0.005)
    assert result["summary"]["bicubic"]["ssim_y"]["mean"] == pytest.approx(ssim, abs=0.0005)
