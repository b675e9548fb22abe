"""`tfcorr bench ops`: the two ops beside ONNX Runtime's and PyTorch's ways to do the same."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tfcorr
from tfcorr.bench import peers, workloads
from tfcorr.bench.worker import PEER
from tfcorr.bench.workloads import Case, DeformCase, MatchCase
from tfcorr.errors import TfcorrError
from tfcorr.toolchain import usable_cores

FULL_CASES: tuple[Case, ...] = (
    *(
        DeformCase(size, size, channels, offsets)
        for size, channels in ((160, 64), (80, 128), (40, 256))
        for offsets in ("local", "far")
    ),
    *(
        DeformCase(size, size, channels, gradients=True)
        for size, channels in ((160, 64), (80, 128), (40, 256))
    ),
    MatchCase(80, 125, 256),
)
QUICK_CASES: tuple[Case, ...] = (
    DeformCase(40, 40, 64),
    DeformCase(40, 40, 64, gradients=True),
    MatchCase(24, 30, 64),
)


def run(
    *,
    repeats: int | None = None,
    threads: int | None = None,
    quick: bool = False,
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
        memory: measure the extra memory, too, which takes a process for each figure.
        cases: what to measure instead of `FULL_CASES` or `QUICK_CASES`.
        progress: called with a line of text before each measurement.

    Returns:
        `machine`, `settings`, `gemm_gflops` (float32 product of two 2048 x 2048 matrices, the median over the
        whole run), `rows` and `notes` (lists). A row: `op`, `task`, `case`, `implementation`, `label`,
        `median_s`, `fastest_s`, `times_s`, `ratio` (median over the rounds of its time over the compiled op's
        in the same round; None without the compiled op), `gemm_share` (its operations per second over those
        of the matrix product in the same rounds; None with gradients), `difference` (from the portable
        implementation: the share of other indices, or the greatest difference over the greatest magnitude),
        and with `memory` `extra_bytes` (growth of the peak resident memory in a call, less the outputs).

    Raises:
        ValueError: for `repeats` or `threads` below 1, or no cases.
        TfcorrError: a measuring process failed; the message tells its last words.
    """
    repeats = (3 if quick else 7) if repeats is None else repeats
    threads = usable_cores() if threads is None else threads
    if cases is None:
        cases = QUICK_CASES if quick else FULL_CASES
    for name, value in (("repeats", repeats), ("threads", threads), ("the number of cases", len(cases))):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    rows, notes, gemm = [], [], []
    for case in cases:
        progress(f"{case.op}, {case.task}, {case.title}: time")
        job = {"case": workloads.to_record(case), "threads": threads}
        measured = _measure({**job, "measure": "times", "repeats": repeats})
        gemm += measured["gemm_gflops"]
        notes += [note for note in measured["notes"] if note not in notes]
        for contestant, times in measured["times"].items():
            row = _row(case, contestant, measured, times)
            if memory:
                progress(f"{case.op}, {case.task}, {case.title}: memory of {row['label']}")
                row |= _measure({**job, "measure": "memory", "contestant": contestant})
            rows.append(row)
    return {
        "machine": {
            "processor": _processor(),
            "system": platform.platform(),
            "tensorflow": measured["versions"]["tensorflow"],
            "tfcorr": tfcorr.__version__,
        },
        "settings": {"repeats": repeats, "threads": threads, "quick": quick},
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
        "implementation": contestant,
        "label": label,
        "median_s": statistics.median(times),
        "fastest_s": min(times),
        "times_s": times,
        "ratio": custom and statistics.median(a / b for a, b in zip(times, custom, strict=True)),
        "gemm_share": share,
        "difference": measured["differences"][contestant],
    }


def _measure(job: dict[str, Any]) -> dict[str, Any]:
    """Runs one job of `tfcorr.bench.worker` in a process of its own."""
    package_parent = str(Path(tfcorr.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (package_parent, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {
        "PYTHONPATH": path,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": "tensorflow",
        "OMP_NUM_THREADS": str(job["threads"]),
    }
    with tempfile.TemporaryDirectory(prefix="tfcorr-bench-") as folder:
        result = Path(folder) / "result.json"
        done = subprocess.run(
            [sys.executable, "-m", "tfcorr.bench.worker", str(result)],
            input=json.dumps(job),
            env=environment,
            text=True,
            capture_output=True,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise TfcorrError(f"the measuring process failed: {lines[-1]}")
        return json.loads(result.read_text())


def format_table(result: dict[str, Any]) -> str:
    """Returns what `run` measured as text: a table for each op and task, then the notes."""
    settings, machine = result["settings"], result["machine"]
    lines = [
        f"{machine['processor']}, {settings['threads']} threads, TensorFlow {machine['tensorflow']}, "
        f"tfcorr {machine['tfcorr']}",
        f"medians of {settings['repeats']} interleaved rounds; float32 matrix product "
        f"{result['gemm_gflops']:.0f} GFLOP/s",
    ]
    header = ("case", "implementation", "time", "ratio", "of GEMM", "extra memory", "difference")
    sections: dict[str, list[tuple[str, ...]]] = {}
    for row in result["rows"]:
        section = sections.setdefault(f"{row['op']}, {row['task']}", [])
        share, ratio = row["gemm_share"], row["ratio"]
        section.append(
            (
                row["case"],
                row["label"],
                f"{row['median_s'] * 1e3:.1f} ms",
                "" if ratio is None else f"{ratio:.2f}",
                "" if share is None else f"{share:.0%}",
                f"{row['extra_bytes'] / 2**20:.1f} MiB" if "extra_bytes" in row else "",
                f"{row['difference']:.1e}" if row["difference"] else "0",
            )
        )
    for title, section in sections.items():
        lines += ["", title, *_align([header, *_without_repeated_cases(section)])]
    lines += [
        "",
        "ratio: time over the compiled op's, median over the rounds. of GEMM: operations per second over",
        "those of the matrix product. extra memory: growth of the peak resident memory, less the outputs.",
        "difference: from the portable implementation, over the greatest magnitude; for match_patches the",
        "share of other indices.",
    ]
    lines += [f"left out: {note}" for note in result["notes"]]
    return "\n".join(lines)


def _without_repeated_cases(section: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    previous = [None, *(cells[0] for cells in section)]
    return [
        ("" if cells[0] == before else cells[0], *cells[1:])
        for cells, before in zip(section, previous, strict=False)
    ]


def _align(rows: list[tuple[str, ...]]) -> list[str]:
    """Pads columns to one width: the first two to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or platform.machine()
