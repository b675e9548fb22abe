"""`tfcorr bench train`: a training step of each stage, and how long it waits for its input."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from tfcorr.bench import children, reports
from tfcorr.toolchain import usable_cores

STAGES = (
    "refsr/teacher_cpu",
    "refsr/student_cpu",
    "refsr/restorer_cpu",
    "refsr/restorer_gan_cpu",
    "semantic/birds_cpu",
)
PRECISIONS = ("float32", "mixed_bfloat16")


def run(
    *,
    configs: Sequence[str] = STAGES,
    overrides: Sequence[str] = (),
    data_root: str | None = None,
    precisions: Sequence[str] | None = None,
    doublings: int = 0,
    steps: int = 20,
    repeats: int | None = None,
    threads: int | None = None,
    quick: bool = False,
    memory: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures training steps as `tfcorr train` does them, input pipeline included.

    Args:
        configs: configurations; of one for semantic matching the teacher's step is measured.
        overrides: `key=value` words, as for `tfcorr.config.load_config`.
        data_root: where the configurations find their data and weights. Without it photographs are made up,
            networks begin with random weights, and a perceptual loss, which needs weights, is left out.
        precisions: of `PRECISIONS`; by default both.
        doublings: how many smaller batches are measured too, each with half the samples of the next.
        steps: that are timed, after three that are not.
        repeats: of the parts that are timed by themselves (see `fixed_share`); 3 by default.
        threads: that TensorFlow may use; by default as many as this process may run on.
        quick: 4 steps with batches of 2.
        memory: measure the memory too, in a process for each figure.
        progress: called with a line of text before each measurement.

    Returns:
        As `tfcorr.bench.ops.run`. A row: `config`, `stage`, `batch`, `precision`, `median_s`, `fastest_s`,
        `times_s` (of each step, waiting included), `steps_per_s` (steps over the whole time), `idle_share`
        (of the whole time, spent waiting for a batch), `input_s` (what one thread takes to make a batch),
        `fixed_share` (of a step with a fixed matcher, what its extractors and the matching take) and
        `cacheable_share` (of that, what would be saved if the matches were known before), both None for other
        stages; and with `memory` `extra_bytes`, growth of the peak resident memory from before the networks
        are made to the end of the second step.

    Raises:
        ValueError: an argument is out of its range.
        TfcorrError: a configuration or its data cannot be used, or a measuring process failed.
    """
    repeats = 3 if repeats is None else repeats
    threads = usable_cores() if threads is None else threads
    steps = 4 if quick else steps
    for name, value, least in (
        ("steps", steps, 1),
        ("repeats", repeats, 1),
        ("threads", threads, 1),
        ("doublings", doublings, 0),
        ("the number of configurations", len(configs), 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    rows, gemm, measured = [], [], {}
    with tempfile.TemporaryDirectory(prefix="tfcorr-bench-") as made_up:
        for config in configs:
            for precision in PRECISIONS if precisions is None else precisions:
                for halvings in range(doublings, -1, -1):
                    job = {
                        "kind": "train",
                        "config": config,
                        "overrides": list(overrides),
                        "data_root": data_root,
                        "made_up": made_up,
                        "precision": precision,
                        "halvings": halvings,
                        "batch": 2 if quick else None,
                        "threads": threads,
                    }
                    what = f"{config}, {precision}" + (f", batch / {2**halvings}" if halvings else "")
                    progress(f"{what}: time")
                    measured = children.measure(
                        {**job, "measure": "times", "steps": steps, "repeats": repeats}
                    )
                    gemm += measured["gemm_gflops"]
                    row = _row(config, precision, measured)
                    if memory:
                        progress(f"{what}: memory")
                        row |= children.measure({**job, "measure": "memory"})
                    rows.append(row)
    return {
        "machine": reports.machine(measured["versions"]["tensorflow"]),
        "settings": {"repeats": repeats, "threads": threads, "quick": quick, "steps": steps},
        "gemm_gflops": statistics.median(gemm),
        "rows": rows,
        "notes": [] if data_root else ["perceptual loss: it needs weights (--data-root)"],
    }


def _row(config: str, precision: str, measured: dict[str, Any]) -> dict[str, Any]:
    waits, works = measured["waits"], measured["works"]
    times = [wait + work for wait, work in zip(waits, works, strict=True)]
    step = statistics.median(works)
    fixed = measured["fixed"]
    return {
        "config": config,
        "stage": measured["stage"],
        "batch": measured["batch"],
        "precision": precision,
        "median_s": statistics.median(times),
        "fastest_s": min(times),
        "times_s": times,
        "steps_per_s": len(times) / sum(times),
        "idle_share": sum(waits) / sum(times),
        "input_s": measured["input_s"],
        "fixed_share": fixed and fixed["all_s"] / step,
        "cacheable_share": fixed and max(fixed["all_s"] - fixed["features_s"], 0.0) / step,
    }


def format_table(result: dict[str, Any]) -> str:
    """Returns what `run` measured as text."""
    lines = [*reports.heading(result), f"{result['settings']['steps']} steps each", ""]
    header = (
        *("configuration", "precision", "batch", "step", "steps/s", "idle", "input alone"),
        *("fixed networks", "if cached", "memory"),
    )
    rows = [
        (
            row["config"],
            row["precision"],
            str(row["batch"]),
            reports.seconds(row["median_s"]),
            f"{row['steps_per_s']:.2f}",
            f"{row['idle_share']:.1%}",
            reports.seconds(row["input_s"]),
            reports.share(row["fixed_share"]),
            "" if row["cacheable_share"] is None else f"-{row['cacheable_share']:.1%}",
            reports.mebibytes(row, "extra_bytes"),
        )
        for row in result["rows"]
    ]
    lines += reports.align([header, *reports.without_repeated_first(rows)])
    lines += [
        "",
        "step: median with its waiting. idle: share of the whole time in which a step waited for its batch.",
        "input alone: one thread making a batch. fixed networks: share of a step that the extractors and the",
        "matching of a fixed matcher take. if cached: what of it known matches would save. memory: growth of",
        "the peak resident memory, networks, data and two steps.",
    ]
    lines += [f"left out: {note}" for note in result["notes"]]
    return "\n".join(lines)


def point(row: dict[str, Any]) -> tuple[str, float, float] | None:
    """A row's place in the plot of cost against size, see `tfcorr.bench.reports.plot_costs`."""
    return f"{row['config']}, {row['precision']}", row["batch"], row["median_s"]
