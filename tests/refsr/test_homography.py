"""Homographies against OpenCV, the published numbers, and brute force."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tfcorr.config import HomographySampling
from tfcorr.refsr.homography import (
    matching_cells,
    orient,
    orientation_matrix,
    sample_homography,
    warp,
    warped_positions,
)

GOLDENS = Path(__file__).parent.parent / "goldens"


def test_warp_against_the_published_pipeline():
    with np.load(GOLDENS / "data_prep.npz") as archive:
        golden = {
            name: archive[f"homography/{name}"] for name in ("image", "H", "H_inverse", "warped_linear")
        }
    warped = warp(golden["image"], golden["H_inverse"], 160)
    # OpenCV before 5 interpolates in steps of 1/32 pixel, and the edge of the black region differs.
    inside = cv2.erode((golden["warped_linear"].max(-1) > 0).astype(np.uint8), np.ones((3, 3))) > 0
    np.testing.assert_allclose(warped[inside], golden["warped_linear"][inside], atol=0.03)
    assert inside.mean() > 0.5
    # Content of pixel q is found at inverse(H) q.
    positions = warped_positions(golden["H_inverse"], 40, 40)
    expected = cv2.perspectiveTransform(
        np.array([[[4.0 * j, 4.0 * i] for i in range(40) for j in range(40)]]), np.linalg.inv(golden["H"])
    )
    np.testing.assert_allclose(positions.reshape(-1, 2)[:, ::-1], expected[0], atol=1e-3)


def test_correspondences_of_the_published_loss():
    with np.load(GOLDENS / "losses.npz") as archive:
        height, width = 20, 24
        for sample in range(3):
            matrix = archive["contrastive/H_inverse"][sample]
            target, valid = matching_cells(warped_positions(matrix, height, width), (80, 96))
            assert valid.sum() == archive["contrastive/n_valid"][sample]
            if sample < 2:
                ids = archive[f"contrastive/ids_sample{sample}"]
                np.testing.assert_array_equal(np.flatnonzero(valid), ids)
                expected = archive[f"contrastive/fmap_pos2_yx_sample{sample}"].T
                np.testing.assert_array_equal(target[ids], expected)


@pytest.mark.parametrize("flips", [(x, y, t) for x in (0, 1) for y in (0, 1) for t in (0, 1)])
def test_orientation_matrix_follows_the_pixels(flips):
    image = np.arange(25).reshape(5, 5)
    moved = orient(image, *flips)
    matrix = orientation_matrix(5, *flips)
    for y in range(5):
        for x in range(5):
            u, v, w = matrix @ (x, y, 1)
            assert w == 1
            assert moved[int(v), int(u)] == image[y, x]


def test_published_sampling():
    sampling = HomographySampling(kind="published")
    matrices = [sample_homography(np.random.default_rng(i), 160, sampling) for i in range(400)]
    origin = np.array([warped_positions(m, 1, 1)[0, 0] for m in matrices])
    last = np.array([warped_positions(m, 40, 40)[-1, -1] for m in matrices])
    # Measured on the published code over 3000 draws: 20 pixels rms at the top-left corner, 4 at the
    # bottom-right.
    assert 15 < np.sqrt(np.mean(origin**2)) < 26
    assert 3 < np.sqrt(np.mean((last - 156) ** 2)) < 6
    kept = [matching_cells(warped_positions(m, 40, 40), (160, 160))[1].sum() for m in matrices]
    assert 1150 < np.median(kept) < 1300


def test_wide_sampling_covers_its_ranges():
    sampling = HomographySampling(kind="wide", rotation=45.0, scale=(0.6, 1.6), perspective=0.0, shift=0.1)
    angles, scales = [], []
    for i in range(300):
        matrix = sample_homography(np.random.default_rng(i), 160, sampling)
        matrix /= matrix[2, 2]
        scales.append(np.sqrt(np.linalg.det(matrix[:2, :2])))
        angles.append(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
        centre = matrix @ (79.5, 79.5, 1)
        assert np.abs(centre[:2] / centre[2] - 79.5).max() < 16.01
    assert 0.6 - 1e-3 < min(scales) < 0.63 and 1.52 < max(scales) < 1.6 + 1e-3
    assert -45.1 < min(angles) < -42 and 42 < max(angles) < 45.1


def test_reducing_warp_averages():
    # A checkerboard of single pixels becomes grey when reduced; picked pixels would stay black or white.
    board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    reduced = warp(board, half, 64)[8:-8, 8:-8].astype(float)
    np.testing.assert_allclose(reduced, 127.5, atol=1.5)
