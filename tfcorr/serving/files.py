"""Writing a folder of files so that nobody ever sees half of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfcorr.atomic import replacing_folder
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
        WriteError: the folder cannot be written or renamed.
    """
    target = Path(target).absolute()
    check_target(target, overwrite)
    with replacing_folder(target) as part:
        yield part
        check_target(target, overwrite)


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON object with the keys in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
