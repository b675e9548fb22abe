"""`.export()` and `tfcorr export`."""

import json

import numpy as np
import pytest

from tfcorr.cli import main
from tfcorr.refsr.predictor import SuperResolver
from tfcorr.serving import export as export_module
from tfcorr.serving import runtimes
from tfcorr.serving.export import trial_image
from tfcorr.serving.files import ExportError


@pytest.fixture(scope="module")
def upscaler(tiny_model_folder):
    return SuperResolver.from_pretrained(tiny_model_folder, memory=10**9)


def test_method_writes_and_tries(upscaler, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    exported = upscaler.export(tmp_path / "a" / "b", format="onnx")
    assert exported.folder == tmp_path / "a" / "b"
    assert exported.size == sum(path.stat().st_size for path in exported.folder.iterdir())
    assert exported.difference < 1e-3
    information = json.loads((exported.folder / "export.json").read_text())
    assert information["model"] == "tiny"
    assert information["licence"] == "Apache-2.0"
    assert information["format"] == "onnx"
    assert information["checksums"] == upscaler.card.checksums


def test_an_export_that_differs_is_not_written(upscaler, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    load = runtimes.load

    def load_wrong(folder, threads=None):
        run = load(folder, threads)
        return lambda **inputs: {"image": run(**inputs)["image"] + np.float32(0.002)}

    monkeypatch.setattr(runtimes, "load", load_wrong)
    with pytest.raises(ExportError, match=r"not written, since its result for a trial pair is 0\.002 away"):
        upscaler.export(tmp_path / "x", format="onnx")
    assert not list(tmp_path.iterdir())
    assert upscaler.export(tmp_path / "x", format="onnx", verify=False).difference is None


def test_an_export_is_compared_with_what_its_graph_computes(upscaler, tmp_path):
    """Not with eight views, nor with a reference that was reduced to fit the memory."""
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    frugal = SuperResolver(upscaler.model, card=upscaler.card, memory=10**6, self_ensemble=True)
    assert frugal.export(tmp_path / "x", format="onnx").difference < 1e-4


def test_without_the_package_for_onnx(upscaler, tmp_path, monkeypatch):
    monkeypatch.setattr("tfcorr.serving.export.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r'pip install "tfcorr\[onnx\]"'):
        upscaler.export(tmp_path / "x", format="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "caffe"}, "format is 'caffe', expected one of saved_model, tflite, onnx"),
        ({"variant": "fast"}, "variant is 'fast'"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"format": "onnx", "variant": "custom"}, "'custom' is one of SavedModels"),
        ({"precision": "float16"}, "'float16' is one of tflite"),
        ({"size": (8, 8)}, "takes images of any size"),
        ({"format": "tflite", "precision": "int8"}, "representative folder"),
        ({"format": "tflite", "representative": "photos"}, "representative folder"),
        ({"format": "tflite", "reference_size": (8, 8)}, "needs a fixed size of the input"),
    ],
)
def test_refused_options(upscaler, tmp_path, options, message):
    with pytest.raises(ExportError, match=message):
        upscaler.export(tmp_path / "x", **options)
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_refused(tiny_model_folder, tmp_path):
    upscaler = SuperResolver.from_pretrained(tiny_model_folder, precision="bfloat16")
    with pytest.raises(ExportError, match="precision='float32'"):
        upscaler.export(tmp_path / "x")


def test_trial_images_are_images():
    image = trial_image(10, 13, seed=0)
    assert image.shape == (10, 13, 3)
    assert image.dtype == np.float32
    assert 0 <= image.min() < 0.3 < 0.7 < image.max() <= 1
    np.testing.assert_array_equal(image, trial_image(10, 13, seed=0))
    assert np.abs(image - trial_image(10, 13, seed=1)).max() > 0.3


def test_without_the_runtime_it_is_written_and_told(upscaler, tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="needs the extra 'onnx'")

    def load(folder, threads=None):
        raise ExportError("needs a package")

    monkeypatch.setattr(runtimes, "load", load)
    exported = upscaler.export(tmp_path / "x", format="onnx")
    assert exported.difference is None
    assert exported.notes == ("not tried: needs a package",)


def test_command(tiny_model_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    target = tmp_path / "out"
    command = ["export", str(tiny_model_folder), "--output", str(target), "--format", "onnx"]
    status = main([*command, "--size", "9x11", "--reference-size", "36x40"])
    told, error = capsys.readouterr()
    assert (status, error) == (0, "")
    assert told.startswith(f"{target}: written, ")
    assert "from the Python prediction on a trial pair" in told
    information = json.loads((target / "export.json").read_text())
    assert information["size"] == [9, 11]
    assert information["reference_size"] == [36, 40]
    assert main(command) == 1
    assert "exists already; give another folder, or --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--no-verify"]) == 0
    assert "size" not in json.loads((target / "export.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onnx", "--variant", "custom"], "--variant custom goes with --format saved_model only"),
        (["--precision", "float16"], "--precision float16 goes with --format tflite only"),
        (["--size", "8x8"], "leave out --size"),
        (["--format", "tflite", "--reference-size", "8x8"], "goes with a fixed --size"),
        (["--format", "tflite", "--precision", "int8"], "needs --representative DIR"),
        (["--format", "tflite", "--representative", "."], "goes with --precision int8 only"),
    ],
)
def test_wrong_calls(tiny_model_folder, tmp_path, capsys, arguments, message):
    assert main(["export", str(tiny_model_folder), "--output", str(tmp_path / "x"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("text", ["8", "0x8", "8x", "wide", "8x70000"])
def test_wrong_sizes(tmp_path, capsys, text):
    with pytest.raises(SystemExit) as caught:
        main(["export", "m", "--output", str(tmp_path / "x"), "--size", text])
    assert caught.value.code == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err


def test_no_export_there(tmp_path):
    with pytest.raises(ExportError, match="holds no export"):
        runtimes.load(tmp_path)


@pytest.mark.slow
def test_the_shipped_model(tmp_path):
    """Every format of the default model agrees with it; the export itself checks that."""
    upscaler = SuperResolver.from_pretrained()
    assert upscaler.export(tmp_path / "saved_model").difference < export_module.TOLERANCE
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    compact = SuperResolver.from_pretrained("c2-compact")  # the default has parts that ONNX is not told of
    assert compact.export(tmp_path / "onnx", format="onnx").difference < export_module.TOLERANCE
    pytest.importorskip("ai_edge_litert", reason="needs the extra 'tflite'")
    exported = upscaler.export(tmp_path / "tflite", format="tflite", size=(24, 32))
    assert exported.difference < export_module.TOLERANCE
