"""What `SuperResolver` does to images before and after the model, as functions of tensors.

The same arithmetic as :mod:`tfcorr.refsr.pixels` and :mod:`tfcorr.imaging.color`, for graphs: sizes may be
unknown until the graph runs, batches are taken, and only operators are used that TFLite has, too.

Convention: images are float32 (batch, height, width, channels) in [0, 1].
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tfcorr.refsr.upsampling import Upsampling, polyphase_weights

SCALE = 4

# As in tfcorr.imaging.color, which tells why.
TOLERANCE = 0.5 / 255
SIGMA = 5.0
PASSES = 3
# OpenCV takes four standard deviations to each side for floating point.
RADIUS = round(4 * SIGMA)


def side(image: tf.Tensor, axis: int):
    """Length of an axis: a Python integer where it is known, else a scalar tensor."""
    return image.shape[axis] if image.shape[axis] is not None else tf.shape(image)[axis]


def padded(image: tf.Tensor, smallest: int) -> tf.Tensor:
    """Continues images by their last row and column until both sides have at least `smallest` pixels."""
    for axis in (1, 2):
        size = side(image, axis)
        if isinstance(size, int) and size >= smallest:
            continue
        index = tf.minimum(tf.range(tf.maximum(size, smallest)), size - 1)
        image = tf.gather(image, index, axis=axis)
    return image


def whole_cells(image: tf.Tensor, smallest: int) -> tf.Tensor:
    """Cuts references at bottom and right to multiples of 4 pixels, after `padded(image, smallest)`."""
    image = padded(image, smallest)
    height, width = side(image, 1), side(image, 2)
    return image[:, : height // SCALE * SCALE, : width // SCALE * SCALE]


def match_low_frequencies(sr: tf.Tensor, lr: tf.Tensor) -> tf.Tensor:
    """Adds a smooth correction to an output, so that its low frequencies are those of the input.

    Args:
        sr: (B, 4 * h, 4 * w, C), [0, 1] but for overshoot, which is clamped.
        lr: (B, h, w, C), the input.

    Returns:
        (B, 4 * h, 4 * w, C) in [0, 1]: what :func:`tfcorr.imaging.color.match_low_frequencies` computes for
        one image.
    """
    enlarge = Upsampling(SCALE, "bicubic", dtype="float32")
    result = tf.clip_by_value(sr, 0.0, 1.0)
    for _ in range(PASSES):
        difference = _blur(lr - tf.clip_by_value(_downscale(result), 0.0, 1.0))
        correction = tf.sign(difference) * tf.maximum(tf.abs(difference) - TOLERANCE, 0.0)
        result = tf.clip_by_value(result + enlarge(correction), 0.0, 1.0)
    return result


def _downscale(image: tf.Tensor) -> tf.Tensor:
    """Antialiased bicubic reduction by 4, as Pillow's; sides are multiples of 4."""
    return _downscale_along(_downscale_along(image, 2), 1)


def _downscale_along(image: tf.Tensor, axis: int) -> tf.Tensor:
    total = _weighted_cells(image, axis)
    # Pillow leaves out the taps beyond the border and renormalises the others.
    ones = tf.ones_like(image[:1, :, :1, :1] if axis == 1 else image[:1, :1, :, :1])
    return total / _weighted_cells(ones, axis)


def _weighted_cells(image: tf.Tensor, axis: int) -> tf.Tensor:
    """Weighted sums of 16 pixels around each cell of 4 along an axis, zeros beyond the border."""
    taps = reduction_taps()
    reach = SCALE + SCALE // 2
    padding = [[0, 0]] * 4
    padding[axis] = [reach, reach]
    padded_image = tf.pad(image, padding)
    cells = side(image, axis) // SCALE
    last = (cells - 1) * SCALE + 1
    total = None
    for start, tap in enumerate(taps):
        stop = start + last
        window = padded_image[:, start:stop:SCALE] if axis == 1 else padded_image[:, :, start:stop:SCALE]
        total = window * tap if total is None else total + window * tap
    return total


def reduction_taps() -> list[float]:
    """The 16 weights of the bicubic kernel, widened four times, on the pixels around a cell of four.

    The enlarging kernel sampled at the four phases is the reducing one at a quarter: both are Keys' cubic at
    odd multiples of an eighth.
    """
    phases = polyphase_weights(SCALE, "bicubic")
    # Tap t of phase p weighs the input at distance t - 2 - (p + 0.5) / 4 + 0.5 from the output.
    by_distance = {
        round(8 * (tap - 2 - (phase + 0.5) / SCALE + 0.5)): float(phases[phase, tap])
        for phase in range(SCALE)
        for tap in range(phases.shape[1])
    }
    return [by_distance[eighths] / SCALE for eighths in range(-15, 16, 2)]


def _blur(image: tf.Tensor) -> tf.Tensor:
    """Gaussian low-pass, mirrored at the borders (the border pixel is repeated)."""
    for axis in (1, 2):
        size = side(image, axis)
        place = tf.range(-RADIUS, size + RADIUS) % (2 * size)
        mirrored = tf.gather(image, tf.minimum(place, 2 * size - 1 - place), axis=axis)
        shape = (2 * RADIUS + 1, 1) if axis == 1 else (1, 2 * RADIUS + 1)
        taps = np.tile(gaussian().reshape(*shape, 1, 1), (1, 1, image.shape[3], 1))
        image = tf.nn.depthwise_conv2d(mirrored, taps, strides=(1, 1, 1, 1), padding="VALID")
    return image


def gaussian() -> np.ndarray:
    """Weights of the low-pass, float32 (2 * radius + 1,)."""
    weights = np.array([math.exp(-0.5 * (t / SIGMA) ** 2) for t in range(-RADIUS, RADIUS + 1)])
    return (weights / weights.sum()).astype(np.float32)
