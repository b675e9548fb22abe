"""Each trainer on tiny networks: what its step computes, and what an interrupted run ends with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY

from tfcorr.config import LearningRate, Training
from tfcorr.refsr.adversarial import Adversary, Discriminator
from tfcorr.refsr.extractor import CorrespondenceNetwork
from tfcorr.refsr.losses import correlation_divergence, reconstruction_loss, triplet_margin_loss
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.training import (
    AdversarialRestorerTrainer,
    MatcherTrainer,
    RestorerTrainer,
)
from tfcorr.refsr.upsampling import bicubic_reduction
from tfcorr.training.callbacks import Phases
from tfcorr.training.checkpoint import LAST, read_state
from tfcorr.training.loop import run_fit
from tfcorr.training.optimizer import make_optimizer

STEPS, INTERRUPTED = 5, 2


class Gradients:
    """Stands for a perceptual network: its features are the differences between neighbouring pixels."""

    def loss(self, truth, restored):
        error = tf.cast(truth, tf.float32) - restored
        return tf.sqrt(tf.reduce_sum(tf.square(error[:, 1:] - error[:, :-1])) + 1e-12)


def matcher_batch(step):
    rng = np.random.default_rng((1, int(step)))
    image = rng.random((2, 32, 32, 3), np.float32)
    cells = np.stack(np.divmod(np.arange(64), 8), -1).astype(np.int32)
    return {
        "image": image,
        "upsampled": (image * 0.5 + 0.25).astype(np.float32),
        "reference": np.roll(image, 4, axis=2),
        "target": np.stack([np.stack([cells[:, 0], (cells[:, 1] + 1) % 8], -1)] * 2),
        "valid": rng.random((2, 64)) < 0.8,
    }


def restorer_batch(step):
    rng = np.random.default_rng((2, int(step)))
    sharp = rng.random((2, 32, 32, 3), np.float32)
    low = sharp.reshape(2, 8, 4, 8, 4, 3).mean((2, 4))
    return {"lr": low, "hr": sharp, "reference": np.roll(sharp, 8, axis=1)}


def matcher_trainer(distilled):
    def network():
        made = CorrespondenceNetwork()
        made.build()
        return made

    teacher = network() if distilled else None
    return MatcherTrainer(
        network(),
        margin=1.0,
        safe_radius=2.0,
        minimum_positions=1,
        input_side="upsampled" if distilled else "image",
        teacher=teacher,
        distillation_weight=15.0,
    )


def adversary(steps=STEPS, start=0):
    discriminator = Discriminator(features=2)
    discriminator.build()
    optimizer = make_optimizer(LearningRate(1e-3), steps, start=start)
    return Adversary(discriminator, optimizer, penalty=10.0, seed=5)


def restorer_trainer(adversarial, warmup=3):
    model = C2Matching.from_architecture({"restorer": TINY})
    if not adversarial:
        return RestorerTrainer(model)
    return AdversarialRestorerTrainer(
        model,
        perceptual=Gradients(),
        perceptual_weight=1e-2,
        adversary=adversary(start=warmup),
        adversarial_weight=1e-2,
        warmup=warmup,
    )


KINDS = {
    "teacher": (lambda: matcher_trainer(False), matcher_batch),
    "student": (lambda: matcher_trainer(True), matcher_batch),
    "reconstruction": (lambda: restorer_trainer(False), restorer_batch),
    "adversarial": (lambda: restorer_trainer(True), restorer_batch),
}


def batches_of(batch):
    def batches(start, stop):
        signature = {name: tf.TensorSpec(a.shape, a.dtype) for name, a in batch(0).items()}
        names = list(signature)

        def load(step):
            arrays = tf.numpy_function(
                lambda k: [batch(k)[name] for name in names], [step], [signature[n].dtype for n in names]
            )
            return {n: tf.ensure_shape(a, signature[n].shape) for n, a in zip(names, arrays, strict=True)}

        return tf.data.Dataset.range(start, stop).map(load)

    return batches


def run(trainer, batches, folder, images=None):
    settings = Training(
        steps=STEPS,
        batch=2,
        learning_rate=LearningRate(1e-3, "cosine", warmup=2),
        log_every=2,
        images_every=1,
        profile_steps=0,
        ema=0.5,
        clip_norm=1.0,
    )
    return run_fit(
        trainer,
        batches,
        settings,
        folder,
        config_hash="c",
        callbacks=lambda state: [Phases(state)] if hasattr(trainer, "phase") else [],
        images=images,
        report=lambda line: None,
    )


def values_of(trainer):
    variables = [*trainer.weights, *trainer.optimizer.variables]
    for companions in getattr(trainer, "companions", {}).values():
        variables += companions
    return [np.array(v) for v in variables]


@pytest.fixture(scope="module")
def resumed_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here, *here.parents[:2])))}
    command = [sys.executable, str(here / "resume.py"), str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_ends_with_the_same_weights(resumed_runs, kind):
    with np.load(resumed_runs / f"{kind}.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    whole = {name.removeprefix("whole/"): a for name, a in arrays.items() if name.startswith("whole/")}
    assert len(arrays) == 2 * len(whole) + 1 and arrays["moved"] > 0
    for name, expected in whole.items():
        np.testing.assert_array_equal(arrays[f"resumed/{name}"], expected)
    state = read_state(resumed_runs / kind / "two" / LAST)
    log = (resumed_runs / kind / "two" / "log.jsonl").read_text().splitlines()
    assert state["step"] == STEPS and [json.loads(line)["step"] for line in log] == [INTERRUPTED, 4, STEPS]


def test_the_students_step_is_eq_7():
    keras.utils.set_random_seed(0)
    trainer = matcher_trainer(True)
    trainer.compile(optimizer=keras.optimizers.SGD(0.0), jit_compile=False)
    data = matcher_batch(0)
    values = trainer.train_on_batch(data, return_dict=True)
    student = trainer.network({"input": data["upsampled"], "reference": data["reference"]})
    teacher = trainer.teacher({"input": data["image"], "reference": data["reference"]})
    places = (data["target"], data["valid"])
    margin = triplet_margin_loss(*student, *places, safe_radius=2.0, minimum_positions=1).loss
    divergence = correlation_divergence(student, teacher, *places, minimum_positions=1)
    assert float(divergence) > 0
    np.testing.assert_allclose(values["distillation"], divergence, rtol=1e-4)
    np.testing.assert_allclose(values["loss"], margin + 15.0 * divergence, rtol=1e-4)
    taught = {v.path for v in trainer.teacher.weights}
    assert not taught & {v.path for v in trainer.trainable_variables}
    pictures = trainer.pictures(data)
    assert pictures["matches"].shape == (2, 32, 32 + 8 + 32, 3)


def test_one_step_of_the_discriminator_comes_before_the_restorers():
    keras.utils.set_random_seed(0)
    trainer = restorer_trainer(True, warmup=0)
    untrained = [np.array(v) for v in trainer.adversary.discriminator.weights]
    trainer.compile(optimizer=keras.optimizers.SGD(0.0), jit_compile=False)
    data = restorer_batch(0)
    restored = trainer(data)
    values = trainer.train_on_batch(data, return_dict=True)
    trained = trainer.adversary.discriminator
    assert max(np.abs(a - np.array(b)).max() for a, b in zip(untrained, trained.weights, strict=True)) > 0
    score = -float(tf.reduce_mean(trained(restored)))
    reconstruction = float(reconstruction_loss(data["hr"], restored))
    perceptual = float(Gradients().loss(data["hr"], restored))
    np.testing.assert_allclose(values["adversarial"], score, rtol=1e-4)
    np.testing.assert_allclose(values["perceptual"], perceptual, rtol=1e-4)
    expected = reconstruction + 1e-2 * perceptual + 1e-2 * score
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-4)
    # The restorer's optimiser knows nothing of the discriminator.
    assert {v.path for v in trainer.trainable_variables} == {
        v.path for v in trainer.model.restorer.trainable_variables
    }


def test_the_warm_up_knows_the_reconstruction_alone():
    trainer = restorer_trainer(True, warmup=1)
    untrained = [np.array(v) for v in trainer.adversary.discriminator.weights]
    trainer.compile(optimizer=keras.optimizers.SGD(0.0), jit_compile=False)
    values = trainer.train_on_batch(restorer_batch(0), return_dict=True)
    assert "adversarial" not in values and values["loss"] == values["reconstruction"]
    for a, b in zip(untrained, trainer.adversary.discriminator.weights, strict=True):
        np.testing.assert_array_equal(a, np.array(b))
    trainer.begin(1)
    assert trainer.phase == "all"


def test_the_reciprocal_loss_reaches_the_output_through_its_features():
    keras.utils.set_random_seed(0)
    model = C2Matching.from_architecture({"restorer": TINY})
    trainer = RestorerTrainer(model, reciprocal=0.5)
    data = {name: tf.constant(value) for name, value in restorer_batch(0).items()}
    restored, values = trainer.restore(data, training=True)
    again = model({"lr": bicubic_reduction(data["reference"]), "reference": restored})
    error = reconstruction_loss(data["reference"], again)
    np.testing.assert_allclose(values["reciprocal"], error, rtol=1e-5)
    np.testing.assert_allclose(values["loss"], values["reconstruction"] + 0.5 * error, rtol=1e-5)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(restored)
        inputs = {"lr": bicubic_reduction(data["reference"]), "reference": restored}
        through = tf.reduce_sum(model(inputs, differentiable_reference=True))
        blocked = tf.reduce_sum(model(inputs))
    assert float(tf.reduce_max(tf.abs(tape.gradient(through, restored)))) > 0
    assert tape.gradient(blocked, restored) is None
