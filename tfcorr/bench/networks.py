"""The networks that pipelines are measured with: random weights or a model folder, and their operations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfcorr.refsr.extractor import CONVOLUTIONS, FEATURE_WIDTHS
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.restorer import LEVEL_FEATURES, LEVEL_SCALES, LEVELS, PRESETS, RestorerSizes

_TAPS = 9
_SCALE = 4
# The restorers of the paper.
_PUBLISHED = ("full", "light")


def make_model(name: str, precision: str = "float32") -> C2Matching:
    """A model to be measured; the same weights in every process.

    Args:
        name: a preset of `tfcorr.refsr.restorer.PRESETS` with random weights, those of the paper (`full`,
            `light`) with its third extractor; else a model of `tfcorr models` or a model folder.
        precision: `"float32"` or `"bfloat16"`.

    Raises:
        TfcorrError: no such model.
    """
    import keras

    if name not in PRESETS:
        from tfcorr.pretrained import load_super_resolution

        return load_super_resolution(name, precision=precision)[0]
    keras.utils.set_random_seed(0)
    source = "vgg19" if name in _PUBLISHED else "matcher"
    policy = "float32" if precision == "float32" else "mixed_bfloat16"
    model = C2Matching.from_architecture({"restorer": name, "reference_features": source}, dtype=policy)
    # As Keras initialises it the network passes little on, and its offsets are all zero: an aggregation would
    # be read from the cache alone, and a peer that computes something else would not be noticed.
    rng = np.random.default_rng(0)
    for weight in model.restorer.weights:
        if weight.path.endswith("kernel"):
            gain = 0.3 if "conv2/" in weight.path else 1.0
            weight.assign(rng.normal(0.0, gain / math.sqrt(math.prod(weight.shape[:-1])), weight.shape))
    return model


def make_images(height: int, width: int, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An input (height, width, 3) and a reference four times as large, uint8: smooth random textures.

    The reference is the sharp original of the input, rolled, so that matches lie all over it.
    """
    import cv2

    rng = np.random.default_rng(number)
    size = (_SCALE * width, _SCALE * height)
    layers = [
        cv2.resize(
            rng.uniform(-1, 1, (max(2, size[1] // cell), max(2, size[0] // cell), 3)).astype(np.float32),
            size,
            interpolation=cv2.INTER_CUBIC,
        )
        for cell in (4, 16, 64)
    ]
    sharp = np.clip(128 + 50 * sum(layers), 0, 255).astype(np.uint8)
    small = cv2.resize(sharp, (width, height), interpolation=cv2.INTER_AREA)
    return small, np.ascontiguousarray(np.roll(sharp, (size[1] // 3, size[0] // 5), axis=(0, 1)))


def pipeline_flops(model: C2Matching, height: int, width: int) -> int | None:
    """Floating-point operations of the products in an upscaling, as our pipeline does them.

    Convolutions, deformable ones included, and the C-channel product of the matching: two operations a
    multiplication. What is no product (sampling, pooling, sums of the matching) does not count. None for a
    network over a single-image one, which is not counted here.

    Args:
        model: the network.
        height, width: of the input; the reference is four times as large.
    """
    if model.restorer.config.base is not None:
        return None
    pixels = height * width
    extractors = 2 if model.vgg is None else 3
    matching = 2 * pixels**2 * CONVOLUTIONS[-1][1]
    return extractors * _extractor(pixels) + matching + pixels * _restorer(model.restorer.config)


def _convolution(inputs: int, outputs: int) -> int:
    return 2 * _TAPS * inputs * outputs


def _extractor(pixels: int) -> int:
    """Of one extractor; its image has 16 pixels for each of the input's."""
    total, width = 0, 3
    cells = {"conv1": _SCALE**2, "conv2": _SCALE, "conv3": 1}
    for name, filters in CONVOLUTIONS:
        total += cells[name.split("_")[0]] * _convolution(width, filters)
        width = filters
    return pixels * total


def _restorer(sizes: RestorerSizes) -> int:
    """Of a restorer, for one pixel of its input."""
    features = sizes.features
    block = 2 * _convolution(features, features)
    total = _convolution(3, features) + sizes.content_blocks * block
    for number, level in enumerate(LEVELS):
        here, fused = sizes.blocks[number] * block, features
        if level in sizes.reference_levels:
            reference = FEATURE_WIDTHS[LEVEL_FEATURES[level]]
            hidden, aggregated = sizes.offset_widths[number], sizes.aggregated_widths[number]
            here += _convolution(features + reference, hidden) + _convolution(hidden, hidden)
            here += _convolution(hidden, 3 * _TAPS * sizes.deform_groups)
            here += _convolution(reference, aggregated)
            fused += aggregated
        here += _convolution(fused, features)
        if level == "large":
            here += _convolution(features, features // 2) + _convolution(features // 2, 3)
        else:
            here += _convolution(features, 4 * features)
        total += LEVEL_SCALES[level] ** 2 * here
    return total


def describe_model(name: str, model: C2Matching) -> dict[str, Any]:
    """What a result says of its network."""
    return {"name": name, "parameters": sum(math.prod(weight.shape) for weight in model.weights)}
