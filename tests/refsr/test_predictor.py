import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import tfcorr.refsr.predictor as predictor_module
from tfcorr.errors import InputError
from tfcorr.refsr.memory import MemoryPlan, is_out_of_memory
from tfcorr.refsr.predictor import SuperResolver


@pytest.fixture(scope="module")
def upscaler(tiny_model_folder):
    return SuperResolver.from_pretrained(tiny_model_folder, memory=10**9)


def texture(height, width, seed=0):
    """A smooth random RGB image, uint8: neighbouring places differ, and no two are alike."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (height // 3 + 2, width // 3 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def reduced_mean(image):
    """Mean colour as seen at the input's size: Pillow's reduction by 4."""
    small = Image.fromarray(image).resize(
        (image.shape[1] // 4, image.shape[0] // 4), Image.Resampling.BICUBIC
    )
    return np.asarray(small, np.float64).mean(axis=(0, 1))


def with_tiles(upscaler, tile):
    """The same model with a budget whose tiles have this side."""
    other = SuperResolver(upscaler.model, confidence_threshold=upscaler.confidence_threshold, memory=10**9)
    per_pixel = other._memory.tile_bytes
    other._memory = MemoryPlan(2 * per_pixel * tile**2, per_pixel, reference_bytes=1)
    return other


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (33, 20)])
@pytest.mark.parametrize("reference_size", [(1, 1), (11, 13), (50, 41)])
def test_any_sizes(upscaler, size, reference_size):
    result = upscaler.upscale(texture(*size), texture(*reference_size, seed=1), details=True)
    assert result.image.shape == (4 * size[0], 4 * size[1], 3)
    assert result.image.dtype == np.uint8
    assert result.correspondence.shape == (*size, 3)
    assert result.correspondence.dtype == np.int32
    assert (result.correspondence >= 0).all()
    assert (result.correspondence[..., 1:] < reference_size).all()
    assert result.confidence.shape == size
    assert result.confidence.dtype == np.float32
    assert 0 <= result.confidence.min() <= result.confidence.max() <= 1
    assert result.used_share == np.mean(result.confidence >= upscaler.confidence_threshold)


def test_dtypes_agree(upscaler):
    image, reference = texture(12, 15), texture(40, 60, seed=1)
    as_float = upscaler.upscale(image.astype(np.float32) / np.float32(255), reference)
    assert as_float.dtype == np.float32
    assert 0 <= as_float.min() <= as_float.max() <= 1
    as_8bit = upscaler.upscale(image, reference)
    np.testing.assert_allclose(as_8bit / 255, as_float, atol=0.501 / 255)
    as_16bit = upscaler.upscale(image.astype(np.uint16) * 257, reference.astype(np.uint16) * 257)
    assert as_16bit.dtype == np.uint16
    np.testing.assert_allclose(as_16bit / 65535, as_float, atol=1e-4)


def test_dark_16bit_is_not_taken_for_8_bits(upscaler):
    dark = texture(9, 9).astype(np.uint16)  # no value above 255
    as_float = upscaler.upscale(dark / np.float32(65535))
    np.testing.assert_allclose(upscaler.upscale(dark) / 65535, as_float, atol=1e-4)


def test_greyscale_comes_back_as_it_was(upscaler):
    grey, reference = texture(10, 12)[..., 0], texture(40, 60, seed=1)
    flat = upscaler.upscale(grey, reference)
    assert flat.shape == (40, 48)
    with_axis = upscaler.upscale(grey[..., None], reference[..., :1])
    assert with_axis.shape == (40, 48, 1)
    colour = upscaler.upscale(np.repeat(grey[..., None], 3, axis=2), reference)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(flat, luma, atol=1.1)


def test_own_copy_is_found(upscaler):
    image = texture(24, 20)
    up = upscaler.model.correspondence.upsampling(image[None] / np.float32(255))
    copy = np.clip(keras.ops.convert_to_numpy(up)[0], 0, 1)
    result = upscaler.upscale(image, copy, details=True)
    y, x = np.mgrid[:24, :20]
    expected = np.stack([np.zeros_like(y), 4 * y + 2, 4 * x + 2], axis=-1)
    np.testing.assert_array_equal(result.correspondence, expected)
    np.testing.assert_allclose(result.confidence, 1, atol=1e-4)
    assert result.used_share == 1

    # The same two rows of cells further down and one column further right.
    moved = np.pad(copy, ((8, 0), (4, 0), (0, 0)), mode="reflect")
    result = upscaler.upscale(image, moved, details=True)
    inside = (slice(6, -6), slice(6, -6))
    np.testing.assert_array_equal(
        (result.correspondence - expected)[inside], np.broadcast_to([0, 8, 4], (12, 8, 3))
    )


def test_each_patch_takes_the_best_reference(upscaler):
    image = texture(20, 32)
    up = upscaler.model.correspondence.upsampling(image[None] / np.float32(255))
    copy = np.clip(keras.ops.convert_to_numpy(up)[0], 0, 1)
    left, right = copy[:, :72], copy[:, 56:]
    result = upscaler.upscale(image, [texture(30, 30, seed=5), left, right], details=True)
    number = result.correspondence[..., 0]
    assert (number[4:-4, 2:12] == 1).all()
    assert (number[4:-4, 20:-2] == 2).all()
    assert (result.correspondence[4:-4, 20:-2, 2] == 4 * np.arange(20, 30) + 2 - 56).all()
    alone = [upscaler.upscale(image, one, details=True).confidence for one in (left, right)]
    assert (result.confidence >= np.maximum(*alone) - 1e-5).all()
    # A reference that is never chosen still stands in the map; the result is that of the other one by itself.
    alone = upscaler.upscale(image, copy)
    both = upscaler.upscale(image, [copy, np.zeros((16, 16, 3), np.float32)])
    np.testing.assert_allclose(both[20:-20, 20:-20], alone[20:-20, 20:-20], atol=1)


def test_the_reference_matters_and_none_is_fine(upscaler):
    image = texture(20, 20)
    own = upscaler.upscale(image)
    np.testing.assert_array_equal(own, upscaler.upscale(image, []))
    np.testing.assert_array_equal(own, upscaler.upscale(image, image))
    other = upscaler.upscale(image, texture(80, 80, seed=3))
    assert np.abs(own.astype(int) - other).mean() > 1


def test_result_does_not_depend_on_tiles(upscaler):
    image, reference = texture(70, 90), texture(75, 100, seed=1)
    whole = upscaler.upscale(image.astype(np.float32) / np.float32(255), reference, details=True)
    assert upscaler._memory.tile(70, 90) == (70, 90)
    tiled = with_tiles(upscaler, 40).upscale(
        image.astype(np.float32) / np.float32(255), reference, details=True
    )
    np.testing.assert_array_equal(tiled.correspondence, whole.correspondence)
    np.testing.assert_allclose(tiled.confidence, whole.confidence, atol=1e-5)
    assert np.mean(np.abs(tiled.image - whole.image) <= 1 / 255) >= 0.999


def test_reference_features_do_not_depend_on_tiles(upscaler):
    image = texture(92, 108).astype(np.float32) / np.float32(255)
    whole = upscaler._extract_in_tiles(image, (256, 256))
    tiled = upscaler._extract_in_tiles(image, (32, 48))
    assert whole.keys() == tiled.keys()
    for name in whole:
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(tiled[name]), keras.ops.convert_to_numpy(whole[name]), atol=1e-4
        )


def test_smaller_tiles_when_memory_runs_out(upscaler, monkeypatch):
    tf = pytest.importorskip("tensorflow")
    image, reference = texture(60, 50), texture(60, 50, seed=1)
    expected = with_tiles(upscaler, 40).upscale(image, reference)
    starved = with_tiles(upscaler, 80)
    restore, sides = starved._restore, []

    def fails_when_large(lr, *rest):
        sides.append(max(lr.shape[1:3]))
        if sides[-1] > 40:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return restore(lr, *rest)

    monkeypatch.setattr(starved, "_restore", fails_when_large)
    np.testing.assert_array_equal(starved.upscale(image, reference), expected)
    assert sides[0] > 40 >= sides[-1]

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(starved, "_restore", fails)
    with pytest.raises(MemoryError, match="smallest tiles"):
        starved.upscale(image, reference)

    def breaks(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(starved, "_restore", breaks)
    with pytest.raises(ZeroDivisionError):
        starved.upscale(image, reference)


def test_what_counts_as_out_of_memory():
    tf = pytest.importorskip("tensorflow")
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_large_references_are_reduced_to_the_budget(upscaler):
    frugal = SuperResolver(upscaler.model, memory=10**7)
    prepared = frugal.prepare(texture(300, 400, seed=1))
    assert 0 < prepared.reduction < 1
    assert prepared.sizes[0][0] * prepared.sizes[0][1] <= frugal._memory.reference_pixels
    result = frugal.upscale(texture(12, 12), prepared, details=True)
    assert (result.correspondence[..., 1:] < (300, 400)).all()
    assert result.correspondence[..., 1:].max() > max(prepared.sizes[0])


def test_references_are_prepared_once(upscaler, monkeypatch):
    calls = []
    extract = upscaler._extract
    monkeypatch.setattr(upscaler, "_extract", lambda image: calls.append(1) or extract(image))
    reference = texture(40, 40, seed=11).copy()
    first = upscaler.upscale(texture(9, 9), reference)
    upscaler.upscale(texture(8, 10, seed=1), reference)
    upscaler.upscale(texture(8, 10, seed=1), [reference.copy()])
    assert len(calls) == 1
    np.testing.assert_array_equal(upscaler.upscale(texture(9, 9), upscaler.prepare(reference)), first)
    assert len(calls) == 1
    reference[:] = 255 - reference  # the same array with other content is another reference
    assert (upscaler.upscale(texture(9, 9), reference) != first).any()
    assert len(calls) == 2


def test_an_index_is_made_once_for_a_reference(upscaler, monkeypatch):
    made = []
    index = predictor_module.ReferenceIndex
    monkeypatch.setattr(
        predictor_module, "ReferenceIndex", lambda *args, **kwargs: made.append(1) or index(*args, **kwargs)
    )
    coarse = SuperResolver(upscaler.model, memory=10**9, matching="coarse_to_fine")
    references = [texture(60, 70, seed=1), texture(40, 90, seed=2)]
    for seed in range(2):
        image = texture(20, 17, seed=seed)
        found = coarse.upscale(image, references, details=True)
        exact = upscaler.upscale(image, references, details=True)
        same = (found.correspondence == exact.correspondence).all(axis=-1)
        assert same.mean() > 0.9
        assert np.abs(found.confidence - exact.confidence).max() < 0.05
    assert len(made) == 2


def test_large_images_are_matched_coarse_to_fine(upscaler, monkeypatch):
    def searches(matching, pairs):
        monkeypatch.setattr(predictor_module, "WORTHWHILE_PAIRS", pairs)
        used = SuperResolver(upscaler.model, memory=10**9, matching=matching)
        prepared = used.prepare(texture(40, 48, seed=1))
        used.upscale(texture(10, 11), prepared)
        return len(prepared.indexes)

    pairs = 8 * 9 * 8 * 10  # of patches of the input and of the reference's 10x12 cells
    assert searches("auto", pairs + 1) == 0
    assert searches("auto", pairs) == 1
    assert searches("exact", 1) == 0
    assert searches("coarse_to_fine", pairs + 1) == 1


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="traces are TensorFlow's")
def test_other_sizes_do_not_trace_again(tiny_model_folder):
    upscaler = SuperResolver.from_pretrained(tiny_model_folder)
    for size in ((9, 9), (12, 17), (30, 11)):
        upscaler.upscale(texture(*size), [texture(40, 30), texture(20, 50)])
    for function in (upscaler._describe, upscaler._extract, upscaler._restore):
        assert function.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("tint", [(1.0, 0.6, 0.3), (0.2, 0.5, 1.0)])
def test_a_tinted_reference_does_not_tint(upscaler, tint):
    image = texture(32, 32)
    reference = np.rint(texture(128, 128, seed=2) * np.array(tint)).astype(np.uint8)
    upscaled = upscaler.upscale(image, reference)
    np.testing.assert_allclose(reduced_mean(upscaled), image.mean(axis=(0, 1)), atol=1)


def test_self_ensemble_turns_with_the_image(upscaler):
    ensemble = SuperResolver(upscaler.model, memory=10**9, self_ensemble=True)
    image = texture(14, 11).astype(np.float32) / np.float32(255)
    reference = texture(24, 20, seed=1).astype(np.float32) / np.float32(255)
    upright = ensemble.upscale(image, reference)
    turned = ensemble.upscale(np.rot90(image), np.rot90(reference))
    np.testing.assert_allclose(np.rot90(upright), turned, atol=2e-3)
    assert np.abs(upright - upscaler.upscale(image, reference)).max() > 0.01


def test_progress_reaches_the_end(upscaler):
    seen = []
    tiled = with_tiles(upscaler, 32)
    tiled.upscale(texture(60, 20), texture(30, 30), progress=lambda done, steps: seen.append((done, steps)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {steps for _, steps in seen} == {len(seen)}


def test_bfloat16_is_close(upscaler, tiny_model_folder):
    quick = SuperResolver.from_pretrained(tiny_model_folder, precision="bfloat16")
    image = texture(16, 16)
    up = upscaler.model.correspondence.upsampling(image[None] / np.float32(255))
    copy = np.clip(keras.ops.convert_to_numpy(up)[0], 0, 1)
    exact = upscaler.upscale(image, copy).astype(int)
    assert np.abs(quick.upscale(image, copy) - exact).mean() < 4


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"low_res has shape \(4, 4, 4\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "low_res has shape"),
        (np.zeros((0, 4, 3), np.uint8), "low_res has shape"),
        (np.zeros((4, 4, 3), np.float64), "low_res has dtype float64"),
        (np.zeros((4, 4, 3), bool), "low_res has dtype bool"),
        (np.full((4, 4, 3), 1.5, np.float32), "values from 1.5 to 1.5"),
        (np.full((4, 4, 3), np.nan, np.float32), "values from nan"),
    ],
)
def test_unusable_images_are_refused(upscaler, image, message):
    with pytest.raises(InputError, match=message):
        upscaler.upscale(image)
    with pytest.raises(InputError, match=message.replace("low_res", "reference 1")):
        upscaler.upscale(texture(4, 4), [texture(16, 16), image])


def test_unusable_arguments_are_refused(upscaler, tiny_model_folder):
    with pytest.raises(InputError, match="memory is -1"):
        SuperResolver(upscaler.model, memory=-1)
    with pytest.raises(InputError, match="confidence_threshold is 2"):
        SuperResolver(upscaler.model, confidence_threshold=2)
    with pytest.raises(InputError, match="matching is 'near', expected one of auto, exact, coarse_to_fine"):
        SuperResolver(upscaler.model, matching="near")
    with pytest.raises(InputError, match="precision is 'float16'"):
        SuperResolver.from_pretrained(tiny_model_folder, precision="float16")
    with pytest.raises(InputError, match="threads is 0"):
        SuperResolver.from_pretrained(tiny_model_folder, threads=0)
    other = SuperResolver.from_pretrained(tiny_model_folder)
    with pytest.raises(InputError, match="another model"):
        upscaler.upscale(texture(4, 4), other.prepare(texture(16, 16)))
    with pytest.raises(InputError, match="no reference"):
        upscaler.prepare([])


def test_the_receptive_margins_are_wide_enough(upscaler):
    """A pixel outside the margin never changes a descriptor inside."""
    margin = predictor_module._INPUT_MARGIN
    image = texture(40, 40).astype(np.float32) / np.float32(255)
    before = keras.ops.convert_to_numpy(upscaler._describe(image[None]))[0]
    changed = image.copy()
    changed[:10] = 1 - changed[:10]
    after = keras.ops.convert_to_numpy(upscaler._describe(changed[None]))[0]
    np.testing.assert_allclose(after[10 + margin - 1 :], before[10 + margin - 1 :], atol=1e-6)


def test_another_backend_gives_the_same(upscaler, tiny_model_folder, tmp_path):
    pytest.importorskip("jax")  # Keras' NumPy backend borrows its convolutions
    image, reference = texture(9, 8), texture(24, 20, seed=1)
    np.savez(tmp_path / "images.npz", image=image, reference=reference)
    code = (
        "import sys, numpy as np\n"
        "from tfcorr import SuperResolver\n"
        "images = np.load(sys.argv[2])\n"
        "upscaler = SuperResolver.from_pretrained(sys.argv[1])\n"
        "result = upscaler.upscale(images['image'], images['reference'])\n"
        "assert 'tensorflow' not in sys.modules\n"
        "np.save(sys.argv[3], result)\n"
    )
    arguments = [str(tiny_model_folder), str(tmp_path / "images.npz"), str(tmp_path / "result.npy")]
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        cwd=Path(predictor_module.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    expected = upscaler.upscale(image, reference).astype(int)
    np.testing.assert_allclose(np.load(tmp_path / "result.npy"), expected, atol=1)
