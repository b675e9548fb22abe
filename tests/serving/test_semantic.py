"""Exports of a semantic matcher, whose backbone's features are the pixels."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcorr.semantic.network import MatchingHead, SemanticMatchingNetwork
from tfcorr.semantic.predictor import SemanticMatcher
from tfcorr.serving import tflite
from tfcorr.serving.checks import Limits
from tfcorr.serving.export import trial_image
from tfcorr.serving.files import ExportError
from tfcorr.serving.runtimes import load

SIZE = 64
CHANNELS = 48


class Blocks(keras.Model):
    """Each map holds the first row of pixels of its blocks, their colours mixed by a random convolution."""

    def __init__(self):
        super().__init__()
        self.seen = keras.layers.Conv2D(3, 1, name="seen")
        self.seen.build((None, None, None, 3))

    def call(self, images, training=None):
        images, maps = self.seen(images), {}
        for stride in (16, 32):
            cells = SIZE // stride
            cut = keras.ops.reshape(images, (-1, cells, stride, cells, stride, 3))
            cut = keras.ops.transpose(cut, (0, 1, 3, 2, 4, 5))
            maps[stride] = keras.ops.reshape(cut, (-1, cells, cells, stride * stride * 3))[..., :CHANNELS]
        return maps


@pytest.fixture(scope="module")
def matcher():
    keras.utils.set_random_seed(2)
    head = MatchingHead((CHANNELS, CHANNELS), blocks=1)
    network = SemanticMatchingNetwork(head, Blocks())
    network.build()
    return SemanticMatcher(network, size=SIZE)


def photo(height, width, seed):
    return np.rint(255 * trial_image(height, width, seed)).astype(np.uint8)


def test_saved_model(matcher, tmp_path):
    exported = matcher.export(tmp_path / "m", limits=Limits(pixels=30_000, reference_pixels=20_000))
    assert exported.difference < 1e-3
    information = json.loads((tmp_path / "m" / "assets.extra" / "export.json").read_text())
    assert information["job"] == "semantic-matching"
    run = load(tmp_path / "m")
    # The network's size, larger, smaller, and one of each.
    for number, (size, other) in enumerate(
        [
            ((64, 64), (64, 64)),
            ((150, 190), (100, 120)),
            ((20, 33), (9, 64)),
            ((1, 5), (130, 70)),
            ((64, 70), (80, 64)),
        ]
    ):
        source, target = photo(*size, seed=number), photo(*other, seed=number + 10)
        expected = matcher.match(source, target, details=True)
        found = run(source=source / np.float32(255), target=target / np.float32(255))
        assert found["flow"].shape == (*size, 2)
        # A pixel that Pillow rounds to the other side moves the flow by a little.
        assert np.abs(found["flow"] - expected.flow).max() < 1e-3 * max(other)
        np.testing.assert_allclose(found["confidence"], expected.confidence, atol=1e-2)
    signature = tf.saved_model.load(str(tmp_path / "m")).signatures["from_bytes"]
    files = signature(source=tf.io.encode_png(source), target=tf.io.encode_png(target))
    np.testing.assert_allclose(files["flow"], found["flow"], atol=1e-4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="tfcorr: target has 22500 pixels"):
        run(source=source / np.float32(255), target=np.zeros((150, 150, 3), np.float32))


def test_tflite(matcher, tmp_path):
    pytest.importorskip("ai_edge_litert", reason="needs the extra 'tflite'")
    exported = matcher.export(tmp_path / "m", format="tflite")
    assert exported.difference < 1e-3
    kinds = {kind for kind, _ in tflite.operators((tmp_path / "m" / "model.tflite").read_bytes())}
    assert "CUSTOM" not in kinds


def test_no_onnx(matcher, tmp_path):
    with pytest.raises(ExportError, match="not as onnx"):
        matcher.export(tmp_path / "m", format="onnx")
    assert not list(tmp_path.iterdir())
