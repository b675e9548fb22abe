"""Made-up photos."""

import cv2
import numpy as np


def scene(seed, side=240):
    """A photo full of corners: coloured rectangles of all sizes."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), rng.integers(60, 200, 3), np.uint8)
    for _ in range(160):
        y, x = rng.integers(0, side, 2)
        height, width = rng.integers(4, 40, 2)
        image[y : y + height, x : x + width] = rng.integers(0, 256, 3)
    return cv2.GaussianBlur(image, (0, 0), 0.8)
