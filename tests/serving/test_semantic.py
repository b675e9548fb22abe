"""Exports of a semantic matcher, whose backbone's features are the pixels."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcorr.errors import InputError
from tfcorr.semantic.network import MatchingHead, SemanticMatchingNetwork
from tfcorr.semantic.predictor import SemanticMatcher
from tfcorr.serving import Client, ServingError, tflite
from tfcorr.serving.checks import Limits
from tfcorr.serving.export import trial_image
from tfcorr.serving.files import ExportError
from tfcorr.serving.runtimes import load
from tfcorr.serving.warmup import WARMUP_FILE

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


@pytest.fixture(scope="module")
def exported(matcher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("semantic") / "1"
    matcher.export(folder, limits=Limits(pixels=30_000, reference_pixels=20_000), verify=False)
    return folder


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        ((4, 4, 3), (1, 4, 4, 3), "source has shape [4 4 3], expected (batch, height, width, 3)"),
        ((1, 4, 4, 3), (1, 4, 4, 1), "target has shape [1 4 4 1]"),
        ((1, 0, 4, 3), (1, 4, 4, 3), "at least 1x1 pixels"),
        ((1, 200, 200, 3), (1, 4, 4, 3), "source has 40000 pixels, expected at most 30000"),
        ((2, 4, 4, 3), (1, 4, 4, 3), "source and target have batches of 2 and 1"),
    ],
)
def test_refused_arrays(exported, source, target, sentence):
    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        serve(source=tf.zeros(source), target=tf.zeros(target))
    assert "tfcorr: " in caught.value.message
    assert sentence in caught.value.message


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_client(matcher, exported, protocol):
    pytest.importorskip("tensorflow_serving", reason="needs the extra 'serving'")
    from serving.server import Model, Server

    source, target = photo(30, 44, seed=0), photo(25, 31, seed=1)
    expected = matcher.match(source, target, details=True)
    with Server(Model(exported)) as server, Client(server.addresses[protocol], deadline=60) as client:
        found = client.match(source, target)
        files = client.match(*(tf.io.encode_png(image).numpy() for image in (source, target)))
        with pytest.raises(InputError, match="expected two of one kind"):
            client.match(source, b"file")
        with pytest.raises(ServingError, match="refused the request: target is no PNG or JPEG file"):
            client.match(tf.io.encode_png(source).numpy(), b"no file")
    for flow, confidence in (found, files):
        assert flow.dtype == confidence.dtype == np.float32
        np.testing.assert_allclose(flow, expected.flow, atol=0.05)
        np.testing.assert_allclose(confidence, expected.confidence, atol=1e-2)


def test_client_of_another_model(server):
    """The stand-in enlarges: it knows no source and no target."""
    with Client(server.addresses["grpc"]) as client, pytest.raises(ServingError, match="source"):
        client.match(photo(4, 4, seed=0), photo(4, 4, seed=1))


def test_warm_up_requests_run(exported):
    pytest.importorskip("tensorflow_serving", reason="needs the extra 'serving'")
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    signatures = tf.saved_model.load(str(exported)).signatures
    seen = []
    for record in tf.data.TFRecordDataset(str(exported / WARMUP_FILE)):
        request = PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        found = signatures[request.model_spec.signature_name](**inputs)
        seen.append((request.model_spec.signature_name, sorted(found)))
    assert seen == [(name, ["confidence", "flow"]) for name in ("serving_default", "from_bytes")]


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
