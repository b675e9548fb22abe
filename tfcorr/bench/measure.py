"""Times and memory of callables: interleaved rounds, and the growth of a process's peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Libraries keep their threads spinning for a while after a call, in case another comes (ONNX Runtime for more
# than 20 ms); no contestant shall run beside the leftovers of the one before.
_PAUSE_SECONDS = 0.2
# Where a call takes less, waking threads and processor from that pause would be a good part of it: the second
# of two calls in a row is timed.
_SHORT_SECONDS = 0.1

# Side of the square matrices whose product gives the machine's float32 peak, and the operations of one.
_GEMM_SIZE = 2048
GEMM_FLOPS = 2 * _GEMM_SIZE**3


def limit_threads(threads: int | None) -> None:
    """Sets, before TensorFlow's first computation, how many threads it uses; None: its own choice."""
    if threads is None:
        return
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def interleaved_times(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Times several callables in rounds, so that other load on the machine hits all of them alike.

    Each is called once to warm up; then every round comes to each of them once, in turn from another start,
    and times one call; of those that take less than a tenth of a second, the second of two in a row.

    Args:
        calls: the callables by name; each returns when its work is done.
        repeats: the number of rounds.

    Returns:
        Seconds by name, one number per round.
    """
    once = {name: _seconds(call) for name, call in calls.items()}
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(repeats):
        shift = round_number % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(_PAUSE_SECONDS)
            seconds = _seconds(calls[name])
            if min(once[name], seconds) < _SHORT_SECONDS:
                seconds = _seconds(calls[name])
            times[name].append(seconds)
    return times


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result  # which takes its time, too
    return seconds


def gemm() -> Callable[[], Any]:
    """TensorFlow's product of two float32 matrices, of `GEMM_FLOPS` operations, as a call to be timed."""
    import tensorflow as tf

    matrix = tf.random.stateless_normal((_GEMM_SIZE, _GEMM_SIZE), seed=(0, 0))
    return lambda: memoryview(tf.linalg.matmul(matrix, matrix))  # which waits, and copies nothing


def peak_memory_growth(call: Callable[[], Any]) -> int:
    """Bytes by which the resident memory of this process grows at most while `call` runs.

    To be used in a process of its own, with all inputs resident, after a small call that made the libraries
    start their threads. Linux tells the peak since a reset; elsewhere the peak of the process' whole life
    stands in, which counts too little if it was higher before.

    Args:
        call: what to measure. Its result counts as growth.
    """
    gc.collect()
    _return_free_memory()
    before = _status_bytes("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    before = _life_peak() if before is None else before
    call()
    return max(peak_memory() - before, 0)


def peak_memory() -> int:
    """Bytes of resident memory at the peak since `peak_memory_growth` was called last: the whole process."""
    peak = _status_bytes("VmHWM")
    return _life_peak() if peak is None else peak


def _return_free_memory() -> None:
    """Gives freed memory back to the system, or a call that uses it again would seem to need none."""
    with contextlib.suppress(OSError, AttributeError):  # there is no such function outside of glibc
        ctypes.CDLL(None).malloc_trim(0)


def _status_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _life_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
