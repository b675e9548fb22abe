"""`tfcorr bench export`: what every export of a model costs, in size, time, memory and decibels.

Exports the model in every format (those that stand in the work folder already are taken as they are), and
runs each in a process of its own on the sample pairs. A sample is a folder with `low_res.png`,
`reference.png` and `ground_truth.png`. Quality is PSNR of the Y channel by the protocol of the literature,
its loss against the Python prediction in float32.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfcorr.bench import children
from tfcorr.bench.export_work import PYTHON

__all__ = ["Contestant", "Measured", "run", "table"]


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


@dataclass(frozen=True)
class Measured:
    """A row of the table.

    Attributes:
        name: the contestant's name.
        megabytes: all of its files; of `python` the weights.
        seconds: median time of a run over all samples, after one run to warm up.
        memory: megabytes that the process grew by at its peak, from before the model was loaded.
        psnr_y: mean over the samples, in dB.
        lost: dB less than `python`.
    """

    name: str
    megabytes: float
    seconds: float
    memory: float
    psnr_y: float
    lost: float


def run(
    model: str,
    samples: list[Path],
    work: Path,
    *,
    representative: Path | None = None,
    only: list[str] | None = None,
    crop: int | None = None,
    repeats: int = 3,
    threads: int | None = None,
    report=print,
) -> list[Measured]:
    """Exports, runs and measures.

    Args:
        model: name or folder of a model.
        samples: folders, see above.
        work: folder for the exports.
        representative: photographs for `tflite-int8`, which is left out without.
        only: names of contestants; None: all.
        crop: side in pixels of the middle of `low_res.png` that is taken; None: all of it. References stay
            whole.
        repeats: timed runs of each.
        threads: for each contestant; None: the runtime's choice.
        report: is told what goes on.

    Raises:
        TfcorrError: a model, a sample or an export cannot be used, or a measuring process failed.
    """
    from tfcorr.imaging import evaluate_pair
    from tfcorr.pretrained import find_model
    from tfcorr.serving.export import folder_size

    work.mkdir(parents=True, exist_ok=True)
    pairs = [_read_sample(folder, crop) for folder in samples]
    inputs = work / "inputs.npz"
    arrays = {f"lr{n}": lr for n, (lr, _, _) in enumerate(pairs)}
    arrays |= {f"reference{n}": reference for n, (_, reference, _) in enumerate(pairs)}
    np.savez(inputs, **arrays)
    chosen = [c for c in CONTESTANTS if only is None or c.name in only]
    if representative is None:
        chosen = [c for c in chosen if c.options.get("precision") != "int8"]
    _export(model, work, chosen, pairs[0], representative, report)

    rows, baseline = [], None
    for name in [PYTHON, *(c.name for c in chosen)]:
        report(f"running {name}")
        target = f"{PYTHON}:{model}" if name == PYTHON else str(work / name)
        outputs_file = work / "outputs.npz"
        found = children.measure(
            {
                "kind": "export",
                "target": target,
                "inputs": str(inputs),
                "outputs": str(outputs_file),
                "repeats": repeats,
                "threads": threads,
            }
        )
        with np.load(outputs_file) as outputs:
            scores = [
                evaluate_pair(outputs[f"image{n}"], truth)["psnr_y"] for n, (_, _, truth) in enumerate(pairs)
            ]
        score = float(np.mean(scores))
        baseline = score if baseline is None else baseline
        size = find_model(model).size if name == PYTHON else folder_size(work / name)
        rows.append(Measured(name, size / 1e6, found["seconds"], found["memory"], score, baseline - score))
    return rows


def table(rows: list[Measured]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| | size, MB | time, s | memory, MB | PSNR-Y, dB | lost, dB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.name} | {row.megabytes:.1f} | {row.seconds:.2f} | {row.memory:.0f} | {row.psnr_y:.3f} "
        f"| {row.lost:+.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _export(model, work: Path, chosen, pair, representative: Path | None, report) -> None:
    """Makes the exports that are not there."""
    from tfcorr.refsr.predictor import SuperResolver

    upscaler = None
    for contestant in chosen:
        if (work / contestant.name).is_dir():
            continue
        report(f"exporting {contestant.name}")
        upscaler = upscaler or SuperResolver.from_pretrained(model)
        options = dict(contestant.options)
        if contestant.fixed:
            options |= {"size": pair[0].shape[:2], "reference_size": pair[1].shape[:2]}
        if options.get("precision") == "int8":
            options["representative"] = representative
        started = time.perf_counter()
        exported = upscaler.export(work / contestant.name, **options)
        report(
            f"  {time.perf_counter() - started:.0f} s, differs by {exported.difference:.2g} on the trial pair"
        )


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
