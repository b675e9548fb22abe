"""Resizing against Pillow's own numbers (golden) and a float64 kernel written out here."""

from pathlib import Path

import numpy as np
import pytest

from tfcorr.imaging import resize

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "data_prep.npz") as file:
        return dict(file)


def bicubic_matrix(source: int, target: int) -> np.ndarray:
    """(target, source) float64: Keys' kernel, a = -0.5, widened to reduce, normalised at the borders."""
    scale = source / target
    support = max(scale, 1.0)
    matrix = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * scale
        x = np.abs((np.arange(source) + 0.5 - centre) / support)
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        matrix[row] = np.where(x < 1, near, np.where(x < 2, far, 0))
    return matrix / matrix.sum(axis=1, keepdims=True)


def brute_force(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = bicubic_matrix(image.shape[0], size[0]), bicubic_matrix(image.shape[1], size[1])
    return np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns)


def test_golden_down_and_up(golden):
    np.testing.assert_array_equal(resize.downscale(golden["pil/hr"]), golden["pil/lr"])
    np.testing.assert_array_equal(resize.upscale(golden["pil/lr"]), golden["pil/up"])


@pytest.mark.parametrize("case", ["test_padded", "test_same_size"])
def test_golden_test_protocol(golden, case):
    image = resize.crop_to_multiple(golden[f"{case}/input_rgb_uint8"])
    reference = resize.crop_to_multiple(golden[f"{case}/ref_rgb_uint8"])
    assert list(image.shape[:2]) == list(golden[f"{case}/original_size"])
    common = tuple(np.maximum(image.shape, reference.shape)[:2])
    padded = resize.pad_to_size(image, common)
    low = resize.downscale(padded)
    for name, ours in {
        "img_in": image,
        "img_in_lq": low,
        "img_in_up": resize.upscale(low),
        "img_ref": resize.pad_to_size(reference, common),
    }.items():
        np.testing.assert_array_equal(ours, np.rint(golden[f"{case}/{name}"].transpose(1, 2, 0) * 255))


@pytest.mark.parametrize("size", [(7, 9), (60, 44), (1, 1), (23, 31)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_against_float64_kernel(size, dtype, channels):
    random = np.random.default_rng(0)
    peak = 1.0 if dtype == np.float32 else np.iinfo(dtype).max
    # Away from the ends of the range: Pillow's 8-bit code clips between its two passes.
    image = ((0.25 + 0.5 * random.random((23, 31, channels))) * peak).astype(dtype)
    ours = resize.resize_bicubic(image, size)
    assert ours.dtype == dtype and ours.shape == (*size, channels)
    expected = brute_force(image, size)
    if dtype == np.float32:
        np.testing.assert_allclose(ours, expected, atol=2e-6)
    else:
        # Pillow's 8-bit code also rounds between the two passes.
        np.testing.assert_allclose(ours, np.clip(expected, 0, peak), atol=2.0 if dtype == np.uint8 else 0.51)


def test_extreme_values_do_not_wrap_around():
    edge = np.zeros((16, 16), np.uint16)
    edge[:, 8:] = 65535
    up = resize.upscale(edge)
    assert up[:, :24].max() < 10000 and up[:, 40:].min() > 55000
    as_float = resize.upscale(edge.astype(np.float32) / 65535)
    assert as_float.min() < 0 and as_float.max() > 1


def test_two_axes_and_views():
    image = np.random.default_rng(1).integers(0, 256, (20, 24, 3), np.uint8)
    plane = resize.resize_bicubic(image[..., 1], (5, 6))
    np.testing.assert_array_equal(plane, resize.resize_bicubic(image, (5, 6))[..., 1])
    flipped = resize.resize_bicubic(image[:, ::-1], (5, 6))
    np.testing.assert_array_equal(flipped, resize.resize_bicubic(image[:, ::-1].copy(), (5, 6)))


def test_downscale_cuts_the_remainder():
    image = np.random.default_rng(2).integers(0, 256, (21, 26, 3), np.uint8)
    np.testing.assert_array_equal(resize.downscale(image), resize.downscale(image[:20, :24]))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: resize.resize_bicubic(np.zeros((4, 4), np.int64), (2, 2)), TypeError, "int64"),
        (lambda: resize.resize_bicubic(np.zeros((4,), np.uint8), (2, 2)), ValueError, r"\(4,\)"),
        (lambda: resize.resize_bicubic(np.zeros((0, 4), np.uint8), (2, 2)), ValueError, "non-empty"),
        (lambda: resize.resize_bicubic(np.zeros((4, 4), np.uint8), (0, 2)), ValueError, r"\(0, 2\)"),
        (lambda: resize.downscale(np.zeros((3, 9), np.uint8)), ValueError, "3x9"),
        (lambda: resize.crop_to_multiple(np.zeros((3, 9), np.uint8), 0), ValueError, "at least 1"),
        (lambda: resize.pad_to_size(np.zeros((3, 9), np.uint8), (4, 8)), ValueError, r"\(4, 8\)"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()
