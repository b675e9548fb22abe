"""Matching from coarse to fine, beside a comparison of all patches in float64."""

import cv2
import numpy as np
import pytest

from tfcorr.refsr.coarse_to_fine import ReferenceIndex


def unit(features):
    return (features / np.linalg.norm(features, axis=-1, keepdims=True)).astype("float32")


def smooth_features(height, width, channels, seed=0):
    """Random descriptors that change from cell to cell as those of photographs do."""
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(height, width, channels)).astype("float32")
    layers = [cv2.GaussianBlur(field[..., c], (0, 0), 1.2) for c in range(channels)]
    return np.stack(layers, axis=-1)


def windows(features):
    """All patches as float64 rows."""
    view = np.lib.stride_tricks.sliding_window_view(features.astype("float64"), (3, 3), axis=(0, 1))
    return view.reshape(-1, features.shape[-1] * 9)


def all_scores(query, reference):
    """Normalised correlation of every patch with every other, (n, m)."""
    ours, theirs = windows(query), windows(reference)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True) + 1e-5
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True) + 1e-5
    return ours @ theirs.T


def distance(found, truth, columns):
    """Cells between matches on the axis where they are farther apart."""
    return np.max(np.abs(np.stack(np.divmod(found, columns)) - np.stack(np.divmod(truth, columns))), axis=0)


def warped(features, matrix):
    height, width = features.shape[:2]
    layers = [
        cv2.warpPerspective(features[..., c], matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
        for c in range(features.shape[-1])
    ]
    return np.stack(layers, axis=-1)


@pytest.mark.parametrize(
    "matrix",
    [
        [[1, 0, 7], [0, 1, -5], [0, 0, 1]],
        [[0.95, -0.2, 6], [0.2, 0.95, -4], [0, 0, 1]],
        [[1.2, 0.1, -8], [-0.05, 1.1, 3], [5e-4, 2e-4, 1]],
    ],
)
def test_a_warp_is_followed(matrix):
    features = smooth_features(64, 72, 40)
    reference = warped(features, np.array(matrix, "float64"))
    noise = np.random.default_rng(1).normal(scale=0.1 * features.std(), size=features.shape)
    query, reference = unit(features + noise), unit(reference)
    index, score = ReferenceIndex(reference).search(query)
    scores = all_scores(query, reference)
    near = distance(index.ravel(), scores.argmax(1), reference.shape[1] - 2) <= 1
    assert near.mean() >= 0.95
    assert (scores.max(1) - score.ravel()).mean() < 2e-3


def test_a_score_is_that_of_its_match():
    query, reference = (unit(smooth_features(20, h, 12, seed)) for seed, h in ((0, 25), (1, 31)))
    index, score = ReferenceIndex(reference).search(query)
    assert index.dtype == np.int32 and score.dtype == np.float32
    assert index.shape == score.shape == (18, 23)
    expected = np.take_along_axis(all_scores(query, reference), index.reshape(-1, 1), axis=1)
    np.testing.assert_allclose(score.ravel(), expected[:, 0], atol=1e-6)


def test_its_own_patches_are_found():
    reference = unit(smooth_features(70, 50, 64))
    index, score = ReferenceIndex(reference).search(reference[10:40, 5:45])
    y, x = np.indices((28, 38))
    np.testing.assert_array_equal(index, (y + 10) * 48 + x + 5)
    np.testing.assert_allclose(score, 1.0, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 3), (3, 7), (5, 4)])
def test_small_references(shape):
    query, reference = unit(smooth_features(6, 5, 8)), unit(smooth_features(*shape, 8, seed=1))
    index, _ = ReferenceIndex(reference).search(query)
    np.testing.assert_array_equal(index.ravel(), all_scores(query, reference).argmax(1))


def test_uniform_maps_and_one_thread():
    """As a sky has them: every patch is as good as any other."""
    flat = np.full((40, 50, 16), 0.25, "float32")
    index, score = ReferenceIndex(flat, threads=1).search(flat[:20, :20])
    assert (index >= 0).all() and (index < 38 * 48).all()
    np.testing.assert_allclose(score, 1.0, atol=1e-4)


def test_the_result_does_not_depend_on_threads():
    query, reference = (unit(smooth_features(40, 50, 32, seed)) for seed in (0, 1))
    one, many = (ReferenceIndex(reference, threads=threads).search(query) for threads in (1, 4))
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_array_equal(one[1], many[1])
