"""What a model server says when it cannot answer, as one sentence for the person who asked.

gRPC and HTTP name the same few conditions differently; here both have gRPC's names.
"""

from __future__ import annotations

import re

from tfcorr.errors import TfcorrError

__all__ = ["HTTP_STATUS", "RETRIED", "ServingError", "TransportError", "sentence"]

RETRIED = frozenset({"UNAVAILABLE"})
"""Conditions that pass by themselves. A prediction changes nothing, so asking again is safe."""

HTTP_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    412: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""HTTP status -> condition; 502 and 503 also come from the load balancers that stand before servers."""

_MARKER = "tfcorr: "
_NODE = re.compile(r"\{\{[^{}]*\}\}\s*")  # TensorFlow's names of functions and nodes
_LONGEST = 400  # characters of a foreign message that are passed on


class ServingError(TfcorrError):
    """A model server gave no image; the message says why, and what would help.

    Attributes:
        code: name of the gRPC status, for example `"INVALID_ARGUMENT"` or `"UNAVAILABLE"`.
    """

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


class TransportError(Exception):
    """One call failed. Inside the client only: it decides between another try and a `ServingError`.

    Attributes:
        code: name of the gRPC status.
        details: the server's or the network's own words.
    """

    def __init__(self, code: str, details: str):
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


def sentence(details: str) -> str:
    """Cuts a server's message down to what concerns the caller.

    The exported graphs mark their own messages with `tfcorr: `; TensorFlow puts the operation's name before
    them and the place in the graph behind them.

    Args:
        details: the message as it came.

    Returns:
        The marked sentence where there is one, else the first line, cut to 400 characters.
    """
    marked = _MARKER in details
    text = details.rpartition(_MARKER)[2] if marked else details
    lines = _NODE.sub("", text).strip().splitlines()
    text = lines[0] if lines else ""
    if marked:
        # Behind an assertion's message TensorFlow closes its own bracket, then names the node.
        text = _before_closing_bracket(text.partition("[[")[0].rstrip())
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _before_closing_bracket(text: str) -> str:
    """The text up to a closing bracket that was not opened in it."""
    depth = 0
    for place, character in enumerate(text):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if depth < 0:
            return text[:place]
    return text
