"""The contrastive correspondence network (paper, section 3.1 and table 2).

Two feature extractors of one architecture and separate weights: one sees the low-resolution input after fixed
bicubic upsampling, the other the sharp reference. Both are the first five convolutions of VGG16.
"""

from __future__ import annotations

import os

import keras
import numpy as np
from keras import ops

from tfcorr.refsr.upsampling import BicubicUpsampling
from tfcorr.weights import check_hdf5, opened_npz

#: Width of each feature of a reference, and how many pixels one of its cells is wide. An extractor gives all
#: but ``detail``, which comes from a restorer's base (:mod:`tfcorr.refsr.detail`).
FEATURE_WIDTHS = {"relu1_1": 64, "relu2_1": 128, "relu3_1": 256, "detail": 4}
FEATURE_STRIDES = {"relu1_1": 1, "relu2_1": 2, "relu3_1": 4, "detail": 1}

#: What an image is normalised with, RGB in [0, 1].
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
_CAFFE_MEAN = np.array((123.68, 116.779, 103.939), np.float32)  # RGB, 0 to 255.
#: Layers of an extractor and their widths, in their order.
CONVOLUTIONS = (("conv1_1", 64), ("conv1_2", 64), ("conv2_1", 128), ("conv2_2", 128), ("conv3_1", 256))
# The same five layers: torchvision's `features.N` and keras.applications' `blockI_convJ`.
_TORCHVISION_NAMES = {"conv1_1": "0", "conv1_2": "2", "conv2_1": "5", "conv2_2": "7", "conv3_1": "10"}


class FeatureExtractor(keras.Model):
    """VGG16 up to conv3_1 (table 2), with ImageNet normalisation inside.

    Serves as one side of the matcher and, with its own or VGG19's weights (the two have the same layers up to
    here), as the source of the reference features that the restorer aggregates.

    Call arguments:
        image: (B, H, W, 3) float, RGB in [0, 1].
        last: Name of the deepest feature wanted; layers behind it are not computed.

    Returns:
        dict of (B, H // s, W // s, C): ``relu1_1`` (s = 1, C = 64), ``relu2_1`` (2, 128), ``relu3_1`` (4,
        256) and ``conv3_1`` (4, 256), the descriptor: ``relu3_1`` before its ReLU. Pooling floors odd sizes.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for name, width in CONVOLUTIONS:
            layer = keras.layers.Conv2D(
                width, 3, padding="same", kernel_initializer="he_normal", dtype=self.dtype_policy, name=name
            )
            setattr(self, name, layer)
        self.pool = keras.layers.MaxPooling2D(2, name="pool")

    def build(self, input_shape=None):
        width = 3
        for name, filters in CONVOLUTIONS:
            getattr(self, name).build((None, None, None, width))
            width = filters
        self.built = True

    def call(self, image, last: str = "conv3_1"):
        dtype = self.compute_dtype
        mean = ops.convert_to_tensor(np.array(IMAGE_MEAN, "float32"))
        std = ops.convert_to_tensor(np.array(IMAGE_STD, "float32"))
        x = ops.cast((ops.cast(image, "float32") - mean) / std, dtype)
        features = {"relu1_1": ops.relu(self.conv1_1(x))}
        if last == "relu1_1":
            return features
        x = self.pool(ops.relu(self.conv1_2(features["relu1_1"])))
        features["relu2_1"] = ops.relu(self.conv2_1(x))
        if last == "relu2_1":
            return features
        x = self.pool(ops.relu(self.conv2_2(features["relu2_1"])))
        features["conv3_1"] = self.conv3_1(x)
        features["relu3_1"] = ops.relu(features["conv3_1"])
        return features


class CorrespondenceNetwork(keras.Model):
    """The pair of extractors whose descriptors are matched (paper, section 3.1).

    Call arguments:
        inputs: dict of ``input``, the low-resolution image after x4 upsampling (or, for a teacher, the sharp
            image), and ``reference``: both (B, H, W, 3) float, RGB in [0, 1], any sizes.

    Returns:
        ``(query, reference)`` descriptors (B, H // 4, W // 4, 256), float32, not normalised.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.input_extractor = FeatureExtractor(name="input_extractor", dtype=self.dtype_policy)
        self.reference_extractor = FeatureExtractor(name="reference_extractor", dtype=self.dtype_policy)
        self.upsampling = BicubicUpsampling(4, quantize=True, dtype="float32", name="upsampling")

    def build(self, input_shape=None):
        self.input_extractor.build()
        self.reference_extractor.build()
        self.built = True

    def call(self, inputs):
        query = self.input_extractor(inputs["input"])["conv3_1"]
        reference = self.reference_extractor(inputs["reference"])["conv3_1"]
        return ops.cast(query, "float32"), ops.cast(reference, "float32")

    def query_features(self, low_resolution):
        """One descriptor a pixel: (B, h, w, 3) in [0, 1] -> float32 (B, h, w, 256)."""
        upsampled = self.upsampling(ops.cast(low_resolution, "float32"))
        return ops.cast(self.input_extractor(upsampled)["conv3_1"], "float32")

    def reference_features(self, reference):
        """All features of a reference: (B, H, W, 3) in [0, 1] -> dict, see :class:`FeatureExtractor`."""
        return self.reference_extractor(reference)


def load_imagenet_weights(extractor: FeatureExtractor, source: str, architecture: str = "vgg16") -> None:
    """Fills an extractor with ImageNet weights.

    Args:
        extractor: A :class:`FeatureExtractor`; it is built if it was not.
        source: ``"imagenet"`` (downloaded by ``keras.applications``), or a file: ``.npz`` with torchvision's
            names (``features.0.weight`` OIHW, ``features.0.bias``, ...) or plain ones (``conv1_1.weight``
            OIHW, ``conv1_1.bias``), or a ``.h5`` of ``keras.applications`` without the top.
        architecture: ``"vgg16"`` (matcher) or ``"vgg19"`` (reference features of the paper).

    ``keras.applications`` holds the Caffe weights: BGR, 0 to 255, only the mean removed. They are folded into
    this module's convention (RGB, [0, 1], mean and deviation), which is that of torchvision.

    Raises:
        ValueError: ``architecture`` or the file's content is not one of the above.
        FileNotFoundError: the file does not exist.
        RuntimeError: the download failed; the message names both ways to get the weights.
    """
    if architecture not in ("vgg16", "vgg19"):
        raise ValueError(f"`architecture` must be 'vgg16' or 'vgg19', got {architecture!r}")
    if not extractor.built:
        extractor.build()
    if source != "imagenet" and not os.path.isfile(source):
        raise FileNotFoundError(f"no weights file at {source!r}; give 'imagenet' or a .npz or .h5 file")
    if source.endswith(".npz"):
        weights = _from_npz(source)
    else:
        weights = _from_keras_applications(source, architecture)
    for name, _ in CONVOLUTIONS:
        getattr(extractor, name).set_weights(weights[name])


def _from_npz(path: str) -> dict[str, list[np.ndarray]]:
    with opened_npz(path) as archive:
        weights = {}
        for name, number in _TORCHVISION_NAMES.items():
            prefix = next((p for p in (f"features.{number}", name) if f"{p}.weight" in archive), None)
            if prefix is None:
                raise ValueError(
                    f"{path}: no array 'features.{number}.weight' or '{name}.weight', "
                    f"found {archive.files[:4]}..."
                )
            weights[name] = [archive[f"{prefix}.weight"].transpose(2, 3, 1, 0), archive[f"{prefix}.bias"]]
    return weights


def _from_keras_applications(source: str, architecture: str) -> dict[str, list[np.ndarray]]:
    build = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}[architecture]
    try:
        if source != "imagenet":
            check_hdf5(source)
        vgg = build(include_top=False, weights=source)
    except Exception as error:  # Whatever Keras' downloader met: URL, socket, checksum or HDF5 errors.
        raise RuntimeError(
            f"could not get the ImageNet weights of {architecture} from {source!r} ({error}). Two ways: run "
            "once where keras.applications can download them, or name a file in the configuration "
            "(.npz with torchvision's names, or keras.applications' *_notop.h5)"
        ) from error
    weights = {}
    for name, _ in CONVOLUTIONS:
        block, number = name.removeprefix("conv").split("_")
        kernel, bias = vgg.get_layer(f"block{block}_conv{number}").get_weights()
        if name == "conv1_1":
            # Caffe input = 255 * RGB - caffe_mean = 255 * std * normalised + (255 * mean - caffe_mean). The
            # constant, half a grey level, goes into the bias: exact but for the outermost pixel, where
            # padding enters.
            kernel = kernel[:, :, ::-1, :]
            bias = bias + kernel.sum((0, 1)).T @ (255.0 * np.array(IMAGE_MEAN, np.float32) - _CAFFE_MEAN)
            kernel = kernel * (255.0 * np.array(IMAGE_STD, np.float32))[None, None, :, None]
        weights[name] = [kernel, bias]
    return weights
