"""Robustness on tiny photos: the geometry against OpenCV, matchers whose errors are known."""

import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from scenes import scene

from tfcorr.config import ConfigError, load_config
from tfcorr.imaging import downscale
from tfcorr.refsr import robustness
from tfcorr.refsr.homography import scaled_and_turned
from tfcorr.refsr.matchers import FeatureMatcher, SiftMatcher, find_matcher, inner_points
from tfcorr.refsr.robustness import Transform, end_points, measure_matcher
from tfcorr.refsr.sift import match_sift, sift_features


def photo(seed=0, side=96):
    rng = np.random.default_rng(seed)
    noise = sum(cv2.GaussianBlur(rng.random((side, side, 3)), (0, 0), s) * s for s in (1, 3, 8))
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return (noise * 255).astype(np.uint8)


class Oracle:
    """Knows the matrix, but errs by a shift in the right half and has no answer in the lower quarter."""

    name, fingerprint = "oracle", "oracle"

    def __init__(self, matrix, height, width):
        self.matrix, self.height, self.width = matrix, height, width

    def locate(self, small, reference, points):
        found = end_points(points, self.matrix)
        found[points[:, 1] >= self.width / 2] += (3, 4)
        return found, points[:, 0] < 0.75 * self.height


def test_scaling_and_turning():
    # A quarter turn counter-clockwise is exact, and what np.rot90 does.
    image = photo()[:64, :96]
    turned, matrix = Transform("rotation", 90).apply(image)
    np.testing.assert_array_equal(turned, np.rot90(image))
    # The top right corner goes to the top left.
    np.testing.assert_allclose(end_points(np.array([[0.0, 95.0]]), matrix), [[0, 0]], atol=1e-9)
    # Twice the size: each pixel covers two, so the middle of pixel 0 lies at 0.5.
    matrix, size = scaled_and_turned(64, 96, 2.0, 0.0)
    assert size == (128, 192)
    np.testing.assert_allclose(
        end_points(np.array([[0.0, 0.0], [63.0, 95.0]]), matrix), [[0.5, 0.5], [126.5, 190.5]]
    )
    # Everything is on the canvas, and in its middle.
    for scale, degrees in ((1.67, 0.0), (1.0, 15.0), (0.5, -130.0)):
        matrix, (height, width) = scaled_and_turned(64, 96, scale, degrees)
        assert height % 4 == width % 4 == 0
        corners = end_points(np.array([[-0.5, -0.5], [-0.5, 95.5], [63.5, 95.5], [63.5, -0.5]]), matrix) + 0.5
        assert corners.min() >= -1e-6 and (corners.max(0) <= (height + 1e-6, width + 1e-6)).all()
        np.testing.assert_allclose(corners.mean(0), (height / 2, width / 2))
        assert np.linalg.det(matrix[:2, :2]) == pytest.approx(scale**2)


def test_measures():
    image, transform = photo(), Transform("scale", 1.25)
    oracle = Oracle(transform.apply(image)[1], 96, 96)
    points = inner_points(24, 24)
    answered, shifted = points[:, 0] < 72, points[:, 1] >= 48
    scores = measure_matcher(oracle, image, transform, threshold=4.9)
    assert scores["aee"] == pytest.approx(5 * shifted[answered].mean())
    assert scores["answered"] == pytest.approx(answered.mean())
    # No answer is a wrong one.
    assert scores["within"] == pytest.approx((answered & ~shifted).mean())
    assert measure_matcher(oracle, image, transform, threshold=5.1)["within"] == scores["answered"]
    oracle.height = 0
    assert measure_matcher(oracle, image, transform, 8.0) == {"aee": None, "within": 0.0, "answered": 0.0}


def test_features_find_themselves():
    # The position of each cell as its feature: wherever the reference was cut, cells find their own.
    grid = np.stack(np.meshgrid(np.arange(1.0, 25), np.arange(1.0, 25), indexing="ij"), -1)
    angles = np.concatenate([np.cos(grid / 16), np.sin(grid / 16)], -1)[None].astype(np.float32)
    matcher = FeatureMatcher("own", "own", lambda x: angles, lambda x: angles[:, 3:, 5:])
    points = inner_points(24, 24)
    found, answered = matcher.locate(np.zeros((24, 24, 3), np.uint8), photo()[12:, 20:], points)
    inside = (points[:, 0] > 16) & (points[:, 1] > 24)
    assert answered.all() and inside.sum() > 200
    np.testing.assert_allclose(found[inside], points[inside] - (12, 20))


def test_rgb_patches_find_a_shifted_crop():
    image = photo()
    matcher = find_matcher("rgb", {}, None)
    small = downscale(image)
    points = inner_points(24, 24)
    found, _ = matcher.locate(small, np.ascontiguousarray(image[8:, 12:]), points)
    inside = (points[:, 0] > 14) & (points[:, 1] > 18)
    error = np.abs(found - (points - (8, 12))).max(1)[inside]
    assert np.mean(error <= 4) > 0.6


def test_sift():
    image = photo(3, 160)
    turned = np.ascontiguousarray(np.rot90(image))
    here, there = match_sift(sift_features(image), sift_features(turned))
    assert len(here) > 20
    error = np.abs(end_points(here, Transform("rotation", 90).apply(image)[1]) - there).max(1)
    assert np.median(error) < 1
    flat = np.full((64, 64, 3), 7, np.uint8)
    found, answered = SiftMatcher().locate(downscale(flat), flat, inner_points(16, 16))
    assert found.shape == (196, 2) and not answered.any()


def test_a_model_that_registers(tiny_model_folder, tmp_path):
    folder = tmp_path / "registered"
    shutil.copytree(tiny_model_folder, folder)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "name": "tiny", "registration": True}))
    matcher = find_matcher(str(folder), {}, None)
    assert matcher.name == "tiny, registered"
    image = scene(1, 160)
    transform = Transform("rotation", 60)
    measured = measure_matcher(matcher, image, transform, 8.0)
    assert measured["within"] > 0.9 and measured["answered"] == 1
    assert (
        measure_matcher(find_matcher(str(tiny_model_folder), {}, None), image, transform, 8.0)["within"] < 0.3
    )
    # What cannot be registered is matched as it is.
    flat = np.full((64, 64, 3), 7, np.uint8)
    found, answered = matcher.locate(downscale(flat), flat, inner_points(16, 16))
    assert found.shape == (196, 2) and answered.all()


def test_unknown_matchers():
    with pytest.raises(ConfigError, match=r"weights\.vgg16: missing, expected a file"):
        find_matcher("vgg16", {}, None)


def test_run(tmp_path, monkeypatch):
    for number in range(4):
        Image.fromarray(photo(number)).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"broken")
    Image.fromarray(photo(5)[:50]).save(tmp_path / "5.png")

    class Half:
        name, fingerprint = "half", "half"
        calls = 0

        def locate(self, small, reference, points):
            Half.calls += 1
            return points, points[:, 0] < 48

    monkeypatch.setattr(robustness, "find_matcher", lambda name, weights, root: Half())
    config = load_config(
        "refsr/robustness",
        [
            "images=[.]",
            "only=[]",
            "matchers=[half]",
            "models=[]",
            "scales=[1.25]",
            "rotations=[15, 90]",
            "crop=64",
            f"output={tmp_path / 'r.json'}",
            f"data_root={tmp_path}",
        ],
    )
    result, table = robustness.run(config, report=lambda line: None)
    assert json.loads((tmp_path / "r.json").read_text()) == result
    assert len(result["images"]) == 4 and len(result["texture"]) == 2
    assert [path.rsplit("/", 1)[-1] for path in result["skipped"]] == ["4.png", "5.png"]
    assert set(result["matchers"]["half"]) == {"scale 1.25", "rotation 15", "rotation 90"}
    assert result["matchers"]["half"]["rotation 15"]["all"]["answered"]["count"] == 4
    assert "AEE in pixels of the reference, 4 images" in table and "texture subset, 2 images" in table
    assert (tmp_path / "r.md").read_text().startswith("**AEE")
    calls = Half.calls
    assert robustness.run(config, report=lambda line: None)[0] == result
    assert Half.calls == calls == 12
    for words in (["matchers=[]", "models=[]"], ["scales=[]", "rotations=[]"], ["scales=[-1.0]"]):
        with pytest.raises(ConfigError, match="expected"):
            robustness.run(load_config("refsr/robustness", words))
