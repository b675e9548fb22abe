"""What the trainers of both methods share: a Keras model whose ``train_step`` minimises a loss."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfcorr.training.distribution import shared_gradients


class StageTrainer(keras.Model):
    """A stage: one loss over a batch, and means over the batches of an evaluation.

    Args:
        measured: names of what :meth:`measures_of` gives.
    """

    def __init__(self, measured: tuple[str, ...], **kwargs):
        super().__init__(**kwargs)
        self._means = {name: keras.metrics.Mean(name=name) for name in measured}

    def build(self, input_shape=None):
        # The network came built; `fit` would otherwise look for shapes to build it from.
        self.built = True

    @property
    def metrics(self):
        return list(self._means.values())

    def losses_of(self, data, training: bool) -> dict:
        """Scalars of a batch by name; ``loss`` is what is minimised."""
        raise NotImplementedError

    def train_step(self, data):
        # A dataset gives the dictionary itself, `train_on_batch` and arrays wrap it in a tuple.
        data, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            values = self.losses_of(data, training=True)
        variables = self.trainable_variables
        gradients = tape.gradient(values["loss"], variables)
        self.optimizer.apply(shared_gradients(gradients), variables)
        return values

    def measures_of(self, data) -> dict:
        """Scalars of a held-out batch by name."""
        raise NotImplementedError

    def weight_of(self, data):
        """How much a held-out batch counts in the means; None for 1."""
        return None

    def test_step(self, data):
        data, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        weight = self.weight_of(data)
        for name, value in self.measures_of(data).items():
            self._means[name].update_state(value, sample_weight=weight)
        return {name: mean.result() for name, mean in self._means.items()}
