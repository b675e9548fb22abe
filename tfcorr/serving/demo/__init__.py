"""The web page of `tfcorr demo`: both jobs in a browser, with nothing loaded from anywhere else.

`serve` is the way in. The modules import Gradio, which is part of the extra `demo`; this one does not.
"""

from __future__ import annotations

import os
import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path

from tfcorr.errors import TfcorrError

__all__ = ["MAX_PIXELS", "serve"]

MAX_PIXELS = 250_000
"""Pixels of the largest image that the page upscales unless told otherwise: 500x500, 2000x2000 when done."""

# Gradio counts launches at its makers' unless told not to before it is imported.
_ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False"}


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    model: str | Path | None = None,
    semantic_model: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    open_browser: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Loads the models, serves the page and returns when it is interrupted.

    Uploads and results lie in a temporary folder that goes when the page does.

    Args:
        host: address to listen at; `"0.0.0.0"` lets other machines in, without any password.
        port: to listen at.
        model: for super-resolution; a name, a folder or `None` for the default.
        semantic_model: for semantic matching, likewise; without a model that tab says so.
        max_pixels: of the largest image to upscale or to match.
        open_browser: whether to open the page in the default browser.
        report: prints a line.

    Raises:
        TfcorrError: Gradio is not installed, there is no model for super-resolution, or the port is taken.
    """
    os.environ.update(_ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="tfcorr-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            from tfcorr.serving.demo.page import Page
            from tfcorr.serving.demo.server import bound, running, wait_for_interrupt
        except ImportError as error:
            raise TfcorrError(
                f"the page needs the extra 'demo' (pip install 'tfcorr[demo]'): {error}"
            ) from error
        with bound(host, port) as listener:
            page = Page.load(model, semantic_model, max_pixels=max_pixels, folder=Path(folder))
            with running(page.application(), listener) as url:
                report(f"{url} (Ctrl-C ends it)")
                if open_browser:
                    webbrowser.open(url)
                wait_for_interrupt()
