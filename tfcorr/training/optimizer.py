"""Adam with a learning rate for each group of variables, and the two schedules of the configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping

import keras
import tensorflow as tf
from keras import ops

from tfcorr.config import LearningRate
from tfcorr.errors import TfcorrError


@keras.saving.register_keras_serializable("tfcorr")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate at a step (from 0); see `tfcorr.config.LearningRate` for the arguments.

    Milestones act from the following step: with a milestone at 100, step 100, the 101st, is the first
    slower one.

    Args:
        steps: the last step of the cosine; not used by ``constant``.
        start: steps that went before the optimiser's first one, for an optimiser that joins later.
    """

    def __init__(
        self,
        steps: int,
        initial: float,
        schedule: str = "constant",
        milestones: tuple[int, ...] = (),
        factor: float = 0.1,
        warmup: int = 0,
        final: float = 0.0,
        start: int = 0,
    ):
        self.steps = steps
        self.initial = initial
        self.schedule = schedule
        self.milestones = tuple(milestones)
        self.factor = factor
        self.warmup = warmup
        self.final = final
        self.start = start

    def __call__(self, step):
        step = ops.cast(step, "float32") + self.start
        rate = ops.convert_to_tensor(self.initial, "float32")
        if self.schedule == "cosine":
            share = ops.clip((step - self.warmup) / max(1, self.steps - self.warmup), 0.0, 1.0)
            rate = rate * (self.final + (1 - self.final) * 0.5 * (1 + ops.cos(math.pi * share)))
        for milestone in self.milestones:
            rate = rate * ops.where(step >= milestone, self.factor, 1.0)
        if self.warmup:
            rate = rate * ops.minimum((step + 1) / self.warmup, 1.0)
        return rate

    def get_config(self):
        names = ("steps", "initial", "schedule", "milestones", "factor", "warmup", "final", "start")
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable("tfcorr")
class GroupedAdam(keras.optimizers.Adam):
    """Adam whose step is multiplied for some variables.

    Scaling gradients would change nothing, as Adam divides by their size; here the update itself is scaled.

    Keras sums gradients over the replicas of a `tf.distribute.Strategy`, but clips those of each replica by
    themselves; here ``global_clipnorm`` bounds the norm of the sum, as in one process.

    Args:
        multipliers: part of a variable's path -> factor of its learning rate; a variable takes the first
            that fits. **kwargs: as for `keras.optimizers.Adam`.

    Raises:
        TfcorrError: (when built) a part that is in no variable's path.
    """

    def __init__(self, *args, multipliers: Mapping[str, float] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.multipliers = dict(multipliers or {})
        self._factors: list[float] = []

    def build(self, variables):
        paths = [v.path for v in variables]
        for part in self.multipliers:
            if not any(part in path for path in paths):
                raise TfcorrError(f"multipliers: {part!r} is in no variable's path; one is {paths[0]!r}")
        self._factors = [next((f for p, f in self.multipliers.items() if p in path), 1.0) for path in paths]
        super().build(variables)

    def apply(self, grads, trainable_variables=None):
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync if context else 1
        if replicas > 1 and self.global_clipnorm:
            total = context.all_reduce(tf.distribute.ReduceOp.SUM, list(grads))
            clipped, _ = tf.clip_by_global_norm(total, self.global_clipnorm)
            # Keras sums them again; its own clipping finds nothing left to do.
            grads = [gradient / replicas for gradient in clipped]
        super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        factor = self._factors[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * factor)

    def _update_model_variables_moving_average(self, trainable_variables):
        # Keras assigns the averages replica by replica, which `tf.distribute` does not allow.
        context = tf.distribute.get_replica_context()
        if not self.use_ema or context is None or context.num_replicas_in_sync == 1:
            super()._update_model_variables_moving_average(trainable_variables)
            return
        momentum = self.ema_momentum * ops.cast(ops.not_equal(self.iterations, 0), "float32")

        def average_all(strategy, momentum):
            def average(mean, value, momentum):
                mean.assign(momentum * mean + (1 - momentum) * value)

            pairs = zip(self._model_variables_moving_average, trainable_variables, strict=True)
            for mean, variable in pairs:
                strategy.extended.update(mean.value, average, args=(variable.value, momentum), group=False)

        context.merge_call(average_all, args=(momentum,))

    def get_config(self):
        return {**super().get_config(), "multipliers": self.multipliers}


def make_optimizer(
    rate: LearningRate,
    steps: int,
    *,
    multipliers: Mapping[str, float] | None = None,
    ema: float | None = None,
    clip_norm: float | None = None,
    start: int = 0,
) -> GroupedAdam:
    """The optimiser of a configuration.

    Args:
        rate: the learning rate.
        steps: of the whole run.
        multipliers: see `GroupedAdam`.
        ema: momentum of a moving average of the weights, which `finalize_variable_values` puts in their
            place.
        clip_norm: largest norm of the whole gradient.
        start: steps of the run that went before this optimiser's first.
    """
    schedule = Schedule(
        steps, rate.initial, rate.schedule, rate.milestones, rate.factor, rate.warmup, rate.final, start
    )
    average = {} if ema is None else {"use_ema": True, "ema_momentum": ema}
    return GroupedAdam(schedule, multipliers=multipliers, global_clipnorm=clip_norm, **average)
