"""Colour correction on synthetic scenes whose true colours are known."""

import numpy as np
import pytest

from tfcorr.imaging.color import match_low_frequencies
from tfcorr.imaging.resize import downscale, upscale

STEP = 1 / 255


def scene(height=160, width=192) -> np.ndarray:
    """Edges, a gradient, stripes and noise, float32 in [0.1, 0.9]."""
    y, x = np.mgrid[:height, :width] / height
    image = np.stack([0.3 + 0.4 * x, 0.7 - 0.4 * y, 0.4 + 0.1 * np.sin(60 * x)], axis=-1)
    image[40:90, 50:120] = (0.9, 0.15, 0.1)
    image[100:, 130:] = (0.1, 0.1, 0.8)
    noise = np.random.default_rng(0).normal(0, 0.03, image.shape)
    return np.clip(image + noise, 0.1, 0.9).astype(np.float32)


def eight_bits(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def mean_error(sr: np.ndarray, lr: np.ndarray) -> float:
    """Largest difference of the channel means of the reduced output and the input, in steps of 8 bits."""
    return float(
        np.abs((downscale(sr) - lr / np.float32(255)).mean(axis=(0, 1), dtype=np.float64)).max() / STEP
    )


def test_a_good_result_is_not_changed():
    truth = scene()
    lr = eight_bits(downscale(truth))
    np.testing.assert_array_equal(match_low_frequencies(truth, lr), truth)
    # Nor is one that a network made: details wrong, colours right.
    noisy = np.clip(truth + np.random.default_rng(1).normal(0, 0.02, truth.shape), 0, 1).astype(np.float32)
    assert np.abs(match_low_frequencies(noisy, lr) - noisy).max() < 0.25 * STEP
    smooth = np.clip(upscale(lr.astype(np.float32) / 255), 0, 1)
    assert np.abs(match_low_frequencies(smooth, lr) - smooth).max() < 0.25 * STEP


@pytest.mark.parametrize("tint", [(0.08, -0.05, 0.02), (-0.15, 0.1, 0.1), (1.2 * STEP, 0, -2 * STEP)])
def test_a_tint_is_removed(tint):
    truth = scene()
    lr = eight_bits(downscale(truth))
    tinted = truth + np.float32(tint)
    assert mean_error(np.clip(tinted, 0, 1), lr) > 1
    corrected = match_low_frequencies(tinted, lr)
    assert corrected.dtype == np.float32 and corrected.min() >= 0 and corrected.max() <= 1
    assert mean_error(corrected, lr) < 1
    assert mean_error(eight_bits(corrected) / np.float32(255), lr) < 1
    inside = (truth > 0.2) & (truth < 0.8)
    assert np.abs(corrected - truth)[inside].mean() < 0.7 * STEP


def test_a_tint_of_a_part_and_one_that_varies_are_removed():
    truth = scene()
    lr = eight_bits(downscale(truth))
    x = np.linspace(-0.1, 0.1, truth.shape[1], dtype=np.float32)[None, :, None]
    corrected = match_low_frequencies(truth + x, lr)
    assert np.abs(corrected - truth).mean() < 1.2 * STEP
    part = truth.copy()
    part[:80, :96] *= np.float32((0.8, 1.1, 0.9))
    corrected = match_low_frequencies(part, lr)
    assert mean_error(corrected, lr) < 1
    assert np.abs(corrected - truth).mean() < 0.4 * np.abs(np.clip(part, 0, 1) - truth).mean()


def test_edges_do_not_ring():
    """A tinted black and white edge comes back as the edge: no over- and undershoot beside it."""
    truth = np.full((128, 128, 3), 0.2, np.float32)
    truth[:, 61:] = 0.8
    lr = eight_bits(downscale(truth))
    corrected = match_low_frequencies(truth + np.float32(0.07), lr)
    assert np.abs(corrected - truth).max() < 1.5 * STEP
    profile = corrected.mean(axis=(0, 2))
    assert (
        np.abs(np.diff(profile[:60])).max() < 0.1 * STEP and np.abs(np.diff(profile[63:])).max() < 0.1 * STEP
    )


def test_detail_is_kept():
    truth = scene()
    lr = eight_bits(downscale(truth))
    corrected = match_low_frequencies(truth + np.float32(0.05), lr)
    inside = (slice(8, 36), slice(8, 180))
    ours, theirs = (np.diff(image[inside], axis=1) for image in (corrected, truth))
    np.testing.assert_allclose(ours, theirs, atol=0.1 * STEP)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (5, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiny_images(size, channels):
    lr = np.random.default_rng(2).integers(60, 180, (*size, channels)).astype(np.uint8)
    sr = np.clip(upscale(lr.astype(np.float32) / 255), 0, 1) + np.float32(0.1)
    corrected = match_low_frequencies(sr, lr)
    assert corrected.shape == sr.shape
    assert mean_error(corrected, lr) < 1


def test_other_scale_and_depths():
    truth = scene()
    low = downscale(truth, 2)
    expected = match_low_frequencies(truth + np.float32(0.05), low, scale=2)
    deep = np.rint(np.clip(low, 0, 1) * 65535).astype(np.uint16)
    np.testing.assert_allclose(
        match_low_frequencies(truth + np.float32(0.05), deep, scale=2), expected, atol=1e-4
    )


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"4 times.*\(8, 8, 3\) and \(3, 2, 3\)"):
        match_low_frequencies(np.zeros((8, 8, 3), np.float32), np.zeros((3, 2, 3), np.float32))
