"""What a measuring process does for `tfcorr.bench.ops`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tfcorr.bench import measure, peers, workloads
from tfcorr.bench.workloads import Case

PEER = "peer"
IMPLEMENTATIONS = ("custom", "reference")


def run(job: dict[str, Any]) -> dict[str, Any]:
    """A job of `tfcorr.bench.ops`."""
    measure.limit_threads(job["threads"])
    case = workloads.from_record(job["case"])
    if job["measure"] == "memory":
        return memory(case, job["contestant"], job["threads"])
    return times(case, job["repeats"], job["threads"])


def _prepare(case: Case, contestant: str, data, threads: int) -> Callable[[], list[np.ndarray]]:
    if contestant == PEER:
        return peers.prepare(case, data, threads)
    return workloads.prepare(case, contestant, data)


def _contestants(case: Case) -> list[str]:
    return [*IMPLEMENTATIONS, *([PEER] if peers.name(case) else [])]


def _unavailable(error: Exception) -> str | None:
    """Why a contestant is left out, if that is what the error tells."""
    from tfcorr.ops.library import OpsUnavailableError

    return str(error) if isinstance(error, peers.PeerUnavailableError | OpsUnavailableError) else None


def times(case: Case, repeats: int, threads: int) -> dict[str, Any]:
    """Times of all contestants of a case in turn, with a matrix product among them, and their agreement."""
    import tensorflow as tf

    data = case.data()
    calls, notes, outputs = {}, [], {}
    for contestant in _contestants(case):
        try:
            call = _prepare(case, contestant, data, threads)
            outputs[contestant] = call()
            calls[contestant] = call
        except Exception as error:
            if (reason := _unavailable(error)) is None:
                raise
            notes.append(reason)
    expected = outputs.get("reference")
    differences = {name: _difference(case, found, expected) for name, found in outputs.items()}
    del outputs, expected
    seconds_by_name = measure.interleaved_times({**calls, "gemm": measure.gemm()}, repeats)
    return {
        "gemm_gflops": [measure.GEMM_FLOPS / seconds / 1e9 for seconds in seconds_by_name.pop("gemm")],
        "times": seconds_by_name,
        "differences": differences,
        "versions": {"tensorflow": tf.__version__} | ({PEER: peers.version(case)} if PEER in calls else {}),
        "notes": notes,
    }


def _difference(case: Case, found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """How far a contestant's outputs are from the portable implementation's.

    For the matcher the share of patches with another index; else the greatest difference, as a share of the
    output's greatest magnitude.
    """
    if case.op == "match_patches":
        return float(np.mean(found[0] != expected[0]))
    pairs = [
        (np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in zip(found, expected, strict=True)
    ]
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


def memory(case: Case, contestant: str, threads: int) -> dict[str, int]:
    """Growth of the peak memory during one call, less the outputs."""
    small = case.small()
    _prepare(small, contestant, small.data(), threads)()
    data = case.data()
    call = _prepare(case, contestant, data, threads)
    growth = measure.peak_memory_growth(call)
    return {"extra_bytes": max(growth - case.output_bytes, 0)}
