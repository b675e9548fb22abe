"""TensorFlow Serving's REST interface, with nothing but the standard library and NumPy."""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import ssl
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcorr.serving.status import HTTP_STATUS, TransportError

__all__ = ["RestTransport"]

_BLOCK = 1 << 16


class RestTransport:
    """Calls a server over HTTP, one connection a call; one object serves many threads.

    Args:
        url: `http://host:port` or `https://host:port`, with a path where a proxy wants one.
        max_message: bytes of the largest body sent or received.
    """

    def __init__(self, url: str, *, max_message: int):
        self._parts = urllib.parse.urlsplit(url)
        self._max_message = max_message
        self._tls = ssl.create_default_context() if self._parts.scheme == "https" else None

    def predict(
        self,
        model: str,
        version: int | None,
        signature: str,
        inputs: Mapping[str, np.ndarray | bytes | Sequence[bytes]],
        timeout: float,
    ) -> dict[str, Any]:
        """Runs a signature; its outputs are nested lists of numbers, or bytes.

        An output that is the only one comes without its name from a server; it has the name "" here.

        Raises:
            TransportError: the call failed.
        """
        # The column format: the row format knows no scalars.
        body = {
            "signature_name": signature,
            "inputs": {name: _encoded(value) for name, value in inputs.items()},
        }
        answer = self._call("POST", self._path(model, version) + ":predict", body, timeout)
        if "outputs" not in answer:
            raise TransportError("INTERNAL", "the answer has no field 'outputs'")
        outputs = answer["outputs"]
        if not isinstance(outputs, dict) or set(outputs) == {"b64"}:
            outputs = {"": outputs}
        return {name: _decoded(value) for name, value in outputs.items()}

    def status(self, model: str, version: int | None, timeout: float) -> list[dict[str, Any]]:
        """The versions of a model, see `Client.status`."""
        answer = self._call("GET", self._path(model, version), None, timeout)
        return [
            {
                "version": int(found.get("version", 0)),
                "state": str(found.get("state", "UNKNOWN")),
                "error": str(found.get("status", {}).get("error_message", "")),
            }
            for found in answer.get("model_version_status", [])
        ]

    def signatures(self, model: str, version: int | None, timeout: float) -> dict[str, Any]:
        """The signatures of a model, see `Client.signatures`."""
        answer = self._call("GET", self._path(model, version) + "/metadata", None, timeout)
        try:
            return answer["metadata"]["signature_def"]["signature_def"]
        except (KeyError, TypeError) as error:
            raise TransportError("INTERNAL", "the answer has no signatures") from error

    def close(self) -> None:
        """Nothing is held open."""

    def _path(self, model: str, version: int | None) -> str:
        path = f"{self._parts.path.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}"
        return path if version is None else f"{path}/versions/{version}"

    def _call(self, method: str, path: str, body: dict | None, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        payload = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        if payload is not None and len(payload) > self._max_message:
            raise TransportError(
                "RESOURCE_EXHAUSTED", f"Sent message larger than max ({len(payload)} vs. {self._max_message})"
            )
        connection = self._connection(timeout)
        try:
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            connection.sock.settimeout(_left(deadline))
            response = connection.getresponse()
            content = self._read(response, connection, deadline)
        except TimeoutError as error:
            raise TransportError("DEADLINE_EXCEEDED", "no answer in time") from error
        except (OSError, http.client.HTTPException) as error:
            raise TransportError("UNAVAILABLE", str(error) or type(error).__name__) from error
        finally:
            connection.close()
        return _answer(response.status, content)

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        host, port = self._parts.hostname, self._parts.port
        if self._tls:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=timeout)

    def _read(
        self, response: http.client.HTTPResponse, connection: http.client.HTTPConnection, deadline: float
    ) -> bytes:
        """Reads a body piece by piece: the timeout of a socket is one of silence, not of the whole."""
        blocks, size = [], 0
        while block := response.read1(_BLOCK):
            blocks.append(block)
            size += len(block)
            if size > self._max_message:
                raise TransportError(
                    "RESOURCE_EXHAUSTED", f"Received message larger than max ({self._max_message})"
                )
            left = _left(deadline)
            if connection.sock is not None:  # gone where the server closes the connection itself
                connection.sock.settimeout(left)
        if response.length:
            raise TransportError("UNAVAILABLE", f"the connection ended {response.length} bytes too early")
        return b"".join(blocks)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _answer(status: int, content: bytes) -> dict[str, Any]:
    """Parses a body; anything but a JSON object of a successful call is a `TransportError`."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if status == 200 and isinstance(answer, dict) and "error" not in answer:
        return answer
    told = answer.get("error") if isinstance(answer, dict) else None
    details = str(told) if told else f"HTTP status {status} without a message"
    if status == 200:
        raise TransportError("INTERNAL", str(told) if told else "the answer is no JSON object")
    raise TransportError(HTTP_STATUS.get(status, "UNKNOWN"), details)


def _encoded(value: np.ndarray | bytes | Sequence[bytes]) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    return [_encoded(item) for item in value]


def _decoded(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"b64"}:
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise TransportError("INTERNAL", "the answer's base64 is damaged") from error
    return value
