"""`tfcorr super-resolve`: images become four times larger, with detail from sharp references."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcorr.atomic import WriteError, remove_leftovers
from tfcorr.cli.arguments import byte_count, output_size, positive_int, scale_factor
from tfcorr.cli.messages import ProgressBar, describe, printable, start_tensorflow
from tfcorr.cli.references import MOST_FROM_FOLDER, GivenReferences
from tfcorr.errors import UsageError
from tfcorr.paths import real_path

if TYPE_CHECKING:
    import numpy as np

    from tfcorr.cli.batch import Job
    from tfcorr.imaging import Picture
    from tfcorr.refsr.predictor import SuperResolver, UpscaleResult

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Upscales images four times. Where a reference, a sharp photograph of the same thing, shows what the small
image shows, real detail is taken from it; elsewhere the image is upscaled by itself. Reads PNG, JPEG, WebP,
TIFF, GIF and BMP, writes PNG, JPEG, WebP and TIFF with the depth, transparency, colour profile and metadata
of the input.
"""

_EPILOG = """\
examples:
  one image with one reference:
    tfcorr super-resolve small.png --reference sharp.jpg --output large.png
  several references; each place takes the best of them:
    tfcorr super-resolve small.png --reference a.jpg --reference b.jpg --output large.png --figure why.png
  a folder, with the references that match best out of another; run it again to resume:
    tfcorr super-resolve small/ --reference-dir sharp/ --output large/
  no reference at all, in little memory, to a given size:
    tfcorr super-resolve small.png --output large.png --memory 1GB --size 1920x1080

Outputs that exist are skipped unless --overwrite is given. An output is complete or not there at all. One bad
file of a batch is told and the others go on; the exit status is 1 then. 2 is a wrong call.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Registers the subcommand."""
    parser = subparsers.add_parser(
        "super-resolve",
        help="upscale images, with detail from sharp references",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image file, or folder with its subfolders"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="OUT",
        help="file for one image, its ending tells the format; folder for many, which keep their names",
    )

    group = parser.add_argument_group("references")
    group.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="REF",
        help="sharp image of the same thing; may be given several times",
    )
    group.add_argument(
        "--reference-dir",
        metavar="DIR",
        help=f"folder of candidates; for each input up to {MOST_FROM_FOLDER} that match best are taken",
    )

    group = parser.add_argument_group("result")
    size = group.add_mutually_exclusive_group()
    size.add_argument(
        "--scale",
        type=scale_factor,
        default=4.0,
        metavar="S",
        help="from 1 to 8, resized from 4 (default: 4)",
    )
    size.add_argument("--size", type=output_size, metavar="WxH", help="size in pixels, resized from 4 times")
    group.add_argument(
        "--figure",
        metavar="FIG",
        help="also draw what came from where: an image file, or a folder when there are many inputs",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace outputs that exist instead of skipping"
    )
    group.add_argument(
        "--strip-metadata", action="store_true", help="drop EXIF, XMP and texts; the colour profile stays"
    )

    group = parser.add_argument_group("computation")
    group.add_argument("--model", metavar="M", help="name of a model (see tfcorr models), or a model folder")
    group.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 is quicker on processors with units for it, slower on others (default: float32)",
    )
    group.add_argument("--threads", type=positive_int, metavar="N", help="processor threads to use")
    group.add_argument(
        "--memory",
        type=byte_count,
        metavar="BYTES",
        help="working memory, such as 2GB, that tiles and references are sized by (default: half of what is "
        "free, at most 4GB)",
    )
    group.add_argument(
        "--matching",
        choices=("auto", "exact", "coarse-to-fine"),
        default="auto",
        help="compare all patches, or candidates alone, which is many times as fast for images of megapixels "
        "(default: by size)",
    )
    group.add_argument(
        "--registration",
        action=argparse.BooleanOptionalAction,
        help="bring references into the view of the input first, where both show the same scene (default: as "
        "the model was trained)",
    )
    group.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average over flips and rotations: better, 8 times slower",
    )

    group = parser.add_argument_group("messages")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    group.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def run(args: argparse.Namespace) -> int:
    """Upscales what the arguments name; returns 1 when an image failed."""
    from tfcorr.cli.batch import plan_jobs

    jobs = plan_jobs(args.inputs, args.output)
    figures = _plan_figures(args, jobs)
    return _Batch(args, jobs, figures).run()


def _plan_figures(args: argparse.Namespace, jobs: list[Job]) -> list[Path | None]:
    """Returns where the figure of each job goes."""
    from tfcorr.imaging.files import OUTPUT_SUFFIXES

    if args.figure is None:
        return [None] * len(jobs)
    figure = Path(args.figure)
    is_file = figure.suffix.lower() in OUTPUT_SUFFIXES and not figure.is_dir()
    if len(jobs) > 1:
        if is_file:
            raise UsageError(f"--figure {figure}: several images need a folder for their figures")
        base = Path(args.output)
        places = [figure / job.target.relative_to(base).with_suffix(".png") for job in jobs]
    else:
        places = [figure if is_file else figure / f"{jobs[0].target.stem}.png"]
    taken = {real_path(path) for job in jobs for path in (job.source, job.target)}
    for place in places:
        if real_path(place) in taken:
            raise UsageError(f"--figure: {place} is an input or an output; choose another place")
    if len({real_path(place) for place in places}) < len(places):
        raise UsageError("--figure: two of the figures would have one name; call the command for each")
    return places


@dataclass(frozen=True)
class _Outcome:
    """What became of one input.

    Attributes:
        status: "written", "skipped" or "failed".
        message: one line for people.
        values: what the JSON document says beside the paths and the status.
    """

    job: Job
    status: str
    message: str
    values: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _failed(job: Job, message: str) -> _Outcome:
    return _Outcome(job, "failed", message, {"error": message})


class _Batch:
    """The images of one call, one after the other; the model is loaded when the first image needs it."""

    def __init__(self, args: argparse.Namespace, jobs: list[Job], figures: list[Path | None]):
        self._args = args
        self._jobs = jobs
        self._figures = figures
        self._bar = ProgressBar(len(jobs), visible=not args.quiet)
        self._is_full = False

    def run(self) -> int:
        todo = [self._args.overwrite or not job.target.exists() for job in self._jobs]
        outputs = [path for path in (*(job.target for job in self._jobs), *self._figures) if path]
        references = GivenReferences(self._args.reference, self._args.reference_dir, outputs)
        if any(todo):
            references.read_files()
        for folder in {path.parent for path in outputs}:
            remove_leftovers(folder)
        upscaler = None
        outcomes = []
        with self._bar:
            for number, (job, figure) in enumerate(zip(self._jobs, self._figures, strict=True)):
                self._bar.start(number, job.source.name)
                if not todo[number]:
                    outcome = _Outcome(
                        job, "skipped", f"{job.target}: exists, skipped (--overwrite replaces it)"
                    )
                elif self._is_full:
                    outcome = _failed(
                        job, f"{job.source}: not tried, as there was no space for the one before"
                    )
                else:
                    if upscaler is None:
                        upscaler = _load(self._args)
                        self._warn(references.read_candidates(upscaler.model))
                    outcome = self._one(upscaler, references, job, figure)
                outcomes.append(outcome)
                self._tell(outcome)
        if self._args.json:
            model = upscaler.card.name if upscaler else self._args.model
            print(
                json.dumps({"model": model, "results": [_as_json(outcome) for outcome in outcomes]}, indent=2)
            )
        elif len(self._jobs) > 1 and not self._args.quiet:
            counts = Counter(outcome.status for outcome in outcomes)
            print(", ".join(f"{counts[status]} {status}" for status in ("written", "skipped", "failed")))
        return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0

    def _one(
        self, upscaler: SuperResolver, references: GivenReferences, job: Job, figure: Path | None
    ) -> _Outcome:
        """Upscales one image; whatever is wrong with it becomes its outcome."""
        from tfcorr.imaging import ImageError

        try:
            return self._upscale(upscaler, references, job, figure)
        except Exception as error:  # whatever it is, the rest of the batch goes on
            if os.environ.get("TFCORR_DEBUG"):
                traceback.print_exc()
            cause = error.__cause__ if isinstance(error.__cause__, WriteError) else error
            self._is_full = isinstance(cause, WriteError) and cause.is_full
            message = describe(error)
            named = isinstance(error, ImageError)
            if not named and not message.startswith((str(job.source), str(job.target), str(figure))):
                message = f"{job.source}: {message}"
            return _failed(job, message)

    def _upscale(
        self, upscaler: SuperResolver, references: GivenReferences, job: Job, figure: Path | None
    ) -> _Outcome:
        from tfcorr.imaging import check_output, read_image, write_image

        started = time.perf_counter()
        for path in filter(None, (job.target, figure)):
            path.parent.mkdir(parents=True, exist_ok=True)
            check_output(path)
        picture = read_image(job.source)
        notes = list(picture.notes)
        chosen = references.choose(picture, job.source)
        prepared = None
        if chosen:
            prepared = upscaler.prepare([reference.pixels for reference in chosen], picture.pixels)
            if prepared.reduction < 1:
                notes.append(
                    f"references reduced to {100 * prepared.reduction:.0f} % of their sides to fit the "
                    "memory (--memory)"
                )
        result = upscaler.upscale(picture.pixels, prepared, details=True, progress=self._bar.step)
        finished = _resized(picture, result.image, self._args)
        notes += write_image(job.target, finished, strip_metadata=self._args.strip_metadata)
        if figure:
            drawn = draw(picture, result, [reference.pixels for reference in chosen])
            write_image(figure, drawn)
        seconds = time.perf_counter() - started
        values = {
            "size": [finished.width, finished.height],
            "input_size": [picture.width, picture.height],
            "references": [str(reference.path) for reference in chosen],
            "registered": [found is not None for found in prepared.registrations] if prepared else [],
            "used_share": round(result.used_share, 4) if chosen else None,
            "mean_confidence": round(float(result.confidence.mean()), 4),
            "figure": str(figure) if figure else None,
            "seconds": round(seconds, 2),
            "notes": notes,
        }
        return _Outcome(
            job, "written", _sentence(job, picture, finished, chosen, result, seconds), values, notes
        )

    def _tell(self, outcome: _Outcome) -> None:
        with self._bar.cleared():
            if outcome.status == "failed":
                print(f"tfcorr: {printable(outcome.message)}", file=sys.stderr)
            elif not self._args.quiet and not self._args.json:
                print(printable(outcome.message), flush=True)
        self._warn([f"{outcome.job.source}: {note}" for note in outcome.notes])

    def _warn(self, messages: Iterable[str]) -> None:
        if not self._args.quiet:
            with self._bar.cleared():
                for message in messages:
                    print(f"tfcorr: {printable(message)}", file=sys.stderr)


def _load(args: argparse.Namespace) -> SuperResolver:
    start_tensorflow()
    from tfcorr.refsr.predictor import SuperResolver

    return SuperResolver.from_pretrained(
        args.model,
        precision=args.precision,
        threads=args.threads,
        memory=args.memory,
        self_ensemble=args.self_ensemble,
        matching=args.matching.replace("-", "_"),
        registration=args.registration,
    )


def _resized(picture: Picture, image: np.ndarray, args: argparse.Namespace) -> Picture:
    """Gives the upscaled pixels the asked size, and transparency enlarged with them."""
    from tfcorr.imaging import resize_bicubic

    if args.size:
        size = args.size[::-1]
    else:
        size = tuple(max(1, round(side * args.scale)) for side in (picture.height, picture.width))
    if size != image.shape[:2]:
        image = resize_bicubic(image, size)
    alpha = None if picture.alpha is None else resize_bicubic(picture.alpha, size)
    return picture.with_pixels(image, alpha)


def draw(picture: Picture, result: UpscaleResult, references: list[np.ndarray]) -> np.ndarray:
    """Draws the figure of one image, greyscale as grey RGB."""
    import numpy as np

    from tfcorr.imaging.figure import comparison_figure

    def colour(image: np.ndarray) -> np.ndarray:
        return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image

    return comparison_figure(
        colour(picture.pixels),
        colour(result.image),
        [colour(image) for image in references],
        result.correspondence,
        result.confidence,
        result.used_share,
    )


def _sentence(
    job: Job,
    picture: Picture,
    finished: Picture,
    chosen: list[Picture],
    result: UpscaleResult,
    seconds: float,
) -> str:
    """Says what was done, on one line."""
    parts = [f"{finished.width}x{finished.height} from {job.source} ({picture.width}x{picture.height})"]
    if (finished.height, finished.width) != result.image.shape[:2]:
        parts[0] += f", resized from 4x ({result.image.shape[1]}x{result.image.shape[0]})"
    if not chosen:
        parts.append("no reference: the image is its own")
    elif len(chosen) == 1:
        parts.append(f"{chosen[0].path.name} used for {100 * result.used_share:.0f} % of the pixels")
    else:
        names = ", ".join(reference.path.name for reference in chosen)
        parts.append(f"references {names} used for {100 * result.used_share:.0f} % of the pixels")
    parts.append(f"{seconds:.1f} s")
    return f"{job.target}: {', '.join(parts)}"


def _as_json(outcome: _Outcome) -> dict[str, Any]:
    return {
        "input": str(outcome.job.source),
        "output": str(outcome.job.target),
        "status": outcome.status,
        **outcome.values,
    }
