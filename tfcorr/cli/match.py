"""`tfcorr match`: for every pixel of one photograph, where it lies in another of the same kind of thing."""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tfcorr.cli.arguments import positive_int
from tfcorr.cli.messages import start_tensorflow
from tfcorr.errors import TfcorrError, UsageError
from tfcorr.paths import real_path
from tfcorr.reading import read_rows

if TYPE_CHECKING:
    import numpy as np

    from tfcorr.semantic.predictor import MatchResult

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Matches two photographs of different things of one kind, two birds or two chairs, and writes the flow: float32
(H, W, 2) on the pixels of SOURCE, (dx, dy) in pixels; target position = source position + flow. Beside it the
file holds "confidence", float32 (H, W) in [0, 1].
"""

_EPILOG = """\
examples:
  tfcorr match one.jpg other.jpg --output flow.npz --figure matches.png
  tfcorr match one.jpg other.jpg --output flow.npz --points marks.csv --points-output found.csv

A CSV of points has a header line with the columns x and y, pixels of SOURCE, the centre of the first at 0,0;
other columns are kept, and target_x, target_y and confidence are added. Files that exist are only replaced
with --overwrite; each is complete or not there at all.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Registers the subcommand."""
    parser = subparsers.add_parser(
        "match",
        help="semantic flow between two photographs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="image file whose pixels are asked for")
    parser.add_argument("target", metavar="TARGET", help="image file that they are found in")
    parser.add_argument("--output", required=True, metavar="FLOW", help="file *.npz for flow and confidence")
    parser.add_argument(
        "--figure", metavar="FIG", help="image file that shows the matches and the warped target"
    )
    parser.add_argument("--points", metavar="IN", help="CSV with points of SOURCE")
    parser.add_argument("--points-output", metavar="OUT", help="CSV for where they lie in TARGET")
    parser.add_argument("--model", metavar="M", help="name of a model (see tfcorr models), or a model folder")
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="look at the mirror images too, for better matches in up to twice the time (default: as "
        "the model's card says)",
    )
    parser.add_argument("--threads", type=positive_int, metavar="N", help="processor threads to use")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def run(args: argparse.Namespace) -> int:
    """Matches and writes; returns 0."""
    from tfcorr.atomic import write_bytes
    from tfcorr.imaging import read_image

    started = time.perf_counter()
    _check(args)
    pictures = [read_image(path) for path in (args.source, args.target)]
    rows, points = _read_points(Path(args.points)) if args.points else ([], None)
    start_tensorflow()
    if args.threads:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    from tfcorr.semantic.predictor import SemanticMatcher

    matcher = SemanticMatcher.from_pretrained(args.model, mirror=args.mirror)
    images = [picture.to_rgb() for picture in pictures]
    result = matcher.match(*images, details=True)
    moved = result.transfer(points) if points is not None else None

    write_bytes(args.output, _npz(result, images), overwrite=args.overwrite)
    written = [args.output]
    if args.figure:
        _write_figure(args, images, result, points, moved)
        written.append(args.figure)
    if args.points_output:
        write_bytes(args.points_output, _csv(rows, points, moved, result), overwrite=args.overwrite)
        written.append(args.points_output)
    _tell(args, matcher, images, result, moved, written, time.perf_counter() - started)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses a wrong call before anything is computed."""
    from tfcorr.imaging import check_output

    if bool(args.points) != bool(args.points_output):
        raise UsageError("--points and --points-output belong together; give both or none")
    if Path(args.output).suffix.lower() != ".npz":
        raise UsageError(f"--output {args.output}: expected a name that ends in .npz")
    if args.figure:
        check_output(args.figure, overwrite=args.overwrite)
    outputs = [Path(name) for name in (args.output, args.figure, args.points_output) if name]
    inputs = [Path(name) for name in (args.source, args.target, args.points) if name]
    places = [real_path(path) for path in outputs]
    if len(set(places)) < len(places) or set(places) & {real_path(path) for path in inputs}:
        raise UsageError("outputs must differ from each other and from the inputs")
    for path in outputs:
        if path.is_dir():
            raise TfcorrError(f"{path}: is a folder; name a file in it")
        if path.exists() and not args.overwrite:
            raise TfcorrError(f"{path}: is there already (--overwrite replaces it)")
        if not path.parent.is_dir():
            raise TfcorrError(f"{path}: there is no folder {str(path.parent)!r}; create it first")


def _read_points(path: Path) -> tuple[list[dict[str, str]], np.ndarray]:
    """The rows of a CSV and its points, (N, 2) (x, y)."""
    import numpy as np

    columns, rows = read_rows(path)
    if not {"x", "y"} <= set(columns):
        raise TfcorrError(f"{path}: expected a header line with the columns x and y")
    if not rows:
        raise TfcorrError(f"{path}: has no points")
    points = []
    for number, row in enumerate(rows, start=2):
        try:
            point = float(row["x"]), float(row["y"])
        except ValueError:
            point = (np.nan, np.nan)
        if not np.isfinite(point).all():
            raise TfcorrError(
                f"{path}, line {number}: x is {row['x'][:40]!r}, y is {row['y'][:40]!r}, expected numbers"
            )
        points.append(point)
    return rows, np.array(points)


def _npz(result: MatchResult, images: list[np.ndarray]) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        flow=result.flow,
        confidence=result.confidence,
        target_size=np.array(images[1].shape[:2], np.int32),
    )
    return buffer.getvalue()


def _csv(rows: list[dict[str, str]], points: np.ndarray, moved: np.ndarray, result: MatchResult) -> bytes:
    import numpy as np

    text = io.StringIO(newline="")
    added = ("target_x", "target_y", "confidence")
    columns = [name for name in rows[0] if name not in added]
    writer = csv.DictWriter(text, [*columns, *added], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    limit = np.array(result.confidence.shape[::-1]) - 1
    for row, point, place in zip(rows, points, moved, strict=True):
        x, y = np.clip(np.rint(point), 0, limit).astype(int)
        values = (f"{place[0]:.2f}", f"{place[1]:.2f}", f"{result.confidence[y, x]:.3f}")
        writer.writerow({**row, **dict(zip(added, values, strict=True))})
    return text.getvalue().encode()


def _write_figure(args, images, result: MatchResult, points, moved) -> None:
    import numpy as np

    from tfcorr.imaging import convert_depth, write_image
    from tfcorr.semantic.figures import match_figure

    source, target = (convert_depth(image, np.uint8) for image in images)
    drawn = match_figure(source, target, result.flow, result.confidence, points, moved)
    write_image(args.figure, drawn, overwrite=args.overwrite)


def _tell(args, matcher, images, result: MatchResult, moved, written, seconds: float) -> None:
    trusted = float((result.confidence > 0.5).mean())
    if args.json:
        document = {
            "model": matcher.card.name,
            "source": args.source,
            "target": args.target,
            "source_size": list(images[0].shape[1::-1]),
            "target_size": list(images[1].shape[1::-1]),
            "trusted_share": round(trusted, 4),
            "points": None if moved is None else [[round(float(v), 2) for v in place] for place in moved],
            "written": written,
            "seconds": round(seconds, 2),
        }
        print(json.dumps(document, indent=2))
    elif not args.quiet:
        print(
            f"{args.output}: flow of {args.source} into {args.target}, both directions agree for "
            f"{100 * trusted:.0f} % of the pixels, {seconds:.1f} s"
        )
        for path in written[1:]:
            print(path)
