import numpy as np
import pytest
from conftest import hwio, nhwc

from tfcorr.refsr.restorer import RestorationNetwork, RestorerSizes, place_on_grid, preset

FEATURES = ("relu3_1", "relu2_1", "relu1_1")


def _shuffled(array: np.ndarray) -> np.ndarray:
    """Output channels c * 4 + k of PyTorch's pixel shuffle -> k * C + c of depth_to_space."""
    return array.reshape(-1, 4, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def _published_layers(network: RestorationNetwork) -> dict:
    """Published path of each weight -> (layer variable, how to bring the array into our layout)."""
    layers = {}

    def add(path, layer, shuffle=False):
        change = _shuffled if shuffle else (lambda a: a)
        layers[f"{path}.weight"] = (layer.kernel, lambda a: hwio(change(a)))
        layers[f"{path}.bias"] = (layer.bias, change)

    def add_body(path, body):
        for i, block in enumerate(body):
            add(f"{path}.{i}.conv1", block.conv1)
            add(f"{path}.{i}.conv2", block.conv2)

    add("content_extractor.conv_first", network.conv_first)
    add_body("content_extractor.body", network.content_body)
    for name, level in network.levels.items():
        prefix = f"dyn_agg_restore.{name}"
        add(f"{prefix}_offset_conv1", level.offset_conv1)
        add(f"{prefix}_offset_conv2", level.offset_conv2)
        add(f"{prefix}_dyn_agg", level.dyn_agg)
        add(f"{prefix}_dyn_agg.conv_offset_mask", level.dyn_agg.conv_offset_mask)
        add(f"dyn_agg_restore.head_{name}.0", level.head)
        add_body(f"dyn_agg_restore.body_{name}", level.body)
    add("dyn_agg_restore.tail_small.0", network.tail_small, shuffle=True)
    add("dyn_agg_restore.tail_medium.0", network.tail_medium, shuffle=True)
    add("dyn_agg_restore.tail_large.0", network.tail_large1)
    add("dyn_agg_restore.tail_large.2", network.tail_large2)
    return layers


def build_network(arrays) -> RestorationNetwork:
    features, blocks, groups = (int(n) for n in arrays["config"])
    network = RestorationNetwork(
        RestorerSizes(features=features, content_blocks=blocks, blocks=(blocks,) * 3, deform_groups=groups)
    )
    network.build()
    layers = _published_layers(network)
    assert {f"w/{path}" for path in layers} == {key for key in arrays if key.startswith("w/")}
    for path, (variable, change) in layers.items():
        variable.assign(change(arrays[f"w/{path}"]))
    return network


def network_inputs(arrays, prefix=""):
    inputs = {"lr": nhwc(arrays[f"{prefix}lr"])}
    for name in FEATURES:
        inputs[name] = nhwc(arrays[f"{prefix}ref_{name}"])
    votes = np.moveaxis(arrays[f"{prefix}pre_offset_relu3_1"][..., ::-1], 1, 3)
    inputs["pre_offset"] = votes.reshape(*votes.shape[:3], 18).astype("float32")
    return inputs


@pytest.mark.parametrize("case", ["ngf16_b2", "ngf64_b1"])
def test_golden_output(golden, case):
    arrays = golden("restoration", case)
    network, inputs = build_network(arrays), network_inputs(arrays)
    np.testing.assert_allclose(network(inputs), nhwc(arrays["out"]), rtol=1e-4, atol=5e-5)
    content = network.content(network.conv_first(inputs["lr"]))
    np.testing.assert_allclose(content, nhwc(arrays["inter/content_feat"]), rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("case", ["ngf16_b2", "ngf64_b1"])
def test_golden_gradients(golden, case):
    arrays = golden("restoration", case)
    import tensorflow as tf

    network, inputs = build_network(arrays), network_inputs(arrays, "grad/")
    inputs["lr"] = tf.constant(inputs["lr"])
    with tf.GradientTape() as tape:
        tape.watch(inputs["lr"])
        out = network(inputs)
        loss = tf.reduce_sum(out * nhwc(arrays["grad/grad_out"]))
    layers = {
        path: layer for path, layer in _published_layers(network).items() if f"grad/d_w/{path}" in arrays
    }
    assert len(layers) > 30
    sources = {path: variable.value for path, (variable, _) in layers.items()}
    d_lr, gradients = tape.gradient(loss, (inputs["lr"], sources))
    np.testing.assert_allclose(out, nhwc(arrays["grad/out"]), rtol=1e-4, atol=5e-5)
    expected = nhwc(arrays["grad/d_lr"])
    np.testing.assert_allclose(d_lr, expected, atol=1e-4 * np.abs(expected).max())
    for path, gradient in gradients.items():
        expected = layers[path][1](arrays[f"grad/d_w/{path}"])
        np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max(), err_msg=path)


@pytest.mark.parametrize(("name", "count"), [("full", 8_865_547), ("light", 4_825_395)])
def test_published_parameter_counts(name, count):
    network = RestorationNetwork(preset(name))
    network.build()
    assert network.count_params() == count


def test_offsets_stay_float32_in_mixed_precision():
    import tensorflow as tf

    config = RestorerSizes(features=8, content_blocks=1, blocks=(1, 1, 1), reference_levels=("large",))
    network = RestorationNetwork(config, dtype="mixed_bfloat16")
    # A reference 600 cells wide: bfloat16 would round the coordinate 257 to 256 or 258.
    reference = np.zeros((1, 12, 600, 64), "float32")
    reference[:, :, 257 * 2 : 257 * 2 + 4] = 1.0
    offsets = np.zeros((1, 3, 3, 18), "float32")
    offsets[..., 1::2] = 257 / 2
    inputs = {"lr": np.zeros((1, 3, 3, 3), "float32"), "relu1_1": reference, "pre_offset": offsets}
    out = network(inputs)
    assert out.dtype == tf.float32
    level = network.levels["large"].dyn_agg
    offset, _ = level.predict_offset_mask(
        tf.zeros((1, 12, 12, config.offset_widths[2]), tf.bfloat16), tf.repeat(offsets, 4, 1)[:, :, :1] * 4
    )
    assert offset.dtype == tf.float32
    assert float(offset[0, 0, 0, 1]) == 514.0


def test_a_tile_sees_the_reference_at_its_own_place():
    feature = np.arange(30, dtype=np.float32).reshape(1, 5, 6, 1)
    whole = place_on_grid(feature, 8, 8)
    assert whole.shape == (1, 8, 8, 1)
    np.testing.assert_array_equal(whole[:, :5, :6], feature)
    assert float(np.sum(whole)) == feature.sum()
    tile = place_on_grid(feature, 4, 3, origin=np.array([3, 2], np.int32))
    np.testing.assert_array_equal(tile, whole[:, 3:7, 2:5])
    outside = place_on_grid(feature, 2, 2, origin=np.array([9, 9], np.int32))
    np.testing.assert_array_equal(outside, np.zeros((1, 2, 2, 1)))


def test_names_of_presets_and_levels_are_checked():
    with pytest.raises(ValueError, match="huge"):
        preset("huge")
    with pytest.raises(ValueError, match="relu9"):
        RestorerSizes(reference_levels=("relu9",))
    with pytest.raises(ValueError, match="3 entries"):
        RestorerSizes(blocks=(1, 2))
