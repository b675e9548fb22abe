"""The yardstick: plain single-image super-resolution, which knows no reference.

What a reference is worth shows beside a network of ordinary make that was trained with the same effort:
residual blocks at the input's resolution, sub-pixel convolutions (pixel shuffle) with leaky rectifiers, and
a residual on the bilinearly upsampled input; EDSR's baseline (arXiv:1707.02921) with 12 blocks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import keras
from keras import ops

from tfcorr.refsr import SCALE
from tfcorr.refsr.blocks import ResidualBlock, convolution, leaky_relu
from tfcorr.refsr.upsampling import Upsampling

__all__ = ["SingleImageNetwork", "SingleImageSizes"]


@dataclass(frozen=True)
class SingleImageSizes:
    """Sizes of a single-image network.

    Attributes:
        features: width of all convolutions.
        blocks: residual blocks, at the input's resolution.
    """

    features: int = 64
    blocks: int = 12

    def __post_init__(self):
        if self.features < 1 or self.blocks < 1:
            raise ValueError(
                f"`features` and `blocks` must be at least 1, got {self.features} and {self.blocks}"
            )


class SingleImageNetwork(keras.Model):
    """x4 super-resolution from the image alone; 1,222,147 parameters by default.

    Args:
        features, blocks: see `SingleImageSizes`.

    Call arguments:
        lr: (B, h, w, 3) float, RGB in [0, 1].

    Returns:
        float32 (B, 4 * h, 4 * w, 3), not clamped.
    """

    def __init__(self, features: int = 64, blocks: int = 12, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.sizes = SingleImageSizes(features, blocks)
        wide = {"kernel_initializer": "he_normal", "dtype": self.dtype_policy}
        self.conv_first = convolution(features, "conv_first", **wide)
        self.body = [
            ResidualBlock(features, name=f"body_{i}", dtype=self.dtype_policy) for i in range(blocks)
        ]
        self.conv_body = convolution(features, "conv_body", **wide)
        self.upscalers = [convolution(4 * features, f"upscale_{i}", **wide) for i in range(2)]
        # Begins as the bilinear enlargement: from random values the first steps went so far that the
        # rectifiers before it were shut for good.
        self.conv_last = convolution(3, "conv_last", kernel_initializer="zeros", dtype="float32")
        self.upsampling = Upsampling(SCALE, "bilinear", dtype="float32", name="upsampling")

    def build(self, input_shape=None):
        self.conv_first.build((None, None, None, 3))
        for layer in (*self.body, self.conv_body, *self.upscalers, self.conv_last):
            layer.build((None, None, None, self.sizes.features))
        self.built = True

    def call(self, lr):
        return self.parts(lr)[1]

    def parts(self, lr):
        """The image, and the features that it is made of.

        Args:
            lr: as for the call.

        Returns:
            ``(features, image)``: a dict of ``small`` (B, h, w, C), ``medium`` (B, 2 * h, 2 * w, C) and
            ``large`` (B, 4 * h, 4 * w, C), and what the call gives.
        """
        lr = ops.cast(lr, "float32")
        first = self.conv_first(ops.cast(lr, self.compute_dtype))
        x = first
        for block in self.body:
            x = block(x)
        x = first + self.conv_body(x)
        features = {"small": x}
        for level, layer in zip(("medium", "large"), self.upscalers, strict=True):
            x = features[level] = leaky_relu(ops.depth_to_space(layer(x), 2))
        return features, self.conv_last(ops.cast(x, "float32")) + self.upsampling(lr)

    def get_config(self):
        return {**super().get_config(), **self.architecture}

    @property
    def architecture(self) -> dict[str, int]:
        """What a model's card stores: the arguments of this class."""
        return asdict(self.sizes)
