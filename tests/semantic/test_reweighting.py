"""Eq. 3, 5 and 6 in float64 against independent numbers, and whole EM runs on a free flow."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcorr.semantic.losses import flow_loss
from tfcorr.semantic.reweighting import (
    empirical_variance,
    error_divergence,
    hypothesis_weights,
    log_weights,
    update_variance,
)

RUNS = [(var0, phi) for var0 in ("0", "1") for phi in ("0.01", "0.5")]


@pytest.fixture(scope="module")
def goldens(golden):
    return golden("pmd/psr")


def last(stored):
    """Channels from before the two axes of cells to the end."""
    return np.ascontiguousarray(np.moveaxis(stored, -3, -1))


def numpy(value):
    return keras.ops.convert_to_numpy(value)


@pytest.fixture(scope="module")
def one(goldens):
    return [last(goldens[f"a_{name}"]) for name in ("pred", "hyp", "var")]


@pytest.mark.parametrize(("form", "stored"), [("paper", "paper_eq3"), ("gaussian", "gauss")])
def test_weights(goldens, one, form, stored):
    found = hypothesis_weights(*one, floor=0.0, form=form)
    np.testing.assert_allclose(numpy(found), last(goldens[f"a_weights_{stored}"]), atol=1e-12)
    normalised = numpy(hypothesis_weights(*one, floor=0.0, form=form, normalize=True))
    expected = last(goldens[f"a_weights_{stored}"])
    np.testing.assert_allclose(normalised, 4 * expected / expected.sum(1, keepdims=True), rtol=1e-9)


def test_floor_of_the_deviation(one):
    prediction, hypotheses, variance = one
    small = np.full_like(variance, 1e-4)
    np.testing.assert_allclose(
        numpy(log_weights(prediction, hypotheses, small)),
        numpy(log_weights(prediction, hypotheses, np.full_like(variance, 0.05**2), floor=0.0)),
    )
    # Taken literally, a variance of 0 leaves a weight to nothing but an exact hit.
    hypotheses = np.copy(hypotheses)
    hypotheses[:, 0] = prediction
    weights = numpy(hypothesis_weights(prediction, hypotheses, np.zeros_like(variance), floor=0.0))
    np.testing.assert_array_equal(weights[:, 0], 1.0)
    np.testing.assert_array_equal(weights[:, 1:], 0.0)
    with pytest.raises(ValueError, match="form must be 'paper' or 'gaussian', got 'official'"):
        log_weights(*one, form="official")


def test_empirical_variance_divergence_and_update(goldens, one):
    prediction, hypotheses, variance = one
    empirical = empirical_variance(prediction, hypotheses)
    np.testing.assert_allclose(numpy(empirical), last(goldens["a_empvar_paper_zero_mean"]), atol=1e-12)
    divergence = numpy(error_divergence(variance, empirical, floor=0.0))
    np.testing.assert_allclose(divergence, last(goldens["a_kl_eq5_elem_paper"]), atol=1e-10)
    assert divergence.sum() == pytest.approx(float(goldens["a_kl_eq5_sum_over_images_and_pixels"]))
    assert divergence.mean() == pytest.approx(float(goldens["a_kl_eq5_mean"]))
    for phi in (0.01, 0.5):
        found = numpy(update_variance(variance, empirical, step_size=phi))
        np.testing.assert_allclose(found, last(goldens[f"a_var_next_paper_phi{phi}"]), atol=1e-12)
    assert np.isfinite(numpy(error_divergence(np.zeros_like(variance), empirical))).all()


def test_gradients(goldens, one):
    prediction, hypotheses, variance = one
    flow = tf.Variable(prediction)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(error_divergence(variance, empirical_variance(flow, hypotheses), floor=0.0))
    found = tape.gradient(total, flow).numpy()
    np.testing.assert_allclose(found, last(goldens["a_kl_paper_grad_wrt_pred"]), rtol=1e-6, atol=1e-8)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(hypothesis_weights(flow, hypotheses, variance))
    assert tape.gradient(total, flow) is None
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(hypothesis_weights(flow, hypotheses, variance, detach=False))
    assert np.abs(tape.gradient(total, flow).numpy()).max() > 0


@pytest.mark.parametrize(("var0", "phi"), RUNS)
def test_rounds_of_em(goldens, var0, phi):
    """Algorithm 1, taken literally; the M-step is the exact minimum of eq. 4 for a free flow."""
    run = f"c_paper_var0_{var0}_phi{phi}_"
    hypotheses = last(goldens["c_hyp"])[None]
    variance = np.full(hypotheses.shape[:1] + hypotheses.shape[2:], float(var0))
    prediction = None
    for number in range(3):
        stored = {key: goldens[run + key][number] for key in ("W", "pred", "empvar", "kl", "mse_part")}
        np.testing.assert_allclose(variance[0], last(goldens[run + "var_before"][number]), atol=1e-5)
        if prediction is None:
            weights = np.ones_like(hypotheses)
            logarithms = np.zeros_like(hypotheses)
        else:
            logarithms = numpy(log_weights(prediction, hypotheses, variance, floor=0.0))
            weights = numpy(hypothesis_weights(prediction, hypotheses, variance, floor=0.0))
            stored_log = last(goldens[run + "logW"][number])
            np.testing.assert_allclose(logarithms[0], stored_log, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(weights[0], last(stored["W"]), atol=1e-5)
        # In ratios, as literal weights may be as small as e^-300.
        shares = np.exp(logarithms - logarithms.max(axis=1, keepdims=True))
        prediction = np.sum(shares * hypotheses, axis=1) / np.sum(shares, axis=1)
        np.testing.assert_allclose(prediction[0], last(stored["pred"]), atol=1e-5)
        for hypothesis in range(4):
            part = flow_loss(
                prediction,
                hypotheses[:, hypothesis : hypothesis + 1],
                weights=weights[:, hypothesis : hypothesis + 1],
            )
            assert float(part) == pytest.approx(stored["mse_part"][hypothesis], abs=1e-5)
        empirical = numpy(empirical_variance(prediction, hypotheses))
        np.testing.assert_allclose(empirical[0], last(stored["empvar"]), atol=1e-5)
        if np.isfinite(stored["kl"]).all():
            divergence = numpy(error_divergence(variance, empirical, floor=0.0))
            np.testing.assert_allclose(divergence[0], last(stored["kl"]), rtol=1e-5, atol=1e-5)
        variance = numpy(update_variance(variance, empirical, step_size=float(phi)))
        np.testing.assert_allclose(variance[0], last(goldens[run + "var_after"][number]), atol=1e-5)
    error = np.abs(prediction[0] - last(goldens["c_true_flow"])).mean()
    assert error == pytest.approx(float(goldens[run + "err"][-1]), abs=1e-5)
