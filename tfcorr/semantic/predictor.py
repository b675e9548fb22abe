"""`SemanticMatcher`: what users hold. Two photographs in; out comes where each pixel of the first lies in the
second.

PMD trains and scores the flow from the target's grid into the source; a user asks from the source. So `match`
gives the network its two images with the roles exchanged and returns the direction that was trained.

Convention: flows are (dx, dy), points (x, y), in pixels; the centre of the first pixel is (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfcorr.errors import InputError
from tfcorr.imaging.depth import convert_depth
from tfcorr.imaging.picture import Picture
from tfcorr.pretrained import ModelCard
from tfcorr.semantic.features import network_image
from tfcorr.semantic.figures import warped_target
from tfcorr.semantic.loading import load_network
from tfcorr.semantic.matching import confidence, flow_in_pixels, resize
from tfcorr.semantic.network import SemanticMatchingNetwork
from tfcorr.semantic.pck import bilinear

if TYPE_CHECKING:
    from tfcorr.serving.export import Exported

__all__ = ["MatchResult", "SemanticMatcher"]


@dataclass(frozen=True, eq=False)
class MatchResult:
    """A flow and how far it can be trusted.

    Attributes:
        flow: float32 (H, W, 2) on the source's pixels, (dx, dy) in pixels of the target: target position =
            source position + flow.
        confidence: float32 (H, W) in [0, 1]: how well the flow and that of the other direction agree
            (section 3.4); 0.98 where they return to the same place.
        warped: uint8 (H, W, 3), the target as the flow brings it to the source; black where it points
            outside.
    """

    flow: np.ndarray
    confidence: np.ndarray
    warped: np.ndarray

    def transfer(self, points: np.ndarray) -> np.ndarray:
        """Where points of the source lie in the target, see `SemanticMatcher.transfer`."""
        return _transfer(self.flow, points)


class SemanticMatcher:
    """Matches two photographs of different things of one kind.

        matcher = SemanticMatcher.from_pretrained()
        flow = matcher.match(source, target)            # (H, W, 2): dx, dy in pixels, on the source's grid
        places = matcher.transfer(source, target, [[120, 80]])

    Args:
        network: head and backbone, with their weights.
        size: side in pixels that both images are brought to for the network; a multiple of 32.
        card: what is known about the model, if it came from a model folder.
    """

    def __init__(self, network: SemanticMatchingNetwork, *, size: int = 320, card: ModelCard | None = None):
        if size < 32 or size % 32:
            raise InputError(f"size is {size}, expected a multiple of 32")
        self.network = network
        self.size = size
        self.card = card
        self._flows = _compiled(network, size)

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path | None = None, *, mirror: bool | None = None
    ) -> SemanticMatcher:
        """Loads a trained model after checking its files against the checksums of its card.

        Args:
            name_or_folder: a model of `tfcorr models`, a model folder, or `None` for the default model.
            mirror: whether to look at the mirror images too, for better matches in up to twice the time; see
                `tfcorr.semantic.network.SemanticMatchingNetwork`. None: as the model's card says.

        Raises:
            ModelError: no such model, damaged files, or a card that cannot be used.
        """
        loaded = load_network(name_or_folder)
        if mirror is not None:
            loaded.network.mirror = mirror
        return cls(loaded.network, size=loaded.size, card=loaded.card)

    def match(
        self, source: np.ndarray, target: np.ndarray, *, details: bool = False
    ) -> np.ndarray | MatchResult:
        """For every pixel of the source, where it lies in the target.

        Args:
            source, target: (H, W, 3) RGB, or greyscale as (H, W) or (H, W, 1); uint8, uint16, or float32 in
                [0, 1]; any sizes.
            details: whether to return confidence and the warped target too.

        Returns:
            float32 (H, W, 2) on the source's grid, (dx, dy) in pixels: target position = source position +
            flow. With ``details`` a `MatchResult`.

        Raises:
            InputError: an image has another shape or dtype, is empty, or has values that are not finite or
                are outside [0, 1].
        """
        source, target = _rgb(source, "source"), _rgb(target, "target")
        height, width = source.shape[:2]
        # The network's target is the image whose pixels ask.
        flow, trust = self._flows(
            network_image(target, self.size)[None], network_image(source, self.size)[None]
        )
        full = flow_in_pixels(resize(flow, (height, width)), target.shape[:2])
        flow = np.asarray(full[0], np.float32)
        if not details:
            return flow
        trust = np.asarray(resize(trust, (height, width))[0, :, :, 0], np.float32)
        return MatchResult(flow, np.clip(trust, 0, 1), warped_target(target, flow))

    def transfer(self, source: np.ndarray, target: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Where points of the source lie in the target.

        Args:
            source, target: see `match`.
            points: (N, 2), (x, y) in pixels of the source, within it.

        Returns:
            float32 (N, 2), (x, y) in pixels of the target.

        Raises:
            InputError: see `match`; also for a point outside of the source.
        """
        return _transfer(self.match(source, target), points)

    def export(self, folder: str | Path, **options) -> Exported:
        """Writes the model as a SavedModel, or as TFLite for images of the network's size.

        Args:
            folder: what to write.
            **options: see :func:`tfcorr.serving.export.export_semantic_matcher`: `format`, `variant`,
                `precision`, `representative`, `limits`, `verify`, `overwrite`.

        Returns:
            What was written, and how far it is from this predictor.

        Raises:
            ExportError: options that do not fit together, or a folder that exists.
        """
        from tfcorr.serving.export import export_semantic_matcher

        return export_semantic_matcher(self, folder, **options)


def _transfer(flow: np.ndarray, points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"points have shape {points.shape}, expected (N, 2)")
    height, width = flow.shape[:2]
    outside = ~np.all((points >= -0.5) & (points <= (width - 0.5, height - 0.5)), axis=1)
    if outside.any():
        number = int(np.argmax(outside))
        raise InputError(
            f"point {number} is at ({points[number, 0]:g}, {points[number, 1]:g}), outside of the source "
            f"({width} x {height} pixels)"
        )
    return (points + bilinear(flow, points)).astype(np.float32)


def _rgb(image: np.ndarray, name: str) -> np.ndarray:
    """An image of any accepted kind as (H, W, 3) uint8."""
    image = np.asarray(image)
    if np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all():
            raise InputError(f"{name} has values that are not finite")
        if image.size and (image.min() < 0 or image.max() > 1):
            raise InputError(
                f"{name} has values from {image.min():g} to {image.max():g}, expected float values in [0, 1]"
            )
    try:
        return convert_depth(Picture.from_array(image).to_rgb(), np.uint8)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from None


def _compiled(network: SemanticMatchingNetwork, size: int):
    """Images -> flow T2S, (1, h, w, 2), and its confidence, (1, h, w, 1)."""
    import tensorflow as tf

    signature = [tf.TensorSpec((1, size, size, 3), tf.float32)] * 2

    @tf.function(input_signature=signature, autograph=False)
    def flows(source, target):
        found = network({"source": source, "target": target}, training=False)
        return found["flow_t2s"], confidence(found["flow_t2s"], found["flow_s2t"])

    return flows
