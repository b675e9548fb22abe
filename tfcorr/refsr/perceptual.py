"""Fixed networks under whose features the perceptual loss compares images (supplement B, eq. 11)."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from tfcorr.errors import TfcorrError
from tfcorr.refsr.losses import perceptual_loss
from tfcorr.weights import opened_npz

#: Layers of VGG19 up to the one of eq. 11, and their places in torchvision's `features`.
_VGG19_LAYERS = {
    "block1_conv1": 0,
    "block1_conv2": 2,
    "block2_conv1": 5,
    "block2_conv2": 7,
    "block3_conv1": 10,
    "block3_conv2": 12,
    "block3_conv3": 14,
    "block3_conv4": 16,
    "block4_conv1": 19,
    "block4_conv2": 21,
    "block4_conv3": 23,
    "block4_conv4": 25,
    "block5_conv1": 28,
}
_LITE0_STRIDES = (8, 16)


class PerceptualNetwork:
    """Features of images under a fixed network, and the loss between those of two.

    No Keras object on purpose: its weights are none of the trainer's, and no checkpoint holds them.

    Args:
        name: ``"vgg19"``, its relu5_1 (the paper), or ``"lite0"``, EfficientNet-Lite0 at strides 8 and 16,
            whose weights are a fifth of the size, for where VGG19's cannot be had. Not in the paper.
        weights: ``"imagenet"`` (``vgg19``, downloaded by `keras.applications`), or a file: for ``vgg19`` an
            ``.npz`` with torchvision's names (``features.0.weight`` OIHW, ...) or a ``..._notop.h5`` of
            `keras.applications`; for ``lite0`` see `tfcorr.backbones`.
        norm: see `tfcorr.refsr.losses.perceptual_loss`.

    Raises:
        ValueError: unknown ``name``.
        TfcorrError: the weights cannot be had, or do not fit.
    """

    def __init__(self, name: str, weights: str, norm: str = "batch"):
        if name not in ("vgg19", "lite0"):
            raise ValueError(f"`name` must be 'vgg19' or 'lite0', got {name!r}")
        self.norm = norm
        self._features = _vgg19(weights) if name == "vgg19" else _lite0(weights)

    def features(self, images) -> Sequence:
        """(B, H, W, 3) RGB in [0, 1] -> one or more (B, h, w, C); differentiable in the images."""
        return self._features(images)

    def loss(self, high_resolution, restored):
        """Perceptual loss of two batches (B, H, W, 3) in [0, 1], summed over the features; a scalar."""
        pairs = zip(self.features(high_resolution), self.features(restored), strict=True)
        return sum(perceptual_loss(truth, ours, norm=self.norm) for truth, ours in pairs)


def _vgg19(weights: str):
    from_torchvision = weights.endswith(".npz")
    try:
        network = keras.applications.VGG19(include_top=False, weights=None if from_torchvision else weights)
        if from_torchvision:
            _fill(network, weights)
    except Exception as error:  # Whatever the downloader or a file's reader met.
        raise TfcorrError(
            f"perceptual: could not get VGG19's weights from {weights!r} ({error}). Ways: run once where "
            "keras.applications can download them ('imagenet'), name a file (.npz with torchvision's names, "
            "or a *_notop.h5 of keras.applications), or use the network 'lite0'"
        ) from error
    network = keras.Model(network.inputs, network.get_layer("block5_conv1").output)
    network.trainable = False
    mode = "torch" if from_torchvision else "caffe"

    def features(images):
        pixels = 255.0 * ops.cast(images, "float32")
        return (network(keras.applications.imagenet_utils.preprocess_input(pixels, mode=mode)),)

    return features


def _fill(network: keras.Model, path: str) -> None:
    with opened_npz(path) as archive:
        for name, number in _VGG19_LAYERS.items():
            kernel, bias = archive[f"features.{number}.weight"], archive[f"features.{number}.bias"]
            network.get_layer(name).set_weights([kernel.transpose(2, 3, 1, 0), bias])


def _lite0(weights: str):
    from tfcorr.backbones import backbone

    network = backbone("efficientnet_lite0", weights=weights)
    network.trainable = False

    def features(images):
        maps = network(images)
        return [maps[stride] for stride in _LITE0_STRIDES]

    return features
