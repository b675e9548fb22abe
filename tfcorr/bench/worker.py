"""A process that measures: `python -m tfcorr.bench.worker RESULT.json < job.json`, for `tfcorr.bench.ops`.

Processes of their own give every run the asked number of threads, which TensorFlow fixes when it starts, and
every memory figure a heap in which nothing lay before.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfcorr.bench import measure, peers, workloads
from tfcorr.bench.workloads import Case

PEER = "peer"
IMPLEMENTATIONS = ("custom", "reference")

# Side of the square matrices whose product gives the machine's float32 peak.
_GEMM_SIZE = 2048


def main() -> None:
    """Reads a job from standard input and writes its result to the file that the command names."""
    job = json.load(sys.stdin)
    _limit_threads(job["threads"])
    case = workloads.from_record(job["case"])
    if job["measure"] == "memory":
        result = memory(case, job["contestant"], job["threads"])
    else:
        result = times(case, job["repeats"], job["threads"])
    Path(sys.argv[1]).write_text(json.dumps(result))


def _limit_threads(threads: int) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)


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
    seconds_by_name = measure.interleaved_times({**calls, "gemm": _gemm()}, repeats)
    gemm_flops = 2 * _GEMM_SIZE**3
    return {
        "gemm_gflops": [gemm_flops / seconds / 1e9 for seconds in seconds_by_name.pop("gemm")],
        "times": seconds_by_name,
        "differences": differences,
        "versions": {"tensorflow": tf.__version__} | ({PEER: peers.version(case)} if PEER in calls else {}),
        "notes": notes,
    }


def _gemm() -> Callable[[], Any]:
    import tensorflow as tf

    matrix = tf.random.stateless_normal((_GEMM_SIZE, _GEMM_SIZE), seed=(0, 0))
    return lambda: tf.linalg.matmul(matrix, matrix).numpy()


def _difference(case: Case, found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """How far a contestant's outputs are from the portable implementation's.

    For the matcher the share of patches with another index; else the greatest difference, as a share of the
    output's greatest magnitude.
    """
    if case.op == "match_patches":
        return float(np.mean(found[0] != expected[0]))
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(found, expected, strict=True))


def memory(case: Case, contestant: str, threads: int) -> dict[str, int]:
    """Growth of the peak memory during one call, less the outputs."""
    small = case.small()
    _prepare(small, contestant, small.data(), threads)()
    data = case.data()
    call = _prepare(case, contestant, data, threads)
    growth = measure.peak_memory_growth(call)
    return {"extra_bytes": max(growth - case.output_bytes, 0)}


if __name__ == "__main__":
    main()
