"""Writing a folder of files so that nobody ever sees half of it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfcorr.errors import TfcorrError

__all__ = ["ExportError", "check_target", "new_folder", "write_json"]


class ExportError(TfcorrError, ValueError):
    """A model cannot be exported as it was asked for; the message says why and what can be done."""


def check_target(target: str | Path, overwrite: bool) -> None:
    """Refuses a target that cannot become an export, before anything is computed for it.

    Raises:
        ExportError: it exists and is not to be replaced, or it is no folder, or it is one that no export
            made.
    """
    target = Path(target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir():
        raise ExportError(f"{target}: is a file, expected a folder or nothing")
    if not overwrite:
        raise ExportError(f"{target}: exists already; give another folder, or --overwrite (overwrite=True)")
    if not any((target / mark).is_file() for mark in ("saved_model.pb", "export.json")):
        raise ExportError(f"{target}: holds other files than an export's; only an export is replaced")


@contextmanager
def new_folder(target: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives an empty folder to write into, which becomes `target` at the end unless an error is raised.

    Args:
        target: the folder to be; parents are made.
        overwrite: whether an export that stands there is replaced. Its files stay whole until then.

    Raises:
        ExportError: see `check_target`.
        OSError: the folder cannot be made or renamed.
    """
    target = Path(target).absolute()
    check_target(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        # mkdtemp lets nobody else in; the export gets the rights of any other new folder.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o777 & ~umask)
        yield part
        check_target(target, overwrite)
        old = part.with_suffix(".old")
        if target.exists():
            target.rename(old)
        part.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON object with the keys in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
