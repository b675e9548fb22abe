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

from tfcorr.refsr.adversarial import Adversary, generator_loss
from tfcorr.refsr.contrastive import contrastive_loss
from tfcorr.refsr.extractor import CorrespondenceNetwork
from tfcorr.refsr.losses import correlation_divergence, reconstruction_loss, triplet_margin_loss
from tfcorr.refsr.matching import PATCH_SIZE, correspondences, l2_normalize
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.overlays import known_matches, scored_matches
from tfcorr.refsr.perceptual import PerceptualNetwork
from tfcorr.refsr.upsampling import BicubicUpsampling, bicubic_reduction
from tfcorr.training.distribution import shared_gradients
from tfcorr.training.trainer import StageTrainer


class MatcherTrainer(StageTrainer):
    """Trains a contrastive correspondence network with the triplet margin loss (section 3.1, eq. 1 to 3), and
    as a student with a teacher's correlations (section 3.2, eq. 4 to 7).

    A step reports ``loss``, the mean squared distances ``positive`` (eq. 2) and ``negative`` (eq. 3) of unit
    descriptors, and ``accuracy``, the share of positions whose nearest reference descriptor is at most one
    cell off; with a teacher ``distillation`` (eq. 6).

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
        teacher: a trained network that sees the sharp images, or None. It does not train.
        distillation_weight: alpha_kl of eq. 7.
        distillation_temperature, distillation_support: see `tfcorr.refsr.losses.correlation_divergence`.
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
        teacher: CorrespondenceNetwork | None = None,
        distillation_weight: float = 1.0,
        distillation_temperature: float = 0.15,
        distillation_support: str = "matched",
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
        self.teacher = teacher
        if teacher is not None:
            teacher.trainable = False
        self.distillation_weight = distillation_weight
        self.distillation_temperature = distillation_temperature
        self.distillation_support = distillation_support

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
        if self.teacher is not None:
            values["distillation"] = correlation_divergence(
                (query, reference),
                self.teacher({"input": data["image"], "reference": data["reference"]}),
                data["target"],
                data["valid"],
                temperature=self.distillation_temperature,
                support=self.distillation_support,
                minimum_positions=self.minimum_positions,
            )
            loss = loss + self.distillation_weight * values["distillation"]
        return {"loss": loss, **values}

    def measures_of(self, data):
        values = self.losses_of(data, training=False)
        return {name: values[name] for name in self._means}

    def pictures(self, data) -> dict:
        """Input and reference of each sample with some matched points: green at most a cell off, else red."""
        query, reference = (ops.convert_to_numpy(l2_normalize(feature)) for feature in self(data))
        images, references = data[self.input_side], data["reference"]
        return {"matches": known_matches(query, reference, data["target"], data["valid"], images, references)}


class RestorerTrainer(StageTrainer):
    """Trains a restoration network with the mean absolute error (section 3.4, eq. 10); the matcher is fixed.

    A step reports ``loss``, ``reconstruction`` (eq. 10) and, over all levels, ``offset_mean`` and
    ``offset_max``: absolute values of the learned offsets, without the pre-offsets, in cells of their level;
    the same for each level behind a ``/``. An evaluation reports ``psnr_y`` and ``gain``, the decibels over
    bicubic upsampling (Y channel of the 8-bit images, border 4, mean over the patches), and
    ``gain_reference``, the decibels over the same model that is given the reference of another patch of the
    batch.

    Args:
        model: its `restorer` is trained in place.
        reconstruction: weight of eq. 10.
        reciprocal: weight of a reciprocal loss (Zhang et al., ECCV 2022; not in the paper): the output serves
            as the reference with which its own reference, reduced by 4, is restored, and the error of that
            is an error of the output too. The reference's sides have to be multiples of 4.
    """

    def __init__(self, model: C2Matching, *, reconstruction: float = 1.0, reciprocal: float = 0.0, **kwargs):
        super().__init__(("psnr_y", "gain", "gain_reference"), **kwargs)
        self.model = model
        self.reconstruction = reconstruction
        self.reciprocal = reciprocal
        self._bicubic = BicubicUpsampling(4, quantize=True, dtype="float32")

    def call(self, inputs, training=None, return_learned=False):
        inputs = {"lr": inputs["lr"], "reference": inputs["reference"]}
        return self.model(inputs, training=training, return_learned=return_learned)

    def restore(self, data, training) -> tuple:
        """The restored images of a batch, and the scalars of eq. 10 and of the offsets by name."""
        restored, learned = self(data, training=training, return_learned=True)
        error = reconstruction_loss(data["hr"], restored)
        values = {"loss": self.reconstruction * error, "reconstruction": error, **offset_sizes(learned)}
        if self.reciprocal:
            reference = ops.cast(data["reference"], "float32")
            again = self.model(
                {"lr": bicubic_reduction(reference), "reference": restored},
                training=training,
                differentiable_reference=True,
            )
            values["reciprocal"] = reconstruction_loss(reference, again)
            values["loss"] = values["loss"] + self.reciprocal * values["reciprocal"]
        return restored, values

    def losses_of(self, data, training):
        return self.restore(data, training)[1]

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
        return {
            "bicubic, restored, truth, reference": tf.concat(shown, axis=2),
            "matches": self._matches(data, parts[0]),
        }

    def _matches(self, data, enlarged):
        reference = self.model.extract(data["reference"])["conv3_1"]
        matches = correspondences(self.model.describe(data["lr"]), reference)
        index, score = (ops.convert_to_numpy(array) for array in (matches.index, matches.score))
        columns = reference.shape[2] - (PATCH_SIZE - 1)
        return scored_matches(index, score, columns, enlarged, data["reference"])


class AdversarialRestorerTrainer(RestorerTrainer):
    """Trains a restoration network with perceptual and adversarial losses too (eq. 10 to 13).

    As published, the first ``warmup`` steps know the reconstruction loss alone; after them each step trains
    the discriminator once, then the restorer once on the same forward pass, against the discriminator that
    has just learned. A step then reports ``perceptual`` and ``adversarial`` too, without their weights, and
    `Adversary.losses`.

    Args:
        model: its `restorer` is trained in place.
        perceptual: the network of the perceptual loss, or None.
        perceptual_weight: of eq. 11.
        adversary: the discriminator with its optimiser, or None.
        adversarial_weight: of eq. 12.
        warmup: steps.
        **kwargs: as for `RestorerTrainer`.
    """

    def __init__(
        self,
        model: C2Matching,
        *,
        perceptual: PerceptualNetwork | None = None,
        perceptual_weight: float = 0.0,
        adversary: Adversary | None = None,
        adversarial_weight: float = 0.0,
        warmup: int = 0,
        **kwargs,
    ):
        super().__init__(model, **kwargs)
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight
        self.adversary = adversary
        self.adversarial_weight = adversarial_weight
        self.warmup = warmup
        self.begin(0)

    def begin(self, step: int) -> None:
        """Choose the losses of step number ``step``, from 0; a step is traced for each ``phase``."""
        self.phase = "reconstruction" if step < self.warmup else "all"

    @property
    def companions(self) -> dict:
        """Variables outside of the weights that a checkpoint has to hold."""
        return {"adversary": self.adversary.variables} if self.adversary else {}

    @property
    def companion_optimizers(self) -> dict:
        """Optimisers beside the restorer's."""
        return {"discriminator": self.adversary.optimizer} if self.adversary else {}

    def train_step(self, data):
        data, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            restored, values = self.restore(data, training=True)
            if self.phase == "all":
                if self.adversary:
                    with tape.stop_recording():
                        values.update(self.adversary.train(data["hr"], restored))
                    values["adversarial"] = generator_loss(self.adversary.discriminator(restored))
                    values["loss"] += self.adversarial_weight * values["adversarial"]
                if self.perceptual:
                    values["perceptual"] = self.perceptual.loss(data["hr"], restored)
                    values["loss"] += self.perceptual_weight * values["perceptual"]
        variables = self.trainable_variables
        gradients = tape.gradient(values["loss"], variables)
        self.optimizer.apply(shared_gradients(gradients), variables)
        return values


def offset_sizes(learned: dict) -> dict:
    """Absolute sizes of the learned offsets of each level, and of all, as a step reports them.

    Args:
        learned: level -> (B, H, W, N), in cells, see `tfcorr.refsr.restorer.RestorationNetwork`.

    Returns:
        Scalars ``offset_mean`` (the mean of the levels' means) and ``offset_max``, and both for each level,
        ``offset_mean/LEVEL`` and ``offset_max/LEVEL``; nothing without levels.
    """
    if not learned:
        return {}
    sizes = {level: ops.abs(ops.stop_gradient(offset)) for level, offset in learned.items()}
    means = {level: ops.mean(size) for level, size in sizes.items()}
    largest = {level: ops.max(size) for level, size in sizes.items()}
    return {
        "offset_mean": ops.mean(ops.stack(list(means.values()))),
        "offset_max": ops.max(ops.stack(list(largest.values()))),
        **{f"offset_mean/{level}": value for level, value in means.items()},
        **{f"offset_max/{level}": value for level, value in largest.items()},
    }


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
