"""`SuperResolver`: what users hold. Images in, a four times larger image out.

The steps (paper, figure 2) are the model's; what this module adds is everything that real images need: any
size and dtype, greyscale, none or several references, working in tiles within a memory budget, and the
input's own colours.

Exactness of the tiling. Descriptors of a tile are computed with a margin wider than their receptive field,
and every patch meets all of every reference: the matching of tiles is that of the whole, exact unless images
are very large or it is asked for coarse to fine (`tfcorr.refsr.coarse_to_fine`). The restorer gets the place
of each tile in the image, so that it samples what it would have sampled in the whole; only its receptive
field, wider than the overlap of the tiles, is cut, where the influence of a pixel has faded.

Convention: positions and sizes are (y, x) and (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from tfcorr.errors import InputError
from tfcorr.imaging.color import match_low_frequencies
from tfcorr.imaging.tiles import Canvas, Tile, plan_tiles
from tfcorr.ops import match_patches
from tfcorr.pretrained import ModelCard, load_super_resolution
from tfcorr.refsr import SCALE
from tfcorr.refsr.coarse_to_fine import WORTHWHILE_PAIRS, ReferenceIndex
from tfcorr.refsr.extractor import FEATURE_WIDTHS
from tfcorr.refsr.matching import PATCH_SIZE, pre_offsets
from tfcorr.refsr.memory import MemoryPlan, available_memory, within_memory
from tfcorr.refsr.model import C2Matching, References
from tfcorr.refsr.nearby import prefer_nearby
from tfcorr.refsr.pixels import digest, from_rgb, padded, reduced, to_rgb, turn, turn_back, whole_cells
from tfcorr.refsr.registration import Registration, register
from tfcorr.refsr.remembered import Remembered

if TYPE_CHECKING:
    from tfcorr.serving.export import Exported

__all__ = ["PreparedReferences", "SuperResolver", "UpscaleResult"]

# The descriptors need 3x3 patches, so 3 cells: 3 pixels of the input, 12 of a reference. Smaller images are
# continued by their border; a few pixels more give the convolutions something to look at.
_SMALLEST_INPUT = 8
_SMALLEST_REFERENCE = 16

# Receptive radius of conv3_1 is 10 pixels of its input; margins are multiples of 4 so that pooling falls on
# the same cells. For the input these are pixels of the upsampled image, whose bicubic kernel adds 2 of the
# input's own.
_REFERENCE_MARGIN = 12
# The base of a model that takes the reference's detail looks further; beyond this its influence has faded.
_DETAIL_MARGIN = 48
_INPUT_MARGIN = 6
# How far the gate looks, in patches: its convolutions 7, the mean of the covering patches 1, and 1 for the
# border that stands in for missing ones.
_GATE_MARGIN = 9


# Pixels of the input that neighbouring tiles share; see tests/refsr/test_predictor.py for what it leaves of a
# seam.
_OVERLAP = 32

#: How patches are matched, see `SuperResolver`.
MATCHINGS = ("auto", "exact", "coarse_to_fine")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class UpscaleResult:
    """An upscaled image and where its detail came from.

    Attributes:
        image: the image, four times larger, with the dtype and the axes of the input.
        correspondence: int32 (h, w, 3): for each pixel of the input the number of the reference, and y, x in
            that reference's own pixels: the pixel just behind the centre of the matched 4x4 cell. Without a
            reference these are places in the input itself, and the number is 0.
        confidence: float32 (h, w) in [0, 1]: how far each pixel of the input used the reference: the gate of
            a model that has one, else the matching score (cosine of the 3x3 patches).
        used_share: share of the pixels whose confidence reaches the threshold, in [0, 1].
    """

    image: np.ndarray
    correspondence: np.ndarray
    confidence: np.ndarray
    used_share: float


@dataclass(frozen=True)
class PreparedReferences:
    """References whose features have been computed, for use with many inputs; from `SuperResolver.prepare`.

    Attributes:
        images: the references as they were given, or registered.
        reduction: factor in (0, 1] that they were resized by to fit the memory.
        state: the model's features of them.
        model: the model whose features they are.
        sizes: (height, width) of each after resizing, without the padding of very small ones.
        registrations: what brought each of ``images`` into the view of one input; None for those that are
            used as they were given.
        indexes: for the matching from coarse to fine, made when they are first needed, by number.
    """

    images: tuple[np.ndarray, ...]
    reduction: float
    state: References
    sizes: tuple[tuple[int, int], ...]
    model: C2Matching = field(repr=False)
    registrations: tuple[Registration | None, ...]
    indexes: dict[int, ReferenceIndex] = field(default_factory=dict, repr=False, compare=False)

    def index(self, number: int) -> ReferenceIndex:
        """The index of a reference."""
        if number not in self.indexes:
            descriptors = keras.ops.convert_to_numpy(self.state.descriptors[number])
            self.indexes[number] = ReferenceIndex(descriptors[0], threads=_threads())
        return self.indexes[number]


@dataclass(frozen=True)
class _Matches:
    """Arrays (h - 2, w - 2) with the matches of all patches, see `tfcorr.refsr.model.Correspondence`."""

    number: np.ndarray
    position: np.ndarray
    score: np.ndarray
    index: np.ndarray
    agreement: np.ndarray


class SuperResolver:
    """Upscales images four times, with detail taken from sharp references.

        upscaler = SuperResolver.from_pretrained()
        image = upscaler.upscale(low_res, reference)            # (h, w, 3), (H, W, 3) -> (4h, 4w, 3)
        result = upscaler.upscale(low_res, reference, details=True)
        result.used_share                                       # 0.63: for 63 % of the pixels

    The features of the references used last are kept, so that a series of inputs with the same references is
    quick.

    Args:
        model: a built `tfcorr.refsr.model.C2Matching`.
        card: what is known about the model, if it came from a model folder.
        confidence_threshold: confidence in [0, 1] from which on a pixel counts as taken from the reference;
            for a model with a gate, 0.5 says that more of it was let through than held back.
        memory: bytes of working memory that tiles and reference features may take, beside what TensorFlow and
            the images themselves need; `None` takes half of what is free, at most 4 GB. Large references are
            reduced until their features fit into half of it.
        self_ensemble: whether to average over the eight flips and rotations: a little better, eight times
            slower.
        matching: `"exact"`, every patch of the input with every patch of the references; `"coarse_to_fine"`,
            which is many times as fast for images of megapixels and finds the same for nearly all patches
            (`tfcorr.refsr.coarse_to_fine`); or `"auto"`, the latter from two thousand million pairs of
            patches on, as a 210x210 input has with a reference of 840x840 pixels.
        registration: whether references are brought into the view of the input before they are matched, where
            both show the same scene (`tfcorr.refsr.registration`). The published method does not; a model
            that was trained with it says so in its card.
    """

    def __init__(
        self,
        model: C2Matching,
        *,
        card: ModelCard | None = None,
        confidence_threshold: float = 0.5,
        memory: int | None = None,
        self_ensemble: bool = False,
        matching: str = "auto",
        registration: bool = False,
    ):
        if matching not in MATCHINGS:
            raise InputError(f"matching is {matching!r}, expected one of {', '.join(MATCHINGS)}")
        if memory is not None and memory <= 0:
            raise InputError(f"memory is {memory}, expected a positive number of bytes")
        if not 0 <= confidence_threshold <= 1:
            raise InputError(f"confidence_threshold is {confidence_threshold}, expected a number in [0, 1]")
        self.model = model
        self.card = card
        self.confidence_threshold = confidence_threshold
        self.self_ensemble = self_ensemble
        self.matching = matching
        self.registration = registration
        self._memory = MemoryPlan.of(model, memory or min(available_memory() // 2, 4 * 10**9))
        self._cached: tuple[bytes, PreparedReferences] | None = None
        self._describe = _compiled(model.describe, (1, None, None, 3))
        self._extract = _compiled(model.extract, (1, None, None, 3))
        self._gate = _compiled_gate(model)
        self._restore = _compiled_restore(model)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path | None = None,
        *,
        precision: str = "float32",
        threads: int | None = None,
        memory: int | None = None,
        self_ensemble: bool = False,
        matching: str = "auto",
        registration: bool | None = None,
    ) -> SuperResolver:
        """Loads a trained model after checking its files against the checksums of its card.

        Args:
            name_or_folder: a model of `tfcorr models`, a model folder, or `None` for the default model.
            precision: `"float32"`, or `"bfloat16"`, which is quicker on processors that multiply it
                (AMX, AVX-512 with bfloat16) and slow on others. Offsets, scores and the last convolution stay
                in float32.
            threads: how many processor threads TensorFlow may use; `None` leaves its own choice. It holds for
                the whole process and can only be set before TensorFlow's first computation.
            memory, self_ensemble, matching: see `SuperResolver`.
            registration: see `SuperResolver`; `None` does what the model's card says.

        Raises:
            ModelError: no such model, damaged files, or a card that cannot be used.
            InputError: an argument has another value than described, or `threads` comes too late.
        """
        if precision not in ("float32", "bfloat16"):
            raise InputError(f"precision is {precision!r}, expected 'float32' or 'bfloat16'")
        if threads is not None:
            _limit_threads(threads)
        model, card = load_super_resolution(name_or_folder, precision=precision)
        return cls(
            model,
            card=card,
            confidence_threshold=card.confidence_threshold,
            memory=memory,
            self_ensemble=self_ensemble,
            matching=matching,
            registration=card.registration if registration is None else registration,
        )

    def upscale(
        self,
        low_res: np.ndarray,
        reference: np.ndarray | Sequence[np.ndarray] | PreparedReferences | None = None,
        *,
        details: bool = False,
        progress: Progress | None = None,
    ) -> np.ndarray | UpscaleResult:
        """Upscales an image four times.

        Args:
            low_res: (h, w, 3) RGB, or greyscale as (h, w) or (h, w, 1); uint8, uint16, or float32 in [0, 1];
                any size from 1x1 on.
            reference: a sharp image of any size, dtype and kind of the above; several of them, of which each
                patch takes the best; what `prepare` returned; or `None`: the input is then its own reference,
                as in the published protocol for Urban100: its details recur in itself at other scales.
            details: whether to return the correspondences too.
            progress: called with (steps done, all steps).

        Returns:
            The image with the dtype and the axes of `low_res` and both sides four times as long; with
            `details` an `UpscaleResult`. Reduced four times it has the colours of the input, whatever those
            of the reference.

        Raises:
            InputError: an image has another shape or dtype, is empty, or has values that are not finite or
                are outside [0, 1]; or `reference` was prepared with another model.
            MemoryError: even the smallest tile does not fit.
        """
        rgb = to_rgb(low_res, "low_res")
        references = self._references(rgb, reference)
        transforms = range(8 if self.self_ensemble else 1)
        ticks = _Ticks(progress, len(transforms))
        total, matches, gate = None, None, None
        for transform in transforms:
            turned = references
            if transform:
                images = [turn(image, transform) for image in references.images]
                turned = replace(self._prepare(images), registrations=references.registrations)
            upscaled, found, confidence = self._upscale(turn(rgb, transform), turned, ticks)
            ticks.finish_round()
            if not transform:
                matches, gate = found, confidence
            upscaled = turn_back(upscaled, transform)
            total = upscaled if total is None else total + upscaled
        image = match_low_frequencies(total / len(transforms), rgb, SCALE)
        image = from_rgb(image, np.asarray(low_res))
        if not details:
            return image
        correspondence, confidence = _details(matches, rgb.shape[:2], references)
        if gate is not None:
            confidence = gate
        used = float(np.mean(confidence >= self.confidence_threshold))
        return UpscaleResult(image, correspondence, confidence, used)

    def prepare(
        self, references: np.ndarray | Sequence[np.ndarray], low_res: np.ndarray | None = None
    ) -> PreparedReferences:
        """Computes the features of references once, for many calls of `upscale`.

        Args:
            references: one image or several, as in `upscale`.
            low_res: the input that they are meant for, in whose view they are brought by a resolver with
                `registration`; without it they stay as they are, for any input.

        Raises:
            InputError: see `upscale`; also for an empty sequence.
        """
        images = list(references) if isinstance(references, (list, tuple)) else [references]
        if not images:
            raise InputError("no reference was given, expected at least one image")
        if low_res is None or not self.registration:
            return self._remembered(digest(images), lambda: self._prepare(images))
        rgb = to_rgb(low_res, "low_res")
        return self._remembered(digest([rgb, *images]), lambda: self._registered(rgb, images))

    def export(self, folder: str | Path, **options) -> Exported:
        """Writes the model as a SavedModel, as TFLite or as ONNX.

        Args:
            folder: what to write.
            **options: see :func:`tfcorr.serving.export.export_super_resolver`: `format`, `variant`, `size`,
                `reference_size`, `precision`, `representative`, `limits`, `verify`, `overwrite`.

        Returns:
            What was written, and how far it is from this predictor.

        Raises:
            ExportError: options that do not fit together, or a folder that exists.
        """
        from tfcorr.serving.export import export_super_resolver

        return export_super_resolver(self, folder, **options)

    def remember_inputs(self, memory: int) -> None:
        """Keeps the descriptors of inputs, for a series that matches each of them with several references.

        Args:
            memory: bytes that they may take, about 1 kB a pixel of an input.
        """
        self._describe = Remembered(self._describe, memory)

    def _references(self, rgb: np.ndarray, reference) -> PreparedReferences:
        if isinstance(reference, PreparedReferences):
            if reference.model is not self.model:
                raise InputError("reference was prepared by a SuperResolver with another model")
            return reference
        if reference is None or (isinstance(reference, (list, tuple)) and not reference):
            return self._prepare([rgb])
        return self.prepare(reference, rgb)

    def _remembered(self, key: bytes, make: Callable[[], PreparedReferences]) -> PreparedReferences:
        if self._cached is None or self._cached[0] != key:
            self._cached = None  # lets go of the old features before the new ones are made
            self._cached = (key, make())
        return self._cached[1]

    def _registered(self, rgb: np.ndarray, images: Sequence[np.ndarray]) -> PreparedReferences:
        """The references in the view of an input (h, w, 3), as far as they can be brought there."""
        converted = [to_rgb(image, f"reference {number}") for number, image in enumerate(images)]
        found = tuple(register(rgb, image) for image in converted)
        seen = [
            image if registration is None else registration.warp(image)
            for image, registration in zip(converted, found, strict=True)
        ]
        return replace(self._prepare(seen), registrations=found)

    def _prepare(self, images: Sequence[np.ndarray]) -> PreparedReferences:
        converted = [to_rgb(image, f"reference {number}") for number, image in enumerate(images)]
        # References stand below one another in one map, as wide as the widest of them.
        pixels = sum(image.shape[0] for image in converted) * max(image.shape[1] for image in converted)
        reduction = min(1.0, math.sqrt(self._memory.reference_pixels / pixels))
        if reduction < 1.0:
            converted = [reduced(image, reduction) for image in converted]
        sizes = tuple(image.shape[:2] for image in converted)
        converted = [whole_cells(image, _SMALLEST_REFERENCE) for image in converted]

        def work(plan: MemoryPlan) -> References:
            tiles = [plan.reference_tile(*image.shape[:2]) for image in converted]
            state = self.model.assemble(list(map(self._extract_in_tiles, converted, tiles)))
            # Brought to the restorer's dtype once, not for each tile again.
            dtype = self.model.restorer.compute_dtype
            features = {name: keras.ops.cast(map_, dtype) for name, map_ in state.features.items()}
            return replace(state, features=features)

        state = within_memory(self._memory, work)
        images = tuple(map(np.asarray, images))
        return PreparedReferences(images, reduction, state, sizes, self.model, (None,) * len(images))

    def _extract_in_tiles(self, image: np.ndarray, tile: tuple[int, int]) -> dict:
        """Features of (H, W, 3), sides multiples of 4, as tensors (1, H / s, W / s, C) by name."""
        height, width = image.shape[:2]
        if height <= tile[0] and width <= tile[1]:
            return self._extract(image[None])
        margin = _DETAIL_MARGIN if self.model.restorer.config.detail else _REFERENCE_MARGIN
        maps: dict[str, np.ndarray] = {}
        for block in _blocks(height, width, *tile):
            window = block.widened(margin, height, width)
            for name, feature in self._extract(image[None, window.rows, window.columns]).items():
                feature = keras.ops.convert_to_numpy(feature)
                stride = (window.bottom - window.top) // feature.shape[1]
                if name not in maps:
                    shape = (1, height // stride, width // stride, feature.shape[3])
                    maps[name] = np.empty(shape, feature.dtype)
                inside, place = block.within(window).divided(stride), block.divided(stride)
                maps[name][:, place.rows, place.columns] = feature[:, inside.rows, inside.columns]
        return {name: keras.ops.convert_to_tensor(maps.pop(name)) for name in list(maps)}

    def _upscale(
        self, rgb: np.ndarray, references: PreparedReferences, ticks: _Ticks
    ) -> tuple[np.ndarray, _Matches, np.ndarray | None]:
        """Matches and restores (h, w, 3).

        Returns:
            float32 (4h, 4w, 3), not clamped; the matches; the gate (h, w) of a model that has one.
        """
        height, width = rgb.shape[:2]
        rgb = padded(rgb, _SMALLEST_INPUT)

        def work(plan: MemoryPlan) -> tuple[np.ndarray, _Matches, np.ndarray | None]:
            tile = plan.tile(*rgb.shape[:2])
            blocks = _blocks(rgb.shape[0] - 2, rgb.shape[1] - 2, *tile)
            tiles = plan_tiles(*rgb.shape[:2], tile, min(_OVERLAP, min(tile) // 2))
            ticks.start_round(len(blocks) + len(tiles))
            matches = self._match(rgb, references, blocks, ticks)
            gate = self._gate_in_blocks(matches, blocks) if self.model.gated else None
            return self._restore_tiles(rgb, references.state, matches, gate, tiles, ticks), matches, gate

        upscaled, matches, gate = within_memory(self._memory, work)
        if gate is not None:
            gate = gate[:height, :width]
        return upscaled[: SCALE * height, : SCALE * width], matches, gate

    def _match(
        self, rgb: np.ndarray, references: PreparedReferences, blocks: list[_Window], ticks: _Ticks
    ) -> _Matches:
        """Matches the 3x3 patches of an image (h, w, 3) with all references; blocks are of top-left cells."""
        height, width = rgb.shape[0] - 2, rgb.shape[1] - 2
        matches = _Matches(
            np.empty((height, width), np.int32),
            np.empty((height, width, 2), np.int32),
            np.empty((height, width), np.float32),
            np.empty((height, width), np.int32),
            np.empty((height, width), np.float32),
        )
        for block in blocks:
            # Agreement asks the neighbours of each patch too.
            around = block.widened(1, height, width)
            # A patch reaches two cells further than its top-left cell.
            cells = _Window(around.top, around.bottom + 2, around.left, around.right + 2)
            window = cells.widened(_INPUT_MARGIN, *rgb.shape[:2])
            inside, kept = cells.within(window), block.within(around)
            descriptors = self._describe(rgb[None, window.rows, window.columns])
            search = self._search(rgb.shape[:2], references, (cells.top, cells.left))
            found = self.model.match(descriptors[:, inside.rows, inside.columns], references.state, search)
            for name in ("number", "position", "score", "index", "agreement"):
                part = keras.ops.convert_to_numpy(getattr(found, name))[0, kept.rows, kept.columns]
                getattr(matches, name)[block.rows, block.columns] = part
            ticks.step()
        return matches

    def _search(
        self, size: tuple[int, int], references: PreparedReferences, origin: tuple[int, int]
    ) -> Callable:
        """The search that suits an input of this size, for `tfcorr.refsr.model.C2Matching.match`.

        Args:
            size: of the whole input, (height, width).
            references: what is searched.
            origin: (y, x) in the input of the part that is asked for.
        """

        def everywhere(number: int, descriptors, candidate):
            place = references.state.placements[number]
            pairs = math.prod(side - PATCH_SIZE + 1 for side in (*size, place.height, place.width))
            if self.matching == "exact" or (self.matching == "auto" and pairs < WORTHWHILE_PAIRS):
                return match_patches(descriptors, candidate, patch_size=PATCH_SIZE)
            found = references.index(number).search(keras.ops.convert_to_numpy(descriptors)[0])
            return tuple(array[None] for array in found)

        def search(number: int, descriptors, candidate):
            index, score = everywhere(number, descriptors, candidate)
            place = references.state.placements[number]
            if references.registrations[number] is None or (place.height, place.width) != size:
                return index, score
            part, whole = (keras.ops.convert_to_numpy(a)[0] for a in (descriptors, candidate))
            found = (keras.ops.convert_to_numpy(array)[0] for array in (index, score))
            return tuple(array[None] for array in prefer_nearby(part, whole, origin, *found))

        return search

    def _gate_in_blocks(self, matches: _Matches, blocks: list[_Window]) -> np.ndarray:
        """The gate of an image (h, w), the same as in one piece; blocks are of top-left cells of patches."""
        height, width = matches.score.shape
        gate = np.empty((height + 2, width + 2), np.float32)
        for block in blocks:
            around = block.widened(_GATE_MARGIN, height, width)
            fields = (
                field[None, around.rows, around.columns] for field in (matches.score, matches.agreement)
            )
            part = keras.ops.convert_to_numpy(self._gate(*fields))[0, :, :, 0]
            # A patch's pixel is its centre; a block at the border has the pixels beside it too.
            pixels = _Window(
                block.top + (block.top > 0),
                block.bottom + 1 + (block.bottom == height),
                block.left + (block.left > 0),
                block.right + 1 + (block.right == width),
            )
            inside = pixels.within(around)
            gate[pixels.rows, pixels.columns] = part[inside.rows, inside.columns]
        return gate

    def _restore_tiles(
        self,
        rgb: np.ndarray,
        references: References,
        matches: _Matches,
        gate: np.ndarray | None,
        tiles: tuple[Tile, ...],
        ticks: _Ticks,
    ) -> np.ndarray:
        """Runs the restorer over blended tiles: (h, w, 3) -> float32 (4h, 4w, 3), not clamped."""
        offsets = keras.ops.convert_to_numpy(pre_offsets(matches.index[None], references.columns))
        canvas = Canvas(tiles, 3, SCALE)
        for tile in tiles:
            rows, columns = tile.window
            origin = np.array([tile.rows.start, tile.columns.start], np.int32)
            # Offsets count from a cell's own place, which in the tile's grid is `origin` less.
            offset = offsets[:, rows, columns] + np.tile(origin.astype(np.float32), 9)
            weights = () if gate is None else (gate[None, rows, columns, None],)
            upscaled = self._restore(rgb[None, rows, columns], references.features, offset, origin, *weights)
            canvas.add(tile, keras.ops.convert_to_numpy(upscaled)[0])
            ticks.step()
        return canvas.finish()


@dataclass(frozen=True)
class _Window:
    """Rows [top, bottom) and columns [left, right) of an image."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.right)

    def widened(self, margin: int, height: int, width: int) -> _Window:
        """Larger by `margin` on each side, as far as the image reaches."""
        return _Window(
            max(0, self.top - margin),
            min(height, self.bottom + margin),
            max(0, self.left - margin),
            min(width, self.right + margin),
        )

    def within(self, outer: _Window) -> _Window:
        """The same window, counted from the top-left corner of `outer`."""
        return _Window(
            self.top - outer.top, self.bottom - outer.top, self.left - outer.left, self.right - outer.left
        )

    def divided(self, stride: int) -> _Window:
        """The window in cells of `stride` pixels."""
        return _Window(self.top // stride, self.bottom // stride, self.left // stride, self.right // stride)


class _Ticks:
    """Counts steps for a progress callback, over one round for each transformed image."""

    def __init__(self, report: Progress | None, rounds: int):
        self._report = report
        self._rounds = rounds
        self._finished = 0
        self._steps = 0
        self._done = 0

    def start_round(self, steps: int) -> None:
        """A round begins, perhaps again because memory ran out."""
        self._steps, self._done = steps, 0

    def finish_round(self) -> None:
        self._finished += 1

    def step(self) -> None:
        self._done += 1
        if self._report is not None:
            self._report(self._finished * self._steps + self._done, self._rounds * self._steps)


def _blocks(height: int, width: int, block_height: int, block_width: int) -> list[_Window]:
    """Cuts an area into windows of at most this size, without overlap."""
    return [
        _Window(top, min(top + block_height, height), left, min(left + block_width, width))
        for top in range(0, height, block_height)
        for left in range(0, width, block_width)
    ]


def _compiled(function: Callable, shape: tuple):
    """Traces a function of one float32 tensor once for all sizes, where the backend is TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, autograph=False, input_signature=[tf.TensorSpec(shape, tf.float32)])


def _compiled_gate(model: C2Matching):
    if keras.backend.backend() != "tensorflow" or not model.gated:
        return model.gate
    import tensorflow as tf

    field = tf.TensorSpec((1, None, None), tf.float32)
    return tf.function(model.gate, autograph=False, input_signature=[field, field])


def _compiled_restore(model: C2Matching):
    if keras.backend.backend() != "tensorflow":
        return model.restore
    import tensorflow as tf

    features = {
        name: tf.TensorSpec((1, None, None, FEATURE_WIDTHS[name]), model.restorer.compute_dtype)
        for name in model.restorer.reference_features
    }
    signature = [
        tf.TensorSpec((1, None, None, 3), tf.float32),
        features,
        tf.TensorSpec((1, None, None, 18), tf.float32),
        tf.TensorSpec((2,), tf.int32),
    ]
    if model.gated:
        signature.append(tf.TensorSpec((1, None, None, 1), tf.float32))
    return tf.function(model.restore, autograph=False, input_signature=signature)


def _threads() -> int | None:
    """Threads that TensorFlow was limited to, or None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.config.threading.get_intra_op_parallelism_threads() or None


def _limit_threads(threads: int) -> None:
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise InputError(f"threads is {threads!r}, expected a whole number of at least 1")
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"threads can be set with the TensorFlow backend only, not {keras.backend.backend()}"
        )
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(min(threads, 2))
    except RuntimeError as error:
        if tf.config.threading.get_intra_op_parallelism_threads() != threads:
            raise InputError(
                "threads comes too late: it can only be set before TensorFlow's first computation"
            ) from error


def _details(
    matches: _Matches, size: tuple[int, int], references: PreparedReferences
) -> tuple[np.ndarray, np.ndarray]:
    """Turns the matches of patches into a place and a confidence for each pixel of the input.

    A pixel takes the patch that it is the centre of; on the border, the nearest one that exists.
    """
    height, width = size
    rows = np.clip(np.arange(height) - 1, 0, matches.index.shape[0] - 1)
    columns = np.clip(np.arange(width) - 1, 0, matches.index.shape[1] - 1)
    patches = np.ix_(rows, columns)
    number = matches.number[patches]
    inside = np.stack(
        np.meshgrid(np.arange(height) - rows, np.arange(width) - columns, indexing="ij"), axis=-1
    )
    pixel = (matches.position[patches] + inside) * SCALE + SCALE // 2
    used = np.array(references.sizes)[number]
    given = np.array([np.shape(image)[:2] for image in references.images])[number]
    pixel = np.minimum(pixel * given // used, given - 1)
    for which, registration in enumerate(references.registrations):
        if registration is not None:
            here = number == which
            pixel[here] = registration.locate(pixel[here])
    correspondence = np.concatenate([number[..., None], pixel], axis=-1).astype(np.int32)
    return correspondence, np.clip(matches.score[patches], 0.0, 1.0)
