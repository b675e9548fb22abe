"""SIFT by OpenCV: features of a photo, their matches, and which of these one view of a scene explains.

Points are (y, x) in pixels, pixel centres at whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# A match whose second-best is nearly as good is ambiguous (Lowe 2004).
_RATIO = 0.8
# Features of the image that are compared with those of the reference at a time.
_ROWS = 1024
# Distance in pixels from the epipolar line, and the probability that RANSAC has found the largest set.
_EPIPOLAR_DISTANCE = 2.0
_RANSAC_CONFIDENCE = 0.999
_FEWEST_FOR_GEOMETRY = 8


@dataclass(frozen=True)
class SiftFeatures:
    """``points`` (n, 2) float64 and their ``descriptors`` (n, 128) float32."""

    points: np.ndarray
    descriptors: np.ndarray


def sift_features(image: np.ndarray, *, most: int = 5000, contrast: float = 0.04) -> SiftFeatures:
    """The features of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        most: how many, the strongest.
        contrast: OpenCV's threshold below which a keypoint is dropped.

    Returns:
        The features; descriptors are the square roots of SIFT's normalised histograms, whose Euclidean
        distance is Hellinger's (Arandjelović and Zisserman 2012).
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    keypoints, histograms = cv2.SIFT_create(nfeatures=most, contrastThreshold=contrast).detectAndCompute(
        grey, None
    )
    if histograms is None:
        return SiftFeatures(np.empty((0, 2)), np.empty((0, 128), np.float32))
    points = np.array([keypoint.pt[::-1] for keypoint in keypoints], np.float64)
    return SiftFeatures(points, np.sqrt(histograms / np.maximum(histograms.sum(axis=1, keepdims=True), 1e-7)))


def match_sift(image: SiftFeatures, reference: SiftFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Mutual nearest neighbours that pass the ratio test.

    Returns:
        Two (n, 2) arrays: points of the image, and row by row those of the reference.
    """
    count = len(reference.points)
    if len(image.points) < 2 or count < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    # Descriptors have length 1: |a - b|^2 = 2 - 2 a . b. Not cv2.BFMatcher, which takes seconds for 5000.
    forth = np.empty(len(image.points), int)
    clear = np.empty(len(image.points), bool)
    back, most = np.zeros(count, int), np.full(count, -np.inf, np.float32)
    for first in range(0, len(image.points), _ROWS):
        rows = slice(first, first + _ROWS)
        products = image.descriptors[rows] @ reference.descriptors.T
        columns = products.argmax(axis=0)
        best = products[columns, np.arange(count)]
        better = best > most
        back[better], most[better] = columns[better] + first, best[better]
        forth[rows] = products.argmax(axis=1)
        second, largest = np.partition(products, count - 2, axis=1)[:, -2:].T
        clear[rows] = 1.0 - largest < _RATIO**2 * (1.0 - second)
    kept = np.flatnonzero(clear & (back[forth] == np.arange(len(forth))))
    return image.points[kept], reference.points[forth[kept]]


def epipolar_inliers(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Which matches agree with one fundamental matrix, up to 2 pixels: two views of one rigid scene.

    Args:
        here, there: (n, 2) from `match_sift`.

    Returns:
        (n,) bool; none for fewer than eight matches.
    """
    if len(here) < _FEWEST_FOR_GEOMETRY:
        return np.zeros(len(here), bool)
    # RANSAC draws from a generator of the process.
    cv2.setRNGSeed(0)
    _, inliers = cv2.findFundamentalMat(
        here[:, ::-1].copy(), there[:, ::-1].copy(), cv2.FM_RANSAC, _EPIPOLAR_DISTANCE, _RANSAC_CONFIDENCE
    )
    return np.zeros(len(here), bool) if inliers is None else inliers.ravel().astype(bool)


def relative_scale(here: np.ndarray, there: np.ndarray) -> float | None:
    """How much larger things are in the reference: of matched points, the median ratio of their distances.

    Args:
        here, there: (n, 2), matches that agree with one another.

    Returns:
        A positive factor; None for fewer than two matches, or if they lie in one point.
    """
    ratios = []
    for step in (1, 3, 7):
        one, other = (np.linalg.norm(p - np.roll(p, step, axis=0), axis=1) for p in (here, there))
        apart = (one > 1) & (other > 1)
        ratios.append(other[apart] / one[apart])
    ratios = np.concatenate(ratios)
    return float(np.median(ratios)) if len(ratios) else None
