"""Displacements: known ones are found, edges count across, and what is flat or something else stays."""

import cv2
import numpy as np
import pytest
from scenes import scene

from tfcorr.refsr.displacement import displacements

SIDE = 160
SEARCH = {"step": 4, "reach": 4, "window": 13, "apart": 2.0}


def photo(seed=1):
    return cv2.cvtColor(cv2.GaussianBlur(scene(seed, SIDE), (0, 0), 1.0), cv2.COLOR_RGB2GRAY).astype(
        np.float32
    )


def moved(image, by):
    """The image with each pixel's content ``by`` pixels (y, x) farther."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    return cv2.remap(
        image, x - by[..., 1], y - by[..., 0], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )


@pytest.mark.parametrize("by", [(0.0, 0.0), (1.0, -2.0), (-0.4, 2.3)])
def test_a_shift(by):
    field = np.broadcast_to(np.float32(by), (SIDE, SIDE, 2))
    found = displacements(photo(), moved(photo(), field), **SEARCH)
    assert found.shape == (SIDE // 4, SIDE // 4, 2) and found.dtype == np.float32
    error = np.abs(found - np.float32(by)).max(axis=-1)[3:-3, 3:-3]
    assert np.median(error) < 0.2 and np.mean(error < 0.5) > 0.9


def test_a_field_that_changes_from_place_to_place():
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    field = np.stack([2.0 * np.sin(x / 25), 2.0 * np.cos(y / 30)], axis=-1)
    found = displacements(photo(), moved(photo(), field), **SEARCH)
    error = np.abs(found - field[::4, ::4]).max(axis=-1)[3:-3, 3:-3]
    assert np.median(error) < 0.3


def test_an_edge_counts_across():
    """Stripes say nothing of a shift along them; the few spots beside them do."""
    image = np.full((SIDE, SIDE), 60.0, np.float32)
    image[:, 40:44], image[:, 60:64] = 200.0, 180.0
    for y in range(10, SIDE, 20):
        image[y : y + 3, 50:53] = 220.0
    noise = np.random.default_rng(0).normal(size=(2, SIDE, SIDE)).astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), 1.5)
    by = np.broadcast_to(np.float32([1.2, -0.7]), (SIDE, SIDE, 2))
    found = displacements(image + noise[0], moved(image, by) + noise[1], **SEARCH)
    error = np.abs(found - np.float32([1.2, -0.7]))[3:-3, 9:17]
    assert np.median(error[..., 1]) < 0.15 and np.median(error[..., 0]) < 0.4


def test_what_is_flat_or_something_else_hardly_moves():
    flat = np.full((SIDE, SIDE), 90.0, np.float32)
    np.testing.assert_array_equal(displacements(flat, flat, **SEARCH), np.zeros((40, 40, 2)))
    other = displacements(photo(1), photo(7), **SEARCH)
    assert np.isfinite(other).all() and np.abs(other).max() <= SEARCH["reach"]


@pytest.mark.parametrize("size", [(1, 1), (2, 30), (17, 5)])
def test_small_images(size):
    image = np.random.default_rng(0).random(size, np.float32) * 255
    found = displacements(image, image, **SEARCH)
    assert found.shape == (-(-size[0] // 4), -(-size[1] // 4), 2) and np.isfinite(found).all()
