"""PSNR and SSIM as the super-resolution literature reports them.

The protocol (C2-Matching section 5.1, and the published evaluation code where the paper is silent): the
output is clamped and rounded to 8 bits, a border as wide as the scale is cut off on each side, and PSNR and
SSIM are taken on the luma of ITU-R BT.601 in its studio range (16...235), which is *not* rounded.
"""

from __future__ import annotations

import cv2
import numpy as np

from tfcorr.imaging.depth import convert_depth

# ITU-R BT.601 luma of full-range R, G, B, both in 8-bit units.
_LUMA = np.array([65.481, 128.553, 24.966]) / 255.0
_LUMA_OFFSET = 16.0

# Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity".
_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_SSIM_K1, _SSIM_K2 = 0.01, 0.03


def rgb_to_y(image: np.ndarray) -> np.ndarray:
    """Luma Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255, not rounded.

    Args:
      image: (..., 3), channels R, G, B, any real dtype, values 0...255.

    Returns:
      float64 array (...), 16...235.

    Raises:
      ValueError: if the last axis is not 3 long.
    """
    image = np.asarray(image)
    if image.ndim < 1 or image.shape[-1] != 3:
        raise ValueError(f"rgb_to_y takes RGB on the last axis, got shape {image.shape}")
    return image.astype(np.float64) @ _LUMA + _LUMA_OFFSET


def psnr(image: np.ndarray, truth: np.ndarray, *, data_range: float = 255.0) -> float:
    """Peak signal-to-noise ratio, 10 log10(data_range^2 / mean squared error), over all elements.

    Args:
      image, truth: arrays of one shape, any real dtype, in units of `data_range`.
      data_range: the peak value.

    Returns:
      Decibels; infinity when the two are equal.

    Raises:
      ValueError: if the shapes differ or the arrays are empty.
    """
    image, truth = _same_shape(image, truth)
    error = np.mean(np.square(image - truth))
    return float("inf") if error == 0 else float(10.0 * np.log10(data_range**2 / error))


def ssim(image: np.ndarray, truth: np.ndarray, *, data_range: float = 255.0) -> float:
    """Structural similarity with a Gaussian window of 11x11, sigma 1.5, K = 0.01 and 0.03.

    Only windows that lie wholly inside the image count, so five pixels of each side are no window centres.

    Args:
      image, truth: (H, W) or (H, W, C) of one shape, any real dtype, in units of `data_range`; sides at least
        11.
      data_range: the peak value.

    Returns:
      The mean over all windows (and channels), at most 1.

    Raises:
      ValueError: if the shapes differ, or a side is shorter than the window.
    """
    image, truth = _same_shape(image, truth)
    if image.ndim not in (2, 3) or min(image.shape[:2]) < _SSIM_WINDOW:
        raise ValueError(
            f"ssim takes (H, W) or (H, W, C) with sides of at least {_SSIM_WINDOW}, got {image.shape}"
        )
    c1, c2 = (_SSIM_K1 * data_range) ** 2, (_SSIM_K2 * data_range) ** 2
    mean_a, mean_b = _window_mean(image), _window_mean(truth)
    variance_a = _window_mean(image * image) - mean_a**2
    variance_b = _window_mean(truth * truth) - mean_b**2
    covariance = _window_mean(image * truth) - mean_a * mean_b
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )
    return float(similarity.mean())


def evaluate_pair(sr: np.ndarray, hr: np.ndarray, border: int = 4) -> dict[str, float]:
    """Scores a super-resolved image against the truth by the protocol of the literature.

    Args:
      sr: (H, W, 3) RGB; uint8, uint16, or floating point in [0, 1], clamped and rounded to 8 bits here.
      hr: the truth, same shape, any of these dtypes.
      border: pixels left out on each side, the scale by custom.

    Returns:
      `psnr_y` and `psnr_rgb` in decibels, `ssim_y`.

    Raises:
      TypeError: for another dtype.
      ValueError: if the shapes differ, are not (H, W, 3), or leave less than 11 pixels inside the border.
    """
    sr, hr = np.asarray(sr), np.asarray(hr)
    if sr.shape != hr.shape or sr.ndim != 3 or sr.shape[-1] != 3:
        raise ValueError(f"expected two RGB images (H, W, 3) of one shape, got {sr.shape} and {hr.shape}")
    if border < 0 or min(sr.shape[:2]) < 2 * border + _SSIM_WINDOW:
        raise ValueError(
            f"images of {sr.shape[0]}x{sr.shape[1]} (HxW) are too small for a border of {border} pixels: "
            f"{_SSIM_WINDOW} pixels must be left"
        )
    inside = (slice(border, sr.shape[0] - border), slice(border, sr.shape[1] - border))
    sr, hr = convert_depth(sr, np.uint8)[inside], convert_depth(hr, np.uint8)[inside]
    sr_y, hr_y = rgb_to_y(sr), rgb_to_y(hr)
    return {"psnr_y": psnr(sr_y, hr_y), "ssim_y": ssim(sr_y, hr_y), "psnr_rgb": psnr(sr, hr)}


def _same_shape(image: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image, truth = np.asarray(image), np.asarray(truth)
    if image.shape != truth.shape or image.size == 0:
        raise ValueError(f"expected two non-empty arrays of one shape, got {image.shape} and {truth.shape}")
    return image.astype(np.float64), truth.astype(np.float64)


def _window_mean(image: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean of every 11x11 window inside `image`, float64."""
    taps = cv2.getGaussianKernel(_SSIM_WINDOW, _SSIM_SIGMA, cv2.CV_64F)
    half = _SSIM_WINDOW // 2
    return cv2.sepFilter2D(image, cv2.CV_64F, taps, taps)[half:-half, half:-half]
