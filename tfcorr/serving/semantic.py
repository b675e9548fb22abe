"""Semantic matching whole, from two images to a flow, as functions of tensors that can be saved as a graph.

What :meth:`tfcorr.SemanticMatcher.match` computes: the network's own steps, and around them its resizing of
the images to the network's size, its exchange of the two roles, and the flow in pixels.

Signatures of the SavedModel:

    serving_default   source (B, H, W, 3), target (B, H', W', 3): float32 in [0, 1], any sizes
                      -> flow (B, H, W, 2): float32, (dx, dy) in pixels on the source's grid,
                         confidence (B, H, W): float32 in [0, 1]
    from_bytes        source, target: PNG or JPEG files -> flow (H, W, 2), confidence (H, W)

TFLite has no antialiased resizing: there both images come at the network's own size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfcorr.semantic.matching import confidence, flow_in_pixels, resize
from tfcorr.semantic.network import SemanticMatchingNetwork
from tfcorr.serving import checks, saved_model, tflite
from tfcorr.serving.checks import Limits
from tfcorr.serving.files import ExportError, write_json
from tfcorr.serving.pixels import side

__all__ = ["export_saved_model", "export_tflite", "match"]

# Photographs as cameras give them are only reduced here, so that there may be more of them than of inputs
# that are enlarged.
LIMITS = Limits(pixels=2048 * 2048, reference_pixels=2048 * 2048)

_WARMUP_SIDE = 64
_SIDES = ("source", "target")


def match(
    network: SemanticMatchingNetwork, size: int, source: tf.Tensor, target: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Matches pairs of images.

    Args:
        network: built, a student.
        size: side in pixels of the network's images.
        source: float32 (B, H, W, 3) in [0, 1].
        target: float32 (B, H', W', 3) in [0, 1].

    Returns:
        ``flow`` float32 (B, H, W, 2), (dx, dy) in pixels: position in the target = position in the source +
        flow; ``confidence`` float32 (B, H, W) in [0, 1].
    """
    # The network's target is the image whose pixels ask.
    found = network(
        {"source": _network_images(target, size), "target": _network_images(source, size)}, training=False
    )
    trust = confidence(found["flow_t2s"], found["flow_s2t"])
    grid = (side(source, 1), side(source, 2))
    other = [tf.cast(side(target, axis), tf.float32) for axis in (1, 2)]
    return {
        "flow": flow_in_pixels(resize(found["flow_t2s"], grid), other),
        "confidence": tf.clip_by_value(tf.squeeze(resize(trust, grid), axis=3), 0.0, 1.0),
    }


def _network_images(images: tf.Tensor, size: int) -> tf.Tensor:
    """:func:`tfcorr.semantic.features.network_image`: 8 bits, then Pillow's antialiased bilinear resizing."""
    levels = tf.round(images * 255.0)
    if tuple(images.shape[1:3]) != (size, size):
        # Pillow resizes along x first, and rounds after each of the two.
        for shape in ((side(images, 1), size), (size, size)):
            levels = tf.floor(tf.image.resize(levels, shape, antialias=True) + 0.5)
    return tf.clip_by_value(levels, 0.0, 255.0) / 255.0


def export_saved_model(
    network: SemanticMatchingNetwork,
    size: int,
    folder: str | Path,
    *,
    name: str = "tfcorr",
    limits: Limits | None = None,
    information: Mapping | None = None,
) -> None:
    """Writes the SavedModel of a semantic matcher. It has no operator of tfcorr's own: it runs anywhere.

    Args:
        network, size: see :func:`match`.
        folder: a new or an empty folder; parents are made.
        name: the model's name, for the warm-up requests.
        limits: what one call takes on; `pixels` of the source, `reference_pixels` of the target.
        information: JSON values that are kept beside the graph (`assets.extra/export.json`).
    """
    limits = limits or LIMITS

    def match_arrays(source, target):
        source = checks.checked_images(source, "source", limits.pixels)
        target = checks.checked_images(target, "target", limits.reference_pixels)
        source = checks.same_batch(source, target, "source", "target")
        return match(network, size, source, target)

    def match_files(source, target):
        found = match(
            network,
            size,
            checks.decoded(source, "source", limits.pixels),
            checks.decoded(target, "target", limits.reference_pixels),
        )
        return {key: value[0] for key, value in found.items()}

    room = min(limits.pixels, limits.reference_pixels)
    picture = saved_model.pattern(min(_WARMUP_SIDE, math.isqrt(room)))
    array, file = picture[None] / np.float32(255), saved_model.png(picture)
    saved_model.write_saved_model(
        folder,
        {
            "serving_default": (
                match_arrays,
                [tf.TensorSpec(None, tf.float32, side_) for side_ in _SIDES],
            ),
            "from_bytes": (
                match_files,
                [tf.TensorSpec((), tf.string, side_) for side_ in _SIDES],
            ),
        },
        _variables(network),
        name=name,
        implementation="reference",
        warmup=[
            ("serving_default", {"source": array, "target": array}),
            ("from_bytes", {"source": file, "target": file}),
        ],
        information=information or {},
    )


def export_tflite(
    network: SemanticMatchingNetwork,
    size: int,
    folder: str | Path,
    *,
    precision: str = "float32",
    representative: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    information: Mapping | None = None,
) -> None:
    """Writes `model.tflite` and `export.json`.

    The file has one signature: `source` and `target` (1, size, size, 3) to `flow` and `confidence`.

    Args:
        network, size: see :func:`match`.
        folder: a new or an empty folder; parents are made.
        precision: one of :data:`tfcorr.serving.tflite.PRECISIONS`.
        representative: for `"int8"`, pairs of images (size, size, 3), float32 in [0, 1].
        information: JSON values that are kept beside the graph.

    Raises:
        ExportError: see :func:`tfcorr.serving.tflite.convert`; `"int8"` without a representative set.
    """
    if precision == "int8" and not representative:
        raise ExportError("int8 needs a representative set: pairs of images")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = tflite.convert(
        lambda source, target: match(network, size, source, target),
        [tf.TensorSpec((1, size, size, 3), tf.float32, side_) for side_ in _SIDES],
        _variables(network),
        precision=precision,
        examples=[[image[None] for image in pair] for pair in representative or ()],
        quantized=("CONV_2D", "DEPTHWISE_CONV_2D"),
    )
    (folder / tflite.MODEL_FILE).write_bytes(content)
    write_json(folder / "export.json", {**(information or {}), "file": tflite.MODEL_FILE})


def _variables(network: SemanticMatchingNetwork) -> list[tf.Variable]:
    return [variable.value for variable in network.variables]
