"""Keras callbacks of a training run: log, validation, checkpoints, and the reasons to stop.

All of them count in optimiser steps, which a resumed run continues. `RunState` is what they share.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcorr.atomic import append_line
from tfcorr.errors import TfcorrError
from tfcorr.training.checkpoint import BEST, save_checkpoint, save_last


class TrainingError(TfcorrError):
    """Training went wrong in a way that going on cannot mend."""


@dataclass
class RunState:
    """Where a run stands; saved with each checkpoint.

    Attributes:
        seed: of weights and data.
        config: hash of the configuration.
        step: optimiser steps done.
        seconds: time spent in all calls of this run.
        best: best value of the validation's metric so far.
        metrics: the latest validation.
        data: names what the samples are made from.
        stopped: why the run ended before its last step, or None.
    """

    seed: int
    config: str
    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    data: str = ""
    stopped: str | None = None

    def saved(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SAVED}

    @classmethod
    def from_saved(cls, saved: dict[str, Any]) -> RunState:
        """The state of a checkpoint; what an earlier version did not write has its default."""
        return cls(**{name: saved[name] for name in _SAVED if name in saved})


_SAVED = ("seed", "config", "step", "seconds", "best", "metrics", "data")


class Clock(keras.callbacks.Callback):
    """Counts steps and seconds. The first callback of a list, as the others read what it counts."""

    def __init__(self, state: RunState):
        super().__init__()
        self.state = state

    def on_train_begin(self, logs=None):
        self._last = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        self.state.seconds += now - self._last
        self.state.step += 1
        self._last = now


class Phases(keras.callbacks.Callback):
    """Tells a trainer whose losses change with the step which one comes.

    Such a trainer has a method ``begin(step)``, steps from 0, and an attribute ``phase``; where this changes,
    its step is traced anew.

    Args:
        state: of the run.
    """

    def __init__(self, state: RunState):
        super().__init__()
        self.state = state

    def on_train_batch_begin(self, batch, logs=None):
        before = self.model.phase
        self.model.begin(self.state.step)
        if self.model.phase != before:
            self.model.make_train_function(force=True)


class DivergenceGuard(keras.callbacks.Callback):
    """Stops with an error when the loss is no number, or when the learned offsets explode.

    Args:
        state: of the run.
        max_offset: largest mean of the learned offsets' absolute value, in cells of their level; the log
            names it ``offset_mean``.
    """

    def __init__(self, state: RunState, max_offset: float):
        super().__init__()
        self.state = state
        self.max_offset = max_offset

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            parts = {name: float(value) for name, value in logs.items() if name != "loss"}
            bad = "".join(f", {name} {value}" for name, value in parts.items() if not math.isfinite(value))
            raise TrainingError(
                f"step {self.state.step}: the loss is {loss}{bad}; the last checkpoint is from before. Lower "
                "train.learning_rate.initial, lengthen its warmup, or set train.clip_norm"
            )
        offset = float(logs.get("offset_mean", 0.0))
        if offset > self.max_offset:
            raise TrainingError(
                f"step {self.state.step}: the learned offsets explode, their mean is {offset:.0f} cells "
                f"(limit {self.max_offset:.0f}, train.max_offset). Lower the learning rate of the offset "
                "branches (train.multipliers) and go on from the last checkpoint"
            )


class Log(keras.callbacks.Callback):
    """A line on the screen and in ``log.jsonl``, and TensorBoard scalars, every ``every`` steps.

    Values are means over the steps since the last line; names that end in ``_max``, possibly before a ``/``,
    have the largest of them. Names with a ``/`` are not on the screen. Without the package tensorboard there
    are no event files, which is said once.

    Args:
        state: of the run.
        folder: of the run.
        steps: of the whole run.
        batch: samples a step, for the throughput.
        every: steps.
        images: makes pictures by name, (B, H, W, 3), of the averaged weights where the optimiser averages;
            called every ``images_every`` steps, and at the end unless a signal ended it.
        images_every: 0 for never.
        report: prints a line.
    """

    def __init__(
        self,
        state: RunState,
        folder: Path,
        *,
        steps: int,
        batch: int,
        every: int,
        images: Callable[[], dict[str, Any]] | None = None,
        images_every: int = 0,
        report: Callable[[str], None] = print,
    ):
        super().__init__()
        self.state = state
        self.path = folder / "log.jsonl"
        self.steps = steps
        self.batch_size = batch
        self.every = every
        self.images = images if images_every else None
        self.images_every = images_every
        self._pictured = state.step
        self.report = report
        self._window: list[dict[str, float]] = []
        self._since = state.seconds
        self.writer = self._open(folder)

    def _open(self, folder: Path):
        import tensorflow as tf

        try:
            writer = tf.summary.create_file_writer(str(folder / "tensorboard"))
            with writer.as_default(step=0):
                tf.summary.text("run/config", self.state.config)
        except Exception as error:  # TBNotInstalledError, whose module is private.
            if type(error).__name__ != "TBNotInstalledError":
                raise
            self.report("tensorboard is not installed: no event files (pip install tensorboard)")
            return None
        return writer

    def on_train_batch_end(self, batch, logs=None):
        self._window.append({name: float(value) for name, value in (logs or {}).items()})
        if self.images and self.state.step % self.images_every == 0:
            self._write_images()
        if self.state.step % self.every == 0 or self.state.step == self.steps:
            self.flush()

    def flush(self):
        """Write the window as one line."""
        if not self._window:
            return
        # A trainer's phases may differ in what they report: a name's values are those that there are.
        names = dict.fromkeys(name for row in self._window for name in row)
        values = {
            name: float(
                (np.max if is_maximum(name) else np.mean)([row[name] for row in self._window if name in row])
            )
            for name in names
        }
        values.update(learning_rates(self.model))
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if "/" not in name)
        seconds = (self.state.seconds - self._since) / len(self._window)
        values.update(seconds_per_step=seconds, samples_per_second=self.batch_size / max(seconds, 1e-9))
        self.write("train", values)
        left = (self.steps - self.state.step) * seconds / 60
        speed = f"{1000 * seconds:.0f} ms/step, {values['samples_per_second']:.1f} samples/s"
        self.report(f"step {self.state.step}/{self.steps}  {shown}  {speed}, {left:.0f} min left")
        self._window.clear()
        self._since = self.state.seconds

    def write(self, group: str, values: dict[str, float]):
        """One line of ``log.jsonl`` and the same scalars for TensorBoard."""
        import tensorflow as tf

        line = {"step": self.state.step, "group": group, "seconds": round(self.state.seconds, 1), **values}
        append_line(self.path, json.dumps(line))
        if self.writer:
            with self.writer.as_default(step=self.state.step):
                for name, value in values.items():
                    tf.summary.scalar(f"{group}/{name}", value)

    def _write_images(self):
        import tensorflow as tf

        self._pictured = self.state.step
        if self.writer:
            with averaged_weights(self.model), self.writer.as_default(step=self.state.step):
                for name, value in self.images().items():
                    tf.summary.image(f"pictures/{name}", value, max_outputs=4)

    def on_train_end(self, logs=None):
        self.flush()
        # Who interrupts a run does not want to wait for pictures.
        ended = self.state.stopped in (None, "max_minutes")
        if self.images and ended and self._pictured != self.state.step:
            self._write_images()
        if self.writer:
            self.writer.flush()


def is_maximum(name: str) -> bool:
    """Whether a logged value is the largest of several, and not their mean."""
    return name.partition("/")[0].endswith("_max")


def learning_rates(model: keras.Model) -> dict[str, float]:
    """The present learning rates: the optimiser's, its groups', and those that a trainer adds.

    Args:
        model: compiled. Optimisers beside its own it names in ``companion_optimizers``: name -> optimiser.

    Returns:
        ``learning_rate``, ``learning_rate/PART`` for each part of `GroupedAdam.multipliers`, and
        ``learning_rate/NAME``.
    """

    def rate(optimizer) -> float:
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))

    rates = {"learning_rate": rate(model.optimizer)}
    for part, factor in getattr(model.optimizer, "multipliers", {}).items():
        rates[f"learning_rate/{part.replace('/', '.')}"] = factor * rates["learning_rate"]
    for name, optimizer in getattr(model, "companion_optimizers", {}).items():
        rates[f"learning_rate/{name}"] = rate(optimizer)
    return rates


class Validation(keras.callbacks.Callback):
    """Evaluates on held-out data every ``every`` steps and at the last one; keeps the best checkpoint.

    With an averaging optimiser, the averaged weights are evaluated.

    Args:
        state: of the run.
        dataset: a finite dataset.
        every: steps.
        last: number of the last step.
        metric: whose largest value is the best.
        folder: of the run.
        log: where the values go; None for a worker that only takes part.
        evaluate: ``(model, dataset) -> name -> value``.
    """

    def __init__(
        self,
        state: RunState,
        dataset,
        *,
        every: int,
        last: int,
        metric: str,
        folder: Path,
        log: Log | None,
        evaluate: Callable[[keras.Model, Any], dict[str, Any]] | None = None,
    ):
        super().__init__()
        self.state = state
        self.dataset = dataset
        self.every = every
        self.last = last
        self.metric = metric
        self.folder = folder
        self.log = log
        self.evaluate = evaluate or _evaluate

    def on_train_batch_end(self, batch, logs=None):
        if self.state.step % self.every == 0 or self.state.step == self.last:
            self.measure()

    def measure(self):
        """Evaluate now."""
        with averaged_weights(self.model):
            values = self.evaluate(self.model, self.dataset)
        self.state.metrics = {name: float(value) for name, value in values.items()}
        if self.log is None:
            return
        self.log.write("validation", self.state.metrics)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in self.state.metrics.items())
        value = self.state.metrics[self.metric]
        better = math.isfinite(value) and (self.state.best is None or value > self.state.best)
        self.log.report(f"step {self.state.step}  validation  {shown}{'  (best)' if better else ''}")
        if better:
            self.state.best = value
            save_checkpoint(self.folder / BEST, self.model, self.state.saved())


def _evaluate(model: keras.Model, dataset) -> dict[str, Any]:
    return model.evaluate(dataset, verbose=0, return_dict=True)


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Puts an averaging optimiser's weights into a model for the length of a ``with`` block."""
    if not model.optimizer.use_ema:
        yield
        return
    variables = model.trainable_variables
    # Copies: `convert_to_numpy` may be a view of a variable that is about to change.
    kept = [keras.ops.convert_to_numpy(v).copy() for v in variables]
    model.optimizer.finalize_variable_values(variables)
    try:
        yield
    finally:
        for variable, value in zip(variables, kept, strict=True):
            variable.assign(value)


class Checkpoints(keras.callbacks.Callback):
    """Writes ``last.npz`` every ``every`` steps and at the end of training, whatever ended it but an error;
    the one before stays as ``previous.npz``."""

    def __init__(self, state: RunState, folder: Path, every: int):
        super().__init__()
        self.state = state
        self.folder = folder
        self.every = every
        self._saved = state.step

    def on_train_batch_end(self, batch, logs=None):
        if self.state.step % self.every == 0:
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        # The only epoch's end, and not training's: before that, `fit` puts the averaged weights into the
        # model.
        if self._saved != self.state.step:
            self._save()

    def _save(self):
        save_last(self.folder, self.model, self.state.saved())
        self._saved = self.state.step


class Stop(keras.callbacks.Callback):
    """Ends training after the current step on SIGINT, SIGTERM, or after ``max_minutes`` of this call.

    `RunState.stopped` then says why. The previous signal handlers come back when training ends; a second
    signal while the first is being obeyed does what it always did.
    """

    def __init__(self, state: RunState, max_minutes: float | None):
        super().__init__()
        self.state = state
        self.seconds = math.inf if max_minutes is None else 60 * max_minutes
        self._handlers: dict[int, Any] = {}

    def on_train_begin(self, logs=None):
        self._start = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._handlers[number] = signal.signal(number, self._on_signal)
            except ValueError:
                # Only the main thread may set handlers; elsewhere the owner of the thread stops us.
                return

    def _on_signal(self, number, frame):
        self.state.stopped = signal.Signals(number).name
        self.restore()

    def restore(self):
        """Gives the signals back to who had them before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def on_train_batch_end(self, batch, logs=None):
        if self.state.stopped is None and time.monotonic() - self._start > self.seconds:
            self.state.stopped = "max_minutes"
        if self.state.stopped:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self.restore()
