"""The page's second tab: where the places of one thing lie in a picture of another thing of its kind."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfcorr.errors import TfcorrError
from tfcorr.imaging import convert_depth, resize_bicubic
from tfcorr.pretrained import ModelError
from tfcorr.serving.demo.pictures import confidence_map, marked, preview, read_upload

if TYPE_CHECKING:
    from tfcorr import SemanticMatcher

__all__ = ["Matched", "Matching", "load_matcher"]

MAX_UPLOAD_PIXELS = 50_000_000
"""Of the largest picture that is taken."""


def load_matcher(name_or_folder: str | Path | None) -> tuple[SemanticMatcher | None, str]:
    """Loads the model for semantic matching, if one is installed.

    Returns:
        The matcher or `None`, and a sentence that tells why there is none.

    Raises:
        TfcorrError: a model was asked for by name and cannot be loaded.
    """
    from tfcorr import SemanticMatcher

    try:
        return SemanticMatcher.from_pretrained(name_or_folder), ""
    except ModelError as error:
        if name_or_folder is not None:
            raise
        return None, str(error)


@dataclass(frozen=True)
class Matched:
    """The flow between two pictures, with what is needed to answer a click.

    Attributes:
        flow: float32 (H, W, 2), dx, dy in pixels, on the source's grid; both pictures as they were matched.
        target_size: (height, width) of the target, likewise.
        reduced: how many times larger the files of source and target are.
        source_view, target_view: for pointing at, uint8 RGB.
        warped_view: the target brought onto the source's grid, likewise.
        confidence_view: how far the flow is trusted, in colours, likewise.
        summary: what was done, in Markdown.
    """

    flow: np.ndarray = field(repr=False)
    target_size: tuple[int, int]
    reduced: tuple[float, float]
    source_view: np.ndarray = field(repr=False)
    target_view: np.ndarray = field(repr=False)
    warped_view: np.ndarray = field(repr=False)
    confidence_view: np.ndarray = field(repr=False)
    summary: str

    def look_up(self, y: float, x: float) -> tuple[np.ndarray, np.ndarray, str]:
        """Finds where a place of the source lies in the target; `y`, `x` in [0, 1] of the source.

        Returns:
            Source and target with the place marked, and a sentence.
        """
        height, width = self.flow.shape[:2]
        row, column = min(height - 1, int(y * height)), min(width - 1, int(x * width))
        dx, dy = map(float, self.flow[row, column])
        there = row + dy, column + dx
        inside = all(0 <= place <= side - 1 for place, side in zip(there, self.target_size, strict=True))
        here, there_too = (
            "({:.0f}, {:.0f})".format(*((value + 0.5) * factor - 0.5 for value in (place[1], place[0])))
            for place, factor in zip(((row, column), there), self.reduced, strict=True)
        )
        sentence = f"{here} of the source lies at {there_too} of the target"
        place = [(value + 0.5) / side for value, side in zip(there, self.target_size, strict=True)]
        target = marked(self.target_view, *place) if inside else self.target_view
        return marked(self.source_view, y, x), target, sentence + ("." if inside else ", outside of it.")


class Matching:
    """Runs semantic matching on uploads.

    Args:
        matcher: the model.
        max_pixels: that a picture is reduced to before it is matched; the network sees fewer yet.
    """

    def __init__(self, matcher: SemanticMatcher, *, max_pixels: int):
        self.matcher = matcher
        self.max_pixels = max_pixels

    def run(
        self,
        source: str | os.PathLike | None,
        target: str | os.PathLike | None,
    ) -> Matched:
        """Matches two uploaded pictures.

        Raises:
            TfcorrError: one is missing or cannot be used.
        """
        if source is None or target is None:
            raise TfcorrError("Drop both pictures first.")
        started = time.perf_counter()
        pictures = [
            convert_depth(read_upload(path, what, MAX_UPLOAD_PIXELS).to_rgb(), np.uint8)
            for path, what in ((source, "the source"), (target, "the target"))
        ]
        heights = [picture.shape[0] for picture in pictures]
        pictures = [_within(picture, self.max_pixels) for picture in pictures]
        result = self.matcher.match(*pictures, details=True)
        seconds = time.perf_counter() - started
        return Matched(
            flow=result.flow,
            target_size=pictures[1].shape[:2],
            reduced=tuple(height / len(picture) for height, picture in zip(heights, pictures, strict=True)),
            source_view=preview(pictures[0]),
            target_view=preview(pictures[1]),
            warped_view=preview(result.warped),
            confidence_view=preview(confidence_map(result.confidence)),
            summary=f"Matched in **{seconds:.1f} s**. Click a point of the source.",
        )


def _within(picture: np.ndarray, pixels: int) -> np.ndarray:
    """The picture, reduced to at most so many pixels."""
    height, width = picture.shape[:2]
    if height * width <= pixels:
        return picture
    factor = (pixels / (height * width)) ** 0.5
    return resize_bicubic(picture, (max(1, int(height * factor)), max(1, int(width * factor))))
