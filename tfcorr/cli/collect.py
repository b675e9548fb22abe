"""`tfcorr collect`: proposes references for inputs from a folder of candidates."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from tfcorr.cli.arguments import positive_int

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
For each image in a folder the most similar one of many candidates, written as a data set in the layout of
WR-SR (input/NNN.png, ref/NNN_ref.png, pairs.txt), with contact sheets to look over and scores.csv. References
much larger than their input are reduced to its size; inputs without a proper reference are left out. An
interrupted call goes on where it stopped.
"""

_EPILOG = """\
examples:
  tfcorr collect downloads/ --inputs photos/ --output pairs/
  tfcorr collect albums/ --inputs small/ --low-resolution --output pairs/ --model c2-compact --minimum 0.6
  tfcorr evaluate refsr/evaluate_wrsr data_root=. test_set.folder=pairs

The exit status is 1 when a file could not be read, or no input has a reference.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Registers the subcommand."""
    parser = subparsers.add_parser(
        "collect",
        help="references for images from a folder of candidates",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("candidates", metavar="CANDIDATES", help="a folder, searched with its subfolders")
    parser.add_argument("--inputs", metavar="DIR", required=True, help="a folder of images")
    parser.add_argument("--output", metavar="DIR", required=True, help="the folder to write")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="compare by this model's matcher instead of SIFT (a name of `tfcorr models`, or a folder)",
    )
    parser.add_argument(
        "--pool",
        metavar="N",
        type=positive_int,
        default=50,
        help="candidates to compare in detail, the most similar ones by colour and layout (default: 50)",
    )
    parser.add_argument(
        "--minimum",
        metavar="SCORE",
        type=_score,
        help="inputs whose best candidate scores less are left out (default: 25 matches; with --model a mean "
        "score of 0.5)",
    )
    parser.add_argument(
        "--low-resolution",
        action="store_true",
        help="the inputs are small images to be enlarged four times, not sharp ones for a test",
    )
    parser.add_argument(
        "--keep-duplicates",
        action="store_true",
        help="also propose the input itself and near copies of it",
    )
    parser.add_argument("--keep-size", action="store_true", help="leave large references as they are")


def run(args: argparse.Namespace) -> int:
    """Collects; returns 1 when a file could not be read or nothing was found."""
    from tfcorr.cli.batch import image_files
    from tfcorr.errors import TfcorrError, UsageError

    output = Path(args.output)
    folders = {"CANDIDATES": Path(args.candidates), "--inputs": Path(args.inputs)}
    files = {}
    for option, folder in folders.items():
        if not folder.is_dir():
            raise UsageError(f"{option} {folder}: not a folder")
        files[option] = image_files(folder, outside=output)
        if not files[option]:
            raise TfcorrError(f"{folder}: no image file in this folder ({option})")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: is a file, expected a folder")

    # Only now, as it loads the model's libraries.
    pool, fingerprint = _pool(args.model)
    from tfcorr.refsr.collect import Options, collect

    options = Options(
        pool=args.pool,
        minimum=args.minimum if args.minimum is not None else (25.0 if pool is None else 0.5),
        duplicates=args.keep_duplicates,
        largest=math.inf if args.keep_size else 1.25,
        low_resolution=args.low_resolution,
    )
    found, problems = collect(
        files["--inputs"],
        files["CANDIDATES"],
        output,
        options,
        pool=pool,
        fingerprint=fingerprint,
        report=lambda line: print(line, flush=True),
    )
    for problem in problems:
        print(f"left out: {problem}")
    sheets = output / "sheets"
    print(f"{found} of {len(files['--inputs'])} inputs have a reference; look them over in {sheets}")
    return 1 if problems or not found else 0


def _pool(model: str | None):
    """An empty pool with a model, and the model's checksum; (None, "sift") without one."""
    from tfcorr.cli.messages import start_tensorflow

    start_tensorflow()
    if model is None:
        return None, "sift"
    from tfcorr.pretrained import WEIGHTS_FILE, load_super_resolution
    from tfcorr.refsr.selection import ReferencePool

    network, card = load_super_resolution(model)
    return ReferencePool(network), card.checksums[WEIGHTS_FILE]


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no score (expected a number)")
    return value
