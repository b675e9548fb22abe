"""SavedModels of tfcorr's models: one graph for every TensorFlow runtime.

`portable` graphs hold TensorFlow's own operators only and run anywhere, in a stock TensorFlow Serving too.
`custom` graphs hold tfcorr's compiled operators: quicker, for a server that links them or a Python process
that has imported `tfcorr.ops`.

Signatures of a super-resolution model:

    serving_default   lr (B, h, w, 3), reference (B, H, W, 3): float32 in [0, 1], any sizes
                      -> image (B, 4 * h, 4 * w, 3), confidence (B, h, w): float32 in [0, 1]
    from_bytes        image: a PNG or JPEG file; references (N): such files, none for the image itself
                      -> png_bytes: a PNG file of 8 bits a channel
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfcorr.ops import library
from tfcorr.refsr.model import C2Matching
from tfcorr.serving import checks, pipeline
from tfcorr.serving.checks import Limits
from tfcorr.serving.files import ExportError, write_json
from tfcorr.serving.warmup import can_write, write_warmup

__all__ = ["VARIANTS", "export_super_resolution", "write_saved_model"]

#: Variant -> implementation of the ops in it.
VARIANTS = {"portable": "reference", "custom": "custom"}

_INFORMATION_FILE = "assets.extra/export.json"
# Large enough to run every operator, small enough to take a fraction of a second.
_WARMUP_SIDE = 32


def export_super_resolution(
    model: C2Matching,
    folder: str | Path,
    *,
    name: str = "tfcorr",
    variant: str = "portable",
    limits: Limits | None = None,
    information: Mapping | None = None,
) -> None:
    """Writes the SavedModel of a super-resolution model.

    Args:
        model: a built model that computes in float32.
        folder: a new or an empty folder; parents are made.
        name: the model's name, for the warm-up requests.
        variant: `"portable"` or `"custom"`, see above.
        limits: what one call takes on.
        information: JSON values that are kept beside the graph (`assets.extra/export.json`).

    Raises:
        ExportError: another variant.
        tfcorr.ops.OpsUnavailableError: `"custom"` is asked for and the compiled ops cannot be used.
    """
    if variant not in VARIANTS:
        raise ExportError(f"variant is {variant!r}, expected one of {', '.join(VARIANTS)}")
    limits = limits or Limits()

    def upscale(lr, reference):
        lr = checks.checked_images(lr, "lr", limits.pixels)
        reference = checks.checked_images(reference, "reference", limits.reference_pixels)
        lr = checks.same_batch(lr, reference, "lr", "reference")
        return pipeline.upscale(model, lr, reference)._asdict()

    def upscale_files(image, references):
        references = checks.checked_count(references, "references", limits.references)
        lr = checks.decoded(image, "image", limits.pixels)
        # What is wrong with the image is told of the image, also when it is its own reference.
        with tf.control_dependencies([lr]):
            references = tf.identity(references)
        references = tf.cond(tf.size(references) > 0, lambda: references, lambda: tf.expand_dims(image, 0))
        references = checks.checked_total(
            references, "the list of references", "a reference", limits.reference_pixels
        )

        def reference(number):
            return checks.decoded(references[number], "a reference", limits.reference_pixels)

        upscaled = pipeline.upscale_from(model, lr, tf.size(references), reference).image
        pixels = tf.cast(tf.round(upscaled[0] * 255.0), tf.uint8)
        return {"png_bytes": tf.io.encode_png(pixels)}

    # The ranks of images are left open: the graph itself says what is wrong with another one.
    functions = {
        "serving_default": (
            upscale,
            [tf.TensorSpec(None, tf.float32, "lr"), tf.TensorSpec(None, tf.float32, "reference")],
        ),
        "from_bytes": (
            upscale_files,
            [tf.TensorSpec((), tf.string, "image"), tf.TensorSpec((None,), tf.string, "references")],
        ),
    }
    # A server does not open a model that refuses its own warm-up.
    small = pattern(min(_WARMUP_SIDE, math.isqrt(limits.pixels)))
    large = pattern(min(4 * _WARMUP_SIDE, math.isqrt(limits.reference_pixels)))
    warmup = [
        (
            "serving_default",
            {"lr": small[None] / np.float32(255), "reference": large[None] / np.float32(255)},
        ),
        ("from_bytes", {"image": png(small), "references": np.array([png(large)], object)}),
    ]
    write_saved_model(
        folder,
        functions,
        [variable.value for variable in model.variables],
        name=name,
        implementation=VARIANTS[variant],
        warmup=warmup,
        information=information or {},
    )


def write_saved_model(
    folder: str | Path,
    functions: Mapping[str, tuple[Callable, Sequence[tf.TensorSpec]]],
    variables: Sequence[tf.Variable],
    *,
    name: str,
    implementation: str,
    warmup: Sequence[tuple[str, Mapping]],
    information: Mapping,
) -> None:
    """Traces functions of tensors and writes them as the signatures of a SavedModel.

    Args:
        folder: a new or an empty folder.
        functions: name of a signature -> function that returns a dict of tensors, and its inputs.
        variables: all variables that the functions read.
        name: the model's name, for the warm-up requests.
        implementation: `"reference"` or `"custom"`, see :func:`tfcorr.ops.library.using`.
        warmup: see :func:`tfcorr.serving.warmup.write_warmup`; left out where that is not possible.
        information: see :func:`export_super_resolution`.

    Raises:
        tfcorr.ops.OpsUnavailableError: see :func:`export_super_resolution`.
    """
    folder = Path(folder)
    module = tf.Module()
    module.weights = list(variables)
    signatures = {}
    with library.using(implementation):
        for signature, (function, inputs) in functions.items():
            traced = tf.function(function, input_signature=inputs, autograph=False)
            setattr(module, signature, traced)
            signatures[signature] = traced.get_concrete_function()
        # Saving traces anew, so that it belongs here.
        options = tf.saved_model.SaveOptions(namespace_whitelist=["Tfcorr"])
        tf.saved_model.save(module, str(folder), signatures, options)
    if implementation == "reference" and b"Tfcorr>" in (folder / "saved_model.pb").read_bytes():
        raise RuntimeError(
            f"{folder}: the portable graph holds a compiled operator, which is a bug in tfcorr"
        )
    write_json(folder / _INFORMATION_FILE, {**information, "signatures": sorted(signatures)})
    if can_write():
        write_warmup(folder, name, warmup)


def pattern(side: int) -> np.ndarray:
    """A square picture, uint8 (side, side, 3), in which no two places are alike."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    """A PNG file."""
    return tf.io.encode_png(image).numpy()
