"""What happens to the arrays of users at the door: checks, conversions, padding, turning.

Images inside are float32 (h, w, 3) RGB in [0, 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from tfcorr.errors import InputError
from tfcorr.imaging.picture import Picture
from tfcorr.imaging.resize import resize_bicubic


def to_rgb(image: np.ndarray, name: str) -> np.ndarray:
    """Checks an image and converts it to float32 (h, w, 3) in [0, 1]; `name` is for the messages."""
    image = np.asarray(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)) or image.size == 0:
        raise InputError(
            f"{name} has shape {image.shape}, expected (height, width, 3), (height, width, 1) or "
            "(height, width)"
        )
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise InputError(f"{name} has dtype {image.dtype}, expected uint8, uint16, or float32 in [0, 1]")
    if image.dtype == np.float32:
        low, high = float(image.min()), float(image.max())
        if not (low >= 0.0 and high <= 1.0):  # false for NaN too
            raise InputError(f"{name} has values from {low:g} to {high:g}, expected float32 in [0, 1]")
    return np.ascontiguousarray(Picture.from_array(image).to_float())


def from_rgb(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Converts float32 (H, W, 3) to the dtype and the kind of axes of `like`, rounding and clipping."""
    converted = Picture.from_array(like).with_pixels(image).pixels
    return converted[:, :, 0] if like.ndim == 2 else converted


def padded(image: np.ndarray, smallest: int) -> np.ndarray:
    """Continues an image by its last row and column until both sides have at least `smallest` pixels."""
    below, right = (max(0, smallest - side) for side in image.shape[:2])
    return np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge") if below or right else image


def whole_cells(image: np.ndarray, smallest: int) -> np.ndarray:
    """Cuts a reference at bottom and right to multiples of 4 pixels, after `padded(image, smallest)`."""
    image = padded(image, smallest)
    return image[: image.shape[0] // 4 * 4, : image.shape[1] // 4 * 4]


def reduced(image: np.ndarray, factor: float) -> np.ndarray:
    """Makes an image smaller by `factor` in (0, 1], antialiased; at least one pixel is left."""
    size = tuple(max(1, int(side * factor)) for side in image.shape[:2])
    return np.clip(resize_bicubic(image, size), 0.0, 1.0)


def turn(image: np.ndarray, transform: int) -> np.ndarray:
    """One of the eight symmetries of the square: bit 0 flips rows, bit 1 columns, bit 2 then transposes."""
    if transform & 1:
        image = image[::-1]
    if transform & 2:
        image = image[:, ::-1]
    if transform & 4:
        image = np.swapaxes(image, 0, 1)
    return np.ascontiguousarray(image)


def turn_back(image: np.ndarray, transform: int) -> np.ndarray:
    """Undoes `turn`."""
    if transform & 4:
        image = np.swapaxes(image, 0, 1)
    if transform & 2:
        image = image[:, ::-1]
    if transform & 1:
        image = image[::-1]
    return image


def digest(images: Sequence[np.ndarray]) -> bytes:
    """A fingerprint of the pixels of images, so that a changed array is not taken for the one used before."""
    fingerprint = hashlib.blake2b(digest_size=16)
    for image in images:
        array = np.ascontiguousarray(image)
        fingerprint.update(repr((array.shape, array.dtype.str)).encode())
        fingerprint.update(array.data if array.size else b"")
    return fingerprint.digest()
