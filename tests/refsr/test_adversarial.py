"""The discriminator and its losses against the published implementation's numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import hwio, nhwc

from tfcorr.refsr.adversarial import Adversary, Discriminator, generator_loss, gradient_penalty


def _published(discriminator):
    """(published name, our variable) of every weight."""
    for number, convolution in enumerate(discriminator.convolutions):
        block, place = divmod(number, 2)
        prefix = f"conv_block{block + 1}."
        yield f"{prefix}{3 * place}.weight", convolution.kernel
        yield f"{prefix}{3 * place}.bias", convolution.bias
        yield f"{prefix}{3 * place + 1}.weight", discriminator.normalizations[number].gamma
        yield f"{prefix}{3 * place + 1}.bias", discriminator.normalizations[number].beta
    for number, dense in ((1, discriminator.hidden), (3, discriminator.score)):
        yield f"out_block.{number}.weight", dense.kernel
        yield f"out_block.{number}.bias", dense.bias


def _ours(array, variable):
    if array.ndim != 4:
        return array
    kernel = hwio(array)
    return kernel if len(variable.shape) == 4 else kernel[0, 0]


@pytest.fixture
def published(golden):
    """The published discriminator with 8 features, and the golden arrays."""
    arrays = golden("losses", "gan")
    discriminator = Discriminator(features=8)
    discriminator.build()
    weights = dict(_published(discriminator))
    assert set(weights) == {name[2:] for name in arrays if name.startswith("w/")}
    for name, variable in weights.items():
        variable.assign(_ours(arrays[f"w/{name}"], variable))
    return discriminator, arrays, weights


def test_parameters_of_the_published_size():
    discriminator = Discriminator()
    discriminator.build()
    assert discriminator.count_params() == 5_242_529
    assert len(discriminator.non_trainable_variables) == 0


def test_golden_discriminator(published):
    discriminator, arrays, weights = published
    real, fake = nhwc(arrays["real"]), nhwc(arrays["fake"])
    np.testing.assert_allclose(discriminator(real), arrays["d_real"][:, :, 0, 0], rtol=1e-4)
    np.testing.assert_allclose(discriminator(fake), arrays["d_fake"][:, :, 0, 0], rtol=1e-4)
    adversary = Adversary(discriminator, keras.optimizers.Adam(1e-4), penalty=10.0)
    with tf.GradientTape() as tape:
        values = adversary.losses(real, fake, nhwc(arrays["alpha"]))
    distance = -(arrays["loss_d_real"] + arrays["loss_d_fake"])
    np.testing.assert_allclose(values["distance"], distance, rtol=1e-3)
    np.testing.assert_allclose(values["penalty"], arrays["grad_penalty_weighted"], rtol=1e-4)
    np.testing.assert_allclose(values["discriminator_loss"], arrays["loss_d_total"], rtol=1e-4)
    names = [name.removeprefix("d_w_total/") for name in arrays if name.startswith("d_w_total/")]
    gradients = tape.gradient(values["discriminator_loss"], [weights[name].value for name in names])
    for name, gradient in zip(names, gradients, strict=True):
        expected = _ours(arrays[f"d_w_total/{name}"], weights[name])
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())


def test_golden_generator_loss(published):
    discriminator, arrays, _ = published
    fake = tf.constant(nhwc(arrays["fake"]))
    with tf.GradientTape() as tape:
        tape.watch(fake)
        loss = 1e-6 * generator_loss(discriminator(fake))
    np.testing.assert_allclose(loss, arrays["loss_g_weighted"], rtol=1e-4)
    expected = nhwc(arrays["d_fake_loss_g"])
    np.testing.assert_allclose(
        tape.gradient(loss, fake), expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max()
    )


def test_penalty_of_a_linear_discriminator_is_known():
    # D(x) = 3 * sum(x) has the gradient 3 everywhere: its norm is 3 * sqrt(number of values).
    real, fake = (np.random.default_rng(k).random((2, 4, 5, 3), np.float32) for k in range(2))

    def linear(x):
        return 3.0 * tf.reduce_sum(x, axis=(1, 2, 3))[:, None]

    found = gradient_penalty(linear, real, fake, tf.fill((2, 1, 1, 1), 0.25))
    np.testing.assert_allclose(found, (3 * np.sqrt(60) - 1) ** 2, rtol=1e-5)


@pytest.mark.parametrize("normalization", ["batch", "none"])
def test_ends_and_normalisations(normalization):
    images = np.random.default_rng(0).random((2, 33, 40, 3), np.float32)
    keras.utils.set_random_seed(0)
    linear = Discriminator(features=2, end="linear", normalization=normalization)
    linear.build()
    sigmoid = Discriminator(features=2, normalization=normalization)
    sigmoid.build()
    sigmoid.set_weights(linear.get_weights())
    np.testing.assert_allclose(sigmoid(images), 1 / (1 + np.exp(-np.array(linear(images)))), rtol=1e-5)
    # Without batch statistics an image's score is its own.
    alone = np.allclose(linear(images[:1]), linear(images)[:1], rtol=1e-5, atol=1e-7)
    assert alone is (normalization == "none")
    restored = Discriminator.from_config(linear.get_config())
    assert (restored.features, restored.end, restored.normalization) == (2, "linear", normalization)


@pytest.mark.parametrize("normalization", ["batch", "none"])
def test_an_untrained_discriminator_sees_its_image(normalization):
    keras.utils.set_random_seed(0)
    discriminator = Discriminator(features=4, end="linear", normalization=normalization)
    discriminator.build()
    images = tf.constant(np.random.default_rng(0).random((2, 64, 64, 3), np.float32))
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = tf.reduce_sum(discriminator(images))
    # Not so flat that the penalty alone would have to wake it up.
    assert float(tf.norm(tape.gradient(score, images))) > 1e-5


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="tanh"):
        Discriminator(end="tanh")
    with pytest.raises(ValueError, match="layer"):
        Discriminator(normalization="layer")


def test_a_step_depends_on_its_number_alone():
    rng = np.random.default_rng(0)
    real, fake = (tf.constant(rng.random((2, 32, 32, 3), np.float32)) for _ in range(2))

    def trained(steps, resumed_at=None):
        keras.utils.set_random_seed(3)
        discriminator = Discriminator(features=2, end="linear", normalization="none")
        discriminator.build()
        adversary = Adversary(discriminator, keras.optimizers.Adam(1e-2), penalty=10.0, seed=7)
        for step in range(steps):
            if step == resumed_at:
                saved = [np.array(v) for v in adversary.variables]
                adversary = Adversary(discriminator, keras.optimizers.Adam(1e-2), penalty=10.0, seed=7)
                for variable, value in zip(adversary.variables, saved, strict=True):
                    variable.assign(value)
            values = adversary.train(real, fake)
        return discriminator, values

    whole, values = trained(4)
    resumed, _ = trained(4, resumed_at=2)
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))
    np.testing.assert_allclose(
        values["discriminator_loss"], values["penalty"] - values["distance"], rtol=1e-5
    )
