"""A restorer over a single-image network: what the reference adds, and that it can add nothing."""

import keras
import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from tfcorr.config import parse_config
from tfcorr.errors import TfcorrError
from tfcorr.pretrained import SINGLE_IMAGE, load_super_resolution
from tfcorr.refsr.matching import pre_offsets
from tfcorr.refsr.memory import restorer_bytes, single_image_bytes
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.restorer import RestorerSizes
from tfcorr.refsr.single_image import SingleImageNetwork, SingleImageSizes
from tfcorr.refsr.stages import train
from tfcorr.training.model_folder import write_model

BASE = {"features": 6, "blocks": 2}
SIZES = {**TINY, "content_blocks": 0, "context": "matched", "gate": True, "base": BASE}


def image(height, width, seed=0):
    return np.random.default_rng(seed).random((1, height, width, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    model = C2Matching.from_architecture({"restorer": SIZES})
    random = np.random.default_rng(3)
    for weight in model.restorer.weights:
        if len(weight.shape) == 4:
            gain = 0.3 if "conv_offset_mask" in weight.path else 1.0
            weight.assign(gain * random.normal(0, np.prod(weight.shape[:-1]) ** -0.5, weight.shape))
    return model


def restored(model, gate):
    lr, references = image(6, 8), model.prepare([image(24, 32, 1)])
    found = model.match(model.describe(lr), references)
    offsets = pre_offsets(found.index, references.columns)
    gate = keras.ops.full((1, 6, 8, 1), gate)
    return keras.ops.convert_to_numpy(model.restore(lr, references.features, offsets, gate=gate))


def test_a_shut_gate_leaves_the_result_of_the_base(model):
    alone = keras.ops.convert_to_numpy(model.restorer.base(image(6, 8)))
    np.testing.assert_array_equal(restored(model, 0.0), alone)
    assert np.abs(restored(model, 1.0) - alone).max() > 0.05


def test_training_starts_at_the_result_of_the_base():
    fresh = C2Matching.from_architecture({"restorer": {**SIZES, "gate": False}})
    inputs = {"lr": image(6, 8), "reference": image(24, 32, 1)}
    np.testing.assert_array_equal(fresh(inputs), fresh.restorer.base(inputs["lr"]))


def test_the_reference_path_of_a_model_without_a_base_is_taken():
    keras.utils.set_random_seed(2)
    plain = C2Matching.from_architecture({"restorer": {**SIZES, "base": None, "content_blocks": 2}})
    guided = C2Matching.from_architecture({"restorer": SIZES})
    before = {weight.path: weight.numpy() for weight in guided.restorer.levels["small"].weights}
    absent = guided.take_weights(plain)
    parts = {name.split("/")[1] for name in absent}
    assert parts == {"base", "entry_small", "entry_medium", "entry_large", "small", "tail_large2"}
    for name in ("medium", "large", "tail_small", "tail_medium", "tail_large1", "gate"):
        ours, theirs = (m.restorer.levels.get(name) or getattr(m.restorer, name) for m in (guided, plain))
        assert ours.weights
        for one, other in zip(ours.weights, theirs.weights, strict=True):
            np.testing.assert_array_equal(one, other)
    for weight in guided.restorer.levels["small"].weights:
        np.testing.assert_array_equal(weight, before[weight.path])
    # It still begins at the result of the base.
    inputs = {"lr": image(6, 8), "reference": image(24, 32, 1)}
    np.testing.assert_array_equal(guided(inputs), guided.restorer.base(inputs["lr"]))
    with pytest.raises(ValueError, match=r"restorer/content_0/.* is not among"):
        plain.take_weights(guided)


def test_a_gate_shut_at_one_place_keeps_the_base_there(model):
    lr, references = image(6, 8), model.prepare([image(24, 32, 1)])
    offsets = pre_offsets(model.match(model.describe(lr), references).index, references.columns)
    gate = np.ones((1, 6, 8, 1), np.float32)
    gate[0, 2:4, 3:5] = 0
    out = keras.ops.convert_to_numpy(model.restore(lr, references.features, offsets, gate=gate))
    alone = keras.ops.convert_to_numpy(model.restorer.base(lr))
    np.testing.assert_array_equal(out[0, 8:16, 12:20], alone[0, 8:16, 12:20])
    assert np.abs(out - alone)[0, :8].max() > 0.05


def test_features_are_what_the_image_is_made_of():
    network = SingleImageNetwork(**BASE)
    network.build()
    features, whole = network.parts(image(5, 7))
    assert {name: tuple(f.shape) for name, f in features.items()} == {
        "small": (1, 5, 7, 6),
        "medium": (1, 10, 14, 6),
        "large": (1, 20, 28, 6),
    }
    last = network.conv_last(features["large"]) + network.upsampling(image(5, 7))
    np.testing.assert_allclose(last, whole, atol=1e-6)


def test_sizes_come_back_from_a_card(model):
    again = C2Matching.from_architecture(model.architecture)
    assert again.restorer.config == model.restorer.config
    assert again.restorer.config.base == SingleImageSizes(**BASE)
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        RestorerSizes(base={"features": 0, "blocks": 2})
    with pytest.raises(ValueError, match="unexpected keyword argument 'depth'"):
        C2Matching.from_architecture({"restorer": {**SIZES, "base": {"depth": 2}}})


def test_memory_counts_the_base():
    without = restorer_bytes(RestorerSizes(**{**SIZES, "base": None}))
    assert restorer_bytes(RestorerSizes(**SIZES)) > without
    large = RestorerSizes(**{**SIZES, "base": {"features": 512, "blocks": 1}})
    assert restorer_bytes(large) >= single_image_bytes(large.base)


def test_the_base_is_trained_before_and_stays(tmp_path, model):
    for kind in ("input", "ref"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            pixels = (image(32, 32, number)[0] * 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.png")
    write_model(
        tmp_path / "m", model.correspondence, {"name": "m", "job": "correspondence", "architecture": {}}
    )
    base = SingleImageNetwork(**BASE)
    for folder, network in (("base", base), ("other", SingleImageNetwork(8, 1))):
        network.build()
        card = {"name": folder, "job": SINGLE_IMAGE, "architecture": network.architecture}
        write_model(tmp_path / folder, network, card)
    pairs = [{"input_dir": "input", "reference_dir": "ref"}]
    content = {
        "stage": "restorer",
        "name": "g",
        "data_root": str(tmp_path),
        "output": str(tmp_path / "g"),
        "run": str(tmp_path / "run"),
        "matcher": str(tmp_path / "m"),
        "base": str(tmp_path / "base"),
        "model": {"restorer": SIZES},
        "data": {"pairs": pairs, "patch": 32, "crop": 24},
        "train": {"steps": 2, "batch": 2, "learning_rate": {"initial": 1.0e-3}, "precision": "float32"},
    }
    train(parse_config(content), ["tfcorr", "train"], lambda line: None)
    trained, _ = load_super_resolution(tmp_path / "g")
    for ours, theirs in zip(trained.restorer.base.get_weights(), base.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.abs(trained.restorer.tail_large2.kernel).max() > 0
    with pytest.raises(TfcorrError, match=r"base: .*other has .*features=8.* asks for one of"):
        train(parse_config({**content, "base": str(tmp_path / "other")}), [], print)
    plain = {**content, "model": {"restorer": {**SIZES, "base": None}}}
    with pytest.raises(TfcorrError, match="asks for no base"):
        train(parse_config(plain), [], print)
