"""`tfcorr export`: a model as files for TensorFlow Serving, TFLite or ONNX Runtime."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tfcorr.cli.messages import start_tensorflow
from tfcorr.errors import UsageError

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Writes a model as files that another runtime takes, and runs them once on a small pair to see that they agree
with the Python prediction.

  saved_model  a SavedModel for TensorFlow and TensorFlow Serving; any sizes and batches
  tflite       model.tflite of built-in operators, for LiteRT's interpreter
  onnx         model.onnx, for ONNX Runtime (1.24 or newer: DeformConv); super-resolution only
"""

_EPILOG = """\
examples:
  tfcorr export c2-compact --output served/c2-compact/1
  tfcorr export c2-compact --output served/c2-compact/1 --variant custom
  tfcorr export c2-compact --output phone --format tflite --precision float16
  tfcorr export c2-compact --output phone --format tflite --precision int8 --representative photos/ \\
      --size 120x160 --reference-size 480x640
  tfcorr export c2-compact --output onnx --format onnx

The custom variant of a SavedModel holds tfcorr's compiled operators: for a server that links them, or a
Python process that has imported tfcorr.ops. Everything else is made of the runtime's own operators.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Registers the subcommand."""
    parser = subparsers.add_parser(
        "export",
        help="a model as SavedModel, TFLite or ONNX",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a model of `tfcorr models`, or a model folder")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="the folder to write")
    parser.add_argument(
        "--format",
        choices=["saved_model", "tflite", "onnx"],
        default="saved_model",
        help="what to write (default: saved_model)",
    )
    parser.add_argument(
        "--variant",
        choices=["portable", "custom"],
        default="portable",
        help="operators of a SavedModel (default: portable)",
    )
    parser.add_argument(
        "--size",
        type=fixed_size,
        metavar="HxW|dynamic",
        help="height and width of the input, of tflite and onnx (default: dynamic, any)",
    )
    parser.add_argument(
        "--reference-size",
        type=fixed_size,
        metavar="HxW|dynamic",
        help="those of the reference (default: four times --size)",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "float16", "int8-dynamic", "int8"],
        default="float32",
        help="of tflite (default: float32)",
    )
    parser.add_argument(
        "--representative",
        type=Path,
        metavar="DIR",
        help="photographs like those that the model will see, which int8 takes the ranges of values from",
    )
    parser.add_argument("--no-verify", action="store_true", help="do not run what was written")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that stands there")


def fixed_size(text: str) -> tuple[int, int] | None:
    """Returns the (height, width) in pixels that a text like `120x160` names; None for `dynamic`.

    Raises:
        argparse.ArgumentTypeError: neither, or a side of 0 or of more than 65535.
    """
    if text.strip().lower() == "dynamic":
        return None
    match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", text.strip())
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= 65535 for side in size):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size (expected HEIGHTxWIDTH, for example 120x160, or dynamic)"
        )
    return size


def run(args: argparse.Namespace) -> int:
    """Exports the model and says what was written."""
    from tfcorr.pretrained import SUPER_RESOLUTION, find_model
    from tfcorr.serving.files import ExportError, check_target

    _check(args)
    check_target(args.output, args.overwrite)
    card = find_model(args.model, job=None)
    options = {
        "format": args.format,
        "variant": args.variant,
        "precision": args.precision,
        "representative": args.representative,
        "verify": not args.no_verify,
        "overwrite": args.overwrite,
    }
    start_tensorflow()
    from tfcorr.semantic.loading import SEMANTIC_MATCHING

    if card.job == SUPER_RESOLUTION:
        from tfcorr.refsr.predictor import SuperResolver

        upscaler = SuperResolver.from_pretrained(args.model)
        exported = upscaler.export(args.output, size=args.size, reference_size=args.reference_size, **options)
    elif card.job == SEMANTIC_MATCHING:
        if args.size or args.reference_size:
            raise UsageError("--size is for super-resolution: a matcher has the size of its network")
        from tfcorr.semantic.predictor import SemanticMatcher

        exported = SemanticMatcher.from_pretrained(args.model).export(args.output, **options)
    else:
        raise ExportError(f"{card.folder}: models for {card.job} cannot be exported")
    told = f"{exported.folder}: written, {exported.size / 1e6:.1f} MB"
    if exported.difference is not None:
        told += f"; differs by at most {exported.difference:.1g} from the Python prediction on a trial pair"
    print(told)
    for note in exported.notes:
        print(note)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses options that exclude each other, in the words of the command line."""
    if args.format != "saved_model" and args.variant != "portable":
        raise UsageError(f"--variant {args.variant} goes with --format saved_model only")
    if args.format != "tflite" and args.precision != "float32":
        raise UsageError(f"--precision {args.precision} goes with --format tflite only")
    if args.format == "saved_model" and (args.size or args.reference_size):
        raise UsageError("a SavedModel takes any size: leave out --size and --reference-size")
    if args.reference_size and not args.size:
        raise UsageError("--reference-size goes with a fixed --size")
    if args.precision == "int8" and not args.representative:
        raise UsageError("--precision int8 needs --representative DIR, a folder of photographs")
    if args.representative and args.precision != "int8":
        raise UsageError("--representative goes with --precision int8 only")
