"""`tfcorr bench ops`: the two ops beside ONNX Runtime's and PyTorch's ways to do the same."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from tfcorr.bench import children, peers, reports, workloads
from tfcorr.bench.ops_work import PEER
from tfcorr.bench.workloads import Case, DeformCase, MatchCase
from tfcorr.toolchain import usable_cores

_LEVELS = ((160, 64), (80, 128), (40, 256))

FULL_CASES: tuple[Case, ...] = (
    *(
        DeformCase(size, size, channels, offsets)
        for size, channels in _LEVELS
        for offsets in ("local", "far")
    ),
    *(DeformCase(size, size, channels, dtype="bfloat16") for size, channels in _LEVELS),
    *(
        DeformCase(size, size, channels, part=part)
        for size, channels in _LEVELS
        for part in ("backward", "both")
    ),
    MatchCase(80, 125, 256),
)
GROWING_CASES: tuple[Case, ...] = (
    *(DeformCase(40 << (step // 2), 40 << ((step + 1) // 2), 64) for step in range(6)),
    *(MatchCase(20 << (step // 2), 32 << ((step + 1) // 2), 256) for step in range(5)),
)
QUICK_CASES: tuple[Case, ...] = (
    DeformCase(40, 40, 64),
    DeformCase(40, 40, 64, part="backward"),
    MatchCase(24, 30, 64),
)


def run(
    *,
    repeats: int | None = None,
    threads: int | None = None,
    quick: bool = False,
    growing: bool = False,
    memory: bool = True,
    cases: Sequence[Case] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures time and extra memory of both ops, both implementations and, where installed, a peer of each.

    All contestants of a case are timed in one process, in turn; memory is measured in a process for each. A
    peer that is missing is left out, and `notes` says so.

    Args:
        repeats: rounds of timing; 7 by default, 3 with `quick`.
        threads: threads that each contestant may use; by default as many as this process may run on.
        quick: small maps, to see that everything works; the figures then say little.
        growing: series whose sizes double, for a plot of cost against size.
        memory: measure the extra memory, too, which takes a process for each figure.
        cases: what to measure instead of `FULL_CASES`, `GROWING_CASES` or `QUICK_CASES`.
        progress: called with a line of text before each measurement.

    Returns:
        `machine`, `settings`, `gemm_gflops` (float32 product of two 2048 x 2048 matrices, the median over the
        whole run), `rows` and `notes` (lists). A row: `op`, `task`, `case`, `pixels`, `implementation`,
        `label`, `median_s`, `fastest_s`, `times_s`, `ratio` (median over the rounds of its time over the
        compiled op's in the same round; None without the compiled op), `gflops` and `gemm_share` (its
        operations per second, and those over the matrix product's in the same rounds; None with gradients),
        `difference` (from the portable implementation: the share of other indices, or the greatest difference
        over the greatest magnitude), and with `memory` `extra_bytes` (growth of the peak resident memory in a
        call, less the outputs).

    Raises:
        ValueError: for `repeats` or `threads` below 1, or no cases.
        TfcorrError: a measuring process failed; the message tells its last words.
    """
    repeats = (3 if quick else 7) if repeats is None else repeats
    threads = usable_cores() if threads is None else threads
    if cases is None:
        cases = QUICK_CASES if quick else GROWING_CASES if growing else FULL_CASES
    for name, value in (("repeats", repeats), ("threads", threads), ("the number of cases", len(cases))):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    rows, notes, gemm = [], [], []
    for case in cases:
        progress(f"{case.op}, {case.task}, {case.title}: time")
        job = {"kind": "ops", "case": workloads.to_record(case), "threads": threads}
        measured = children.measure({**job, "measure": "times", "repeats": repeats})
        gemm += measured["gemm_gflops"]
        notes += [note for note in measured["notes"] if note not in notes]
        for contestant, times in measured["times"].items():
            row = _row(case, contestant, measured, times)
            if memory:
                progress(f"{case.op}, {case.task}, {case.title}: memory of {row['label']}")
                row |= children.measure({**job, "measure": "memory", "contestant": contestant})
            rows.append(row)
    return {
        "machine": reports.machine(measured["versions"]["tensorflow"]),
        "settings": {"repeats": repeats, "threads": threads, "quick": quick, "growing": growing},
        "gemm_gflops": statistics.median(gemm),
        "rows": rows,
        "notes": notes,
    }


def _row(case: Case, contestant: str, measured: dict[str, Any], times: list[float]) -> dict[str, Any]:
    label = f"tfcorr {contestant}"
    if contestant == PEER:
        label = f"{peers.name(case)} {measured['versions'][PEER]}"
    custom = measured["times"].get("custom")
    share = None
    if case.flops is not None:
        share = statistics.median(
            case.flops / seconds / 1e9 / gemm
            for seconds, gemm in zip(times, measured["gemm_gflops"], strict=True)
        )
    return {
        "op": case.op,
        "task": case.task,
        "case": case.title,
        "pixels": case.pixels,
        "implementation": contestant,
        "label": label,
        "median_s": statistics.median(times),
        "fastest_s": min(times),
        "times_s": times,
        "ratio": custom and statistics.median(a / b for a, b in zip(times, custom, strict=True)),
        "gflops": case.flops and case.flops / statistics.median(times) / 1e9,
        "gemm_share": share,
        "difference": measured["differences"][contestant],
    }


def format_table(result: dict[str, Any]) -> str:
    """Returns what `run` measured as text: a table for each op and task, then the notes."""
    lines = reports.heading(result)
    header = ("case", "implementation", "time", "ratio", "GFLOP/s", "of GEMM", "extra memory", "difference")
    sections: dict[str, list[tuple[str, ...]]] = {}
    for row in result["rows"]:
        section = sections.setdefault(f"{row['op']}, {row['task']}", [])
        section.append(
            (
                row["case"],
                row["label"],
                f"{row['median_s'] * 1e3:.1f} ms",
                "" if row["ratio"] is None else f"{row['ratio']:.2f}",
                "" if row["gflops"] is None else f"{row['gflops']:.0f}",
                reports.share(row["gemm_share"]),
                reports.mebibytes(row, "extra_bytes"),
                f"{row['difference']:.1e}" if row["difference"] else "0",
            )
        )
    for title, section in sections.items():
        lines += ["", title, *reports.align([header, *reports.without_repeated_first(section)])]
    lines += [
        "",
        "ratio: time over the compiled op's, median over the rounds. of GEMM: operations per second over",
        "those of the matrix product. extra memory: growth of the peak resident memory, less the outputs.",
        "difference: from the portable implementation, over the greatest magnitude; for match_patches the",
        "share of other indices.",
    ]
    lines += [f"left out: {note}" for note in result["notes"]]
    return "\n".join(lines)


def point(row: dict[str, Any]) -> tuple[str, float, float] | None:
    """A row's place in the plot of cost against size, see `tfcorr.bench.reports.plot_costs`."""
    return f"{row['op']}, {row['task']}: {row['label']}", row["pixels"], row["median_s"]
