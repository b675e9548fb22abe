"""Checkpoints: one NPZ file with weights, optimiser state and where the run stands, whole or not there.

A run folder has up to three, each of which a run can go on from:

    last.npz       the newest
    previous.npz   the one before, should the newest be damaged
    best.npz       that of the best validation
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcorr.atomic import replacing
from tfcorr.errors import TfcorrError

LAST = "last.npz"
PREVIOUS = "previous.npz"
BEST = "best.npz"

# What reading a damaged archive may raise: its parts are parsed before their checksums can be compared.
_DAMAGE = (
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class CheckpointError(TfcorrError):
    """A checkpoint that does not belong to this run, or cannot be made or read."""


class DamagedCheckpointError(CheckpointError):
    """A file that is no checkpoint, or one that changed since it was written."""


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    # Numbered, as paths need not be unique.
    named = {f"weights/{i:04d}/{v.path}": v for i, v in enumerate(model.weights)}
    named.update({f"optimizer/{i:04d}/{v.path}": v for i, v in enumerate(model.optimizer.variables)})
    for kind, variables in getattr(model, "companions", {}).items():
        named.update({f"{kind}/{i:04d}/{v.path}": v for i, v in enumerate(variables)})
    return named


def save_checkpoint(
    path: str | os.PathLike,
    model: keras.Model,
    state: dict[str, Any],
    *,
    previous: str | os.PathLike | None = None,
) -> None:
    """Write all variables of a compiled model and ``state``; the file is whole or not there.

    Args:
        path: of the ``.npz`` file.
        model: its optimiser is built. What trains beside it, such as a discriminator and its optimiser, it
            names in an attribute ``companions``: name -> variables.
        state: anything that JSON can hold.
        previous: where the file that stands there goes; None removes it.

    Raises:
        CheckpointError: a variable has values that are not finite: nobody could go on from them.
        WriteError: the file cannot be written; the one that stands there is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: keras.ops.convert_to_numpy(v) for name, v in _variables(model).items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(
                f"{path}: not written at step {state.get('step')}, as {name} is not finite; the checkpoint "
                "before stays. Lower train.learning_rate.initial, lengthen its warmup, or set train.clip_norm"
            )
    with replacing(path, previous=previous) as part, open(part, "wb") as file:
        np.savez(file, state=np.array(json.dumps(state)), **arrays)


def save_last(folder: Path, model: keras.Model, state: dict[str, Any]) -> None:
    """`save_checkpoint` as the newest of a run folder; the newest so far becomes the one before."""
    save_checkpoint(folder / LAST, model, state, previous=folder / PREVIOUS)


def read_state(path: str | os.PathLike) -> dict[str, Any]:
    """The ``state`` of a checkpoint whose content agrees with its checksums.

    Raises:
        DamagedCheckpointError: the file is no checkpoint, or damaged.
        CheckpointError: it may not be read.
    """
    return _read(path)[0]


def _read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            # Before anything is made of it: the archive has a checksum of each of its parts.
            if damaged := archive.zip.testzip():
                raise ValueError(f"{damaged} differs from its checksum")
            # A flipped bit in a length of the directory may swallow whole entries, unseen by zipfile.
            for part in archive.zip.infolist():
                if part.comment or part.extra:
                    raise ValueError(f"{part.filename} has more about it in the directory than was written")
            arrays = {name: archive[name] for name in archive.files}
            return json.loads(str(arrays.pop("state"))), arrays
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except _DAMAGE as error:
        raise DamagedCheckpointError(f"{path}: not a checkpoint of tfcorr, or damaged ({error})") from error


def load_checkpoint(
    path: str | os.PathLike, model: keras.Model, *, config: str | None = None
) -> dict[str, Any]:
    """Put the variables of a checkpoint into a compiled model.

    Args:
        path: written by `save_checkpoint`.
        model: built, with a built optimiser, of the same architecture; untouched after an error.
        config: what the saved ``state`` has to have under this name.

    Returns:
        The saved state.

    Raises:
        DamagedCheckpointError: not a checkpoint, or damaged.
        CheckpointError: one of another configuration, architecture or optimiser; names the first difference.
    """
    state, arrays = _read(path)
    if config is not None and state["config"] != config:
        raise CheckpointError(
            f"{path}: written with another configuration ({state['config']}, now {config}); "
            "choose another run folder (run=...) or delete this one"
        )
    variables = _variables(model)
    saved = {_place(name): name for name in arrays}
    wanted = {_place(name): name for name in variables}
    for place in sorted(saved.keys() ^ wanted.keys()):
        only = (
            f"{saved[place]} is only in the checkpoint" if place in saved else f"{wanted[place]} is not in it"
        )
        raise CheckpointError(f"{path}: {only}; it is of another architecture")
    for place, name in wanted.items():
        value, variable = arrays[saved[place]], variables[name]
        if value.shape != tuple(variable.shape):
            raise CheckpointError(
                f"{path}: {saved[place]} has shape {value.shape}, the model's has {tuple(variable.shape)}"
            )
    for place, name in wanted.items():
        variables[name].assign(arrays[saved[place]])
    return state


def load_latest(
    folder: Path,
    model: keras.Model,
    config: str,
    report: Callable[[str], None],
    *,
    put_aside: bool = True,
) -> dict[str, Any] | None:
    """Goes on from the newest checkpoint of a run folder that can be read.

    A damaged one is named and put aside (``last.damaged.npz``), so that it takes no good one's place.

    Args:
        folder: of the run.
        model: see `load_checkpoint`.
        config: of the run.
        report: takes a line on what was found.
        put_aside: False for a worker that leaves the folder to the chief.

    Returns:
        The saved state, or None if there is no checkpoint.

    Raises:
        CheckpointError: those that are there cannot be used; nothing was changed.
    """
    damaged: dict[Path, str] = {}
    for path in (folder / LAST, folder / PREVIOUS, folder / BEST):
        if not path.is_file():
            continue
        try:
            state = load_checkpoint(path, model, config=config)
        except DamagedCheckpointError as error:
            damaged[path] = str(error)
            continue
        for other, reason in damaged.items():
            report(f"warning: {reason}")
            if put_aside:
                os.replace(other, other.with_suffix(".damaged.npz"))
        report(f"going on from {path}, step {state['step']}")
        return state
    if damaged:
        raise CheckpointError(
            f"{'; '.join(damaged.values())}. No other checkpoint is there: to begin anew, choose another run "
            "folder (run=...) or delete this one"
        )
    return None


def _place(name: str) -> tuple[str, str, str]:
    """Kind, number and last word of a variable; between them stand names that Keras numbers a process."""
    kind, number, *path = name.split("/")
    return kind, number, path[-1].rpartition("_")[2]
