"""Photometric changes against NumPy and OpenCV."""

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import keras
import numpy as np
import pytest

from tfcorr.config import Photometric
from tfcorr.errors import TfcorrError
from tfcorr.refsr import photometry
from tfcorr.refsr.photometry import change_photometry

NOTHING = Photometric(1.0, brightness=0, contrast=0, gamma=0, colour=0, blur=0, noise=0)
STRONG = Photometric(probability=1.0)


@pytest.fixture(scope="module")
def image():
    noise = cv2.GaussianBlur(np.random.default_rng(1).random((40, 56, 3)), (0, 0), 2)
    return ((noise - noise.min()) / (noise.max() - noise.min())).astype(np.float32)


def changed(image, seed=0, **strengths):
    return change_photometry(image, np.random.default_rng(seed), dataclasses.replace(NOTHING, **strengths))


def draws(seed=0):
    """Amounts of brightness, contrast and gamma, colours, and blur and noise, in the documented order."""
    rng = np.random.default_rng(seed)
    rng.random(6)
    return rng.uniform(-1, 1, 3), rng.uniform(-1, 1, 3), rng.random(2)


def test_nothing(image):
    assert change_photometry(image, np.random.default_rng(0), Photometric()) is image
    np.testing.assert_allclose(changed(image), image, atol=1e-6)


def test_each_change(image):
    (brightness, contrast, gamma), colour, (blur, _) = draws()
    expected = np.clip(image + 0.3 * brightness, 0, 1)
    np.testing.assert_allclose(changed(image, brightness=0.3), expected, atol=1e-6)
    mean = image.mean((0, 1))
    expected = np.clip((image - mean) * (1 + 0.4 * contrast) + mean, 0, 1)
    np.testing.assert_allclose(changed(image, contrast=0.4), expected, atol=1e-5)
    np.testing.assert_allclose(changed(image, gamma=0.5), image ** (1.5**gamma), atol=1e-5)
    expected = np.clip(image * (1 + 0.2 * colour), 0, 1)
    np.testing.assert_allclose(changed(image, colour=0.2), expected, atol=1e-6)
    deviation = 2 * blur
    size = 2 * int(np.ceil(3 * deviation)) + 1
    expected = cv2.GaussianBlur(image, (size, size), deviation, borderType=cv2.BORDER_REFLECT)
    np.testing.assert_allclose(changed(image, blur=2.0), expected, atol=1e-4)
    # No dark frame: keras-cv alone would fill with black.
    flat = np.full((24, 24, 3), 0.5, np.float32)
    np.testing.assert_allclose(changed(flat, blur=2.0), flat, atol=1e-5)


def test_all_together(image):
    result = change_photometry(image, np.random.default_rng(0), STRONG)
    assert result.dtype == np.float32 and result.shape == image.shape
    assert result.min() >= 0 and result.max() <= 1
    assert 0.01 < np.abs(result - image).mean() < 0.3


def test_workers_change_nothing(image):
    alone = [change_photometry(image, np.random.default_rng(seed), STRONG) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda seed: change_photometry(image, np.random.default_rng(seed), STRONG), range(12))
        )
    np.testing.assert_array_equal(alone, together)
    # How much is drawn does not depend on what happens, so that later draws stay where they are.
    after = []
    for probability in (0.1, 1.0):
        rng = np.random.default_rng(5)
        change_photometry(image, rng, Photometric(probability=probability))
        after.append(rng.random())
    assert after[0] == after[1]


def test_precision_of_a_training_does_not_matter(image):
    expected = change_photometry(image, np.random.default_rng(0), STRONG)
    policy = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        photometry._layers.cache_clear()
        result = change_photometry(image, np.random.default_rng(0), STRONG)
    finally:
        keras.config.set_dtype_policy(policy)
        photometry._layers.cache_clear()
    np.testing.assert_array_equal(result, expected)


def test_without_keras_cv(image, monkeypatch):
    photometry._layers.cache_clear()
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    with pytest.raises(TfcorrError, match="photometric changes need keras-cv"):
        changed(image, brightness=0.3)
