"""The published layouts, on trees of tiny images: what the loaders find, and the evaluation of all of it."""

import json

import keras
import numpy as np
import pytest
from published_trees import CLASSES, PASCAL_OFFSETS, pascal_points, pf_pascal, pf_willow, spair

from tfcorr.config import load_config
from tfcorr.config.semantic import PairSet
from tfcorr.semantic.datasets import KeypointPair, find_pairs
from tfcorr.semantic.evaluation import benchmark
from tfcorr.semantic.loading import SEMANTIC_MATCHING, save_network
from tfcorr.semantic.network import MatchingHead, SemanticMatchingNetwork


class Means(keras.Model):
    """Each map holds the mean colours of its blocks."""

    def call(self, images, training=None):
        return {stride: keras.ops.average_pool(images, stride, stride) - 0.5 for stride in (16, 32)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for make in (pf_pascal, pf_willow, spair):
        make(folder)
    return folder


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.setattr("tfcorr.backbones.backbone", lambda name, arguments: Means())
    network = SemanticMatchingNetwork(MatchingHead((3, 3), blocks=0, attention="none"), Means())
    card = {"name": "tiny", "job": SEMANTIC_MATCHING}
    save_network(tmp_path / "model", network, backbone={"name": "means", "arguments": {}}, size=64, card=card)
    return tmp_path / "model"


def test_pf_pascal(root):
    test = PairSet("pf_pascal", "PF_Pascal", "PF_Pascal/bbox_test_pairs_pf_pascal.csv")
    pairs = find_pairs(test, str(root))
    assert [pair.category for pair in pairs] == list(CLASSES)
    for pair in pairs:
        assert isinstance(pair, KeypointPair) and pair.source.is_file() and pair.target.is_file()
        source, target = pascal_points(pair.category)
        np.testing.assert_allclose(pair.source_points, source)
        np.testing.assert_allclose(pair.target_points, target)
        assert pair.source_box == (5, 3, 45, 33) and pair.source_side == 40
    training = find_pairs(
        PairSet("pf_pascal", "PF_Pascal", "weakalign/pf-pascal-flip/train_pairs.csv"), str(root)
    )
    assert len(training) == 12 and sum(pair.flip for pair in training) == 6
    assert all(type(pair) is not KeypointPair and pair.source.is_file() for pair in training)


def test_pf_willow(root):
    (pair,) = find_pairs(PairSet("pf_willow", "PF_WILLOW", "PF_WILLOW/test_pairs_pf.csv"), str(root))
    assert pair.category == "car(G)" and pair.source.is_file()
    np.testing.assert_array_equal(pair.source_points[[0, 9]], [[2, 5], [42, 25]])
    np.testing.assert_array_equal(pair.target_points[[0, 9]], [[5, 5], [47, 25]])


def test_spair(root):
    for split in ("trn", "test"):
        pairs = find_pairs(PairSet("spair", "SPair-71k", split=split), str(root))
        assert [pair.category for pair in pairs] == list(CLASSES)
        assert all(pair.source.is_file() and pair.source_box == (5, 5, 45, 35) for pair in pairs)


def test_evaluation_by_the_published_protocols(root, model, tmp_path):
    """The shipped configuration; what no flow scores is known from how far the points are apart."""
    config = load_config(
        "semantic/evaluate",
        [
            f"data_root={root}",
            f"model={model}",
            f"output={tmp_path / 'result.json'}",
            "evaluation.alphas=[0.1]",
            "evaluation.bootstrap=20",
            "evaluation.benchmarks.0.training=[]",
        ],
    )
    result, _ = benchmark(config, report=str)
    assert not result["skipped"] and json.loads((tmp_path / "result.json").read_text())["benchmarks"]
    found = result["benchmarks"]
    assert {name: part["threshold"] for name, part in found.items()} == {
        "PF-PASCAL": "image",
        "PF-WILLOW": "keypoints",
        "SPair-71k": "box",
    }
    # Right within 32 pixels of 320: two of three points of one class, one of four of the other.
    shares = {kind: np.mean(np.array(offsets) <= 32) for kind, offsets in PASCAL_OFFSETS.items()}
    expected = {"PF-PASCAL": shares, "PF-WILLOW": {"car(G)": 0.6}, "SPair-71k": dict.fromkeys(CLASSES, 2 / 3)}
    for name, classes in expected.items():
        assert set(found[name]["methods"]) == {"model", "untrained", "identity"}
        scores = found[name]["methods"]["identity"]["pck"]["0.1"]
        assert scores["classes"] == pytest.approx(classes)
        assert scores["per_pair"] == pytest.approx(np.mean(list(classes.values())))
        assert 0 <= found[name]["methods"]["model"]["pck"]["0.1"]["per_pair"] <= 1
    pascal = found["PF-PASCAL"]
    assert pascal["methods"]["identity"]["pck"]["0.1"]["per_point"] == pytest.approx(3 / 7)
    np.testing.assert_allclose(pascal["pairs"][0]["identity"], np.array([0, 30, 34]) / 320, atol=1e-4)


def test_pf_pascal_by_its_boxes(root, model, tmp_path):
    """L is 40 pixels of the file: an offset of 30 in 320 is 5.6 of 60, one of 0 is right."""
    config = load_config(
        "semantic/evaluate",
        [
            f"data_root={root}",
            f"model={model}",
            f"output={tmp_path / 'result.json'}",
            "evaluation.methods=[identity]",
            "evaluation.alphas=[0.1, 0.15]",
            "evaluation.bootstrap=0",
            "evaluation.benchmarks=[{name: boxes, threshold: box, pairs: {layout: pf_pascal, "
            "path: PF_Pascal, list: PF_Pascal/bbox_test_pairs_pf_pascal.csv}}]",
        ],
    )
    result, _ = benchmark(config, report=str)
    scores = result["benchmarks"]["boxes"]["methods"]["identity"]["pck"]
    assert scores["0.1"]["classes"] == pytest.approx({"aeroplane": 1 / 3, "bird": 0.0})
    # Within 6 pixels.
    assert scores["0.15"]["classes"] == pytest.approx({"aeroplane": 2 / 3, "bird": 1 / 4})
