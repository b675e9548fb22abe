"""tfcorr: correspondences between two images with TensorFlow, and what they are good for.

`import tfcorr` is cheap: TensorFlow is imported only when a public class is first used.

    from tfcorr import SemanticMatcher, SuperResolver

    upscaler = SuperResolver.from_pretrained()
    image = upscaler.upscale(low_res, reference)

    matcher = SemanticMatcher.from_pretrained()
    flow = matcher.match(source, target)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

_EXPORTS = {
    "SemanticMatcher": "tfcorr.semantic.predictor",
    "SuperResolver": "tfcorr.refsr.predictor",
    "TfcorrError": "tfcorr.errors",
}

__all__ = ["SemanticMatcher", "SuperResolver", "TfcorrError", "__version__"]

if TYPE_CHECKING:
    from tfcorr.errors import TfcorrError
    from tfcorr.refsr.predictor import SuperResolver
    from tfcorr.semantic.predictor import SemanticMatcher


def __getattr__(name: str):
    """Imports a public class when it is first asked for (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tfcorr' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))
