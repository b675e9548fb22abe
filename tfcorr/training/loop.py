"""One resumable run of `fit`, for any trainer."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tfcorr.config import Training
from tfcorr.training.callbacks import (
    Checkpoints,
    Clock,
    DivergenceGuard,
    Log,
    RunState,
    Stop,
    TrainingError,
    Validation,
)
from tfcorr.training.checkpoint import BEST, DamagedCheckpointError, load_latest, read_state
from tfcorr.training.distribution import (
    evaluate_on_workers,
    fit_workers,
    is_chief,
    is_multi_worker,
    prepare_devices,
)
from tfcorr.training.optimizer import make_optimizer
from tfcorr.training.run_lock import run_lock
from tfcorr.training.samples import wait_for_readers
from tfcorr.training.tensorboard import tensorboard_callbacks


def choose_precision(precision: str) -> str:
    """The Keras dtype policy that ``auto`` means here: bfloat16 where hardware multiplies it, else float32.

    Args:
        precision: ``auto``, ``float32`` or ``mixed_bfloat16``.
    """
    if precision != "auto":
        return precision
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return "mixed_bfloat16"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "float32"
    units = ("amx_bf16", "avx512_bf16")
    return "mixed_bfloat16" if any(unit in flags for unit in units) else "float32"


def prepare(settings: Training) -> str:
    """Set threads, devices, seeds and dtype policy before any model is made; returns the policy's name."""
    import tensorflow as tf

    if settings.threads:
        tf.config.threading.set_intra_op_parallelism_threads(settings.threads)
    prepare_devices(settings)
    keras.utils.set_random_seed(settings.seed)
    policy = choose_precision(settings.precision)
    keras.config.set_dtype_policy(policy)
    return policy


def run_fit(
    trainer: keras.Model,
    batches: Callable[[int, int], Any],
    settings: Training,
    folder: str | os.PathLike,
    *,
    config_hash: str,
    data_key: str = "",
    callbacks: Callable[[RunState], Sequence[keras.callbacks.Callback]] | None = None,
    validation=None,
    validate_every: int = 0,
    metric: str = "",
    images: Callable[[], dict[str, Any]] | None = None,
    parameters: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> RunState:
    """Train to the last step, from the folder's checkpoint if there is one.

    Interrupted and continued, a run sees the same batches and ends with the same weights as in one go: up to
    the order of floating-point sums, which with one thread (``settings.threads``) is fixed.

    With a trainer that was made in the scope of a `tf.distribute.MultiWorkerMirroredStrategy`, all workers
    call this with the same arguments and a folder that all can read; the chief alone writes.

    Args:
        trainer: built, not compiled; its ``train_step`` takes a batch.
        batches: the dataset of batches ``start`` to ``stop`` - 1.
        settings: steps, optimiser, precision and so on.
        folder: for checkpoints, ``log.jsonl`` and TensorBoard.
        config_hash: a checkpoint with another one is refused.
        data_key: names what the batches are made from; that it changed since the checkpoint is reported.
        callbacks: further ones, made for the run's state; they come before validation and checkpoints.
        validation: a finite dataset, or None.
        validate_every: steps.
        metric: of the validation, larger is better.
        images: pictures for TensorBoard.
        parameters: the configuration for TensorBoard, see `tfcorr.training.tensorboard.flattened`.
        report: prints a line.

    Returns:
        The state at the end. Where the optimiser averages, the trainer holds the averaged weights.

    Raises:
        CheckpointError: the checkpoints do not belong to this configuration, or none can be read.
        RunLockedError: another process trains in the folder.
        TrainingError: the loss is no number, offsets explode, or data cannot be read any more.
        WriteError: the disk is full, for example; what was written before is untouched.
    """
    folder = Path(folder)
    strategy = trainer.distribute_strategy
    chief = is_chief(strategy)
    with run_lock(folder) if chief else contextlib.nullcontext():
        optimizer = compile_trainer(trainer, settings)
        state = RunState(seed=settings.seed, config=config_hash, data=data_key)
        if saved := load_latest(folder, trainer, config_hash, report, put_aside=chief):
            state = _resumed(saved, state, folder, report)
        if state.step < settings.steps and settings.max_minutes != 0:
            log = None
            if chief:
                log = Log(
                    state,
                    folder,
                    steps=settings.steps,
                    batch=settings.batch,
                    every=settings.log_every,
                    images=images,
                    images_every=settings.images_every,
                    report=report,
                )
            listed = [Clock(state), DivergenceGuard(state, settings.max_offset)]
            if log:
                listed.append(log)
                listed += tensorboard_callbacks(
                    log, folder, profile_steps=settings.profile_steps, parameters=parameters, report=report
                )
            listed += callbacks(state) if callbacks else []
            if validation is not None:
                measure = Validation(
                    state,
                    validation,
                    every=validate_every,
                    last=settings.steps,
                    metric=metric,
                    folder=folder,
                    log=log,
                    evaluate=evaluate_on_workers if is_multi_worker(strategy) else None,
                )
                listed.append(measure)
            listed += [Checkpoints(state, folder, settings.checkpoint_every)] if chief else []
            _fit(trainer, batches(state.step, settings.steps), listed, state, settings.max_minutes)
        if settings.ema is not None and state.step > 0:
            optimizer.finalize_variable_values(trainer.trainable_variables)
    return state


def compile_trainer(trainer: keras.Model, settings: Training) -> keras.optimizers.Optimizer:
    """Compiles a trainer with the optimiser of its settings, under the strategy that it was made in.

    Args:
        trainer: built.
        settings: ``learning_rate``, ``steps``, ``multipliers``, ``ema`` and ``clip_norm`` of them.

    Returns:
        The optimiser, with its state made.
    """
    with trainer.distribute_strategy.scope():
        optimizer = make_optimizer(
            settings.learning_rate,
            settings.steps,
            multipliers=settings.multipliers,
            ema=settings.ema,
            clip_norm=settings.clip_norm,
        )
        # The compiled ops cannot go through XLA.
        trainer.compile(optimizer=optimizer, jit_compile=False)
        optimizer.build(trainer.trainable_variables)
    return optimizer


def _resumed(saved: dict[str, Any], fresh: RunState, folder: Path, report: Callable[[str], None]) -> RunState:
    """The state of a run that goes on."""
    state = RunState.from_saved(saved)
    if state.data not in ("", fresh.data):
        report(
            "warning: the samples' files are not those of the checkpoint any more; the run goes on with "
            "other batches than it would have had"
        )
    state.data = fresh.data
    if state.best is not None or (folder / BEST).is_file():
        state.best = _best(folder / BEST, state, report)
    return state


def _best(path: Path, state: RunState, report: Callable[[str], None]) -> float | None:
    """The value of the best checkpoint, which may be newer than the one that a run goes on from; None if that
    is lost."""
    try:
        best = read_state(path)
    except DamagedCheckpointError as error:
        report(f"warning: {error}; the next validation counts as the best")
        return None
    return best["best"] if best["config"] == state.config else state.best


def _fit(
    trainer: keras.Model,
    dataset: Any,
    callbacks: list[keras.callbacks.Callback],
    state: RunState,
    max_minutes: float | None,
) -> None:
    import tensorflow as tf

    stop = Stop(state, max_minutes)
    callbacks = [*callbacks, stop]
    try:
        if is_multi_worker(trainer.distribute_strategy):
            fit_workers(trainer, dataset, callbacks)
            if trainer.stop_training and state.stopped is None:
                state.stopped = "another worker"
        else:
            trainer.fit(dataset, callbacks=callbacks, shuffle=False, verbose=0)
    except tf.errors.OpError as error:
        # A reader of ours within the graph: TensorFlow gives its error and traceback as a text.
        told = re.search(r"([A-Z]\w*Error): ([^\n]+)\s+Traceback \(most recent call last\)", error.message)
        if told is None:
            raise
        raise TrainingError(f"step {state.step + 1}: {told[2].strip()}") from error
    finally:
        stop.restore()
        wait_for_readers()
