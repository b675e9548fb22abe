"""`tfcorr evaluate`: a benchmark's table, printed and written as JSON."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from tfcorr.cli.arguments import add_config
from tfcorr.cli.messages import start_tensorflow

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Measures what a configuration says. For super-resolution: PSNR and SSIM of the Y channel beside bicubic
interpolation, of one model or several, with the references of a test set, unrelated ones, or none; robustness
to scale and rotation; the ablation; model sizes. Means stand with their standard errors. For semantic
matching: PCK by the published protocols, of a model and what it has to beat, with bootstrap intervals.
"""

_EPILOG = """\
examples:
  tfcorr evaluate refsr/evaluate_albums data_root=/data
  tfcorr evaluate refsr/evaluate_albums data_root=/data model=runs/mine/model limit=10 'references=["true"]'
  tfcorr evaluate refsr/evaluate_set14 data_root=/data 'models=[c2-compact, my/model]' --figures sheets/
  tfcorr evaluate refsr/robustness data_root=/data
  tfcorr evaluate semantic/evaluate data_root=/data model=runs/weak_pfpascal/model --figures errors/
  tfcorr evaluate semantic/evaluate_birds data_root=/data

For super-resolution, the table as Markdown, a plot (with matplotlib) and the scores of single images, from
which an interrupted evaluation goes on, stand beside the JSON file. The exit status is 1 when a file could
not be read.
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
    parser.add_argument(
        "--figures",
        metavar="DIR",
        help="write pictures: contact sheets (input, result, truth, reference, details, matches); for "
        "semantic matching, the errors of the keypoints of each pair",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates; returns 1 when a file had to be skipped."""
    from tfcorr.config import check_command, load_config, runner
    from tfcorr.errors import UsageError

    config = load_config(args.config, args.overrides)
    check_command(config, "evaluate")
    if args.figures is not None:
        if "figures" not in {field.name for field in dataclasses.fields(config)}:
            raise UsageError(f"--figures: stage {config.stage} has none")
        config = dataclasses.replace(config, figures=args.figures)
    start_tensorflow()
    from tfcorr.training.tensorboard import means, write_evaluation

    result, table = runner(config)(config, report=lambda line: print(line, flush=True))
    print(table)
    print(f"written to {config.output}")
    output = Path(config.output)
    write_evaluation(output.with_suffix("") / "tensorboard", output.stem, table, means(result))
    skipped = result.get("skipped", {})
    for reason in skipped.values():
        print(f"skipped: {reason}")
    return 1 if skipped else 0
