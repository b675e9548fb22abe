"""Running exported super-resolution models, each by the runtime that it is for.

    run = load("exports/compact-int8")
    image, confidence = run(low_res, reference)

What is imported is that runtime and nothing else of weight: a TFLite file needs no TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tfcorr.serving.files import ExportError

__all__ = ["Run", "load"]

Run = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From float32 (h, w, 3) and (H, W, 3) in [0, 1] to the image (4h, 4w, 3) and the confidence (h, w)."""


def load(folder: str | Path, threads: int | None = None) -> Run:
    """Loads an export of `tfcorr export`.

    Args:
        folder: the folder that it was written to.
        threads: processor threads; `None` leaves the runtime's own choice. A SavedModel takes those of the
            TensorFlow in this process.

    Returns:
        A function of an input and a reference.

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

    def run(lr: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = signature(lr=tf.constant(lr[None]), reference=tf.constant(reference[None]))
        return found["image"][0].numpy(), found["confidence"][0].numpy()

    # The variables live as long as the object that was loaded.
    run.loaded = loaded
    return run


def _tflite(file: Path, threads: int | None) -> Run:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ExportError(f'{file}: needs ai-edge-litert, pip install "tfcorr[tflite]"') from error
    runner = Interpreter(model_path=str(file), num_threads=threads).get_signature_runner()

    def run(lr: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = runner(lr=lr[None], reference=reference[None])
        return found["image"][0], found["confidence"][0]

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

    def run(lr: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image, confidence = session.run(
            ["image", "confidence"], {"lr": lr[None], "reference": reference[None]}
        )
        return image[0], confidence[0]

    return run
