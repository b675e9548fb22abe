"""Writing a model folder: weights and card, each whole or not there."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from tfcorr.imaging.files import write_bytes
from tfcorr.pretrained import CARD_FILE, WEIGHTS_FILE, sha256_of

__all__ = ["portable_command", "write_card", "write_weights"]


def write_weights(folder: Path, model: keras.Model) -> dict[str, str]:
    """Writes the weights of a built model into a folder, which is made if it is missing.

    Args:
        folder: of the model.
        model: any Keras model.

    Returns:
        The card's ``checksums``: file name -> SHA-256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{os.getpid()}.{WEIGHTS_FILE}"
    try:
        model.save_weights(beside)
        os.replace(beside, folder / WEIGHTS_FILE)
    finally:
        beside.unlink(missing_ok=True)
    return {WEIGHTS_FILE: sha256_of(folder / WEIGHTS_FILE)}


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Writes ``card.json``; see `tfcorr.pretrained.ModelCard` for what it holds."""
    write_bytes(folder / CARD_FILE, (json.dumps(card, indent=2, default=str) + "\n").encode())


def portable_command(command: Sequence[str]) -> str:
    """The command as it would be typed elsewhere: where data and runs lay is no one's business."""
    words = []
    for word in command:
        key, equals, value = word.partition("=")
        if key == "data_root":
            continue
        if equals and os.path.isabs(value):
            inside = os.path.relpath(value)
            value = os.path.basename(value) if inside.startswith(os.pardir) else inside
        words.append(f"{key}{equals}{value}")
    return shlex.join(words)
