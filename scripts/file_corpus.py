#!/usr/bin/env python
"""Reads the corpus of odd, damaged and hostile image files, and prints what became of each.

    python scripts/file_corpus.py                 the table
    python scripts/file_corpus.py --only bombs    a group, or what the name of a case contains
    python scripts/file_corpus.py --markdown      the table for a document

Each file is made by code, read as `tfcorr` reads it, and removed. The exit status is 1 when one is not
refused, or not read, as it should be, when anything but one line is printed, or when the memory of the
process rose further than the picture explains.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from file_corpus import Case, Outcome, cases, examine

HEADER = ("group", "input", "expected", "what happened", "memory", "")
WIDTHS = (11, 52, 36, 64, 8, 0)


def main() -> int:
    """Prints the table; returns 1 if a case is not as expected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="WORD", default="", help="cases of this group, or with this word")
    parser.add_argument("--markdown", action="store_true", help="print a table for a document")
    args = parser.parse_args()

    print(_line(HEADER, args.markdown))
    if args.markdown:
        print("| --- " * len(HEADER) + "|")
    failed = count = files = 0
    for case in cases():
        if args.only not in f"{case.group} {case.name}":
            continue
        folder = Path(tempfile.mkdtemp(prefix="tfcorr-corpus-"))
        try:
            outcome = examine(case, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(_line(_cells(case, outcome), args.markdown), flush=True)
        if outcome.problem:
            print(f"    {outcome.problem}", flush=True)
        failed += bool(outcome.problem)
        count += 1
        files += outcome.files
    print(f"\n{count} cases, {files} files: {count - failed} as expected, {failed} not")
    return 1 if failed or not count else 0


def _cells(case: Case, outcome: Outcome) -> tuple[str, ...]:
    memory = "unknown" if outcome.peak is None else f"{outcome.peak / 1e6:.0f} MB"
    return (
        case.group,
        case.name,
        case.expected,
        outcome.happened,
        memory,
        "WRONG" if outcome.problem else "ok",
    )


def _line(cells: tuple[str, ...], markdown: bool) -> str:
    if markdown:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    parts = [
        (cell if not width or len(cell) <= width else f"{cell[: width - 3]}...").ljust(width)
        for cell, width in zip(cells, WIDTHS, strict=True)
    ]
    return "  ".join(parts).rstrip()


if __name__ == "__main__":
    sys.exit(main())
