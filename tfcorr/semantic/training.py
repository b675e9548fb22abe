"""The trainers of PMD, Keras models whose ``train_step`` is a stage of the paper, and the E-step.

Batches are dictionaries. Every trainer takes the pair's images ``source`` and ``target``, (B, H, W, 3) RGB in
[0, 1], or the backbone's features of them, ``source_16``, ``target_16`` (B, h, w, C) and ``source_32``,
``target_32`` (B, h', w', C'); h x w is the grid of all flows. Flows are (dx, dy) in [-1, 1] units, see
`tfcorr.semantic.matching`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfcorr.semantic.hypotheses import DIRECTIONS
from tfcorr.semantic.losses import cell_mean, distillation_loss, teacher_loss
from tfcorr.semantic.network import SemanticMatchingNetwork
from tfcorr.semantic.reweighting import (
    DIVERGENCE_FLOOR,
    empirical_variance,
    error_divergence,
    hypothesis_weights,
    update_variance,
)
from tfcorr.semantic.teacher import TeacherHead, divergence_from_prior
from tfcorr.training.callbacks import RunState
from tfcorr.training.checkpoint import save_last
from tfcorr.training.trainer import StageTrainer

#: A cell counts as right when its error is at most 0.05 of the image's side, which is 2 long.
RIGHT_WITHIN = 0.1


class VarianceSource(Protocol):
    """Where the variances of the errors are kept; see `tfcorr.semantic.hypotheses.VarianceStore`."""

    def read(self, indices: np.ndarray, version: int) -> np.ndarray:
        """float32 (n, D, h, w, 2) of the pairs ``indices`` (n,); version 0 is the initial one."""

    def write(self, indices: np.ndarray, values: np.ndarray, version: int) -> None:
        """Puts values into a version that nobody reads yet."""

    def commit(self, version: int) -> None:
        """Makes a written version durable and readable; those before the last one may go."""


class _FlowTrainer(StageTrainer):
    """A network whose flow is measured against the truth.

    Held-out batches have ``flow`` and ``valid`` beside the pair, as those of `TeacherTrainer`. ``loss`` is
    the squared error, ``epe`` the mean end-point error in units of the flow, ``pck`` the share of cells
    within `RIGHT_WITHIN`; all over the valid cells. A probabilistic teacher is measured at the mean of its
    attention.
    """

    def __init__(self, network: keras.Model, **kwargs):
        super().__init__(("loss", "epe", "pck"), **kwargs)
        self.network = network

    def call(self, inputs, training=None):
        return self.network(inputs, training=training)

    def measures_of(self, data):
        error = ops.square(self(data, training=False)["flow_t2s"] - data["flow"])
        distance = ops.sqrt(ops.sum(error, axis=-1, keepdims=True))
        right = ops.cast(distance <= RIGHT_WITHIN, "float32")
        measured = {"loss": error, "epe": distance, "pck": right}
        return {name: cell_mean(values, data["valid"]) for name, values in measured.items()}

    def weight_of(self, data):
        return ops.sum(ops.cast(data["valid"], "float32"))


class TeacherTrainer(_FlowTrainer):
    """Trains a teacher on pairs whose flow is known (section 3.2, 1; eq. 2).

    A step reports ``loss`` and its parts ``flow``, ``smoothness`` and ``divergence``. Draws of attention
    depend on ``seed`` and the number of the step alone, so that an interrupted run goes on as it would have.

    Batches have, beside the pair:
        flow: (B, h, w, 2), T2S, the truth.
        valid: (B, h, w), bool or float: where it is known.

    Args:
        network: its trainable variables are trained in place. With a
            `tfcorr.semantic.teacher.TeacherHead` it is the probabilistic teacher, else a static one.
        smooth_weight: alpha of eq. 2.
        divergence_weight: beta of eq. 2.
        samples: draws of attention a step.
        seed: of the draws.
        smooth_form, components: see `tfcorr.semantic.losses.teacher_loss`.
    """

    def __init__(
        self,
        network: SemanticMatchingNetwork,
        *,
        smooth_weight: float = 0.05,
        divergence_weight: float = 0.01,
        samples: int = 1,
        seed: int = 0,
        smooth_form: str = "published",
        components: str = "sum",
        **kwargs,
    ):
        super().__init__(network, **kwargs)
        self.smooth_weight = smooth_weight
        self.divergence_weight = divergence_weight
        self.samples = samples
        self.seed = seed
        self.smooth_form = smooth_form
        self.components = components

    def losses_of(self, data, training):
        options = {}
        if training and isinstance(self.network.head, TeacherHead):
            step = ops.cast(self.optimizer.iterations, "int32")
            options = {"samples": self.samples, "seed": ops.stack([ops.cast(self.seed, "int32"), step])}
        found = self.network(data, training=training, **options)
        divergence = None
        if "mean" in found:
            divergence = divergence_from_prior(found["mean"], found["variance"])
        return teacher_loss(
            found["flow_t2s"],
            data["flow"],
            divergence,
            valid=data["valid"],
            smooth_weight=self.smooth_weight,
            divergence_weight=self.divergence_weight,
            smooth_form=self.smooth_form,
            components=self.components,
        )


class DistillationTrainer(_FlowTrainer):
    """Trains a student on the teacher's hypotheses (eq. 4 with eq. 7): the M-step of algorithm 1.

    In the first round all weights are 1; later they come from eq. 3 with the variances of the store. `EStep`
    ends a round. A step reports, mean over the directions, ``loss``, its parts ``flow``, ``smoothness`` and
    ``divergence`` (eq. 5), and ``weight``, the mean of eq. 3.

    Batches have, beside the pair:
        index: (B,) int, numbers of the pairs in the store; not needed without reweighting.
        flows_t2s, flows_s2t: (B, m, h, w, 2), hypotheses of the trained directions.
        confidence_t2s, confidence_s2t: (B, m, h, w, 1), see `tfcorr.semantic.matching.confidence`; not needed
            without ``confidence``.
        valid_t2s, valid_s2t: (B, m, h, w, 1), bool or float, optional: which hypotheses are to be learnt
            from, whatever ``confidence`` is; the others count as one with no error.
        valid: (B, h, w), optional: which cells count.
        flipped: (B,) bool, optional: pairs that are mirrored left to right here, hypotheses too. The store's
            variances are those of the pair as it is; they are mirrored to match.
        known: (B,) bool, optional: pairs whose hypotheses are the truth, see
            `tfcorr.semantic.data.RehearsedSamples`; they have weight 1 and nothing in the store.

    Args:
        network: maps a batch to a dict of ``flow_t2s`` and ``flow_s2t``, float32 (B, h, w, 2); its trainable
            variables are trained in place.
        store: of the variances; None without reweighting.
        directions: which are trained, of ``t2s`` and ``s2t``; the published program trains T2S alone.
        smooth_weight: alpha of eq. 2, which weighs the smoothness in eq. 4 too.
        divergence_weight: lambda of eq. 4.
        floor, weights, normalize: of eq. 3, see `tfcorr.semantic.reweighting.hypothesis_weights`, where
            ``weights`` is called ``form``. Eq. 5 has the same floor, and at least
            `tfcorr.semantic.reweighting.DIVERGENCE_FLOOR`.
        step_size: phi of eq. 6.
        reweight: False averages the hypotheses (table 3): no weights, no divergence, no E-step.
        confidence: False leaves eq. 7 out.
        detach: False lets a gradient reach the network through the weights of eq. 3.
        divergence_gradient: let the divergence pull on the network too, through the empirical variance. As
            this pulls towards the mean of the hypotheses, against the weights, and as algorithm 1 updates the
            variances by eq. 6, eq. 5 is only reported by default.
        smooth_form, components: see `tfcorr.semantic.losses.distillation_loss`.

    Raises:
        ValueError: a direction is unknown, or there is no store to reweight with.
    """

    def __init__(
        self,
        network: keras.Model,
        store: VarianceSource | None = None,
        *,
        directions: tuple[str, ...] = ("t2s",),
        smooth_weight: float = 0.05,
        divergence_weight: float = 0.01,
        floor: float = 0.05,
        weights: str = "paper",
        normalize: bool = False,
        step_size: float = 0.01,
        reweight: bool = True,
        confidence: bool = True,
        detach: bool = True,
        divergence_gradient: bool = False,
        smooth_form: str = "published",
        components: str = "sum",
        **kwargs,
    ):
        super().__init__(network, **kwargs)
        unknown = set(directions) - set(DIRECTIONS)
        if unknown or not directions:
            raise ValueError(f"directions must be some of {DIRECTIONS}, got {tuple(directions)}")
        if reweight and store is None:
            raise ValueError("reweighting needs a store of variances; give one, or reweight=False")
        self.store = store
        self.directions = tuple(directions)
        self.smooth_weight = smooth_weight
        self.divergence_weight = divergence_weight
        self.floor = floor
        self.weight_form = weights
        self.normalize = normalize
        self.step_size = step_size
        self.reweight = reweight
        self.confidence = confidence
        self.detach = detach
        self.divergence_gradient = divergence_gradient
        self.smooth_form = smooth_form
        self.components = components
        #: Rounds that are over, and the version of the variances that is read; saved with the weights.
        self.round = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="round"
        )
        self._updated = None

    def losses_of(self, data, training):
        found = self(data, training=training)
        variances = self.variances(data) if self.reweight else None
        each = [
            self._losses_of_direction(data, direction, found[f"flow_{direction}"], variances, number)
            for number, direction in enumerate(self.directions)
        ]
        return {name: sum(one[name] for one in each) / len(each) for name in each[0]}

    def _losses_of_direction(self, data, direction, prediction, variances, number):
        hypotheses = ops.cast(data[f"flows_{direction}"], "float32")
        weights = divergence = None
        if self.reweight:
            empirical = empirical_variance(
                prediction if self.divergence_gradient else ops.stop_gradient(prediction), hypotheses
            )
            variance, plain = variances[:, number], self.round == 0
            if "known" in data:
                known = ops.reshape(ops.cast(data["known"], "bool"), (-1, 1, 1, 1))
                variance = ops.where(known, ops.stop_gradient(empirical), variance)
                plain = ops.logical_or(plain, known[..., None])
            weights = hypothesis_weights(
                prediction,
                hypotheses,
                variance,
                floor=self.floor,
                form=self.weight_form,
                normalize=self.normalize,
                detach=self.detach,
            )
            # Algorithm 1, line 3.
            weights = ops.where(plain, ops.ones_like(weights), weights)
            divergence = error_divergence(variance, empirical, floor=max(self.floor, DIVERGENCE_FLOOR))
        terms = distillation_loss(
            prediction,
            hypotheses,
            divergence,
            weights=weights,
            confidence=self._trust(data, direction),
            valid=data.get("valid"),
            smooth_weight=self.smooth_weight,
            divergence_weight=self.divergence_weight,
            smooth_form=self.smooth_form,
            components=self.components,
        )
        return terms if weights is None else {**terms, "weight": ops.mean(weights)}

    def _trust(self, data, direction):
        """What each hypothesis counts beside eq. 3: C of eq. 7 and validity, or None."""
        confidence = data[f"confidence_{direction}"] if self.confidence else None
        valid = data.get(f"valid_{direction}")
        if valid is None:
            return confidence
        valid = ops.cast(valid, "float32")
        return valid if confidence is None else ops.cast(confidence, "float32") * valid

    def variances(self, data):
        """The stored variances of a batch's pairs as they stand in this round: float32 (B, D, h, w, 2)."""
        # Read here and not by the dataset, which runs ahead and would bring values of the round before.
        height, width = data[f"flows_{self.directions[0]}"].shape[2:4]
        values = tf.numpy_function(self._read, [data["index"], self.round.value], tf.float32)
        values = tf.ensure_shape(values, (None, len(self.directions), height, width, 2))
        if "flipped" in data:
            flipped = ops.reshape(ops.cast(data["flipped"], "bool"), (-1, 1, 1, 1, 1))
            values = ops.where(flipped, ops.flip(values, axis=3), values)
        return values

    def _read(self, indices, version):
        return np.asarray(self.store.read(indices, int(version)), np.float32)

    def updated_variances(self, data) -> np.ndarray:
        """Eq. 6 for the pairs of a batch, as they are (not flipped): float32 (B, D, h, w, 2)."""
        if self._updated is None:
            self._updated = tf.function(self._update)
        return self._updated(data).numpy()

    def _update(self, data):
        found = self(data, training=False)
        empirical = [
            empirical_variance(found[f"flow_{d}"], ops.cast(data[f"flows_{d}"], "float32"))
            for d in self.directions
        ]
        return update_variance(self.variances(data), ops.stack(empirical, axis=1), step_size=self.step_size)


class EStep(keras.callbacks.Callback):
    """Ends each round of algorithm 1: updates the variances of all pairs (eq. 6, lines 9 to 11).

    A restart anywhere goes on exactly: round r reads version r of the store and its E-step writes version
    r + 1, which counts once the trainer's ``round`` is r + 1. The checkpoint is written before an E-step and
    after it; one that was cut short is done again from its beginning.

    For `tfcorr.training.loop.run_fit`::

        run_fit(..., callbacks=lambda state: [EStep(state, folder, pairs, steps_per_round)])

    Args:
        state: of the run.
        folder: of the run, for checkpoints.
        pairs: makes an iterable over batches, as those of `DistillationTrainer`, of all pairs, each once and
            not augmented.
        steps_per_round: M-steps between two E-steps; one pass over the pairs in the paper.
        report: prints a line.
    """

    def __init__(
        self,
        state: RunState,
        folder: str | Path,
        pairs: Callable[[], Iterable[dict[str, Any]]],
        steps_per_round: int,
        report: Callable[[str], None] = print,
    ):
        super().__init__()
        self.state = state
        self.folder = Path(folder)
        self.pairs = pairs
        self.steps_per_round = steps_per_round
        self.report = report

    def on_train_begin(self, logs=None):
        if int(self.model.round) < self.state.step // self.steps_per_round:
            self._run()

    def on_train_batch_end(self, batch, logs=None):
        if self.state.step % self.steps_per_round == 0:
            save_last(self.folder, self.model, self.state.saved())
            self._run()

    def _run(self):
        trainer, version = self.model, int(self.model.round) + 1
        count, total = 0, 0.0
        for data in self.pairs():
            values = trainer.updated_variances(data)
            trainer.store.write(keras.ops.convert_to_numpy(data["index"]), values, version)
            count += len(values)
            total += float(np.sum(np.mean(values, axis=(1, 2, 3, 4))))
        trainer.store.commit(version)
        trainer.round.assign(version)
        save_last(self.folder, self.model, self.state.saved())
        self.report(
            f"round {version}: variances of {count} pairs, mean deviation {(total / count) ** 0.5:.3f}"
        )
