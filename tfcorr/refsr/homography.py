"""Synthetic homographies: the image pairs with known correspondences that train the matcher (section 3.5).

Convention: matrices are 3x3, float64, and map homogeneous pixels ``(x, y, 1)`` of the image to pixels of the
warped reference, pixel centres at whole numbers (OpenCV's rule). Arrays of positions are ``(y, x)``, as
everywhere.
"""

from __future__ import annotations

import cv2
import numpy as np

from tfcorr.config import HomographySampling

# Below this scale, linear interpolation skips pixels of the photo, and the warp averages over 2x2 samples.
_SUPERSAMPLED_BELOW = 0.8


def sample_homography(rng: np.random.Generator, size: int, sampling: HomographySampling) -> np.ndarray:
    """Draw a homography from image to reference, both squares of ``size`` pixels.

    Args:
        rng: the source of randomness; the number of draws depends on ``sampling.kind`` alone.
        size: side of image and reference in pixels.
        sampling: which distribution, see `tfcorr.config.HomographySampling`.

    Returns:
        (3, 3) float64.
    """
    if sampling.kind == "published":
        return _published(rng, size, sampling.jitter)
    return _wide(rng, size, sampling)


def _published(rng: np.random.Generator, size: int, jitter: int) -> np.ndarray:
    """The published rule: a square that starts inside the image has its corners moved by whole pixels.

    The square starts at 10 pixels or more and so reaches beyond the image, which is warped by extrapolation.
    The matrix of the four points maps the *reference* to the image; its inverse is what we return.
    """
    x, y = rng.integers(10, size, 2)
    square = np.array([[x, y], [x + size, y], [x + size, y + size], [x, y + size]], np.float32)
    moves = rng.integers(0, jitter + 1, (4, 2)) * rng.choice((-1, 1), (4, 2))
    to_image = cv2.getPerspectiveTransform(square, (square + moves).astype(np.float32))
    return np.linalg.inv(to_image)


def _wide(rng: np.random.Generator, size: int, sampling: HomographySampling) -> np.ndarray:
    """A similarity about the centre of the image, whose corners are then moved independently."""
    centre = (size - 1) / 2
    angle = np.deg2rad(rng.uniform(-sampling.rotation, sampling.rotation))
    scale = np.exp(rng.uniform(*np.log(sampling.scale)))
    shift = rng.uniform(-1, 1, 2) * sampling.shift * size
    moves = rng.uniform(-1, 1, (4, 2)) * sampling.perspective * size
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * centre
    moved = corners @ rotation.T + centre + shift + moves * scale
    return cv2.getPerspectiveTransform((corners + centre).astype(np.float32), moved.astype(np.float32))


def warp(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Warp an image; pixel p of the result is the image at ``inverse(matrix) p``.

    Linear interpolation, black outside of the image; where the warp reduces the image, its pixels are
    averaged.

    Args:
        image: (H, W, 3) uint8 or float32.
        matrix: (3, 3) from pixels of ``image`` to pixels of the result.
        size: side of the result.

    Returns:
        (size, size, 3) of the same dtype.
    """
    if _local_scale(matrix, size) >= _SUPERSAMPLED_BELOW:
        return cv2.warpPerspective(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
    finer = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    large = cv2.warpPerspective(image, finer @ matrix, (2 * size, 2 * size), flags=cv2.INTER_LINEAR)
    return cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)


def _local_scale(matrix: np.ndarray, size: int) -> float:
    """Square root of the area magnification at the centre of the result."""
    inverse = np.linalg.inv(matrix)
    centre = (size - 1) / 2
    w = inverse[2] @ (centre, centre, 1)
    # The Jacobian determinant of a homography is det(H) / w^3.
    return float(abs(np.linalg.det(inverse) / w**3) ** -0.5)


def scaled_and_turned(
    height: int, width: int, scale: float, degrees: float
) -> tuple[np.ndarray, tuple[int, int]]:
    """A scaling and rotation of an image onto a canvas that holds all of it (section 5.4).

    Args:
        height, width: of the image, in pixels.
        scale: factor, positive.
        degrees: rotation, counter-clockwise as one sees it.

    Returns:
        The (3, 3) matrix from the image to the canvas, and the canvas' (height, width), multiples of 4.
    """
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    # The outer corners of the pixels, so that a scale of s gives s times the pixels.
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ turn.T
    low, high = corners.min(0), corners.max(0)
    # Rotations by right angles give whole numbers but for the rounding of the cosine.
    size = np.ceil((high - low - 1e-6) / 4).astype(int) * 4
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    # Pixel centres lie half a pixel from the corners; what is left of the canvas is spread to both sides.
    matrix[:2, 2] = turn @ (0.5, 0.5) - 0.5 - low + (size - (high - low)) / 2
    return matrix, (int(size[1]), int(size[0]))


def warped_positions(matrix: np.ndarray, height: int, width: int, stride: int = 4) -> np.ndarray:
    """Where the cells of the image's feature map lie in the reference.

    Cell (i, j) stands for the pixel (stride * i, stride * j), without a half-cell shift, as published.

    Args:
        matrix: (3, 3) from image to reference.
        height, width: of the feature map, in cells.
        stride: pixels a cell.

    Returns:
        (height, width, 2) float32, ``(y, x)`` in pixels of the reference; they may lie outside of it.
    """
    y, x = np.mgrid[:height, :width] * stride
    points = np.stack([x, y, np.ones_like(x)], axis=-1) @ matrix.T
    return (points[..., 1::-1] / points[..., 2:]).astype(np.float32)


def orientation_matrix(size: int, flip_x: bool, flip_y: bool, transpose: bool) -> np.ndarray:
    """The matrix that goes with `orient`: where it puts the pixels of a square of ``size``."""
    last = size - 1
    matrix = np.array(
        [[-1 if flip_x else 1, 0, last * flip_x], [0, -1 if flip_y else 1, last * flip_y], [0, 0, 1]]
    )
    return (matrix[[1, 0, 2]] if transpose else matrix).astype(np.float64)


def orient(image: np.ndarray, flip_x: bool, flip_y: bool, transpose: bool) -> np.ndarray:
    """Mirror an (H, W, ...) array left-right, then upside down, then transpose its first two axes; a view."""
    if flip_x:
        image = image[:, ::-1]
    if flip_y:
        image = image[::-1]
    return image.swapaxes(0, 1) if transpose else image


def matching_cells(
    positions: np.ndarray, size: tuple[int, int], *, stride: int = 4, border: float = 10.0
) -> tuple[np.ndarray, np.ndarray]:
    """The reference's cell that belongs to each cell of the image, and whether it counts.

    Args:
        positions: (h, w, 2) from `warped_positions`.
        size: (H, W) of the reference in pixels.
        stride: pixels a cell.
        border: a position counts if it lies farther than this from every side of the reference (strictly).

    Returns:
        ``target`` (h * w, 2) int32, ``(y, x)`` in cells, rounded half to even, 0 where it does not count; and
        ``valid`` (h * w,) bool. Both row-major over the image's cells.
    """
    flat = positions.reshape(-1, 2)
    limit = np.asarray(size, np.float32)
    valid = np.all((flat > border) & (flat < limit - border), axis=-1)
    target = np.where(valid[:, None], np.rint(flat / stride), 0)
    return target.astype(np.int32), valid
