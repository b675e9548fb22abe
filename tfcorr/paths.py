"""Places of files: names that come out of data stay below their folder.

A list of pairs or an annotation may come from anywhere. What it names is joined with a folder that the user
has named, and must not lead anywhere else: neither up, nor to an absolute place, nor through a link.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tfcorr.errors import TfcorrError

__all__ = ["DataFolder", "PathError", "real_path"]

_DRIVE = re.compile(r"[A-Za-z]:")


class PathError(TfcorrError, ValueError):
    """A name in data that leads out of its folder, or is none."""


class DataFolder:
    """A folder whose files data may name: `DataFolder("photos") / "birds/1.jpg"`.

    Links in the path of the folder itself are the user's own and are followed. A link below it may point to
    another place below it.

    Args:
        folder: need not exist.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._real = os.path.realpath(folder)

    def __truediv__(self, name: str) -> Path:
        """The file that `name` means, which need not exist.

        Args:
            name: relative to the folder, its parts separated by `/`.

        Raises:
            PathError: `name` is empty, absolute, has `..`, a backslash, a drive letter or control characters
                in it, or a link on its way leads out of the folder.
        """
        problem = _problem(name)
        if problem is None and not self._holds(name):
            problem = "leads out of it through a link"
        if problem:
            raise PathError(f"{name[:200]!r} in {str(self.folder)!r}: {problem}")
        return self.folder / name

    def _holds(self, name: str) -> bool:
        found = os.path.realpath(os.path.join(self._real, name))
        return found == self._real or found.startswith(self._real.rstrip(os.sep) + os.sep)


def _problem(name: str) -> str | None:
    """What is wrong with a name by itself."""
    if not name.strip():
        return "an empty name"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "has control characters in it"
    if "\\" in name:
        return "has a backslash in it; / separates folders"
    if name.startswith("/") or _DRIVE.match(name):
        return "is absolute, expected a name relative to that folder"
    if ".." in name.split("/"):
        return "leads out of it by '..'"
    return None


def real_path(path: str | os.PathLike) -> Path:
    """The absolute path of a file without links, as far as it exists; links in a circle stay as they are."""
    return Path(os.path.realpath(path))
