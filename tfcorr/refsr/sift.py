"""SIFT by OpenCV: features of a photo, their matches, and which of these one view of a scene explains.

Points are (y, x) in pixels, pixel centres at whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# A match whose second-best is nearly as good is ambiguous (Lowe 2004).
_RATIO = 0.8
# Distance in pixels from the epipolar line, and the probability that RANSAC has found the largest set.
_EPIPOLAR_DISTANCE = 2.0
_RANSAC_CONFIDENCE = 0.999
_FEWEST_FOR_GEOMETRY = 8


@dataclass(frozen=True)
class SiftFeatures:
    """``points`` (n, 2) float64 and their ``descriptors`` (n, 128) float32."""

    points: np.ndarray
    descriptors: np.ndarray


def sift_features(image: np.ndarray, *, most: int = 5000) -> SiftFeatures:
    """The features of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        most: how many, the strongest.

    Returns:
        The features; descriptors are the square roots of SIFT's normalised histograms, whose Euclidean
        distance is Hellinger's (Arandjelović and Zisserman 2012).
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    keypoints, histograms = cv2.SIFT_create(nfeatures=most).detectAndCompute(grey, None)
    if histograms is None:
        return SiftFeatures(np.empty((0, 2)), np.empty((0, 128), np.float32))
    points = np.array([keypoint.pt[::-1] for keypoint in keypoints], np.float64)
    return SiftFeatures(points, np.sqrt(histograms / np.maximum(histograms.sum(axis=1, keepdims=True), 1e-7)))


def match_sift(image: SiftFeatures, reference: SiftFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Mutual nearest neighbours that pass the ratio test.

    Returns:
        Two (n, 2) arrays: points of the image, and row by row those of the reference.
    """
    if len(image.points) < 2 or len(reference.points) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    forth = {
        best.queryIdx: best.trainIdx
        for best, second in matcher.knnMatch(image.descriptors, reference.descriptors, k=2)
        if best.distance < _RATIO * second.distance
    }
    back = {m.queryIdx: m.trainIdx for m in matcher.match(reference.descriptors, image.descriptors)}
    kept = np.array([(a, b) for a, b in forth.items() if back[b] == a], int).reshape(-1, 2)
    return image.points[kept[:, 0]], reference.points[kept[:, 1]]


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
