"""The yardstick: plain single-image super-resolution, which knows no reference.

What a reference is worth shows beside a network of ordinary make that was trained with the same effort:
residual blocks at the input's resolution, sub-pixel convolutions (pixel shuffle), and a residual on the
bilinearly upsampled input; EDSR's baseline (arXiv:1707.02921) with 12 blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import ops

from tfcorr.errors import InputError
from tfcorr.imaging.color import match_low_frequencies
from tfcorr.imaging.tiles import Canvas, plan_tiles
from tfcorr.pretrained import SINGLE_IMAGE, WEIGHTS_FILE, ModelCard, ModelError, find_model, verify
from tfcorr.refsr import SCALE
from tfcorr.refsr.memory import MemoryPlan, available_memory, within_memory
from tfcorr.refsr.pixels import from_rgb, padded, to_rgb
from tfcorr.refsr.restorer import ResidualBlock
from tfcorr.refsr.upsampling import Upsampling

__all__ = ["SingleImageNetwork", "SingleImageResolver"]

_FLOAT = 4
_SMALLEST_INPUT = 8
# Pixels of the input that neighbouring tiles share; the receptive field of 12 blocks reaches 30 to each side.
_OVERLAP = 32


class SingleImageNetwork(keras.Model):
    """x4 super-resolution from the image alone; 1,222,147 parameters by default.

    Args:
        features: width of all convolutions.
        blocks: residual blocks, at the input's resolution.

    Call arguments:
        lr: (B, h, w, 3) float, RGB in [0, 1].

    Returns:
        float32 (B, 4 * h, 4 * w, 3), not clamped.
    """

    def __init__(self, features: int = 64, blocks: int = 12, **kwargs):
        super().__init__(autocast=False, **kwargs)
        if features < 1 or blocks < 1:
            raise ValueError(f"`features` and `blocks` must be at least 1, got {features} and {blocks}")
        self.features = features
        policy = self.dtype_policy
        self.conv_first = _conv(features, "conv_first", policy)
        self.body = [ResidualBlock(features, name=f"body_{i}", dtype=policy) for i in range(blocks)]
        self.conv_body = _conv(features, "conv_body", policy)
        self.upscalers = [_conv(4 * features, f"upscale_{i}", policy) for i in range(2)]
        self.conv_last = _conv(3, "conv_last", "float32")
        self.upsampling = Upsampling(SCALE, "bilinear", dtype="float32", name="upsampling")

    def build(self, input_shape=None):
        self.conv_first.build((None, None, None, 3))
        for layer in (*self.body, self.conv_body, *self.upscalers, self.conv_last):
            layer.build((None, None, None, self.features))
        self.built = True

    def call(self, lr):
        lr = ops.cast(lr, "float32")
        first = self.conv_first(ops.cast(lr, self.compute_dtype))
        x = first
        for block in self.body:
            x = block(x)
        x = first + self.conv_body(x)
        for convolution in self.upscalers:
            x = ops.relu(ops.depth_to_space(convolution(x), 2))
        return self.conv_last(ops.cast(x, "float32")) + self.upsampling(lr)

    def get_config(self):
        return {**super().get_config(), **self.architecture}

    @property
    def architecture(self) -> dict[str, int]:
        """What a model's card stores: the arguments of this class."""
        return {"features": self.features, "blocks": len(self.body)}


def _conv(filters: int, name: str, policy) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(
        filters, 3, padding="same", kernel_initializer="he_normal", dtype=policy, name=name
    )


class SingleImageResolver:
    """Upscales images four times by themselves; stands in for `SuperResolver` in evaluations.

    Args:
        model: a built `SingleImageNetwork`.
        card: what is known about the model, if it came from a model folder.
        memory: bytes of working memory for a tile, as in `SuperResolver`.
    """

    def __init__(
        self, model: SingleImageNetwork, *, card: ModelCard | None = None, memory: int | None = None
    ):
        if memory is not None and memory <= 0:
            raise InputError(f"memory is {memory}, expected a positive number of bytes")
        self.model = model
        self.card = card
        # At the output's size: a feature before and after the shuffle, and the last convolution's workspace.
        tile_bytes = 3 * SCALE**2 * model.features * _FLOAT
        budget = memory or min(available_memory() // 2, 4 * 10**9)
        self._memory = MemoryPlan(budget, tile_bytes, reference_bytes=0)
        self._restore = _compiled(model)

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path | None = None, *, memory: int | None = None
    ) -> SingleImageResolver:
        """Loads a trained model after checking its files against the checksums of its card.

        Args:
            name_or_folder: a model folder, or the name of one of `tfcorr models`.
            memory: see the class.

        Raises:
            ModelError: no such model, damaged files, or a card that cannot be used.
        """
        card = find_model(name_or_folder, job=SINGLE_IMAGE)
        verify(card)
        try:
            model = SingleImageNetwork(**card.architecture)
            model.build()
            model.load_weights(card.folder / WEIGHTS_FILE)
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise ModelError(f"{card.folder}: weights and 'architecture' do not fit: {error}") from error
        return cls(model, card=card, memory=memory)

    def upscale(
        self,
        low_res: np.ndarray,
        reference: object = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Upscales an image four times.

        Args:
            low_res: an image as `SuperResolver.upscale` takes it.
            reference: not looked at; here so that both can be called in one way.
            progress: called with (tiles done, all tiles).

        Returns:
            The image with the dtype and the axes of `low_res`, both sides four times as long; like that of
            `SuperResolver`, it has the colours of the input.

        Raises:
            InputError: the image has another shape or dtype, is empty, or has values that are not finite or
                are outside [0, 1].
            MemoryError: even the smallest tile does not fit.
        """
        rgb = to_rgb(low_res, "low_res")
        height, width = rgb.shape[:2]
        image = padded(rgb, _SMALLEST_INPUT)

        def work(plan: MemoryPlan) -> np.ndarray:
            tile = plan.tile(*image.shape[:2])
            tiles = plan_tiles(*image.shape[:2], tile, min(_OVERLAP, min(tile) // 2))
            canvas = Canvas(tiles, 3, SCALE)
            for done, part in enumerate(tiles, start=1):
                restored = self._restore(image[part.window][None])
                canvas.add(part, keras.ops.convert_to_numpy(restored)[0])
                if progress is not None:
                    progress(done, len(tiles))
            return canvas.finish()

        upscaled = within_memory(self._memory, work)[: SCALE * height, : SCALE * width]
        return from_rgb(match_low_frequencies(upscaled, rgb, SCALE), np.asarray(low_res))


def _compiled(model: SingleImageNetwork):
    if keras.backend.backend() != "tensorflow":
        return model
    import tensorflow as tf

    return tf.function(model, input_signature=[tf.TensorSpec((1, None, None, 3), tf.float32)])
