"""Reading a case of the corpus as the command line does, and what may be wrong with that."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import resource
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tfcorr.cli.messages import describe
from tfcorr.imaging import ImageError, Picture, read_image
from tfcorr.imaging.files import MAX_PIXELS

MEGABYTE = 1 << 20
#: What reading may add to the memory: so much, and so much for each pixel that the file really has.
ROOM, ROOM_A_PIXEL = 96 * MEGABYTE, 70
#: What keeps a bomb that does go off from taking the machine along.
FUSE = 3 << 30


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        group, name: what it is.
        expected: what has to happen, in words.
        make: fills an empty folder, and returns the files that are to be read.
        check: given a picture or an error, raises AssertionError unless it is as expected.
        max_pixels: the limit that it is read with.
        pixels: how many the largest of its pictures has, which memory may be used for.
    """

    group: str
    name: str
    expected: str
    make: Callable[[Path], Sequence[Path | str]]
    check: Callable[[Picture | ImageError], None]
    max_pixels: int = MAX_PIXELS
    pixels: int = 0

    @property
    def room(self) -> int:
        """Bytes by which reading may raise the memory of the process."""
        return ROOM + ROOM_A_PIXEL * self.pixels


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        problem: what was not as expected; empty if all was.
        happened: in words.
        peak: bytes by which the memory rose, None where the system does not tell.
        seconds: of reading.
        files: how many there were.
    """

    problem: str
    happened: str
    peak: int | None
    seconds: float
    files: int


def examine(case: Case, folder: Path) -> Outcome:
    """Makes the files of a case and reads them as the command line does.

    Args:
        case: one of `cases()`.
        folder: empty; what is made stays in it.
    """
    paths = case.make(folder)
    counts: Counter[str] = Counter()
    sentence, problems, peaks, seconds = "", [], [], 0.0
    for path in paths:
        with _fuse(), _silence() as printed, _memory() as peak:
            start = time.perf_counter()
            result = _attempt(path, case.max_pixels)
            seconds += time.perf_counter() - start
        peaks += peak
        problems += printed
        if isinstance(result, ImageError):
            counts["refused"] += 1
            sentence = describe(result)
            problems += _faults(sentence, path)
        elif isinstance(result, Picture):
            counts["read"] += 1
        else:
            counts["failed"] += 1
            problems.append(f"{type(result).__name__}: {result}")
            continue
        try:
            case.check(result)
        except AssertionError as error:
            problems.append(str(error) or "not as expected")
    peak = max(peaks, default=None)
    if peak is not None and peak > case.room:
        problems.append(f"{peak / MEGABYTE:.0f} MB of memory, at most {case.room / MEGABYTE:.0f}")
    if len(paths) == 1:
        happened = _shortened(sentence, paths[0]) if counts["refused"] else next(iter(counts))
    else:
        happened = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    return Outcome("; ".join(dict.fromkeys(problems)), happened, peak, seconds, len(paths))


def _attempt(path: Path | str, max_pixels: int) -> Picture | BaseException:
    """The picture, or what was raised; a warning, which users would see, counts as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return read_image(path, max_pixels=max_pixels)
        except Exception as error:
            return error


def _faults(sentence: str, path: Path | str) -> list[str]:
    """What is wrong with a message."""
    name = os.fsencode(Path(path).name).decode("utf-8", "backslashreplace")
    shown = name if name.isprintable() else repr(name)[1:-1]
    faults = [] if sentence.isprintable() else [f"not one printable line: {sentence!r:.200}"]
    if sentence.count(shown) != 1:
        faults.append(f"does not name the file, once: {sentence:.200}")
    return faults


def _shortened(sentence: str, path: Path | str) -> str:
    """A message without the folder that the file was in."""
    return sentence.replace(f"{Path(path).parent}/", "").partition(": ")[2]


@contextlib.contextmanager
def _memory() -> Iterator[list[int]]:
    """Afterwards holds the bytes by which the memory of the process rose meanwhile; empty if not told."""
    rise: list[int] = []
    # What was freed before would hide what is asked for now.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        before = _status("VmRSS")
        # Linux: sets the peak back to the present size.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        yield rise
        return
    yield rise
    rise.append(max(0, _status("VmHWM") - before))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


@contextlib.contextmanager
def _fuse() -> Iterator[None]:
    """Limits the address space to little more than is used."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        limit = _status("VmSize") + FUSE
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _silence() -> Iterator[list[str]]:
    """Afterwards holds what was printed meanwhile by whomever, libraries in C among them."""
    printed: list[str] = []
    saved = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as file:
        try:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
            yield printed
        finally:
            for descriptor, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
        file.seek(0)
        text = file.read().decode(errors="replace")
        if text:
            printed.append(f"printed: {text!r:.200}")
