"""Both attentions against numbers of the published programs, and of the paper's sentence."""

import keras
import numpy as np
import pytest
from conftest import hwio, nhwc

from tfcorr.semantic.attention import LEAST_VARIANCE, CoChannelAttention, DistributionAttention
from tfcorr.semantic.teacher import attention_distribution, divergence_from_prior


@pytest.fixture(scope="module")
def goldens(golden):
    return golden("pmd/attention")


@pytest.fixture(scope="module")
def pair(goldens):
    return nhwc(goldens["src"]), nhwc(goldens["tgt"])


def numpy(value):
    return keras.ops.convert_to_numpy(value)


def dense_kernel(stored):
    return stored.reshape(stored.shape[:2]).T


def normalisation(goldens, prefix):
    return [goldens[f"{prefix}bn_{name}"] for name in ("gamma", "beta", "mean", "var")]


def published(goldens, order=None):
    layer = CoChannelAttention(order=order)
    layer.build((None, 5, 5, 6))
    layer.dense.set_weights([dense_kernel(goldens["conv_w_OIHW"]), goldens["conv_b"]])
    layer.normalization.set_weights(normalisation(goldens, ""))
    return layer


def test_published_form(goldens, pair):
    source, target = published(goldens)(*pair)
    np.testing.assert_allclose(numpy(source), nhwc(goldens["eval_src_out"]), atol=1e-6)
    np.testing.assert_allclose(numpy(target), nhwc(goldens["eval_tgt_out_official_sequential"]), atol=1e-6)
    source, target = published(goldens, "parallel")(*pair)
    np.testing.assert_allclose(numpy(source), nhwc(goldens["eval_src_out"]), atol=1e-6)
    np.testing.assert_allclose(numpy(target), nhwc(goldens["eval_tgt_out_parallel"]), atol=1e-6)


def test_published_form_in_training(goldens, pair):
    layer = published(goldens)
    source = layer.gate(*pair, training=True)
    np.testing.assert_allclose(numpy(source), goldens["train_att_src"][..., 0, 0], atol=1e-5)
    mean, variance = (numpy(w) for w in layer.normalization.weights[2:])
    np.testing.assert_allclose(mean, goldens["train_bn_mean_after1"], atol=1e-6)
    # torch keeps the unbiased variance of the batch of 3, Keras the biased one.
    kept = 0.9 * goldens["bn_var"]
    np.testing.assert_allclose(kept + (variance - kept) * 3 / 2, goldens["train_bn_var_after1"], atol=1e-5)
    gated = pair[0] * goldens["train_att_src"].transpose(0, 2, 3, 1)
    target = layer.gate(pair[1], gated, training=True)
    expected = goldens["train_att_tgt_official_sequential"][..., 0, 0]
    np.testing.assert_allclose(numpy(target), expected, atol=1e-5)
    np.testing.assert_allclose(
        numpy(layer.normalization.weights[2]), goldens["train_bn_mean_after2"], atol=1e-6
    )


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_form_of_the_paper(goldens, pair, activation):
    layer = CoChannelAttention("paper", hidden=4, hidden_activation=activation)
    layer.build((None, 5, 5, 6))
    for conv, number in ((layer.first, 1), (layer.second, 2)):
        conv.set_weights([goldens[f"paper_w{number}"].T[None, None], goldens[f"paper_b{number}"]])
    for own, other, name in ((*pair, "src"), (*pair[::-1], "tgt")):
        expected = goldens[f"paper_{activation}_att_{name}"][..., 0, 0]
        np.testing.assert_allclose(numpy(layer.gate(own, other)), expected, atol=1e-6)
    source, target = layer(*pair)
    gates = (goldens[f"paper_{activation}_att_{name}"].transpose(0, 2, 3, 1) for name in ("src", "tgt"))
    for found, features, gate in zip((source, target), pair, gates, strict=True):
        np.testing.assert_allclose(numpy(found), features * gate, atol=1e-6)


def test_published_distribution(goldens, pair):
    layer = DistributionAttention("full", (5, 5), "relu", "relu", "deviation")
    layer.build((None, 5, 5, 6))
    mean = goldens["dist_mu_conv_w_OIHW"], goldens["dist_mu_conv_b"]
    layer.mean_dense.set_weights([dense_kernel(mean[0]), mean[1]])
    layer.variance_conv.set_weights([hwio(goldens["dist_sig_conv_w_OIHW"]), goldens["dist_sig_conv_b"]])
    layer.mean_normalization.set_weights(normalisation(goldens, "dist_mu_"))
    layer.variance_normalization.set_weights(normalisation(goldens, "dist_sig_"))
    mean, variance = (numpy(v) for v in layer(*pair))
    np.testing.assert_allclose(mean, goldens["dist_mu"][..., 0, 0], atol=1e-5)
    deviation = goldens["dist_sigma"][..., 0, 0]
    np.testing.assert_allclose(variance, deviation**2 + LEAST_VARIANCE, atol=1e-5)
    draws = mean + np.sqrt(variance) * goldens["dist_eps"][..., 0, 0]
    # A published deviation of 0 is 0.001 here, see LEAST_VARIANCE.
    np.testing.assert_allclose(draws, goldens["dist_z"][..., 0, 0], atol=4e-3)
    positive = np.broadcast_to(deviation > 0.1, draws.shape)
    np.testing.assert_allclose(draws[positive], goldens["dist_z"][..., 0, 0][positive], atol=5e-5)


@pytest.mark.parametrize("branch", ["pooled", "separable"])
def test_light_branches(pair, branch):
    layer = DistributionAttention(branch, (5, 5))
    mean, variance = layer(*pair)
    assert mean.shape == variance.shape == (3, 6)
    assert float(keras.ops.min(variance)) > 0
    # The separable branch starts as the pooled one.
    twin = DistributionAttention("pooled")
    twin.build((None, 5, 5, 6))
    for name in ("mean_dense", "variance_dense"):
        getattr(twin, name).set_weights(getattr(layer, name).get_weights())
    np.testing.assert_allclose(numpy(twin(*pair)[1]), numpy(variance), rtol=1e-5)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="form must be 'published' or 'paper', got 'se'"):
        CoChannelAttention("se")
    with pytest.raises(ValueError, match=r"order must be .* got 'both'"):
        CoChannelAttention(order="both")
    with pytest.raises(ValueError, match=r"'full' needs map_size, \(h, w\)"):
        DistributionAttention("full")
    with pytest.raises(ValueError, match="scale must be 'variance' or 'deviation', got 'std'"):
        DistributionAttention(scale="std")


def test_distribution_and_its_divergence(golden):
    losses = golden("pmd/losses")
    mean, sigma = losses["eq2_mu"], losses["eq2_sigma"]
    found = divergence_from_prior(mean, sigma)
    np.testing.assert_allclose(numpy(found), losses["kl_sigma_is_variance_per_sample_sum"], rtol=1e-5)
    found = divergence_from_prior(mean, sigma**2)
    np.testing.assert_allclose(numpy(found), losses["kl_sigma_is_std_per_sample_sum"], rtol=1e-5)


def test_draws_are_reparameterised_and_repeatable():
    import tensorflow as tf

    mean, variance = tf.Variable([[0.5, -1.0]]), tf.Variable([[0.25, 4.0]])
    with tf.GradientTape(persistent=True) as tape:
        draws = attention_distribution(mean, variance).sample(20000, seed=tf.constant([3, 4]))
        total = tf.reduce_sum(draws)
    np.testing.assert_allclose(tape.gradient(total, mean), [[20000, 20000]], rtol=1e-6)
    # z = mean + sqrt(v) e: dz/dv = e / (2 sqrt(v)) = (z - mean) / (2 v).
    expected = np.sum((draws.numpy() - mean.numpy()) / (2 * variance.numpy()), axis=0)
    np.testing.assert_allclose(tape.gradient(total, variance), expected, rtol=1e-2, atol=0.5)
    np.testing.assert_allclose(np.mean(draws, axis=0), mean.numpy(), atol=0.05)
    np.testing.assert_allclose(np.var(draws, axis=0), variance.numpy(), rtol=0.05)
    again = attention_distribution(mean, variance).sample(20000, seed=tf.constant([3, 4]))
    np.testing.assert_array_equal(draws, again)
