"""`tfcorr evaluate`: a benchmark's table, printed and written as JSON."""

from __future__ import annotations

import argparse

from tfcorr.cli.arguments import add_config
from tfcorr.cli.messages import start_tensorflow

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Measures a model on pairs of photographs: PSNR and SSIM of the Y channel beside bicubic interpolation, with
the pair's reference, an unrelated one, or none, as the configuration says. Means stand with their standard
errors.
"""

_EPILOG = """\
examples:
  tfcorr evaluate refsr/evaluate_albums data_root=/data
  tfcorr evaluate refsr/evaluate_albums data_root=/data model=runs/mine/model limit=10 'references=["true"]'

Scores of single images are kept beside the output, so that an interrupted evaluation goes on. The exit
status is 1 when a file could not be read.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Registers the subcommand."""
    parser = subparsers.add_parser(
        "evaluate",
        help="a benchmark's table, printed and written as JSON",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates; returns 1 when a pair had to be skipped."""
    from tfcorr.config import check_command, load_config, runner

    config = load_config(args.config, args.overrides)
    check_command(config, "evaluate")
    start_tensorflow()
    result, table = runner(config)(config, report=lambda line: print(line, flush=True))
    print(table)
    print(f"written to {config.output}")
    for reason in result["skipped"].values():
        print(f"skipped: {reason}")
    return 1 if result["skipped"] else 0
