"""Trained models of semantic matching: their folders, written and read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfcorr import backbones
from tfcorr.errors import TfcorrError
from tfcorr.pretrained import CARD_FILE, WEIGHTS_FILE, ModelCard, ModelError, find_model, verify
from tfcorr.semantic.network import SemanticMatchingNetwork, head_from_architecture
from tfcorr.training.model_folder import write_model
from tfcorr.weights import load_weights

__all__ = ["SEMANTIC_MATCHING", "SEMANTIC_TEACHER", "LoadedNetwork", "load_network", "save_network"]

SEMANTIC_MATCHING = "semantic-matching"
SEMANTIC_TEACHER = "semantic-teacher"

_HOW_TO_TRAIN = (
    "; train one with `tfcorr train semantic/birds_cpu` (docs/semantic-matching.md) and name its folder"
)


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights.

    Attributes:
        network: head and backbone.
        size: side of its images in pixels.
        card: of the model folder.
    """

    network: SemanticMatchingNetwork
    size: int
    card: ModelCard


def load_network(name_or_folder: str | Path | None = None, *, job: str = SEMANTIC_MATCHING) -> LoadedNetwork:
    """Loads a network after comparing its files with the checksums of its card.

    Args:
        name_or_folder: see `tfcorr.pretrained.find_model`.
        job: `SEMANTIC_MATCHING` for a student, `SEMANTIC_TEACHER`.

    Raises:
        ModelError: the model cannot be found or verified, or its weights and architecture do not agree.
    """
    try:
        card = find_model(name_or_folder, job=job)
    except ModelError as error:
        if name_or_folder is None:
            raise ModelError(f"{error}{_HOW_TO_TRAIN}") from None
        raise
    if WEIGHTS_FILE not in card.checksums:
        raise ModelError(f"{card.folder / CARD_FILE}: 'checksums' does not name {WEIGHTS_FILE}")
    verify(card)
    try:
        size = int(card.architecture["size"])
        head = head_from_architecture(card.architecture["head"])
        network = SemanticMatchingNetwork(
            head,
            backbones.backbone(**card.architecture["backbone"]),
            mirror=bool(card.architecture.get("mirror", False)),
        )
        network.build()
    except (KeyError, TfcorrError, TypeError, ValueError) as error:
        raise ModelError(f"{card.folder / CARD_FILE}: 'architecture' cannot be built: {error}") from error
    try:
        load_weights(network, card.folder / WEIGHTS_FILE)
    except (KeyError, OSError, ValueError) as error:
        raise ModelError(
            f"{card.folder / WEIGHTS_FILE}: no weights of the architecture in {CARD_FILE}: {error}"
        ) from error
    return LoadedNetwork(network, size, card)


def save_network(
    folder: Path,
    network: SemanticMatchingNetwork,
    *,
    backbone: dict[str, Any],
    size: int,
    card: dict[str, Any],
    half: bool = False,
) -> None:
    """Writes a model folder: weights of head and backbone, and the card.

    Args:
        folder: made if it is missing.
        network: with its backbone.
        backbone: ``name`` and ``arguments`` that `tfcorr.backbones.backbone` makes it from.
        size: side of the network's images in pixels.
        card: what it says beside ``architecture`` and ``checksums``.
        half: see `tfcorr.training.model_folder.write_model`.
    """
    network.build()
    architecture = {
        "backbone": backbone,
        "size": size,
        "mirror": network.mirror,
        "head": network.head.architecture,
    }
    write_model(folder, network, {**card, "architecture": architecture}, half)
