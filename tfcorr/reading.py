"""Text files with data, read whole within limits: tables (CSV) and JSON objects."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tfcorr.errors import TfcorrError

__all__ = ["read_json_object", "read_rows"]

MAX_BYTES = 64 << 20
MAX_ROWS = 1_000_000
MAX_LINE = 1 << 20
"""Of a table; a row takes some hundred bytes of memory, and some more a value."""


def read_rows(
    path: str | os.PathLike, *, error: type[TfcorrError] = TfcorrError
) -> tuple[list[str], list[dict[str, str]]]:
    """Reads a CSV with a header line.

    Args:
        path: a text file in UTF-8, with or without a byte order mark, as spreadsheets write it.
        error: what is raised.

    Returns:
        The names of the columns and the rows, each with a value for every column; there may be none.

    Raises:
        TfcorrError: of the type `error`: the file cannot be read, is no text, has more than `MAX_BYTES`
            bytes, `MAX_ROWS` rows or `MAX_LINE` characters in a line, or a row has more or fewer values than
            there are columns.
    """
    path = Path(path)
    try:
        _check(path, MAX_BYTES)
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(_lines(file))
            rows = []
            for row in reader:
                if None in row:
                    raise _Problem("more values than the header has columns", reader.line_num)
                if None in row.values():
                    raise _Problem("not as many values as the header has columns", reader.line_num)
                if len(rows) == MAX_ROWS:
                    raise _Problem(f"has more than {MAX_ROWS:,} rows")
                rows.append(row)
            return list(reader.fieldnames or ()), rows
    except _Problem as problem:
        line = f", line {problem.line}" if problem.line else ""
        raise error(f"{path}{line}: {problem}") from None
    except UnicodeDecodeError:
        raise error(f"{path}: not a text file in UTF-8") from None
    except csv.Error as problem:
        raise error(f"{path}: not a CSV file ({problem})") from None
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem


def read_json_object(
    path: str | os.PathLike, *, most: int = 1 << 20, error: type[TfcorrError] = TfcorrError
) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Args:
        path: a text file in UTF-8.
        most: bytes that it may have.
        error: what is raised.

    Returns:
        The object, its keys in their order.

    Raises:
        TfcorrError: of the type `error`: the file cannot be read, is larger than `most`, no JSON, nested too
            deeply, has a key twice or a whole number of thousands of digits, or holds no object.
    """
    path = Path(path)
    try:
        _check(path, most)
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except _Problem as problem:
        raise error(f"{path}: {problem}") from None
    except UnicodeDecodeError:
        raise error(f"{path}: not a text file in UTF-8") from None
    except json.JSONDecodeError as problem:
        raise error(
            f"{path}: not valid JSON: {problem.msg}, line {problem.lineno} column {problem.colno}"
        ) from None
    except RecursionError:
        raise error(f"{path}: not valid JSON: nested too deeply") from None
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem
    if not isinstance(content, dict):
        raise error(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


class _Problem(Exception):
    """What is wrong with a file, and in which line."""

    def __init__(self, text: str, line: int = 0):
        super().__init__(text)
        self.line = line


def _check(path: Path, most: int) -> None:
    """Refuses what is no file, and what is too large, before any of it is read."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise _Problem("is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
    if status.st_size > most:
        raise _Problem(f"{status.st_size} bytes long, expected at most {most}")


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise _Problem(f"has a line of more than {MAX_LINE:,} characters")
        yield line


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two values of one key, readers would see either."""
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Problem(f"has the key {twice[:80]!r} twice")
    return result
