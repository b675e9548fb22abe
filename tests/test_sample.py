"""The pictures in docs/sample: what they promise to each other, and to the script that renders them."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tfcorr.imaging.resize import downscale, resize_bicubic

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "docs" / "sample"


def picture(name: str) -> np.ndarray:
    return np.asarray(Image.open(SAMPLE / f"{name}.png"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("ground_truth", (480, 640, 3)), ("reference", (480, 640, 3)), ("low_res", (120, 160, 3))],
)
def test_pictures_are_small_8_bit_rgb(name, shape):
    assert picture(name).shape == shape
    assert picture(name).dtype == np.uint8
    assert (SAMPLE / f"{name}.png").stat().st_size < 800_000


def test_low_res_is_the_bicubic_reduction_of_the_ground_truth():
    np.testing.assert_array_equal(picture("low_res"), downscale(picture("ground_truth"), 4))


def test_the_views_share_the_wall_rolled_by_8_degrees():
    """OpenCV finds the wall's homography between the views, from SIFT matches, far above chance."""
    sift = cv2.SIFT_create()
    (from_points, from_features), (to_points, to_features) = (
        sift.detectAndCompute(cv2.cvtColor(picture(name), cv2.COLOR_RGB2GRAY), None)
        for name in ("ground_truth", "reference")
    )
    pairs = cv2.BFMatcher().knnMatch(from_features, to_features, k=2)
    good = [best for best, second in pairs if best.distance < 0.8 * second.distance]
    source = np.float32([from_points[m.queryIdx].pt for m in good])
    target = np.float32([to_points[m.trainIdx].pt for m in good])
    homography, inliers = cv2.findHomography(source, target, cv2.RANSAC, 2.0)
    assert inliers.sum() > 300
    across = cv2.perspectiveTransform(np.float32([[[310, 240], [330, 240]]]), homography)[0]
    dx, dy = across[1] - across[0]
    assert abs(np.degrees(np.arctan2(-dy, dx)) - 8) < 6  # the roll, and what perspective adds to it


def test_the_script_renders_these_pictures(monkeypatch):
    """A coarse rendering without shadows resembles the files, and most of the input is in both views."""
    pytest.importorskip("skimage")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    for module in ("raycast", "render_sample"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    import raycast
    import render_sample

    scene = render_sample.courtyard()
    for surface in (surface for group in scene for surface in group):
        surface.light = np.full((2, 2, 3), 2, np.float32)
    depths = []
    for name, camera in render_sample.CAMERAS.items():
        radiance, depth = raycast.render(scene, camera, 160, 120, 2)
        depths.append((depth, camera))
        coarse = raycast.develop(radiance, camera)
        file = resize_bicubic(picture(name), (120, 160))
        assert np.corrcoef(coarse.ravel(), file.ravel())[0, 1] > 0.85
    share, _ = raycast.visible(*depths[0], *depths[1])
    assert share > 0.7
