"""TFLite files of tfcorr's models, of built-in operators only: they run wherever LiteRT's interpreter does.

The graphs are the portable ones of :mod:`tfcorr.serving.pipeline`, for a batch of one. Sizes are fixed, or
left open until the interpreter gets its inputs. The precisions:

    float32       equal to the Python prediction up to rounding
    float16       weights in 16 bits, half the size; computed in float32 where the processor has no float16
    int8-dynamic  weights of the convolutions in 8 bits; activations are quantised while the graph runs
    int8          weights and activations of the convolutions of extractors and restorer in 8 bits, ranges
                  from a representative set; coordinates, correlation and maximum stay in float32, and so do
                  the convolutions whose output is a coordinate, a confidence or the image itself
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfcorr.imaging import downscale, read_image
from tfcorr.imaging.resize import resize_bicubic
from tfcorr.ops import library
from tfcorr.refsr.model import C2Matching
from tfcorr.serving import pipeline
from tfcorr.serving.files import ExportError, write_json

__all__ = [
    "MODEL_FILE",
    "PRECISIONS",
    "convert",
    "export_super_resolution",
    "operators",
    "representative_pairs",
    "representative_photos",
]

MODEL_FILE = "model.tflite"
PRECISIONS = ("float32", "float16", "int8-dynamic", "int8")

# Their outputs are offsets and masks, the gate, and the residual that is added to the image.
_FLOAT_CONVOLUTIONS = ("conv_offset_mask", "gate", "tail_large2", "conv_last")

_IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# Enough for the ranges of activations to settle, few enough to take minutes.
_REPRESENTATIVE_PHOTOS = 16
_REPRESENTATIVE_SIDE = 128

_Size = tuple[int, int]
_Pairs = Sequence[tuple[np.ndarray, np.ndarray]]


def export_super_resolution(
    model: C2Matching,
    folder: str | Path,
    *,
    precision: str = "float32",
    size: _Size | None = None,
    reference_size: _Size | None = None,
    representative: _Pairs | None = None,
    information: Mapping | None = None,
) -> None:
    """Writes `model.tflite` and `export.json` into a folder.

    The file has one signature with the inputs `lr` (1, h, w, 3) and `reference` (1, H, W, 3) and the outputs
    `image` (1, 4 * h, 4 * w, 3) and `confidence` (1, h, w), all float32 in [0, 1].

    Args:
        model: a built model that computes in float32.
        folder: a new or an empty folder; parents are made.
        precision: one of :data:`PRECISIONS`, see above.
        size: (height, width) of the input, if it is fixed.
        reference_size: (height, width) of the reference, if it is fixed.
        representative: for `"int8"`, pairs of inputs and references, float32 in [0, 1], of the fixed sizes if
            there are any; see :func:`representative_pairs`.
        information: JSON values that are kept beside the graph.

    Raises:
        ExportError: another precision, `"int8"` without a representative set, or an operator without a
            built-in form.
    """
    if precision == "int8" and not representative:
        raise ExportError("int8 needs a representative set: pairs of inputs and references")

    def upscale(lr, reference):
        return pipeline.upscale(model, lr, reference)._asdict()

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = convert(
        upscale,
        [
            tf.TensorSpec((1, *(size or (None, None)), 3), tf.float32, "lr"),
            tf.TensorSpec((1, *(reference_size or (None, None)), 3), tf.float32, "reference"),
        ],
        [variable.value for variable in model.variables],
        precision=precision,
        examples=[[image[None] for image in pair] for pair in representative or ()],
        float_convolutions=_FLOAT_CONVOLUTIONS,
    )
    (folder / MODEL_FILE).write_bytes(content)
    write_json(folder / "export.json", {**(information or {}), "file": MODEL_FILE})


def convert(
    function: Callable,
    inputs: Sequence[tf.TensorSpec],
    variables: Sequence[tf.Variable],
    *,
    precision: str = "float32",
    examples: Sequence[Sequence[np.ndarray]] = (),
    quantized: Sequence[str] = ("CONV_2D",),
    float_convolutions: Sequence[str] = (),
) -> bytes:
    """Converts a function of tensors to TFLite with built-in operators only.

    Args:
        function: returns a dict of tensors.
        inputs: its inputs, with names.
        variables: all variables that it reads.
        precision: one of :data:`PRECISIONS`.
        examples: for `"int8"`, values of the inputs.
        quantized: kinds of operators that `"int8"` quantises.
        float_convolutions: parts of names of convolutions that stay in float32 nevertheless.

    Returns:
        The file's content.

    Raises:
        ExportError: another precision, or TFLite has no built-in form of an operator.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    module = tf.Module()
    module.weights = list(variables)
    with library.using("reference"):
        module.run = tf.function(function, input_signature=list(inputs), autograph=False)
        concrete = module.run.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        converter.representative_dataset = lambda: _as_lists(examples)
        # Only ranges are taken here: the converter itself would quantise whatever it can, coordinates too.
        converter._experimental_calibrate_only = True
    try:
        # Converting may trace anew, as it saves the function first.
        with library.using("reference"):
            content = converter.convert()
    except Exception as error:  # The converter has no type of its own for an operator that it cannot express.
        if not (missing := re.search(r"(TF Select|Custom) ops: ([^\n]+)", str(error))):
            raise
        raise ExportError(
            f"TFLite has no built-in operator for a part of this model: {missing[2]}"
        ) from error
    return _quantized(content, quantized, float_convolutions) if precision == "int8" else content


def _as_lists(examples: Sequence[Sequence[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    for example in examples:
        yield [np.asarray(value, np.float32) for value in example]


def _quantized(calibrated: bytes, quantized: Sequence[str], float_convolutions: Sequence[str]) -> bytes:
    """Quantises the operators of some kinds in a calibrated graph to int8, all but the named ones."""
    from tensorflow.lite.python.convert import mlir_quantize

    kinds, kept = set(), []
    for kind, output in operators(calibrated):
        kinds.add(kind)
        if kind in quantized and any(name in output for name in float_convolutions):
            kept.append(output)
    return mlir_quantize(calibrated, denylisted_ops=sorted(kinds - set(quantized)), denylisted_nodes=kept)


def operators(content: bytes) -> Iterator[tuple[str, str]]:
    """Lists the operators of a TFLite file: the kind of each, and the name of its (first) output."""
    from tensorflow.lite.python import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            # Numbers beyond 127 did not fit into the older field.
            kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            output = graph.tensors[operator.outputs[0]].name if len(operator.outputs) else b""
            yield kind, output.decode()


def representative_pairs(
    folder: str | Path, size: _Size | None = None, reference_size: _Size | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Makes a representative set out of a folder of photographs.

    Each of the first 16 photographs, in the order of their names, is cut to its middle. Reduced four times it
    is the input; the reference is in turn the middle itself, which fits everywhere, and that of the next
    photograph.

    Args:
        folder: a folder with PNG, JPEG, WebP, TIFF or BMP files.
        size: (height, width) of the inputs; None: of each what its photograph gives, at most 32.
        reference_size: (height, width) of the references; None: at most 128.

    Returns:
        Inputs and references, float32 (h, w, 3) in [0, 1].

    Raises:
        ExportError: there is no such folder, or no photograph in it.
        ImageError: a file cannot be read.
    """
    middles = [_middle(photo) for photo in representative_photos(folder)]
    pairs = []
    for number, photo in enumerate(middles):
        lr = np.clip(downscale(photo), 0, 1)
        reference = photo if number % 2 == 0 else middles[(number + 1) % len(middles)]
        pairs.append((_resized(lr, size), _resized(reference, reference_size)))
    return pairs


def representative_photos(folder: str | Path, size: _Size | None = None) -> list[np.ndarray]:
    """Reads the first 16 photographs of a folder, in the order of their names.

    Args:
        folder: see :func:`representative_pairs`.
        size: (height, width) to bring them to, not keeping the sides' ratio; None: their own.

    Returns:
        float32 (h, w, 3) in [0, 1].

    Raises:
        ExportError, ImageError: see :func:`representative_pairs`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ExportError(f"{folder}: not a folder (expected one with photographs)")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_TYPES)
    if not paths:
        raise ExportError(f"{folder}: no photographs in it (expected PNG, JPEG, WebP, TIFF or BMP files)")
    return [_resized(_rgb(path), size) for path in paths[:_REPRESENTATIVE_PHOTOS]]


def _rgb(path: Path) -> np.ndarray:
    """float32 (h, w, 3) in [0, 1]."""
    from tfcorr.refsr.pixels import to_rgb

    return to_rgb(read_image(path).pixels, str(path))


def _middle(image: np.ndarray) -> np.ndarray:
    """The middle of an image, at most 128 pixels a side, whole cells of 4."""
    height, width = (max(4, min(side, _REPRESENTATIVE_SIDE) // 4 * 4) for side in image.shape[:2])
    if min(image.shape[:2]) < 4:
        return resize_bicubic(image, (height, width)).clip(0, 1)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _resized(image: np.ndarray, size: _Size | None) -> np.ndarray:
    if size is None or image.shape[:2] == size:
        return image
    return np.clip(resize_bicubic(image, size), 0, 1)
