"""Keeping the colours of the input.

A reference with another colour cast tints what is taken from it. Since the input tells the true colours at
its own resolution, the output reduced to that resolution has to agree with it, and where it does not, a
smooth correction is added. (Applications correct colour shifts of learned upscalers in this way: low-pass the
difference between the input and the reduced output, and add it.)"""

from __future__ import annotations

import cv2
import numpy as np

from tfcorr.imaging.depth import convert_depth
from tfcorr.imaging.resize import downscale, upscale

# Differences below this stay: half a step of 8 bits, the rounding of the input itself.
_TOLERANCE = 0.5 / 255
# Standard deviation of the low-pass, in pixels of the input: wider than any edge, narrower than most objects.
_SIGMA = 5.0
# Clamping undoes part of a correction; so few passes repair that, and more hardly change anything.
_PASSES = 3


def match_low_frequencies(sr: np.ndarray, lr: np.ndarray, scale: int = 4) -> np.ndarray:
    """Adds a smooth correction to an output, so that its low frequencies are those of the input.

    d = blur(lr - downscale(sr)) is soft-thresholded by half a step of 8 bits, enlarged and added; what agrees
    with the input up to its rounding is not changed at all. The correction holds no detail (Gaussian of 5
    input pixels), so that it neither sharpens nor blurs, and edges get no halos.

    Args:
      sr: (scale * h, scale * w, C) floating point, [0, 1] but for overshoot, which is clamped.
      lr: (h, w, C), the input; uint8, uint16, or floating point in [0, 1].
      scale: how many times larger `sr` is.

    Returns:
      float32 of the shape of `sr`, in [0, 1]. The mean of each channel of `downscale(result)` lies within
      1/255 of that of `lr`, unless the correction would have to leave [0, 1] over large areas.

    Raises:
      ValueError: if the shapes do not fit.
    """
    sr, lr = np.asarray(sr), np.asarray(lr)
    if sr.ndim != 3 or lr.ndim != 3 or sr.shape != (scale * lr.shape[0], scale * lr.shape[1], lr.shape[2]):
        raise ValueError(f"expected sr to be {scale} times as large as lr, got {sr.shape} and {lr.shape}")
    target = convert_depth(lr, np.float32)
    result = np.clip(convert_depth(sr, np.float32), 0, 1)
    for _ in range(_PASSES):
        # Clamped, as the overshoot at edges was when the input was made.
        difference = _blur(target - np.clip(downscale(result, scale), 0, 1))
        correction = np.sign(difference) * np.maximum(np.abs(difference) - _TOLERANCE, 0)
        if not correction.any():
            break
        result = np.clip(result + upscale(correction, scale), 0, 1)
    return result


def _blur(image: np.ndarray) -> np.ndarray:
    """Gaussian low-pass of (H, W, C) float32; mirrored at the borders, which keeps the mean."""
    blurred = cv2.GaussianBlur(image, (0, 0), _SIGMA, borderType=cv2.BORDER_REFLECT)
    return blurred.reshape(image.shape)
