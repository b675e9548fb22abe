"""Keras layers that are of use without the rest of this package."""

from __future__ import annotations

import keras
from keras import activations, constraints, initializers, ops, regularizers

from tfcorr.ops import deform_conv2d, implementations
from tfcorr.ops.deform_conv import Geometry, standardize_padding, standardize_pair


@keras.saving.register_keras_serializable(package="tfcorr")
class DeformConv2D(keras.layers.Layer):
    """Deformable 2D convolution, a drop-in for `keras.layers.Conv2D` (DCNv2, arXiv:1811.11168).

    Every tap of the kernel reads the input at a place of its own, bilinearly. How far it moves, and with
    which factor it counts, is predicted from the input by an ordinary convolution of the same kernel size,
    strides, padding and dilation (`offset_conv`). That convolution begins at zero, so that the layer begins
    as an ordinary convolution, all of its taps halved if it is modulated (sigmoid(0) = 0.5).

    Arguments, their order and defaults are those of `keras.layers.Conv2D`, with these added:

    Args:
        deform_groups: groups of input channels with their own offsets; divides the input's channels.
        modulated: whether each sample has a factor in (0, 1) too (DCNv2), or only a place (DCNv1).
        implementation: `"custom"`, `"reference"` or None, see :func:`tfcorr.ops.deform_conv2d`.

        padding: `"valid"`, `"same"`, or also `((top, bottom), (left, right))`.
        data_format: None or `"channels_last"`.
        groups: 1.

    Call arguments:
        inputs: (batch, height, width, channels), any floating dtype; computed in the layer's compute dtype,
            which may be float32 or bfloat16. Offsets are computed in float32 under every policy.

    Returns:
        (batch, height', width', filters), as `keras.layers.Conv2D` would.

    Raises:
        ValueError: for arguments outside of their ranges, and for input channels that `deform_groups` does
            not divide.

    Example:

    >>> layer = DeformConv2D(32, 3, padding="same", deform_groups=4, activation="relu")
    >>> layer(numpy.zeros((2, 24, 32, 16), "float32")).shape
    TensorShape([2, 24, 32, 32])
    """

    def __init__(
        self,
        filters: int,
        kernel_size,
        strides=(1, 1),
        padding="valid",
        data_format: str | None = None,
        dilation_rate=(1, 1),
        groups: int = 1,
        activation=None,
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        *,
        deform_groups: int = 1,
        modulated: bool = True,
        implementation: str | None = None,
        **kwargs,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        for name, value in (("filters", filters), ("deform_groups", deform_groups)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if data_format not in (None, "channels_last") or groups != 1:
            raise ValueError(
                f'DeformConv2D expects data_format "channels_last" and groups 1, '
                f"got {data_format!r} and {groups!r}."
            )
        self.filters = filters
        self.kernel_size = standardize_pair(kernel_size, "kernel_size")
        self.strides = standardize_pair(strides, "strides")
        self.padding = standardize_padding(padding)
        self.dilation_rate = standardize_pair(dilation_rate, "dilation_rate")
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.deform_groups = deform_groups
        self.modulated = modulated
        self.implementation = implementation
        self.input_spec = keras.layers.InputSpec(ndim=4)
        # XLA cannot compile the compiled op.
        chosen = implementation or implementations()["deform_conv2d"]["implementation"]
        self.supports_jit = chosen == "reference"
        self._geometry = Geometry(
            self.strides, self.padding, self.dilation_rate, deform_groups, free_grid=False
        )

    @property
    def _samples(self) -> int:
        """Bilinear samples of one output pixel."""
        return self.deform_groups * self.kernel_size[0] * self.kernel_size[1]

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(f"DeformConv2D expects a known number of channels, got input {input_shape}.")
        if channels % self.deform_groups:
            raise ValueError(
                f"DeformConv2D expects channels divisible by deform_groups={self.deform_groups}, "
                f"got input {input_shape}."
            )
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: channels})
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, channels, self.filters),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.filters,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        # One convolution for both: per sample an offset (dy, dx), then the mask's logits. It computes in
        # float32 under every policy, since bfloat16 would round an offset of 10 pixels to sixteenths.
        self.offset_conv = keras.layers.Conv2D(
            self._samples * (3 if self.modulated else 2),
            self.kernel_size,
            strides=self.strides,
            padding=self.padding if isinstance(self.padding, str) else "valid",
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
            kernel_initializer="zeros",
            dtype="float32",
            name="offset_conv",
        )
        self.offset_conv.build(input_shape)

    def call(self, inputs):
        offset, mask = self.predict_offset_mask(inputs)
        outputs = deform_conv2d(
            inputs,
            ops.cast(self.kernel, self.compute_dtype),
            offset,
            mask,
            None if self.bias is None else ops.cast(self.bias, self.compute_dtype),
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            deform_groups=self.deform_groups,
            implementation=self.implementation,
        )
        return outputs if self.activation is None else self.activation(outputs)

    def predict_offset_mask(self, inputs):
        """Where the taps read, and with which factors.

        Args:
            inputs: (batch, height, width, channels).

        Returns:
            offset (batch, height', width', deform_groups * kh * kw * 2), float32, in pixels, last axis
            (group, ky, kx, [dy, dx]); and mask (..., deform_groups * kh * kw) in (0, 1), compute dtype, or
            None if the layer is not modulated.
        """
        if not isinstance(self.padding, str):
            inputs = ops.pad(inputs, ((0, 0), *self.padding, (0, 0)))
        predicted = self.offset_conv(inputs)
        offset, logits = predicted[..., : 2 * self._samples], predicted[..., 2 * self._samples :]
        return offset, ops.cast(ops.sigmoid(logits), self.compute_dtype) if self.modulated else None

    def compute_output_shape(self, input_shape):
        size = [
            None if size is None else self._geometry.output_size(axis, size, self.kernel_size[axis])
            for axis, size in enumerate(input_shape[1:3])
        ]
        return (input_shape[0], *size, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "data_format": "channels_last",
            "dilation_rate": self.dilation_rate,
            "groups": 1,
            "activation": activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": initializers.serialize(self.kernel_initializer),
            "bias_initializer": initializers.serialize(self.bias_initializer),
            "kernel_regularizer": regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": regularizers.serialize(self.activity_regularizer),
            "kernel_constraint": constraints.serialize(self.kernel_constraint),
            "bias_constraint": constraints.serialize(self.bias_constraint),
            "deform_groups": self.deform_groups,
            "modulated": self.modulated,
            "implementation": self.implementation,
        }
