"""Pieces that the networks of super-resolution are made of."""

from __future__ import annotations

import keras
from keras import ops

#: Slope of the leaky rectifiers for what is negative.
LEAKY_SLOPE = 0.1


def convolution(filters: int, name: str, **kwargs) -> keras.layers.Conv2D:
    """A 3x3 convolution that keeps the size; weights begin as published: N(0, 0.02), and zero bias."""
    kwargs.setdefault("kernel_initializer", keras.initializers.RandomNormal(0.0, 0.02))
    return keras.layers.Conv2D(filters, 3, padding="same", name=name, **kwargs)


def leaky_relu(x):
    """The leaky rectifier with the published slope."""
    return ops.leaky_relu(x, negative_slope=LEAKY_SLOPE)


class ResidualBlock(keras.layers.Layer):
    """x + conv(relu(conv(x))): RB of table 3. (B, H, W, C) -> the same shape."""

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv1 = convolution(filters, "conv1", dtype=self.dtype_policy)
        self.conv2 = convolution(filters, "conv2", dtype=self.dtype_policy)

    def build(self, input_shape):
        self.conv1.build(input_shape)
        self.conv2.build(input_shape)

    def call(self, x):
        return x + self.conv2(ops.relu(self.conv1(x)))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}
