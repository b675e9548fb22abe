"""Bringing weights from PyTorch into Keras layers: all names and shapes are checked before one is set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfcorr.errors import TfcorrError

__all__ = [
    "PublishedWeightsError",
    "Variables",
    "add_convolution",
    "add_normalization",
    "assign",
    "state_dict",
]

#: Published name -> (our variable, what brings the published array into its layout).
Variables = dict[str, tuple[keras.Variable, Callable[[np.ndarray], np.ndarray]]]


class PublishedWeightsError(TfcorrError):
    """A checkpoint does not hold the network that it is read as; the message names what differs."""


def state_dict(content: Any, what: str) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by name.

    Args:
        content: from `tfcorr.torch_checkpoint.read_checkpoint`: a state_dict, or a dictionary with one under
            `params` or `state_dict`; names may begin with `module.`.
        what: for the message.

    Raises:
        PublishedWeightsError: there is none.
    """
    for key in ("params", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not (
        isinstance(content, Mapping)
        and content
        and all(isinstance(name, str) for name in content)
        and all(isinstance(value, np.ndarray) for value in content.values())
    ):
        raise PublishedWeightsError(f"{what}: no state_dict, that is a dictionary from names to tensors")
    return {name.removeprefix("module."): value for name, value in content.items()}


def add_convolution(variables: Variables, name: str, layer: Any, *, shuffled: bool = False) -> None:
    """Names the kernel and the bias of a convolution, or of a dense layer that was one of 1x1.

    Args:
        variables: added to.
        name: in the checkpoint, without `.weight` and `.bias`.
        layer: has `kernel` (kh, kw, in, out) or (in, out), and `bias`.
        shuffled: whether PyTorch's pixel shuffle by 2 follows, where we have `depth_to_space`.
    """
    order = _depth_to_space if shuffled else np.asarray

    def kernel(array: np.ndarray) -> np.ndarray:
        turned = order(array).transpose(2, 3, 1, 0)
        return turned.reshape(turned.shape[2:]) if len(layer.kernel.shape) == 2 else turned

    variables[f"{name}.weight"] = (layer.kernel, kernel)
    variables[f"{name}.bias"] = (layer.bias, order)


def add_normalization(variables: Variables, name: str, layer: keras.layers.BatchNormalization) -> None:
    """Names scale, shift and running statistics of a batch normalisation."""
    parts = {
        "weight": layer.gamma,
        "bias": layer.beta,
        "running_mean": layer.moving_mean,
        "running_var": layer.moving_variance,
    }
    variables.update({f"{name}.{part}": (variable, np.asarray) for part, variable in parts.items()})


def _depth_to_space(array: np.ndarray) -> np.ndarray:
    """Output channels 4 c + k of a pixel shuffle in the order k C + c of `depth_to_space`."""
    return array.reshape(-1, 4, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def assign(variables: Variables, weights: Mapping[str, np.ndarray]) -> None:
    """Sets variables to published values, after all names and shapes were compared.

    Args:
        variables: what there is here.
        weights: published name -> array.

    Raises:
        PublishedWeightsError: a name is missing or unknown, or an array has another shape; nothing was set.
    """
    if missing := sorted(set(variables) - set(weights)):
        raise PublishedWeightsError(f"{len(missing)} weights are missing, first {missing[0]}")
    if unknown := sorted(set(weights) - set(variables)):
        raise PublishedWeightsError(f"{len(unknown)} weights are unknown, first {unknown[0]}")
    values = {}
    for name, (variable, convert) in variables.items():
        try:
            value = convert(weights[name]).astype(np.float32)
        except ValueError:
            value = None  # of another rank than the conversion expects, or no 1x1 kernel
        if value is None or value.shape != tuple(variable.shape):
            raise PublishedWeightsError(
                f"{name} has shape {weights[name].shape}, which does not fit {variable.path} "
                f"{tuple(variable.shape)}"
            )
        if not np.isfinite(value).all():
            raise PublishedWeightsError(f"{name} has values that are not finite")
        values[name] = value
    for name, (variable, _) in variables.items():
        variable.assign(values[name])
