"""`tfcorr bench pipeline`: upscaling from end to end, beside the published network in PyTorch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from tfcorr.bench import children, reports
from tfcorr.toolchain import usable_cores

# Height and width of the largest input: with its reference of 320 x 500 the size of CUFED5's pairs.
FULL_SIZE = (80, 125)
QUICK_SIZE = (16, 20)

CUSTOM, KEPT, PORTABLE, TWIN = "custom", "custom, reference kept", "reference", "peer"
CONTESTANTS = (CUSTOM, KEPT, PORTABLE, TWIN)
_LABELS = {
    CUSTOM: "tfcorr custom",
    KEPT: "tfcorr custom, reference kept",
    PORTABLE: "plain TensorFlow (tfcorr reference)",
}


def doubling_sizes(height: int, width: int, doublings: int) -> list[tuple[int, int]]:
    """Sizes of one shape that grow to (height, width), each with twice the pixels of the one before."""
    factors = [2 ** (-step / 2) for step in range(doublings, -1, -1)]
    return [(max(8, round(height * factor)), max(8, round(width * factor))) for factor in factors]


def run(
    *,
    model: str = "full",
    size: tuple[int, int] | None = None,
    doublings: int = 0,
    precisions: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    repeats: int | None = None,
    threads: int | None = None,
    budget: int | None = None,
    quick: bool = False,
    memory: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures time and extra memory of upscaling an input with a reference four times as large.

    Contestants: `SuperResolver.upscale` with the compiled ops, with another reference in each call; the same
    with the reference of the call before, whose features are kept; with the portable ops, which is what plain
    TensorFlow does; and `tfcorr.bench.twin`. All have the same weights.

    Args:
        model: `full`, `light` or `compact` with random weights, a model of `tfcorr models`, or a folder.
        size: (height, width) of the largest input; `FULL_SIZE` by default, `QUICK_SIZE` with `quick`.
        doublings: how many smaller sizes are measured before it, each with half the pixels of the next.
        precisions: of `"float32"` and `"bfloat16"`; by default float32, and bfloat16 where the processor has
            units for it. The portable ops and PyTorch are measured in float32 alone.
        only: of `CONTESTANTS`; None: all.
        repeats: rounds of timing; 3 by default.
        threads: threads that each contestant may use; by default as many as this process may run on.
        budget: bytes, the `memory` of `SuperResolver`.
        quick: a small size, to see that everything works; the figures then say little.
        memory: measure the extra memory, too, which takes a process for each figure.
        progress: called with a line of text before each measurement.

    Returns:
        As `tfcorr.bench.ops.run`, and `network` (`name`, `parameters`). A row: `size` (height, width),
        `pixels`, `implementation`, `precision`, `label`, `median_s`, `fastest_s`, `times_s`, `ratio` (median
        over the rounds of its time over the compiled float32 pipeline's), `gflop`, `gflops`, `floor_share`
        (the time that the pipeline's products would take at the speed of the matrix product, over its time),
        `difference` (greatest, of the network's output for a small input from that with the portable ops),
        and with `memory` `extra_bytes` (growth of the peak resident memory in a call, less the output) and
        `peak_bytes` (of the whole process at that peak).

    Raises:
        ValueError: an argument is out of its range.
        TfcorrError: no such model, or a measuring process failed.
    """
    repeats = 3 if repeats is None else repeats
    threads = usable_cores() if threads is None else threads
    size = (QUICK_SIZE if quick else FULL_SIZE) if size is None else size
    for name, value, least in (
        ("repeats", repeats, 1),
        ("threads", threads, 1),
        ("doublings", doublings, 0),
        ("the input's smaller side", min(size), 8),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    notes = []
    if precisions is None:
        precisions = ["float32", "bfloat16"] if _multiplies_bfloat16() else ["float32"]
        if len(precisions) == 1:
            notes.append(
                "bfloat16: this processor has no units for it (--precision bfloat16 measures it anyhow)"
            )
    contestants = [
        (name, precision)
        for name in CONTESTANTS
        for precision in precisions
        if (only is None or name in only) and (precision == "float32" or name in (CUSTOM, KEPT))
    ]
    rows, gemm, measured = [], [], {}
    for height, width in doubling_sizes(*size, doublings):
        what = f"{model}, input {width}x{height}"
        progress(f"{what}: time")
        job = {
            "kind": "pipeline",
            "model": model,
            "size": [height, width],
            "threads": threads,
            "budget": budget,
        }
        measured = children.measure(
            {**job, "measure": "times", "repeats": repeats, "contestants": contestants}
        )
        gemm += measured["gemm_gflops"]
        notes += [note for note in measured["notes"] if note not in notes]
        for found in measured["contestants"]:
            row = _row(found, measured, (height, width))
            if memory:
                progress(f"{what}: memory of {row['label']}")
                contestant = [row["implementation"], row["precision"]]
                row |= children.measure({**job, "measure": "memory", "contestant": contestant})
            rows.append(row)
    return {
        "machine": reports.machine(measured["versions"]["tensorflow"]),
        "settings": {"repeats": repeats, "threads": threads, "quick": quick},
        "gemm_gflops": statistics.median(gemm),
        "network": measured["network"],
        "rows": rows,
        "notes": notes,
    }


def _multiplies_bfloat16() -> bool:
    from tfcorr.training.loop import choose_precision

    return choose_precision("auto") == "mixed_bfloat16"


def _row(found: dict[str, Any], measured: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    times, flops = found["times"], measured["flops"]
    base = next(
        (
            one["times"]
            for one in measured["contestants"]
            if (one["implementation"], one["precision"]) == (CUSTOM, "float32")
        ),
        None,
    )
    label = _LABELS.get(found["implementation"]) or f"PyTorch {measured['versions'][TWIN]}"
    if found["precision"] != "float32":
        label += f", {found['precision']}"
    # The kept reference's features are not computed, so its operations are fewer than counted.
    counted = flops is not None and found["implementation"] != KEPT
    return {
        "size": list(size),
        "pixels": math.prod(size),
        "implementation": found["implementation"],
        "precision": found["precision"],
        "label": label,
        "median_s": statistics.median(times),
        "fastest_s": min(times),
        "times_s": times,
        "ratio": base and statistics.median(a / b for a, b in zip(times, base, strict=True)),
        "gflop": flops / 1e9 if counted else None,
        "gflops": flops / statistics.median(times) / 1e9 if counted else None,
        "floor_share": statistics.median(
            flops / seconds / 1e9 / gemm for seconds, gemm in zip(times, measured["gemm_gflops"], strict=True)
        )
        if counted
        else None,
        "difference": found["difference"],
    }


def format_table(result: dict[str, Any]) -> str:
    """Returns what `run` measured as text."""
    network = result["network"]
    lines = reports.heading(result)
    lines += [f"{network['name']}, {network['parameters']:,} parameters", ""]
    header = (
        "input",
        "implementation",
        "time",
        "ratio",
        "GFLOP",
        "GFLOP/s",
        "of floor",
        "extra memory",
        "whole peak",
        "difference",
    )
    rows = [
        (
            f"{row['size'][1]}x{row['size'][0]}",
            row["label"],
            reports.seconds(row["median_s"]),
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            "" if row["gflop"] is None else f"{row['gflop']:.1f}",
            "" if row["gflops"] is None else f"{row['gflops']:.0f}",
            reports.share(row["floor_share"]),
            reports.mebibytes(row, "extra_bytes"),
            reports.mebibytes(row, "peak_bytes"),
            f"{row['difference']:.1e}" if row["difference"] else "0",
        )
        for row in result["rows"]
    ]
    lines += reports.align([header, *reports.without_repeated_first(rows)])
    lines += [
        "",
        "input: width x height in pixels; the reference is four times as large. ratio: time over that of the",
        "compiled ops in float32, median over the rounds. GFLOP: operations of all convolutions and of the",
        "matching's product. of floor: what these alone would take at the speed of the matrix product, over",
        "the time. extra memory: growth of the peak resident memory, less the output; whole peak: of the",
        "process. difference: greatest, of the network's output (range 0 to 1) for a small input from that",
        "with the portable ops.",
    ]
    lines += [f"left out: {note}" for note in result["notes"]]
    return "\n".join(lines)


def point(row: dict[str, Any]) -> tuple[str, float, float] | None:
    """A row's place in the plot of cost against size, see `tfcorr.bench.reports.plot_costs`."""
    return row["label"], row["pixels"], row["median_s"]
