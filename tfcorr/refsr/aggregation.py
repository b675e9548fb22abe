"""Dynamic aggregation of the reference (paper, section 3.3, eq. 9)."""

from __future__ import annotations

import keras
from keras import ops

from tfcorr.ops import deform_conv2d, implementations

KERNEL_SIZE = 3
_POINTS = KERNEL_SIZE * KERNEL_SIZE


class DynamicAggregation(keras.layers.Layer):
    """Gathers reference texture around the matched places by a modulated deformable convolution.

    ``y(p) = sum_k w_k * x(p + p0_k + p_k + dp_k) * dm_k`` (eq. 9): x is the reference's feature, p0 the
    pre-offset from matching, dp and dm are predicted from ``feature`` by one 3x3 convolution (initially zero,
    so that dp = 0 and dm = 0.5). As published, every kernel point has its own p0 and ``dm = sigmoid``, not
    doubled.

    Args:
        filters: Width of the output.
        deform_groups: Groups of reference channels with their own dp and dm; divides the reference's width.
        implementation: As in :func:`tfcorr.ops.deform_conv2d`.

    Call arguments:
        reference: (B, Hr, Wr, C) feature that is sampled, of any size.
        feature: (B, H, W, F) that dp and dm are predicted from; its size is the output's.
        pre_offset: float32 (B, H, W, 18): (dy, dx) of the nine kernel points in row-major order, in cells.
        return_learned: Also return the learned part of the offsets, for trainers to watch.

    Returns:
        (B, H, W, filters), before any activation; with ``return_learned``, a tuple of it and dp, float32
        (B, H, W, 18 * deform_groups), (dy, dx) in cells.
    """

    def __init__(self, filters: int, deform_groups: int = 8, implementation: str | None = None, **kwargs):
        # Offsets of hundreds of cells need float32, bfloat16 cannot hold 257.5: nothing is cast here.
        super().__init__(autocast=False, **kwargs)
        self.filters = filters
        self.deform_groups = deform_groups
        self.implementation = implementation
        self.conv_offset_mask = keras.layers.Conv2D(
            deform_groups * _POINTS * 3,
            KERNEL_SIZE,
            padding="same",
            kernel_initializer="zeros",
            name="conv_offset_mask",
            dtype=self.dtype_policy,
        )
        self.supports_jit = not _uses_custom_op(implementation)

    def build(self, reference_shape, feature_shape, pre_offset_shape=None):
        channels = reference_shape[-1]
        if channels % self.deform_groups:
            raise ValueError(
                f"the reference's {channels} channels are not divisible by deform_groups={self.deform_groups}"
            )
        limit = (_POINTS * channels) ** -0.5
        self.kernel = self.add_weight(
            shape=(KERNEL_SIZE, KERNEL_SIZE, channels, self.filters),
            initializer=keras.initializers.RandomUniform(-limit, limit),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")
        self.conv_offset_mask.build(feature_shape)

    def call(self, reference, feature, pre_offset, return_learned: bool = False):
        offset, mask = self.predict_offset_mask(feature, pre_offset)
        height, width = ops.shape(feature)[1], ops.shape(feature)[2]
        aggregated = deform_conv2d(
            ops.cast(reference, self.compute_dtype),
            ops.cast(self.kernel, self.compute_dtype),
            offset,
            ops.cast(mask, self.compute_dtype),
            ops.cast(self.bias, self.compute_dtype),
            padding=((1, 1), (1, 1)),
            deform_groups=self.deform_groups,
            output_size=(height, width),
            implementation=self.implementation,
        )
        if return_learned:
            return aggregated, offset - ops.concatenate([pre_offset] * self.deform_groups, axis=-1)
        return aggregated

    def predict_offset_mask(self, feature, pre_offset):
        """The sampling plan: offset (B, H, W, 18 * groups), mask in (0, 1) (B, H, W, 9 * groups), float32."""
        predicted = ops.cast(self.conv_offset_mask(feature), "float32")
        offsets = 2 * _POINTS * self.deform_groups
        learned, logits = predicted[..., :offsets], predicted[..., offsets:]
        offset = learned + ops.concatenate([pre_offset] * self.deform_groups, axis=-1)
        return offset, ops.sigmoid(logits)

    def compute_output_shape(self, reference_shape, feature_shape, pre_offset_shape=None):
        return (*feature_shape[:-1], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "deform_groups": self.deform_groups,
            "implementation": self.implementation,
        }


def _uses_custom_op(implementation: str | None) -> bool:
    """XLA cannot compile a layer that calls the compiled op."""
    if implementation is not None:
        return implementation == "custom"
    return implementations()["deform_conv2d"]["implementation"] == "custom"
