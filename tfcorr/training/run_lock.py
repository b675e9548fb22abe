"""One process a run folder: a second one would mix its checkpoints with those of the first."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tfcorr.atomic import remove_leftovers
from tfcorr.errors import TfcorrError

__all__ = ["LOCK", "RunLockedError", "run_lock"]

LOCK = "run.lock"


class RunLockedError(TfcorrError):
    """Another process works in the folder."""


@contextlib.contextmanager
def run_lock(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other processes out of a run folder, and removes what killed ones left in it.

    The lock is the system's, on the file ``run.lock``: it ends with the process, however that ends. Where the
    file system has none (some network ones, and Windows), nothing is locked.

    Args:
        folder: made if it is missing.

    Raises:
        RunLockedError: another process, which the message names, holds the lock.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        locked = _lock(file.fileno())
        if locked is False:
            file.seek(0)
            holder = file.read(200) or "another process"
            raise RunLockedError(
                f"{folder}: another call works in this run folder ({holder}); wait for its end, stop it, or "
                "choose another folder (run=...)"
            )
        if locked:
            remove_leftovers(folder, older_than=0)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


def _lock(descriptor: int) -> bool | None:
    """Takes the lock: True; False if another process has it; None if there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
