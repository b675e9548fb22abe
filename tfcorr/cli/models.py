"""`tfcorr models`: which trained models there are, and whether their files are intact."""

from __future__ import annotations

import argparse
import json

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Lists the trained models that are installed: size, licence, whether the files agree with the SHA-256 checksums
of the model's card, and the quality that was measured. The default model has a star.
"""

_EPILOG = """\
examples:
  tfcorr models
  tfcorr models --json
  tfcorr super-resolve small.png --reference sharp.jpg --output large.png --model NAME

The exit status is 1 when a file is missing or differs from its checksum, or a card cannot be read.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Registers the subcommand."""
    parser = subparsers.add_parser(
        "models",
        help="the trained models with size, licence, checksums and quality",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print a JSON document instead of a table")


def run(args: argparse.Namespace) -> int:
    """Prints the models; returns 1 when one of them cannot be used."""
    from tfcorr.pretrained import available_models, file_states, quality_summary
    from tfcorr.resources import models_dirs

    cards, problems = available_models()
    states = {card.folder: file_states(card) for card in cards}
    if args.json:
        rows = [
            {
                "name": card.folder.name,
                "job": card.job,
                "default": card.default,
                "folder": str(card.folder),
                "bytes": card.size,
                "licence": card.licence,
                "sha256": card.checksums,
                "checksums": states[card.folder],
                "metrics": card.metrics,
            }
            for card in cards
        ]
        print(json.dumps({"models": rows, "problems": problems}, indent=2))
    elif cards:
        header = ("", "name", "job", "size", "licence", "checksums", "quality")
        rows = [
            (
                "*" if card.default else "",
                card.folder.name,
                card.job,
                f"{card.size / 1e6:.1f} MB",
                card.licence,
                checksum_summary(states[card.folder], card.checksums),
                quality_summary(card.metrics) or "not measured",
            )
            for card in cards
        ]
        print(table(header, rows))
    else:
        places = ", ".join(map(str, models_dirs())) or "there is no folder saved_models"
        print(f"no model is installed ({places})")
    if not args.json:
        for problem in problems:
            print(f"unusable: {problem}")
    intact = all(state == "ok" for files in states.values() for state in files.values())
    return 0 if intact and not problems else 1


def checksum_summary(states: dict[str, str], checksums: dict[str, str]) -> str:
    """Returns `ok` with the first digits of each file's SHA-256, or what is wrong with which file."""
    wrong = [f"{name} {state}" for name, state in states.items() if state != "ok"]
    return ", ".join(wrong) if wrong else " ".join(["ok", *(digits[:12] for digits in checksums.values())])


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Returns left-aligned columns as text."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in [header, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
