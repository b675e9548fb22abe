"""What a measuring process does for `tfcorr.bench.pipeline`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import cycle
from typing import Any

import numpy as np

from tfcorr.bench import measure, peers
from tfcorr.bench.pipeline import KEPT, PORTABLE, TWIN

# What warms up before memory is measured, and what the outputs are compared on.
_SMALL = (12, 16)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """A job of `tfcorr.bench.pipeline`."""
    measure.limit_threads(job["threads"])
    if job["measure"] == "memory":
        return _memory(job)
    return _times(job)


class _Pipelines:
    """The contestants of one model."""

    def __init__(self, job: dict[str, Any]):
        self._name = job["model"]
        self._threads = job["threads"]
        self._budget = job.get("budget")
        self._model = cache(self._make)

    def _make(self, precision: str):
        from tfcorr.bench.networks import make_model

        return make_model(self._name, precision)

    @property
    def model(self):
        """The network in float32."""
        return self._model("float32")

    def upscaling(self, implementation: str, precision: str) -> Callable[..., np.ndarray]:
        """A function of an input and a reference, uint8; see `tfcorr.bench.pipeline.run`."""
        from tfcorr.bench.twin import TorchTwin
        from tfcorr.ops import library
        from tfcorr.refsr.predictor import SuperResolver

        if implementation == TWIN:
            return TorchTwin(self.model, self._threads)
        ops = PORTABLE if implementation == PORTABLE else "custom"
        library.resolve("deform_conv2d", ops)
        upscaler = SuperResolver(self._model(precision), memory=self._budget)

        def upscale(low_res: np.ndarray, reference: np.ndarray) -> np.ndarray:
            with library.using(ops):
                return upscaler.upscale(low_res, reference)

        return upscale

    def output(self, implementation: str, precision: str) -> np.ndarray:
        """What the network itself gives for a small input."""
        from tfcorr.bench.networks import make_images
        from tfcorr.ops import library

        low_res, reference = make_images(*_SMALL)
        if implementation == TWIN:
            return self.upscaling(implementation, precision)(low_res, reference)
        inputs = {
            name: np.float32(image[None]) / np.float32(255)
            for name, image in (("lr", low_res), ("reference", reference))
        }
        with library.using(PORTABLE if implementation == PORTABLE else "custom"):
            return np.asarray(self._model(precision)(inputs))[0]


def _times(job: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf

    from tfcorr.bench.networks import describe_model, make_images, pipeline_flops
    from tfcorr.bench.twin import TorchTwin
    from tfcorr.ops.library import OpsUnavailableError

    pipelines = _Pipelines(job)
    pairs = [make_images(*job["size"], number) for number in range(2)]
    expected = pipelines.output(PORTABLE, "float32")
    calls, found, notes = {}, [], []
    for implementation, precision in job["contestants"]:
        try:
            upscale = pipelines.upscaling(implementation, precision)
            difference = np.abs(pipelines.output(implementation, precision) - expected).max()
        except (peers.PeerUnavailableError, OpsUnavailableError) as error:
            notes.append(str(error))
            continue
        # Another reference in each call, or features would be found again; but for those that are to be kept.
        turns = cycle(pairs[:1] if implementation == KEPT else pairs)
        calls[implementation, precision] = lambda upscale=upscale, turns=turns: upscale(*next(turns))
        found.append(
            {"implementation": implementation, "precision": precision, "difference": float(difference)}
        )
    times = measure.interleaved_times({**calls, "gemm": measure.gemm()}, job["repeats"])
    for one in found:
        one["times"] = times[one["implementation"], one["precision"]]
    twin = any(one["implementation"] == TWIN for one in found)
    return {
        "gemm_gflops": [measure.GEMM_FLOPS / seconds / 1e9 for seconds in times["gemm"]],
        "contestants": found,
        "flops": pipeline_flops(pipelines.model, *job["size"]),
        "network": describe_model(job["model"], pipelines.model),
        "versions": {"tensorflow": tf.__version__} | ({TWIN: TorchTwin.version()} if twin else {}),
        "notes": notes,
    }


def _memory(job: dict[str, Any]) -> dict[str, int]:
    """Growth of the peak memory during one call, less the output."""
    from tfcorr.bench.networks import make_images

    implementation, precision = job["contestant"]
    upscale = _Pipelines(job).upscaling(implementation, precision)
    upscale(*make_images(*_SMALL))
    low_res, reference = make_images(*job["size"])
    if implementation == KEPT:
        upscale(low_res[:8, :8], reference)
    growth = measure.peak_memory_growth(lambda: upscale(low_res, reference))
    output = 16 * low_res.size * (4 if implementation == TWIN else 1)
    return {"extra_bytes": max(growth - output, 0), "peak_bytes": measure.peak_memory()}
