"""Backbones by name, behind one interface: RGB images in [0, 1] to a map for each stride, never trained."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

import keras

from tfcorr.backbones import efficientnet_lite0 as lite0
from tfcorr.errors import TfcorrError
from tfcorr.weights import load_weights

#: Strides whose features are looked for.
STRIDES = (4, 8, 16, 32)
_KERAS_CV = "keras_cv:"
# A side that every stride divides, to tell the layers' strides apart.
_PROBE = 256


class Backbone(keras.Model):
    """A frozen feature extractor.

    Args:
        network: from preprocessed images to a list of maps.
        strides: of those maps.
        preprocess: from (B, H, W, 3) float, RGB in [0, 1], to what ``network`` takes.

    Call arguments:
        images: (B, H, W, 3) float, RGB in [0, 1]; sides that the largest stride divides keep all the maps'
            grids aligned.

    Returns:
        dict from stride to (B, ceil(H / stride), ceil(W / stride), C), C as in ``widths``.
    """

    def __init__(self, network: keras.Model, strides: tuple[int, ...], preprocess: Callable, **kwargs):
        super().__init__(**kwargs)
        self.network = network
        self.strides = tuple(strides)
        self.preprocess = preprocess
        self.trainable = False

    @property
    def widths(self) -> dict[int, int]:
        """Number of channels at each stride."""
        return {
            stride: output.shape[-1]
            for stride, output in zip(self.strides, self.network.outputs, strict=True)
        }

    def build(self, input_shape=None):
        self.built = True

    def call(self, images, training=None):
        # Normalisations keep their ImageNet statistics, whatever trains on top.
        maps = self.network(self.preprocess(images), training=False)
        return dict(zip(self.strides, maps, strict=True))


def backbone(
    name: str = "resnet101",
    weights: str | os.PathLike | None = None,
    arguments: Mapping[str, object] | None = None,
) -> Backbone:
    """A frozen backbone.

    Args:
        name: ``"resnet101"`` (the paper's), ``"resnet50"`` or any other model of `keras.applications`, case
            and underscores ignored; ``"keras_cv:NAME"``, a backbone class or a preset of keras-cv, such as
            ``keras_cv:CSPDarkNetBackbone`` or ``keras_cv:resnet50_v2_imagenet``; ``"efficientnet_lite0"``.
        weights: None for random ones, ``"imagenet"`` (downloaded by Keras; not for ``efficientnet_lite0``),
            or a file: Keras' ``.h5`` or ``.weights.h5`` of the model without its classifier, or for
            ``efficientnet_lite0`` an ``.npz``, see `tfcorr.backbones.efficientnet_lite0`.
        arguments: for the constructor, such as ``{"alpha": 0.5}`` of MobileNet, or what a general backbone
            class of keras-cv is made of.

    Returns:
        :class:`Backbone`. For each stride it gives the last features that the network has there (of
        keras-cv: its pyramid levels); strides that it has not are missing.

    Raises:
        TfcorrError: the name is unknown, or the weights cannot be had or do not fit; the message says what to
            do.
    """
    arguments = dict(arguments or {})
    if name == "efficientnet_lite0":
        return _lite0(weights, arguments)
    if name.startswith(_KERAS_CV):
        return _keras_cv(name.removeprefix(_KERAS_CV), weights, arguments)
    return _application(name, weights, arguments)


def _lite0(weights, arguments) -> Backbone:
    if arguments:
        raise TfcorrError(f"efficientnet_lite0 takes no arguments, got {sorted(arguments)}")
    if weights == "imagenet":
        raise TfcorrError("efficientnet_lite0: nothing to download; give the .npz file of its weights")
    network = lite0.efficientnet_lite0()
    if weights is not None:
        _loaded("efficientnet_lite0", weights, lambda: lite0.load_weights(network, weights))
    outputs = [network.outputs[lite0.LAST_BLOCKS[stride]] for stride in STRIDES]
    features = keras.Model(network.inputs[0], outputs, name="features")
    return Backbone(features, STRIDES, lite0.preprocess, name="efficientnet_lite0")


def _application(name: str, weights, arguments) -> Backbone:
    models = {
        key.lower(): value
        for key, value in sorted(vars(keras.applications).items())
        if key[0].isupper() and callable(value)
    }
    make = models.get(name.lower().replace("_", ""))
    if make is None:
        raise TfcorrError(
            f"unknown backbone {name!r}; known: efficientnet_lite0, keras_cv:NAME, {', '.join(models)}"
        )
    source = weights if weights in (None, "imagenet") else os.fspath(weights)
    network = _loaded(
        name,
        weights,
        lambda: make(include_top=False, weights=source, input_shape=(None, None, 3), **arguments),
    )
    # Functions of one file share their preprocessing, which stands beside them.
    preprocess = sys.modules[make.__module__].preprocess_input
    strides, outputs = _last_at_strides(network)
    features = keras.Model(network.inputs[0], outputs, name="features")
    return Backbone(features, strides, lambda images: preprocess(images * 255.0), name=name)


def _last_at_strides(network: keras.Model) -> tuple[tuple[int, ...], list]:
    """The strides of a network and its last output at each."""
    candidates = [layer.output for layer in network.layers if isinstance(layer.output, keras.KerasTensor)]
    everything = keras.Model(network.inputs[0], candidates)
    shapes = everything.compute_output_spec(keras.KerasTensor((1, _PROBE, _PROBE, 3)))
    last = {}
    for output, probe in zip(candidates, shapes, strict=True):
        if len(probe.shape) == 4 and probe.shape[1] and _PROBE % probe.shape[1] == 0:
            last[_PROBE // probe.shape[1]] = output
    strides = tuple(stride for stride in STRIDES if stride in last)
    return strides, [last[stride] for stride in strides]


def _keras_cv(name: str, weights, arguments) -> Backbone:
    try:
        import keras_cv
    except ImportError as error:
        raise TfcorrError(f"keras_cv:{name} needs keras-cv: pip install keras-cv ({error})") from error
    if not name.isidentifier():
        # Presets may also be named by folders and addresses, from which keras-cv would load classes.
        raise TfcorrError(f"keras_cv:{name}: expected the name of a class or of a preset")
    known = getattr(keras_cv.models, name, None)
    # Rescaling to [0, 1] is keras-cv's own first layer; without it images may come as they are.
    arguments = {"include_rescaling": False, **arguments}
    rescaling = arguments["include_rescaling"]

    def make():
        if known is None:
            return keras_cv.models.Backbone.from_preset(name, load_weights=weights == "imagenet", **arguments)
        return known(**arguments)

    network = _loaded(f"{_KERAS_CV}{name}", weights, make)
    if known is not None and weights == "imagenet":
        raise TfcorrError(
            f"keras_cv:{name} is a class without weights; name one of its presets, such as "
            "keras_cv:resnet50_v2_imagenet, or give a .weights.h5 file"
        )
    if weights not in (None, "imagenet"):
        _loaded(name, weights, lambda: load_weights(network, weights))
    levels = {2 ** int(level[1:]): layer for level, layer in network.pyramid_level_inputs.items()}
    strides = tuple(stride for stride in STRIDES if stride in levels)
    outputs = [network.get_layer(levels[stride]).output for stride in strides]
    features = keras.Model(network.inputs[0], outputs, name="features")
    return Backbone(features, strides, lambda images: images * (255.0 if rescaling else 1.0), name=name)


def _loaded(name: str, weights, make: Callable):
    """Calls ``make``; what fails in it is reported with the backbone's name and what would be right."""
    try:
        return make()
    except TfcorrError:
        raise
    except Exception as error:  # URL, socket, HDF5, shape and argument errors of three libraries.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = ""
        if weights == "imagenet":
            hint = "; run once where Keras can download them, or give a file of weights"
        raise TfcorrError(f"backbone {name} with weights {weights!s}: {reason}{hint}") from error
