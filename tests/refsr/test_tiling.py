"""The shipped model on the sample pair: tiles against the whole, and one call like the other."""

from pathlib import Path

import numpy as np
import pytest

from tfcorr.imaging import read_image
from tfcorr.refsr.memory import MemoryPlan
from tfcorr.refsr.predictor import SuperResolver

SAMPLE = Path(__file__).parents[2] / "docs" / "sample"

pytestmark = pytest.mark.slow


def upscaler_with(memory=4 * 10**9, model=None):
    if model is None:
        return SuperResolver.from_pretrained("c2-compact", memory=memory)
    return SuperResolver(model, memory=memory)


@pytest.fixture(scope="module")
def sample():
    low, reference = (read_image(SAMPLE / f"{name}.png").pixels for name in ("low_res", "reference"))
    return np.float32(low) / 255, np.float32(reference) / 255


@pytest.fixture(scope="module")
def whole(sample):
    upscaler = upscaler_with()
    height, width = sample[0].shape[:2]
    assert upscaler._memory.tile(height, width) == (height, width)
    return upscaler, upscaler.upscale(*sample, details=True)


@pytest.mark.parametrize("tile", [32, 56, 96])
def test_tiles_give_what_the_whole_gives(sample, whole, tile):
    upscaler, expected = whole
    low, reference = sample
    tiled = upscaler_with(model=upscaler.model)
    per_pixel = tiled._memory.tile_bytes
    tiled._memory = MemoryPlan(2 * per_pixel * tile**2, per_pixel, reference_bytes=1)
    assert tiled._memory.tile(*low.shape[:2]) == (tile, tile)
    found = tiled.upscale(low, reference, details=True)
    np.testing.assert_array_equal(found.correspondence, expected.correspondence)
    off = np.abs(found.image - expected.image).max(axis=2)
    assert np.mean(off <= 1 / 255) >= 0.999
    # Far better in truth, so that a seam that were only just allowed would be seen.
    assert off.max() <= 1 / 255


def test_inference_is_repeatable(sample, whole):
    upscaler, expected = whole
    again = upscaler.upscale(*sample, details=True)
    for name in ("image", "correspondence", "confidence"):
        np.testing.assert_array_equal(getattr(again, name), getattr(expected, name))
