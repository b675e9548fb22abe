"""Training samples as tf.data: matcher samples (section 3.1, 3.5) and restorer pairs (section 3.5, 4).

Images are RGB, float32 in [0, 1]. The degradation is Pillow's antialiased bicubic reduction by 4 of the 8-bit
image, rounded to 8 bits (`tfcorr.imaging.downscale`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfcorr.config import HomographySampling, Photometric, SingleImages
from tfcorr.imaging.resize import downscale, resize_bicubic, upscale
from tfcorr.refsr import SCALE
from tfcorr.refsr.homography import (
    matching_cells,
    orient,
    orientation_matrix,
    sample_homography,
    warp,
    warped_positions,
)
from tfcorr.refsr.photometry import change_photometry
from tfcorr.refsr.photos import DataError, Pair, PhotoCache, at_least
from tfcorr.refsr.registered import RegisteredReferences
from tfcorr.training.samples import Samples

_IDENTITY = (False, False, False)


class MatcherSamples(Samples):
    """Crops, their reduced and enlarged versions, and homography-warped references (section 3.1).

    A sample has, with c the side of the crop: ``image`` (c, c, 3), the sharp crop; ``upsampled`` (c, c, 3),
    the crop after x1/4 and x4 bicubic, what the student's input branch sees; ``reference`` (c, c, 3), the
    crop warped (and, if asked for, photometrically changed); ``target`` (c/4 * c/4, 2) int32, the cell (y,
    x) of the reference that each feature cell of the crop matches, and ``valid`` (c/4 * c/4,) bool, whether
    it lies well within the reference.

    Args:
        images: paths of photos; those with a side below ``crop`` are enlarged to it.
        cache: decoded photos.
        crop: c, a multiple of 4.
        homography: how references are warped.
        photometric: how they are changed.
        border: distance from the reference's sides, in pixels, within which a position is not kept.
        batch, seed, augment: see `Samples`.
    """

    def __init__(
        self,
        images: Sequence[Path],
        cache: PhotoCache,
        *,
        crop: int,
        homography: HomographySampling,
        photometric: Photometric,
        border: float,
        batch: int,
        seed: int,
        augment: bool = True,
    ):
        _check_multiple("crop", crop)
        super().__init__(images, batch, seed, augment)
        self.cache = cache
        self.crop = crop
        self.homography = homography
        self.photometric = photometric
        self.border = border

    def sample(self, item: Path, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        photo = self.cache.get(item)
        if photo is None:
            return None
        image, reference, matrix = warped_pair(
            at_least(photo, self.crop), rng, self.crop, self.homography, augment=self.augment
        )
        upsampled = upscale(downscale(image, SCALE), SCALE)
        cells = self.crop // SCALE
        target, valid = matching_cells(
            warped_positions(matrix, cells, cells, SCALE),
            reference.shape[:2],
            stride=SCALE,
            border=self.border,
        )
        return {
            "image": _unit(image),
            "upsampled": _unit(upsampled),
            "reference": change_photometry(_unit(reference), rng, self.photometric),
            "target": target,
            "valid": valid,
        }


class RestorerSamples(Samples):
    """Low-resolution patches, references and the truth (section 3.5).

    A sample has ``lr`` (crop/4, crop/4, 3), ``hr`` (crop, crop, 3) and ``reference`` (patch, patch, 3).
    Input and reference are flipped and transposed together. Pairs with positions are cut there; of pairs
    without, photos of other sizes give a random input crop and the reference patch at the same relative
    place, except that folder pairs (the layout of CUFED) are resized to the patch, aspect ignored, as
    published.

    Args:
        pairs: see `tfcorr.refsr.photos.find_pairs`.
        cache: decoded photos.
        registered: references in the view of their inputs, for pairs that are to be registered.
        patch: side of the patch that a pair names, and of the reference.
        crop: side of the input patch, cut out of the former; a multiple of 4.
        photometric: changes of the reference.
        unrelated: probability that the reference comes from another pair.
        partly_related: probability that the reference fits in part at best: a third to two thirds of it, from
            one side on, are replaced by a patch of another photo; or, with equal chance where a pair has a
            photo around its reference, it shows another place of that photo.
        singles: single images to mix in, and how; with ``single_images`` their paths.
        batch, seed, augment: see `Samples`.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        cache: PhotoCache,
        *,
        patch: int,
        crop: int,
        photometric: Photometric,
        batch: int,
        seed: int,
        registered: RegisteredReferences | None = None,
        unrelated: float = 0.0,
        partly_related: float = 0.0,
        singles: SingleImages | None = None,
        single_images: Sequence[Path] = (),
        augment: bool = True,
    ):
        _check_multiple("crop", crop)
        if crop > patch:
            raise DataError(f"crop must not exceed patch, got crop {crop} and patch {patch}")
        super().__init__(pairs, batch, seed, augment)
        self.cache = cache
        self.registered = registered
        self.patch = patch
        self.crop = crop
        self.photometric = photometric
        self.unrelated = unrelated
        self.partly_related = partly_related
        self.singles = singles
        self.single_images = single_images

    def sample(self, item: Pair, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        photometric = self.photometric
        partly = bool(self.partly_related) and rng.random() < self.partly_related
        if self.singles and rng.random() < self.singles.probability:
            patches, elsewhere = self._single(rng), False
            photometric = self.singles.photometric
        else:
            elsewhere = partly and bool(item.columns) and rng.random() < 0.5
            patches = self._pair(item, rng, elsewhere)
        if patches is None:
            return None
        image, reference = patches
        if partly and not elsewhere:
            reference = self._partly_replaced(reference, rng)
        flips = tuple(rng.random(3) < 0.5) if self.augment else _IDENTITY
        image, reference = (np.ascontiguousarray(orient(a, *flips)) for a in (image, reference))
        y, x = _corner(image, self.crop, rng if self.augment else None)
        image = np.ascontiguousarray(image[y : y + self.crop, x : x + self.crop])
        return {
            "lr": _unit(downscale(image, SCALE)),
            "hr": _unit(image),
            "reference": change_photometry(_unit(reference), rng, photometric),
        }

    def _pair(
        self, pair: Pair, rng: np.random.Generator, elsewhere: bool
    ) -> tuple[np.ndarray, np.ndarray] | None:
        other = pair
        if self.unrelated and rng.random() < self.unrelated:
            other = self.items[rng.integers(len(self.items))]
        image, reference = self.cache.get(pair.input), self.cache.get(other.reference)
        if pair.register and self.registered is not None and other is pair:
            reference = self.registered.get(pair.input, pair.reference)
        if image is None or reference is None:
            return None
        if not pair.columns:
            return self._exactly(image), self._exactly(reference)
        image, reference = at_least(image, self.patch), at_least(reference, self.patch)
        at = pair.at or _corner(image, self.patch, rng if self.augment else None)
        reference_at = other.reference_at or _same_place(at, image, reference, self.patch)
        if elsewhere:
            reference_at = _corner(reference, self.patch, rng)
        return self._cut(image, at), self._cut(reference, reference_at)

    def _single(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
        unrelated = rng.random() < self.singles.unrelated
        one, other = (
            self.cache.get(self.single_images[i]) for i in rng.integers(len(self.single_images), size=2)
        )
        if one is None or other is None:
            return None
        image, reference, _ = warped_pair(
            at_least(one, self.patch), rng, self.patch, self.singles.homography, augment=False, centred=False
        )
        if unrelated:
            other = at_least(other, self.patch)
            reference = self._cut(other, _corner(other, self.patch, rng))
        return image, reference

    def _partly_replaced(self, reference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        other = self.cache.get(self.items[rng.integers(len(self.items))].reference)
        if other is None:
            return reference
        other = at_least(other, self.patch)
        other = self._cut(other, _corner(other, self.patch, rng))
        border = round(rng.uniform(1 / 3, 2 / 3) * self.patch)
        part = slice(border, None) if rng.random() < 0.5 else slice(None, border)
        mixed = reference.copy()
        if rng.random() < 0.5:
            mixed[part] = other[part]
        else:
            mixed[:, part] = other[:, part]
        return mixed

    def _exactly(self, image: np.ndarray) -> np.ndarray:
        return image if image.shape[:2] == (self.patch,) * 2 else resize_bicubic(image, (self.patch,) * 2)

    def _cut(self, image: np.ndarray, at: tuple[int, int]) -> np.ndarray:
        y, x = (min(max(0, a), size - self.patch) for a, size in zip(at, image.shape, strict=False))
        return image[y : y + self.patch, x : x + self.patch]


def warped_pair(
    photo: np.ndarray,
    rng: np.random.Generator,
    size: int,
    homography: HomographySampling,
    *,
    augment: bool = True,
    centred: bool | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A crop of a photo and a warped reference of it.

    Args:
        photo: (H, W, 3) uint8, both sides at least ``size``.
        rng: the source of randomness.
        size: side of both results.
        homography: ``published`` warps the crop, black outside; ``wide`` warps the photo around it.
        augment: flip and transpose the crop at random.
        centred: cut the centre of the photo; by default unless ``augment``.

    Returns:
        ``image`` and ``reference``, (size, size, 3) uint8, and the (3, 3) matrix from image to reference.
    """
    centred = (not augment) if centred is None else centred
    y, x = _corner(photo, size, None if centred else rng)
    flips = tuple(rng.random(3) < 0.5) if augment else _IDENTITY
    image = np.ascontiguousarray(orient(photo[y : y + size, x : x + size], *flips))
    matrix = sample_homography(rng, size, homography)
    if homography.kind == "published":
        return image, warp(image, matrix, size), matrix
    to_image = orientation_matrix(size, *flips) @ np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]])
    return image, warp(photo, matrix @ to_image, size), matrix


def _unit(image: np.ndarray) -> np.ndarray:
    """8-bit values as float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def _corner(image: np.ndarray, size: int, rng: np.random.Generator | None) -> tuple[int, int]:
    """The (y, x) of a square of ``size`` within an image: at random, or in the middle without ``rng``."""
    room = [side - size for side in image.shape[:2]]
    return tuple(r // 2 if rng is None else int(rng.integers(r + 1)) for r in room)


def _same_place(at: tuple[int, int], image: np.ndarray, reference: np.ndarray, size: int) -> tuple[int, int]:
    """The corner in ``reference`` of the square whose centre has the same relative place as in ``image``."""
    centres = ((a + size / 2) / side for a, side in zip(at, image.shape, strict=False))
    return tuple(round(c * side - size / 2) for c, side in zip(centres, reference.shape, strict=False))


def _check_multiple(name: str, value: int) -> None:
    if value <= 0 or value % SCALE:
        raise DataError(f"{name} must be a positive multiple of {SCALE}, got {value}")
