"""Super-resolution as an ONNX graph: matcher, restorer and the care for real images, for ONNX Runtime.

The graph is written from the weights, operator by operator, and computes what
:func:`tfcorr.serving.pipeline.upscale` does, for one image and one reference of any sizes. The deformable
convolution is ONNX's own DeformConv (operator set 22). Its output lies on the grid of its input, whereas here
the input is the reference and the grid the image's; so both are brought to a common size, filled up with
zeros, and the result is cut out.

The matching walks over the rows of the input: for each it correlates one row of descriptors with the whole
reference by a matrix product, sums three such products shifted against each other into patches, and keeps
the best. That holds a few times (input's width) x (reference's cells) numbers, never the whole volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from tfcorr.ops.match_patches import NORM_EPSILON
from tfcorr.refsr.blocks import LEAKY_SLOPE
from tfcorr.refsr.extractor import IMAGE_MEAN, IMAGE_STD
from tfcorr.refsr.gate import HALF_AGREEMENT, INITIAL_SLOPE
from tfcorr.refsr.matching import PATCH_SIZE
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.restorer import LEVEL_FEATURES, LEVEL_SCALES
from tfcorr.refsr.upsampling import polyphase_weights
from tfcorr.serving import pixels
from tfcorr.serving.files import write_json
from tfcorr.serving.onnx_graph import Graph
from tfcorr.serving.pipeline import SMALLEST_INPUT, SMALLEST_REFERENCE

__all__ = ["MODEL_FILE", "build", "export_super_resolution"]

MODEL_FILE = "model.onnx"

_SCALE = 4
_HALO = PATCH_SIZE - 1
_POINTS = PATCH_SIZE * PATCH_SIZE

_Size = tuple[int, int]


def export_super_resolution(
    model: C2Matching,
    folder: str | Path,
    *,
    size: _Size | None = None,
    reference_size: _Size | None = None,
    information: Mapping | None = None,
) -> None:
    """Writes `model.onnx` and `export.json` into a folder.

    Args:
        model: a built model that computes in float32.
        folder: a new or an empty folder; parents are made.
        size: (height, width) of the input, if it is fixed.
        reference_size: (height, width) of the reference, if it is fixed.
        information: JSON values that are kept beside the graph, and as text in it.
    """
    import onnx

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    information = dict(information or {})
    properties = {name: str(value) for name, value in information.items()}
    graph = build(model, size=size, reference_size=reference_size, properties=properties)
    onnx.save(graph, folder / MODEL_FILE)
    write_json(folder / "export.json", {**information, "file": MODEL_FILE})


def build(
    model: C2Matching,
    *,
    size: _Size | None = None,
    reference_size: _Size | None = None,
    properties: Mapping[str, str] | None = None,
):
    """The graph of a model.

    Args:
        model, size, reference_size: see :func:`export_super_resolution`.
        properties: texts that are kept in the file.

    Returns:
        `onnx.ModelProto` with the inputs `lr` (1, h, w, 3) and `reference` (1, H, W, 3) and the outputs
        `image` (1, 4 * h, 4 * w, 3) and `confidence` (1, h, w), all float32 in [0, 1].
    """
    g = Graph()
    lr = g.op("Transpose", "lr", perm=(0, 3, 1, 2))
    reference = g.op("Transpose", "reference", perm=(0, 3, 1, 2))
    height, width = g.size(lr, 2), g.size(lr, 3)

    image = _continued(g, lr, SMALLEST_INPUT)
    features = _reference_features(g, model, _whole_cells(g, _continued(g, reference, SMALLEST_REFERENCE)))
    found = _match(g, _describe(g, model, image), _unit(g, features["conv3_1"]))
    gate = _gate(g, model.restorer.gate, found) if model.gated else None
    restored = _restore(g, model.restorer, image, features, _pre_offsets(g, found.flow), gate)
    enlarged = [g.mul(side, g.integer([_SCALE])) for side in (height, width)]
    upscaled = _match_low_frequencies(g, _cropped(g, restored, *enlarged), lr)
    confidence = g.clip(_at_pixels(g, found.score), 0.0, 1.0) if gate is None else gate
    confidence = _cropped(g, confidence, height, width)

    h, w = size or ("height", "width")
    reference_shape = [1, *(reference_size or ("reference_height", "reference_width")), 3]
    large = [_SCALE * h, _SCALE * w] if size else ["large_height", "large_width"]
    outputs = {
        "image": (g.op("Transpose", upscaled, perm=(0, 2, 3, 1)), [1, *large, 3]),
        "confidence": (g.op("Squeeze", confidence, g.integer([1])), [1, h, w]),
    }
    return g.model({"lr": [1, h, w, 3], "reference": reference_shape}, outputs, **(properties or {}))


class _Found(NamedTuple):
    """Matches of the patches.

    Attributes:
        flow: float32 (1, 2, h - 2, w - 2), (dy, dx) in cells.
        score: float32 (1, 1, h - 2, w - 2).
    """

    flow: str
    score: str


def _continued(g: Graph, image: str, smallest: int) -> str:
    return g.continued(g.continued(image, 2, smallest), 3, smallest)


def _whole_cells(g: Graph, image: str) -> str:
    four = g.integer([_SCALE])
    for axis in (2, 3):
        image = g.slice(image, axis, 0, g.mul(g.div(g.size(image, axis), four), four))
    return image


def _cropped(g: Graph, image: str, height: str, width: str) -> str:
    return g.slice(g.slice(image, 2, 0, height), 3, 0, width)


def _layer(g: Graph, x: str, layer: keras.layers.Conv2D) -> str:
    """A Keras convolution, without its activation."""
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    bias = keras.ops.convert_to_numpy(layer.bias)
    return g.conv(x, kernel, bias, dilation=layer.dilation_rate[0])


# Matching.


def _describe(g: Graph, model: C2Matching, image: str) -> str:
    """Unit descriptors of the input, (1, 256, h, w)."""
    weights = polyphase_weights(_SCALE, "bicubic")
    for axis in (3, 2):
        x = g.clip(g.upsample(image, axis, weights), 0.0, 1.0)
        image = g.op("Floor", g.add(g.mul(x, g.constant(255.0)), g.constant(0.5)))
        image = g.div(image, g.constant(255.0))
    return _unit(g, _extract(g, model.correspondence.input_extractor, image)["conv3_1"])


def _reference_features(g: Graph, model: C2Matching, reference: str) -> dict[str, str]:
    features = _extract(g, model.correspondence.reference_extractor, reference)
    if model.vgg is None:
        return features
    return {**_extract(g, model.vgg, reference), "conv3_1": features["conv3_1"]}


def _extract(g: Graph, extractor, image: str) -> dict[str, str]:
    """What :class:`tfcorr.refsr.extractor.FeatureExtractor` computes."""
    mean, std = (g.constant(np.reshape(values, (1, 3, 1, 1))) for values in (IMAGE_MEAN, IMAGE_STD))
    x = g.div(g.sub(image, mean), std)

    def pooled(x: str) -> str:
        return g.op("MaxPool", g.relu(x), kernel_shape=[2, 2], strides=[2, 2])

    features = {"relu1_1": g.relu(_layer(g, x, extractor.conv1_1))}
    x = pooled(_layer(g, features["relu1_1"], extractor.conv1_2))
    features["relu2_1"] = g.relu(_layer(g, x, extractor.conv2_1))
    x = pooled(_layer(g, features["relu2_1"], extractor.conv2_2))
    features["conv3_1"] = _layer(g, x, extractor.conv3_1)
    features["relu3_1"] = g.relu(features["conv3_1"])
    return features


def _unit(g: Graph, features: str) -> str:
    """:func:`tfcorr.refsr.matching.l2_normalize`."""
    norm = g.op("Sqrt", g.op("ReduceSum", g.mul(features, features), g.integer([1])))
    return g.div(features, g.op("Max", norm, g.constant(1e-12)))


def _match(g: Graph, query: str, reference: str) -> _Found:
    """:func:`tfcorr.ops.match_patches` for (1, C, h, w) and (1, C, H, W)."""
    rows, columns = g.size(query, 2), g.size(query, 3)
    cells = [g.size(reference, axis) for axis in (2, 3)]
    halo = g.integer([_HALO])
    patch_rows, patch_columns = (g.sub(size, halo) for size in cells)
    query_columns = g.sub(columns, halo)
    by_row = g.op("Transpose", g.op("Squeeze", query, g.integer([0])), perm=(1, 2, 0))
    flat = g.reshape(reference, g.size(reference, 1), -1)
    norms = g.reshape(g.add(_patch_norms(g, reference), g.constant(NORM_EPSILON)), 1, -1)

    def row(inner: Graph, y: str, above: tuple[str, str]):
        correlation = inner.op("MatMul", inner.take(by_row, y, 0), flat)
        correlation = inner.reshape(correlation, columns, *cells)
        shifted = []
        for j in range(PATCH_SIZE):
            part = inner.window(correlation, 0, j, query_columns)
            shifted.append(inner.window(part, 2, j, patch_columns))
        sums = [*above, inner.total(shifted)]
        patches = inner.total([inner.window(s, 1, i, patch_rows) for i, s in enumerate(sums)])
        similarity = inner.div(inner.reshape(patches, query_columns, -1), norms)
        index = inner.op("ArgMax", similarity, axis=1, keepdims=0)
        best = inner.op("ReduceMax", similarity, inner.integer([1]), keepdims=0)
        return sums[1:], [index, best]

    # The rows above the first one; a patch that has one of them as its own is cut off behind the loop.
    nothing = g.op("ConstantOfShape", g.vector(query_columns, cells[0], patch_columns))
    *_, index, best = g.loop(
        g.op("Squeeze", rows), row, [nothing] * _HALO, [3] * _HALO, [(np.int64, 1), (np.float32, 1)]
    )
    index, best = (g.slice(value, 0, _HALO, rows) for value in (index, best))
    score = g.op("Unsqueeze", best, g.integer([0, 1]))
    score = g.div(score, g.add(_patch_norms(g, query), g.constant(NORM_EPSILON)))
    there = [g.div(index, patch_columns), g.op("Mod", index, patch_columns)]
    here = [
        g.op("Unsqueeze", g.range(g.sub(rows, halo)), g.integer([1])),
        g.op("Unsqueeze", g.range(query_columns), g.integer([0])),
    ]
    steps = [g.op("Unsqueeze", g.sub(a, b), g.integer([0, 1])) for a, b in zip(there, here, strict=True)]
    return _Found(g.op("Cast", g.op("Concat", *steps, axis=1), to=1), score)


def _patch_norms(g: Graph, features: str) -> str:
    """Euclidean norm of each 3x3 patch, (1, 1, h - 2, w - 2)."""
    energy = g.op("ReduceSum", g.mul(features, features), g.integer([1]))
    for axis in (3, 2):
        size = g.sub(g.size(energy, axis), g.integer([_HALO]))
        energy = g.total([g.window(energy, axis, start, size) for start in range(PATCH_SIZE)])
    return g.op("Sqrt", energy)


def _pre_offsets(g: Graph, flow: str) -> str:
    """:func:`tfcorr.refsr.matching.pre_offsets`: (1, 18, h, w)."""
    votes = [
        g.pad(flow, [2, 3], [i, j, _HALO - i, _HALO - j])
        for i in range(PATCH_SIZE)
        for j in range(PATCH_SIZE)
    ]
    return g.op("Concat", *votes, axis=1)


def _at_pixels(g: Graph, field: str) -> str:
    """(1, C, h - 2, w - 2) of patches to (1, C, h, w) of pixels, the outermost values twice."""
    return g.pad(field, [2, 3], [1, 1, 1, 1], mode="edge")


def _gate(g: Graph, layer, found: _Found) -> str:
    """:class:`tfcorr.refsr.gate.ReferenceGate` and the agreement that it asks for: (1, 1, h, w)."""
    around = _at_pixels(g, found.flow)
    height, width = g.size(found.flow, 2), g.size(found.flow, 3)
    agreements = []
    for i in range(PATCH_SIZE):
        for j in range(PATCH_SIZE):
            if (i, j) == (1, 1):
                continue
            difference = g.sub(g.window(g.window(around, 2, i, height), 3, j, width), found.flow)
            distance = g.op("ReduceSum", g.mul(difference, difference), g.integer([1]))
            agreements.append(
                g.div(g.constant(1.0), g.add(g.div(distance, g.constant(HALF_AGREEMENT)), g.constant(1.0)))
            )
    agreement = g.div(g.total(agreements), g.constant(_POINTS - 1))
    score = _at_pixels(g, found.score)
    covering = g.op("AveragePool", _at_pixels(g, score), kernel_shape=[PATCH_SIZE] * 2, strides=[1, 1])
    hidden = g.op("Concat", score, _at_pixels(g, agreement), axis=1)
    for convolution in layer.convolutions:
        hidden = g.relu(_layer(g, hidden, convolution))
    slope = INITIAL_SLOPE * np.log1p(np.exp(float(keras.ops.convert_to_numpy(layer.raw_slope))))
    threshold = float(keras.ops.convert_to_numpy(layer.threshold))
    logit = g.mul(g.sub(covering, g.constant(threshold)), g.constant(slope))
    return g.op("Sigmoid", g.add(logit, _layer(g, hidden, layer.correction)))


# Restoring.


def _restore(g: Graph, restorer, image: str, features: dict, offsets: str, gate: str | None) -> str:
    """:class:`tfcorr.refsr.restorer.RestorationNetwork`: (1, 3, 4 * h, 4 * w)."""

    def activated(x: str) -> str:
        return g.leaky_relu(x, LEAKY_SLOPE)

    def block(x: str, layer) -> str:
        return g.add(x, _layer(g, g.relu(_layer(g, x, layer.conv1)), layer.conv2))

    def level(name: str, x: str) -> str:
        layer, scale = restorer.levels[name], LEVEL_SCALES[name]
        fused = x
        if layer.reference_width is not None:
            reference = features[LEVEL_FEATURES[name]]
            height, width = g.size(x, 2), g.size(x, 3)
            finer = g.repeat(g.mul(offsets, g.constant(float(scale))), scale)
            if layer.context == "matched":
                context = _matched_cells(g, reference, finer)
            else:
                context = g.on_grid(reference, height, width)
            hidden = activated(_layer(g, g.op("Concat", x, context, axis=1), layer.offset_conv1))
            hidden = activated(_layer(g, hidden, layer.offset_conv2))
            aggregated = activated(_aggregate(g, layer.dyn_agg, reference, hidden, finer))
            if gate is not None:
                aggregated = g.mul(aggregated, g.repeat(gate, scale))
            fused = g.op("Concat", x, aggregated, axis=1)
        hidden = activated(_layer(g, fused, layer.head))
        for residual in layer.body:
            hidden = block(hidden, residual)
        return g.add(x, hidden)

    def doubled(x: str, layer) -> str:
        return activated(g.op("DepthToSpace", _layer(g, x, layer), blocksize=2, mode="DCR"))

    def base(layer) -> tuple[dict[str, str], str]:
        """:meth:`tfcorr.refsr.single_image.SingleImageNetwork.parts`."""
        first = x = _layer(g, image, layer.conv_first)
        for residual in layer.body:
            x = block(x, residual)
        x = g.add(first, _layer(g, x, layer.conv_body))
        parts = {"small": x}
        for name, upscaler in zip(("medium", "large"), layer.upscalers, strict=True):
            x = parts[name] = doubled(x, upscaler)
        return parts, g.add(_layer(g, x, layer.conv_last), enlarged)

    weights = polyphase_weights(_SCALE, "bilinear")
    under = enlarged = g.upsample(g.upsample(image, 2, weights), 3, weights)
    entered = {}
    if restorer.base is not None:
        parts, under = base(restorer.base)
        entered = {name: _layer(g, parts[name], restorer.entries[name]) for name in parts}

    def joined(x: str, name: str) -> str:
        return g.add(x, entered[name]) if entered else x

    x = activated(entered["small"] if entered else _layer(g, image, restorer.conv_first))
    for residual in restorer.content_body:
        x = block(x, residual)
    x = doubled(level("small", x), restorer.tail_small)
    x = doubled(level("medium", joined(x, "medium")), restorer.tail_medium)
    x = activated(_layer(g, level("large", joined(x, "large")), restorer.tail_large1))
    residual = _layer(g, x, restorer.tail_large2)
    if restorer.base is not None and gate is not None:
        residual = g.mul(residual, g.repeat(gate, _SCALE))
    return g.add(residual, under)


def _matched_cells(g: Graph, reference: str, offsets: str) -> str:
    """:func:`tfcorr.refsr.matching.matched_cells`: (1, C, h, w)."""
    middle = _POINTS // 2
    flow = g.op("Round", g.slice(offsets, 1, 2 * middle, 2 * middle + 2))
    flow = g.op("Squeeze", g.op("Cast", flow, to=7), g.integer([0]))
    # A ring of zeros around is what matches outside read.
    ringed = g.pad(reference, [2, 3], [1, 1, 1, 1])
    here = [
        g.op("Unsqueeze", g.range(g.size(offsets, 2)), g.integer([1])),
        g.range(g.size(offsets, 3)),
    ]
    places = []
    for number, axis in enumerate((2, 3)):
        place = g.add(g.take(flow, g.integer(number), 0), here[number])
        place = g.op("Min", g.op("Max", place, g.integer(-1)), g.size(reference, axis))
        places.append(g.add(place, g.integer(1)))
    index = g.add(g.mul(places[0], g.size(ringed, 3)), places[1])
    cells = g.take(g.reshape(ringed, g.size(ringed, 1), -1), index, 1)
    return g.op("Unsqueeze", cells, g.integer([0]))


def _aggregate(g: Graph, layer, reference: str, hidden: str, pre_offset: str) -> str:
    """:class:`tfcorr.refsr.aggregation.DynamicAggregation` by DeformConv."""
    groups = layer.deform_groups
    predicted = _layer(g, hidden, layer.conv_offset_mask)
    learned = g.slice(predicted, 1, 0, 2 * _POINTS * groups)
    logits = g.slice(predicted, 1, 2 * _POINTS * groups, 3 * _POINTS * groups)
    offset = g.add(learned, g.op("Concat", *[pre_offset] * groups, axis=1))
    mask = g.op("Sigmoid", logits)
    height, width = g.size(hidden, 2), g.size(hidden, 3)
    common = [g.op("Max", g.size(reference, axis), size) for axis, size in ((2, height), (3, width))]
    aggregated = g.op(
        "DeformConv",
        g.on_grid(reference, *common),
        g.constant(np.transpose(keras.ops.convert_to_numpy(layer.kernel), (3, 2, 0, 1))),
        g.on_grid(offset, *common),
        g.constant(keras.ops.convert_to_numpy(layer.bias)),
        g.on_grid(mask, *common),
        kernel_shape=[PATCH_SIZE] * 2,
        pads=[1, 1, 1, 1],
        offset_group=groups,
    )
    return _cropped(g, aggregated, height, width)


# Colours.


def _match_low_frequencies(g: Graph, image: str, lr: str) -> str:
    """:func:`tfcorr.serving.pixels.match_low_frequencies`."""
    weights, taps = polyphase_weights(_SCALE, "bicubic"), pixels.reduction_taps()
    gaussian = pixels.gaussian()
    tolerance = g.constant(pixels.TOLERANCE)
    result = g.clip(image, 0.0, 1.0)
    for _ in range(pixels.PASSES):
        small = g.reduce(g.reduce(result, 3, taps, _SCALE), 2, taps, _SCALE)
        difference = g.sub(lr, g.clip(small, 0.0, 1.0))
        for axis in (2, 3):
            kernel = gaussian.reshape((-1, 1) if axis == 2 else (1, -1))
            kernel = g.constant(np.tile(kernel, (3, 1, 1, 1)))
            difference = g.op("Conv", g.mirrored(difference, axis, pixels.RADIUS), kernel, group=3)
        size = g.op("Max", g.sub(g.op("Abs", difference), tolerance), g.constant(0.0))
        correction = g.mul(g.op("Sign", difference), size)
        correction = g.upsample(g.upsample(correction, 2, weights), 3, weights)
        result = g.clip(g.add(result, correction), 0.0, 1.0)
    return result
