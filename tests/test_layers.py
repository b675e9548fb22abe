"""DeformConv2D: beside keras.layers.Conv2D, under dtype policies, saved and loaded."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcorr.layers import DeformConv2D
from tfcorr.ops import library

needs_op = pytest.mark.skipif(library.load() is None, reason=library.status().reason)


@pytest.fixture(params=[pytest.param("custom", marks=needs_op), "reference"])
def implementation(request):
    return request.param


def images(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def randomize_offsets(layer, scale=0.1):
    """Moves the offset branch away from its zeros, so that something is deformed."""
    random = np.random.default_rng(2)
    for weight in layer.offset_conv.weights:
        weight.assign(random.normal(size=weight.shape) * scale)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding": "same", "strides": 2, "use_bias": False},
        {"padding": "same", "dilation_rate": (1, 2), "activation": "relu"},
        {"kernel_size": (1, 2), "strides": (2, 1)},
    ],
)
def test_begins_as_conv2d(arguments, implementation):
    arguments = {"filters": 5, "kernel_size": 3, **arguments}
    layer = DeformConv2D(**arguments, modulated=False, deform_groups=2, implementation=implementation)
    plain = keras.layers.Conv2D(**arguments)
    x = images(2, 9, 8, 4)
    have = layer(x)
    plain(x)
    plain.set_weights(layer.get_weights()[: len(plain.weights)])
    np.testing.assert_allclose(have, plain(x), rtol=1e-4, atol=1e-5)
    assert layer.compute_output_shape((None, 9, None, 4)) == plain.compute_output_shape((None, 9, None, 4))
    assert layer.compute_output_shape(x.shape) == have.shape


def test_modulated_begins_at_half(implementation):
    layer = DeformConv2D(5, 3, use_bias=False, implementation=implementation)
    x = images(1, 6, 7, 3)
    np.testing.assert_allclose(layer(x), 0.5 * keras.ops.conv(x, layer.kernel), rtol=1e-4, atol=1e-5)


def test_explicit_padding():
    layer = DeformConv2D(4, 3, padding=((2, 0), (1, 3)), modulated=False)
    x = images(1, 5, 6, 2)
    padded = np.pad(x, ((0, 0), (2, 0), (1, 3), (0, 0)))
    np.testing.assert_allclose(
        layer(x), keras.ops.conv(padded, layer.kernel, padding="valid"), rtol=1e-4, atol=1e-5
    )
    assert layer.compute_output_shape(x.shape) == (1, 5, 8, 4)


def test_channels_last_whatever_keras_is_set_to():
    try:
        keras.config.set_image_data_format("channels_first")
        assert DeformConv2D(2, 3, padding="same")(images(1, 5, 6, 4)).shape == (1, 5, 6, 2)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_all_weights_get_gradients(implementation):
    layer = DeformConv2D(4, 3, padding="same", deform_groups=2, implementation=implementation)
    x = images(1, 6, 7, 4)
    layer(x)
    randomize_offsets(layer)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) ** 2)
    for weight, gradient in zip(
        layer.trainable_weights, tape.gradient(loss, [w.value for w in layer.trainable_weights]), strict=True
    ):
        assert np.abs(gradient).max() > 0, weight.path


def test_mixed_bfloat16_keeps_offsets_exact(implementation):
    """Offsets near 100 pixels differ by half a pixel in bfloat16; the layer must not see that."""
    layer = DeformConv2D(3, 1, dtype="mixed_bfloat16", implementation=implementation)
    x = images(1, 4, 130, 2)
    assert layer(x).dtype == tf.bfloat16
    layer.offset_conv.bias.assign([0.0, 100.3, 0.0])
    offset, mask = layer.predict_offset_mask(tf.cast(x, tf.bfloat16))
    assert offset.dtype == tf.float32 and mask.dtype == tf.bfloat16
    np.testing.assert_allclose(offset[..., 1], 100.3, rtol=1e-6)


def test_saved_inside_a_model(tmp_path, implementation):
    inputs = keras.Input((None, None, 4))
    hidden = DeformConv2D(
        6,
        (3, 2),
        padding=((1, 1), (0, 1)),
        deform_groups=2,
        activation="relu",
        kernel_regularizer="l2",
        implementation=implementation,
    )
    outputs = DeformConv2D(2, 3, strides=2, padding="same")(hidden(inputs))
    assert outputs.shape == (None, None, None, 2)
    model = keras.Model(inputs, outputs)
    randomize_offsets(hidden)
    x = images(2, 7, 6, 4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    config = loaded.layers[1].get_config()
    assert config == hidden.get_config()
    assert config["padding"] == ((1, 1), (0, 1))


def test_fit(implementation):
    model = keras.Sequential(
        [keras.Input((None, None, 3)), DeformConv2D(2, 3, padding="same", implementation=implementation)]
    )
    model.compile("sgd", "mse")
    x = images(4, 6, 5, 3)
    before = model.evaluate(x, x[..., :2], verbose=0)
    model.fit(x, x[..., :2], epochs=3, batch_size=2, verbose=0)
    assert model.evaluate(x, x[..., :2], verbose=0) < before


def test_jit_only_without_the_compiled_op(implementation):
    assert DeformConv2D(1, 1, implementation=implementation).supports_jit == (implementation == "reference")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"filters": 0}, "filters must be .*, got 0"),
        ({"deform_groups": 0}, "deform_groups must be .*, got 0"),
        ({"kernel_size": (3, 0)}, r"kernel_size must be .*, got \(3, 0\)"),
        ({"padding": "causal"}, "padding must be .*, got 'causal'"),
        ({"groups": 2}, "groups 1, got None and 2"),
        ({"data_format": "channels_first"}, "got 'channels_first'"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeformConv2D(**{"filters": 4, "kernel_size": 3, **arguments})


def test_refuses_channels():
    with pytest.raises(ValueError, match=r"deform_groups=3, got input \(1, 5, 5, 4\)"):
        DeformConv2D(2, 3, deform_groups=3)(images(1, 5, 5, 4))
