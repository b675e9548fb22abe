"""Two images side by side with lines between matched points."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from tfcorr.imaging.depth import convert_depth

_GAP = 8  # pixels between the two images
_PAPER = (255, 255, 255)
_WRONG, _RIGHT = np.array([255, 48, 48], np.float32), np.array([40, 200, 80], np.float32)


def draw_matches(
    image: np.ndarray, reference: np.ndarray, points: np.ndarray, matched: np.ndarray, trust: np.ndarray
) -> np.ndarray:
    """Draws each point of an image, its match in a reference, and a line between the two.

    Args:
        image: (H, W, 3) RGB, uint8, or float in [0, 1].
        reference: (H', W', 3), likewise.
        points: (N, 2), (y, x) in pixels of the image.
        matched: (N, 2), (y, x) in pixels of the reference.
        trust: (N,) in [0, 1], the colour of each match, from red to green.

    Returns:
        uint8 (max(H, H'), W + 8 + W', 3).
    """
    left, right = (
        convert_depth(np.clip(np.asarray(side), 0, 1).astype(np.float32), np.uint8)
        if np.issubdtype(np.asarray(side).dtype, np.floating)
        else np.asarray(side)
        for side in (image, reference)
    )
    shift = left.shape[1] + _GAP
    sheet = np.full((max(left.shape[0], right.shape[0]), shift + right.shape[1], 3), _PAPER, np.uint8)
    sheet[: left.shape[0], : left.shape[1]] = left
    sheet[: right.shape[0], shift:] = right
    drawing = Image.fromarray(sheet)
    pencil = ImageDraw.Draw(drawing)
    for (y, x), (there_y, there_x), share in zip(points, matched, trust, strict=True):
        colour = tuple(int(c) for c in np.rint(_WRONG + (_RIGHT - _WRONG) * float(share)))
        ends = [(float(x), float(y)), (float(there_x) + shift, float(there_y))]
        pencil.line(ends, fill=colour, width=1)
        for end in ends:
            pencil.ellipse([end[0] - 2, end[1] - 2, end[0] + 2, end[1] + 2], outline=colour)
    return np.asarray(drawing)
