"""Trainers on tiny networks: the step itself, resuming, stopping, and what is written."""

import dataclasses
import json
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, logged_pictures
from PIL import Image

from tfcorr.config import LearningRate, Training, parse_config
from tfcorr.errors import TfcorrError
from tfcorr.imaging import evaluate_pair
from tfcorr.pretrained import find_model, load_super_resolution, verify
from tfcorr.refsr.contrastive import contrastive_loss
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.stages import build, train
from tfcorr.refsr.training import RestorerTrainer, psnr_y
from tfcorr.training.callbacks import RunState, Stop, TrainingError
from tfcorr.training.checkpoint import LAST, CheckpointError, load_checkpoint, read_state, save_checkpoint
from tfcorr.training.loop import choose_precision, run_fit
from tfcorr.training.model_folder import portable_command
from tfcorr.training.optimizer import GroupedAdam, Schedule, make_optimizer


class Line(keras.Model):
    """The smallest trainer: fits a line, one batch a step."""

    def __init__(self, nan_at=None, offset=0.0):
        super().__init__()
        self.dense = keras.layers.Dense(1, kernel_initializer="ones")
        self.dense.build((None, 2))
        self.nan_at = nan_at
        self.offset = offset
        self.seen = []

    def build(self, input_shape=None):
        self.built = True

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.dense(data["x"]) - data["y"]))
            if self.nan_at is not None:
                loss = tf.where(self.optimizer.iterations >= self.nan_at, float("nan"), loss)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss, "offset_mean": tf.constant(self.offset)}


def batches(start, stop):
    def batch(k):
        rng = np.random.default_rng(int(k))
        x = rng.normal(size=(4, 2)).astype(np.float32)
        return x, (x @ [[2.0], [-1.0]] + 0.5).astype(np.float32)

    def load(k):
        x, y = tf.numpy_function(batch, [k], [tf.float32, tf.float32])
        return {"x": tf.ensure_shape(x, (4, 2)), "y": tf.ensure_shape(y, (4, 1))}

    return tf.data.Dataset.range(start, stop).map(load)


def settings(**changes):
    return Training(
        **{
            "steps": 12,
            "batch": 4,
            "learning_rate": LearningRate(0.05),
            "log_every": 4,
            "ema": 0.5,
            **changes,
        }
    )


def silent(line):
    pass


def test_schedules():
    constant = Schedule(100, 1e-3, milestones=(10, 20))
    rates = [float(constant(step)) for step in (0, 9, 10, 19, 20)]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5], rtol=1e-6)
    cosine = Schedule(110, 2.0, "cosine", warmup=10, final=0.1)
    expected = [0.2, 2.0, 2.0 * (0.1 + 0.9 * 0.5), 0.2]
    np.testing.assert_allclose([float(cosine(step)) for step in (0, 10, 60, 110)], expected, rtol=1e-5)


def test_multipliers_scale_the_step_and_not_the_gradient():
    fast, slow = keras.Variable([1.0, 2.0], name="fast"), keras.Variable([1.0, 2.0], name="slow")
    optimizer = GroupedAdam(0.1, multipliers={"slow": 0.01})
    optimizer.build([fast, slow])
    for _ in range(3):
        optimizer.apply([tf.constant([1.0, -3.0])] * 2)
    moved = np.array(fast) - [1, 2], np.array(slow) - [1, 2]
    np.testing.assert_allclose(moved[0], [-0.3, 0.3], rtol=1e-4)
    np.testing.assert_allclose(moved[1], 0.01 * moved[0], rtol=1e-3)
    with pytest.raises(Exception, match="multipliers: 'absent' is in no variable's path"):
        GroupedAdam(0.1, multipliers={"absent": 0.1}).build([fast])


def test_an_interrupted_run_ends_like_a_whole_one(tmp_path):
    whole = Line()
    run_fit(whole, batches, settings(), tmp_path / "whole", config_hash="c", report=silent)
    first = Line()
    lines = []

    def interrupted(start, stop):
        return batches(start, 5)

    run_fit(first, interrupted, settings(), tmp_path / "two", config_hash="c", report=silent)
    assert read_state(tmp_path / "two" / LAST)["step"] == 5
    second = Line()
    state = run_fit(second, batches, settings(), tmp_path / "two", config_hash="c", report=lines.append)
    assert state.step == 12 and state.stopped is None
    assert lines[0].startswith("going on from") and lines[0].endswith("step 5")
    for a, b in zip(whole.weights, second.weights, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))
    # Nothing is left to do for a third call.
    third = Line()
    assert run_fit(third, batches, settings(), tmp_path / "two", config_hash="c", report=silent).step == 12
    np.testing.assert_array_equal(np.array(third.weights[0]), np.array(whole.weights[0]))
    log = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [4, 5, 8, 12]
    assert not list((tmp_path / "two").glob(".*"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run_fit(Line(), batches, settings(steps=2), tmp_path, config_hash="one", report=silent)
    with pytest.raises(CheckpointError, match="written with another configuration"):
        run_fit(Line(), batches, settings(steps=2), tmp_path, config_hash="two", report=silent)
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    other.compile(optimizer=make_optimizer(LearningRate(0.1), 2))
    with pytest.raises(CheckpointError, match="it is of another architecture"):
        load_checkpoint(tmp_path / LAST, other)
    (tmp_path / LAST).write_bytes(b"PK nothing")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        run_fit(Line(), batches, settings(steps=2), tmp_path, config_hash="one", report=silent)


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    model = Line()
    model.compile(optimizer=make_optimizer(LearningRate(0.1), 2))
    model.optimizer.build(model.trainable_variables)
    save_checkpoint(tmp_path / LAST, model, {"step": 1})
    before = (tmp_path / LAST).read_bytes()

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(tmp_path / LAST, model, {"step": 2})
    assert (tmp_path / LAST).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [LAST]


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (Line(nan_at=3), "step 4: the loss is nan"),
        (Line(offset=312.0), r"step 1: the learned offsets explode, their mean is 312 cells \(limit 100"),
    ],
)
def test_divergence_stops_with_the_last_good_checkpoint(tmp_path, trainer, message):
    with pytest.raises(TrainingError, match=message):
        run_fit(trainer, batches, settings(checkpoint_every=1), tmp_path, config_hash="c", report=silent)
    if "nan" in message:
        assert read_state(tmp_path / LAST)["step"] == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path, number):
    def with_signal(start, stop):
        def send(k):
            if k == 3:
                os.kill(os.getpid(), number)
            return k

        ticks = tf.data.Dataset.range(start, stop).map(lambda k: tf.numpy_function(send, [k], tf.int64))
        return tf.data.Dataset.zip(batches(start, stop), ticks).map(lambda batch, k: batch)

    before = signal.getsignal(number)
    state = run_fit(Line(), with_signal, settings(steps=1000), tmp_path, config_hash="c", report=silent)
    assert state.stopped == number.name and state.step < 1000
    assert read_state(tmp_path / LAST)["step"] == state.step
    assert signal.getsignal(number) is before


def test_max_minutes(tmp_path):
    state = run_fit(Line(), batches, settings(max_minutes=1e-9), tmp_path, config_hash="c", report=silent)
    assert (state.step, state.stopped) == (1, "max_minutes")
    state = run_fit(Line(), batches, settings(max_minutes=0), tmp_path, config_hash="c", report=silent)
    assert (state.step, state.stopped) == (1, None)
    assert Stop(RunState(0, ""), None).seconds == float("inf")


def test_precision():
    assert choose_precision("float32") == "float32"
    assert choose_precision("auto") in ("float32", "mixed_bfloat16")


def test_psnr_like_imaging():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (2, 24, 28, 3)).astype(np.uint8)
    image = np.clip(truth / 255 + rng.normal(0, 0.1, truth.shape), -0.2, 1.2).astype(np.float32)
    expected = np.mean([evaluate_pair(a, b)["psnr_y"] for a, b in zip(image, truth, strict=True)])
    found = float(psnr_y(tf.constant(image), tf.constant(truth / 255, tf.float32)))
    assert abs(found - expected) < 1e-3


def test_contrastive_loss_against_float64():
    rng = np.random.default_rng(1)
    q, r = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 4, 6, 5))
    target = np.stack([rng.integers(0, 4, (2, 12)), rng.integers(0, 6, (2, 12))], -1).astype(np.int32)
    valid = rng.random((2, 12)) < 0.6
    total = []
    for b in range(2):
        unit = [
            a[b].reshape(-1, 5) / np.linalg.norm(a[b].reshape(-1, 5), axis=1, keepdims=True) for a in (q, r)
        ]
        for i in np.flatnonzero(valid[b]):
            logits = unit[1] @ unit[0][i] / 0.2
            total.append(np.log(np.exp(logits).sum()) - logits[target[b, i, 0] * 6 + target[b, i, 1]])
    found = contrastive_loss(q.astype("float32"), r.astype("float32"), target, valid, temperature=0.2)
    np.testing.assert_allclose(float(found), np.mean(total), rtol=1e-5)
    nothing = contrastive_loss(
        q.astype("float32"), r.astype("float32"), target, valid & False, temperature=0.2
    )
    assert float(nothing) == 0


@pytest.fixture
def data_root(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    for kind in ("input", "ref"):
        (folder / kind).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    (folder / "input" / "broken.png").write_bytes(b"no image")
    (folder / "ref" / "broken.png").write_bytes(b"no image")
    return folder


def test_both_stages_from_configuration_to_model_folder(tmp_path, data_root):
    common = {
        "data_root": str(data_root),
        "licence": "test",
        "train": {
            "steps": 2,
            "batch": 2,
            "learning_rate": {"initial": 1e-3},
            "log_every": 1,
            "ema": 0.9,
            "clip_norm": 1.0,
            "precision": "float32",
        },
    }
    matcher = parse_config(
        {
            **common,
            "stage": "matcher",
            "name": "m",
            "output": str(tmp_path / "m"),
            "run": str(tmp_path / "run_m"),
            "data": {"images": ["input"], "crop": 32},
            "loss": {"margin": 1.0, "safe_radius": 2.0, "minimum_positions": 1, "contrastive_weight": 1.0},
            "validation": {"images": ["ref"], "count": 2, "every": 2},
        }
    )
    lines = []
    command = ["tfcorr", "train", "m.yaml", f"data_root={data_root}"]
    state = train(matcher, command, report=lines.append)
    assert state.step == 2 and 0 <= state.metrics["accuracy"] <= 1
    assert lines[-1] == f"model written to {tmp_path / 'm'}"
    assert any("broken.png" in line for line in lines) and any("files were skipped" in line for line in lines)
    card = find_model(tmp_path / "m", job="correspondence")
    verify(card)
    assert str(data_root) not in card.content["training"]["command"]

    restorer = parse_config(
        {
            **common,
            "stage": "restorer",
            "name": "r",
            "output": str(tmp_path / "r"),
            "run": str(tmp_path / "run_r"),
            "matcher": str(tmp_path / "m"),
            "model": {"restorer": TINY},
            "data": {"pairs": [{"input_dir": "input", "reference_dir": "ref"}], "patch": 32, "crop": 24},
            "validation": {"pairs": [{"input_dir": "input", "reference_dir": "ref"}], "count": 2, "every": 2},
        }
    )
    state = train(restorer, command, report=lines.append)
    assert set(state.metrics) == {"psnr_y", "gain", "gain_reference"}
    model, card = load_super_resolution(tmp_path / "r")
    assert 0 <= card.confidence_threshold <= 1
    assert card.content["training"]["steps"] == 2
    low = np.zeros((1, 6, 6, 3), np.float32)
    assert model({"lr": low, "reference": np.zeros((1, 24, 24, 3), np.float32)}).shape == (1, 24, 24, 3)
    # The matcher that was given is in the model, and did not move.
    moved = CorrespondenceWeights(tmp_path / "m")
    for a, b in zip(model.correspondence.weights, moved, strict=True):
        np.testing.assert_array_equal(np.array(a), b)

    # A third extractor may take the textures that a trained matcher sees.
    apart = {"model": {"restorer": TINY, "reference_features": "vgg19"}, "vgg_weights": str(tmp_path / "m")}
    stage = build(dataclasses.replace(restorer, **apart))
    expected = model.correspondence.reference_extractor.get_weights()
    for a, b in zip(stage.model.vgg.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(TfcorrError, match="vgg_weights: no weights file"):
        build(dataclasses.replace(restorer, **{**apart, "vgg_weights": "nowhere.npz"}))


def test_distilled_and_adversarial_stages(tmp_path, data_root):
    common = {
        "data_root": str(data_root),
        "train": {"steps": 2, "batch": 2, "learning_rate": {"initial": 1e-3}, "precision": "float32"},
    }
    losses = {"margin": 1.0, "safe_radius": 2.0, "minimum_positions": 1}
    matcher = {**common, "stage": "matcher", "data": {"images": ["input"], "crop": 32}}
    folders = {name: {"output": str(tmp_path / name), "run": str(tmp_path / f"run_{name}")} for name in "tsr"}
    teacher = {**matcher, **folders["t"], "name": "t", "input_side": "image", "loss": losses}
    student = {
        **matcher,
        **folders["s"],
        "name": "s",
        "teacher": str(tmp_path / "t"),
        "loss": {**losses, "distillation_weight": 15.0},
        "validation": {"images": ["ref"], "count": 2, "every": 2},
    }
    for mapping in (teacher, student):
        train(parse_config(mapping), ["tfcorr"], report=silent)
    card = find_model(tmp_path / "s", job="correspondence").content
    assert card["training"]["teacher"]["name"] == "t"
    lines = [json.loads(line) for line in (tmp_path / "run_s" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["distillation"] > 0

    # Without a validation too: those of the first batch.
    for name in "ts":
        ((step, drawn),) = logged_pictures(tmp_path / f"run_{name}")["matches"]
        assert step == 2 and [picture.shape for picture in drawn] == [(32, 32 + 8 + 32, 3)] * 2

    restorer = {
        **common,
        **folders["r"],
        "stage": "restorer",
        "name": "r",
        "matcher": str(tmp_path / "s"),
        "model": {"restorer": TINY},
        "data": {"pairs": [{"input_dir": "input", "reference_dir": "ref"}], "patch": 32, "crop": 32},
        "loss": {"warmup": 1, "reciprocal": 0.1, "adversarial": {"weight": 1e-3, "features": 2}},
        "train": {**common["train"], "log_every": 1, "multipliers": {"large/offset_conv": 0.5}},
    }
    train(parse_config(restorer), ["tfcorr"], report=silent)
    lines = [json.loads(line) for line in (tmp_path / "run_r" / "log.jsonl").read_text().splitlines()]
    first, second = lines
    assert "adversarial" not in first and {"adversarial", "distance", "penalty"} <= set(second)
    assert second["learning_rate/large.offset_conv"] == pytest.approx(0.5 * second["learning_rate"])
    assert second["learning_rate/discriminator"] == second["learning_rate"]
    assert {"offset_mean/large", "offset_max/medium", "reciprocal", "samples_per_second"} <= set(second)
    pictures = logged_pictures(tmp_path / "run_r")
    assert set(pictures) == {"bicubic, restored, truth, reference", "matches"}
    _, card = load_super_resolution(tmp_path / "r")
    assert card.content["training"]["loss"]["adversarial"]["weight"] == 1e-3


def CorrespondenceWeights(folder):
    from tfcorr.refsr.extractor import CorrespondenceNetwork

    network = CorrespondenceNetwork()
    network.build()
    network.load_weights(folder / "model.weights.h5")
    return [np.array(w) for w in network.weights]


def test_restorer_step_reports_learned_offsets():
    keras.utils.set_random_seed(0)
    model = C2Matching.from_architecture({"restorer": TINY})
    trainer = RestorerTrainer(model)
    for level in ("medium", "large"):
        bias = model.restorer.levels[level].dyn_agg.conv_offset_mask.bias
        bias.assign(np.full(bias.shape, 1.5, np.float32))
    rng = np.random.default_rng(0)
    data = {
        "lr": rng.random((2, 6, 6, 3), np.float32),
        "hr": rng.random((2, 24, 24, 3), np.float32),
        "reference": rng.random((2, 24, 24, 3), np.float32),
    }
    trainer.compile(optimizer=keras.optimizers.SGD(0.0), jit_compile=False)
    trained = {v.path for v in trainer.trainable_variables}
    assert trained == {v.path for v in model.restorer.trainable_variables}
    values = trainer.train_on_batch(data, return_dict=True)
    assert values["offset_mean"] == pytest.approx(1.5, abs=1e-4)
    assert values["offset_max"] == pytest.approx(1.5, abs=1e-4)
    pictures = trainer.pictures(data)
    assert next(iter(pictures.values())).shape == (2, 24, 96, 3)


def test_the_command_in_a_card_names_no_folder_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["tfcorr", "train", "refsr/matcher_cpu", "data_root=/home/me/photos", "train.steps=5"]
    places = [f"output={tmp_path}/runs/a", "matcher=/home/me/models/mine", "run=runs/b"]
    assert portable_command([*command, *places]) == (
        "tfcorr train refsr/matcher_cpu train.steps=5 output=runs/a matcher=mine run=runs/b"
    )
