"""Exported SavedModels: the same images as the predictor gives, in a process that knows nothing of tfcorr."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfcorr.ops import library
from tfcorr.refsr.predictor import SuperResolver
from tfcorr.serving.checks import Limits
from tfcorr.serving.files import ExportError, new_folder
from tfcorr.serving.saved_model import export_super_resolution
from tfcorr.serving.warmup import WARMUP_FILE

# Less than the warm-up would take otherwise.
LIMITS = Limits(pixels=1000, reference_pixels=6000, references=3)
# Below the smallest sizes that the networks take, odd, and of several tiles of patches.
SIZES = [((1, 1), (1, 2)), ((3, 5), (17, 9)), ((8, 8), (32, 32)), ((21, 14), (40, 83)), ((24, 40), (70, 72))]

# Runs with TensorFlow alone: predictions for the arrays in one file, into another.
RUN = """
import sys
import numpy as np
import tensorflow as tf

model = tf.saved_model.load(sys.argv[1])
inputs = np.load(sys.argv[2])
outputs = {}
for number in range(len(inputs.files) // 2):
    found = model.signatures["serving_default"](
        lr=tf.constant(inputs[f"lr{number}"]), reference=tf.constant(inputs[f"reference{number}"])
    )
    outputs.update({f"{name}{number}": value.numpy() for name, value in found.items()})
np.savez(sys.argv[3], **outputs)
assert not [name for name in sys.modules if name.split(".")[0] == "tfcorr"]
"""


def image(height, width, seed=0):
    """A random float image (height, width, 3), smooth enough for places to be alike."""
    small = np.random.default_rng(seed).random((height // 3 + 2, width // 3 + 2, 3), dtype=np.float32)
    return tf.image.resize(small, (height, width)).numpy()


@pytest.fixture(scope="module")
def upscaler(tiny_model_folder):
    return SuperResolver.from_pretrained(tiny_model_folder, memory=10**9)


@pytest.fixture(scope="module")
def folder(upscaler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "models" / "tiny" / "1"
    export_super_resolution(upscaler.model, folder, name="tiny", limits=LIMITS, information={"model": "tiny"})
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return tf.saved_model.load(str(folder))


def serve(loaded, lr, reference):
    return loaded.signatures["serving_default"](
        lr=tf.constant(lr, tf.float32), reference=tf.constant(reference, tf.float32)
    )


def run_alone(code, *arguments, cwd):
    """A fresh interpreter, away from the source tree and without its path."""
    return subprocess.run(
        [sys.executable, "-I", "-c", code, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=560,
    )


def test_fresh_process_without_tfcorr(folder, upscaler, tmp_path):
    arrays, expected = {}, []
    for number, (size, reference_size) in enumerate(SIZES):
        lr, reference = image(*size, seed=number), image(*reference_size, seed=number + 10)
        arrays |= {f"lr{number}": lr[None], f"reference{number}": reference[None]}
        expected.append(upscaler.upscale(lr, reference, details=True))
    np.savez(tmp_path / "in.npz", **arrays)
    done = run_alone(RUN, folder, tmp_path / "in.npz", tmp_path / "out.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "out.npz") as found:
        for number, result in enumerate(expected):
            np.testing.assert_allclose(found[f"image{number}"][0], result.image, atol=1e-3)
            np.testing.assert_allclose(found[f"confidence{number}"][0], result.confidence, atol=1e-3)


@pytest.mark.slow
def test_saved_model_cli(folder, upscaler, tmp_path):
    command = [str(Path(sys.executable).with_name("saved_model_cli"))]
    shown = subprocess.run(
        [*command, "show", "--dir", folder, "--all"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert shown.returncode == 0, shown.stderr[-2000:]
    for name in ("serving_default", "from_bytes", "png_bytes", "confidence"):
        assert f"['{name}']" in shown.stdout
    lr, reference = image(6, 7), image(20, 24, seed=1)
    np.save(tmp_path / "lr.npy", lr[None])
    np.save(tmp_path / "reference.npy", reference[None])
    inputs = ";".join(f"{name}={tmp_path}/{name}.npy" for name in ("lr", "reference"))
    options = ["--tag_set", "serve", "--signature_def", "serving_default", "--inputs", inputs]
    ran = subprocess.run(
        [*command, "run", "--dir", folder, *options, "--outdir", tmp_path / "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = np.load(tmp_path / "out" / "image.npy")[0]
    np.testing.assert_allclose(found, upscaler.upscale(lr, reference), atol=1e-3)


def test_portable_means_portable(folder):
    assert b"Tfcorr" not in (folder / "saved_model.pb").read_bytes()


def test_batch(loaded, upscaler):
    lr = np.stack([image(9, 11, seed) for seed in range(3)])
    reference = np.stack([image(30, 26, seed + 5) for seed in range(3)])
    found = serve(loaded, lr, reference)["image"]
    for number in range(3):
        one = upscaler.upscale(lr[number], reference[number])
        np.testing.assert_allclose(found[number], one, atol=1e-3)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_encoded_files(loaded, upscaler, count):
    lr = np.rint(255 * image(12, 10)).astype(np.uint8)
    sizes = [(33, 40), (50, 21), (17, 60)][:count]
    references = [np.rint(255 * image(*size, seed=n + 1)).astype(np.uint8) for n, size in enumerate(sizes)]
    if count > 1:
        # The second one holds the input itself four times larger, so that it has to win somewhere.
        references[1] = tf.cast(tf.repeat(tf.repeat(lr, 4, 0), 4, 1), tf.uint8).numpy()
    files = [tf.io.encode_png(reference) for reference in references]
    found = loaded.signatures["from_bytes"](
        image=tf.io.encode_png(lr), references=tf.constant([f.numpy() for f in files], tf.string)
    )
    decoded = tf.io.decode_png(found["png_bytes"]).numpy()
    expected = upscaler.upscale(lr, references or None)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (48, 40, 3)
    # Rounding may fall to either side.
    assert np.abs(decoded.astype(int) - expected).max() <= 1
    assert np.mean(decoded != expected) < 0.01


def test_jpeg_grey_and_transparent_files(loaded):
    grey = np.rint(255 * image(10, 12)[..., :1]).astype(np.uint8)
    signature = loaded.signatures["from_bytes"]
    files = {
        "jpeg": tf.io.encode_jpeg(grey, quality=100),
        "grey": tf.io.encode_png(grey),
        "grey and alpha": tf.io.encode_png(np.concatenate([grey, grey], -1)),
        "16 bits": tf.io.encode_png(grey.astype(np.uint16) * 257),
    }
    results = {
        name: tf.io.decode_png(signature(image=f, references=tf.constant([], tf.string))["png_bytes"]).numpy()
        for name, f in files.items()
    }
    for name in ("grey and alpha", "16 bits"):
        np.testing.assert_array_equal(results[name], results["grey"])
    assert results["jpeg"].shape == (40, 48, 3)
    assert np.abs(results["jpeg"].astype(int) - results["grey"]).mean() < 4


@pytest.mark.parametrize(
    ("lr", "reference", "sentence"),
    [
        (np.zeros((5, 6, 3)), np.zeros((1, 20, 20, 3)), "lr has shape [5 6 3], expected (batch,"),
        (np.zeros((1, 5, 6, 3)), np.zeros((20, 20, 3)), "reference has shape [20 20 3], expected (batch,"),
        (np.zeros((1, 5, 6, 4)), np.zeros((1, 20, 20, 3)), "lr has shape [1 5 6 4], expected"),
        (np.zeros((1, 0, 6, 3)), np.zeros((1, 20, 20, 3)), "at least 1x1"),
        (np.zeros((0, 5, 6, 3)), np.zeros((0, 20, 20, 3)), "at least 1x1"),
        (np.zeros((1, 32, 32, 3)), np.zeros((1, 20, 20, 3)), "lr has 1024 pixels, expected at most 1000"),
        (
            np.zeros((1, 5, 6, 3)),
            np.zeros((1, 80, 80, 3)),
            "reference has 6400 pixels, expected at most 6000",
        ),
        (np.zeros((2, 5, 6, 3)), np.zeros((1, 20, 20, 3)), "batches of 2 and 1, expected the same"),
        (np.full((1, 5, 6, 3), 255.0), np.zeros((1, 20, 20, 3)), "lr has values from 255 to 255"),
        (np.zeros((1, 5, 6, 3)), np.full((1, 20, 20, 3), np.nan), "reference has values from"),
    ],
)
def test_refused_arrays(loaded, lr, reference, sentence):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        serve(loaded, lr, reference)
    assert "tfcorr: " in caught.value.message
    assert sentence in caught.value.message


def huge_png(width, height):
    """A header that claims a size, without the pixels: it must be refused by the header alone."""
    content = tf.io.encode_png(np.zeros((1, 1, 3), np.uint8)).numpy()
    return content[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:]


@pytest.mark.parametrize(
    ("content", "references", "sentence"),
    [
        (b"", [], "image is no PNG or JPEG file"),
        (b"GIF89a" + bytes(40), [], "image is no PNG or JPEG file"),
        (huge_png(1, 1)[:20], [], "image is no PNG or JPEG file"),
        (huge_png(100_000, 50_000), [], "image has 5000000000 pixels, expected at most 1000"),
        (huge_png(2**32 - 1, 2**32 - 1), [], "pixels, expected at most 1000"),
        (huge_png(1, 0), [], "at least 1x1"),
        (huge_png(1, 1), [huge_png(100, 61)], "a reference has 6100 pixels, expected at most 6000"),
        (
            huge_png(1, 1),
            [huge_png(80, 50), huge_png(60, 50)],
            "the list of references has 7000 pixels, expected at most 6000",
        ),
        (huge_png(1, 1), [b"text"], "a reference is no PNG or JPEG file"),
        (huge_png(1, 1), [huge_png(1, 1)] * 4, "references has 4 files, expected at most 3"),
    ],
)
def test_refused_files(loaded, content, references, sentence):
    with pytest.raises(tf.errors.InvalidArgumentError, match="tfcorr: ") as caught:
        loaded.signatures["from_bytes"](
            image=tf.constant(content), references=tf.constant(references, tf.string)
        )
    assert sentence in caught.value.message


@pytest.mark.slow
def test_two_exports_are_equal(folder, loaded, upscaler, tmp_path):
    export_super_resolution(upscaler.model, tmp_path / "again", name="tiny", limits=LIMITS)
    again = tf.saved_model.load(str(tmp_path / "again"))
    lr, reference = image(20, 30)[None], image(66, 50, seed=1)[None]
    for name, value in serve(loaded, lr, reference).items():
        np.testing.assert_array_equal(value, serve(again, lr, reference)[name])


def test_files_beside_the_graph(folder):
    information = json.loads((folder / "assets.extra" / "export.json").read_text())
    assert information == {"model": "tiny", "signatures": ["from_bytes", "serving_default"]}
    assert {path.name for path in folder.parent.iterdir()} == {"1"}  # nothing is left over


def test_warm_up_requests_run(folder, loaded):
    pytest.importorskip("tensorflow_serving", reason="needs the extra 'serving'")
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    seen = []
    for record in tf.data.TFRecordDataset(str(folder / WARMUP_FILE)):
        request = PredictionLog.FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == "tiny"
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        found = loaded.signatures[request.model_spec.signature_name](**inputs)
        seen.append((request.model_spec.signature_name, sorted(found)))
    assert seen == [("serving_default", ["confidence", "image"]), ("from_bytes", ["png_bytes"])]


@pytest.mark.slow
def test_custom_variant(upscaler, tmp_path):
    if library.load() is None:
        pytest.skip(f"compiled ops: {library.status().reason}")
    export_super_resolution(upscaler.model, tmp_path / "custom", variant="custom")
    lr, reference = image(13, 9), image(50, 44, seed=1)
    found = serve(tf.saved_model.load(str(tmp_path / "custom")), lr[None], reference[None])["image"][0]
    np.testing.assert_allclose(found, upscaler.upscale(lr, reference), atol=1e-3)
    alone = run_alone(
        "import sys, tensorflow as tf; tf.saved_model.load(sys.argv[1])", tmp_path / "custom", cwd=tmp_path
    )
    assert alone.returncode != 0
    assert "Tfcorr>" in alone.stderr  # names the op that is missing
    code = "import sys; sys.path.insert(0, sys.argv[2]); import tfcorr.ops, tensorflow as tf;" + (
        "tf.saved_model.load(sys.argv[1])"
    )
    done = run_alone(code, tmp_path / "custom", Path(__file__).parents[2], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_limits_are_numbers():
    for wrong in ({"pixels": 0}, {"references": 2.0}, {"reference_pixels": True}):
        with pytest.raises(ExportError, match="expected a whole number of at least 1"):
            Limits(**wrong)


def test_unknown_variant(upscaler, tmp_path):
    with pytest.raises(ExportError, match="variant is 'fast', expected one of portable, custom"):
        export_super_resolution(upscaler.model, tmp_path / "x", variant="fast")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_failure(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "export") as part:
        (part / "half").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_only_an_export_is_replaced(tmp_path):
    target = tmp_path / "target"
    with new_folder(target) as part:
        (part / "export.json").write_text("1")
    with pytest.raises(ExportError, match="exists already"), new_folder(target):
        pass
    with new_folder(target, overwrite=True) as part:
        (part / "export.json").write_text("2")
    assert (target / "export.json").read_text() == "2"
    (target / "export.json").rename(target / "letters.txt")
    with pytest.raises(ExportError, match="holds other files"), new_folder(target, overwrite=True):
        pass
    with pytest.raises(ExportError, match="is a file"), new_folder(target / "letters.txt", overwrite=True):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"target"}
