"""The authors' published weights of PMD, brought into our network.

A checkpoint (`pascal_weakly.pt` and others) is a dictionary of three state_dicts: `state_dict1` and
`state_dict2`, the adaptation layers at strides 16 and 32, and `chn4_dict`, the attention. The backbone, a
ResNet-101 with weights of ImageNet, is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfcorr.published import (
    PublishedWeightsError,
    Variables,
    add_convolution,
    add_normalization,
    assign,
    state_dict,
)
from tfcorr.semantic.network import MatchingHead

__all__ = ["published_head"]

_ADAPTATIONS = {"16": "state_dict1", "32": "state_dict2"}
_ATTENTION = "chn4_dict"
_COUNTER = "num_batches_tracked"


def published_head(content: Any) -> MatchingHead:
    """The student's head with published weights; its sizes are read off their shapes.

    Args:
        content: from `tfcorr.torch_checkpoint.read_checkpoint`.

    Raises:
        PublishedWeightsError: one of the three parts is missing, or has a name or a shape that it should not
            have.
    """
    parts = (*_ADAPTATIONS.values(), _ATTENTION)
    if not isinstance(content, Mapping) or not set(parts) <= set(content):
        raise PublishedWeightsError(f"not a checkpoint of PMD, which has {', '.join(parts)}")
    weights = {}
    for part in parts:
        for name, array in state_dict(content[part], part).items():
            if not name.endswith(_COUNTER):
                weights[f"{part}.{name}"] = array
    first = {}
    for part in _ADAPTATIONS.values():
        kernel = weights.get(f"{part}.conv1.0.weight")
        if kernel is None or kernel.ndim != 4:
            raise PublishedWeightsError(f"{part} has no kernel conv1.0.weight (O, I, kh, kw)")
        first[part] = kernel.shape
    head = MatchingHead(
        tuple(shape[1] for shape in first.values()), kernel_sizes=tuple(shape[2] for shape in first.values())
    )
    head.build()
    variables: Variables = {}
    for level, part in _ADAPTATIONS.items():
        for number, (conv, norm) in enumerate(head.adaptations[level].layers_of_blocks, start=1):
            add_convolution(variables, f"{part}.conv{number}.0", conv)
            add_normalization(variables, f"{part}.conv{number}.1", norm)
    add_convolution(variables, f"{_ATTENTION}.mu_conv.0", head.attention.dense)
    add_normalization(variables, f"{_ATTENTION}.mu_conv.1", head.attention.normalization)
    assign(variables, weights)
    return head
