"""Registration: a reference is brought into the input's view before the two are compared; not in the paper.

Descriptors bear rotations and changes of scale as far as they were trained for, and what is aggregated at
their matches is laid down as it lies in the reference. Where a reference shows the same scene from elsewhere,
the keypoints that both share tell more: which place it is, and how it is turned, scaled and slanted. So the
reference is warped first, by a map that is smooth and locally affine; the network then finds its matches
upright, and close to where it looks from.

1. SIFT matches the enlarged input with the reference, as it is and reduced and enlarged like the input. What
   agrees with one fundamental matrix is kept.
2. Around each place, the nearest of them give an affine map, by weighted least squares (moving least squares:
   Schaefer et al. 2006), drawn to that of the whole image. Matches that those around them contradict are
   dropped.
3. The reference is warped, and small windows of the input are sought in it, near their places. What is found
   joins the matches, and the map is fitted anew: it grows to where there were no keypoints.
4. The warped reference is reduced and enlarged like the input, and what displacement is left between the two
   is found cell by cell (`tfcorr.refsr.displacement`) and added to the map, which follows depth more closely
   than affine maps do.

Works on NumPy arrays. Convention: places are (y, x) in pixels, pixel centres at whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.spatial import KDTree

from tfcorr.imaging.resize import resize_bicubic
from tfcorr.refsr import SCALE
from tfcorr.refsr.displacement import displacements
from tfcorr.refsr.sift import epipolar_inliers, match_sift, sift_features

__all__ = ["Registration", "register"]

# Long side of the images that are worked on, at most, and their size over that of the output.
_LONGEST = 1024
_SHRINK = 0.5
# SIFT's own threshold, 0.04, leaves few keypoints in what was enlarged four times.
_CONTRAST = 0.01
_MOST_KEYPOINTS = 8000

# OpenCV's limit of what it samples, and of the result.
_LARGEST = 2**15 - 2

# All in pixels of the images that are worked on.
_NODE = 4  # distance of the map's nodes
_NEIGHBOURS = 16
_NEAREST_WIDTH = 4.0
_GLOBAL_DISTANCE = 10.0
_LINEAR_PULL, _SHIFT_PULL = 100.0, 2.5e-4
_OUTLIER = 1.5
_KEYPOINT_TOLERANCE, _WINDOW_TOLERANCE = 2.0, 1.5
# Fewer agreeing matches than these say nothing: of keypoints, and in the end. A wrong map does not grow.
_FEWEST_KEYPOINTS, _FEWEST = 10, 20

_ROUNDS = 2
_WINDOW_REACH = 8
_SEARCH_REACH = 10
_SMALLEST_CORRELATION = 0.75
_SMALLEST_CONTRAST = 2.0

# What is left is sought in images of these shares of the output's size, at most as many pixels long, with
# these reaches, windows and steps in their pixels; displacements that are so far apart, in pixels of the
# output, are not of one surface.
_LONGEST_LEFT = 2048
_LEFT = ((0.5, 4, 9, 2), (1.0, 3, 13, 4), (1.0, 3, 13, 4))
_APART = 2.0
# Rows of the output that are worked on at a time.
_STRIP = 512


@dataclass(frozen=True)
class Registration:
    """Where each pixel of the output lies in a reference.

    Attributes:
        positions: float32 (H, W, 2), (y, x) in pixels of the reference; may lie outside of it.
        size: (height, width) of the reference.
        points: how many matches it rests on.
    """

    positions: np.ndarray
    size: tuple[int, int]
    points: int

    def position(self, places: np.ndarray) -> np.ndarray:
        """Where places (n, 2) of the output lie in the reference, float64 (n, 2); perhaps outside of it."""
        places = np.float32(places)[:, None]
        return _sampled(self.positions, places, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)[:, 0].astype(float)

    def locate(self, places: np.ndarray) -> np.ndarray:
        """The pixels of the reference at places (n, 2) of the output, int; the nearest ones within it."""
        return np.clip(np.rint(self.position(places)).astype(int), 0, np.array(self.size) - 1)

    def warp(self, reference: np.ndarray) -> np.ndarray:
        """The reference as the input would show it: (Hr, Wr[, 3]) float32 in [0, 1] -> (H, W[, 3]).

        Where the reference shows things larger, it is reduced first; beyond its border it is mirrored.
        """
        scale = self._scale()
        positions = self.positions
        if scale > 1.0:
            size = [max(1, round(side / scale)) for side in reference.shape[:2]]
            ratio = np.float32([n / side for n, side in zip(size, reference.shape, strict=False)])
            reference = cv2.resize(reference, size[::-1], interpolation=cv2.INTER_AREA)
            positions = _rescaled(positions, ratio)
        return np.clip(_sampled(reference, positions, cv2.INTER_LANCZOS4), 0.0, 1.0)

    def _scale(self) -> float:
        """How much larger the reference shows things, the median over the map."""
        down = np.diff(self.positions, axis=0)[:, :-1]
        right = np.diff(self.positions, axis=1)[:-1]
        area = np.abs(down[..., 0] * right[..., 1] - down[..., 1] * right[..., 0])
        return float(np.sqrt(np.median(area))) if area.size else 1.0


def register(low_res: np.ndarray, reference: np.ndarray) -> Registration | None:
    """Finds where the pixels of the four times larger output lie in a reference.

    Args:
        low_res: (h, w, 3) float32 RGB in [0, 1].
        reference: (Hr, Wr, 3) float32 RGB in [0, 1].

    Returns:
        The registration, for an output of (4 h, 4 w); None if too few places of the two images agree, or if
        a side of output or reference has more than 32,766 pixels.
    """
    size = tuple(SCALE * side for side in low_res.shape[:2])
    if max(*size, *reference.shape[:2]) > _LARGEST:
        return None
    query = _Working.of(low_res, size)
    sharp = _Working.of(reference, reference.shape[:2])
    soft = _Working.of(_reduced(reference), reference.shape[:2])
    here, there = _keypoints(query.image, sharp.image, soft.image)
    if len(here) < _FEWEST_KEYPOINTS:
        return None
    overall = _affine(here, there)
    if overall is None:
        return None
    kept = _agreeing(here, there, overall, _KEYPOINT_TOLERANCE)
    here, there = here[kept], there[kept]
    if len(here) < _FEWEST_KEYPOINTS:
        return None
    nodes = _Nodes.fitted(here, there, overall, query.image.shape[:2])
    for _ in range(_ROUNDS):
        found = _windows(query.grey, soft.grey, nodes)
        points, places = (np.concatenate(pair) for pair in zip((here, there), found, strict=True))
        kept = _agreeing(points, places, overall, _WINDOW_TOLERANCE)
        count = int(kept.sum())
        if count < _FEWEST_KEYPOINTS:
            return None
        nodes = _Nodes.fitted(points[kept], places[kept], overall, query.image.shape[:2])
    if count < _FEWEST:
        return None
    positions = nodes.positions(size, query.scale)
    positions = _rescaled(positions, 1 / np.float32(sharp.scale))
    return _refined(Registration(positions, reference.shape[:2], count), low_res, reference)


@dataclass(frozen=True)
class _Working:
    """An image at the size it is worked on: uint8 RGB and its luma, and that size over the original's."""

    image: np.ndarray
    scale: tuple[float, float]

    @classmethod
    def of(cls, image: np.ndarray, original: tuple[int, int]) -> _Working:
        shrink = min(_SHRINK, _LONGEST / max(original))
        size = tuple(max(1, round(shrink * side)) for side in original)
        smaller = size[0] < image.shape[0]
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
        scale = tuple(n / side for n, side in zip(size, original, strict=True))
        return cls(np.clip(np.rint(resized * 255.0), 0, 255).astype(np.uint8), scale)

    @property
    def grey(self) -> np.ndarray:
        return cv2.cvtColor(self.image, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _reduced(reference: np.ndarray) -> np.ndarray:
    size = [max(1, side // SCALE) for side in reference.shape[1::-1]]
    return cv2.resize(reference, size, interpolation=cv2.INTER_AREA)


def _rescaled(places: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Places in an image that becomes `factor`, (y, x), as large."""
    return (places + np.float32(0.5)) * factor - np.float32(0.5)


def _sampled(image: np.ndarray, positions: np.ndarray, interpolation: int, border=cv2.BORDER_REFLECT_101):
    """The values of an image at positions (H, W, 2)."""
    x, y = np.ascontiguousarray(positions[..., 1]), np.ascontiguousarray(positions[..., 0])
    parts = [slice(first, first + _LARGEST) for first in range(0, len(positions), _LARGEST)]
    return np.concatenate([cv2.remap(image, x[p], y[p], interpolation, borderMode=border) for p in parts])


def _refined(registration: Registration, low_res: np.ndarray, reference: np.ndarray) -> Registration:
    """The registration, moved by what displacement is left."""
    size = registration.positions.shape[:2]
    small, grey = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (low_res, reference))
    shrink = min(1.0, _LONGEST_LEFT / max(size))
    for share, reach, window, step in _LEFT:
        working = tuple(max(1, round(share * shrink * side)) for side in size)
        seen = resize_bicubic(registration.warp(grey), small.shape)
        query, other = (np.float32(255) * resize_bicubic(image, working) for image in (small, seen))
        apart = _APART * share * shrink
        left = displacements(query, other, step=step, reach=reach, window=window, apart=apart)
        scale = np.float32(working) / np.float32(size)
        registration = replace(registration, positions=_moved(registration.positions, left, scale, step))
    return registration


def _moved(positions: np.ndarray, left: np.ndarray, scale: np.ndarray, step: int) -> np.ndarray:
    """Positions (H, W, 2) after displacements of cells, `step` pixels apart in an image `scale` as large."""
    height, width = positions.shape[:2]
    result = np.empty_like(positions)
    for first in range(0, height, _STRIP):
        rows, columns = np.arange(first, min(first + _STRIP, height)), np.arange(width)
        pixels = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).astype(np.float32)
        cells = _rescaled(pixels, scale) / np.float32(step)
        pixels += _sampled(left, cells, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE) / scale
        result[rows] = _sampled(positions, pixels, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    return result


def _keypoints(query: np.ndarray, sharp: np.ndarray, soft: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of the query and of the reference that SIFT matches and one view of the scene explains."""
    features = [
        sift_features(image, most=_MOST_KEYPOINTS, contrast=_CONTRAST) for image in (query, sharp, soft)
    ]
    here, there = [], []
    for reference in features[1:]:
        ours, theirs = match_sift(features[0], reference)
        kept = epipolar_inliers(ours, theirs)
        here.append(ours[kept])
        there.append(theirs[kept])
    return np.concatenate(here), np.concatenate(there)


def _affine(here: np.ndarray, there: np.ndarray) -> np.ndarray | None:
    """The (3, 2) affine map of (y, x, 1) that most matches agree with, roughly."""
    cv2.setRNGSeed(0)  # RANSAC draws from a generator of the process
    matrix, _ = cv2.estimateAffine2D(
        here[:, ::-1].copy(),
        there[:, ::-1].copy(),
        method=cv2.RANSAC,
        ransacReprojThreshold=_GLOBAL_DISTANCE,
    )
    return None if matrix is None else matrix[[1, 0]][:, [1, 0, 2]].T


def _predicted(
    at: np.ndarray, here: np.ndarray, there: np.ndarray, overall: np.ndarray, *, themselves: bool = False
) -> np.ndarray:
    """Where places (n, 2) go by the affine maps of the matches around them; (n, 2).

    With ``themselves``, ``at`` is ``here``, and each is predicted by the others.
    """
    count = min(_NEIGHBOURS + themselves, len(here))
    distance, index = KDTree(here).query(at, k=count)
    if themselves:
        distance, index = distance[:, 1:], index[:, 1:]
        count -= 1
    width = np.maximum(distance[:, count // 2, None], _NEAREST_WIDTH)
    weight = np.exp(-np.square(distance / width)) + 1e-4
    around = _with_one(here[index] - at[:, None])
    rest = there[index] - _with_one(here[index]) @ overall
    pull = np.diag([_LINEAR_PULL, _LINEAR_PULL, _SHIFT_PULL])

    def fitted(weights: np.ndarray) -> np.ndarray:
        weighted = np.swapaxes(around * weights[..., None], 1, 2)
        return np.linalg.solve(weighted @ around + pull, weighted @ rest)

    solution = fitted(weight)
    for _ in range(2):
        error = np.linalg.norm(around @ solution - rest, axis=-1)
        solution = fitted(weight / (1.0 + np.square(error / _OUTLIER)))
    return _with_one(at) @ overall + solution[:, 2]


def _with_one(places: np.ndarray) -> np.ndarray:
    return np.concatenate([places, np.ones((*places.shape[:-1], 1))], axis=-1)


def _agreeing(here: np.ndarray, there: np.ndarray, overall: np.ndarray, tolerance: float) -> np.ndarray:
    """Which matches lie where those around them say, (n,) bool."""
    kept = np.ones(len(here), bool)
    for _ in range(2):
        if kept.sum() < _FEWEST_KEYPOINTS:
            return kept
        predicted = _predicted(here[kept], here[kept], there[kept], overall, themselves=True)
        kept[kept] = np.linalg.norm(predicted - there[kept], axis=1) < tolerance
    return kept


@dataclass(frozen=True)
class _Nodes:
    """A map that is given at every `_NODE`-th pixel of an image, float32 (rows, columns, 2)."""

    values: np.ndarray

    @classmethod
    def fitted(
        cls, here: np.ndarray, there: np.ndarray, overall: np.ndarray, size: tuple[int, int]
    ) -> _Nodes:
        rows, columns = (np.arange(0, side + _NODE, _NODE) for side in size)
        at = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2).astype(float)
        values = _predicted(at, here, there, overall)
        return cls(values.reshape(len(rows), len(columns), 2).astype(np.float32))

    def positions(self, size: tuple[int, int], scale: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
        """The map at each pixel of an image that is 1 / ``scale`` as large; float32 (*size, 2)."""
        y, x = (
            (np.arange(side, dtype=np.float32) + 0.5) * s - 0.5 for side, s in zip(size, scale, strict=True)
        )
        at = np.stack(np.meshgrid(y / _NODE, x / _NODE, indexing="ij"), axis=-1)
        return _sampled(self.values, at.astype(np.float32), cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)

    def at(self, places: np.ndarray) -> np.ndarray:
        """The map at places (n, 2)."""
        places = (places / _NODE).astype(np.float32)[:, None]
        return _sampled(self.values, places, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)[:, 0].astype(float)


def _windows(query: np.ndarray, reference: np.ndarray, nodes: _Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Points of the query, on a grid, and their places in the reference, near where the map says.

    A point is found by the correlation of the window around it with the warped reference, to a fraction of a
    pixel; those that are found badly, or at the end of the search, are left out.
    """
    warped = _sampled(reference, nodes.positions(query.shape), cv2.INTER_LINEAR)
    height, width = query.shape
    here, there = [], []
    first = _WINDOW_REACH + 1
    for y in range(first, height - first + 1, _WINDOW_REACH):
        for x in range(first, width - first + 1, _WINDOW_REACH):
            window = query[
                y - _WINDOW_REACH : y + _WINDOW_REACH + 1, x - _WINDOW_REACH : x + _WINDOW_REACH + 1
            ]
            if window.std() < _SMALLEST_CONTRAST:
                continue
            reach = _WINDOW_REACH + _SEARCH_REACH
            top, left = max(0, y - reach), max(0, x - reach)
            values = cv2.matchTemplate(
                warped[top : y + reach + 1, left : x + reach + 1], window, cv2.TM_CCOEFF_NORMED
            )
            place = _peak(values)
            if place is not None:
                here.append((y, x))
                there.append((top + _WINDOW_REACH + place[0], left + _WINDOW_REACH + place[1]))
    here, there = (np.array(points, float).reshape(-1, 2) for points in (here, there))
    return here, nodes.at(there) if len(there) else there


def _peak(values: np.ndarray) -> tuple[float, float] | None:
    """The place of the greatest value, to a fraction by parabolas; None if it is small or on the rim."""
    _, greatest, _, (x, y) = cv2.minMaxLoc(values)
    if greatest < _SMALLEST_CORRELATION or not (0 < y < values.shape[0] - 1 and 0 < x < values.shape[1] - 1):
        return None
    return (
        y + _vertex(values[y - 1, x], greatest, values[y + 1, x]),
        x + _vertex(values[y, x - 1], greatest, values[y, x + 1]),
    )


def _vertex(before: float, here: float, behind: float) -> float:
    curvature = min(before - 2 * here + behind, -1e-6)
    return float(np.clip(0.5 * (before - behind) / curvature, -0.5, 0.5))
