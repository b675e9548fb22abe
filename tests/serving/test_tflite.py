"""TFLite files, executed by LiteRT's interpreter."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf

from tfcorr.refsr.predictor import SuperResolver
from tfcorr.serving import tflite
from tfcorr.serving.export import trial_image
from tfcorr.serving.files import ExportError
from tfcorr.serving.runtimes import load

pytest.importorskip("ai_edge_litert", reason="needs the extra 'tflite'")

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def upscaler(tiny_model_folder):
    return SuperResolver.from_pretrained(tiny_model_folder, memory=10**9)


def exported(upscaler, folder, **options):
    tflite.export_super_resolution(upscaler.model, folder, **options)
    content = (folder / "model.tflite").read_bytes()
    kinds = [kind for kind, _ in tflite.operators(content)]
    assert not {"CUSTOM", "DELEGATE"} & set(kinds), "only built-in operators"
    return content, kinds


def quantized_outputs(content: bytes) -> dict[str, set[str]]:
    """Kind of operator -> names of its int8 outputs."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
    found = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            tensor = graph.tensors[operator.outputs[0]]
            if tensor.type == schema.TensorType.INT8:
                kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
                found.setdefault(kind, set()).add(tensor.name.decode())
    return found


def test_float32_of_any_size(upscaler, tmp_path):
    exported(upscaler, tmp_path)
    run = load(tmp_path, threads=1)
    for size, reference_size in [((1, 1), (1, 2)), ((5, 3), (20, 33)), ((36, 17), (44, 150))]:
        lr, reference = trial_image(*size, seed=0), trial_image(*reference_size, seed=1)
        found = run(lr=lr, reference=reference)
        expected = upscaler.upscale(lr, reference, details=True)
        np.testing.assert_allclose(found["image"], expected.image, atol=1e-3)
        np.testing.assert_allclose(found["confidence"], expected.confidence, atol=1e-3)


@pytest.mark.slow
def test_runs_without_tensorflow(upscaler, tmp_path):
    exported(upscaler, tmp_path / "export", size=(8, 9), reference_size=(32, 36))
    lr, reference = trial_image(8, 9, seed=0), trial_image(32, 36, seed=1)
    np.savez(tmp_path / "in.npz", lr=lr, reference=reference)
    code = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from tfcorr.serving.runtimes import load
with np.load("in.npz") as arrays:
    np.save("out.npy", load(sys.argv[1])(**arrays)["image"])
assert not {"tensorflow", "keras"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, tmp_path / "export", REPOSITORY],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), upscaler.upscale(lr, reference), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "smaller", "tolerance"), [("float16", 0.6, 0.01), ("int8-dynamic", 0.45, 0.05)]
)
def test_small_weights(upscaler, tmp_path, precision, smaller, tolerance):
    sizes = {"size": (16, 20), "reference_size": (64, 80)}
    float32, _ = exported(upscaler, tmp_path / "float32", **sizes)
    content, _ = exported(upscaler, tmp_path / precision, precision=precision, **sizes)
    assert len(content) < smaller * len(float32)
    lr, reference = trial_image(16, 20, seed=0), trial_image(64, 80, seed=1)
    image = load(tmp_path / precision, threads=1)(lr=lr, reference=reference)["image"]
    difference = np.abs(image - upscaler.upscale(lr, reference)).mean()
    assert 0 < difference < tolerance


@pytest.mark.slow
def test_int8_quantises_the_convolutions_alone(upscaler, tmp_path):
    pairs = [(trial_image(12, 12, seed=s), trial_image(48, 48, seed=s)) for s in range(2)]
    content, kinds = exported(upscaler, tmp_path, precision="int8", representative=pairs)
    found = quantized_outputs(content)
    # What has int8 on both sides may stand between two convolutions: it moves values and computes nothing.
    assert set(found) <= {"CONV_2D", "QUANTIZE", "DEPTH_TO_SPACE", "MAX_POOL_2D", "PAD", "RESHAPE", "RELU"}
    in_float = ("conv_offset_mask", "gate", "tail_large2")
    assert not [name for name in found["CONV_2D"] if any(part in name for part in in_float)]
    assert any("input_extractor" in n for n in found["CONV_2D"])
    assert any("offset_conv1" in n for n in found["CONV_2D"])
    assert len(found["CONV_2D"]) >= 0.8 * kinds.count("CONV_2D")
    lr, reference = trial_image(12, 15, seed=5), trial_image(50, 60, seed=6)
    image = load(tmp_path, threads=1)(lr=lr, reference=reference)["image"]
    assert 0 < np.abs(image - upscaler.upscale(lr, reference)).mean() < 0.05


def test_representative_pairs(tmp_path):
    random = np.random.default_rng(0)
    for number, size in enumerate([(300, 250, 3), (40, 50, 3), (3, 90, 3)]):
        cv2.imwrite(str(tmp_path / f"{number}.png"), random.integers(0, 256, size, dtype=np.uint8))
    (tmp_path / "notes.txt").write_text("no photograph")
    pairs = tflite.representative_pairs(tmp_path)
    assert [lr.shape for lr, _ in pairs] == [(32, 32, 3), (10, 12, 3), (1, 22, 3)]
    assert [r.shape for _, r in pairs] == [(128, 128, 3), (4, 88, 3), (4, 88, 3)]
    fixed = tflite.representative_pairs(tmp_path, (9, 11), (36, 44))
    for lr, reference in fixed:
        assert (lr.shape, reference.shape) == ((9, 11, 3), (36, 44, 3))
        assert lr.dtype == reference.dtype == np.float32
        assert 0 <= min(lr.min(), reference.min()) <= max(lr.max(), reference.max()) <= 1
    with pytest.raises(ExportError, match="not a folder"):
        tflite.representative_pairs(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match="no photographs"):
        tflite.representative_pairs(tmp_path / "empty")


def test_refusals(upscaler, tmp_path):
    with pytest.raises(ExportError, match="int8 needs a representative set"):
        tflite.export_super_resolution(upscaler.model, tmp_path, precision="int8")
    with pytest.raises(ExportError, match="precision is 'int4', expected one of float32"):
        tflite.convert(lambda x: {"y": x}, [tf.TensorSpec((1,), tf.float32, "x")], [], precision="int4")


def test_an_operator_without_a_built_in_form(tmp_path):
    with pytest.raises(ExportError, match="no built-in operator for a part of this model: MatrixDeterminant"):
        tflite.convert(lambda x: {"y": tf.linalg.det(x)}, [tf.TensorSpec((2, 2), tf.float32, "x")], [])
