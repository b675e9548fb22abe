"""The adversarial loss: a Wasserstein discriminator with a gradient penalty (supplement B, eq. 12 and 13)."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf
from keras import ops

from tfcorr.training.distribution import replica_number, shared_gradients

_SLOPE = 0.2
_HIDDEN = 1024


class BatchStatistics(keras.layers.Layer):
    """Batch normalisation that always uses the batch's own statistics, and keeps none.

    ``gamma * (x - mean) / sqrt(variance + 1e-5) + beta`` a channel, statistics over the batch and all
    positions. The published discriminator is never in inference mode, so there is nothing to average.
    """

    def build(self, input_shape):
        shape = (input_shape[-1],)
        # Published: N(1, 0.02) and 0.
        self.gamma = self.add_weight(
            shape=shape, initializer=keras.initializers.RandomNormal(1.0, 0.02), name="gamma"
        )
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta")

    def call(self, x):
        # Not `ops.moments`: TensorFlow's stops the gradient of the mean within the variance. That changes
        # nothing to first order, but the gradient penalty is differentiated twice.
        centred = x - ops.mean(x, axis=(0, 1, 2), keepdims=True)
        variance = ops.mean(ops.square(centred), axis=(0, 1, 2), keepdims=True)
        return centred * ops.rsqrt(variance + 1e-5) * self.gamma + self.beta


class Discriminator(keras.Model):
    """Tells restored from true images: D of eq. 12 and 13, as published (the paper does not describe it).

    Five blocks of a convolution with stride 1 and one with stride 2, each followed by a normalisation and a
    leaky ReLU; then the mean over all positions and two dense layers. 5,242,529 parameters with 32 features.
    It computes in float32 whatever the dtype policy: the gradient penalty needs it.

    Args:
        features: channels of the first block; each block doubles them.
        end: ``"sigmoid"`` (published, unusual for a Wasserstein distance) or ``"linear"``.
        normalization: ``"batch"`` (published, unusual with a gradient penalty, which is meant for each image
            by itself) or ``"none"``.

    Call arguments:
        image: (B, H, W, 3) float; H and W at least 32 are sensible.

    Returns:
        float32 (B, 1).

    Raises:
        ValueError: ``end`` or ``normalization`` is none of these.
    """

    def __init__(self, features: int = 32, end: str = "sigmoid", normalization: str = "batch", **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        if end not in ("sigmoid", "linear"):
            raise ValueError(f"`end` must be 'sigmoid' or 'linear', got {end!r}")
        if normalization not in ("batch", "none"):
            raise ValueError(f"`normalization` must be 'batch' or 'none', got {normalization!r}")
        self.features = features
        self.end = end
        self.normalization = normalization
        self.convolutions, self.normalizations = [], []
        for block in range(5):
            for stride in (1, 2):
                name = f"block{block + 1}_{stride}"
                self.convolutions.append(
                    keras.layers.Conv2D(
                        features * 2**block,
                        3,
                        strides=stride,
                        padding="valid",
                        kernel_initializer=_kernels(normalization),
                        name=f"{name}_conv",
                        dtype=self.dtype_policy,
                    )
                )
                if normalization == "batch":
                    self.normalizations.append(BatchStatistics(name=f"{name}_norm", dtype=self.dtype_policy))
        self.hidden, self.score = (
            keras.layers.Dense(
                units,
                kernel_initializer=_kernels(normalization),
                name=name,
                dtype=self.dtype_policy,
            )
            for units, name in ((_HIDDEN, "hidden"), (1, "score"))
        )

    def build(self, input_shape=None):
        width = 3
        for number, convolution in enumerate(self.convolutions):
            convolution.build((None, None, None, width))
            width = convolution.filters
            if self.normalizations:
                self.normalizations[number].build((None, None, None, width))
        self.hidden.build((None, width))
        self.score.build((None, _HIDDEN))
        self.built = True

    def call(self, image):
        x = ops.cast(image, "float32")
        for number, convolution in enumerate(self.convolutions):
            # One cell on each side, also with stride 2, where `same` would pad only behind.
            x = convolution(ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]))
            if self.normalizations:
                x = self.normalizations[number](x)
            x = ops.leaky_relu(x, negative_slope=_SLOPE)
        x = ops.leaky_relu(self.hidden(ops.mean(x, axis=(1, 2))), negative_slope=_SLOPE)
        score = self.score(x)
        return ops.sigmoid(score) if self.end == "sigmoid" else score

    def get_config(self):
        return {
            **super().get_config(),
            "features": self.features,
            "end": self.end,
            "normalization": self.normalization,
        }


def _kernels(normalization: str) -> keras.initializers.Initializer:
    # Published: N(0, 0.02). Without batch normalisation, kernels that small would let nothing through.
    if normalization == "batch":
        return keras.initializers.RandomNormal(0.0, 0.02)
    return keras.initializers.HeNormal()


def generator_loss(score):
    """-mean D(restored) (eq. 12), without its weight: (B, 1) -> scalar."""
    return -ops.mean(score)


def gradient_penalty(discriminator, real, fake, share):
    """(||grad D(mix)||_2 - 1)^2 at mix = share * real + (1 - share) * fake (eq. 13), without its weight.

    Args:
        discriminator: of images, gives (B, 1).
        real, fake: float32 (B, H, W, 3).
        share: float32 (B, 1, 1, 1) in [0, 1], of ``real``.

    Returns:
        float32 scalar, mean over the batch; differentiable in the discriminator's weights.
    """
    mix = tf.stop_gradient(share * real + (1.0 - share) * fake)
    with tf.GradientTape() as tape:
        tape.watch(mix)
        score = tf.reduce_sum(discriminator(mix))
    squared = tf.reduce_sum(tf.square(tape.gradient(score, mix)), axis=(1, 2, 3))
    return tf.reduce_mean(tf.square(tf.sqrt(tf.maximum(squared, 1e-24)) - 1.0))


class Adversary:
    """A discriminator with its own optimiser, which a trainer keeps beside its model.

    No Keras object on purpose: its variables are none of the trainer's weights.

    Args:
        discriminator: built.
        optimizer: trains it; is built here.
        penalty: weight of the gradient penalty (lambda of eq. 13).
        seed: of the mixtures. Those of a step depend on the seed and the optimiser's count alone, so that a
            resumed run draws what it would have drawn.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        optimizer: keras.optimizers.Optimizer,
        *,
        penalty: float,
        seed: int = 0,
    ):
        self.discriminator = discriminator
        self.optimizer = optimizer
        self.penalty = penalty
        self.seed = seed
        optimizer.build(discriminator.trainable_variables)

    @property
    def variables(self) -> Sequence[keras.Variable]:
        """What a checkpoint has to hold: the discriminator's weights and the optimiser's state."""
        return [*self.discriminator.weights, *self.optimizer.variables]

    def losses(self, real, fake, share) -> dict:
        """Scalars of eq. 13: ``discriminator_loss``, the sum of the others, which are ``distance`` = mean
        D(real) - mean D(fake) and ``penalty``, weighted."""
        distance = tf.reduce_mean(self.discriminator(real)) - tf.reduce_mean(self.discriminator(fake))
        penalty = self.penalty * gradient_penalty(self.discriminator, real, fake, share)
        return {"discriminator_loss": penalty - distance, "distance": distance, "penalty": penalty}

    def train(self, real, fake) -> dict:
        """One step of the discriminator; no gradient flows to ``fake``.

        Args:
            real, fake: float32 (B, H, W, 3), the true and the restored images.

        Returns:
            Scalars, see `losses`.
        """
        real, fake = tf.cast(real, tf.float32), tf.stop_gradient(tf.cast(fake, tf.float32))
        seed = tf.stack(
            [
                tf.cast(self.seed, tf.int32),
                # Replicas draw different mixtures.
                tf.cast(self.optimizer.iterations.value, tf.int32) * 4096 + replica_number(),
            ]
        )
        share = tf.random.stateless_uniform((tf.shape(real)[0], 1, 1, 1), seed)
        with tf.GradientTape() as tape:
            values = self.losses(real, fake, share)
        variables = self.discriminator.trainable_variables
        gradients = tape.gradient(values["discriminator_loss"], variables)
        self.optimizer.apply(shared_gradients(gradients), variables)
        return values
