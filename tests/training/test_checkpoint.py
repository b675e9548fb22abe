"""Checkpoints that are killed while they are written, damaged afterwards, or find no space."""

import errno
import json
import os
import re
import shutil
import struct

import keras
import numpy as np
import pytest
from keras.ops import convert_to_numpy
from killing import each_death

from tfcorr.atomic import WriteError, remove_leftovers
from tfcorr.training.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    CheckpointError,
    DamagedCheckpointError,
    load_checkpoint,
    load_latest,
    read_state,
    save_checkpoint,
    save_last,
)


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile(optimizer=keras.optimizers.Adam(0.1))
    model.optimizer.build(model.trainable_variables)
    return model


def put(model, step):
    """Values that tell the step."""
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, step, np.float32))


def save(folder, model, step, **state):
    put(model, step)
    save_last(folder, model, {"step": step, "config": "c", **state})


def step_of(model):
    (value,) = {
        float(v) for variable in model.trainable_variables for v in convert_to_numpy(variable).ravel()
    }
    return value


def latest(folder, model):
    """What a run goes on from: the step that the state says, which the weights have to be of."""
    put(model, -1)
    lines = []
    state = load_latest(folder, model, "c", lines.append)
    if state is None:
        return None, lines
    assert step_of(model) == state["step"]
    return state["step"], lines


def damage(path, kind, rng):
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        data = data[: rng.integers(1, len(data))]
    elif kind == "flipped":
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    elif kind == "zeros":
        # What a power cut leaves of a file that was not synchronised.
        data = bytearray(len(data))
    elif kind == "empty":
        data = bytearray()
    path.write_bytes(data)


def test_a_killed_checkpoint_leaves_the_one_before_or_the_new_one(tmp_path, model, monkeypatch):
    folder = tmp_path / "run"

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        save(folder, model, 1)
        save(folder, model, 2)
        put(model, 3)

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    seen = []
    work = lambda: save_last(folder, model, {"step": 3, "config": "c"})  # noqa: E731
    for _ in each_death(monkeypatch, prepare, work):
        step, _ = latest(folder, model)
        seen.append(step)
        remove_leftovers(folder, older_than=0)
        assert {path.name for path in folder.iterdir()} <= {LAST, PREVIOUS}
    assert seen == sorted(seen) and set(seen) == {2, 3}
    assert read_state(folder / PREVIOUS)["step"] == 2


@pytest.mark.parametrize("kind", ["truncated", "flipped", "zeros", "empty"])
def test_a_damaged_checkpoint_is_never_taken_for_a_good_one(tmp_path, model, kind):
    rng = np.random.default_rng(0)
    save(tmp_path, model, 7)
    good = (tmp_path / LAST).read_bytes()
    found = []
    for _ in range(1 if kind in ("zeros", "empty") else 100):
        (tmp_path / LAST).write_bytes(good)
        damage(tmp_path / LAST, kind, rng)
        put(model, -1)
        try:
            state = load_checkpoint(tmp_path / LAST, model)
        except DamagedCheckpointError as error:
            assert str(tmp_path / LAST) in str(error)
            assert step_of(model) == -1
            found.append(True)
        else:
            # A bit that carries nothing, such as the date of a part.
            assert (step_of(model), state) == (7, {"step": 7, "config": "c"})
            found.append(False)
    assert all(found) if kind != "flipped" else sum(found) > 30


@pytest.mark.parametrize("field", [30, 32])  # the lengths of an entry's extra field and comment
def test_an_entry_that_swallows_the_next_is_damage(tmp_path, model, field):
    save(tmp_path, model, 7)
    data = bytearray((tmp_path / LAST).read_bytes())
    entries = [match.start() for match in re.finditer(b"PK\x01\x02", data)]
    first, second, third = entries[:3]
    struct.pack_into("<H", data, first + field, third - second)
    (tmp_path / LAST).write_bytes(data)
    put(model, -1)
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(tmp_path / LAST, model)
    assert step_of(model) == -1


def test_a_run_goes_on_from_the_newest_that_can_be_read(tmp_path, model):
    for step in (1, 2, 3):
        save(tmp_path, model, step)
    put(model, 2)
    save_checkpoint(tmp_path / BEST, model, {"step": 2, "config": "c", "best": 0.5})
    assert latest(tmp_path, model) == (3, [f"going on from {tmp_path / LAST}, step 3"])
    (tmp_path / LAST).write_bytes(b"")
    step, lines = latest(tmp_path, model)
    assert step == 2 and len(lines) == 2
    assert lines[0].startswith(f"warning: {tmp_path / LAST}: not a checkpoint of tfcorr, or damaged")
    assert lines[1] == f"going on from {tmp_path / PREVIOUS}, step 2"
    # It is put aside: the next checkpoint takes nobody's place.
    assert not (tmp_path / LAST).exists() and (tmp_path / "last.damaged.npz").exists()
    (tmp_path / PREVIOUS).write_bytes(b"PK")
    assert latest(tmp_path, model)[1][-1] == f"going on from {tmp_path / BEST}, step 2"


def test_without_a_readable_checkpoint_nothing_begins_from_scratch(tmp_path, model):
    assert latest(tmp_path, model) == (None, [])
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"last\.npz: .*previous\.npz: .*choose another run folder"):
        latest(tmp_path, model)
    assert {path.name for path in tmp_path.iterdir()} == {LAST, PREVIOUS}


def test_what_is_not_damage_is_not_passed_over(tmp_path, model):
    save(tmp_path, model, 1, more=1)
    save(tmp_path, model, 2)
    with pytest.raises(CheckpointError, match=r"last\.npz: written with another configuration \(c, now d\)"):
        load_latest(tmp_path, model, "d", print)
    assert read_state(tmp_path / PREVIOUS) == {"step": 1, "config": "c", "more": 1}


def test_values_that_are_not_finite_are_never_saved(tmp_path, model):
    save(tmp_path, model, 1)
    before = (tmp_path / LAST).read_bytes()
    model.trainable_variables[1].assign([1.0, np.nan, 2.0])
    message = (
        r"last\.npz: not written at step 2, as weights/0001/.*bias is not finite; the checkpoint before stays"
    )
    with pytest.raises(CheckpointError, match=message):
        save_last(tmp_path, model, {"step": 2, "config": "c"})
    assert (tmp_path / LAST).read_bytes() == before and not (tmp_path / PREVIOUS).exists()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, model, monkeypatch):
    save(tmp_path, model, 1)

    def full(file, **arrays):
        file.write(b"PK half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(WriteError, match=r"last\.npz: cannot be written: the disk is full"):
        save(tmp_path, model, 2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [LAST]
    assert latest(tmp_path, model)[0] == 1
    assert json.loads(json.dumps(read_state(tmp_path / LAST))) == {"step": 1, "config": "c"}
