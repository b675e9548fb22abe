"""`export`: a predictor's model as files for another runtime, checked by running them.

One function for all formats; :meth:`tfcorr.SuperResolver.export` and `tfcorr export` call it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import tfcorr
from tfcorr.serving.files import ExportError, new_folder

if TYPE_CHECKING:
    from tfcorr.refsr.predictor import SuperResolver
    from tfcorr.serving.checks import Limits

__all__ = ["FORMATS", "Exported", "export_super_resolver"]

FORMATS = ("saved_model", "tflite", "onnx")

_NO_WARMUP = (
    "no warm-up requests were written: tensorflow-serving-api is not installed "
    '(pip install "tfcorr[serving]")'
)

# How far an export that computes in float32 may be from the Python prediction.
TOLERANCE = 1e-3
# Size of the pair that an export of open sizes is tried on: odd, and the reference larger than four times it.
_TRIAL = (22, 27)
_TRIAL_REFERENCE = (101, 124)
# A pattern that matching can tell apart, with edges: random cells of so many pixels, enlarged smoothly.
_TRIAL_CELL = 3


@dataclass(frozen=True)
class Exported:
    """What an export left.

    Attributes:
        folder: the folder that was written.
        size: bytes of all files in it.
        difference: largest difference of its image from the Python prediction on a trial pair; None if it was
            not tried.
        notes: sentences about what was left out.
    """

    folder: Path
    size: int
    difference: float | None
    notes: tuple[str, ...] = ()


def export_super_resolver(
    upscaler: SuperResolver,
    folder: str | Path,
    *,
    format: str = "saved_model",
    variant: str = "portable",
    size: tuple[int, int] | None = None,
    reference_size: tuple[int, int] | None = None,
    precision: str = "float32",
    representative: str | Path | None = None,
    limits: Limits | None = None,
    verify: bool = True,
    overwrite: bool = False,
) -> Exported:
    """Exports the model of a predictor.

    Args:
        upscaler: the predictor; its model computes in float32.
        folder: what to write, see :mod:`tfcorr.serving.saved_model`, :mod:`tfcorr.serving.tflite` and
            :mod:`tfcorr.serving.onnx` for what is in it; parents are made. If the export fails, nothing is
            left there, or what was there before.
        format: `"saved_model"`, `"tflite"` or `"onnx"`.
        variant: of a SavedModel: `"portable"` (TensorFlow's own operators) or `"custom"` (compiled ones).
        size: (height, width) of the input; None: any. A SavedModel takes any.
        reference_size: (height, width) of the reference; None: four times `size`, or any.
        precision: of TFLite: `"float32"`, `"float16"`, `"int8-dynamic"` or `"int8"`.
        representative: for `"int8"`, a folder of photographs like those that the model will see.
        limits: of a SavedModel: what one call takes on.
        verify: whether to run the export on a small pair; one in float32 that does not agree with the Python
            prediction to 1e-3 is an error. Left out where the runtime is not installed.
        overwrite: whether an export that stands there is replaced.

    Raises:
        ExportError: arguments that do not fit together, a target that exists, or an export that does not
            agree.
        TfcorrError: the compiled ops, or an optional package, are asked for and not there.
    """
    folder = Path(folder)
    _check_choice("format", format, FORMATS)
    _check_choice("variant", variant, ("portable", "custom"))
    _check_choice("precision", precision, ("float32", "float16", "int8-dynamic", "int8"))
    if format != "saved_model" and variant != "portable":
        raise ExportError(f"the variant {variant!r} is one of SavedModels, {format} takes 'portable' alone")
    if format != "tflite" and precision != "float32":
        raise ExportError(f"the precision {precision!r} is one of tflite, {format} takes 'float32' alone")
    if format == "saved_model" and (size or reference_size):
        raise ExportError("a SavedModel takes images of any size; leave the sizes open")
    if (precision == "int8") != (representative is not None):
        raise ExportError(
            "a representative folder of photographs goes with the precision 'int8', and only there"
        )
    if reference_size and not size:
        raise ExportError("a fixed size of the reference needs a fixed size of the input, too")
    if size and not reference_size:
        reference_size = (4 * size[0], 4 * size[1])
    if upscaler.model.restorer.compute_dtype != "float32":
        raise ExportError("the model computes in bfloat16; load it with precision='float32' to export it")

    information = _information(upscaler) | {"format": format, "variant": variant, "precision": precision}
    if size:
        information |= {"size": list(size), "reference_size": list(reference_size)}
    notes, difference = [], None
    with new_folder(folder, overwrite=overwrite) as part:
        if format == "saved_model":
            from tfcorr.serving import saved_model, warmup

            name = upscaler.card.name if upscaler.card else "tfcorr"
            saved_model.export_super_resolution(
                upscaler.model, part, name=name, variant=variant, limits=limits, information=information
            )
            if not warmup.can_write():
                notes.append(_NO_WARMUP)
        else:
            sizes = {"size": size, "reference_size": reference_size, "information": information}
            if format == "tflite":
                from tfcorr.serving import tflite

                pairs = representative and tflite.representative_pairs(representative, size, reference_size)
                tflite.export_super_resolution(
                    upscaler.model, part, precision=precision, representative=pairs, **sizes
                )
            else:
                from tfcorr.serving import onnx

                onnx.export_super_resolution(upscaler.model, part, **sizes)
        if verify:
            difference, note = _try(upscaler, part, size or _TRIAL, reference_size or _TRIAL_REFERENCE)
            notes.extend([note] if note else [])
            if difference is not None and precision == "float32" and not difference <= TOLERANCE:
                raise ExportError(
                    f"{folder}: not written, since its image of a trial pair is {difference:.2g} away from "
                    f"the Python prediction, more than {TOLERANCE:g}"
                )
    return Exported(folder, folder_size(folder), difference, tuple(notes))


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def trial_image(height: int, width: int, seed: int) -> np.ndarray:
    """A pattern to try models on, float32 (height, width, 3) in [0, 1], the same on every machine."""
    from tfcorr.imaging.resize import resize_bicubic

    cells = (height // _TRIAL_CELL + 2, width // _TRIAL_CELL + 2, 3)
    small = np.random.default_rng(seed).random(cells, dtype=np.float32)
    return np.clip(resize_bicubic(small, (height, width)), 0, 1)


def _try(
    upscaler: SuperResolver, folder: Path, size: tuple[int, int], reference_size: tuple[int, int]
) -> tuple[float | None, str | None]:
    """Largest difference of an export from the predictor; or None, and the sentence why it was not tried."""
    from tfcorr.serving.runtimes import load

    try:
        run = load(folder)
    except ExportError as error:
        return None, f"not tried: {error}"
    lr, reference = trial_image(*size, seed=0), trial_image(*reference_size, seed=1)
    expected = upscaler.upscale(lr, reference)
    return float(np.abs(run(lr, reference)[0] - expected).max()), None


def _information(upscaler: SuperResolver) -> dict:
    """Where an export comes from: what it was made of, and on which terms it may be used."""
    card = upscaler.card
    origin = {"model": card.name, "licence": card.licence, "checksums": card.checksums} if card else {}
    return {"tfcorr": tfcorr.__version__, "job": "super-resolution", **origin}


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ExportError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
