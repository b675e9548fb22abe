"""Requests that a TensorFlow Serving server answers for itself before it opens a model.

They lie in the SavedModel as `assets.extra/tf_serving_warmup_requests`, and make a server allocate and
optimise before the first caller waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow as tf

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"


def can_write() -> bool:
    """Tells whether `tensorflow-serving-api`, which defines the format, is installed (extra `serving`)."""
    try:
        import tensorflow_serving.apis.prediction_log_pb2  # noqa: F401
    except ImportError:
        return False
    return True


def write_warmup(folder: Path, model: str, requests: Sequence[tuple[str, Mapping[str, tf.Tensor]]]) -> None:
    """Writes warm-up requests into a SavedModel.

    Args:
        folder: the SavedModel's folder.
        model: name of the model.
        requests: name of a signature, and its inputs by name.

    Raises:
        ImportError: `tensorflow-serving-api` is not installed.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    path = folder / WARMUP_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model
            request.model_spec.signature_name = signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
