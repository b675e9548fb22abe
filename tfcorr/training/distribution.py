"""Training on more than one device: a batch is divided among replicas, whose gradients are summed.

A `tf.distribute.MirroredStrategy` (the devices of one machine) works within `fit`. Keras 3's `fit` cannot
drive a `tf.distribute.MultiWorkerMirroredStrategy` (several machines), so `fit_workers` is a loop of our own
for it, with the same callbacks and the same ``train_step``.

Keras' optimisers sum the gradients of the replicas: a ``train_step`` passes its own through
`shared_gradients`, and the sum is the gradient of the whole batch's mean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcorr.config import Training
from tfcorr.errors import TfcorrError
from tfcorr.training.callbacks import is_maximum


def prepare_devices(settings: Training) -> None:
    """Divide the CPU into the parts that ``mirrored`` training without a GPU asks for.

    Raises:
        TfcorrError: TensorFlow has started already, and has fewer of them.
    """
    if settings.distribute != "mirrored" or tf.config.list_physical_devices("GPU"):
        return
    parts = settings.devices or 1
    cpu = tf.config.list_physical_devices("CPU")[0]
    with contextlib.suppress(RuntimeError):
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * parts)
    if len(tf.config.list_logical_devices("CPU")) < parts:
        raise TfcorrError(f"train.devices is {parts}, but TensorFlow has started with one part of the CPU")


def make_strategy(settings: Training) -> tf.distribute.Strategy:
    """The strategy of a configuration; models and trainers are to be made in its ``scope()``.

    Args:
        settings: ``distribute`` and ``devices``; the batch has to be a multiple of the number of replicas.

    Raises:
        TfcorrError: there are not as many devices, or the batch cannot be divided evenly.
    """
    if settings.distribute == "none":
        return tf.distribute.get_strategy()
    if settings.distribute == "workers":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        if settings.devices is not None and settings.devices > len(devices):
            raise TfcorrError(
                f"train.devices is {settings.devices}, this machine has {len(devices)} ({kind})"
            )
        strategy = tf.distribute.MirroredStrategy(devices[: settings.devices])
    replicas = strategy.num_replicas_in_sync
    if settings.batch % replicas:
        raise TfcorrError(f"train.batch is {settings.batch}, expected a multiple of the {replicas} replicas")
    return strategy


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Whether the strategy spans several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the files: the only one, or the first of several workers."""
    if not is_multi_worker(strategy) or strategy.cluster_resolver is None:
        return True
    resolver = strategy.cluster_resolver
    if resolver.task_type in (None, "chief"):
        return True
    return (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and not resolver.cluster_spec().as_dict().get("chief")
    )


def replica_number():
    """Which replica computes, from 0: an int or an int32 scalar."""
    context = tf.distribute.get_replica_context()
    return context.replica_id_in_sync_group if context else 0


def shared_gradients(gradients: Sequence[Any]) -> list[Any]:
    """Gradients of a replica's mean loss, such that their sum over the replicas is that of the whole batch's.

    Args:
        gradients: of one replica; None entries stay.
    """
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync if context else 1
    if replicas == 1:
        return list(gradients)
    return [None if gradient is None else gradient / replicas for gradient in gradients]


def fit_workers(trainer: keras.Model, dataset: tf.data.Dataset, callbacks: Sequence[Any]) -> None:
    """One epoch of ``trainer.train_step`` on all workers, in the manner of `fit`.

    Args:
        trainer: compiled, made in the scope of a `tf.distribute.MultiWorkerMirroredStrategy`. If it has an
            attribute ``phase``, a step is traced once for each of its values.
        dataset: whole batches, the same on every worker; each takes its part of every batch.
        callbacks: of Keras. A worker whose callback sets ``stop_training`` stops all after the present step.
    """
    strategy = trainer.distribute_strategy
    parts = strategy.experimental_distribute_dataset(_by_data(dataset))
    steps: dict[Any, Any] = {}

    def traced(phase):
        @tf.function
        def step(batch):
            values = strategy.run(trainer.train_step, args=(batch,))
            return {name: _over_replicas(strategy, name, value) for name, value in values.items()}

        return steps.setdefault(phase, step)

    @tf.function(input_signature=[tf.TensorSpec((), tf.int32)])
    def stopping(flag):
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: flag), axis=None)

    everyone = keras.callbacks.CallbackList(list(callbacks), model=trainer)
    trainer.stop_training = False
    everyone.on_train_begin()
    everyone.on_epoch_begin(0)
    logs: dict[str, Any] = {}
    for number, batch in enumerate(parts):
        everyone.on_train_batch_begin(number)
        phase = getattr(trainer, "phase", None)
        logs = (steps.get(phase) or traced(phase))(batch)
        everyone.on_train_batch_end(number, logs)
        if int(stopping(tf.constant(int(trainer.stop_training)))):
            trainer.stop_training = True
            break
    everyone.on_epoch_end(0, logs)
    trainer.optimizer.finalize_variable_values(trainer.trainable_variables)
    everyone.on_train_end(logs)


def evaluate_on_workers(trainer: keras.Model, dataset: tf.data.Dataset) -> dict[str, float]:
    """Means of ``trainer.test_step`` over a dataset; each worker goes over all of it, and none waits.

    Args:
        trainer: as for `fit_workers`.
        dataset: finite; whole on every worker.
    """
    strategy = trainer.distribute_strategy
    step = tf.function(lambda batch: strategy.run(trainer.test_step, args=(batch,)))
    trainer.reset_metrics()
    values: dict[str, Any] = {}
    for batch in dataset:
        values = step(batch)
    return {name: float(strategy.experimental_local_results(value)[0]) for name, value in values.items()}


def _over_replicas(strategy, name: str, value):
    if not is_maximum(name):
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)
    # There is no reduction to the largest: each replica's value goes to a place of its own in a sum.
    replicas = strategy.num_replicas_in_sync
    placed = strategy.run(lambda v: tf.one_hot(replica_number(), replicas) * v, args=(value,))
    return tf.reduce_max(strategy.reduce(tf.distribute.ReduceOp.SUM, placed, axis=None))


def _by_data(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)
