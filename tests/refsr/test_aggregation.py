import numpy as np
import pytest
import tensorflow as tf
from conftest import hwio, nhwc

from tfcorr.ops import implementations
from tfcorr.refsr.aggregation import DynamicAggregation

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
IMPLEMENTATIONS = ["reference"] + (
    ["custom"] if implementations()["deform_conv2d"]["implementation"] == "custom" else []
)


def _pre_offset(arrays):
    votes = np.moveaxis(arrays["pre_offset_xy"][..., ::-1], 1, 3)
    return np.ascontiguousarray(votes.reshape(*votes.shape[:3], 18))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["dynagg_c8", "dynagg_c16_g8"])
def test_golden_forward_and_gradients(golden, case, implementation):
    arrays = golden("deform_conv", case)
    groups = int(arrays["config"][3])
    layer = DynamicAggregation(arrays["weight"].shape[0], groups, implementation)
    x, feature = tf.constant(nhwc(arrays["x"])), tf.constant(nhwc(arrays["feat"]))
    pre_offset = _pre_offset(arrays)
    layer.build(x.shape, feature.shape, pre_offset.shape)
    layer.kernel.assign(hwio(arrays["weight"]))
    layer.bias.assign(arrays["bias"])
    layer.conv_offset_mask.set_weights([hwio(arrays["w_offset_mask"]), arrays["b_offset_mask"]])

    offset, mask = layer.predict_offset_mask(feature, pre_offset)
    np.testing.assert_allclose(offset, nhwc(arrays["offset"]), **TOLERANCE)
    np.testing.assert_allclose(mask, nhwc(arrays["mask"]), **TOLERANCE)
    weights = {
        "d_weight": layer.kernel,
        "d_bias": layer.bias,
        "d_w_offset_mask": layer.conv_offset_mask.kernel,
        "d_b_offset_mask": layer.conv_offset_mask.bias,
    }
    with tf.GradientTape() as tape:
        tape.watch([x, feature])
        out = layer(x, feature, pre_offset)
        loss = tf.reduce_sum(out * nhwc(arrays["grad_out"]))
    np.testing.assert_allclose(out, nhwc(arrays["out"]), **TOLERANCE)
    sources = {"d_x": x, "d_feat": feature, **{k: v.value for k, v in weights.items()}}
    gradients = tape.gradient(loss, sources)
    for name, gradient in gradients.items():
        expected = arrays[name]
        expected = hwio(expected) if expected.ndim == 4 and name.startswith(("d_w", "d_weight")) else expected
        expected = nhwc(expected) if name in ("d_x", "d_feat") else expected
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_starts_at_the_pre_offset_with_half_the_weight():
    layer = DynamicAggregation(8, 2)
    reference, feature = np.ones((1, 5, 6, 8), "float32"), np.ones((1, 4, 3, 8), "float32")
    pre_offset = np.random.default_rng(0).normal(size=(1, 4, 3, 18)).astype("float32")
    assert layer(reference, feature, pre_offset).shape == (1, 4, 3, 8)
    offset, mask = layer.predict_offset_mask(feature, pre_offset)
    np.testing.assert_array_equal(offset, np.concatenate([pre_offset] * 2, -1))
    np.testing.assert_array_equal(mask, np.full((1, 4, 3, 18), 0.5, "float32"))


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="6 channels"):
        DynamicAggregation(8, 4).build((None, None, None, 6), (None, None, None, 8))
