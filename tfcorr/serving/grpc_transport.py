"""TensorFlow Serving's gRPC interface: `PredictionService` and `ModelService` over one channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcorr.errors import TfcorrError
from tfcorr.serving.status import TransportError

__all__ = ["GrpcTransport"]


class GrpcTransport:
    """Calls a server over gRPC; one object serves many threads.

    Args:
        target: `host:port`, or another of gRPC's names, such as `dns:///host:port`; where a name has several
            addresses the calls go to each in turn.
        secure: whether to use TLS, with the certificate authorities of the system.
        max_message: bytes of the largest message sent or received.

    Raises:
        TfcorrError: grpcio or tensorflow-serving-api is not installed.
    """

    def __init__(self, target: str, *, secure: bool, max_message: int):
        try:
            import grpc
            from tensorflow_serving.apis import (
                get_model_metadata_pb2,
                get_model_status_pb2,
                model_service_pb2_grpc,
                predict_pb2,
                prediction_service_pb2_grpc,
            )
        except ImportError as error:
            raise TfcorrError(
                f"serving over gRPC needs the extra 'serving' (pip install 'tfcorr[serving]'): {error}; "
                "an address with http:// needs nothing more"
            ) from error
        self._grpc = grpc
        self._metadata_messages = get_model_metadata_pb2
        self._status_messages = get_model_status_pb2
        self._predict_messages = predict_pb2
        options = [
            ("grpc.max_send_message_length", max_message),
            ("grpc.max_receive_message_length", max_message),
            ("grpc.lb_policy_name", "round_robin"),
            # The client's own tries are the only ones, and a server that came back is found at once.
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if secure:
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(
        self,
        model: str,
        version: int | None,
        signature: str,
        inputs: Mapping[str, np.ndarray | bytes | Sequence[bytes]],
        timeout: float,
    ) -> dict[str, np.ndarray]:
        """Runs a signature; bytes become a string scalar, a sequence of bytes a string vector.

        Raises:
            TransportError: the call failed.
        """
        import tensorflow as tf

        request = self._predict_messages.PredictRequest()
        self._name(request.model_spec, model, version)
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            dtype = value.dtype if isinstance(value, np.ndarray) else tf.string
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value, dtype=dtype))
        response = self._call(self._predictions.Predict, request, timeout)
        return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}

    def status(self, model: str, version: int | None, timeout: float) -> list[dict[str, Any]]:
        """The versions of a model, see `Client.status`."""
        request = self._status_messages.GetModelStatusRequest()
        self._name(request.model_spec, model, version)
        response = self._call(self._models.GetModelStatus, request, timeout)
        states = self._status_messages.ModelVersionStatus.State
        return [
            {
                "version": int(found.version),
                "state": states.Name(found.state),
                "error": found.status.error_message,
            }
            for found in response.model_version_status
        ]

    def signatures(self, model: str, version: int | None, timeout: float) -> dict[str, Any]:
        """The signatures of a model, see `Client.signatures`."""
        from google.protobuf.json_format import MessageToDict

        request = self._metadata_messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._name(request.model_spec, model, version)
        response = self._call(self._predictions.GetModelMetadata, request, timeout)
        found = self._metadata_messages.SignatureDefMap()
        response.metadata["signature_def"].Unpack(found)
        return MessageToDict(found, preserving_proto_field_name=True)["signature_def"]

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    @staticmethod
    def _name(spec, model: str, version: int | None) -> None:
        spec.name = model
        if version is not None:
            spec.version.value = version

    def _call(self, method, request, timeout: float):
        try:
            return method(request, timeout=timeout)
        except self._grpc.RpcError as error:
            raise TransportError(error.code().name, error.details() or "") from error
