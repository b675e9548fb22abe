"""Serving an ASGI application from a thread of its own, at a port that is known to be free first.

Gradio's `launch` does this too, but calls its own address through whatever proxy the environment names, and
gives up where that fails.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn

from tfcorr.errors import TfcorrError

__all__ = ["bound", "running", "wait_for_interrupt"]


def bound(host: str, port: int) -> socket.socket:
    """Takes a port; 0 is any that is free.

    Raises:
        TfcorrError: it is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TfcorrError(f"port {port} at {host} cannot be used: {reason}; choose another --port") from error


@contextlib.contextmanager
def running(application, listener: socket.socket) -> Iterator[str]:
    """Serves an application as long as the `with` block lasts; gives its address."""
    config = uvicorn.Config(
        application,
        log_level="warning",
        # A page that is open keeps a connection open; it need not be waited for.
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    try:
        yield f"http://{shown}:{port}/"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def wait_for_interrupt() -> None:
    """Returns on SIGINT or SIGTERM; only for the main thread."""
    event = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        event.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
