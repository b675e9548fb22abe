"""`tfcorr bench`: speed and memory, beside peers where they are installed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tfcorr.cli.arguments import positive_int

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Measures the time and the extra memory of deform_conv2d and match_patches, compiled and portable, beside ONNX
Runtime's DeformConv and a matcher of PyTorch's unfold and convolution where those packages are installed
(pip install ".[bench]" in a checkout). Contestants are timed in turn in one process, so that other load hits
all alike.
"""

_EPILOG = """\
examples:
  tfcorr bench ops
  tfcorr bench ops --quick
  tfcorr bench ops --threads 1 --repeats 15 --json figures.json
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Registers the subcommand."""
    parser = subparsers.add_parser(
        "bench",
        help="speed and memory of the ops, beside peers",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", nargs="?", choices=["ops"], default="ops", help="what to measure (default: ops)"
    )
    parser.add_argument(
        "--repeats", type=positive_int, metavar="N", help="timed rounds (default: 7, quick: 3)"
    )
    parser.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="threads for each contestant (default: all processors)",
    )
    parser.add_argument("--quick", action="store_true", help="small maps, to see that all works")
    parser.add_argument("--no-memory", action="store_true", help="times only, which is several times quicker")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE, too")


def run(args: argparse.Namespace) -> int:
    """Measures and prints the table."""
    from tfcorr.bench import ops

    result = ops.run(
        repeats=args.repeats,
        threads=args.threads,
        quick=args.quick,
        memory=not args.no_memory,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(ops.format_table(result))
    if args.json:
        _write(args.json, json.dumps(result, indent=1) + "\n")
    return 0


def _write(path: Path, text: str) -> None:
    """Writes a file beside its place and renames it, so that no half of it is ever seen."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
