"""The matching score from which on a pixel counts as found in its reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np

from tfcorr.imaging import crop_to_multiple, downscale
from tfcorr.refsr import SCALE
from tfcorr.refsr.layouts import UNRELATED, Case, check_references
from tfcorr.refsr.photos import DataError, PhotoCache

if TYPE_CHECKING:
    from tfcorr.refsr.model import C2Matching


def unrelated_threshold(model: C2Matching, cases: Sequence[Case], share: float = 0.95) -> float:
    """The score that patches of whole photos rarely reach in photos of something else.

    `tfcorr.refsr.stages.confidence_threshold` measures the same on training patches, which offer a patch a
    fortieth of the choice that a photo does; scores by chance are higher in a photo, and so is this
    threshold.

    Args:
        model: whose matcher is asked.
        cases: with references ``unrelated``; each input is reduced by 4 and matched with the photo.
        share: of the scores that lie below the threshold, each photo counting the same.

    Returns:
        A score in [0, 1], for ``confidence_threshold`` of a model's card.

    Raises:
        DataError: a case has no unrelated photo, or none can be read.
    """
    check_references(cases, (UNRELATED,))
    photos = PhotoCache(keep=4)
    quantiles = np.linspace(0, 1, 1001)
    sampled = []
    for case in sorted(cases, key=lambda case: case.references[UNRELATED]):
        truth, other = photos.get(case.input), photos.get(case.references[UNRELATED][0])
        if truth is None or other is None:
            continue
        descriptors = model.describe(_unit(downscale(truth, SCALE)))
        references = model.prepare([_unit(crop_to_multiple(other, SCALE))])
        scores = keras.ops.convert_to_numpy(model.match(descriptors, references).score)
        # As many numbers of each photo, whatever its size.
        sampled.append(np.quantile(scores, quantiles))
    if not sampled:
        raise DataError(f"none of the {len(cases)} images can be read; the log names each file")
    return float(np.clip(np.quantile(np.stack(sampled), share), 0, 1))


def _unit(image: np.ndarray) -> np.ndarray:
    return image[None].astype(np.float32) / np.float32(255)
