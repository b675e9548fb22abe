"""`export`: a predictor's model as files for another runtime, checked by running them.

One function for each job, for all formats; :meth:`tfcorr.SuperResolver.export`,
:meth:`tfcorr.SemanticMatcher.export` and `tfcorr export` call them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import tfcorr
from tfcorr.serving.files import ExportError, new_folder

if TYPE_CHECKING:
    from tfcorr.pretrained import ModelCard
    from tfcorr.refsr.predictor import SuperResolver
    from tfcorr.semantic.predictor import SemanticMatcher
    from tfcorr.serving.checks import Limits

__all__ = ["FORMATS", "Exported", "export_semantic_matcher", "export_super_resolver"]

FORMATS = ("saved_model", "tflite", "onnx")
VARIANTS = ("portable", "custom")
PRECISIONS = ("float32", "float16", "int8-dynamic", "int8")

_NO_WARMUP = (
    "no warm-up requests were written: tensorflow-serving-api is not installed "
    '(pip install "tfcorr[serving]")'
)

# How far an export that computes in float32 may be from the Python prediction: of images in [0, 1], of flows
# in shares of the target's side.
TOLERANCE = 1e-3
# Size of the pair that an export of open sizes is tried on: odd, and the reference larger than four times it.
_TRIAL = (22, 27)
_TRIAL_REFERENCE = (101, 124)
_TRIAL_SHIFT = (8, 12)
# Bytes: neither tiles nor a reduced reference.
_UNBOUNDED = 2**50
# A pattern that matching can tell apart, with edges: random cells of so many pixels, enlarged smoothly.
_TRIAL_CELL = 3

_Size = tuple[int, int]


@dataclass(frozen=True)
class Exported:
    """What an export left.

    Attributes:
        folder: the folder that was written.
        size: bytes of all files in it.
        difference: largest difference from the Python prediction on a trial pair: of the image in [0, 1], of
            the flow in shares of the target's side; None if it was not tried.
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
    size: _Size | None = None,
    reference_size: _Size | None = None,
    precision: str = "float32",
    representative: str | Path | None = None,
    limits: Limits | None = None,
    verify: bool = True,
    overwrite: bool = False,
) -> Exported:
    """Exports the model of a `SuperResolver`.

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
        verify: whether to run the export on a small pair, or one of the fixed sizes; one in float32 that does
            not agree with the Python prediction to 1e-3 is an error. Left out where the runtime is not
            installed.
        overwrite: whether an export that stands there is replaced.

    Raises:
        ExportError: arguments that do not fit together, a target that exists, or an export that does not
            agree.
        TfcorrError: the compiled ops, or an optional package, are asked for and not there.
    """
    _check(format, variant, precision, representative)
    if format == "saved_model" and (size or reference_size):
        raise ExportError("a SavedModel takes images of any size; leave the sizes open")
    if reference_size and not size:
        raise ExportError("a fixed size of the reference needs a fixed size of the input, too")
    if size and not reference_size:
        reference_size = (4 * size[0], 4 * size[1])
    if format == "onnx" and upscaler.model.restorer.config.detail:
        raise ExportError(
            "this model aligns the reference's detail to the pixel, which the ONNX export does not know; "
            "saved_model and tflite do, or take a model without it (c2-compact)"
        )
    if upscaler.model.restorer.compute_dtype != "float32":
        raise ExportError("the model computes in bfloat16; load it with precision='float32' to export it")
    model, name = upscaler.model, _name(upscaler.card)
    information = _information("super-resolution", upscaler.card, format, variant, precision)
    if size:
        information |= {"size": list(size), "reference_size": list(reference_size)}
    sizes = {"size": size, "reference_size": reference_size, "information": information}

    def write(part: Path) -> None:
        if format == "saved_model":
            from tfcorr.serving import saved_model

            saved_model.export_super_resolution(
                model, part, name=name, variant=variant, limits=limits, information=information
            )
        elif format == "tflite":
            from tfcorr.serving import tflite

            pairs = representative and tflite.representative_pairs(representative, size, reference_size)
            tflite.export_super_resolution(model, part, precision=precision, representative=pairs, **sizes)
        else:
            if find_spec("onnx") is None:
                raise ExportError('ONNX needs the package onnx, pip install "tfcorr[onnx]"')
            from tfcorr.serving import onnx

            onnx.export_super_resolution(model, part, **sizes)

    def difference(run: Callable) -> float:
        from tfcorr.refsr.predictor import SuperResolver

        # What the graph computes: in one piece, exactly matched, once.
        plain = SuperResolver(model, memory=_UNBOUNDED, matching="exact")
        lr, reference = _trial_pair(size or _TRIAL, reference_size or _TRIAL_REFERENCE)
        found = run(lr=lr, reference=reference)["image"]
        return float(np.abs(found - plain.upscale(lr, reference)).max())

    return _export(folder, write, difference if verify else None, format, precision, overwrite)


def export_semantic_matcher(
    matcher: SemanticMatcher,
    folder: str | Path,
    *,
    format: str = "saved_model",
    variant: str = "portable",
    precision: str = "float32",
    representative: str | Path | None = None,
    limits: Limits | None = None,
    verify: bool = True,
    overwrite: bool = False,
) -> Exported:
    """Exports the model of a `SemanticMatcher`.

    Args:
        matcher: the predictor.
        folder: what to write, see :mod:`tfcorr.serving.semantic` for what is in it; parents are made.
        format: `"saved_model"`, or `"tflite"` for images of the network's own size.
        variant: of a SavedModel; both are the same, since the network has no operator of tfcorr's own.
        precision, representative, limits, verify, overwrite: see :func:`export_super_resolver`.

    Raises:
        ExportError: see :func:`export_super_resolver`; also for the format `"onnx"`.
    """
    _check(format, variant, precision, representative)
    if format == "onnx":
        raise ExportError("semantic matching is exported as saved_model or tflite, not as onnx")
    size = matcher.size
    information = _information("semantic-matching", matcher.card, format, variant, precision)
    information["network_size"] = size

    def write(part: Path) -> None:
        from tfcorr.serving import semantic

        if format == "saved_model":
            semantic.export_saved_model(
                matcher.network,
                size,
                part,
                name=_name(matcher.card),
                limits=limits,
                information=information,
            )
        else:
            pairs = None
            if representative:
                from tfcorr.serving.tflite import representative_photos

                photos = representative_photos(representative, (size, size))
                pairs = list(zip(photos, photos[1:] + photos[:1], strict=True))
            semantic.export_tflite(
                matcher.network,
                size,
                part,
                precision=precision,
                representative=pairs,
                information=information,
            )

    def difference(run: Callable) -> float:
        source, target = (np.rint(255 * trial_image(size, size, seed=s)) / 255 for s in (0, 1))
        source, target = source.astype(np.float32), target.astype(np.float32)
        found = run(source=source, target=target)["flow"]
        return float(np.abs(found - matcher.match(source, target)).max()) / size

    return _export(folder, write, difference if verify else None, format, precision, overwrite)


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def trial_image(height: int, width: int, seed: int) -> np.ndarray:
    """A pattern to try models on, float32 (height, width, 3) in [0, 1], the same on every machine."""
    from tfcorr.imaging.resize import resize_bicubic

    cells = (height // _TRIAL_CELL + 2, width // _TRIAL_CELL + 2, 3)
    small = np.random.default_rng(seed).random(cells, dtype=np.float32)
    return np.clip(resize_bicubic(small, (height, width)), 0, 1)


def _trial_pair(size: _Size, reference_size: _Size) -> tuple[np.ndarray, np.ndarray]:
    """An input and a reference with the same in it at its scale, moved: clear matches, which rounding does
    not change. A larger reference goes on with mirror images."""
    from tfcorr.imaging.resize import resize_bicubic

    lr = trial_image(*size, seed=0)
    large = np.clip(resize_bicubic(lr, (4 * size[0], 4 * size[1])), 0, 1)
    room = [(0, max(0, wanted - side)) for wanted, side in zip(reference_size, large.shape, strict=False)]
    large = np.pad(large, [*room, (0, 0)], mode="reflect")[: reference_size[0], : reference_size[1]]
    return lr, np.roll(large, _TRIAL_SHIFT, axis=(0, 1))


def _export(
    folder: str | Path,
    write: Callable[[Path], None],
    difference: Callable[[Callable], float] | None,
    format: str,
    precision: str,
    overwrite: bool,
) -> Exported:
    """Writes an export beside its place, tries it, and puts it there."""
    folder, notes, found = Path(folder), [], None
    with new_folder(folder, overwrite=overwrite) as part:
        write(part)
        if format == "saved_model":
            from tfcorr.serving.warmup import can_write

            notes.extend([] if can_write() else [_NO_WARMUP])
        if difference is not None:
            from tfcorr.serving import runtimes

            try:
                run = runtimes.load(part)
            except ExportError as error:
                notes.append(f"not tried: {error}")
            else:
                found = difference(run)
        if found is not None and precision == "float32" and not found <= TOLERANCE:
            raise ExportError(
                f"{folder}: not written, since its result for a trial pair is {found:.2g} away from the "
                f"Python prediction, more than {TOLERANCE:g}"
            )
    return Exported(folder, folder_size(folder), found, tuple(notes))


def _information(job: str, card: ModelCard | None, format: str, variant: str, precision: str) -> dict:
    """Where an export comes from: what it was made of, and on which terms it may be used."""
    origin = {"model": card.name, "licence": card.licence, "checksums": card.checksums} if card else {}
    made = {"format": format, "variant": variant, "precision": precision}
    return {"tfcorr": tfcorr.__version__, "job": job, **origin, **made}


def _name(card: ModelCard | None) -> str:
    return card.name if card else "tfcorr"


def _check(format: str, variant: str, precision: str, representative: str | Path | None) -> None:
    """Refuses what no model can be exported as."""
    for name, value, choices in (
        ("format", format, FORMATS),
        ("variant", variant, VARIANTS),
        ("precision", precision, PRECISIONS),
    ):
        if value not in choices:
            raise ExportError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
    if format != "saved_model" and variant != "portable":
        raise ExportError(f"the variant {variant!r} is one of SavedModels, {format} takes 'portable' alone")
    if format != "tflite" and precision != "float32":
        raise ExportError(f"the precision {precision!r} is one of tflite, {format} takes 'float32' alone")
    if (precision == "int8") != (representative is not None):
        raise ExportError("a representative folder of photographs goes with 'int8', and 'int8' with one")
