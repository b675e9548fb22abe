"""`tfcorr doctor`: what tfcorr runs on, which ops are on and why; builds the ops."""

from __future__ import annotations

import argparse
import json
import sys

from tfcorr.cli.messages import start_tensorflow
from tfcorr.errors import TfcorrError, UsageError

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Shows versions, devices, which implementation of each operation is in use and why, and the models that are
installed. With --build it compiles the operations first: with Bazel where that is installed and works, else
with the C++ compiler directly. The exit status is 0 if tfcorr can work, also with the portable operations.
"""

_EPILOG = """\
examples:
  tfcorr doctor
  tfcorr doctor --build
  CXX=clang++ tfcorr doctor --build --with compiler --force
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Registers the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help="versions, devices, which operations are on and why; --build compiles them",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--build", action="store_true", help="compile the operations for the installed TensorFlow"
    )
    parser.add_argument(
        "--with",
        dest="tool",
        choices=("bazel", "compiler"),
        help="build with this and nothing else (with --build; default: Bazel, else the compiler)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="build although nothing has changed since the last time (with --build)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the report; returns 1 if tfcorr cannot work here or a build that was asked for failed."""
    from tfcorr import doctor

    if (args.tool or args.force) and not args.build:
        raise UsageError("--with and --force say how to build; they need --build")
    failure = _build(args) if args.build else None
    report = doctor.examine()
    if args.build:
        report["build_error"] = failure
    print(json.dumps(report, indent=2) if args.json else doctor.render(report), flush=True)
    if failure:
        print(f"tfcorr: the operations were not built: {failure}", file=sys.stderr)
    return 1 if failure or report["problems"] else 0


def _build(args: argparse.Namespace) -> str | None:
    """Builds the ops and returns what went wrong, if anything did."""

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        start_tensorflow()
        from tfcorr.ops.build import build

        result = build(args.tool, force=args.force, progress=tell)
    except TfcorrError as error:
        return str(error)
    except ImportError as error:
        return f"TensorFlow or Keras cannot be imported: {error}"
    spent = (
        f"with {result.tool} in {result.seconds:.0f} s" if result.seconds else "before; nothing has changed"
    )
    tell(f"built {spent}: {result.path}")
    return None
