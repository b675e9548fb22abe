"""The errors that tfcorr raises on purpose, with messages written for the person who reads them."""

from __future__ import annotations

__all__ = ["InputError", "TfcorrError", "UsageError"]


class TfcorrError(Exception):
    """Something given to tfcorr cannot be used; the message names it and says what would be right.

    The command line prints the message as one line and exits with 1.
    """


class UsageError(TfcorrError):
    """The call itself is wrong, for example two options that exclude each other; the exit status is 2."""


class InputError(TfcorrError, ValueError):
    """An argument has a shape, dtype or value that cannot be used; also a `ValueError` for Python callers."""
