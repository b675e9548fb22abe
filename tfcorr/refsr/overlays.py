"""Pictures of correspondences for TensorBoard: some matched points, drawn between input and reference."""

from __future__ import annotations

import numpy as np

from tfcorr.imaging.matches import draw_matches
from tfcorr.refsr.extractor import FEATURE_STRIDES
from tfcorr.refsr.matching import PATCH_SIZE

_STRIDE = FEATURE_STRIDES["relu3_1"]


def known_matches(query, reference, target, valid, images, references) -> np.ndarray:
    """Nearest descriptors of some positions whose match is known: green if at most a cell off, else red.

    Args:
        query, reference: float (B, h, w, C) and (B, H, W, C) unit descriptors.
        target: int (B, h * w, 2), the true cells (y, x), row-major.
        valid: bool (B, h * w), which count.
        images, references: float (B, 4 h, 4 w, 3) and (B, 4 H, 4 W, 3) in [0, 1].

    Returns:
        uint8 (B, max(4 h, 4 H), 4 w + 8 + 4 W, 3).
    """
    height, width = query.shape[1:3]
    drawn = []
    for number in range(len(query)):
        true = np.asarray(target[number]).reshape(height, width, 2)
        places = spread_cells(height, width)
        places = places[np.asarray(valid[number]).reshape(height, width)[tuple(places.T)]]
        similarity = query[number][tuple(places.T)] @ reference[number].reshape(-1, query.shape[3]).T
        found = np.stack(np.divmod(similarity.argmax(axis=-1), reference.shape[2]), axis=-1)
        right = np.abs(found - true[tuple(places.T)]).max(axis=-1) <= 1
        pair = np.asarray(images[number]), np.asarray(references[number])
        drawn.append(draw_matches(*pair, places * _STRIDE, found * _STRIDE, right.astype(np.float32)))
    return np.stack(drawn)


def scored_matches(index, score, columns: int, images, references) -> np.ndarray:
    """Matches of some patches, the greener the higher their score.

    Args:
        index, score: (B, h - 2, w - 2), see `tfcorr.refsr.matching.correspondences`.
        columns: patches in a row of the reference.
        images, references: as for `known_matches`.

    Returns:
        uint8, as `known_matches`.
    """
    places = spread_cells(*index.shape[1:3])
    drawn = []
    for number in range(len(index)):
        found = np.stack(np.divmod(index[number][tuple(places.T)], columns), axis=-1)
        trust = np.clip(score[number][tuple(places.T)], 0, 1)
        points = ((cells + PATCH_SIZE // 2) * _STRIDE for cells in (places, found))
        drawn.append(draw_matches(np.asarray(images[number]), np.asarray(references[number]), *points, trust))
    return np.stack(drawn)


def spread_cells(height: int, width: int, count: int = 6) -> np.ndarray:
    """Up to count x count cells (y, x), evenly spread: int (N, 2)."""
    rows, columns = (
        np.unique(np.linspace(0, n - 1, min(count, n) + 2).round().astype(int)[1:-1]) for n in (height, width)
    )
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
