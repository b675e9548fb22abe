"""Checkpoints: one NPZ file with weights, optimiser state and where the run stands, written beside and
renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcorr.errors import TfcorrError


class CheckpointError(TfcorrError):
    """A checkpoint that does not belong to this run."""


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    # Numbered, as paths need not be unique.
    named = {f"weights/{i:04d}/{v.path}": v for i, v in enumerate(model.weights)}
    named.update({f"optimizer/{i:04d}/{v.path}": v for i, v in enumerate(model.optimizer.variables)})
    for kind, variables in getattr(model, "companions", {}).items():
        named.update({f"{kind}/{i:04d}/{v.path}": v for i, v in enumerate(variables)})
    return named


def save_checkpoint(path: str | os.PathLike, model: keras.Model, state: dict[str, Any]) -> None:
    """Write all variables of a compiled model and ``state``; the file is whole or not there.

    Args:
        path: of the ``.npz`` file.
        model: its optimiser is built. What trains beside it, such as a discriminator and its optimiser, it
            names in an attribute ``companions``: name -> variables.
        state: anything that JSON can hold.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: keras.ops.convert_to_numpy(v) for name, v in _variables(model).items()}
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            np.savez(file, state=np.array(json.dumps(state)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_state(path: str | os.PathLike) -> dict[str, Any]:
    """The ``state`` of a checkpoint.

    Raises:
        CheckpointError: the file is no checkpoint, or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return json.loads(str(archive["state"]))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of tfcorr ({error})") from error


def load_checkpoint(path: str | os.PathLike, model: keras.Model) -> dict[str, Any]:
    """Put the variables of a checkpoint into a compiled model.

    Args:
        path: written by `save_checkpoint`.
        model: built, with a built optimiser, of the same architecture.

    Returns:
        The saved state.

    Raises:
        CheckpointError: not a checkpoint, or one of another architecture or optimiser; names the first
        difference.
    """
    state = read_state(path)
    variables = _variables(model)
    with np.load(path, allow_pickle=False) as archive:
        saved = {_place(name): name for name in archive.files if name != "state"}
        wanted = {_place(name): name for name in variables}
        for place in sorted(saved.keys() ^ wanted.keys()):
            only = (
                f"{saved[place]} is only in the checkpoint"
                if place in saved
                else f"{wanted[place]} is not in it"
            )
            raise CheckpointError(f"{path}: {only}; it is of another architecture")
        for place, name in wanted.items():
            value, variable = archive[saved[place]], variables[name]
            if value.shape != tuple(variable.shape):
                raise CheckpointError(
                    f"{path}: {saved[place]} has shape {value.shape}, the model's has {tuple(variable.shape)}"
                )
            variable.assign(value)
    return state


def _place(name: str) -> tuple[str, str, str]:
    """Kind, number and last word of a variable; between them stand names that Keras numbers a process."""
    kind, number, *path = name.split("/")
    return kind, number, path[-1].rpartition("_")[2]
