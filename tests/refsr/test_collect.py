"""Collecting references: made-up scenes seen from two places, decoys, duplicates, interruptions."""

import csv
import os

import cv2
import numpy as np
import pytest
from PIL import Image
from scenes import scene

from tfcorr.cli import main
from tfcorr.config import PublishedSet
from tfcorr.errors import TfcorrError
from tfcorr.refsr import collect as module
from tfcorr.refsr.collect import Options, collect, comparable, global_descriptor
from tfcorr.refsr.layouts import find_cases
from tfcorr.refsr.sift import epipolar_inliers, match_sift, relative_scale, sift_features


def from_elsewhere(image, scale=1.0):
    matrix = np.array([[0.97, 0.12, -6], [-0.1, 0.95, 14], [1e-4, -5e-5, 1]])
    side = round(scale * image.shape[0])
    matrix = np.diag([scale, scale, 1]) @ matrix
    return cv2.warpPerspective(image, matrix, (side, side), borderMode=cv2.BORDER_REFLECT)


@pytest.fixture
def folders(tmp_path):
    for folder in ("inputs", "candidates/more"):
        (tmp_path / folder).mkdir(parents=True)

    def save(name, image):
        Image.fromarray(image).save(tmp_path / name)

    for number in range(2):
        save(f"inputs/photo{number}.png", scene(number))
    save("inputs/lonely.png", scene(7))
    save("candidates/of0.png", from_elsewhere(scene(0)))
    # Three times as large, and a copy of the input beside it.
    save("candidates/more/of1.png", from_elsewhere(scene(1), 3.0))
    save("candidates/copy1.png", np.asarray(Image.fromarray(scene(1)).resize((200, 200))))
    for number in range(20, 24):
        save(f"candidates/decoy{number}.png", scene(number))
    return tmp_path


def files(folder):
    return sorted(path for path in folder.rglob("*.png"))


def go(folders, output="out", options=None, **arguments):
    lines = []
    found, problems = collect(
        files(folders / "inputs"),
        files(folders / "candidates"),
        folders / output,
        options or Options(),
        report=lines.append,
        **arguments,
    )
    return found, problems, lines


def scores(folders, output="out"):
    with open(folders / output / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_right_ones_are_found(folders):
    found, problems, lines = go(folders)
    assert (found, problems, len(lines)) == (2, [], 3)
    # In the order of the inputs: lonely.png, photo0.png, photo1.png.
    assert (folders / "out" / "pairs.txt").read_text() == "001.png 001_ref.png\n002.png 002_ref.png\n"
    best = {row["input"]: row for row in scores(folders) if row["rank"] == "1"}
    assert best["photo0.png"]["candidate"].endswith("of0.png")
    assert best["photo1.png"]["candidate"].endswith("more/of1.png")
    assert best["lonely.png"]["status"] == "nothing similar" and int(best["lonely.png"]["inliers"]) < 25
    assert float(best["photo0.png"]["scale"]) == pytest.approx(0.97, abs=0.1)
    assert float(best["photo1.png"]["scale"]) == pytest.approx(2.9, abs=0.3)
    # The copy of an input is no reference for it, unless it is asked for.
    assert not any(row["candidate"].endswith("copy1.png") for row in scores(folders) if row["name"] == "002")
    go(folders, "with", Options(duplicates=True))
    rows = [row for row in scores(folders, "with") if row["name"] == "002"]
    assert rows[0]["candidate"].endswith("copy1.png")


def test_what_is_written(folders):
    go(folders)
    out = folders / "out"
    np.testing.assert_array_equal(np.asarray(Image.open(out / "input" / "001.png")), scene(0))
    np.testing.assert_array_equal(
        np.asarray(Image.open(out / "ref" / "001_ref.png")), from_elsewhere(scene(0))
    )
    # Three times as large as the input: brought to its size, antialiased.
    large = Image.fromarray(from_elsewhere(scene(1), 3.0))
    np.testing.assert_array_equal(
        np.asarray(Image.open(out / "ref" / "002_ref.png")),
        np.asarray(large.resize((240, 240), Image.Resampling.BICUBIC)),
    )
    assert sorted(os.listdir(out / "sheets")) == ["000.png", "001.png", "002.png"]
    assert Image.open(out / "sheets" / "001.png").width > 1500
    # It is the layout of WR-SR.
    cases = find_cases(None, PublishedSet(layout="wr_sr", folder="out"), str(folders))
    assert [(case.input.name, case.references["true"][0].name) for case in cases] == [
        ("001.png", "001_ref.png"),
        ("002.png", "002_ref.png"),
    ]


def test_an_interrupted_call_goes_on(folders, monkeypatch):
    write, calls = module._write, []

    def interrupted(output, name, *arguments):
        if name == "002":
            raise KeyboardInterrupt
        calls.append(name)
        return write(output, name, *arguments)

    monkeypatch.setattr(module, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(folders)
    with open(folders / "out" / "collect.jsonl", "a") as file:
        file.write('{"key": ')
    monkeypatch.setattr(
        module, "_write", lambda output, name, *a: calls.append(name) or write(output, name, *a)
    )
    assert go(folders)[0] == 2
    assert calls == ["000", "001", "002"]
    go(folders, "fresh")
    assert (folders / "out" / "scores.csv").read_text() == (folders / "fresh" / "scores.csv").read_text()
    with pytest.raises(TfcorrError, match="holds the references of other inputs, candidates or options"):
        go(folders, options=Options(pool=3))
    (folders / "other" / "ref").mkdir(parents=True)
    with pytest.raises(TfcorrError, match="has a folder input or ref that is not from here"):
        go(folders, "other")


def test_files_that_cannot_be_read(folders):
    (folders / "inputs" / "broken.png").write_bytes(b"no image")
    (folders / "candidates" / "broken.png").write_bytes(b"no image")
    found, problems, lines = go(folders)
    assert found == 2 and len(problems) == 2 and all("broken.png" in problem for problem in problems)
    assert "cannot be read" in lines[0]
    for path in files(folders / "candidates"):
        path.write_bytes(b"no image")
    with pytest.raises(TfcorrError, match="none of the 8 candidates can be read"):
        go(folders, "empty")


def test_a_matcher_instead_of_sift(folders, tiny_model_folder):
    from tfcorr.pretrained import load_super_resolution
    from tfcorr.refsr.selection import ReferencePool

    pool = ReferencePool(load_super_resolution(tiny_model_folder)[0])
    found, _, _ = go(folders, options=Options(minimum=-1.0, pool=4), pool=pool, fingerprint="tiny")
    assert found == 3
    rows = [row for row in scores(folders) if row["name"] == "001"]
    assert len(rows) == 4 and rows[0]["inliers"] == ""
    values = [float(row["score"]) for row in rows]
    assert values == sorted(values, reverse=True)


def test_comparable():
    image = np.zeros((100, 80, 3), np.uint8)
    for size, expected in (((120, 60), (120, 60)), ((126, 60), (100, 48)), ((40, 50), (40, 50))):
        assert comparable(np.zeros((*size, 3), np.uint8), image, 1.25).shape[:2] == expected
    assert comparable(np.zeros((480, 480, 3), np.uint8), image, 1.25, factor=4).shape == (480, 480, 3)
    large = np.zeros((900, 900, 3), np.uint8)
    assert comparable(large, image, float("inf")) is large


def test_global_descriptor():
    one, other = scene(0), scene(20)
    descriptor = global_descriptor(one)
    assert descriptor @ descriptor == pytest.approx(1)
    assert descriptor @ global_descriptor(from_elsewhere(one)) > descriptor @ global_descriptor(other)
    assert np.isfinite(global_descriptor(np.zeros((5, 7, 3), np.uint8))).all()


def test_geometry_of_matches():
    image = scene(3)
    here, there = match_sift(sift_features(image), sift_features(from_elsewhere(image, 1.5)))
    inliers = epipolar_inliers(here, there)
    assert inliers.sum() > 30 and inliers.mean() > 0.6
    assert relative_scale(here[inliers], there[inliers]) == pytest.approx(1.5, abs=0.15)
    np.testing.assert_array_equal(inliers, epipolar_inliers(here, there))
    nothing = sift_features(np.zeros((40, 40, 3), np.uint8))
    here, there = match_sift(nothing, sift_features(image))
    assert here.shape == there.shape == (0, 2)
    assert not epipolar_inliers(here, there).any() and relative_scale(here, there) is None


def test_matches_are_those_of_brute_force(monkeypatch):
    import tfcorr.refsr.sift as module

    image = scene(3)
    one, other = sift_features(image, contrast=0.01), sift_features(from_elsewhere(image), contrast=0.01)
    distances = np.linalg.norm(one.descriptors[:, None] - other.descriptors[None], axis=-1)
    order = np.sort(distances, axis=1)
    nearest, back = distances.argmin(axis=1), distances.argmin(axis=0)
    expected = (order[:, 0] < 0.8 * order[:, 1]) & (back[nearest] == np.arange(len(nearest)))
    assert expected.sum() > 100
    for rows in (7, 1024):
        monkeypatch.setattr(module, "_ROWS", rows)
        here, there = match_sift(one, other)
        np.testing.assert_array_equal(here, one.points[expected])
        np.testing.assert_array_equal(there, other.points[nearest[expected]])


def test_command_line(folders, capsys):
    arguments = ["collect", str(folders / "candidates"), "--inputs", str(folders / "inputs")]
    assert main([*arguments, "--output", str(folders / "out"), "--keep-size"]) == 0
    out = capsys.readouterr().out
    assert "2 of 3 inputs have a reference" in out and "photo0.png: of0.png" in out
    assert Image.open(folders / "out" / "ref" / "002_ref.png").size == (720, 720)
    assert main([*arguments, "--output", str(folders / "none"), "--minimum", "100000"]) == 1
    assert "0 of 3 inputs" in capsys.readouterr().out
    assert main(["collect", str(folders / "nowhere"), *arguments[2:], "--output", "x"]) == 2
    assert "nowhere: not a folder" in capsys.readouterr().err
    for word in ("--minimum", "--pool"):
        with pytest.raises(SystemExit) as error:
            main([*arguments, "--output", "x", word, "many"])
        assert error.value.code == 2
