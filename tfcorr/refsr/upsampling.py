"""Fixed-weight x4 upsampling: Pillow's bicubic before the matcher, bilinear under the restorer's output.

Both are written with slices, sums and reshapes alone, so that they work on any Keras backend and convert to
TFLite with built-in operators; exported models need no Pillow.

Convention: pixel centres lie at half-integers (no corner alignment), as in Pillow, OpenCV and
``tf.image.resize``. Taps outside the image are left out and the others renormalised, as Pillow does; for the
bilinear kernel this equals repeating the border.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops


def _bicubic(distance: float) -> float:
    """Keys' cubic with a = -0.5, which Pillow uses (OpenCV and PyTorch take -0.75)."""
    x = abs(distance)
    if x < 1.0:
        return 1.5 * x**3 - 2.5 * x**2 + 1.0
    if x < 2.0:
        return -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
    return 0.0


def _bilinear(distance: float) -> float:
    return max(0.0, 1.0 - abs(distance))


_KERNELS = {"bicubic": (_bicubic, 2), "bilinear": (_bilinear, 1)}


def polyphase_weights(scale: int, interpolation: str) -> np.ndarray:
    """The taps of each output phase.

    Args:
        scale: Upsampling factor, at least 1.
        interpolation: ``"bicubic"`` or ``"bilinear"``.

    Returns:
        float32 (scale, 2 * support + 1): row p holds the weights of the input pixels i - support ... i +
        support for the output pixel scale * i + p.
    """
    kernel, support = _KERNELS[interpolation]
    weights = np.zeros((scale, 2 * support + 1), np.float32)
    for phase in range(scale):
        centre = (phase + 0.5) / scale - 0.5
        for tap in range(2 * support + 1):
            weights[phase, tap] = kernel(tap - support - centre)
    return weights


class Upsampling(keras.layers.Layer):
    """Upsamples images by a whole factor with a fixed kernel.

    Args:
        scale: Factor, a positive integer.
        interpolation: ``"bicubic"`` (Pillow's ``Image.BICUBIC``, without its rounding to 8 bits) or
            ``"bilinear"``.

    Input shape: (B, h, w, C) float. Output shape: (B, scale * h, scale * w, C), same dtype. Values are not
    clamped: the bicubic kernel overshoots at edges.

    Raises:
        ValueError: if ``scale`` or ``interpolation`` is not one of the above.
    """

    def __init__(self, scale: int = 4, interpolation: str = "bicubic", **kwargs):
        super().__init__(trainable=False, **kwargs)
        if not isinstance(scale, int) or scale < 1:
            raise ValueError(f"`scale` must be a positive integer, got {scale!r}")
        if interpolation not in _KERNELS:
            raise ValueError(f"`interpolation` must be one of {sorted(_KERNELS)}, got {interpolation!r}")
        self.scale = scale
        self.interpolation = interpolation
        self._weights = polyphase_weights(scale, interpolation)

    def call(self, inputs):
        return self._along(self._along(inputs, axis=1), axis=2)

    def _along(self, x, axis: int):
        """One separable pass along ``axis`` (1: rows, 2: columns)."""
        size = ops.shape(x)[axis]
        filtered = self._filter(x, axis, size)
        # Weights that fell outside the image are missing from this sum: dividing by it renormalises the rest.
        ones = ops.ones_like(x[:1, :, :1, :1] if axis == 1 else x[:1, :1, :, :1])
        y = filtered / self._filter(ones, axis, size)
        batch, height, width, channels = (ops.shape(x)[i] for i in range(4))
        if axis == 1:
            return ops.reshape(y, (batch, height * self.scale, width, channels))
        return ops.reshape(y, (batch, height, width * self.scale, channels))

    def _filter(self, x, axis: int, size):
        """(B, H, W, C) -> the ``scale`` phases stacked behind ``axis``."""
        support = self._weights.shape[1] // 2
        padding = [[0, 0]] * 4
        padding[axis] = [support, support]
        padded = ops.pad(x, padding)
        phases = []
        for taps in self._weights:
            total = None
            for start, weight in enumerate(taps):
                if weight == 0.0:
                    continue
                window = padded[:, start : start + size] if axis == 1 else padded[:, :, start : start + size]
                term = window * ops.cast(float(weight), x.dtype)
                total = term if total is None else total + term
            phases.append(total)
        return ops.stack(phases, axis=axis + 1)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        sides = (None if side is None else side * self.scale for side in (height, width))
        return (batch, *sides, channels)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale, "interpolation": self.interpolation}


class BicubicUpsampling(Upsampling):
    """:class:`Upsampling` with Pillow's bicubic kernel: what the matcher sees of a low-resolution image.

    The published pipeline rounds the upsampled image to 8 bits; ``quantize=True`` does so too (values in [0,
    1] are clamped and rounded to k/255), so that the features equal those of the published data loader.
    """

    def __init__(self, scale: int = 4, quantize: bool = False, **kwargs):
        kwargs.pop("interpolation", None)
        super().__init__(scale, "bicubic", **kwargs)
        self.quantize = quantize

    def call(self, inputs):
        if not self.quantize:
            return super().call(inputs)
        # Pillow works on 8-bit integers and rounds after each of its two passes, the horizontal one first.
        for axis in (2, 1):
            inputs = ops.floor(ops.clip(self._along(inputs, axis), 0.0, 1.0) * 255.0 + 0.5) / 255.0
        return inputs

    def get_config(self):
        return {**super().get_config(), "quantize": self.quantize}


def bicubic_reduction(images):
    """Antialiased bicubic reduction by 4, rounded to 8 bits: the degradation of the paper, within a graph.

    Args:
        images: float (B, H, W, C) in [0, 1], sides multiples of 4.

    Returns:
        (B, H // 4, W // 4, C), same dtype; differs from Pillow's by at most one step of 8 bits.
    """
    for axis in (1, 2):
        ones = ops.ones_like(images[:1, :, :1, :1] if axis == 1 else images[:1, :1, :, :1])
        images = _reduced_along(images, axis) / _reduced_along(ones, axis)
    return ops.round(ops.clip(images, 0.0, 1.0) * 255.0) / 255.0


def _reduced_along(x, axis: int):
    """Sums over the kernel's taps that are inside, not normalised."""
    scale, support = 4, 8
    size = ops.shape(x)[axis] // scale
    padding = [[0, 0]] * 4
    padding[axis] = [support, support]
    padded = ops.pad(x, padding)
    total = None
    for tap in range(2 * support):
        # Taps lie around the middle of a cell, which is half a pixel off one.
        weight = _bicubic((tap - support + 0.5) / scale)
        start = tap + scale // 2
        stop = start + scale * size
        term = padded[:, start:stop:scale] if axis == 1 else padded[:, :, start:stop:scale]
        term = term * ops.cast(weight, x.dtype)
        total = term if total is None else total + term
    return total
