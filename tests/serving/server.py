"""A small model server that speaks TensorFlow Serving's protocol, for tests of what calls one.

gRPC: `PredictionService` (Predict, GetModelMetadata) and `ModelService` (GetModelStatus), the generated code
of tensorflow-serving-api. REST: the same by HTTP, as far as
https://www.tensorflow.org/tfx/serving/api_rest describes it: the column format, base64 for bytes, outputs
whose names end in `_bytes` as base64. Both execute a real SavedModel. Whatever a server adds beyond that,
batching above all, is not here.

`faults` makes it misbehave on purpose: each entry is taken by one call, in order.

    python tests/serving/server.py MODEL_FOLDER [--grpc-port P] [--rest-port P]
"""

from __future__ import annotations

import argparse
import base64
import collections
import dataclasses
import http.server
import json
import os
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

NAME = "tfcorr"
VERSION = 1
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class Refusal(Exception):
    """A call that is answered with an error."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Fault:
    """What one call meets: a pause, then an error if `code` is given."""

    code: str | None = None
    message: str = "as the test wants it"
    seconds: float = 0.0


class Model:
    """A SavedModel and its signatures."""

    def __init__(self, folder: str | Path):
        #: Held by a call while it has arrays. With one call for each core, all finish as soon as they would
        #: otherwise, and the memory is not that of as many calls as there are clients.
        self.turn = threading.BoundedSemaphore(os.cpu_count() or 1)
        self.loaded = tf.saved_model.load(str(folder))  # kept: its variables die with it
        message = saved_model_pb2.SavedModel()
        message.ParseFromString((Path(folder) / "saved_model.pb").read_bytes())
        self.definitions = dict(message.meta_graphs[0].signature_def)
        self.faults: collections.deque[Fault] = collections.deque()
        self.calls: collections.Counter[str] = collections.Counter()
        self.available = True
        self._lock = threading.Lock()

    def check(self, name: str, version: int | None) -> None:
        if name != NAME or version not in (None, VERSION):
            wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise Refusal("NOT_FOUND", f"Servable not found for request: {wanted}")

    def meet_fault(self) -> None:
        with self._lock:
            self.calls["predict"] += 1
            fault = self.faults.popleft() if self.faults else None
        if fault:
            time.sleep(fault.seconds)
            if fault.code:
                raise Refusal(fault.code, fault.message)

    def predict(self, signature: str, inputs: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
        """Runs a signature; the messages about wrong inputs are those of TensorFlow Serving."""
        signature = signature or "serving_default"
        if signature not in self.definitions:
            raise Refusal("INVALID_ARGUMENT", f'Serving signature key "{signature}" not found.')
        definition = self.definitions[signature]
        missing = sorted(set(definition.inputs) - set(inputs))
        extra = sorted(set(inputs) - set(definition.inputs))
        if missing or extra:
            raise Refusal(
                "INVALID_ARGUMENT",
                f"input size does not match signature: {len(inputs)}!={len(definition.inputs)} "
                f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}.",
            )
        for name, value in inputs.items():
            expected = tf.dtypes.as_dtype(definition.inputs[name].dtype)
            if value.dtype != expected:
                raise Refusal(
                    "INVALID_ARGUMENT", f"{name} expects {expected.name} but {value.dtype.name} is provided"
                )
        try:
            outputs = self.loaded.signatures[signature](**inputs)
        except tf.errors.OpError as error:
            codes = {code.value[0]: code.name for code in grpc.StatusCode}
            raise Refusal(codes[error.error_code], _of_a_session(error.message)) from error
        except (TypeError, ValueError) as error:  # a rank that the signature forbids
            raise Refusal("INVALID_ARGUMENT", str(error)) from error
        # A string scalar comes as bytes, not as an array.
        return {
            name: np.asarray(value.numpy(), object if value.dtype == tf.string else None)
            for name, value in outputs.items()
        }

    def input_of(self, signature: str, name: str):
        definition = self.definitions.get(signature or "serving_default")
        return definition.inputs.get(name) if definition else None


class _Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, model: Model):
        self._model = model

    def Predict(self, request, context):
        try:
            self._model.meet_fault()
            self._model.check(request.model_spec.name, _version(request.model_spec))
            with self._model.turn:
                return self._answer(request)
        except Refusal as error:
            context.abort(grpc.StatusCode[error.code], str(error))

    def _answer(self, request):
        inputs = {name: tf.convert_to_tensor(_array(tensor, name)) for name, tensor in request.inputs.items()}
        outputs = self._model.predict(request.model_spec.signature_name, inputs)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = VERSION
        for name, value in outputs.items():
            dtype = tf.string if value.dtype == object else value.dtype
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value, dtype))
        return response

    def GetModelMetadata(self, request, context):
        try:
            self._model.check(request.model_spec.name, _version(request.model_spec))
        except Refusal as error:
            context.abort(grpc.StatusCode[error.code], str(error))
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.metadata["signature_def"].Pack(_signatures(self._model))
        return response


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, model: Model):
        self._model = model

    def GetModelStatus(self, request, context):
        try:
            self._model.check(request.model_spec.name, _version(request.model_spec))
        except Refusal as error:
            context.abort(grpc.StatusCode[error.code], str(error))
        return _status(self._model)


def _of_a_session(message: str) -> str:
    """An error's message without what Python's functions put before and behind it; servers run sessions."""
    if message.startswith("Graph execution error"):
        message = message.rpartition("\n\n")[2].removeprefix("<stack traces unavailable>\n")
    return message.partition(" [Op:")[0]


def _version(spec) -> int | None:
    return spec.version.value if spec.HasField("version") else None


def _array(tensor, name: str) -> np.ndarray:
    """A tensor of a request; one whose content is not what its shape says is refused."""
    try:
        if any(dim.size < 0 for dim in tensor.tensor_shape.dim):
            raise ValueError("a side is negative")
        return tf.make_ndarray(tensor)
    except (TypeError, ValueError) as error:
        raise Refusal("INVALID_ARGUMENT", f"Tensor :{name} cannot be parsed: {error}") from error


def _signatures(model: Model):
    found = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in model.definitions.items():
        found.signature_def[name].CopyFrom(definition)
    return found


def _status(model: Model):
    states = get_model_status_pb2.ModelVersionStatus
    response = get_model_status_pb2.GetModelStatusResponse()
    state = states.AVAILABLE if model.available else states.LOADING
    response.model_version_status.add(version=VERSION, state=state)
    return response


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model: Model
    max_body: int

    def log_message(self, *_):
        pass

    def do_GET(self):
        try:
            name, version, rest = self._target()
            self.model.check(name, version)
        except Refusal as error:
            return self._refuse(error)
        if rest == "":
            # Field names and 64-bit numbers as the real server writes them.
            return self._answer(200, MessageToDict(_status(self.model), preserving_proto_field_name=True))
        if rest == "/metadata":
            signatures = MessageToDict(_signatures(self.model), preserving_proto_field_name=True)
            return self._answer(
                200, {"model_spec": {"name": name}, "metadata": {"signature_def": signatures}}
            )
        return self._answer(404, {"error": f"Malformed request: GET {self.path}"})

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        if size > self.max_body:
            self.close_connection = True
            return self._answer(413, {"error": f"body of {size} bytes, at most {self.max_body} are taken"})
        body = self.rfile.read(size)
        try:
            self.model.meet_fault()
            name, version, rest = self._target()
            self.model.check(name, version)
            if rest != ":predict":
                raise Refusal("NOT_FOUND", f"Malformed request: POST {self.path}")
            with self.model.turn:
                payload = self._predicted(body)
        except Refusal as error:
            return self._refuse(error)
        return self._send(200, payload)

    def _predicted(self, body: bytes) -> bytes:
        outputs = self.model.predict(*self._inputs(body))
        answers = {name: _json(name, value) for name, value in outputs.items()}
        only = next(iter(answers.values())) if len(answers) == 1 else answers
        return json.dumps({"outputs": only}).encode()

    def _target(self) -> tuple[str, int | None, str]:
        prefix = "/v1/models/"
        if not self.path.startswith(prefix):
            raise Refusal("NOT_FOUND", f"Malformed request: {self.path}")
        path = self.path[len(prefix) :]
        for rest in (":predict", "/metadata", ""):
            if path.endswith(rest):
                path = path.removesuffix(rest)
                break
        name, _, version = path.partition("/versions/")
        return name, int(version) if version else None, rest

    def _inputs(self, body: bytes):
        try:
            request = json.loads(body)
        except ValueError as error:
            raise Refusal("INVALID_ARGUMENT", f"JSON Parse error: {error} at offset: 0") from error
        if not isinstance(request, dict) or "inputs" not in request:
            raise Refusal("INVALID_ARGUMENT", "Missing 'inputs' or 'instances' key")
        signature = request.get("signature_name", "")
        inputs = {}
        for name, value in request["inputs"].items():
            known = self.model.input_of(signature, name)
            dtype = tf.dtypes.as_dtype(known.dtype) if known else None
            try:
                inputs[name] = tf.constant(_from_json(value), dtype)
            except (TypeError, ValueError, tf.errors.OpError) as error:
                raise Refusal("INVALID_ARGUMENT", f"Failed to process element: {name}: {error}") from error
        return signature, inputs

    def _refuse(self, error: Refusal) -> None:
        self._answer(HTTP_STATUS.get(error.code, 500), {"error": str(error)})

    def _answer(self, status: int, content: dict) -> None:
        self._send(status, json.dumps(content).encode())

    def _send(self, status: int, payload: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


def _from_json(value):
    if isinstance(value, dict) and set(value) == {"b64"}:
        return base64.b64decode(value["b64"], validate=True)
    return [_from_json(item) for item in value] if isinstance(value, list) else value


def _json(name: str, value: np.ndarray):
    if value.dtype != object:
        return value.tolist()
    if value.ndim:
        return [_json(name, np.asarray(item, object)) for item in value]
    content = value.item()
    if name.endswith("_bytes"):
        return {"b64": base64.b64encode(content).decode()}
    return content.decode("utf-8")  # fails for a PNG, as JSON has no bytes


class _Http(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a client that went away, which tests do


class Server:
    """Serves a SavedModel until it is closed.

    Args:
        folder: with `saved_model.pb`.
        grpc_port, rest_port: 0 for any that is free.
        max_message: bytes of the largest request taken.
        workers: calls over gRPC that are taken at once, computed or waiting for their turn.
    """

    def __init__(
        self,
        folder,
        *,
        grpc_port: int = 0,
        rest_port: int = 0,
        max_message: int = 64 * 2**20,
        workers: int = 8,
    ):
        self.model = folder if isinstance(folder, Model) else Model(folder)
        limits = [("grpc.max_receive_message_length", max_message), ("grpc.max_send_message_length", -1)]
        # Without SO_REUSEPORT a second server on a port fails instead of sharing it.
        options = [*limits, ("grpc.so_reuseport", 0)]
        self._grpc = grpc.server(futures.ThreadPoolExecutor(workers), options=options)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _Predictions(self.model), self._grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self.model), self._grpc)
        self.grpc_port = self._grpc.add_insecure_port(f"127.0.0.1:{grpc_port}")
        handler = type("Handler", (_Handler,), {"model": self.model, "max_body": max_message})
        self._http = _Http(("127.0.0.1", rest_port), handler)
        self.rest_port = self._http.server_address[1]
        self._grpc.start()
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def addresses(self) -> dict[str, str]:
        return {
            "grpc": f"127.0.0.1:{self.grpc_port}",
            "rest": f"http://127.0.0.1:{self.rest_port}",
        }

    def close(self) -> None:
        self._grpc.stop(grace=None).wait()
        self._http.shutdown()
        self._http.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--grpc-port", type=int, default=8500)
    parser.add_argument("--rest-port", type=int, default=8501)
    args = parser.parse_args()
    with Server(args.folder, grpc_port=args.grpc_port, rest_port=args.rest_port) as server:
        print(f"model {NAME} at {' and '.join(server.addresses.values())}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
