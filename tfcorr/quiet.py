"""Silence for libraries in C that write to standard error by themselves."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

__all__ = ["standard_error_turned_away"]


@contextlib.contextmanager
def standard_error_turned_away() -> Iterator[None]:
    """Sends what is written to the file descriptor 2 nowhere.

    The descriptor belongs to the whole process: what other threads write meanwhile is lost, too.
    """
    with contextlib.suppress(AttributeError, ValueError):  # no standard error, or a closed one
        sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:
        # Services may run without it: then there is nothing to turn away.
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
