"""What the page does with pictures beside the models: uploads, marks, maps. Arrays in, arrays out."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from tfcorr.errors import TfcorrError
from tfcorr.imaging import Picture, convert_depth, read_image, resize_bicubic

__all__ = ["confidence_map", "marked", "most_trusted", "preview", "read_upload"]

PREVIEW = 720
"""Longest side, in pixels, of the pictures that are shown for pointing at."""

_MARK, _RIM = (255, 48, 48), (255, 255, 255)


def read_upload(path: str | os.PathLike, what: str, max_pixels: int) -> Picture:
    """Reads an uploaded image.

    Args:
        path: where the upload lies.
        what: what it is, for the message, such as "the small image".
        max_pixels: of the largest image taken, looked up before anything is decoded.

    Raises:
        TfcorrError: it is no image, damaged or too large; the message has the file's name, not its folder.
    """
    try:
        return read_image(path, max_pixels=max_pixels)
    except TfcorrError as error:
        told = str(error).replace(os.fspath(path), Path(path).name)
        raise TfcorrError(f"{what}, {told}") from error


def preview(image: np.ndarray) -> np.ndarray:
    """An image for pointing at: uint8 RGB, its longer side `PREVIEW` pixels; small ones keep their squares.

    Args:
        image: (H, W, 3) or (H, W, 1); uint8, uint16 or float32 in [0, 1].
    """
    image = convert_depth(image, np.uint8)
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    factor = PREVIEW / max(image.shape[:2])
    size = tuple(max(1, round(side * factor)) for side in image.shape[:2])
    if factor >= 2:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST)
    return resize_bicubic(image, size)


def marked(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """Draws a ring around a point of an image.

    Args:
        image: uint8 (H, W, 3).
        y, x: the point, each in [0, 1] of the image's height and width.

    Returns:
        A new image.
    """
    drawn = np.ascontiguousarray(image).copy()
    height, width = image.shape[:2]
    centre = (min(width - 1, int(x * width)), min(height - 1, int(y * height)))
    radius = max(6, max(height, width) // 40)
    for colour, thickness in ((_RIM, 5), (_MARK, 3)):
        cv2.circle(drawn, centre, radius, colour, thickness, cv2.LINE_AA)
    cv2.circle(drawn, centre, 2, _MARK, -1, cv2.LINE_AA)
    return drawn


def confidence_map(confidence: np.ndarray) -> np.ndarray:
    """Colours from dark blue (0) over green to yellow (1): float (h, w) in [0, 1] -> uint8 (h, w, 3)."""
    levels = np.rint(np.clip(confidence, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def most_trusted(confidence: np.ndarray) -> tuple[int, int]:
    """(y, x) of the middle of the most trusted surroundings in a map of confidences (h, w)."""
    sigma = max(1.0, min(confidence.shape) / 16)
    smooth = cv2.GaussianBlur(np.ascontiguousarray(confidence, np.float32), (0, 0), sigma)
    y, x = np.unravel_index(int(np.argmax(smooth)), smooth.shape)
    return int(y), int(x)
