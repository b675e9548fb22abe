"""The authors' weights: from a checkpoint with their names to the outputs of their programs."""

import importlib.util
import json
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from conftest import nhwc

from tfcorr.pretrained import load_super_resolution
from tfcorr.published import PublishedWeightsError, state_dict
from tfcorr.refsr.extractor import CorrespondenceNetwork
from tfcorr.refsr.published import load_extractors, load_restorer, restorer_sizes
from tfcorr.refsr.restorer import RestorationNetwork, preset
from tfcorr.torch_checkpoint import read_checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_weights.py"


def extractor_weights(golden):
    """As the authors' file names them, with the constants that it has too."""
    arrays = golden("contrastive_extractor", "w")
    weights = {}
    for name, array in arrays.items():
        side, _, layer = name.partition(".")
        weights[f"feature_extraction_{side}.model.{layer}"] = array
    for side in ("image1", "image2"):
        weights[f"feature_extraction_{side}.mean"] = np.zeros((1, 3, 1, 1), np.float32)
        weights[f"feature_extraction_{side}.std"] = np.ones((1, 3, 1, 1), np.float32)
    return weights


def restorer_weights(golden, case):
    return golden("restoration", f"{case}/w")


def through_a_file(weights, path, legacy):
    checkpoints.save(path, weights, legacy=legacy)
    return state_dict(read_checkpoint(path), path.name)


def test_extractors(golden, tmp_path):
    weights = through_a_file(extractor_weights(golden), tmp_path / "feature_extraction.pth", legacy=True)
    network = CorrespondenceNetwork()
    network.build()
    load_extractors(network, weights)
    for case in ("case0", "case1"):
        arrays = golden("contrastive_extractor", case)
        found = network({"input": nhwc(arrays["image1"]), "reference": nhwc(arrays["image2"])})
        for features, name in zip(found, ("features1", "features2"), strict=True):
            np.testing.assert_allclose(features, nhwc(arrays[name]), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("case", "legacy"), [("ngf16_b2", True), ("ngf64_b1", False)])
def test_restorer(golden, tmp_path, case, legacy):
    arrays = golden("restoration", case)
    weights = through_a_file(restorer_weights(golden, case), tmp_path / "restorer.pth", legacy)
    sizes = restorer_sizes(weights)
    features, blocks, groups = (int(n) for n in arrays["config"])
    assert (sizes.features, sizes.content_blocks, sizes.deform_groups) == (features, blocks, groups)
    assert sizes.blocks == (blocks,) * 3
    network = RestorationNetwork(sizes)
    network.build()
    load_restorer(network, weights)
    inputs = {name: nhwc(arrays[f"ref_{name}"]) for name in ("relu3_1", "relu2_1", "relu1_1")}
    votes = np.moveaxis(arrays["pre_offset_relu3_1"][..., ::-1], 1, 3)
    inputs["pre_offset"] = votes.reshape(*votes.shape[:3], 18).astype(np.float32)
    inputs["lr"] = nhwc(arrays["lr"])
    np.testing.assert_allclose(network(inputs), nhwc(arrays["out"]), rtol=1e-4, atol=5e-5)


def test_full_size_is_recognised():
    """Names and shapes of the published network, from table 3, give the preset."""
    network = RestorationNetwork(preset("full"))
    network.build()
    weights = {
        "content_extractor.conv_first.weight": np.zeros((64, 3, 3, 3)),
        "content_extractor.body.15.conv1.weight": np.zeros((64, 64, 3, 3)),
    }
    for level, width in (("small", 256), ("medium", 128), ("large", 64)):
        prefix = f"dyn_agg_restore.{level}"
        weights[f"dyn_agg_restore.body_{level}.15.conv2.bias"] = np.zeros(64)
        weights[f"{prefix}_offset_conv1.weight"] = np.zeros((width, 64 + width, 3, 3))
        weights[f"{prefix}_dyn_agg.weight"] = np.zeros((width, width, 3, 3))
        weights[f"{prefix}_dyn_agg.conv_offset_mask.weight"] = np.zeros((216, width, 3, 3))
    assert restorer_sizes(weights) == preset("full")


def test_names_and_shapes_are_checked(golden):
    weights = extractor_weights(golden)
    network = CorrespondenceNetwork()
    network.build()
    before = network.get_weights()
    name = "feature_extraction_image1.model.conv2_1.weight"
    without = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(PublishedWeightsError, match=rf"1 weights are missing, first {name}"):
        load_extractors(network, without)
    with pytest.raises(PublishedWeightsError, match=r"1 weights are unknown, first conv9"):
        load_extractors(network, {**weights, "conv9.weight": np.zeros(3)})
    for wrong in (weights[name][:, :, :1], weights[name][0], np.zeros(3, np.float32)):
        with pytest.raises(PublishedWeightsError, match=rf"{name} has shape"):
            load_extractors(network, {**weights, name: wrong})
    with pytest.raises(PublishedWeightsError, match="not finite"):
        load_extractors(network, {**weights, name: weights[name] * np.inf})
    for value, expected in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(PublishedWeightsError, match=r"conv_first\.weight is missing"):
        restorer_sizes(weights)


def test_what_is_no_state_dict():
    array = np.zeros(2)
    assert list(state_dict({"params": {"module.a": array}}, "x")) == ["a"]
    for content in (array, {}, {"a": 3}, {1: array}, {"state_dict": {}}):
        with pytest.raises(PublishedWeightsError, match="x: no state_dict"):
            state_dict(content, "x")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("convert_weights", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_a_model_folder(golden, script, tmp_path, capsys):
    checkpoints.save(tmp_path / "extractors.pth", extractor_weights(golden), legacy=True)
    checkpoints.save(tmp_path / "restorer.pth", restorer_weights(golden, "ngf16_b2"), legacy=True)
    vgg = {
        name.removeprefix("image2."): array
        for name, array in golden("contrastive_extractor", "w").items()
        if name.startswith("image2.")
    }
    np.savez(tmp_path / "vgg.npz", **vgg)
    words = [str(tmp_path / name) for name in ("extractors.pth", "restorer.pth")]
    folder = tmp_path / "c2-paper"
    status = script.main(["c2", *words, "--vgg", str(tmp_path / "vgg.npz"), "--output", str(folder)])
    assert status == 0, capsys.readouterr().err
    card = json.loads((folder / "card.json").read_text())
    assert set(card["converted"]["files"]) == {"extractors.pth", "restorer.pth"}
    model, _ = load_super_resolution(folder)
    arrays = golden("contrastive_extractor")
    features = model.extract(nhwc(arrays["case0/image2"]))
    for name in ("relu1_1", "relu2_1", "relu3_1"):
        np.testing.assert_allclose(features[name], nhwc(arrays[f"vgg_ref/{name}"]), rtol=1e-4, atol=2e-5)
    assert model({"lr": np.zeros((1, 4, 5, 3)), "reference": np.zeros((1, 16, 16, 3))}).shape == (
        1,
        16,
        20,
        3,
    )


def test_the_script_says_what_is_wrong(golden, script, tmp_path, capsys):
    checkpoints.save(tmp_path / "extractors.pth", extractor_weights(golden))
    word = str(tmp_path / "extractors.pth")
    assert script.main(["c2", word, word, "--output", str(tmp_path / "model")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("convert_weights: ")
    assert "restoration network" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "model").exists()
