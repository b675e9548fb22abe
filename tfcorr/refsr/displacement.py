"""How far one image is displaced against another, cell by cell, by the correlation of windows.

Works on NumPy arrays. Convention: displacements are (y, x), in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["displacements"]

# Variances below this one, in square grey levels, are those of flat windows.
_FLAT = 1e-3
# The power of their correlation that cells count by; the loss of correlation at which they count a quarter;
# the side of the median and the deviation of the bell curve of those around that agree on a displacement, in
# cells; and how strongly a cell that sees nothing stays where it is.
_TRUST = 4
_LOSS = 0.03
_MEDIAN = 5
_DEVIATION = 1.5
_STAYS = 0.006


def displacements(
    image: np.ndarray, other: np.ndarray, *, step: int, reach: int, window: int, apart: float
) -> np.ndarray:
    """Where cells of an image are found in another one that shows nearly the same at nearly the same places.

    The measure is the correlation coefficient of square windows; around its greatest value, a quadratic
    function stands for it. What single cells say is noisy, and along an edge it is nothing: the displacement
    of a cell is where the sum of those functions around it is greatest, of those that agree with the median.

    Args:
        image, other: (H, W) float32, in grey levels of 0 to 255.
        step: distance of the cells, whose centres are at its multiples, in pixels.
        reach: the largest displacement that is tried to each side, at least 2; found are those below it.
        window: side of the windows, odd.
        apart: what lies farther from the median of those around, in pixels, does not count.

    Returns:
        float32 (ceil(H / step), ceil(W / step), 2).
    """
    peaks = _Peaks.of(_correlations(image, other, step, reach, window), reach)
    return peaks.agreed(apart)


def _correlations(image: np.ndarray, other: np.ndarray, step: int, reach: int, window: int) -> np.ndarray:
    """Correlation coefficients (2 reach + 1, 2 reach + 1, rows, columns) of all shifts at all cells."""
    middle = image.mean()
    image = image - middle
    other = cv2.copyMakeBorder(other - middle, *4 * (reach,), cv2.BORDER_REFLECT_101)
    cells = np.s_[::step, ::step]

    def means(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (window, window), borderType=cv2.BORDER_REFLECT_101)

    def mean_and_variance(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = means(values)
        return mean, np.maximum(means(values * values) - mean * mean, _FLAT)

    mean, variance = (values[cells] for values in mean_and_variance(image))
    other_mean, other_variance = mean_and_variance(other)
    height, width = image.shape
    shifts = 2 * reach + 1
    found = np.empty((shifts, shifts, *mean.shape), np.float32)
    for dy, dx in np.ndindex(shifts, shifts):
        part = np.s_[dy : dy + height, dx : dx + width]
        covariance = means(image * other[part])[cells] - mean * other_mean[part][cells]
        found[dy, dx] = covariance / np.sqrt(variance * other_variance[part][cells])
    # What rounding makes of flat windows lies beyond.
    return np.clip(found, -1.0, 1.0)


@dataclass(frozen=True)
class _Peaks:
    """The greatest correlation of each cell, and the quadratic function around it.

    Arrays (rows, columns): its height; the shift (y, x) where it is; the gradient (y, x) there; and the
    curvature (yy, yx, xx), positive.
    """

    height: np.ndarray
    whole: tuple[np.ndarray, np.ndarray]
    gradient: tuple[np.ndarray, np.ndarray]
    curvature: tuple[np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def of(cls, values: np.ndarray, reach: int) -> _Peaks:
        """From correlations (2 reach + 1, 2 reach + 1, rows, columns)."""
        shifts, rows, columns = values.shape[1:]
        # Those on the rim only serve as neighbours.
        best = values[1:-1, 1:-1].reshape(-1, rows, columns).argmax(axis=0)
        y, x = best // (shifts - 2) + 1, best % (shifts - 2) + 1
        cell = tuple(np.indices((rows, columns)))

        def at(dy: int, dx: int) -> np.ndarray:
            return values[(y + dy, x + dx, *cell)]

        here = at(0, 0)
        yy = np.maximum(2 * here - at(1, 0) - at(-1, 0), 1e-6)
        xx = np.maximum(2 * here - at(0, 1) - at(0, -1), 1e-6)
        most = 0.95 * np.sqrt(yy * xx)
        yx = np.clip((at(1, -1) + at(-1, 1) - at(1, 1) - at(-1, -1)) / 4, -most, most)
        gradient = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
        return cls(here, (np.float32(y - reach), np.float32(x - reach)), gradient, (yy, yx, xx))

    def agreed(self, apart: float) -> np.ndarray:
        """The displacements that cells and those around them agree on, (rows, columns, 2)."""
        yy, yx, xx = self.curvature
        pull_y = yy * self.whole[0] + yx * self.whole[1] + self.gradient[0]
        pull_x = yx * self.whole[0] + xx * self.whole[1] + self.gradient[1]
        top_y, top_x = _solved(yy, yx, xx, pull_y, pull_x)
        # Along an axis, as a parabola has it.
        single = [
            whole + np.clip(gradient / curvature, -0.5, 0.5)
            for whole, gradient, curvature in zip(self.whole, self.gradient, (yy, xx), strict=True)
        ]
        median = [cv2.medianBlur(part, _MEDIAN) for part in single]
        off_y, off_x = top_y - median[0], top_x - median[1]
        loss = yy * off_y**2 + 2 * yx * off_y * off_x + xx * off_x**2
        distance = np.maximum(*(np.abs(a - b) for a, b in zip(single, median, strict=True)))
        reached = np.maximum(abs(top_y - self.whole[0]), abs(top_x - self.whole[1])) <= 1.0
        weight = (
            np.maximum(self.height, 0) ** _TRUST / (1 + loss / _LOSS) ** 2 * (reached & (distance < apart))
        )

        def around(values: np.ndarray) -> np.ndarray:
            values = np.float32(weight * values)
            return cv2.GaussianBlur(values, (0, 0), _DEVIATION, borderType=cv2.BORDER_REPLICATE)

        solution = _solved(
            around(yy) + _STAYS, around(yx), around(xx) + _STAYS, around(pull_y), around(pull_x)
        )
        return np.stack(solution, axis=-1).astype(np.float32)


def _solved(
    yy: np.ndarray, yx: np.ndarray, xx: np.ndarray, y: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solves ``[[yy, yx], [yx, xx]] (a, b) = (y, x)`` at each cell."""
    determinant = yy * xx - yx * yx
    return (xx * y - yx * x) / determinant, (yy * x - yx * y) / determinant
