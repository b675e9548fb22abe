"""`Client`: upscaling and matching by a model server, over gRPC or REST, as if the model were here.

    from tfcorr.serving import Client

    with Client("localhost:8500") as client:                       # gRPC; "http://localhost:8501" is REST
        large = client.upscale(low_res, reference)                 # arrays in, an array out
        png = client.upscale("small.jpg", ["sharp.jpg"])           # files or bytes in, PNG bytes out

    with Client("localhost:8500", model="birds") as client:        # a semantic matcher
        flow, confidence = client.match(source, target)            # arrays, files or bytes in, arrays out

Arrays go to the signature `serving_default`, files and bytes to `from_bytes`.
"""

from __future__ import annotations

import os
import random
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tfcorr.errors import InputError
from tfcorr.refsr.pixels import from_rgb, to_rgb
from tfcorr.serving.grpc_transport import GrpcTransport
from tfcorr.serving.rest_transport import RestTransport
from tfcorr.serving.status import RETRIED, ServingError, TransportError, sentence

__all__ = ["Client", "Matches"]

SCALE = 4
MAX_MESSAGE = 256 * 2**20

_SECURE = {"grpc": False, "grpcs": True}
_T = TypeVar("_T")

Array = np.ndarray
Encoded = bytes | str | os.PathLike


class Matches(NamedTuple):
    """What a semantic matcher finds.

    Attributes:
        flow: float32 (H, W, 2) on the source's grid, (dx, dy) in pixels: target position = source position +
            flow.
        confidence: float32 (H, W) in [0, 1]: whether both directions agree.
    """

    flow: Array
    confidence: Array


class Client:
    """Calls one model of a TensorFlow Serving server.

    Every call has a deadline that holds for all of its tries together. A server that is unavailable is asked
    again after a pause that doubles each time; any other failure is final. A client may be used from many
    threads.

    Args:
        address: `host:port` or `grpc://host:port` for gRPC, `grpcs://` for gRPC with TLS, `dns:///host:port`
            for gRPC with all servers behind a name in turn; `http://host:port` or `https://host:port` for
            REST.
        model: its name at the server.
        version: a version number; `None` is the server's newest.
        deadline: seconds that a call may take, unless the call says otherwise.
        attempts: how often a call is tried while the server is unavailable.
        backoff: seconds of the first pause between tries; each is shortened by a random part of up to a half,
            so that clients do not come back all at once.
        max_message: bytes of the largest request sent and the largest answer accepted.

    Raises:
        InputError: an argument has another value than described.
        TfcorrError: gRPC is asked for and the extra `serving` is not installed.
    """

    def __init__(
        self,
        address: str,
        *,
        model: str = "tfcorr",
        version: int | None = None,
        deadline: float = 120.0,
        attempts: int = 5,
        backoff: float = 0.2,
        max_message: int = MAX_MESSAGE,
    ):
        if not model:
            raise InputError("model is empty, expected the model's name at the server")
        for name, value in (("deadline", deadline), ("attempts", attempts), ("max_message", max_message)):
            if not value > 0:
                raise InputError(f"{name} is {value}, expected a positive number")
        if not backoff >= 0:
            raise InputError(f"backoff is {backoff}, expected seconds of at least 0")
        self.address = address
        self.model = model
        self.version = version
        self.deadline = deadline
        self.attempts = attempts
        self.backoff = backoff
        self.max_message = max_message
        self._transport = _transport(address, max_message)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the client cannot be used afterwards."""
        self._transport.close()

    def upscale(
        self,
        image: Array | Encoded,
        references: Array | Encoded | Sequence[Array] | Sequence[Encoded] | None = None,
        *,
        registration: bool = False,
        deadline: float | None = None,
    ) -> Array | bytes:
        """Upscales an image four times.

        Args:
            image: an array (h, w, 3) RGB, or (h, w) or (h, w, 1) grey, uint8, uint16, or float32 in [0, 1];
                or an image file's path or content.
            references: sharp images of any size, of the same kind as `image`: one array; one file or content,
                or several of these; or `None`: the image is its own reference.
            registration: bring the reference into the view of the image first, here, as `SuperResolver` does
                with a model whose card says so; for arrays.
            deadline: seconds for this call.

        Returns:
            For an array an array with its dtype and axes, both sides four times as long; for a file or bytes
            the content of a PNG file.

        Raises:
            InputError: an argument is none of these, an image has no pixels or values outside [0, 1], an
                image is too large for a message, or files are to be registered.
            ServingError: the server refused the images, could not be reached, or did not answer in time.
            OSError: a file cannot be read.
        """
        if isinstance(image, np.ndarray):
            return self._upscale_array(image, references, registration, deadline)
        if registration:
            raise InputError("registration is for arrays, image is a file")
        return self._upscale_encoded(image, references, deadline)

    def match(
        self, source: Array | Encoded, target: Array | Encoded, *, deadline: float | None = None
    ) -> Matches:
        """For every pixel of the source, where it lies in the target; for a model of semantic matching.

        Args:
            source, target: two arrays, see `upscale`; or two image files, by path or content. Any sizes.
            deadline: seconds for this call.

        Returns:
            Flow and confidence, on the source's grid.

        Raises:
            InputError, ServingError, OSError: see `upscale`.
        """
        if isinstance(source, np.ndarray) != isinstance(target, np.ndarray):
            raise InputError("source and target are an array and a file, expected two of one kind")
        if isinstance(source, np.ndarray):
            signature, lead = "serving_default", (1,)
            inputs = {"source": to_rgb(source, "source")[None], "target": to_rgb(target, "target")[None]}
            size = sum(image.nbytes for image in inputs.values())
            self._check_size(4 * 3 * source.shape[0] * source.shape[1], "the flow")
        else:
            signature, lead = "from_bytes", ()
            inputs = {
                "source": _content(source, "source", self.max_message),
                "target": _content(target, "target", self.max_message),
            }
            size = sum(map(len, inputs.values()))
        self._check_size(size, "the images")
        outputs = self._predict(signature, inputs, deadline)
        try:
            flow, confidence = (np.asarray(outputs[name], np.float32) for name in Matches._fields)
        except (KeyError, TypeError, ValueError) as error:
            raise self._stranger("no flow and confidence") from error
        grid = flow.shape[len(lead) : -1]
        wanted = source.shape[:2] if lead else grid
        if flow.shape != (*lead, *wanted, 2) or len(grid) != 2 or confidence.shape != (*lead, *grid):
            raise self._stranger(f"a flow of shape {flow.shape}, expected {(*lead, 'H', 'W', 2)}")
        return Matches(flow.reshape(*grid, 2), confidence.reshape(grid))

    def status(self, *, deadline: float | None = None) -> list[dict[str, Any]]:
        """Returns the versions of the model: dictionaries with `version`, `state` (such as `"AVAILABLE"`) and
        `error`.

        Raises:
            ServingError: the model is unknown, or the server cannot be reached.
        """
        return self._call(lambda left: self._transport.status(self.model, self.version, left), deadline)

    def signatures(self, *, deadline: float | None = None) -> dict[str, Any]:
        """Returns the model's signatures: name -> `inputs` and `outputs` as in TensorFlow's `SignatureDef`.

        Raises:
            ServingError: the model is unknown, or the server cannot be reached.
        """
        return self._call(lambda left: self._transport.signatures(self.model, self.version, left), deadline)

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Waits until a version of the model is available, as after a server's start.

        Raises:
            ServingError: there is none after `timeout` seconds; with the code of the last answer.
        """
        end = time.monotonic() + timeout
        last = ServingError(f"{self.address}: model {self.model!r} is not available", "UNAVAILABLE")
        while (left := end - time.monotonic()) > 0:
            try:
                states = self._transport.status(self.model, self.version, left)
            except TransportError as error:
                if error.code not in RETRIED | {"NOT_FOUND", "DEADLINE_EXCEEDED"}:
                    raise self._failure(error, 1, timeout) from error
                last = self._failure(error, 1, timeout)
            else:
                if any(found["state"] == "AVAILABLE" for found in states):
                    return
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))
        raise ServingError(f"{last} (waited {timeout:g} s)", last.code)

    def _upscale_array(
        self, image: Array, references: Any, registration: bool, deadline: float | None
    ) -> Array:
        if isinstance(references, (list, tuple)) and len(references) == 1:
            references = references[0]
        if isinstance(references, (list, tuple)) and not references:
            references = None
        if references is not None and not isinstance(references, np.ndarray):
            several = isinstance(references, (list, tuple))
            raise InputError(
                f"references is {f'{len(references)} of them' if several else type(references).__name__}, "
                "expected one array beside an image that is an array; several references go with files or "
                "bytes"
            )
        low_res = to_rgb(image, "image")
        reference = low_res if references is None else to_rgb(references, "references")
        if registration and references is not None:
            from tfcorr.refsr.registration import register

            found = register(low_res, reference)
            reference = reference if found is None else found.warp(reference)
        height, width = low_res.shape[:2]
        answer = 4 * low_res.size * SCALE * SCALE
        self._check_size(low_res.nbytes + reference.nbytes, f"an image {width}x{height} with its reference")
        self._check_size(answer, f"the upscaled image {SCALE * width}x{SCALE * height}")
        outputs = self._predict(
            "serving_default", {"lr": low_res[None], "reference": reference[None]}, deadline
        )
        found = _only(outputs, "image", self.address)
        try:
            upscaled = np.asarray(found, np.float32)
        except (TypeError, ValueError) as error:  # texts, or lists of different lengths
            raise self._stranger("no array") from error
        expected = (1, SCALE * height, SCALE * width, 3)
        if upscaled.shape != expected:
            raise self._stranger(f"shape {upscaled.shape}, expected {expected}")
        return from_rgb(upscaled[0], image)

    def _upscale_encoded(self, image: Encoded, references: Any, deadline: float | None) -> bytes:
        content = _content(image, "image", self.max_message)
        if references is None:
            references = []
        elif isinstance(references, (bytes, bytearray, memoryview, str, os.PathLike)):
            references = [references]
        contents = [
            _content(reference, f"reference {number}", self.max_message)
            for number, reference in enumerate(references)
        ]
        self._check_size(len(content) + sum(map(len, contents)), "the image with its references")
        inputs = {"image": content, "references": contents or [content]}
        png = _only(self._predict("from_bytes", inputs, deadline), "png_bytes", self.address)
        png = png.item() if isinstance(png, np.ndarray) and png.size == 1 else png
        if not isinstance(png, bytes):
            raise self._stranger("no bytes")
        return png

    def _stranger(self, answer: str) -> ServingError:
        """The error for an answer that no export of tfcorr gives."""
        return ServingError(
            f"the server {self.address}: model {self.model!r} answered with {answer}; it is none of tfcorr's",
            "INTERNAL",
        )

    def _check_size(self, size: int, what: str) -> None:
        if size > self.max_message:
            raise InputError(
                f"{what} takes {size / 2**20:.1f} MiB, more than a message may have "
                f"({self.max_message / 2**20:.1f} MiB, max_message)"
            )

    def _predict(self, signature: str, inputs: Mapping[str, Any], deadline: float | None) -> dict[str, Any]:
        return self._call(
            lambda left: self._transport.predict(self.model, self.version, signature, inputs, left), deadline
        )

    def _call(self, function: Callable[[float], _T], deadline: float | None) -> _T:
        """Calls `function(seconds left)`, again while the server is unavailable and there is time."""
        deadline = self.deadline if deadline is None else deadline
        start = time.monotonic()
        pause = self.backoff
        attempt = 1
        while True:
            left = deadline - (time.monotonic() - start)
            if left <= 0:
                late = TransportError("DEADLINE_EXCEEDED", "no time left")
                raise self._failure(late, attempt, deadline)
            try:
                return function(left)
            except TransportError as error:
                waited = time.monotonic() - start
                sleep = pause * random.uniform(0.5, 1.0)
                final = error.code not in RETRIED or attempt >= self.attempts
                if final or waited + sleep >= deadline:
                    raise self._failure(error, attempt, deadline) from error
            time.sleep(sleep)
            pause *= 2
            attempt += 1

    def _failure(self, error: TransportError, attempts: int, deadline: float) -> ServingError:
        """The sentence for a failed call."""
        told = sentence(error.details)
        where = f"the server {self.address}"
        tries = "once" if attempts == 1 else f"{attempts} times"
        version = "" if self.version is None else f" version {self.version}"
        message = {
            "INVALID_ARGUMENT": f"{where} refused the request: {told}",
            "NOT_FOUND": f"{where} has no model {self.model!r}{version}: {told}",
            "UNAVAILABLE": f"{where} is not available, tried {tries}: {told}",
            "DEADLINE_EXCEEDED": f"{where} gave no answer within {deadline:g} s; "
            "a smaller image takes less, or give a longer deadline",
            "RESOURCE_EXHAUSTED": f"{where}: the message is too large, or the server is out of memory or has "
            f"too many requests: {told}",
            "UNIMPLEMENTED": f"{where} does not speak TensorFlow Serving's protocol: {told}",
        }.get(error.code, f"{where} failed with {error.code}: {told}")
        return ServingError(message.removesuffix(": "), error.code)


def _transport(address: str, max_message: int) -> GrpcTransport | RestTransport:
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "grpc", address
    if scheme == "dns":
        return GrpcTransport(address, secure=False, max_message=max_message)
    if scheme in _SECURE and rest:
        return GrpcTransport(rest, secure=_SECURE[scheme], max_message=max_message)
    if scheme not in ("http", "https") or not _is_url(address):
        raise InputError(
            f"address is {address!r}, expected host:port or one with grpc://, grpcs://, http:// or https://"
        )
    return RestTransport(address, max_message=max_message)


def _is_url(address: str) -> bool:
    """Whether an address names a host, and a port that can be one if it names a port."""
    try:
        parts = urllib.parse.urlsplit(address)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _content(image: Any, name: str, limit: int) -> bytes:
    """The bytes of an encoded image; of a file no more are read than a message may have."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if not isinstance(image, (str, os.PathLike)):
        raise InputError(f"{name} is {type(image).__name__}, expected an array, a path or bytes")
    with open(image, "rb") as file:
        content = file.read(limit + 1)
    if not content:
        raise InputError(f"{os.fspath(image)}: empty, expected an image file")
    return content


def _only(outputs: Mapping[str, Any], name: str, address: str) -> Any:
    """The named output, or the only one: REST answers do not name a single output."""
    if name in outputs:
        return outputs[name]
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    found = ", ".join(sorted(outputs)) or "none"
    raise ServingError(
        f"the server {address}: the answer has the outputs {found}, expected {name!r}", "INTERNAL"
    )
