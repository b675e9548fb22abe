"""A flow out of a few annotated points, for a strongly supervised teacher (PMD, section 4.1).

The paper says that keypoint matches "guide the generation of groundtruth semantic flow" and leaves open how.
Here the smoothest map through the points (thin plates) gives the flow, and only cells near a point count,
where it hardly depends on the interpolation.
"""

from __future__ import annotations

import numpy as np

from tfcorr.semantic.synthetic import ThinPlate, identity_places

__all__ = ["keypoint_flow", "normalised"]

# A point that is given twice, or all on a line, has no smoothest map; a little smoothing has.
_SMOOTHING = 1e-3


def normalised(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels to [-1, 1] units: (N, 2) (x, y) in an image of (height, width), its corners' pixels at -1, 1."""
    height, width = size
    return 2 * np.asarray(points, np.float64) / (max(width - 1, 1), max(height - 1, 1)) - 1


def keypoint_flow(
    source_points: np.ndarray,
    target_points: np.ndarray,
    source_size: tuple[int, int],
    target_size: tuple[int, int],
    *,
    grid: tuple[int, int],
    radius: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Flow T2S between annotated images, where it is known.

    Args:
        source_points, target_points: (N, 2), (x, y) in pixels of the images, N >= 1; row i of both is one
            part of the object.
        source_size, target_size: (height, width) in pixels.
        grid: (h, w), the feature grid.
        radius: in cells; a cell counts if a target's point is at most that far from it. 0 keeps the cells
            that hold a point.

    Returns:
        ``flow``, float64 (h, w, 2), (dx, dy) in [-1, 1] units, and ``valid``, bool (h, w).
    """
    source, target = normalised(source_points, source_size), normalised(target_points, target_size)
    places = identity_places(*grid)
    half = (np.array(grid[::-1]) - 1) / 2
    distance = np.linalg.norm((places[:, :, None] - target) * half, axis=-1)
    valid = distance.min(axis=-1) <= radius
    nearest = np.rint((target + 1) * half).astype(int)
    inside = np.all((nearest >= 0) & (nearest < grid[::-1]), axis=-1)
    valid[nearest[inside, 1], nearest[inside, 0]] = True
    return _map(target, source)(places) - places, valid


def _map(target: np.ndarray, source: np.ndarray):
    """The smoothest map that takes target to source; a shift where the points do not fix one."""
    spread = np.linalg.matrix_rank(target - target.mean(axis=0), tol=1e-3)
    if len(target) < 3 or spread < 2:
        shift = (source - target).mean(axis=0)
        return lambda places: places + shift
    return ThinPlate.between(target, source, _SMOOTHING)
