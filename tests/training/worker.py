"""Trains a tiny restorer in a process of its own; what `test_distribution` starts.

    python worker.py DISTRIBUTE DEVICES FOLDER [interrupted]

writes FOLDER/weights-TASK.npz. Batches, seed and model are the same whatever DISTRIBUTE is.
"""

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfcorr.config import LearningRate, Training
from tfcorr.refsr.adversarial import Adversary, Discriminator
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.training import AdversarialRestorerTrainer
from tfcorr.training.callbacks import Phases
from tfcorr.training.distribution import make_strategy
from tfcorr.training.loop import prepare, run_fit
from tfcorr.training.optimizer import make_optimizer

STEPS, BATCH = 4, 4
NAMES = ("lr", "hr", "reference")
TINY = {
    "features": 8,
    "content_blocks": 1,
    "blocks": [1, 1, 1],
    "reference_levels": ["large"],
    "offset_widths": [8, 8, 8],
    "aggregated_widths": [8, 8, 8],
    "deform_groups": 2,
}


def batch(step):
    """Sharp images, their reductions and shifted copies."""
    sharp = np.random.default_rng((3, int(step))).random((BATCH, 16, 16, 3), np.float32)
    return [sharp.reshape(BATCH, 4, 4, 4, 4, 3).mean((2, 4)), sharp, np.roll(sharp, 4, axis=1)]


def batches(start, stop):
    """As `tfcorr.training.samples.Samples.dataset`."""
    shapes = [(BATCH, 4, 4, 3), (BATCH, 16, 16, 3), (BATCH, 16, 16, 3)]

    def load(step):
        arrays = tf.numpy_function(batch, [step], [tf.float32] * 3)
        arrays = [tf.ensure_shape(a, shape) for a, shape in zip(arrays, shapes, strict=True)]
        return dict(zip(NAMES, arrays, strict=True))

    return tf.data.Dataset.range(start, stop).map(load)


def trainer_of(adversarial):
    """A restorer's trainer; with an adversary from the second step on."""
    model = C2Matching.from_architecture({"restorer": TINY})
    adversary = None
    if adversarial:
        discriminator = Discriminator(features=2, normalization="none")
        discriminator.build()
        optimizer = make_optimizer(LearningRate(1e-3), STEPS, start=1)
        adversary = Adversary(discriminator, optimizer, penalty=10.0)
    return AdversarialRestorerTrainer(model, adversary=adversary, adversarial_weight=1e-2, warmup=1)


def main() -> None:
    """Trains without and, on one machine, with an adversary; writes the weights."""
    distribute, devices, folder, *rest = sys.argv[1:]
    settings = Training(
        steps=STEPS,
        batch=BATCH,
        learning_rate=LearningRate(1e-3),
        ema=0.5,
        clip_norm=0.05,
        distribute=distribute,
        devices=int(devices) or None,
        log_every=1,
        images_every=2,
        profile_steps=0,
        checkpoint_every=1,
        max_minutes=1e-9 if rest else None,
        precision="float32",
    )
    prepare(settings)
    strategy = make_strategy(settings)
    task = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    arrays = {}
    for adversarial in (False,) if distribute == "workers" else (False, True):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            trainer = trainer_of(adversarial)
        state = run_fit(
            trainer,
            batches,
            settings,
            Path(folder) / ("adversarial" if adversarial else "plain"),
            config_hash="c",
            callbacks=lambda state, trainer=trainer: [Phases(state)],
            validation=batches(100, 102),
            validate_every=2,
            metric="psnr_y",
            images=lambda trainer=trainer: trainer.pictures(dict(zip(NAMES, batch(0), strict=True))),
            report=lambda line: None,
        )
        kind = "adversarial" if adversarial else "plain"
        arrays.update({f"{kind}/{i:03d}": np.array(v) for i, v in enumerate(trainer.model.restorer.weights)})
        arrays[f"{kind}/metrics"] = np.array([state.metrics.get("psnr_y", 0.0), state.step])
    np.savez(Path(folder) / f"weights-{task}.npz", replicas=strategy.num_replicas_in_sync, **arrays)


if __name__ == "__main__":
    main()
