"""What the command line says: errors on one line, and a progress bar on a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator

from tfcorr.quiet import standard_error_turned_away

__all__ = ["ProgressBar", "describe", "printable", "start_tensorflow"]


def describe(error: BaseException) -> str:
    """Returns one printable line for an error: its own message where tfcorr raised it, else its type too."""
    message = printable(" ".join(str(error).split()))
    if type(error).__module__.startswith("tfcorr."):
        return message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return message or "out of memory"
    if len(message) > 300:
        message = message[:300] + " ..."
    return f"{type(error).__name__}: {message} (TFCORR_DEBUG=1 shows where)"


def printable(text: str) -> str:
    """Returns a text whose line breaks and escape sequences, as in the names of files, are spelt out."""
    if text.isprintable():
        return text
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


class ProgressBar:
    """A bar on standard error over a series of images, only where that is a terminal.

    Args:
        total: the number of images.
        visible: whether it may be shown.
    """

    def __init__(self, total: int, *, visible: bool = True):
        self._bar = None
        self._first = 0
        if visible and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                file=sys.stderr,
                leave=False,
                bar_format="{percentage:3.0f} % |{bar}| {desc} [{elapsed}, {remaining} left]",
            )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, number: int, name: str) -> None:
        """The image of this number, counted from 0, is next."""
        self._first = number
        if self._bar is not None:
            self._bar.set_description_str(f"{name} ({number + 1}/{self._bar.total})", refresh=False)
            self._move(number)

    def step(self, done: int, steps: int) -> None:
        """So many of the steps of the present image are done."""
        if self._bar is not None:
            self._move(self._first + done / steps)

    @contextlib.contextmanager
    def cleared(self) -> Iterator[None]:
        """Takes the bar away while something is printed."""
        if self._bar is not None:
            self._bar.clear()
        yield
        if self._bar is not None:
            self._bar.refresh()

    def _move(self, position: float) -> None:
        self._bar.n = position
        self._bar.refresh()


# What Keras imports where it is installed, for functions that no command calls: a fifth of the start.
_NOT_NEEDED = ("huggingface_hub", "matplotlib", "pandas")


def start_tensorflow() -> None:
    """Imports TensorFlow (or what else Keras runs on) without the notices that it prints on the way.

    Nor does it import packages that it can do without and that take long to load.

    It writes some to the file descriptor before its own log level holds, and an error about a graphics
    processor that is not there when it first lists the devices; so the descriptor is turned away meanwhile.
    With TFCORR_DEBUG they stay. An import that fails raises its error as ever.
    """
    with contextlib.nullcontext() if os.environ.get("TFCORR_DEBUG") else standard_error_turned_away():
        with _hidden(_NOT_NEEDED):
            import keras

        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            tf.config.list_physical_devices()


@contextlib.contextmanager
def _hidden(names: Iterable[str]) -> Iterator[None]:
    """Within it, packages that were not imported before cannot be found; afterwards they can."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
