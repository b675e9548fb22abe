"""Matches near the same place, as a registered reference should have them.

In flat areas many patches look alike, and the best of all may lie anywhere. Where the reference has been
brought into the view of the input (`tfcorr.refsr.registration`), the best of the few around the same place is
as good a match there, and in its right place.

Works on NumPy arrays. Convention: patches are named by their top-left cells, (y, x).
"""

from __future__ import annotations

import numpy as np

from tfcorr.ops.match_patches import NORM_EPSILON
from tfcorr.refsr.matching import PATCH_SIZE

__all__ = ["best_nearby", "prefer_nearby"]

# Cells to each side that are tried.
_REACH = 2
# By how much a patch elsewhere has to score better.
_CLEARLY_BETTER = 0.05
# Outermost rows and columns of patches.
_RIM = 2


def prefer_nearby(
    query: np.ndarray, reference: np.ndarray, origin: tuple[int, int], index: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The matches of an exact search, with those nearby in the place of the ones that are hardly better.

    On the rim of the image, where descriptors see beyond the border, those nearby always stand.

    Args:
        query, reference, origin: see `best_nearby`.
        index, score: (h - 2, w - 2), what :func:`tfcorr.ops.match_patches` found.

    Returns:
        ``(index, score)``, as they were given.
    """
    near, near_score = best_nearby(query, reference, origin)
    y, x = (np.arange(first, first + n) for first, n in zip(origin, score.shape, strict=True))
    last_y, last_x = (side - PATCH_SIZE for side in reference.shape[:2])
    rim = (np.minimum(y, last_y - y) < _RIM)[:, None] | (np.minimum(x, last_x - x) < _RIM)
    stays = rim | (near_score > score - _CLEARLY_BETTER)
    return np.where(stays, near, index), np.where(stays, near_score, score)


def best_nearby(query: np.ndarray, reference: np.ndarray, origin: tuple[int, int]) -> tuple:
    """For each 3x3 patch of the query, the most similar of the patches of the reference around its own place.

    Args:
        query: (h, w, C) descriptors, a part of a map of the reference's size.
        reference: (H, W, C) descriptors.
        origin: (y, x) of the part in that map.

    Returns:
        ``(index, score)`` as those of :func:`tfcorr.ops.match_patches`, (h - 2, w - 2) int32 and float32.
    """
    height, width = (side - PATCH_SIZE + 1 for side in query.shape[:2])
    columns = reference.shape[1] - PATCH_SIZE + 1
    own = np.sqrt(_box(np.einsum("yxc,yxc->yx", query, query))) + NORM_EPSILON
    theirs = np.sqrt(_box(np.einsum("yxc,yxc->yx", reference, reference))) + NORM_EPSILON
    index = np.zeros((height, width), np.int32)
    score = np.full((height, width), -np.inf, np.float32)
    shifts = range(-_REACH, _REACH + 1)
    # The middle one first, which ties go to.
    for dy, dx in sorted(((y, x) for y in shifts for x in shifts), key=lambda shift: np.hypot(*shift)):
        # Cells of the query whose place, so shifted, is within the reference.
        top, left = origin[0] + dy, origin[1] + dx
        first = (max(0, -top), max(0, -left))
        last = (min(query.shape[0], reference.shape[0] - top), min(query.shape[1], reference.shape[1] - left))
        if any(b - a < PATCH_SIZE for a, b in zip(first, last, strict=True)):
            continue
        ours = query[first[0] : last[0], first[1] : last[1]]
        other = reference[first[0] + top : last[0] + top, first[1] + left : last[1] + left]
        product = _box(np.einsum("yxc,yxc->yx", ours, other))
        part = np.s_[first[0] : first[0] + product.shape[0], first[1] : first[1] + product.shape[1]]
        y = np.arange(part[0].start, part[0].stop)[:, None] + top
        x = np.arange(part[1].start, part[1].stop)[None] + left
        similarity = product / (own[part] * theirs[y, x])
        better = similarity > score[part]
        score[part][better] = similarity[better]
        index[part][better] = (y * columns + x)[better]
    return index, score


def _box(cells: np.ndarray) -> np.ndarray:
    """Sums over 3x3 patches: (h, w) -> (h - 2, w - 2)."""
    height, width = (side - PATCH_SIZE + 1 for side in cells.shape)
    return sum(cells[i : i + height, j : j + width] for i in range(PATCH_SIZE) for j in range(PATCH_SIZE))
