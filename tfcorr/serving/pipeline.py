"""Super-resolution whole, from images to image, as functions of tensors that can be saved as a graph.

The steps are the model's own methods; around them stands what :class:`tfcorr.refsr.predictor.SuperResolver`
does to every image: tiny ones are continued, references are cut to whole cells, of several references each
patch takes the best, and the result has the colours of the input. What the predictor does to fit into memory
(tiles, reduced references) is left out: a graph computes the image in one piece.

Convention: images are float32 (batch, height, width, 3), RGB in [0, 1]; sizes may be unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfcorr.ops import match_patches
from tfcorr.refsr.extractor import FEATURE_STRIDES, FEATURE_WIDTHS
from tfcorr.refsr.gate import flow_agreement
from tfcorr.refsr.matching import PATCH_SIZE, flow_from_index, l2_normalize, pre_offsets
from tfcorr.refsr.model import GAP, C2Matching
from tfcorr.serving import pixels

# As in tfcorr.refsr.predictor, which tells why.
SMALLEST_INPUT = 8
SMALLEST_REFERENCE = 16


class Upscaled(NamedTuple):
    """Result of the pipeline.

    Attributes:
        image: float32 (B, 4 * h, 4 * w, 3) in [0, 1].
        confidence: float32 (B, h, w) in [0, 1]: how far each pixel of the input used the reference: the gate
            of a model that has one, else the matching score (cosine of the 3x3 patches).
    """

    image: tf.Tensor
    confidence: tf.Tensor


class _Found(NamedTuple):
    """Matches of all patches in a common map of references.

    Attributes:
        features: the references' features by name, (B, H, W, C).
        index: int32 (B, h - 2, w - 2), row-major into the whole patches of the common map.
        score: float32 (B, h - 2, w - 2).
        agreement: float32 (B, h - 2, w - 2), see :func:`tfcorr.refsr.gate.flow_agreement`.
        columns: width of the common map in cells of conv3_1.
    """

    features: dict
    index: tf.Tensor
    score: tf.Tensor
    agreement: tf.Tensor
    columns: tf.Tensor


def upscale(model: C2Matching, low_res: tf.Tensor, reference: tf.Tensor) -> Upscaled:
    """Upscales images, each with a reference of its own.

    Args:
        model: a built model.
        low_res: (B, h, w, 3), at least 1x1.
        reference: (B, H, W, 3), at least 1x1.
    """

    def find(descriptors: tf.Tensor) -> _Found:
        features = model.extract(pixels.whole_cells(reference, SMALLEST_REFERENCE))
        found = match_patches(descriptors, l2_normalize(features["conv3_1"]), patch_size=PATCH_SIZE)
        columns = pixels.side(features["conv3_1"], 2)
        agreement = flow_agreement(flow_from_index(found.index, columns))
        return _Found(features, found.index, found.score, agreement, columns)

    return _upscale(model, low_res, find)


def upscale_from(
    model: C2Matching, low_res: tf.Tensor, count: tf.Tensor, reference: Callable[[tf.Tensor], tf.Tensor]
) -> Upscaled:
    """Upscales one image with any number of references of any sizes.

    Args:
        model: a built model.
        low_res: (1, h, w, 3), at least 1x1.
        count: int32 scalar, how many references there are, at least 1.
        reference: gives the reference of a number, int32 from 0 on: (1, H, W, 3), at least 1x1.
    """
    return _upscale(model, low_res, lambda descriptors: _best_of_all(model, descriptors, count, reference))


def _upscale(model: C2Matching, low_res: tf.Tensor, find: Callable[[tf.Tensor], _Found]) -> Upscaled:
    height, width = pixels.side(low_res, 1), pixels.side(low_res, 2)
    image = pixels.padded(low_res, SMALLEST_INPUT)
    found = find(model.describe(image))
    offsets = pre_offsets(found.index, found.columns)
    gate = model.gate(found.score, found.agreement) if model.gated else None
    restored = model.restore(image, found.features, offsets, gate=gate)
    restored = restored[:, : pixels.SCALE * height, : pixels.SCALE * width]
    confidence = _at_pixels(found.score) if gate is None else tf.squeeze(gate, axis=3)
    return Upscaled(pixels.match_low_frequencies(restored, low_res), confidence[:, :height, :width])


def _best_of_all(model: C2Matching, descriptors, count, reference) -> _Found:
    """Matches every reference by itself and keeps the best; their features go below one another.

    What :meth:`C2Matching.match` and :func:`tfcorr.refsr.model.mosaic` do, for a number of references that
    only the running graph knows. Of equal scores the first reference's stays.
    """
    names = model.restorer.reference_features
    scales = {name: FEATURE_STRIDES["relu3_1"] // FEATURE_STRIDES[name] for name in names}
    patches = tf.shape(descriptors)[1:3] - (PATCH_SIZE - 1)
    nothing = tf.concat([[1], patches], axis=0)
    state = (
        tf.constant(0),
        tf.constant(0),
        {name: tf.zeros((1, 0, 0, FEATURE_WIDTHS[name])) for name in names},
        tf.fill(nothing, 0),
        tf.fill(nothing, 0),
        tf.fill(nothing, float("-inf")),
        tf.fill(nothing, 0.0),
    )

    def visit(number, columns, maps, best_row, best_column, best_score, best_agreement):
        features = model.extract(pixels.whole_cells(reference(number), SMALLEST_REFERENCE))
        cells = tf.shape(features["conv3_1"])
        found = match_patches(descriptors, l2_normalize(features["conv3_1"]), patch_size=PATCH_SIZE)
        patch_columns = cells[2] - (PATCH_SIZE - 1)
        gap = tf.where(number > 0, GAP, 0)
        above = tf.shape(maps[names[0]])[1] // scales[names[0]] + gap
        row, column = found.index // patch_columns + above, found.index % patch_columns
        agreement = flow_agreement(flow_from_index(found.index, cells[2]))
        wins = found.score > best_score
        wider = tf.maximum(columns, cells[2])
        maps = {
            name: tf.concat(
                [
                    _extended(maps[name], gap * scales[name], (wider - columns) * scales[name]),
                    _extended(tf.cast(features[name], tf.float32), 0, (wider - cells[2]) * scales[name]),
                ],
                axis=1,
            )
            for name in names
        }
        return (
            number + 1,
            wider,
            maps,
            tf.where(wins, row, best_row),
            tf.where(wins, column, best_column),
            tf.where(wins, found.score, best_score),
            tf.where(wins, agreement, best_agreement),
        )

    unknown = tf.TensorShape([1, None, None])
    shapes = (
        tf.TensorShape([]),
        tf.TensorShape([]),
        {name: tf.TensorShape([1, None, None, FEATURE_WIDTHS[name]]) for name in names},
        unknown,
        unknown,
        unknown,
        unknown,
    )
    _, columns, maps, row, column, score, agreement = tf.while_loop(
        lambda number, *_: number < count, visit, state, shape_invariants=shapes, parallel_iterations=1
    )
    return _Found(maps, row * (columns - (PATCH_SIZE - 1)) + column, score, agreement, columns)


def _extended(maps: tf.Tensor, below, right) -> tf.Tensor:
    """Adds zeros below and at the right of (1, H, W, C)."""
    return tf.pad(maps, [[0, 0], [0, below], [0, right], [0, 0]])


def _at_pixels(score: tf.Tensor) -> tf.Tensor:
    """(B, h - 2, w - 2) scores of patches to (B, h, w) in [0, 1]: a pixel takes the patch around it.

    On the border it takes the nearest patch that exists.
    """
    for axis in (1, 2):
        size = pixels.side(score, axis)
        place = tf.clip_by_value(tf.range(-1, size + 1), 0, size - 1)
        score = tf.gather(score, place, axis=axis)
    return tf.clip_by_value(score, 0.0, 1.0)
