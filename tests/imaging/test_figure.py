"""The explaining figure: it must show what it claims to, for any sizes."""

import numpy as np
import pytest

from tfcorr.imaging.figure import comparison_figure
from tfcorr.imaging.resize import upscale


def inputs(height=30, width=40, references=((100, 140),)):
    random = np.random.default_rng(0)
    low = random.integers(0, 256, (height, width, 3), np.uint8)
    images = [random.integers(0, 256, (*size, 3), np.uint8) for size in references]
    number = random.integers(0, max(1, len(images)), (height, width))
    sizes = np.array([image.shape[:2] for image in images] or [low.shape[:2]])
    place = (random.random((height, width, 2)) * sizes[number]).astype(np.int32)
    correspondence = np.concatenate([number[..., None], place], axis=-1).astype(np.int32)
    return low, upscale(low), images, correspondence, random.random((height, width)).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "references"),
    [
        ((30, 40), ((100, 140),)),
        ((30, 40), ()),
        ((40, 11), ((90, 60), (30, 300), (8, 8))),
        ((1, 1), ((5, 5),)),
        ((3, 200), ((700, 20), (16, 16))),
    ],
)
def test_any_sizes(size, references):
    figure = comparison_figure(*inputs(*size, references), 0.5)
    assert figure.dtype == np.uint8 and figure.ndim == 3 and figure.shape[1] == 1504
    assert figure.shape[0] < 1700


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_depths_look_alike(dtype):
    low, result, images, correspondence, confidence = inputs()
    scale = 257 if dtype == np.uint16 else np.float32(1 / 255)
    deep = [(image.astype(dtype) * scale).astype(dtype) for image in (low, result, *images)]
    np.testing.assert_array_equal(
        comparison_figure(deep[0], deep[1], deep[2:], correspondence, confidence, 0.5),
        comparison_figure(low, result, images, correspondence, confidence, 0.5),
    )


def test_the_detail_is_where_the_result_differs_and_comes_from_its_match():
    """A red square in the result, matched with a red square of the reference: both details are red."""
    low = np.full((40, 40, 3), 128, np.uint8)
    result = np.full((160, 160, 3), 128, np.uint8)
    result[48:80, 96:128] = (255, 0, 0)
    reference = np.full((200, 240, 3), 128, np.uint8)
    reference[16:48, 20:52] = (255, 0, 0)
    y, x = np.mgrid[:40, :40]
    correspondence = np.stack([0 * y, 4 * y - 32 + 2, 4 * x - 76 + 2], axis=-1).astype(np.int32)
    figure = comparison_figure(
        low, result, [reference], correspondence.clip(0), np.ones((40, 40), np.float32), 1.0
    )
    second_row = figure[16 * 2 + 22 + 480 + 25 + 16 :][25 : 25 + 480]
    for number in (1, 2):
        panel = second_row[:, 16 + number * 496 :][:, :480]
        np.testing.assert_array_equal(np.unique(panel.reshape(-1, 3), axis=0), [[255, 0, 0]])


def test_sizes_are_checked():
    low, result, images, correspondence, confidence = inputs()
    with pytest.raises(ValueError, match=r"\(30, 40\).*\(29, 40, 3\)"):
        comparison_figure(low, result, images, correspondence[1:], confidence, 0.5)


def test_truth_stands_beside_the_result():
    rng = np.random.default_rng(5)
    low_res = rng.integers(0, 256, (12, 16, 3), np.uint8)
    result = rng.integers(0, 256, (48, 64, 3), np.uint8)
    matches = (np.zeros((12, 16, 3), np.int32), np.ones((12, 16), np.float32), 1.0)
    plain = comparison_figure(low_res, result, [result], *matches)
    with_truth = comparison_figure(low_res, result, [result], *matches, truth=result[::-1].copy())
    # Four panels in a row instead of three, and as many rows.
    assert with_truth.shape[0] == plain.shape[0]
    assert with_truth.shape[1] * 3 == pytest.approx(plain.shape[1] * 4, abs=16)
    with pytest.raises(ValueError, match="truth must have the result's shape"):
        comparison_figure(low_res, result, [result], *matches, truth=result[:4])
