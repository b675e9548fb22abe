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
    return named


def save_checkpoint(path: str | os.PathLike, model: keras.Model, state: dict[str, Any]) -> None:
    """Write all variables of a compiled model and ``state``; the file is whole or not there.

    Args:
        path: of the ``.npz`` file.
        model: its optimiser is built.
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
        names = set(archive.files) - {"state"}
        for name in sorted(names ^ variables.keys()):
            where = "in the checkpoint" if name in names else "in the model"
            raise CheckpointError(
                f"{path}: {name} is only {where}; the checkpoint is of another architecture"
            )
        for name, variable in variables.items():
            value = archive[name]
            if value.shape != tuple(variable.shape):
                raise CheckpointError(
                    f"{path}: {name} has shape {value.shape}, the model {tuple(variable.shape)}"
                )
            variable.assign(value)
    return state
