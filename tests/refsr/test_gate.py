"""The gate: its cues against loops, what it guarantees, and the way into it from a model without one."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY
from PIL import Image

from tfcorr.config import parse_config
from tfcorr.pretrained import load_super_resolution
from tfcorr.refsr import predictor
from tfcorr.refsr.gate import INITIAL_THRESHOLD, ReferenceGate, flow_agreement
from tfcorr.refsr.matching import pre_offsets
from tfcorr.refsr.memory import MemoryPlan
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.predictor import SuperResolver
from tfcorr.refsr.restorer import PRESETS
from tfcorr.refsr.stages import train
from tfcorr.training.model_folder import write_model


def image(height, width, seed=0):
    return np.random.default_rng(seed).random((1, height, width, 3), dtype=np.float32)


def lively(model, seed=3):
    """Weights that let the reference move the output, and a gate that is neither open nor shut."""
    random = np.random.default_rng(seed)
    for weight in model.restorer.weights:
        if weight.shape == ():
            continue
        fan_in = float(np.prod(weight.shape[:-1]))
        gain = 0.3 if "conv_offset_mask" in weight.path else 1.0
        weight.assign(gain * random.normal(0, max(fan_in, 1.0) ** -0.5, weight.shape))
    if model.gated:
        model.restorer.gate.threshold.assign(0.05)
    return model


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return lively(C2Matching.from_architecture({"restorer": TINY, "gate": True}))


def brute_force_agreement(flow):
    height, width = flow.shape[:2]
    result = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                if (i, j) == (0, 0):
                    continue
                other = flow[min(max(y + i, 0), height - 1), min(max(x + j, 0), width - 1)]
                distance = np.sum((other.astype(np.float64) - flow[y, x]) ** 2)
                result[y, x] += 1 / (1 + distance / 4) / 8
    return result


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 7)])
def test_agreement_against_a_loop(size):
    flow = np.random.default_rng(0).integers(-4, 5, (2, *size, 2)).astype(np.float32)
    expected = np.stack([brute_force_agreement(one) for one in flow])
    np.testing.assert_allclose(flow_agreement(flow), expected, rtol=1e-5)


def test_a_common_shift_agrees_and_chance_does_not():
    shifted = np.broadcast_to(np.float32([3, -7]), (1, 9, 9, 2))
    np.testing.assert_allclose(flow_agreement(shifted), 1.0)
    chance = np.random.default_rng(0).uniform(-40, 40, (1, 9, 9, 2)).astype(np.float32)
    assert float(np.max(flow_agreement(chance)[:, 1:-1, 1:-1])) < 0.2


def test_the_untrained_gate_is_a_logistic_of_the_mean_of_the_covering_patches():
    gate = ReferenceGate()
    random = np.random.default_rng(0)
    score, agreement = random.random((2, 1, 5, 6), dtype=np.float32)
    out = keras.ops.convert_to_numpy(gate(score, agreement))
    assert out.shape == (1, 7, 8, 1)
    # In the middle, where all nine exist: patches are named by their top-left pixels.
    covering = np.mean([score[0, 2 - i, 3 - j] for i in range(3) for j in range(3)])
    assert out[0, 2, 3, 0] == pytest.approx(1 / (1 + np.exp(-20 * (covering - 0.25))), rel=1e-4)
    # In the corner there is one patch, and it counts nine times.
    assert out[0, 0, 0, 0] == pytest.approx(1 / (1 + np.exp(-20 * (score[0, 0, 0] - 0.25))), rel=1e-4)


def test_a_gate_rises_with_the_score_whatever_its_slope_was_trained_to():
    gate = ReferenceGate()
    gate.build()
    gate.raw_slope.assign(-3.0)
    scores = np.linspace(0, 1, 9, dtype=np.float32).reshape(9, 1, 1)
    out = keras.ops.convert_to_numpy(gate(scores, np.zeros_like(scores)))[:, 1, 1, 0]
    assert (np.diff(out) > 0).all()


def test_a_shut_gate_keeps_the_reference_out(model):
    lr = image(6, 8)
    descriptors = model.describe(lr)
    outputs, open_outputs = [], []
    for seed in (1, 2):
        references = model.prepare([image(24, 32, seed)])
        found = model.match(descriptors, references)
        offsets = pre_offsets(found.index, references.columns)
        gate = keras.ops.zeros((1, 6, 8, 1))
        outputs.append(model.restore(lr, references.features, offsets, gate=gate))
        open_outputs.append(model.restore(lr, references.features, offsets, gate=gate + 1))
    np.testing.assert_array_equal(*outputs)
    assert np.abs(np.subtract(*open_outputs)).max() > 0.01


def test_an_open_gate_is_the_network_without_one(model):
    plain = C2Matching.from_architecture({"restorer": TINY})
    for weight in plain.weights:
        name = weight.path.partition("/")[2]
        weight.assign(next(w for w in model.weights if w.path.endswith(f"/{name}")))
    lr, references = image(6, 8), plain.prepare([image(24, 32, 1)])
    offsets = pre_offsets(plain.match(plain.describe(lr), references).index, references.columns)
    expected = plain.restore(lr, references.features, offsets)
    opened = model.restore(lr, references.features, offsets, gate=keras.ops.ones((1, 6, 8, 1)))
    np.testing.assert_allclose(opened, expected, atol=1e-6)
    with pytest.raises(ValueError, match="`gate` is missing"):
        model.restore(lr, references.features, offsets)


def test_the_gate_learns(model):
    inputs = {"lr": image(6, 8), "reference": image(24, 32, 1)}
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(inputs)))
    gate = model.restorer.gate
    watched = [gate.threshold, gate.raw_slope, gate.correction.bias, gate.convolutions[0].kernel]
    for variable, gradient in zip(watched, tape.gradient(loss, watched), strict=True):
        assert float(tf.reduce_max(tf.abs(gradient))) > 0, variable.path


def test_mixed_precision_keeps_the_gate_in_float32():
    model = C2Matching.from_architecture({"restorer": TINY, "gate": True}, dtype="mixed_bfloat16")
    score = np.full((1, 3, 3), 0.5, np.float32)
    assert model.gate(score, score).dtype == tf.float32
    assert model({"lr": image(5, 5), "reference": image(16, 16)}).dtype == tf.float32


def test_a_call_and_prepared_references_agree(model):
    lr, reference = image(9, 8), image(40, 36, 1)
    references = model.prepare([reference])
    found = model.match(model.describe(lr), references)
    gate = model.gate(found.score, found.agreement)
    assert 0.02 < float(np.mean(gate)) < 0.98
    offsets = pre_offsets(found.index, references.columns)
    out = model.restore(lr, references.features, offsets, gate=gate)
    np.testing.assert_allclose(out, model({"lr": lr, "reference": reference}), atol=1e-5)


def test_agreement_is_that_of_the_reference_that_wins(model):
    lr, pictures = image(9, 8), [image(40, 36, 1), image(24, 60, 2)]
    descriptors = model.describe(lr)
    both = model.match(descriptors, model.prepare(pictures))
    alone = [np.asarray(model.match(descriptors, model.prepare([p])).agreement) for p in pictures]
    number = np.asarray(both.number)
    assert len(np.unique(number)) == 2
    np.testing.assert_allclose(both.agreement, np.where(number == 0, *alone), atol=1e-6)


def test_architecture_names_the_gate(model):
    again = C2Matching.from_architecture(json.loads(json.dumps(model.architecture)))
    assert again.gated
    assert again.restorer.config == model.restorer.config
    assert C2Matching("compact", gate=True).architecture["restorer"]["gate"] is True
    assert C2Matching("compact").architecture["restorer"]["gate"] is False
    # Cards from before there were gates.
    assert not C2Matching.from_architecture({"restorer": TINY}).gated
    assert {name for name, config in PRESETS.items() if config.gate} == {"guided"}
    with pytest.raises(ValueError, match=r"architecture\.gate"):
        C2Matching.from_architecture({"restorer": "compact", "gate": "yes"})


def test_a_model_without_a_gate_starts_one_with_it():
    plain = lively(C2Matching.from_architecture({"restorer": TINY}))
    gated = C2Matching.from_architecture({"restorer": TINY, "gate": True})
    absent = gated.take_weights(plain)
    assert absent
    assert all(name.startswith("restorer/gate/") for name in absent)
    assert len(absent) == len(gated.restorer.gate.weights)
    # All else was copied; with matches as good as found ones are, the outputs are nearly the same.
    inputs = {"lr": image(8, 8), "reference": np.repeat(np.repeat(image(8, 8), 4, 1), 4, 2)}
    gated.correspondence.input_extractor.set_weights(gated.correspondence.reference_extractor.get_weights())
    plain.correspondence.set_weights(gated.correspondence.get_weights())
    expected = np.asarray(plain(inputs))
    assert np.abs(gated(inputs) - expected).max() < 0.05 * np.abs(expected).max()


def test_weights_of_another_architecture_are_refused():
    gated = C2Matching.from_architecture({"restorer": TINY, "gate": True})
    before = [weight.numpy() for weight in gated.weights]
    wider = C2Matching.from_architecture({"restorer": {**TINY, "offset_widths": [8, 16, 8]}})
    with pytest.raises(ValueError, match="has shape"):
        gated.take_weights(wider)
    shorter = C2Matching.from_architecture({"restorer": {**TINY, "blocks": [1, 1, 0]}})
    with pytest.raises(ValueError, match=r"restorer/large/body_0.* is not among"):
        gated.take_weights(shorter)
    with pytest.raises(ValueError, match=r"restorer/large/body_0.*not in this model"):
        shorter.take_weights(C2Matching.from_architecture({"restorer": TINY}))
    with pytest.raises(ValueError, match=r"restorer/gate/.*not in this model"):
        C2Matching.from_architecture({"restorer": TINY}).take_weights(gated)
    for weight, value in zip(gated.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_details_tell_of_the_gate_and_tiles_change_nothing(model):
    small, reference = image(60, 50)[0], image(70, 90, 1)[0]
    upscaler = SuperResolver(model, memory=10**9)
    whole = upscaler.upscale(small, [reference, image(40, 60, 2)[0]], details=True)
    assert whole.confidence.shape == (60, 50)
    assert whole.confidence.dtype == np.float32
    assert 0 <= whole.confidence.min() < whole.confidence.max() <= 1
    assert whole.used_share == np.mean(whole.confidence >= 0.5)
    tiled = SuperResolver(model, memory=10**9)
    per_pixel = tiled._memory.tile_bytes
    tiled._memory = MemoryPlan(2 * per_pixel * 40**2, per_pixel, reference_bytes=1)
    parts = tiled.upscale(small, [reference, image(40, 60, 2)[0]], details=True)
    # Matches that are as good as others may fall otherwise in the last digit.
    assert np.mean(np.abs(parts.confidence - whole.confidence) < 1e-4) > 0.99
    assert np.mean(np.abs(parts.image - whole.image) <= 1 / 255) > 0.99


@pytest.mark.parametrize("block", [(9, 11), (40, 7), (100, 100)])
def test_a_gate_in_blocks_is_the_whole_one(model, block):
    random = np.random.default_rng(0)
    score, agreement = random.random((2, 40, 31), dtype=np.float32)
    matches = predictor._Matches(None, None, score, None, agreement)
    blocks = predictor._blocks(*score.shape, *block)
    gate = SuperResolver(model)._gate_in_blocks(matches, blocks)
    expected = keras.ops.convert_to_numpy(model.gate(score[None], agreement[None]))[0, :, :, 0]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(gate, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_small_inputs(model, size):
    result = SuperResolver(model).upscale(image(*size)[0], image(9, 11, 1)[0], details=True)
    assert result.confidence.shape == size


def test_training_goes_on_from_a_model_without_a_gate(tmp_path):
    for kind in ("input", "ref"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            pixels = (image(32, 32, number)[0] * 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.png")
    plain = lively(C2Matching.from_architecture({"restorer": TINY}))
    models = {"m": (plain.correspondence, "correspondence", {}), "p": (plain, "super-resolution", None)}
    for name, (model, job, architecture) in models.items():
        architecture = plain.architecture if architecture is None else architecture
        write_model(tmp_path / name, model, {"name": name, "job": job, "architecture": architecture})
    pairs = [{"input_dir": "input", "reference_dir": "ref"}]
    config = parse_config(
        {
            "stage": "restorer",
            "name": "g",
            "data_root": str(tmp_path),
            "output": str(tmp_path / "g"),
            "run": str(tmp_path / "run"),
            "matcher": str(tmp_path / "m"),
            "initial_weights": str(tmp_path / "p"),
            "model": {"restorer": {**TINY, "context": "matched"}, "gate": True},
            "data": {
                "pairs": pairs,
                "patch": 32,
                "crop": 24,
                "unrelated": 0.5,
                "partly_related": 0.5,
            },
            "train": {"steps": 1, "batch": 2, "learning_rate": {"initial": 1.0e-3}, "precision": "float32"},
            "validation": {"pairs": pairs, "count": 2, "every": 1},
        }
    )
    lines = []
    train(config, ["tfcorr", "train"], lines.append)
    assert any(line.endswith(f"not taken from {tmp_path / 'p'}: restorer/gate") for line in lines)
    assert any("trained otherwise: {'context': 'unaligned'}" in line for line in lines)
    model, card = load_super_resolution(tmp_path / "g")
    assert model.gated
    assert card.architecture["restorer"]["gate"] is True
    # The threshold of scores is none of the gate's.
    assert "confidence_threshold" not in card.content
    gate = model.restorer.gate
    assert float(gate.threshold) != pytest.approx(INITIAL_THRESHOLD, abs=1e-6)
    # One step of Adam moves no weight by more than the learning rate: the rest came from the other model.
    for ours, theirs in zip(model.restorer.content_body, plain.restorer.content_body, strict=True):
        np.testing.assert_allclose(ours.conv1.kernel, theirs.conv1.kernel, atol=1.1e-3)
