"""The page's first tab: a small image becomes a large one, with detail from sharp references."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfcorr.errors import TfcorrError
from tfcorr.imaging import resize_bicubic, write_image
from tfcorr.serving.demo.pictures import confidence_map, marked, most_trusted, preview, read_upload

if TYPE_CHECKING:
    from tfcorr.refsr.predictor import SuperResolver

__all__ = ["MAX_REFERENCES", "Upscaled", "Upscaling"]

MAX_REFERENCES = 8
MAX_REFERENCE_PIXELS = 50_000_000
"""Pixels of all references together; the resolver reduces them until they fit its memory."""


@dataclass(frozen=True)
class Upscaled:
    """A result, with what is needed to answer a click.

    Attributes:
        folder: holds the files; goes with `forget`.
        file: the full-size PNG.
        enlarged_file: the input enlarged by interpolation, as large.
        summary: what was done, in Markdown.
        view: the result for pointing at, uint8 RGB.
        reference_views: the references, likewise; the input itself where there was none.
        reference_sizes: (height, width) of each in its own pixels.
        correspondence: int32 (h, w, 3): number of the reference, y, x in its pixels.
        confidence: float32 (h, w) in [0, 1].
        names: of the references.
    """

    folder: Path
    file: Path
    enlarged_file: Path
    summary: str
    view: np.ndarray = field(repr=False)
    reference_views: tuple[np.ndarray, ...] = field(repr=False)
    reference_sizes: tuple[tuple[int, int], ...]
    correspondence: np.ndarray = field(repr=False)
    confidence: np.ndarray = field(repr=False)
    names: tuple[str, ...]

    @property
    def confidence_view(self) -> np.ndarray:
        """The map of confidences for looking at, uint8 RGB."""
        return preview(confidence_map(self.confidence))

    def start(self) -> tuple[float, float]:
        """The point to begin with, (y, x) in [0, 1]: where the reference is trusted most."""
        y, x = most_trusted(self.confidence)
        return (y + 0.5) / self.confidence.shape[0], (x + 0.5) / self.confidence.shape[1]

    def look_up(self, y: float, x: float) -> tuple[np.ndarray, np.ndarray, str]:
        """Finds where a place of the image was matched.

        Args:
            y, x: the place, each in [0, 1] of the height and width.

        Returns:
            The result and the reference with the place marked, and a sentence.
        """
        height, width = self.confidence.shape
        row, column = min(height - 1, int(y * height)), min(width - 1, int(x * width))
        number, matched_y, matched_x = map(int, self.correspondence[row, column])
        size = self.reference_sizes[number]
        reference = marked(
            self.reference_views[number], (matched_y + 0.5) / size[0], (matched_x + 0.5) / size[1]
        )
        sentence = (
            f"Pixel ({column}, {row}) of the small image matches ({matched_x}, {matched_y}) of "
            f"{self.names[number]}, confidence {self.confidence[row, column]:.2f}."
        )
        return marked(self.view, y, x), reference, sentence

    def forget(self) -> None:
        """Deletes the files."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Upscaling:
    """Runs super-resolution on uploads.

    Args:
        resolver: the model.
        max_pixels: of the largest small image.
        folder: for the files of results.
    """

    def __init__(self, resolver: SuperResolver, *, max_pixels: int, folder: Path):
        self.resolver = resolver
        self.max_pixels = max_pixels
        self.folder = folder

    def run(
        self,
        image: str | os.PathLike | None,
        references: Sequence[str | os.PathLike],
        progress: Callable[[int, int], None] | None = None,
    ) -> Upscaled:
        """Upscales an uploaded image.

        Args:
            image: the small image's file.
            references: files; without any the image is its own reference.
            progress: called with (steps done, all steps).

        Raises:
            TfcorrError: nothing was uploaded, too much, or a file cannot be used.
        """
        if image is None:
            raise TfcorrError("Drop a small image first.")
        if len(references) > MAX_REFERENCES:
            raise TfcorrError(f"{len(references)} references were given, at most {MAX_REFERENCES} are taken.")
        started = time.perf_counter()
        small = read_upload(image, "the small image", self.max_pixels)
        pictures, left = [], MAX_REFERENCE_PIXELS
        for path in references:
            pictures.append(read_upload(path, "a reference", left))
            left -= pictures[-1].height * pictures[-1].width
        result = self.resolver.upscale(
            small.pixels, [picture.pixels for picture in pictures], details=True, progress=progress
        )
        seconds = time.perf_counter() - started
        size = result.image.shape[:2]
        alpha = None if small.alpha is None else resize_bicubic(small.alpha, size)
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir()
        file = folder / f"{Path(image).stem}_x4.png"
        enlarged = folder / f"{Path(image).stem}_enlarged.png"
        write_image(file, small.with_pixels(result.image, alpha))
        write_image(enlarged, small.with_pixels(resize_bicubic(small.pixels, size)))
        shown = pictures or [small]
        return Upscaled(
            folder=folder,
            file=file,
            enlarged_file=enlarged,
            summary=self._summary(small, result, pictures, seconds),
            view=preview(result.image),
            reference_views=tuple(preview(picture.pixels) for picture in shown),
            reference_sizes=tuple((picture.height, picture.width) for picture in shown),
            correspondence=result.correspondence,
            confidence=result.confidence,
            names=tuple(Path(path).name for path in references) or ("the image itself",),
        )

    def _summary(self, small, result, pictures, seconds: float) -> str:
        height, width = result.image.shape[:2]
        if pictures:
            source = "the reference" if len(pictures) == 1 else f"{len(pictures)} references"
            share = f"{100 * result.used_share:.0f} % of the pixels have detail from {source}"
        else:
            share = "no reference was given, so the image was its own"
        model = f", model {self.resolver.card.name}" if self.resolver.card else ""
        return (
            f"**{width} × {height}** pixels from {small.width} × {small.height} in **{seconds:.1f} s**; "
            f"{share}{model}."
        )
