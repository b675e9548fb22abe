"""EfficientNet-Lite0, small enough for a CPU: ReLU6, no squeeze-and-excitation, "same" padding.

Weights are read from an NPZ file with the names of the PyTorch state dict and kernels transposed for Keras:
for block N ``_blocks.N._expand_conv.weight`` (1, 1, in, 6 in), ``_blocks.N._depthwise_conv.weight`` (k, k, C,
1), ``_blocks.N._project_conv.weight`` (1, 1, C, out), each followed by a normalisation ``_blocks.N._bn0``,
``_bn1``, ``_bn2`` of ``.weight``, ``.bias``, ``.running_mean``, ``.running_var``; ``_conv_stem.weight`` and
``_bn0`` before them; after them the classifier, which is not needed here.
"""

from __future__ import annotations

import os

import keras

from tfcorr.errors import TfcorrError
from tfcorr.weights import opened_npz

# (kernel, stride, expansion, output width, how many) of the stages.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM = 32
#: The last block at each stride.
LAST_BLOCKS = {4: 2, 8: 4, 16: 10, 32: 15}
# Of the classifier, which a file may hold and this network has not.
_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")
_NORMALISATION = ("weight", "bias", "running_mean", "running_var")


def preprocess(images):
    """RGB in [0, 1] -> what the weights were trained on: (255 x - 127) / 128."""
    return (images * 255.0 - 127.0) / 128.0


def efficientnet_lite0() -> keras.Model:
    """The network without its classifier, with random weights.

    Returns:
        Model from (B, H, W, 3), see :func:`preprocess`, to the outputs of all 16 blocks.
    """
    image = keras.Input((None, None, 3))
    x = _conv(image, _STEM, 3, 2, "conv_stem")
    x = keras.layers.ReLU(6.0, name="stem_activation")(_normalised(x, "bn0"))
    outputs = []
    for kernel, stride, expansion, width, repeats in _STAGES:
        for repeat in range(repeats):
            x = _block(x, len(outputs), kernel, stride if repeat == 0 else 1, expansion, width)
            outputs.append(x)
    return keras.Model(image, outputs, name="efficientnet_lite0")


def _conv(x, width, kernel, stride, name):
    return keras.layers.Conv2D(width, kernel, stride, "same", use_bias=False, name=name)(x)


def _normalised(x, name):
    return keras.layers.BatchNormalization(epsilon=1e-3, name=name)(x)


def _block(x, number, kernel, stride, expansion, width):
    """Expand, filter each channel, project; the input is added where shapes agree."""
    prefix, before = f"blocks_{number}_", x
    channels = x.shape[-1]
    if expansion > 1:
        x = _normalised(_conv(x, expansion * channels, 1, 1, f"{prefix}expand_conv"), f"{prefix}bn0")
        x = keras.layers.ReLU(6.0, name=f"{prefix}expand_activation")(x)
    x = keras.layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{prefix}depthwise_conv")(
        x
    )
    x = keras.layers.ReLU(6.0, name=f"{prefix}activation")(_normalised(x, f"{prefix}bn1"))
    x = _normalised(_conv(x, width, 1, 1, f"{prefix}project_conv"), f"{prefix}bn2")
    if stride == 1 and channels == width:
        x = keras.layers.Add(name=f"{prefix}add")([x, before])
    return x


def load_weights(network: keras.Model, path: str | os.PathLike) -> None:
    """Fills a network with the weights of a file (see the module's description).

    Args:
        network: from :func:`efficientnet_lite0`.
        path: of the ``.npz`` file.

    Raises:
        FileNotFoundError: there is no such file.
        TfcorrError: it is no NPZ file, or a name or shape in it is not the network's; says which. Nothing has
            been changed then.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    wanted = {
        f"{stored}.{part}": variable
        for layer in network.layers
        if layer.weights
        for stored in [_stored_name(layer.name)]
        for part, variable in zip(_NORMALISATION, layer.weights, strict=False)
    }
    try:
        with opened_npz(path) as archive:
            values = {n: archive[n] for n in archive.files if not n.startswith(_CLASSIFIER)}
    except (OSError, ValueError) as error:
        raise TfcorrError(f"{path}: not an NPZ file of weights ({error})") from error
    for name in sorted(wanted.keys() ^ values.keys()):
        raise TfcorrError(f"{path}: {name} is {'missing' if name in wanted else 'unknown'}")
    for name, variable in wanted.items():
        if values[name].shape != tuple(variable.shape):
            raise TfcorrError(
                f"{path}: {name} has shape {values[name].shape}, expected {tuple(variable.shape)}"
            )
    for name, variable in wanted.items():
        variable.assign(values[name])


def _stored_name(layer: str) -> str:
    """Name of a layer's weights in a file: ``blocks_3_bn0`` -> ``_blocks.3._bn0``."""
    if not layer.startswith("blocks_"):
        return f"_{layer}"
    _, number, rest = layer.split("_", 2)
    return f"_blocks.{number}._{rest}"
