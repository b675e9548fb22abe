"""The authors' published weights of C2-Matching, brought into our networks.

They lie in two files: the extractors (`feature_extraction.pth`), and the restoration network
(`c2_matching_restoration.pth`, or the one that was trained with the reconstruction loss alone). VGG19, whose
features are aggregated, has the weights of ImageNet, as in their programs. Sizes are read off the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from tfcorr.published import PublishedWeightsError, Variables, add_convolution, assign
from tfcorr.refsr.extractor import CONVOLUTIONS, CorrespondenceNetwork
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.restorer import LEVELS, RestorationNetwork, RestorerSizes

__all__ = ["load_extractors", "load_restorer", "published_model", "restorer_sizes"]

_CONTENT, _RESTORE = "content_extractor", "dyn_agg_restore"
_EXTRACTORS = {
    "input_extractor": "feature_extraction_image1",
    "reference_extractor": "feature_extraction_image2",
}
# Of a deformable group: nine points, each with dy, dx and mask.
_OFFSET_CHANNELS = 27


def published_model(extractors: Mapping[str, np.ndarray], restorer: Mapping[str, np.ndarray]) -> C2Matching:
    """C2-Matching with published weights; VGG19 within it is random still.

    Args:
        extractors, restorer: see `load_extractors` and `load_restorer`.

    Raises:
        PublishedWeightsError: they are not what they should be.
    """
    model = C2Matching(restorer_sizes(restorer), "vgg19")
    model.build()
    load_extractors(model.correspondence, extractors)
    load_restorer(model.restorer, restorer)
    return model


def load_extractors(network: CorrespondenceNetwork, weights: Mapping[str, np.ndarray]) -> None:
    """Fills the matcher with published weights.

    Args:
        network: built.
        weights: `feature_extraction_image1.model.conv1_1.weight` (OIHW) and so on; the constants `mean` and
            `std` of each may be there.

    Raises:
        PublishedWeightsError: a name is missing or unknown, or an array has another shape; nothing was set.
    """
    variables: Variables = {}
    constants = set()
    for ours, theirs in _EXTRACTORS.items():
        for name, _ in CONVOLUTIONS:
            add_convolution(variables, f"{theirs}.model.{name}", getattr(getattr(network, ours), name))
        constants |= {f"{theirs}.mean", f"{theirs}.std"}
    assign(variables, {name: value for name, value in weights.items() if name not in constants})


def load_restorer(network: RestorationNetwork, weights: Mapping[str, np.ndarray]) -> None:
    """Fills the restoration network with published weights.

    Args:
        network: built, of the sizes that `restorer_sizes` gives.
        weights: `content_extractor.conv_first.weight` (OIHW) and so on.

    Raises:
        PublishedWeightsError: a name is missing or unknown, or an array has another shape; nothing was set.
    """
    variables: Variables = {}
    add_convolution(variables, f"{_CONTENT}.conv_first", network.conv_first)
    _add_body(variables, f"{_CONTENT}.body", network.content_body)
    for name, level in network.levels.items():
        prefix = f"{_RESTORE}.{name}"
        if level.reference_width is not None:
            add_convolution(variables, f"{prefix}_offset_conv1", level.offset_conv1)
            add_convolution(variables, f"{prefix}_offset_conv2", level.offset_conv2)
            add_convolution(variables, f"{prefix}_dyn_agg", level.dyn_agg)
            add_convolution(variables, f"{prefix}_dyn_agg.conv_offset_mask", level.dyn_agg.conv_offset_mask)
        add_convolution(variables, f"{_RESTORE}.head_{name}.0", level.head)
        _add_body(variables, f"{_RESTORE}.body_{name}", level.body)
    add_convolution(variables, f"{_RESTORE}.tail_small.0", network.tail_small, shuffled=True)
    add_convolution(variables, f"{_RESTORE}.tail_medium.0", network.tail_medium, shuffled=True)
    add_convolution(variables, f"{_RESTORE}.tail_large.0", network.tail_large1)
    add_convolution(variables, f"{_RESTORE}.tail_large.2", network.tail_large2)
    assign(variables, weights)


def _add_body(variables: Variables, name: str, body: list) -> None:
    for number, block in enumerate(body):
        add_convolution(variables, f"{name}.{number}.conv1", block.conv1)
        add_convolution(variables, f"{name}.{number}.conv2", block.conv2)


def restorer_sizes(weights: Mapping[str, np.ndarray]) -> RestorerSizes:
    """The sizes of a published restoration network, read off the shapes of its weights.

    Raises:
        PublishedWeightsError: a layer that tells one is missing.
    """

    def width(name: str) -> int:
        if f"{name}.weight" not in weights:
            raise PublishedWeightsError(
                f"{name}.weight is missing: not the weights of C2-Matching's restoration network"
            )
        return weights[f"{name}.weight"].shape[0]

    def blocks(body: str) -> int:
        matches = (re.match(rf"{re.escape(body)}\.(\d+)\.", name) for name in weights)
        return 1 + max((int(match[1]) for match in matches if match), default=-1)

    return RestorerSizes(
        features=width(f"{_CONTENT}.conv_first"),
        content_blocks=blocks(f"{_CONTENT}.body"),
        blocks=tuple(blocks(f"{_RESTORE}.body_{level}") for level in LEVELS),
        offset_widths=tuple(width(f"{_RESTORE}.{level}_offset_conv1") for level in LEVELS),
        aggregated_widths=tuple(width(f"{_RESTORE}.{level}_dyn_agg") for level in LEVELS),
        deform_groups=width(f"{_RESTORE}.small_dyn_agg.conv_offset_mask") // _OFFSET_CHANNELS,
    )
