"""The yardstick at work: upscales images by themselves, in place of a `SuperResolver`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from tfcorr.errors import InputError
from tfcorr.imaging.color import match_low_frequencies
from tfcorr.imaging.tiles import Canvas, plan_tiles
from tfcorr.pretrained import SINGLE_IMAGE, WEIGHTS_FILE, ModelCard, ModelError, find_model, verify
from tfcorr.refsr import SCALE
from tfcorr.refsr.memory import MemoryPlan, available_memory, single_image_bytes, within_memory
from tfcorr.refsr.pixels import from_rgb, padded, to_rgb
from tfcorr.refsr.single_image import SingleImageNetwork
from tfcorr.weights import load_weights

__all__ = ["SingleImageResolver", "load_single_image"]

_SMALLEST_INPUT = 8
# Pixels of the input that neighbouring tiles share; the receptive field of 12 blocks reaches 30 to each side.
_OVERLAP = 32


def load_single_image(name_or_folder: str | Path | None = None) -> tuple[SingleImageNetwork, ModelCard]:
    """A trained single-image network, after its files were checked against the checksums of its card.

    Args:
        name_or_folder: a model folder, or the name of one of `tfcorr models`.

    Raises:
        ModelError: no such model, damaged files, or a card that cannot be used.
    """
    card = find_model(name_or_folder, job=SINGLE_IMAGE)
    verify(card)
    try:
        model = SingleImageNetwork(**card.architecture)
        model.build()
        load_weights(model, card.folder / WEIGHTS_FILE)
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ModelError(f"{card.folder}: weights and 'architecture' do not fit: {error}") from error
    return model, card


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
        budget = memory or min(available_memory() // 2, 4 * 10**9)
        self._memory = MemoryPlan(budget, single_image_bytes(model.sizes), reference_bytes=0)
        self._restore = _compiled(model)

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path | None = None, *, memory: int | None = None
    ) -> SingleImageResolver:
        """Loads a trained model; see :func:`load_single_image`, and the class for ``memory``."""
        model, card = load_single_image(name_or_folder)
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

    return tf.function(
        model, autograph=False, input_signature=[tf.TensorSpec((1, None, None, 3), tf.float32)]
    )
