"""What a measuring process does for `tfcorr.bench.export`: runs one export."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from tfcorr.bench import measure

PYTHON = "python"


def run(job: dict[str, Any]) -> dict[str, float]:
    """Runs one contestant on all pairs and writes its images.

    Args:
        job: `target`, the folder of an export or `python:MODEL`; `inputs`, an `.npz` of `lr0`, `reference0`,
            ...; `outputs`, the `.npz` to write `image0`, ... to; `repeats`; `threads`.

    Returns:
        `seconds` (median of a run over all pairs) and `memory` (megabytes).
    """
    target, limit = job["target"], job["threads"]
    if target.startswith(f"{PYTHON}:") or (Path(target) / "saved_model.pb").is_file():
        measure.limit_threads(limit)
    with np.load(job["inputs"]) as stored:
        arrays = dict(stored)
    loaded = None

    def once() -> dict[str, np.ndarray]:
        nonlocal loaded
        loaded = loaded or _loaded(target, limit)
        return {
            f"image{n}": loaded(lr=arrays[f"lr{n}"], reference=arrays[f"reference{n}"])["image"]
            for n in range(len(arrays) // 2)
        }

    memory = measure.peak_memory_growth(once)
    images = once()
    seconds = []
    for _ in range(job["repeats"]):
        started = time.perf_counter()
        images = once()
        seconds.append(time.perf_counter() - started)
    np.savez(job["outputs"], **images)
    return {"seconds": statistics.median(seconds), "memory": memory / 1e6}


def _loaded(target: str, threads: int | None):
    """The contestant as a function, see :data:`tfcorr.serving.runtimes.Run`."""
    kind, _, model = target.partition(":")
    if kind == PYTHON:
        from tfcorr.refsr.predictor import SuperResolver

        upscaler = SuperResolver.from_pretrained(model)
        return lambda lr, reference: {"image": upscaler.upscale(lr, reference)}
    if "custom" in target:
        import tfcorr.ops  # noqa: F401
    from tfcorr.serving.runtimes import load

    return load(target, threads)
