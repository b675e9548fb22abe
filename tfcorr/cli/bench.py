"""`tfcorr bench`: speed and memory, beside peers where they are installed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfcorr.cli.arguments import byte_count, output_size, positive_int
from tfcorr.cli.messages import start_tensorflow
from tfcorr.errors import UsageError

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Measures time and memory, beside other packages where they are installed (pip install ".[bench]" in a
checkout). Contestants are timed in turn in one process, so that other load hits all alike; memory is measured
in a process for each. `tfcorr bench` alone measures the ops.
"""

_EPILOG = """\
examples:
  tfcorr bench ops --threads 1 --repeats 15 --json figures.json
  tfcorr bench ops --growing --no-memory --plot cost.svg
  tfcorr bench pipeline --model full --doublings 4 --json pipeline.json --plot pipeline.svg
  tfcorr bench train --steps 20
  tfcorr bench export c2-compact --sample docs/sample --work exports/
  tfcorr bench export pmd-birds --pairs marks.csv --images photos/ --work exports/

`tfcorr bench WHAT --help` explains each.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Registers the subcommand."""
    parser = subparsers.add_parser(
        "bench",
        help="speed and memory of ops, pipelines, training and exports, beside peers",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(title="what to measure", metavar="WHAT", dest="what")
    _add_ops(kinds)
    _add_pipeline(kinds)
    _add_train(kinds)
    _add_matching(kinds)
    _add_export(kinds)
    # `tfcorr bench` is `tfcorr bench ops`.
    parser.set_defaults(**dict.fromkeys(("json", "plot", "repeats", "threads")))
    parser.set_defaults(what="ops", quick=False, growing=False, no_memory=False)


def run(args: argparse.Namespace) -> int:
    """Measures and prints the table."""
    measure = {
        "ops": _ops,
        "pipeline": _pipeline,
        "train": _train,
        "matching": _matching,
        "export": _export,
    }[args.what]
    result, table, plot = measure(args)
    print(table)
    if args.json:
        from tfcorr.atomic import write_text

        write_text(args.json, json.dumps(result, indent=1) + "\n")
    if getattr(args, "plot", None) and (note := plot(args.plot)):
        print(f"tfcorr: {note}", file=sys.stderr)
    return 0


# What a kind of benchmark gives: its figures, their table, and a function that draws them to a file.
_Measured = tuple[Any, str, Callable[[Path], str | None] | None]


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _add(
    kinds: argparse._SubParsersAction, name: str, text: str, description: str
) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        name, help=text, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=positive_int, metavar="N", help="timed rounds")
    parser.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="threads of each contestant (default: all processors)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE, too")
    return parser


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all works")
    parser.add_argument("--no-memory", action="store_true", help="times only, which is several times quicker")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw cost against size (needs matplotlib)")


def _add_ops(kinds: argparse._SubParsersAction) -> None:
    parser = _add(
        kinds,
        "ops",
        "deform_conv2d and match_patches",
        "Times deform_conv2d and match_patches, compiled and portable, beside ONNX Runtime's DeformConv and\n"
        "a matcher of PyTorch's unfold and convolution.",
    )
    _add_measuring(parser)
    parser.add_argument(
        "--growing", action="store_true", help="sizes that double, instead of those of the networks"
    )


def _ops(args: argparse.Namespace) -> _Measured:
    from tfcorr.bench import ops
    from tfcorr.bench.reports import plot_costs

    result = ops.run(
        repeats=args.repeats,
        threads=args.threads,
        quick=args.quick,
        growing=args.growing,
        memory=not args.no_memory,
        progress=_progress,
    )
    return (
        result,
        ops.format_table(result),
        lambda path: plot_costs(path, result["rows"], ops.point, "positions", "seconds"),
    )


def _add_pipeline(kinds: argparse._SubParsersAction) -> None:
    parser = _add(
        kinds,
        "pipeline",
        "upscaling from end to end",
        "Times an upscaling from arrays to array, with the compiled and the portable ops, beside the\n"
        "published network in PyTorch with the same weights, its deformable convolution by ONNX Runtime.",
    )
    _add_measuring(parser)
    parser.add_argument(
        "--model",
        default="full",
        metavar="M",
        help="full, light or compact with random weights, or a model (default: full)",
    )
    parser.add_argument(
        "--size",
        type=output_size,
        metavar="WxH",
        help="of the largest input (default: 125x80)",
    )
    parser.add_argument(
        "--doublings",
        type=positive_int,
        default=0,
        metavar="N",
        help="also N smaller sizes, each with half the pixels",
    )
    parser.add_argument(
        "--precision",
        action="append",
        choices=("float32", "bfloat16"),
        help="may be given twice (default: what this processor has units for)",
    )
    parser.add_argument(
        "--only", metavar="NAMES", help="contestants, separated by commas: custom, kept, reference, peer"
    )
    parser.add_argument(
        "--memory", type=byte_count, metavar="BYTES", help="working memory, as for tfcorr super-resolve"
    )


def _pipeline(args: argparse.Namespace) -> _Measured:
    from tfcorr.bench import pipeline
    from tfcorr.bench.reports import plot_costs

    only = None
    if args.only:
        names = {"kept": pipeline.KEPT} | {name: name for name in pipeline.CONTESTANTS}
        only = [_one_of(names, name, "--only") for name in args.only.split(",")]
    result = pipeline.run(
        model=args.model,
        size=args.size and args.size[::-1],
        doublings=args.doublings,
        precisions=args.precision,
        only=only,
        repeats=args.repeats,
        threads=args.threads,
        budget=args.memory,
        quick=args.quick,
        memory=not args.no_memory,
        progress=_progress,
    )
    return (
        result,
        pipeline.format_table(result),
        lambda path: plot_costs(path, result["rows"], pipeline.point, "pixels of the input", "seconds"),
    )


def _one_of(names: dict[str, str], name: str, option: str) -> str:
    if name not in names:
        raise UsageError(f"{option} {name}: expected some of {', '.join(names)}, separated by commas")
    return names[name]


def _add_export(kinds: argparse._SubParsersAction) -> None:
    parser = _add(
        kinds,
        "export",
        "size, time, memory and quality of every export of a model",
        "Exports a model in every format and precision (what stands in --work already is taken as it is)\n"
        "and runs each in a process of its own: one for super-resolution on --sample, folders with\n"
        "low_res.png, reference.png and ground_truth.png; one for semantic matching on --pairs, a CSV of\n"
        "photographs in --images with marked points (its columns: docs/semantic-matching.md).",
    )
    parser.add_argument("model", metavar="MODEL", help="name or folder of a model")
    parser.add_argument(
        "--sample", type=Path, action="append", metavar="DIR", help="a sample; may be repeated"
    )
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="list of pairs with marked points")
    parser.add_argument("--images", type=Path, metavar="DIR", help="photographs of the list")
    parser.add_argument("--work", type=Path, metavar="DIR", required=True, help="folder for the exports")
    parser.add_argument("--representative", type=Path, metavar="DIR", help="photographs for int8")
    parser.add_argument("--only", metavar="NAMES", help="contestants, separated by commas")
    parser.add_argument("--crop", type=positive_int, metavar="N", help="take NxN pixels of each input")


def _export(args: argparse.Namespace) -> _Measured:
    from tfcorr.bench import export
    from tfcorr.pretrained import SUPER_RESOLUTION, find_model

    only = None
    if args.only:
        names = {contestant.name: contestant.name for contestant in export.CONTESTANTS}
        only = [_one_of(names, name, "--only") for name in args.only.split(",")]
    card = find_model(args.model, job=None)
    start_tensorflow()
    from tfcorr.semantic.loading import SEMANTIC_MATCHING, load_network

    if card.job == SUPER_RESOLUTION:
        if not args.sample or args.pairs or args.images:
            raise UsageError(f"{card.name} is for super-resolution: give --sample, no --pairs and --images")
        trials = export.samples(args.sample, args.crop)
    elif card.job == SEMANTIC_MATCHING:
        if not (args.pairs and args.images) or args.sample or args.crop:
            raise UsageError(f"{card.name} is for semantic matching: give --pairs and --images alone")
        trials = export.marked_pairs(args.pairs, args.images, load_network(args.model).size)
    else:
        raise UsageError(f"{card.name}: models for {card.job} cannot be exported")
    rows = export.run(
        args.model,
        trials,
        args.work,
        representative=args.representative,
        only=only,
        repeats=args.repeats or 3,
        threads=args.threads,
        report=_progress,
    )
    return [dataclasses.asdict(row) for row in rows], export.table(rows, trials.quality), None


def _add_train(kinds: argparse._SubParsersAction) -> None:
    parser = _add(
        kinds,
        "train",
        "a training step of each stage",
        "Times training steps with their input pipeline: what a step takes, how long it waits for its\n"
        "batch, and what known matches would save. Without --data-root photographs are made up.",
    )
    _add_measuring(parser)
    parser.add_argument(
        "configs", nargs="*", metavar="CONFIG", help="configurations (default: those for a CPU)"
    )
    parser.add_argument("--data-root", metavar="DIR", help="data and weights that the configurations name")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a configuration"
    )
    parser.add_argument(
        "--steps", type=positive_int, default=20, metavar="N", help="timed steps (default: 20)"
    )
    parser.add_argument(
        "--doublings",
        type=positive_int,
        default=0,
        metavar="N",
        help="also N smaller batches, each with half the samples",
    )
    parser.add_argument(
        "--precision",
        action="append",
        choices=("float32", "mixed_bfloat16"),
        help="may be given twice (default: both)",
    )


def _train(args: argparse.Namespace) -> _Measured:
    from tfcorr.bench import train
    from tfcorr.bench.reports import plot_costs

    result = train.run(
        configs=args.configs or train.STAGES,
        overrides=args.set,
        data_root=args.data_root,
        precisions=args.precision,
        doublings=args.doublings,
        steps=args.steps,
        repeats=args.repeats,
        threads=args.threads,
        quick=args.quick,
        memory=not args.no_memory,
        progress=_progress,
    )
    return (
        result,
        train.format_table(result),
        lambda path: plot_costs(path, result["rows"], train.point, "samples a batch", "seconds a step"),
    )


def _add_matching(kinds: argparse._SubParsersAction) -> None:
    parser = _add(
        kinds,
        "matching",
        "the matching of large images from coarse to fine",
        "Times the matching of large images from coarse to fine, and counts how many of its matches are\n"
        "those of the exact search. Photographs are put together to the asked size; without any, a texture\n"
        "is matched with itself after a warp.",
    )
    _add_measuring(parser)
    parser.add_argument(
        "--input", type=Path, action="append", default=[], metavar="PHOTO", help="may be repeated"
    )
    parser.add_argument(
        "--reference", type=Path, action="append", default=[], metavar="PHOTO", help="one for each input"
    )
    parser.add_argument(
        "--size", type=output_size, metavar="WxH", help="of the largest images (default: 2000x1500)"
    )
    parser.add_argument(
        "--doublings",
        type=positive_int,
        default=0,
        metavar="N",
        help="also N smaller sizes, each with half the pixels",
    )
    parser.add_argument("--model", default="matcher-cpu", metavar="M", help="matcher (default: matcher-cpu)")
    parser.add_argument(
        "--sampled", type=positive_int, default=2000, metavar="N", help="patches that are looked up exactly"
    )
    parser.add_argument(
        "--exact", action="store_true", help="time the exact search too, which may take minutes"
    )


def _matching(args: argparse.Namespace) -> _Measured:
    from tfcorr.bench import matching
    from tfcorr.bench.reports import plot_costs

    if len(args.input) != len(args.reference):
        raise UsageError(f"{len(args.input)} --input and {len(args.reference)} --reference: expected as many")
    result = matching.run(
        inputs=args.input,
        references=args.reference,
        size=args.size and args.size[::-1],
        doublings=args.doublings,
        model=args.model,
        sampled=args.sampled,
        exact=args.exact,
        repeats=args.repeats,
        threads=args.threads,
        quick=args.quick,
        memory=not args.no_memory,
        progress=_progress,
    )
    return (
        result,
        matching.format_table(result),
        lambda path: plot_costs(path, result["rows"], matching.point, "pixels of each image", "seconds"),
    )
