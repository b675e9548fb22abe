"""Photometric changes of a reference: what light, camera and file do to a second photo of the same thing.

Brightness, contrast and blur are those of keras-cv. Its layers draw from generators of their own, whose order
of use parallel workers would decide, so only their deterministic halves are called, with amounts that are
drawn from the sample's own generator. Gamma, the colour of the light (a factor for each channel) and noise
keras-cv does not have.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from tfcorr.config import Photometric
from tfcorr.errors import TfcorrError

# Of the blur, in pixels; weaker ones change nothing that 8 bits could hold.
_LEAST_BLUR = 0.1
_RADIUS = 3


def change_photometry(image: np.ndarray, rng: np.random.Generator, strength: Photometric) -> np.ndarray:
    """Changes brightness, contrast, gamma, colour and sharpness of an image, and adds noise, each by chance.

    Args:
        image: (H, W, 3) float32 in [0, 1].
        rng: the source of randomness; the number of draws does not depend on which changes happen.
        strength: ``brightness``, the largest shift; ``contrast``, ``gamma`` and ``colour``, the largest
            relative change (the last one a channel); ``blur``, the largest standard deviation in pixels;
            ``noise``, the largest standard deviation.

    Returns:
        A new array of the same kind, or ``image`` itself if ``strength.probability`` is 0.

    Raises:
        TfcorrError: keras-cv cannot be imported.
    """
    if strength.probability == 0:
        return image
    happens = rng.random(6) < strength.probability
    amount = rng.uniform(-1, 1, 3)
    colour = rng.uniform(-1, 1, 3)
    blur, noise = rng.random(2)
    noise_rng = np.random.default_rng(rng.integers(2**63))
    if happens[0]:
        image = _applied("brightness", image, amount[0] * strength.brightness)
    if happens[1]:
        image = _applied("contrast", image, 1 + amount[1] * strength.contrast)
    if happens[2]:
        image = np.clip(image, 0, 1) ** np.exp(amount[2] * np.log1p(strength.gamma))
    if happens[3]:
        image = image * (1 + colour * strength.colour)
    if happens[4] and blur * strength.blur > _LEAST_BLUR:
        image = _blurred(image, blur * strength.blur)
    if happens[5]:
        image = image + noise_rng.normal(0, noise * strength.noise, image.shape)
    return np.clip(image, 0, 1).astype(np.float32)


def _applied(name: str, image: np.ndarray, amount: float) -> np.ndarray:
    """What a layer of keras-cv makes of an image with a given amount, clipped to [0, 1]."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        images = tf.constant(image[None], tf.float32)
        return _layers()[name].augment_images(images, tf.fill((1, 1, 1, 1), np.float32(amount)))[0].numpy()


def _blurred(image: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian blur by keras-cv, which takes what lies outside for black: so the image is mirrored there."""
    import tensorflow as tf

    layer = _layers()["blur"]
    # Wide enough for three standard deviations; the layer's own size serves for its random draws alone.
    radius = max(1, math.ceil(_RADIUS * deviation))
    mirrored = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="symmetric")
    with tf.device("CPU:0"):
        kernel = layer.get_kernel(np.float32(deviation), 2 * radius + 1)
        kernels = tf.reshape(kernel, (-1, 1, 1, 1)), tf.reshape(kernel, (1, -1, 1, 1))
        image = layer.augment_image(tf.constant(mirrored, tf.float32), transformation=kernels).numpy()
    return image[radius:-radius, radius:-radius]


@functools.lru_cache(maxsize=1)
def _layers() -> dict[str, Any]:
    """The layers, in float32 whatever policy a training has set."""
    try:
        from keras_cv import layers
    except ImportError as error:
        raise TfcorrError(
            f"photometric changes need keras-cv (pip install keras-cv), which cannot be imported: {error}; "
            "without it set photometric.probability to 0"
        ) from error
    return {
        "brightness": layers.RandomBrightness(0.0, value_range=(0, 1), dtype="float32"),
        "contrast": layers.RandomContrast(value_range=(0, 1), factor=0.0, dtype="float32"),
        "blur": layers.RandomGaussianBlur(2 * _RADIUS + 1, 1.0, dtype="float32"),
    }
