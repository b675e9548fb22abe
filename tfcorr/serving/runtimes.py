"""Running exported models, each by the runtime that it is for.

    run = load("exports/compact-int8")
    image = run(lr=low_res, reference=reference)["image"]

What is imported is that runtime and nothing else of weight: a TFLite file needs no TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tfcorr.serving.files import ExportError

__all__ = ["Run", "load"]

Run = Callable[..., dict[str, np.ndarray]]
"""From the inputs by name to the outputs by name, float32, all without the axis of the batch."""


def load(folder: str | Path, threads: int | None = None) -> Run:
    """Loads an export of `tfcorr export`.

    Args:
        folder: the folder that it was written to.
        threads: processor threads; `None` leaves the runtime's own choice. A SavedModel takes those of the
            TensorFlow in this process.

    Returns:
        The function of the export.

    Raises:
        ExportError: the folder holds no export, or the package that runs it is not installed.
    """
    folder = Path(folder)
    if (folder / "saved_model.pb").is_file():
        return _saved_model(folder)
    try:
        file = json.loads((folder / "export.json").read_text(encoding="utf-8"))["file"]
    except (OSError, ValueError, KeyError, TypeError):
        file = None
    if file == "model.tflite":
        return _tflite(folder / file, threads)
    if file == "model.onnx":
        return _onnx(folder / file, threads)
    raise ExportError(f"{folder}: holds no export (expected saved_model.pb or export.json)")


def _saved_model(folder: Path) -> Run:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures["serving_default"]

    def run(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        found = signature(**{name: tf.constant(value[None]) for name, value in inputs.items()})
        return {name: value[0].numpy() for name, value in found.items()}

    # The variables live as long as the object that was loaded.
    run.loaded = loaded
    return run


def _tflite(file: Path, threads: int | None) -> Run:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ExportError(f'{file}: needs ai-edge-litert, pip install "tfcorr[tflite]"') from error
    runner = Interpreter(model_path=str(file), num_threads=threads).get_signature_runner()

    def run(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        found = runner(**{name: value[None] for name, value in inputs.items()})
        return {name: value[0] for name, value in found.items()}

    return run


def _onnx(file: Path, threads: int | None) -> Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(f'{file}: needs onnxruntime, pip install "tfcorr[onnx]"') from error
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    names = [output.name for output in session.get_outputs()]

    def run(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        found = session.run(names, {name: value[None] for name, value in inputs.items()})
        return {name: value[0] for name, value in zip(names, found, strict=True)}

    return run
