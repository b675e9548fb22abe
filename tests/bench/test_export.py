"""The comparison of exports: every contestant in a process of its own, on the same pair."""

import json

import numpy as np
import pytest
from PIL import Image

from tfcorr import cli
from tfcorr.bench.export import CONTESTANTS, Measured, table
from tfcorr.serving.export import trial_image


def test_table():
    rows = [
        Measured("python", 14.1, 0.5, 300.0, 30.0, 0.0),
        Measured("onnx", 7.0, 0.25, 99.6, 29.9875, 0.0125),
    ]
    assert table(rows).splitlines()[2:] == [
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
        assert 5 < row["psnr_y"] < 30
        assert row["seconds"] > 0
        assert row["memory"] > 0
        assert row["megabytes"] > 1
