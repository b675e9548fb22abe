"""Channel attention for a pair of images: co-channel (section 3.2) and distribution attention (eq. 1)."""

from __future__ import annotations

import keras
from keras import ops

#: torch's default initialisation of convolutions, in which the published layers start.
KERNEL_INITIALIZER = {
    "class_name": "VarianceScaling",
    "config": {"scale": 1.0 / 3.0, "mode": "fan_in", "distribution": "uniform"},
}
#: Added to the variances of the distribution attention: ReLU gives zeros, softplus may underflow.
LEAST_VARIANCE = 1e-6


def batch_normalization(name: str, dtype=None, scale: float = 1.0) -> keras.layers.BatchNormalization:
    """Batch normalisation with torch's constants; ``scale`` is what gamma starts from."""
    return keras.layers.BatchNormalization(
        momentum=0.9,
        epsilon=1e-5,
        gamma_initializer=keras.initializers.Constant(scale),
        dtype=dtype,
        name=name,
    )


def _pooled(source, target):
    """Global average of both, side by side: two (B, h, w, C) -> (B, 2 C)."""
    return ops.concatenate([ops.mean(source, axis=(1, 2)), ops.mean(target, axis=(1, 2))], axis=-1)


def _gated(features, gate):
    return features * ops.expand_dims(ops.expand_dims(gate, 1), 1)


@keras.saving.register_keras_serializable(package="tfcorr")
class CoChannelAttention(keras.layers.Layer):
    """Weighs the channels of each image by what both contain (section 3.2).

    Args:
        form: ``"published"``: global average, one dense layer, batch normalisation, ReLU, sigmoid (so a gate
            is in [0.5, 1)). ``"paper"``: concatenation, two 1x1 convolutions, global average, sigmoid; the
            paper names neither widths nor an activation between the two.
        order: ``"sequential"``: the target's gate sees the source already gated, as published.
            ``"parallel"``: both see ungated features. None: the form's own, sequential for the published one.
        hidden: width of the paper's first convolution; None for the number of channels.
        hidden_activation: between the paper's two convolutions.

    Call arguments:
        source, target: (B, h, w, C) float.

    Returns:
        The two, gated.

    Raises:
        ValueError: ``form`` or ``order`` is not one of the above.
    """

    def __init__(
        self,
        form: str = "published",
        order: str | None = None,
        hidden: int | None = None,
        hidden_activation: str = "linear",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if form not in ("published", "paper"):
            raise ValueError(f"form must be 'published' or 'paper', got {form!r}")
        if order not in ("sequential", "parallel", None):
            raise ValueError(f"order must be 'sequential', 'parallel' or None, got {order!r}")
        self.form = form
        self.order = order or ("sequential" if form == "published" else "parallel")
        self.hidden = hidden
        self.hidden_activation = hidden_activation

    def build(self, source_shape, target_shape=None):
        channels = source_shape[-1]
        options = {"kernel_initializer": KERNEL_INITIALIZER, "dtype": self.dtype_policy}
        if self.form == "published":
            self.dense = keras.layers.Dense(channels, name="dense", **options)
            self.dense.build((None, 2 * channels))
            self.normalization = batch_normalization("normalization", self.dtype_policy)
            self.normalization.build((None, channels))
        else:
            hidden = self.hidden or channels
            self.first = keras.layers.Conv2D(
                hidden, 1, activation=self.hidden_activation, name="first", **options
            )
            self.first.build((None, None, None, 2 * channels))
            self.second = keras.layers.Conv2D(channels, 1, name="second", **options)
            self.second.build((None, None, None, hidden))
        self.built = True

    def gate(self, own, other, training=None):
        """Factors in (0, 1) of the channels of ``own``: two (B, h, w, C) -> (B, C)."""
        if self.form == "published":
            values = self.normalization(self.dense(_pooled(own, other)), training=training)
            return ops.sigmoid(ops.relu(values))
        values = self.second(self.first(ops.concatenate([own, other], axis=-1)))
        return ops.sigmoid(ops.mean(values, axis=(1, 2)))

    def call(self, source, target, training=None):
        gated = _gated(source, self.gate(source, target, training))
        seen = gated if self.order == "sequential" else source
        return gated, _gated(target, self.gate(target, seen, training))

    def compute_output_shape(self, source_shape, target_shape):
        return source_shape, target_shape

    def get_config(self):
        names = ("form", "order", "hidden", "hidden_activation")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="tfcorr")
class DistributionAttention(keras.layers.Layer):
    """Mean and variance of the Gaussian that a pair's attention is drawn from (eq. 1).

    Two branches over the concatenated features, each ending in batch normalisation and an activation. The
    first commits of the published code have them with ReLU, a convolution as large as the map in the second,
    and read its result as a standard deviation: ``variance_branch="full", mean_activation="relu",
    variance_activation="relu", scale="deviation"``. There a mean is never negative and a deviation may be 0,
    where the divergence of eq. 2 is infinite; and on ResNet-101 that convolution has 839 million weights.
    The defaults avoid all three.

    Args:
        variance_branch: ``"pooled"``: global average and a dense layer, as in the mean's branch, for any size
            of map. ``"full"``: the convolution. ``"separable"``: the same in two parts, a weight for each
            channel and cell, then a dense layer over the channels.
        map_size: (h, w) of the features; needed by ``"full"`` and ``"separable"``.
        mean_activation: name of a Keras activation.
        variance_activation: name of a Keras activation without negative values.
        scale: what the second branch gives, ``"variance"`` (paper) or ``"deviation"``.

    Call arguments:
        source, target: (B, h, w, C) float.

    Returns:
        ``(mean, variance)``, each float32 (B, C); variances are at least :data:`LEAST_VARIANCE`.

    Raises:
        ValueError: an argument is not one of the above, or ``map_size`` is missing.
    """

    def __init__(
        self,
        variance_branch: str = "pooled",
        map_size: tuple[int, int] | None = None,
        mean_activation: str = "linear",
        variance_activation: str = "softplus",
        scale: str = "variance",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if variance_branch not in ("pooled", "full", "separable"):
            raise ValueError(
                f"variance_branch must be 'pooled', 'full' or 'separable', got {variance_branch!r}"
            )
        if scale not in ("variance", "deviation"):
            raise ValueError(f"scale must be 'variance' or 'deviation', got {scale!r}")
        if variance_branch != "pooled" and map_size is None:
            raise ValueError(f"variance_branch {variance_branch!r} needs map_size, (h, w) of the features")
        self.variance_branch = variance_branch
        self.map_size = None if map_size is None else tuple(map_size)
        self.mean_activation = mean_activation
        self.variance_activation = variance_activation
        self.scale = scale

    def build(self, source_shape, target_shape=None):
        channels = source_shape[-1]
        options = {"kernel_initializer": KERNEL_INITIALIZER, "dtype": self.dtype_policy}
        self.mean_dense = keras.layers.Dense(channels, name="mean_dense", **options)
        self.mean_dense.build((None, 2 * channels))
        if self.variance_branch == "full":
            self.variance_conv = keras.layers.Conv2D(channels, self.map_size, name="variance_conv", **options)
            self.variance_conv.build((None, *self.map_size, 2 * channels))
        else:
            self.variance_dense = keras.layers.Dense(channels, name="variance_dense", **options)
            self.variance_dense.build((None, 2 * channels))
        if self.variance_branch == "separable":
            # Starts as the global average.
            cells = self.map_size[0] * self.map_size[1]
            self.cell_weights = self.add_weight(
                shape=(*self.map_size, 2 * channels),
                initializer=keras.initializers.Constant(1.0 / cells),
                name="cell_weights",
            )
        for name in ("mean_normalization", "variance_normalization"):
            layer = batch_normalization(name, self.dtype_policy)
            layer.build((None, channels))
            setattr(self, name, layer)
        self.built = True

    def call(self, source, target, training=None):
        pooled = _pooled(source, target)
        mean = self.mean_normalization(self.mean_dense(pooled), training=training)
        mean = keras.activations.get(self.mean_activation)(ops.cast(mean, "float32"))
        if self.variance_branch == "pooled":
            spread = self.variance_dense(pooled)
        else:
            both = ops.concatenate([source, target], axis=-1)
            if self.variance_branch == "full":
                spread = self.variance_conv(both)[:, 0, 0]
            else:
                spread = self.variance_dense(ops.sum(both * self.cell_weights, axis=(1, 2)))
        spread = self.variance_normalization(spread, training=training)
        spread = keras.activations.get(self.variance_activation)(ops.cast(spread, "float32"))
        if self.scale == "deviation":
            spread = ops.square(spread)
        return mean, spread + LEAST_VARIANCE

    def compute_output_shape(self, source_shape, target_shape):
        shape = (source_shape[0], source_shape[-1])
        return shape, shape

    def get_config(self):
        names = ("variance_branch", "map_size", "mean_activation", "variance_activation", "scale")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
