"""Matching against numbers of the published programs (tests/goldens/pmd) and of torch."""

import keras
import numpy as np
import pytest
from conftest import nhwc

from tfcorr.semantic import matching

CASES = ("rand", "shift", "degen")


@pytest.fixture(scope="module")
def goldens(golden):
    return golden("pmd/matching")


def numpy(value):
    return keras.ops.convert_to_numpy(value)


def as_rows(stored):
    """Stored (B, searched, h, w) -> (B, query cells, searched cells)."""
    return stored.reshape(*stored.shape[:2], -1).transpose(0, 2, 1)


def combined(goldens, case, direction):
    """Our correlation of one level, combined, and the relu correlation itself."""
    source, target = (nhwc(goldens[f"{case}_feat_{side}"]) for side in ("src", "tgt"))
    s2t = matching.correlation(source, target)
    raw = s2t if direction == "S2T" else keras.ops.transpose(s2t, (0, 2, 1))
    return raw, matching.combine([raw]), source.shape[1:3]


def test_identity_grid():
    grid = numpy(matching.identity_grid(3, 5))
    np.testing.assert_allclose(grid[..., 0], np.tile(np.linspace(-1, 1, 5), (3, 1)), atol=1e-7)
    np.testing.assert_allclose(grid[..., 1], np.tile(np.linspace(-1, 1, 3)[:, None], (1, 5)), atol=1e-7)
    np.testing.assert_array_equal(numpy(matching.identity_grid(1, 2))[0, :, 1], [0, 0])


@pytest.mark.parametrize("case", CASES)
def test_normalisation_and_correlation(goldens, case):
    for side in ("src", "tgt"):
        found = matching.l2_normalize(nhwc(goldens[f"{case}_feat_{side}"]))
        np.testing.assert_allclose(numpy(found), nhwc(goldens[f"{case}_featn_{side}"]), atol=1e-6)
    if case == "shift":
        return  # The published correlations of the largest case are not stored.
    raw, normalised, _ = combined(goldens, case, "S2T")
    np.testing.assert_allclose(numpy(raw), as_rows(goldens[f"{case}_corr_relu_S2T"]), atol=1e-6)
    np.testing.assert_allclose(numpy(normalised), as_rows(goldens[f"{case}_corr_l2n_S2T"]), atol=1e-5)
    _, normalised, _ = combined(goldens, case, "T2S")
    np.testing.assert_allclose(numpy(normalised), as_rows(goldens[f"{case}_corr_l2n_T2S"]), atol=1e-5)


@pytest.mark.parametrize("case", ["rand", "degen"])
def test_gaussian_and_softmax(goldens, case):
    correlations = as_rows(goldens[f"{case}_corr_l2n_S2T"])
    height, width = goldens[f"{case}_argmax_idx_S2T"].shape[1:]
    best = goldens[f"{case}_argmax_idx_S2T"].reshape(len(correlations), -1)
    # An all-zero row has no best cell: any will do, as it multiplies zeros.
    found = correlations * numpy(matching._gaussian(keras.ops.convert_to_tensor(best), height, width, 5.0))
    np.testing.assert_allclose(found, as_rows(goldens[f"{case}_corr_gauss_S2T"]), atol=1e-6)
    weights = numpy(keras.ops.softmax(50.0 * found, axis=-1))
    np.testing.assert_allclose(weights, as_rows(goldens[f"{case}_softmax_S2T"]), atol=1e-5)


@pytest.mark.parametrize("direction", ["S2T", "T2S"])
@pytest.mark.parametrize("case", CASES)
def test_flow(goldens, case, direction):
    _, correlations, size = combined(goldens, case, direction)
    grid = matching.kernel_soft_argmax(correlations, size, size)
    np.testing.assert_allclose(numpy(grid), goldens[f"{case}_grid_{direction}"], atol=2e-5)
    flow = numpy(grid) - numpy(matching.identity_grid(*size))
    np.testing.assert_allclose(flow, nhwc(goldens[f"{case}_flow_{direction}"]), atol=2e-5)
    best = matching.kernel_soft_argmax(correlations, size, size, beta=None)
    np.testing.assert_allclose(numpy(best), goldens[f"{case}_argmax_grid_{direction}"], atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_smoothness(goldens, case):
    for direction in ("S2T", "T2S"):
        flow = nhwc(goldens[f"{case}_flow_{direction}"])
        found = matching.smoothness(flow)
        np.testing.assert_allclose(numpy(found), nhwc(goldens[f"{case}_smooth_{direction}"]), atol=1e-6)
    with pytest.raises(ValueError, match="'published' or 'components', got 'both'"):
        matching.smoothness(flow, "both")


def test_smoothness_by_components(golden):
    losses = golden("pmd/losses")
    found = matching.smoothness(nhwc(losses["eq2_pred"]), "components")
    np.testing.assert_allclose(numpy(found), nhwc(losses["smooth_map_per_component_l1"]), atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_warped_flow_and_confidence(goldens, case):
    for direction, other in (("S2T", "T2S"), ("T2S", "S2T")):
        own, theirs = (nhwc(goldens[f"{case}_flow_{d}"]) for d in (direction, other))
        warped = matching.warp_flow(theirs, goldens[f"{case}_grid_{direction}"])
        expected = nhwc(goldens[f"{case}_ac1_warped_flow_{direction}"])
        np.testing.assert_allclose(numpy(warped), expected, atol=1e-5)
        mask = numpy(matching.confidence(own, theirs))
        np.testing.assert_allclose(mask[..., 0], goldens[f"{case}_ac1_conf_{direction}"], atol=2e-4)


def test_confidence_of_hypotheses(goldens):
    t2s, s2t = (goldens[f"cal_flow_{d}"][None] for d in ("T2S", "S2T"))
    paper = numpy(matching.confidence(t2s, s2t))
    assert paper.shape == (1, 4, 20, 20, 1)
    np.testing.assert_allclose(paper[0, ..., 0], goldens["cal_ac1_conf_paper"][:, 0], atol=1e-4)
    published = numpy(matching.confidence(t2s, s2t, minmax=True))
    np.testing.assert_allclose(published[0, ..., 0], goldens["cal_ac1_conf_minmax_official"][:, 0], atol=1e-4)


def test_sample_is_torch_grid_sample():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    values = random.normal(size=(2, 5, 7, 3)).astype("float32")
    # Beyond the borders too, exactly on them, and far outside.
    grid = random.uniform(-1.4, 1.4, (2, 4, 6, 2)).astype("float32")
    grid[0, 0, :3] = [[-1, -1], [1, 1], [1e12, 0]]
    expected = torch.nn.functional.grid_sample(
        torch.tensor(values).permute(0, 3, 1, 2), torch.tensor(grid), align_corners=True
    )
    found = matching.sample(values, grid)
    np.testing.assert_allclose(numpy(found), expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_resize_is_torch_interpolate():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).normal(size=(2, 4, 3, 2)).astype("float32")
    for size in ((9, 11), (3, 3)):
        expected = torch.nn.functional.interpolate(
            torch.tensor(values).permute(0, 3, 1, 2), size, mode="bilinear", align_corners=True
        )
        found = matching.resize(values, size)
        np.testing.assert_allclose(numpy(found), expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_flow_in_pixels():
    random = np.random.default_rng(2)
    grid = random.uniform(-1, 1, (1, 6, 8, 2)).astype("float32")
    flow = grid - numpy(matching.identity_grid(6, 8))
    found = numpy(matching.flow_in_pixels(flow, (11, 21)))
    y, x = np.mgrid[:6, :8]
    position = np.stack([x, y], axis=-1) + found[0]
    np.testing.assert_allclose(position, (grid[0] + 1) / 2 * [20, 10], atol=1e-4)


def test_no_gradient_through_the_place_of_the_best_cell():
    import tensorflow as tf

    random = np.random.default_rng(3)
    correlations = tf.Variable(random.uniform(0, 0.5, (1, 4, 12)).astype("float32"))
    seed = random.normal(size=(1, 2, 2, 2)).astype("float32")

    def value(c):
        return tf.reduce_sum(seed * matching.kernel_soft_argmax(c, (2, 2), (3, 4), sigma=1.5))

    with tf.GradientTape() as tape:
        total = value(correlations)
    gradient = tape.gradient(total, correlations).numpy()
    step = 1e-3
    for place in [(0, 0, 0), (0, 1, 5), (0, 3, 11)]:
        moved = []
        for sign in (1, -1):
            changed = correlations.numpy()
            changed[place] += sign * step
            moved.append(float(value(tf.constant(changed))))
        assert gradient[place] == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=2e-2)
