"""How well points are transferred: PCK exactly as PMD and SFNet publish it.

A flow T2S takes each keypoint of the target, rounded to the nearest pixel, into the source; it is correct if
it lies within alpha * L of the source's own keypoint. L and the frame depend on the benchmark:

=============  ========================================================================================
``image``      points of both images in a square frame (320 x 320), L is its side (PF-PASCAL, alpha_img)
``box``        original pixels, L is the longer side of the source's object box (SPair-71k, PF-PASCAL)
``keypoints``  original pixels, L is the longer side of the box around the source's points (PF-WILLOW)
=============  ========================================================================================

PCK is the mean over pairs of the share of correct points (published), and beside it the share over all
points. Other papers transfer from source to target and take the target's box: numbers are comparable within a
protocol only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfcorr.config.semantic import Evaluation
from tfcorr.semantic.datasets import KeypointPair
from tfcorr.training.photos import DataError

__all__ = ["PairScore", "bilinear", "bootstrap", "score_pair", "summarise", "transfer_points"]


def transfer_points(
    grid: np.ndarray, points: np.ndarray, target_size: tuple[int, int], source_size: tuple[int, int]
) -> np.ndarray:
    """Where a flow takes keypoints of the target, as published.

    Args:
        grid: (h, w, 2), for each cell of the target its place in the source, (x, y) in [-1, 1].
        points: (N, 2), (x, y) in pixels of the target's frame; rounded to the nearest pixel (halves to even),
            and one beyond the last row or column drawn back to it.
        target_size, source_size: (height, width) of the frames in pixels.

    Returns:
        (N, 2), (x, y) in pixels of the source's frame.
    """
    limit = np.array(target_size[::-1])
    rounded = np.rint(np.asarray(points, np.float64))
    rounded = np.where(rounded == limit, rounded - 1, rounded)
    cells = np.array(grid.shape[1::-1]) - 1
    places = bilinear(grid, rounded / np.maximum(limit - 1, 1) * cells)
    return (places + 1) * (np.array(source_size[::-1]) - 1) / 2


def bilinear(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(h, w, C) at (N, 2) (x, y) in cells, held within the map."""
    size = np.array(values.shape[1::-1])
    at = np.clip(at, 0, size - 1)
    low = np.minimum(at.astype(int), np.maximum(size - 2, 0))
    high = np.minimum(low + 1, size - 1)
    share = at - low
    (x0, y0), (x1, y1), (a, b) = low.T, high.T, share.T[..., None]
    top = values[y0, x0] * (1 - a) + values[y0, x1] * a
    bottom = values[y1, x0] * (1 - a) + values[y1, x1] * a
    return top * (1 - b) + bottom * b


@dataclass(frozen=True, eq=False)
class PairScore:
    """The result for one pair.

    Attributes:
        points: (N, 2), where the target's points came to lie, (x, y) in pixels of ``frame``.
        truth: (N, 2), the source's own.
        distance: (N,) in pixels of the frame.
        length: L.
        frame: (height, width) that the source's points are in.
    """

    points: np.ndarray
    truth: np.ndarray
    distance: np.ndarray
    length: float
    frame: tuple[int, int]

    def correct(self, alpha: float) -> np.ndarray:
        """(N,) bool."""
        return self.distance <= alpha * self.length


def score_pair(
    grid: np.ndarray,
    pair: KeypointPair,
    source_size: tuple[int, int],
    target_size: tuple[int, int],
    *,
    threshold: str,
    frame: int = 320,
) -> PairScore:
    """Transfers the keypoints of an annotated pair and compares; see the module for the protocols.

    Args:
        grid: see `transfer_points`.
        pair: the annotation.
        source_size, target_size: (height, width) of the photographs in pixels.
        threshold: ``image``, ``box`` or ``keypoints``.
        frame: the side of the square frame, for ``image``.

    Raises:
        DataError: ``box``, and the pair has none.
    """
    source_points, target_points = pair.source_points, pair.target_points
    if threshold == "image":
        source_points, target_points = (
            points * (frame / np.array(size[::-1]))
            for points, size in ((source_points, source_size), (target_points, target_size))
        )
        source_size = target_size = (frame, frame)
        length = float(frame)
    elif threshold == "box":
        length = _box_side(pair)
    else:
        length = float(np.ptp(source_points, axis=0).max())
    moved = transfer_points(grid, target_points, target_size, source_size)
    distance = np.linalg.norm(moved - source_points, axis=1)
    return PairScore(moved, source_points, distance, length, source_size)


def _box_side(pair: KeypointPair) -> float:
    if pair.source_side is not None:
        return pair.source_side
    if pair.source_box is None:
        raise DataError(f"{pair.name}: has no source_box, which threshold box needs")
    x1, y1, x2, y2 = pair.source_box
    return max(x2 - x1, y2 - y1)


def bootstrap(values: np.ndarray, count: int, seed: int, level: float = 0.95) -> tuple[float, float] | None:
    """Interval of a mean over pairs, by drawing the pairs again with replacement (percentiles).

    Args:
        values: (pairs,).
        count: draws; 0 for none.
        seed: of the draws; the same for two methods, so that they see the same pairs.
        level: of the interval.

    Returns:
        Its ends, or None without draws.
    """
    if not count:
        return None
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(count)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(
    scores: Sequence[PairScore], categories: Sequence[str], evaluation: Evaluation
) -> dict[str, Any]:
    """PCK of a method on a benchmark.

    Args:
        scores: of the pairs.
        categories: of the pairs.
        evaluation: ``alphas``, ``bootstrap`` and ``seed``.

    Returns:
        ``pck``: for each alpha ``per_pair``, ``per_point``, ``interval`` (of ``per_pair``), ``classes`` (mean
        over the pairs of each) and ``mean_of_classes``, ``classes_per_point`` (over the points of each) and
        ``mean_of_classes_per_point``; ``distance``: the mean, in shares of L.
    """
    result: dict[str, Any] = {"pck": {}}
    members = {name: [i for i, c in enumerate(categories) if c == name] for name in sorted(set(categories))}
    for alpha in evaluation.alphas:
        correct = [score.correct(alpha) for score in scores]
        shares = np.array([one.mean() for one in correct])
        classes = {name: float(shares[own].mean()) for name, own in members.items()}
        points = {
            name: float(np.concatenate([correct[i] for i in own]).mean()) for name, own in members.items()
        }
        result["pck"][f"{alpha:g}"] = {
            "per_pair": float(shares.mean()),
            "per_point": float(np.concatenate(correct).mean()),
            "interval": bootstrap(shares, evaluation.bootstrap, evaluation.seed),
            "classes": classes,
            "mean_of_classes": float(np.mean(list(classes.values()))),
            "classes_per_point": points,
            "mean_of_classes_per_point": float(np.mean(list(points.values()))),
        }
    result["distance"] = float(np.mean([(score.distance / score.length).mean() for score in scores]))
    return result
