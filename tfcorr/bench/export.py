"""`tfcorr bench export`: what every export of a model costs, in size, time, memory and quality.

Exports the model in every format (exports of the same weights that stand in the work folder are taken), and
runs each in a process of its own on the same trials:

- super-resolution: samples, folders with `low_res.png`, `reference.png` and `ground_truth.png`; quality is
  PSNR of the Y channel by the protocol of the literature, in dB;
- semantic matching: pairs of photographs with marked points, brought to the network's size; quality is the
  share of the points that are right, PCK@0.1, in percent.

What an export loses is told against the Python prediction in float32.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfcorr.bench import children
from tfcorr.bench.export_work import PYTHON, by_trial, load_predictor
from tfcorr.errors import UsageError

if TYPE_CHECKING:
    from tfcorr.pretrained import ModelCard

__all__ = ["CONTESTANTS", "Contestant", "Measured", "Trials", "marked_pairs", "run", "samples", "table"]

# Of the side of the box, or of the image where the list has no boxes.
_ALPHA = 0.1


@dataclass(frozen=True)
class Contestant:
    """One way to run a model.

    Attributes:
        name: its row in the table, and its folder.
        options: for :func:`tfcorr.serving.export.export_super_resolver`.
        fixed: whether it is exported for the sizes of the first sample.
    """

    name: str
    options: dict
    fixed: bool = False


CONTESTANTS = (
    Contestant("saved_model", {}),
    Contestant("saved_model-custom", {"variant": "custom"}),
    Contestant("onnx", {"format": "onnx"}),
    Contestant("tflite-float32", {"format": "tflite"}),
    Contestant("tflite-float32-fixed", {"format": "tflite"}, fixed=True),
    Contestant("tflite-float16", {"format": "tflite", "precision": "float16"}),
    Contestant("tflite-int8-dynamic", {"format": "tflite", "precision": "int8-dynamic"}),
    Contestant("tflite-int8", {"format": "tflite", "precision": "int8"}),
)


# What a matcher can be exported as; it takes images of its network's size.
_MATCHER_FORMATS = ("saved_model", "tflite")


@dataclass(frozen=True)
class Trials:
    """What the contestants run on.

    Attributes:
        inputs: of each trial, by the names of the export's inputs, float32.
        quality: what `score` gives, with its unit.
        score: from the outputs of all trials, by name, to their quality.
    """

    inputs: Sequence[dict[str, np.ndarray]]
    quality: str
    score: Callable[[Sequence[dict[str, np.ndarray]]], float]


@dataclass(frozen=True)
class Measured:
    """A row of the table.

    Attributes:
        name: the contestant's name.
        megabytes: all of its files; of `python` the weights.
        seconds: for one trial: the median over the rounds of the mean over the trials.
        memory: megabytes that the process grew by at its peak, from before the model was loaded until the
            first trial was done.
        quality: of all trials, see `Trials`.
        lost: quality less than that of `python`.
    """

    name: str
    megabytes: float
    seconds: float
    memory: float
    quality: float
    lost: float


def samples(folders: Sequence[Path], crop: int | None = None) -> Trials:
    """Trials of super-resolution.

    Args:
        folders: see the module.
        crop: side in pixels of the middle of `low_res.png` that is taken; None: all of it. References stay
            whole.
    """
    from tfcorr.imaging import evaluate_pair

    read = [_read_sample(folder, crop) for folder in folders]

    def score(outputs: Sequence[dict[str, np.ndarray]]) -> float:
        pairs = zip(outputs, read, strict=True)
        return float(
            np.mean([evaluate_pair(found["image"], truth)["psnr_y"] for found, (*_, truth) in pairs])
        )

    return Trials([{"lr": lr, "reference": reference} for lr, reference, _ in read], "PSNR-Y, dB", score)


def marked_pairs(list_file: Path, images: Path, size: int) -> Trials:
    """Trials of semantic matching.

    Args:
        list_file: a CSV of pairs and their marks, in the layout `csv` of :mod:`tfcorr.semantic.datasets`.
        images: the folder that the list's files lie in.
        size: side in pixels of the network's images.

    Raises:
        DataError: the list or a photograph cannot be read.
        UsageError: the list has no marked pair.
    """
    from tfcorr.config.semantic import PairSet
    from tfcorr.semantic.datasets import KeypointPair, find_pairs
    from tfcorr.semantic.features import network_image
    from tfcorr.semantic.pck import score_pair
    from tfcorr.training.photos import PhotoCache

    listed = find_pairs(PairSet(layout="csv", list=str(list_file.resolve())), str(images))
    pairs = [pair for pair in listed if isinstance(pair, KeypointPair)]
    if not pairs:
        raise UsageError(f"{list_file}: has no pair with marked points")
    photos = PhotoCache(keep=2 * len(pairs))
    # The points of the target are taken into the source; an export's source is the image that asks.
    inputs = [
        {
            "source": network_image(photos.get(pair.target), size),
            "target": network_image(photos.get(pair.source), size),
        }
        for pair in pairs
    ]
    sizes = [[photos.get(file).shape[:2] for file in (pair.source, pair.target)] for pair in pairs]
    threshold = "box" if all(pair.source_box is not None for pair in pairs) else "image"
    pixels = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1)

    def score(outputs: Sequence[dict[str, np.ndarray]]) -> float:
        right = []
        for found, pair, (source_size, target_size) in zip(outputs, pairs, sizes, strict=True):
            grid = (pixels + found["flow"]) * 2 / (size - 1) - 1
            scored = score_pair(grid, pair, source_size, target_size, threshold=threshold)
            right.append(scored.correct(_ALPHA).mean())
        return 100 * float(np.mean(right))

    return Trials(inputs, f"PCK@{_ALPHA:g}, %", score)


def run(
    model: str,
    trials: Trials,
    work: Path,
    *,
    representative: Path | None = None,
    only: list[str] | None = None,
    repeats: int = 3,
    threads: int | None = None,
    report=print,
) -> list[Measured]:
    """Exports, runs and measures.

    Args:
        model: name or folder of a model.
        trials: of the model's job.
        work: folder for the exports.
        representative: photographs for `tflite-int8`, which is left out without.
        only: names of contestants; None: all that the model can be exported as.
        repeats: timed rounds of each.
        threads: for each contestant; None: the runtime's choice.
        report: is told what goes on.

    Raises:
        TfcorrError: a model or an export cannot be used, or a measuring process failed.
    """
    from tfcorr.pretrained import find_model
    from tfcorr.serving.export import folder_size

    work.mkdir(parents=True, exist_ok=True)
    inputs = work / "inputs.npz"
    np.savez(
        inputs,
        **{f"{n}/{name}": array for n, trial in enumerate(trials.inputs) for name, array in trial.items()},
    )
    card = find_model(model, job=None)
    chosen = [c for c in _contestants(card.job) if only is None or c.name in only]
    if representative is None:
        chosen = [c for c in chosen if c.options.get("precision") != "int8"]
    _export(model, card, work, chosen, trials.inputs[0], representative, report)

    rows, baseline = [], None
    for name in [PYTHON, *(c.name for c in chosen)]:
        report(f"running {name}")
        outputs_file = work / "outputs.npz"
        found = children.measure(
            {
                "kind": "export",
                "target": f"{PYTHON}:{model}" if name == PYTHON else str(work / name),
                "job": card.job,
                "inputs": str(inputs),
                "outputs": str(outputs_file),
                "repeats": repeats,
                "threads": threads,
            }
        )
        with np.load(outputs_file) as stored:
            outputs = by_trial(stored)
        quality = trials.score(outputs)
        baseline = quality if baseline is None else baseline
        size = card.size if name == PYTHON else folder_size(work / name)
        rows.append(
            Measured(name, size / 1e6, found["seconds"], found["memory"], quality, baseline - quality)
        )
    return rows


def table(rows: list[Measured], quality: str) -> str:
    """The rows as a Markdown table.

    Args:
        rows: from `run`.
        quality: of the trials.
    """
    unit = quality.rpartition(", ")[2]
    lines = [
        f"| | size, MB | time, s | memory, MB | {quality} | lost, {unit} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.name} | {row.megabytes:.1f} | {row.seconds:.2f} | {row.memory:.0f} | {row.quality:.3f} "
        f"| {row.lost:+.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _contestants(job: str) -> list[Contestant]:
    """Those that a model for this job can be exported as."""
    from tfcorr.pretrained import SUPER_RESOLUTION

    if job == SUPER_RESOLUTION:
        return list(CONTESTANTS)
    return [
        c
        for c in CONTESTANTS
        if c.options.get("format", "saved_model") in _MATCHER_FORMATS
        and not c.fixed
        and c.options.get("variant") != "custom"  # a matcher's is its portable one
    ]


def _export(model: str, card: ModelCard, work: Path, chosen, trial, representative, report) -> None:
    """Makes the exports that are not there."""
    predictor = None
    for contestant in chosen:
        if _stands(work / contestant.name, card):
            continue
        report(f"exporting {contestant.name}")
        predictor = predictor or load_predictor(model, card.job)
        options = dict(contestant.options)
        if contestant.fixed:
            options |= {"size": trial["lr"].shape[:2], "reference_size": trial["reference"].shape[:2]}
        if options.get("precision") == "int8":
            options["representative"] = representative
        started = time.perf_counter()
        exported = predictor.export(work / contestant.name, overwrite=True, **options)
        told = (
            "" if exported.difference is None else f", differs by {exported.difference:.2g} on the trial pair"
        )
        report("\n  ".join([f"  {time.perf_counter() - started:.0f} s{told}", *exported.notes]))


def _stands(folder: Path, card: ModelCard) -> bool:
    """Whether an export of these very weights stands there."""
    for name in ("export.json", "assets.extra/export.json"):
        try:
            return json.loads((folder / name).read_text(encoding="utf-8"))["checksums"] == card.checksums
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return False


def _read_sample(folder: Path, crop: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input and reference, float32 in [0, 1], and the truth, uint8."""
    from tfcorr.imaging import read_image
    from tfcorr.refsr.pixels import to_rgb

    lr, reference, truth = (
        read_image(folder / f"{name}.png").pixels for name in ("low_res", "reference", "ground_truth")
    )
    if crop is not None:
        top, left = (max(0, (side - crop) // 2) for side in lr.shape[:2])
        lr = lr[top : top + crop, left : left + crop]
        truth = truth[4 * top :, 4 * left :][: 4 * lr.shape[0], : 4 * lr.shape[1]]
    return to_rgb(lr, "low_res.png"), to_rgb(reference, "reference.png"), truth
