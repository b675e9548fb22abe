"""Writing a model folder: weights and card, together or not at all."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcorr.atomic import replacing_folder, write_bytes
from tfcorr.errors import TfcorrError
from tfcorr.pretrained import CARD_FILE, WEIGHTS_FILE, sha256_of

__all__ = ["portable_command", "write_card", "write_model"]


def write_model(folder: Path, model: keras.Model, card: dict[str, Any], half: bool = False) -> None:
    """Writes the weights of a built model and its card, both or neither.

    What else lies in the folder stays.

    Args:
        folder: of the model; made if it is missing.
        model: any Keras model.
        card: see `tfcorr.pretrained.ModelCard`; its ``checksums`` are added here.
        half: whether to write the weights as float16, which halves the file; they are loaded as float32.

    Raises:
        WriteError: the folder cannot be written; an earlier model in it is untouched.
    """
    with replacing_folder(folder, keep=True) as part:
        model.save_weights(part / WEIGHTS_FILE)
        if half:
            _halve(part / WEIGHTS_FILE)
        write_card(part, {**card, "checksums": {WEIGHTS_FILE: sha256_of(part / WEIGHTS_FILE)}})


def _halve(path: Path) -> None:
    """Rewrites an HDF5 file of weights with float16 in the place of float32."""
    import h5py

    halved = path.with_name(f"half.{path.name}")
    with h5py.File(path, "r") as source, h5py.File(halved, "w") as target:

        def copy(name: str, item) -> None:
            if isinstance(item, h5py.Group):
                copied = target.require_group(name)
            else:
                values = item[()]
                if values.dtype == np.float32:
                    values = values.astype(np.float16)
                    if not np.isfinite(values).all():
                        raise TfcorrError(f"{name} has weights that are too large for float16")
                copied = target.create_dataset(name, data=values)
            for key, value in item.attrs.items():
                copied.attrs[key] = value

        for key, value in source.attrs.items():
            target.attrs[key] = value
        source.visititems(copy)
    halved.replace(path)


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
