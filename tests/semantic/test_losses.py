"""Eq. 2, 4 and 7 against independent numbers, in every reduction."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import nhwc

from tfcorr.semantic.losses import (
    cell_mean,
    distillation_loss,
    flow_loss,
    smoothness_loss,
    teacher_loss,
)
from tfcorr.semantic.matching import smoothness
from tfcorr.semantic.reweighting import empirical_variance, error_divergence, hypothesis_weights
from tfcorr.semantic.teacher import divergence_from_prior

SMOOTH_SUM = "smooth_official_sum_ch_mean_pixels_batch"


@pytest.fixture(scope="module")
def goldens(golden):
    return golden("pmd/losses")


def hypotheses_last(stored):
    """(B, m, C, H, W) -> (B, m, H, W, C)."""
    return np.ascontiguousarray(np.moveaxis(stored, 2, -1))


def test_teacher_loss(goldens):
    prediction, truth = nhwc(goldens["eq2_pred"]), nhwc(goldens["eq2_gt"])
    for components, mse, smooth, total in (
        ("mean", "eq2_mse_mean_all", "smooth_official_mean", "eq2_total_A"),
        (
            "sum",
            "eq2_mse_sum_uv_mean_pixels_batch",
            "smooth_official_sum_ch_mean_pixels_batch",
            "eq2_total_B",
        ),
    ):
        divergence = divergence_from_prior(goldens["eq2_mu"], goldens["eq2_sigma"] ** 2)
        terms = teacher_loss(prediction, truth, divergence, components=components)
        assert float(terms["flow"]) == pytest.approx(float(goldens[mse]), abs=1e-7)
        assert float(terms["smoothness"]) == pytest.approx(float(goldens[smooth]), abs=1e-6)
        assert float(terms["divergence"]) == pytest.approx(
            float(goldens["kl_sigma_is_std_mean_batch"]), rel=1e-5
        )
        assert float(terms["loss"]) == pytest.approx(float(goldens[total]), rel=1e-5)
    static = teacher_loss(prediction, truth)
    assert set(static) == {"loss", "flow", "smoothness"}
    # Several draws against one truth.
    drawn = teacher_loss(np.stack([prediction, truth], axis=1), truth)
    assert float(drawn["flow"]) == pytest.approx(float(terms["flow"]) / 2, rel=1e-5)


def test_valid_cells_alone_count(goldens):
    prediction, truth = nhwc(goldens["eq2_pred"]), nhwc(goldens["eq2_gt"])
    mask = goldens["sfnet_partmask_mask"][:, 0]
    # SFNet's own normalisation of the same sum.
    sfnet = sum(
        np.sum(((p - t) ** 2).sum(-1) * m) / (m.sum() + 1)
        for p, t, m in zip(prediction, truth, mask, strict=True)
    )
    assert sfnet / 2 == pytest.approx(float(goldens["sfnet_partmask_L2_flow"]), rel=1e-5)
    expected = np.sum(((prediction - truth) ** 2).sum(-1) * mask) / mask.sum()
    assert float(flow_loss(prediction, truth, valid=mask)) == pytest.approx(expected, rel=1e-5)
    assert float(flow_loss(prediction, truth, valid=mask > 0.5)) == pytest.approx(expected, rel=1e-5)
    assert float(flow_loss(prediction, truth, valid=np.zeros_like(mask))) == 0.0
    drawn = np.stack([prediction, prediction], axis=1)
    assert float(flow_loss(drawn, truth, valid=mask)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="components must be 'sum' or 'mean', got 'both'"):
        cell_mean(prediction, None, "both")


@pytest.fixture(scope="module")
def student(goldens):
    prediction, variance = nhwc(goldens["eq4_pred"]), nhwc(goldens["eq4_var"])
    hypotheses, confidence = (hypotheses_last(goldens[f"eq4_{n}"]) for n in ("hyp", "conf"))
    weights = hypothesis_weights(prediction, hypotheses, variance, floor=0.0)
    return prediction, hypotheses, variance, confidence, weights


def test_parts_of_the_student_loss(goldens, student):
    prediction, hypotheses, variance, confidence, weights = student
    expected = hypotheses_last(goldens["eq4_weights_paper"])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(weights), expected, atol=1e-5)
    found = flow_loss(prediction, hypotheses, confidence=confidence)
    assert float(found) == pytest.approx(float(goldens["eq7_cal_mean_over_batch_and_hyp"]), rel=1e-5)
    found = flow_loss(prediction, hypotheses, confidence=confidence, weights=weights)
    expected = float(goldens["eq4_weighted_cal_mean_over_batch_and_hyp"])
    assert float(found) == pytest.approx(expected, rel=1e-5)
    found = flow_loss(prediction, hypotheses, weights=weights)
    assert float(found) == pytest.approx(float(goldens["eq4_weighted_mse_per_hypothesis"].mean()), rel=1e-5)
    found = smoothness_loss(prediction)
    assert float(found) == pytest.approx(float(goldens["eq4_smooth_official_mean_pixels"]), rel=1e-5)
    empirical = empirical_variance(prediction, hypotheses)
    found = keras.ops.convert_to_numpy(empirical)
    np.testing.assert_allclose(found, nhwc(goldens["eq4_empvar_paper"]), atol=1e-6)
    divergence = keras.ops.convert_to_numpy(error_divergence(variance, empirical, floor=0.0))
    np.testing.assert_allclose(divergence, nhwc(goldens["eq5_kl_elem"]), rtol=1e-4, atol=1e-5)
    assert divergence.mean() == pytest.approx(float(goldens["eq5_kl_mean_all"]), rel=1e-5)


def test_student_loss_and_its_gradient(goldens, student):
    prediction, hypotheses, variance, confidence, _ = student
    divergence = error_divergence(variance, empirical_variance(prediction, hypotheses), floor=0.0)
    flow = tf.Variable(prediction)
    for smooth_weight, total in ((0.0, "eq4_total_no_smooth"), (0.05, "eq4_total_smooth_weight_0.05")):
        with tf.GradientTape() as tape:
            terms = distillation_loss(
                flow,
                hypotheses,
                divergence,
                weights=hypothesis_weights(flow, hypotheses, variance, floor=0.0),
                confidence=confidence,
                smooth_weight=smooth_weight,
            )
        assert float(terms["loss"]) == pytest.approx(float(goldens[total]), rel=1e-5)
        if smooth_weight == 0.0:
            found = tape.gradient(terms["loss"], flow).numpy()
            expected = nhwc(goldens["eq4_grad_pred_weighted_cal_constW"])
            # Of the mean over the batch and the hypotheses.
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_smoothness_of_many_flows(goldens):
    flow = nhwc(goldens["eq2_pred"])
    expected = float(np.mean(np.sum(keras.ops.convert_to_numpy(smoothness(flow)), axis=-1)))
    assert float(smoothness_loss(flow[:, None])) == pytest.approx(expected, rel=1e-6)
    found = smoothness_loss(flow, form="components", components="mean")
    assert float(found) == pytest.approx(float(goldens["smooth_map_per_component_l1"].mean()), rel=1e-5)
