"""What a run does when something goes wrong: it goes on to the same end, or stops and says why."""

import errno
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.ops import convert_to_numpy

from tfcorr import atomic
from tfcorr.atomic import WriteError
from tfcorr.config import LearningRate, Training
from tfcorr.training.callbacks import TrainingError
from tfcorr.training.checkpoint import BEST, LAST, PREVIOUS, read_state
from tfcorr.training.loop import run_fit
from tfcorr.training.photos import DataError
from tfcorr.training.run_lock import RunLockedError, run_lock

STEPS = 12


class Line(keras.Model):
    """The smallest trainer: fits a line, one batch a step; its validation gives what the test says."""

    def __init__(self, scores=None):
        super().__init__()
        self.dense = keras.layers.Dense(1, kernel_initializer="ones")
        self.dense.build((None, 2))
        self.scores = scores or {}

    def build(self, input_shape=None):
        self.built = True

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.dense(data["x"]) - data["y"]))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss, "residual": tf.sqrt(loss)}

    def evaluate(self, dataset, **kwargs):
        return {"psnr": self.scores.get(int(self.optimizer.iterations), 0.0)}


def batch(step):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(4, 2)).astype(np.float32)
    return x, (x @ [[2.0], [-1.0]] + 0.5).astype(np.float32)


def batches_from(batch):
    def batches(start, stop):
        def load(k):
            x, y = tf.numpy_function(lambda k: batch(int(k)), [k], [tf.float32, tf.float32])
            return {"x": tf.ensure_shape(x, (4, 2)), "y": tf.ensure_shape(y, (4, 1))}

        return tf.data.Dataset.range(start, stop).map(load)

    return batches


def run(folder, trainer=None, batch=batch, lines=None, every=2, **options):
    trainer = trainer or Line()
    settings = Training(
        steps=STEPS,
        batch=4,
        learning_rate=LearningRate(0.05),
        log_every=4,
        checkpoint_every=every,
        profile_steps=0,
    )
    report = (lines if lines is not None else []).append
    state = run_fit(trainer, batches_from(batch), settings, folder, config_hash="c", report=report, **options)
    return [convert_to_numpy(v) for v in trainer.weights], state


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a run that nothing happened to."""
    return run(tmp_path_factory.mktemp("whole"))[0]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def failing_at(step, error):
    def failing(number):
        if number == step:
            raise error
        return batch(number)

    return failing


def test_data_that_cannot_be_read_any_more(tmp_path, whole):
    error = DataError("none of the 8 items can be read; the log names each file")
    with pytest.raises(
        TrainingError, match=r"^step \d+: none of the 8 items can be read; the log names each"
    ):
        run(tmp_path, batch=failing_at(7, error))
    assert 2 <= read_state(tmp_path / LAST)["step"] <= 7
    assert_same(run(tmp_path)[0], whole)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path, whole):
    with pytest.raises(TrainingError):
        run(tmp_path, batch=failing_at(9, DataError("gone")))
    steps = [read_state(tmp_path / name)["step"] for name in (PREVIOUS, LAST)]
    data = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(data[: len(data) // 2])
    lines = []
    assert_same(run(tmp_path, lines=lines)[0], whole)
    assert "damaged" in lines[0] and lines[1].endswith(f"{PREVIOUS}, step {steps[0]}")
    assert (tmp_path / "last.damaged.npz").stat().st_size == len(data) // 2


def test_a_loss_that_is_no_number_is_named_with_its_parts(tmp_path, whole):
    def broken(number):
        x, y = batch(number)
        return x, y if number < 7 else y * np.float32("nan")

    message = r"step 8: the loss is nan, residual nan; the last checkpoint is from before\. Lower train\.lear"
    with pytest.raises(TrainingError, match=message):
        run(tmp_path, batch=broken)
    assert read_state(tmp_path / LAST)["step"] == 6
    assert_same(run(tmp_path)[0], whole)


@pytest.mark.parametrize("place", [LAST, "log.jsonl"])
def test_a_full_disk_stops_the_run_with_the_name_of_the_file(tmp_path, monkeypatch, place, whole):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(number):
        if number == 5:
            monkeypatch.setattr(*((np, "savez", full) if place == LAST else (atomic, "open", full, False)))
        return batch(number)

    with pytest.raises(WriteError, match=rf"{place}: cannot be written: the disk is full"):
        run(tmp_path, batch=fill)
    monkeypatch.undo()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert_same(run(tmp_path)[0], whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_saves(tmp_path, number, whole):
    before = signal.getsignal(number)

    def interrupted(step):
        if step == 4:
            os.kill(os.getpid(), number)
        return batch(step)

    _, state = run(tmp_path, batch=interrupted, every=100)
    assert state.stopped == signal.Signals(number).name
    assert read_state(tmp_path / LAST)["step"] == state.step < STEPS
    assert signal.getsignal(number) is before
    assert_same(run(tmp_path)[0], whole)


def test_an_error_gives_the_signals_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingError):
        run(tmp_path, batch=failing_at(3, DataError("gone")))
    assert signal.getsignal(signal.SIGTERM) is before


def validated(folder, scores, **options):
    dataset = tf.data.Dataset.range(1)
    return run(folder, Line(scores), validation=dataset, validate_every=3, metric="psnr", **options)


def test_the_best_checkpoint_is_never_lost(tmp_path):
    # The best is newer than the checkpoint that the run goes on from; another one comes out this time.
    with pytest.raises(TrainingError):
        validated(tmp_path, {3: 0.5, 6: 0.9}, batch=failing_at(8, DataError("gone")), every=5)
    best = (tmp_path / BEST).read_bytes()
    assert read_state(tmp_path / BEST)["best"] == 0.9 and read_state(tmp_path / LAST)["best"] == 0.5
    _, state = validated(tmp_path, {6: 0.8, 9: 0.85, 12: float("nan")}, every=5)
    assert state.best == 0.9 and (tmp_path / BEST).read_bytes() == best


def test_a_best_checkpoint_that_is_damaged_is_told_and_replaced(tmp_path):
    with pytest.raises(TrainingError):
        validated(tmp_path, {3: 0.9}, batch=failing_at(8, DataError("gone")))
    (tmp_path / BEST).write_bytes(b"x")
    lines = []
    _, state = validated(tmp_path, {9: 0.5, 12: 0.4}, lines=lines)
    assert any(line.endswith("the next validation counts as the best") for line in lines)
    assert state.best == read_state(tmp_path / BEST)["best"] == 0.5


def test_a_validation_that_is_no_number_is_not_the_best(tmp_path):
    _, state = validated(tmp_path, {3: float("nan"), 6: 0.3})
    assert state.best == 0.3 and read_state(tmp_path / BEST)["step"] == 6


def test_other_data_are_told(tmp_path):
    with pytest.raises(TrainingError):
        run(tmp_path, batch=failing_at(6, DataError("gone")), data_key="one")
    lines = []
    run(tmp_path, lines=lines, data_key="two")
    assert lines[1].startswith("warning: the samples' files are not those of the checkpoint any more")
    assert read_state(tmp_path / LAST)["data"] == "two"


def test_a_run_folder_that_is_in_use_is_refused(tmp_path):
    with run_lock(tmp_path), pytest.raises(RunLockedError, match="another call works in this run folder"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
