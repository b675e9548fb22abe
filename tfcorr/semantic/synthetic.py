"""Pairs made of one photograph by random warps, with their exact flow (PMD, section 3.2, 1).

A warp is a function from a place of the warped image to the place of the photograph that it shows. The source
is warped by an affine map S, the target by a map T that may bend as well, so that the flow from target to
source is known without inverting anything but a matrix: a target place x shows T(x) of the photograph, which
the source shows at S^-1(T(x)).

Convention: places are (x, y) in [-1, 1], -1 and +1 at the centres of the border pixels (align_corners=True);
flow T2S is defined on the target, points into the source, and is (dx, dy) in these units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from tfcorr.config.semantic import ColourJitter, Warps

__all__ = [
    "SyntheticPair",
    "ThinPlate",
    "affine_places",
    "change_colours",
    "exact_flow",
    "flip_flow",
    "identity_places",
    "moved_source",
    "random_affine",
    "random_pair",
    "random_thin_plate",
    "warp",
]

# Of the target's cells; a pair that shares less is drawn again.
_LEAST_SHARED = 0.1
_BORDERS = {"zeros": cv2.BORDER_CONSTANT, "symmetric": cv2.BORDER_REFLECT_101}

Places = Callable[[np.ndarray], np.ndarray]


def identity_places(height: int, width: int) -> np.ndarray:
    """The places of the cells of a grid: float64 (height, width, 2), (x, y); 0 along a side of one cell."""
    x, y = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in (width, height))
    return np.stack(np.meshgrid(x, y), axis=-1)


def affine_places(matrix: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(2, 3) matrix, (..., 2) places (x, y) -> the mapped places (..., 2)."""
    return places @ matrix[:, :2].T + matrix[:, 2]


def random_affine(rng: np.random.Generator, deviation: float) -> np.ndarray:
    """The identity, each of its six entries changed by a normal number: (2, 3)."""
    return np.eye(2, 3) + deviation * rng.standard_normal((2, 3))


@dataclass(frozen=True)
class ThinPlate:
    """The smoothest map (least bending energy) that takes some places to others: x -> affine(x) + sum of w_i
    U(|x - c_i|), U(r) = r^2 log r^2.

    Attributes:
        centres: (N, 2) places c_i.
        weights: (N, 2) w_i.
        affine: (2, 3).
    """

    centres: np.ndarray
    weights: np.ndarray
    affine: np.ndarray

    @classmethod
    def between(cls, places: np.ndarray, images: np.ndarray, smoothing: float = 0.0) -> ThinPlate:
        """The map that takes ``places`` to ``images``.

        Args:
            places: (N, 2), N >= 3, not all on a line, none twice.
            images: (N, 2).
            smoothing: 0 meets the images exactly; more bends less.

        Raises:
            numpy.linalg.LinAlgError: there is no such map.
        """
        count = len(places)
        system = np.zeros((count + 3, count + 3))
        system[:count, :count] = _kernel(places, places) + smoothing * np.eye(count)
        system[:count, count] = system[count, :count] = 1
        system[:count, count + 1 :] = places
        system[count + 1 :, :count] = places.T
        solution = np.linalg.solve(system, np.concatenate([images, np.zeros((3, 2))]))
        affine = np.concatenate([solution[count + 1 :].T, solution[count][:, None]], axis=1)
        return cls(places, solution[:count], affine)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """(..., 2) places -> the mapped places (..., 2)."""
        flat = places.reshape(-1, 2)
        bent = affine_places(self.affine, flat) + _kernel(flat, self.centres) @ self.weights
        return bent.reshape(places.shape)


def _kernel(places: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """U of the distances: (N, 2), (M, 2) -> (N, M)."""
    square = np.sum((places[:, None] - centres[None]) ** 2, axis=-1)
    return square * np.log(np.where(square > 0, square, 1))


def random_thin_plate(rng: np.random.Generator, points: int, strength: float) -> ThinPlate:
    """Moves a grid of ``points`` x ``points`` control points by up to ``strength`` (CNNGeometric)."""
    places = identity_places(points, points).reshape(-1, 2)
    return ThinPlate.between(places, places + rng.uniform(-strength, strength, places.shape))


def exact_flow(source: np.ndarray, target: Places, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The flow from target to source of two warps of one photograph.

    Args:
        source: (2, 3), the affine warp of the source.
        target: the warp of the target, any function of places.
        size: (height, width) of the grid: feature cells, or pixels for the full resolution.

    Returns:
        ``flow``, float64 (height, width, 2), and ``valid``, bool (height, width): whether the place is within
        the photograph, and its match within the source.
    """
    places = identity_places(*size)
    shown = target(places)
    matches = affine_places(_inverse(source), shown)
    return matches - places, _inside(shown) & _inside(matches)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Of a (2, 3) affine map."""
    return np.linalg.inv(np.concatenate([matrix, [[0.0, 0.0, 1.0]]]))[:2]


def _inside(places: np.ndarray) -> np.ndarray:
    return np.all(np.abs(places) <= 1, axis=-1)


def warp(image: np.ndarray, places: np.ndarray, padding: str = "zeros") -> np.ndarray:
    """The image as seen at some places: bilinear, corners aligned.

    Args:
        image: (H, W, C), uint8 or float32.
        places: (h, w, 2), (x, y) in [-1, 1].
        padding: ``zeros`` outside, or ``symmetric``: the mirror image.

    Returns:
        (h, w, C), dtype of ``image``.
    """
    height, width = image.shape[:2]
    pixels = ((places + 1) / 2 * (width - 1, height - 1)).astype(np.float32)
    return cv2.remap(
        image, pixels[..., 0], pixels[..., 1], cv2.INTER_LINEAR, borderMode=_BORDERS[padding], borderValue=0
    )


@dataclass(frozen=True)
class SyntheticPair:
    """A warped pair.

    Attributes:
        source, target: (size, size, 3) uint8.
        source_warp: (2, 3) affine.
        target_warp: function of places.
    """

    source: np.ndarray
    target: np.ndarray
    source_warp: np.ndarray
    target_warp: Places

    def flow(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Flow T2S and validity on a grid of (height, width), see `exact_flow`."""
        return exact_flow(self.source_warp, self.target_warp, size)


def random_pair(
    photo: np.ndarray, rng: np.random.Generator, size: int, warps: Warps, *, flip: bool = False
) -> SyntheticPair:
    """Two warped views of a photograph.

    Args:
        photo: (H, W, 3) uint8; its sides become [-1, 1] whatever their ratio.
        rng: the source of randomness.
        size: side of both views, in pixels.
        warps: how they are drawn; see `tfcorr.config.semantic.Warps`.
        flip: mirror the photograph first.

    Returns:
        The pair; at least a tenth of the target's cells have their match in the source.
    """
    photo = _reduced(photo, size)
    photo = np.ascontiguousarray(photo[:, ::-1]) if flip else photo
    while True:
        source, target = _draw(rng, warps)
        if exact_flow(source, target, (16, 16))[1].mean() >= _LEAST_SHARED:
            break
    places = identity_places(size, size)
    return SyntheticPair(
        source=warp(photo, affine_places(source, places), warps.padding),
        target=warp(photo, target(places), warps.padding),
        source_warp=source,
        target_warp=target,
    )


def _draw(rng: np.random.Generator, warps: Warps) -> tuple[np.ndarray, Places]:
    bends = {"affine": 0.0, "thin_plate": 1.0, "mixed": warps.share}[warps.kind]
    bends = rng.random() < bends
    affine = random_affine(rng, warps.affine) * warps.zoom
    source = (random_affine(rng, warps.affine) if warps.both else np.eye(2, 3)) * warps.zoom
    if not bends:
        return source, lambda places: affine_places(affine, places)
    plate = random_thin_plate(rng, warps.points, warps.thin_plate)
    if warps.kind == "thin_plate":
        affine = np.eye(2, 3) * warps.zoom
    return source, lambda places: affine_places(affine, plate(places))


def _reduced(photo: np.ndarray, size: int) -> np.ndarray:
    """The photograph, reduced by averaging where it has more than twice the pixels that are asked for."""
    sides = [min(side, 2 * size) for side in photo.shape[:2]]
    if tuple(sides) == photo.shape[:2]:
        return photo
    return cv2.resize(photo, sides[::-1], interpolation=cv2.INTER_AREA)


def flip_flow(flow: np.ndarray) -> np.ndarray:
    """The flow between the mirrored images: columns reversed, dx negated. (..., h, w, 2) -> same."""
    return np.ascontiguousarray(flow[..., ::-1, :] * np.array([-1, 1], flow.dtype))


def moved_source(flow: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The flow into a source that has been warped since: what was at y is now at the inverse of y.

    The published augmentation of the student does this to all hypotheses of a pair (and, from the second on,
    to an increment that it has already warped).

    Args:
        flow: (..., h, w, 2), T2S in [-1, 1] units.
        matrix: (2, 3), the affine warp of the source: its place x shows ``matrix`` x of the one before.

    Returns:
        float64 (..., h, w, 2).
    """
    places = identity_places(*flow.shape[-3:-1])
    return affine_places(_inverse(matrix), flow + places) - places


def change_colours(image: np.ndarray, rng: np.random.Generator, jitter: ColourJitter) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of an image at random.

    With OpenCV, where the pairs are made: every draw is the sample's own, so that a run that goes on sees the
    same images.

    Args:
        image: (H, W, 3) uint8 RGB.
        rng: the source of randomness.
        jitter: the strengths.

    Returns:
        A new image of the same kind.
    """
    brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4)
    pixels = image.astype(np.float32) * (1 + brightness * jitter.brightness)
    grey = cv2.cvtColor(np.clip(pixels, 0, 255).astype(np.float32), cv2.COLOR_RGB2GRAY)
    pixels = grey.mean() + (pixels - grey.mean()) * (1 + contrast * jitter.contrast)
    hsv = cv2.cvtColor(np.clip(pixels / 255, 0, 1).astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * hue * jitter.hue) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * (1 + saturation * jitter.saturation), 0, 1)
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)
