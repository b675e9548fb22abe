"""The ONNX graph, executed by ONNX Runtime: the same images as the predictor gives."""

import json

import keras
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

from tfcorr.refsr.model import C2Matching  # noqa: E402
from tfcorr.refsr.predictor import SuperResolver  # noqa: E402
from tfcorr.serving.export import trial_image  # noqa: E402
from tfcorr.serving.onnx import build, export_super_resolution  # noqa: E402
from tfcorr.serving.onnx_graph import Graph  # noqa: E402
from tfcorr.serving.runtimes import load  # noqa: E402

# All that a restorer can have: three levels with a reference, several groups, and a gate.
SIZES = {
    "features": 8,
    "content_blocks": 1,
    "blocks": [1, 1, 1],
    "reference_levels": ["small", "medium", "large"],
    "offset_widths": [8, 8, 8],
    "aggregated_widths": [8, 8, 8],
    "deform_groups": 4,
}


BASE = {"base": {"features": 6, "blocks": 2}}


@pytest.fixture(
    scope="module",
    params=[{}, {"gate": True}, {"gate": True, "restorer": SIZES | BASE}, {"reference_features": "vgg19"}],
    ids=["plain", "gate", "base", "vgg19"],
)
def upscaler(request):
    """Random weights, large enough for the reference to move the result."""
    keras.utils.set_random_seed(3)
    model = C2Matching.from_architecture({"restorer": SIZES, **request.param})
    random = np.random.default_rng(7)
    for weight in model.restorer.weights:
        if len(weight.shape) == 4:
            gain = 0.3 if "conv_offset_mask" in weight.path else 1.0
            weight.assign(gain * random.normal(0, np.prod(weight.shape[:-1]) ** -0.5, weight.shape))
    return SuperResolver(model, memory=10**9)


def session_of(graph) -> "onnxruntime.InferenceSession":
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def test_equal_to_the_python_prediction(upscaler):
    session = session_of(build(upscaler.model))
    sizes = [
        ((1, 1), (1, 2)),
        ((5, 3), (20, 33)),
        ((8, 8), (32, 32)),
        ((16, 21), (64, 83)),
        ((13, 30), (90, 50)),
    ]
    for number, (size, reference_size) in enumerate(sizes):
        lr, reference = trial_image(*size, seed=number), trial_image(*reference_size, seed=number + 10)
        image, confidence = session.run(
            ["image", "confidence"], {"lr": lr[None], "reference": reference[None]}
        )
        expected = upscaler.upscale(lr, reference, details=True)
        np.testing.assert_allclose(image[0], expected.image, atol=1e-3)
        np.testing.assert_allclose(confidence[0], expected.confidence, atol=1e-3)


def test_the_reference_matters(upscaler):
    """Else agreement would say nothing about matching and aggregation."""
    lr = trial_image(12, 12, seed=0)
    one, other = (upscaler.upscale(lr, trial_image(48, 48, seed=s)) for s in (1, 2))
    assert np.abs(one - other).max() > 0.005


def test_files_and_fixed_sizes(tiny_model_folder, tmp_path):
    upscaler = SuperResolver.from_pretrained(tiny_model_folder, memory=10**9)
    export_super_resolution(
        upscaler.model, tmp_path, size=(9, 11), reference_size=(40, 36), information={"licence": "Apache-2.0"}
    )
    assert json.loads((tmp_path / "export.json").read_text()) == {
        "licence": "Apache-2.0",
        "file": "model.onnx",
    }
    graph = onnx.load(tmp_path / "model.onnx")
    assert graph.opset_import[0].version == 22
    assert {p.key: p.value for p in graph.metadata_props} == {"licence": "Apache-2.0"}
    assert "DeformConv" in {node.op_type for node in graph.graph.node}
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes == {
        "lr": [1, 9, 11, 3],
        "reference": [1, 40, 36, 3],
        "image": [1, 36, 44, 3],
        "confidence": [1, 9, 11],
    }
    lr, reference = trial_image(9, 11, seed=0), trial_image(40, 36, seed=1)
    found = load(tmp_path, threads=1)(lr=lr, reference=reference)["image"]
    np.testing.assert_allclose(found, upscaler.upscale(lr, reference), atol=1e-3)


def test_mirrored_beyond_its_size():
    """The low-pass reaches further than small images are large."""
    g = Graph()
    value = g.mirrored("x", 2, 7)
    session = session_of(g.model({"x": [1, 1, None, 1]}, {"y": (value, [1, 1, None, 1])}))
    for size in (1, 2, 5, 9):
        x = np.arange(size, dtype=np.float32)
        (found,) = session.run(["y"], {"x": x.reshape(1, 1, -1, 1)})
        np.testing.assert_array_equal(found.ravel(), np.pad(x, 7, mode="symmetric"))
