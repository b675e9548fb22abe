"""The references of a call: those named by --reference, and those chosen out of --reference-dir."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfcorr.errors import TfcorrError, UsageError
from tfcorr.paths import real_path

if TYPE_CHECKING:
    from tfcorr.imaging import Picture
    from tfcorr.refsr.model import C2Matching
    from tfcorr.refsr.selection import ReferencePool

__all__ = ["MOST_FROM_FOLDER", "GivenReferences"]

#: How many references are taken out of a folder at most.
MOST_FROM_FOLDER = 3


class GivenReferences:
    """The references that the arguments give; images are read later, by the methods.

    Args:
        files: image files, used for every input.
        folder: a folder of candidates, or `None`.
        outputs: the files that will be written, none of which may be a reference.

    Raises:
        UsageError: one of `files` is a folder, `folder` is none, or an output is a reference.
        TfcorrError: one of `files` does not exist, or there is no image in `folder`.
    """

    def __init__(self, files: Sequence[str], folder: str | None, outputs: Collection[Path]):
        from tfcorr.cli.batch import image_files

        self._files = [Path(path) for path in files]
        for path in self._files:
            if path.is_dir():
                raise UsageError(f"--reference {path}: is a folder; --reference-dir chooses out of a folder")
            if not path.exists():
                raise TfcorrError(f"{path}: does not exist (--reference)")
        self._candidates: list[Path] = []
        if folder is not None:
            if not Path(folder).is_dir():
                raise UsageError(f"--reference-dir {folder}: not a folder; --reference names a file")
            self._candidates = image_files(Path(folder))
            if not self._candidates:
                raise TfcorrError(f"{folder}: no image file in this folder (--reference-dir)")
        references = {real_path(path) for path in (*self._files, *self._candidates)}
        for path in outputs:
            if real_path(path) in references:
                raise UsageError(f"{path} is a reference and would be written to; choose another output")
        self._pictures: list[Picture] = []
        self._pool: ReferencePool | None = None

    def read_files(self) -> None:
        """Reads the files that were named.

        Raises:
            ImageError: one of them cannot be read.
        """
        from tfcorr.imaging import read_image

        self._pictures = [read_image(path) for path in self._files]

    def read_candidates(self, model: C2Matching) -> list[str]:
        """Reads the candidates and keeps small versions of them.

        Args:
            model: the model that candidates will be compared with.

        Returns:
            One message for each candidate that cannot be read and is left out.

        Raises:
            ImageError: none of the candidates can be read.
        """
        from tfcorr.imaging import ImageError, read_image
        from tfcorr.refsr.selection import ReferencePool

        problems: list[ImageError] = []
        if self._candidates:
            self._pool = ReferencePool(model)
            readable = []
            for path in self._candidates:
                try:
                    self._pool.add(read_image(path).pixels)
                    readable.append(path)
                except ImageError as error:
                    problems.append(error)
            if not readable:
                raise problems[0]
            self._candidates = readable
        return [f"{error}; left out" for error in problems]

    def choose(self, picture: Picture, source: Path) -> list[Picture]:
        """Returns the references for an input, which is never taken for its own.

        Args:
            picture: the input.
            source: its file.

        Raises:
            ImageError: a chosen candidate can no longer be read.
        """
        from tfcorr.imaging import read_image

        if self._pool is None:
            return self._pictures
        own = real_path(source)
        without = [number for number, path in enumerate(self._candidates) if real_path(path) == own]
        choices = self._pool.choose(picture.pixels, MOST_FROM_FOLDER, without=without)
        return [*self._pictures, *(read_image(self._candidates[choice.number]) for choice in choices)]
