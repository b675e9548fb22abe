"""Exported models, and the programs that serve them.

`Client` speaks to a TensorFlow Serving server; it is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Client", "ServingError"]

if TYPE_CHECKING:
    from tfcorr.serving.client import Client
    from tfcorr.serving.status import ServingError

_EXPORTS = {"Client": "tfcorr.serving.client", "ServingError": "tfcorr.serving.status"}


def __getattr__(name: str):
    """Imports a public class when it is first asked for (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tfcorr.serving' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
