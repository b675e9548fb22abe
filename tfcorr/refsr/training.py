"""The trainers of C2-Matching: Keras models whose ``train_step`` is a stage of the paper (section 3.5).

They take the dictionaries of `tfcorr.refsr.data` and work with `fit` and `evaluate`::

    trainer = MatcherTrainer(CorrespondenceNetwork(), margin=1.0, safe_radius=4.0)
    trainer.compile(optimizer=keras.optimizers.Adam(1e-3), jit_compile=False)
    trainer.fit(samples.dataset(0, 1000))
"""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

from tfcorr.refsr.contrastive import contrastive_loss
from tfcorr.refsr.extractor import CorrespondenceNetwork
from tfcorr.refsr.losses import reconstruction_loss, triplet_margin_loss
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.upsampling import BicubicUpsampling


class _Trainer(keras.Model):
    """A stage: one loss over a batch, and means over the batches of an evaluation."""

    def __init__(self, measured: tuple[str, ...], **kwargs):
        super().__init__(**kwargs)
        self._means = {name: keras.metrics.Mean(name=name) for name in measured}

    def build(self, input_shape=None):
        # The network came built; `fit` would otherwise look for shapes to build it from.
        self.built = True

    @property
    def metrics(self):
        return list(self._means.values())

    def losses_of(self, data, training: bool) -> dict:
        """Scalars of a batch by name; ``loss`` is what is minimised."""
        raise NotImplementedError

    def train_step(self, data):
        # A dataset gives the dictionary itself, `train_on_batch` and arrays wrap it in a tuple.
        data, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            values = self.losses_of(data, training=True)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(values["loss"], variables), variables)
        return values

    def measures_of(self, data) -> dict:
        """Scalars of a held-out batch by name."""
        raise NotImplementedError

    def test_step(self, data):
        data, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        for name, value in self.measures_of(data).items():
            self._means[name].update_state(value)
        return {name: mean.result() for name, mean in self._means.items()}


class MatcherTrainer(_Trainer):
    """Trains a contrastive correspondence network with the triplet margin loss (section 3.1, eq. 1 to 3).

    A step reports ``loss``, the mean squared distances ``positive`` (eq. 2) and ``negative`` (eq. 3) of unit
    descriptors, and ``accuracy``, the share of positions whose nearest reference descriptor is at most one
    cell off.

    Args:
        network: trained in place.
        margin: m of eq. 1.
        safe_radius: T of eq. 3, in cells.
        minimum_positions: samples with fewer kept positions do not count.
        negatives: ``matched`` or ``all``, where eq. 3 searches, see
            `tfcorr.refsr.losses.triplet_margin_loss`.
        triplet_weight: of the paper's loss.
        contrastive_weight, temperature: of `tfcorr.refsr.contrastive.contrastive_loss`.
        input_side: ``upsampled``, the reduced and enlarged image (the student), or ``image`` (the teacher).
    """

    def __init__(
        self,
        network: CorrespondenceNetwork,
        *,
        margin: float,
        safe_radius: float,
        minimum_positions: int = 128,
        negatives: str = "matched",
        triplet_weight: float = 1.0,
        contrastive_weight: float = 0.0,
        temperature: float = 0.07,
        input_side: str = "upsampled",
        **kwargs,
    ):
        super().__init__(("loss", "accuracy"), **kwargs)
        self.network = network
        self.margin = margin
        self.safe_radius = safe_radius
        self.minimum_positions = minimum_positions
        self.negatives = negatives
        self.triplet_weight = triplet_weight
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature
        self.input_side = input_side

    def call(self, inputs, training=None):
        return self.network(
            {"input": inputs[self.input_side], "reference": inputs["reference"]}, training=training
        )

    def losses_of(self, data, training):
        query, reference = self(data, training=training)
        terms = triplet_margin_loss(
            query,
            reference,
            data["target"],
            data["valid"],
            margin=self.margin,
            safe_radius=self.safe_radius,
            minimum_positions=self.minimum_positions,
            negatives=self.negatives,
        )
        values = {name: getattr(terms, name) for name in ("positive", "negative", "accuracy")}
        loss = self.triplet_weight * terms.loss
        if self.contrastive_weight:
            values["contrastive"] = contrastive_loss(
                query, reference, data["target"], data["valid"], temperature=self.temperature
            )
            loss = loss + self.contrastive_weight * values["contrastive"]
        return {"loss": loss, **values}

    def measures_of(self, data):
        values = self.losses_of(data, training=False)
        return {name: values[name] for name in self._means}


class RestorerTrainer(_Trainer):
    """Trains a restoration network with the mean absolute error (section 3.4, eq. 10); the matcher is fixed.

    A step reports ``loss`` and, over all levels, ``offset_mean`` and ``offset_max``: absolute values of the
    learned offsets, without the pre-offsets, in cells of their level. An evaluation reports ``psnr_y`` and
    ``gain``, the decibels over bicubic upsampling (Y channel of the 8-bit images, border 4, mean over the
    patches), and ``gain_reference``, the decibels over the same model that is given the reference of
    another patch of the batch.

    Args:
        model: its `restorer` is trained in place.
    """

    def __init__(self, model: C2Matching, **kwargs):
        super().__init__(("psnr_y", "gain", "gain_reference"), **kwargs)
        self.model = model
        self._bicubic = BicubicUpsampling(4, quantize=True, dtype="float32")
        # The learned offsets of the step that is being traced; None while nobody asks for them.
        self._learned: list | None = None
        for level in model.restorer.levels.values():
            if level.reference_width is not None:
                self._watch(level.dyn_agg)

    def _watch(self, aggregation):
        """Note each learned offset of a level while a step is traced."""
        predict = aggregation.predict_offset_mask

        def predict_and_note(feature, pre_offset):
            offset, mask = predict(feature, pre_offset)
            if self._learned is not None:
                repeated = ops.concatenate([pre_offset] * aggregation.deform_groups, axis=-1)
                self._learned.append(ops.abs(ops.stop_gradient(offset) - repeated))
            return offset, mask

        aggregation.predict_offset_mask = predict_and_note

    def call(self, inputs, training=None):
        return self.model({"lr": inputs["lr"], "reference": inputs["reference"]}, training=training)

    def losses_of(self, data, training):
        self._learned = []
        values = {"loss": reconstruction_loss(data["hr"], self(data, training=training))}
        learned, self._learned = list(self._learned), None
        if learned:
            values["offset_mean"] = ops.mean(ops.stack([ops.mean(o) for o in learned]))
            values["offset_max"] = ops.max(ops.stack([ops.max(o) for o in learned]))
        return values

    def measures_of(self, data):
        with_reference = psnr_y(self(data), data["hr"])
        other = {**data, "reference": ops.roll(data["reference"], 1, axis=0)}
        return {
            "psnr_y": with_reference,
            "gain": with_reference - psnr_y(self._bicubic(data["lr"]), data["hr"]),
            "gain_reference": with_reference - psnr_y(self(other), data["hr"]),
        }

    def pictures(self, data) -> dict:
        """Enlarged input, output, truth and reference of a batch beside each other: (B, H, 4 W, 3)."""
        height, width = data["hr"].shape[1:3]
        parts = [self._bicubic(data["lr"]), self(data), data["hr"]]
        shown = [tf.clip_by_value(part, 0.0, 1.0) for part in parts]
        shown.append(tf.image.resize(data["reference"], (height, width)))
        return {"bicubic, restored, truth, reference": tf.concat(shown, axis=2)}


def psnr_y(image, truth, border: int = 4):
    """Peak signal-to-noise ratio of the Y channel, by the protocol of `tfcorr.imaging.evaluate_pair`.

    Args:
        image, truth: (B, H, W, 3) float in [0, 1]; ``image`` is clamped and rounded to 8 bits.
        border: pixels left out on each side.

    Returns:
        Scalar, decibels, mean over the batch.
    """
    image = ops.round(ops.clip(image, 0.0, 1.0) * 255.0) / 255.0
    difference = (image - truth)[:, border:-border, border:-border]
    luma = ops.tensordot(difference, ops.convert_to_tensor([65.481, 128.553, 24.966], "float32"), axes=1)
    error = ops.mean(ops.square(luma), axis=(1, 2))
    # A floor for exact equality: 100 dB.
    return ops.mean(10.0 * ops.log10(255.0**2 / ops.maximum(error, 255.0**2 * 1e-10)))
