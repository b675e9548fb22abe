"""The command line: parsing and printing, nothing else.

One module per subcommand; each has `add_parser(subparsers)` and `run(args) -> int`. The modules are
cheap to import: what needs TensorFlow is imported inside `run`, so that `tfcorr --help` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import ModuleType

import tfcorr
from tfcorr.cli.messages import describe
from tfcorr.errors import UsageError

__all__ = ["build_parser", "main"]

COMMANDS = (
    "super-resolve",
    "match",
    "collect",
    "train",
    "evaluate",
    "export",
    "demo",
    "bench",
    "models",
    "doctor",
)

EPILOG = """\
examples:
  tfcorr super-resolve small.png --reference sharp.jpg --output large.png
  tfcorr super-resolve holiday/ --reference-dir sharp/ --output enlarged/
  tfcorr match one.jpg other.jpg --output flow.npz --figure matches.png
  tfcorr models
  tfcorr doctor

`tfcorr COMMAND --help` explains a command. The exit status is 0 on success, 1 on a failure (also when
one file of a batch failed) and 2 on a wrong call. TFCORR_DEBUG=1 shows the traceback of an error.
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Leaves room for the names of subcommands, whose deeper indentation argparse forgets."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length = max(self._action_max_length, 4 + max(map(len, action.choices)))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `tfcorr` with every subcommand registered."""
    parser = argparse.ArgumentParser(
        prog="tfcorr",
        description="Correspondences between two images, and what they are good for: a small photo becomes a "
        "large one,\nwith real detail taken from sharp photographs of the same thing.",
        epilog=EPILOG,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"tfcorr {tfcorr.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for command in COMMANDS:
        command_module(command).add_parser(subparsers)
    return parser


def command_module(command: str) -> ModuleType:
    """Returns the module of a subcommand, with its `add_parser(subparsers)` and `run(args)`."""
    return import_module(f"tfcorr.cli.{command.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
        argv: the arguments after the program's name; `None` takes those of the process.

    Returns:
        0 on success, 1 on a failure, 2 on a wrong call that only the subcommand could see, 130 when
        interrupted. A wrong call that the parser sees raises `SystemExit(2)`, as argparse does.
    """
    # Before TensorFlow is imported anywhere: its notices are not for the users of a command.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    args = build_parser().parse_args(argv)
    try:
        with _termination_is_interruption():
            status = command_module(args.command).run(args)
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("tfcorr: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`tfcorr models | head`); nothing is left to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the last line of defence: one clear line instead of a traceback
        if os.environ.get("TFCORR_DEBUG"):
            traceback.print_exc()
        print(f"tfcorr: {describe(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


@contextlib.contextmanager
def _termination_is_interruption() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what it has begun to write is taken away."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        # Only the main thread may set handlers; elsewhere its owner decides.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
