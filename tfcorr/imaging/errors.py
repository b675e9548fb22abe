"""The one exception of image files."""

from __future__ import annotations

import os
import re

from tfcorr.errors import TfcorrError

# What Python makes of bytes that are no UTF-8 in a file's name.
_UNDECODED = re.compile("[\udc80-\udcff]")


class ImageError(TfcorrError, ValueError):
    """An image file that cannot be read or written; its text is one line that names the file.

    Attributes:
      path: the file as the caller named it.
    """

    def __init__(self, path: str | os.PathLike, problem: str):
        """Takes the file and what is wrong with it, with what would be right."""
        self.path = os.fspath(path)
        # A file name may hold line breaks and bytes that are no text; the message may not.
        shown = _UNDECODED.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", self.path)
        shown = shown.encode("utf-8", "backslashreplace").decode("utf-8")
        if not shown.isprintable():
            shown = repr(shown)
        super().__init__(f"{shown}: {' '.join(problem.split())}")
