"""Conversions between the sample types of images: uint8, uint16, and floating point in [0, 1]."""

from __future__ import annotations

import numpy as np


def convert_depth(image: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
    """Converts an image to another sample type; the full range of one maps to the full range of the other.

    Args:
      image: any shape; uint8, uint16, or floating point, whose values outside [0, 1] are clamped when the
        result holds whole numbers and kept when it is floating point.
      dtype: np.uint8, np.uint16 or np.float32.

    Returns:
      An array of the same shape with that dtype, whole numbers rounded to nearest; `image` itself if it has
      that dtype already.

    Raises:
      TypeError: for another dtype on either side.
    """
    image, dtype = np.asarray(image), np.dtype(dtype)
    if dtype not in (np.uint8, np.uint16, np.float32):
        raise TypeError(f"expected uint8, uint16 or float32 as the target, got {dtype}")
    if image.dtype == dtype:
        return image
    if np.issubdtype(image.dtype, np.floating):
        if dtype == np.float32:
            return image.astype(np.float32)
        peak = np.iinfo(dtype).max
        return np.rint(np.clip(image, 0.0, 1.0).astype(np.float64) * peak).astype(dtype)
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"expected uint8, uint16 or floating point in [0, 1], got {image.dtype}")
    if dtype == np.float32:
        return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    if dtype == np.uint16:
        return image.astype(np.uint16) * np.uint16(257)
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
