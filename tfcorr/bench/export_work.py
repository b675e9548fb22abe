"""What a measuring process does for `tfcorr.bench.export`: runs one export."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcorr.bench import measure
from tfcorr.pretrained import SUPER_RESOLUTION

if TYPE_CHECKING:
    from tfcorr.refsr.predictor import SuperResolver
    from tfcorr.semantic.predictor import SemanticMatcher
    from tfcorr.serving.runtimes import Run

PYTHON = "python"


def run(job: dict[str, Any]) -> dict[str, float]:
    """Runs one contestant on all trials and writes its outputs.

    Args:
        job: `target`, the folder of an export or `python:MODEL`; `job`, what the model is for; `inputs` and
            `outputs`, `.npz` files of arrays `N/NAME`, N the trial's number, to read and to write;
            `repeats`; `threads`.

    Returns:
        `seconds` (of a trial) and `memory` (megabytes), see :class:`tfcorr.bench.export.Measured`.
    """
    target, limit = job["target"], job["threads"]
    if target.startswith(f"{PYTHON}:") or (Path(target) / "saved_model.pb").is_file():
        measure.limit_threads(limit)
    with np.load(job["inputs"]) as stored:
        trials = by_trial(stored)
    loaded = None

    def first() -> None:
        nonlocal loaded
        loaded = _loaded(target, job["job"], limit)
        loaded(**trials[0])

    memory = measure.peak_memory_growth(first)
    outputs, seconds = [], []
    for _ in range(job["repeats"]):
        started = time.perf_counter()
        outputs = [loaded(**trial) for trial in trials]
        seconds.append((time.perf_counter() - started) / len(trials))
    np.savez(job["outputs"], **{f"{n}/{k}": v for n, found in enumerate(outputs) for k, v in found.items()})
    return {"seconds": statistics.median(seconds), "memory": memory / 1e6}


def by_trial(stored: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Arrays named `N/NAME`, N from 0 on, as a list of arrays by name."""
    trials: dict[int, dict[str, np.ndarray]] = {}
    for key, array in stored.items():
        number, _, name = key.partition("/")
        trials.setdefault(int(number), {})[name] = array
    return [trials[number] for number in sorted(trials)]


def load_predictor(model: str, job: str) -> SuperResolver | SemanticMatcher:
    """The predictor of a model for this job."""
    if job == SUPER_RESOLUTION:
        from tfcorr.refsr.predictor import SuperResolver

        return SuperResolver.from_pretrained(model, registration=False)  # as the exports, which have none
    from tfcorr.semantic.predictor import SemanticMatcher

    return SemanticMatcher.from_pretrained(model)


def _loaded(target: str, job: str, threads: int | None) -> Run:
    """The contestant as a function, see :data:`tfcorr.serving.runtimes.Run`."""
    kind, _, model = target.partition(":")
    if kind == PYTHON:
        predictor = load_predictor(model, job)
        if job == SUPER_RESOLUTION:
            return lambda lr, reference: {"image": predictor.upscale(lr, reference)}
        return lambda source, target: {"flow": predictor.match(source, target)}
    if "custom" in target:
        import tfcorr.ops  # noqa: F401
    from tfcorr.serving.runtimes import load

    return load(target, threads)
