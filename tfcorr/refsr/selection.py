"""Choosing references for an input out of many photographs, by matching small versions of them.

Everything is reduced to a common long side first, which brings images of one scene to a similar scale and
makes a candidate cost some hundredths of a second. Of several references each patch takes the best, so the
second one is chosen for what it adds to the first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

import keras
import numpy as np

from tfcorr.ops import match_patches
from tfcorr.refsr.matching import PATCH_SIZE, l2_normalize
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.pixels import padded, reduced, to_rgb, whole_cells

__all__ = ["Choice", "ReferencePool"]

# Long side of the reduced images, in pixels of the references; inputs are taken four times larger.
_LONG_SIDE = 192
_SMALLEST = 16
# A further reference has to raise the mean score of the input's patches by this much.
_WORTHWHILE = 0.005
# Descriptors of so many candidates are kept, 1 to 2 MB each.
_REMEMBERED = 256


@dataclass(frozen=True)
class Choice:
    """A chosen reference.

    Attributes:
        number: its place in the pool, from 0 on.
        score: mean score in [-1, 1] of the input's patches with this reference and those chosen before.
    """

    number: int
    score: float


class ReferencePool:
    """Candidates for references; keeps a small version of each.

    Args:
        model: the model whose matcher compares.
    """

    def __init__(self, model: C2Matching):
        self._model = model
        self._images: list[np.ndarray] = []
        self._descriptors = lru_cache(_REMEMBERED)(self._describe_candidate)

    def __len__(self) -> int:
        return len(self._images)

    def add(self, image: np.ndarray) -> int:
        """Adds a candidate, an image as for `SuperResolver.upscale`, and returns its number."""
        small = _reduced_to(to_rgb(image, f"candidate {len(self)}"), _LONG_SIDE)
        self._images.append(np.rint(small * 255).astype(np.uint8))
        return len(self) - 1

    def choose(self, low_res: np.ndarray, count: int, *, without: Collection[int] = ()) -> list[Choice]:
        """Chooses references for an input, the best first.

        Args:
            low_res: as for `SuperResolver.upscale`.
            count: how many at most, at least 1; fewer are chosen when a further one would add next to
              nothing.
            without: numbers of candidates that are not to be taken.

        Returns:
            The choices; none if there is no candidate.
        """
        scores = self._scores(low_res, [number for number in range(len(self)) if number not in without])
        chosen: list[Choice] = []
        covered = np.float32(-1.0)
        while scores and len(chosen) < count:
            means = {number: float(np.maximum(covered, score).mean()) for number, score in scores.items()}
            best = max(means, key=means.get)
            if chosen and means[best] - chosen[-1].score < _WORTHWHILE:
                break
            chosen.append(Choice(best, means[best]))
            covered = np.maximum(covered, scores.pop(best))
        return chosen

    def rate(self, low_res: np.ndarray, numbers: Iterable[int]) -> dict[int, float]:
        """How well each of some candidates would serve alone.

        Args:
            low_res: as for `SuperResolver.upscale`.
            numbers: of the candidates.

        Returns:
            For each number the mean score in [-1, 1] of the input's patches with this candidate.
        """
        return {number: float(score.mean()) for number, score in self._scores(low_res, numbers).items()}

    def _scores(self, low_res: np.ndarray, numbers: Iterable[int]) -> dict[int, np.ndarray]:
        """The score of each patch of an input with each of some candidates."""
        small = _reduced_to(to_rgb(low_res, "low_res"), _LONG_SIDE // 4)
        query = self._model.describe(padded(small, _SMALLEST // 4)[None])
        return {
            number: keras.ops.convert_to_numpy(
                match_patches(query, self._descriptors(number), patch_size=PATCH_SIZE).score
            )
            for number in numbers
        }

    def _describe_candidate(self, number: int):
        image = whole_cells(self._images[number].astype(np.float32) / 255, _SMALLEST)
        return l2_normalize(self._model.correspondence.reference_features(image[None])["conv3_1"])


def _reduced_to(image: np.ndarray, long_side: int) -> np.ndarray:
    return reduced(image, min(1.0, long_side / max(image.shape[:2])))
