"""What has to become of a file: functions that raise AssertionError where it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from file_corpus.examine import Case
from tfcorr.imaging import ImageError, Picture


def reads(
    pixels: np.ndarray | None = None, *, alpha: np.ndarray | None = None, note: str = "", tolerance: float = 0
) -> Callable[[Picture | ImageError], None]:
    """Read, with these pixels (H, W, 1 or 3) of this dtype, this alpha, and a note of these words or none."""

    def check(result: Picture | ImageError) -> None:
        assert isinstance(result, Picture), f"refused: {result}"
        if pixels is not None:
            assert result.pixels.shape == pixels.shape, f"{result.pixels.shape}, expected {pixels.shape}"
            assert result.pixels.dtype == pixels.dtype, f"{result.pixels.dtype}, expected {pixels.dtype}"
            difference = np.abs(result.pixels.astype(np.float64) - pixels).max()
            assert difference <= tolerance, f"pixels differ by up to {difference}"
        assert (result.alpha is None) == (alpha is None), "transparency is wrong"
        assert alpha is None or np.array_equal(result.alpha, alpha), "transparency differs"
        told = " ".join(result.notes)
        assert note in told if note else not told, f"told: {told!r}"

    return check


def refuses(*words: str) -> Callable[[Picture | ImageError], None]:
    """Refused, in words among which are these."""

    def check(result: Picture | ImageError) -> None:
        assert isinstance(result, ImageError), "was read"
        missing = [word for word in words if word not in str(result)]
        assert not missing, f"does not say {', '.join(missing)}: {result}"

    return check


def reads_whole_or_refuses(whole: np.ndarray) -> Callable[[Picture | ImageError], None]:
    def check(result: Picture | ImageError) -> None:
        same = isinstance(result, ImageError) or np.array_equal(result.pixels, whole)
        assert same, "a part of the pixels was taken for all of them"

    return check


def anything(result: Picture | ImageError) -> None:
    """Read or refused: whatever damage made of the file."""


def one_file(
    group: str, name: str, content: bytes | Callable[[], bytes], expected: str, check, **options
) -> Case:
    """A case of one file; `name` may be followed by a colon and what is special about it.

    `content` may be a function, where it takes long to make.
    """

    def make(folder: Path) -> list[Path]:
        path = folder / name.partition(": ")[0]
        path.write_bytes(content() if callable(content) else content)
        return [path]

    return Case(group, name, expected, make, check, **options)
