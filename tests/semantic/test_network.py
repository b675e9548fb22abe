"""The whole head against the published network, in inference and one training step; and its interface."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import hwio, nhwc

from tfcorr.semantic.losses import flow_loss, smoothness_loss
from tfcorr.semantic.matching import identity_grid, warp_flow
from tfcorr.semantic.network import (
    Adaptation,
    MatchingHead,
    SemanticMatchingNetwork,
    full_resolution,
    head_from_architecture,
)
from tfcorr.semantic.teacher import TeacherHead

LAYERS = ("adap_layer_feat3", "adap_layer_feat4")


@pytest.fixture(scope="module")
def goldens(golden):
    return golden("pmd/network")


def numpy(value):
    return keras.ops.convert_to_numpy(value)


def inputs(goldens, case):
    names = {"source_16": "src_feat3", "target_16": "tgt_feat3", "source_32": "src_feat4"}
    names["target_32"] = "tgt_feat4"
    return {name: nhwc(goldens[f"{case}_{stored}"]) for name, stored in names.items()}


def normalisation(goldens, name):
    return [goldens[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]


def dense_kernel(stored):
    return stored.reshape(stored.shape[:2]).T


def load_adaptation(head, goldens, case):
    for level, layer in zip(("16", "32"), LAYERS, strict=True):
        for number, (conv, norm) in enumerate(head.adaptations[level].layers_of_blocks, start=1):
            name = f"{case}_w/{layer}.conv{number}"
            conv.set_weights([hwio(goldens[f"{name}.0.weight"]), goldens[f"{name}.0.bias"]])
            norm.set_weights(normalisation(goldens, f"{name}.1"))


def student(goldens, case, **options):
    head = MatchingHead((8, 12), **options)
    head.build()
    load_adaptation(head, goldens, case)
    gate = f"{case}_w/chn4.mu_conv"
    head.attention.dense.set_weights([dense_kernel(goldens[f"{gate}.0.weight"]), goldens[f"{gate}.0.bias"]])
    head.attention.normalization.set_weights(normalisation(goldens, f"{gate}.1"))
    return head


@pytest.mark.parametrize("case", ["small", "real"])
def test_forward(goldens, case):
    head = student(goldens, case)
    adapted = head.adapt(inputs(goldens, case))
    for side, stored in (("source", "src"), ("target", "tgt")):
        for level, name in (("16", "feat3"), ("32", "feat4")):
            expected = nhwc(goldens[f"{case}_adap_{stored}_{name}"])
            np.testing.assert_allclose(numpy(adapted[f"{side}_{level}"]), expected, atol=2e-5)
    flows = head(inputs(goldens, case))
    for direction in ("t2s", "s2t"):
        expected = goldens[f"{case}_flow_{direction.upper()}"][:, 0]
        np.testing.assert_allclose(numpy(flows[f"flow_{direction}"]), nhwc(expected), atol=1e-4)
    size = flows["flow_s2t"].shape[1:3]
    warped = warp_flow(flows["flow_t2s"], flows["flow_s2t"] + identity_grid(*size))
    np.testing.assert_allclose(numpy(warped), nhwc(goldens[f"{case}_ac1_warped_flow_S2T"]), atol=1e-4)


@pytest.mark.parametrize("case", ["small", "real"])
def test_parallel_attention(goldens, case):
    flows = student(goldens, case, attention_order="parallel")(inputs(goldens, case))
    expected = nhwc(goldens[f"{case}_flow_T2S_parallel_att"])
    np.testing.assert_allclose(numpy(flows["flow_t2s"]), expected, atol=1e-4)


def test_correlations(goldens):
    head = student(goldens, "small")
    features = head.adapt(inputs(goldens, "small"))
    fine, _, _ = head.match_fine(features)
    expected = goldens["small_corr_feat3"].reshape(2, 64, 64).transpose(0, 2, 1)
    np.testing.assert_allclose(numpy(fine), expected, atol=1e-5)


def test_training_step(goldens):
    """Loss, gradients and running statistics of one step in training mode."""
    head = student(goldens, "small")
    hypotheses, weights = (np.moveaxis(goldens[f"small_train_{n}"], 2, -1) for n in ("tgt_flow", "weight"))
    mask = np.moveaxis(goldens["small_train_mask"], 2, -1)
    with tf.GradientTape() as tape:
        flow = head(inputs(goldens, "small"), training=True)["flow_t2s"]
        loss = flow_loss(flow, hypotheses, weights=weights, confidence=mask, components="mean")
        loss += 0.05 * smoothness_loss(flow, components="mean")
    np.testing.assert_allclose(numpy(flow), nhwc(goldens["small_train_flow_T2S"][:, 0]), atol=1e-4)
    assert float(loss) == pytest.approx(float(goldens["small_train_loss"]), abs=1e-6)
    variables = head.trainable_variables
    gradients = dict(zip((v.path for v in variables), tape.gradient(loss, variables), strict=True))

    def gradient(layer, part):
        return numpy(gradients[getattr(layer, part).path])

    gate = "small_grad/chn4.mu_conv"
    found = gradient(head.attention.dense, "kernel")
    np.testing.assert_allclose(found, dense_kernel(goldens[f"{gate}.0.weight"]), atol=1e-4)
    for level, layer in zip(("16", "32"), LAYERS, strict=True):
        blocks = head.adaptations[level].layers_of_blocks
        for number, (conv, norm) in enumerate(blocks, start=1):
            name = f"{layer}.conv{number}"
            expected = hwio(goldens[f"small_grad/{name}.0.weight"])
            np.testing.assert_allclose(gradient(conv, "kernel"), expected, atol=1e-4)
            for part, stored in (("gamma", "weight"), ("beta", "bias")):
                expected = goldens[f"small_grad/{name}.1.{stored}"]
                np.testing.assert_allclose(gradient(norm, part), expected, atol=1e-4)
            after = goldens[f"small_train_after/{name}.1.running_mean"]
            np.testing.assert_allclose(numpy(norm.moving_mean), after, atol=1e-5)
            # torch's running variance takes the unbiased one of each of the two calls, Keras' the biased one.
            count = 2 * (64 if level == "16" else 16)
            kept = 0.81 * goldens[f"small_w/{name}.1.running_var"]
            unbiased = kept + (numpy(norm.moving_variance) - kept) * count / (count - 1)
            np.testing.assert_allclose(
                unbiased, goldens[f"small_train_after/{name}.1.running_var"], atol=1e-5
            )


def test_teacher_with_given_draws(goldens):
    head = TeacherHead(
        (8, 12),
        variance_branch="full",
        map_size=(4, 4),
        mean_activation="relu",
        variance_activation="relu",
        scale="deviation",
    )
    head.build()
    load_adaptation(head, goldens, "small")
    layer, name = head.attention, "small_teacher_w/{}_conv"
    mean, spread = name.format("mu"), name.format("sig")
    layer.mean_dense.set_weights([dense_kernel(goldens[f"{mean}.0.weight"]), goldens[f"{mean}.0.bias"]])
    layer.variance_conv.set_weights([hwio(goldens[f"{spread}.0.weight"]), goldens[f"{spread}.0.bias"]])
    layer.mean_normalization.set_weights(normalisation(goldens, f"{mean}.1"))
    layer.variance_normalization.set_weights(normalisation(goldens, f"{spread}.1"))
    found = head(inputs(goldens, "small"))
    mean, sigma = (goldens[f"small_teacher_{n}"][..., 0, 0] for n in ("mu", "sigma"))
    np.testing.assert_allclose(numpy(found["mean"]), mean, atol=1e-4)
    np.testing.assert_allclose(numpy(found["variance"]), sigma**2, atol=1e-3)
    features = head.adapt(inputs(goldens, "small"))
    fine = head.match_fine(features)
    for number, noise in enumerate(goldens["small_teacher_eps"][..., 0, 0]):
        flows = head.hypothesis(features, fine, mean + sigma * noise)
        for direction in ("t2s", "s2t"):
            expected = goldens[f"small_teacher_flow_{direction.upper()}"][:, number]
            np.testing.assert_allclose(numpy(flows[f"flow_{direction}"]), nhwc(expected), atol=1e-4)


@pytest.fixture(scope="module")
def random_inputs():
    random = np.random.default_rng(0)
    shapes = {"16": (2, 6, 4, 8), "32": (2, 3, 2, 12)}
    return {
        f"{side}_{level}": random.normal(size=shape).astype("float32")
        for side in ("source", "target")
        for level, shape in shapes.items()
    }


def test_teacher_draws(random_inputs):
    head = TeacherHead((8, 12))
    head.build()
    one = head(random_inputs)
    assert one["flow_t2s"].shape == (2, 6, 4, 2) and one["variance"].shape == (2, 12)
    many = head(random_inputs, samples=3, seed=np.array([1, 2], "int32"))
    again = head(random_inputs, samples=3, seed=np.array([1, 2], "int32"))
    other = head(random_inputs, samples=3, seed=np.array([1, 3], "int32"))
    assert many["flow_t2s"].shape == many["flow_s2t"].shape == (2, 3, 6, 4, 2)
    np.testing.assert_array_equal(numpy(many["flow_t2s"]), numpy(again["flow_t2s"]))
    assert np.abs(numpy(many["flow_t2s"]) - numpy(other["flow_t2s"])).max() > 1e-4
    assert np.abs(numpy(many["flow_t2s"][:, 0]) - numpy(many["flow_t2s"][:, 1])).max() > 1e-4
    with pytest.raises(ValueError, match="samples needs a seed"):
        head(random_inputs, samples=3)
    with pytest.raises(ValueError, match="gate must be 'sigmoid' or 'draw', got 'none'"):
        TeacherHead((8, 12), gate="none")


@pytest.mark.parametrize(
    "head",
    [
        lambda: MatchingHead((8, 12), widths=(4, 6), kernel_sizes=(3, 1), attention="paper"),
        lambda: MatchingHead((8, 12), attention="none", blocks=1, beta=None, kernel_sigma=None),
        lambda: TeacherHead((8, 12), variance_branch="separable", map_size=(3, 2), gate="draw"),
    ],
    ids=["paper", "none", "teacher"],
)
def test_architecture_round_trip(head, random_inputs, tmp_path):
    first = head()
    first.build()
    second = head_from_architecture(json.loads(json.dumps(first.architecture)))
    assert second.architecture == first.architecture and type(second) is type(first)
    first.save_weights(tmp_path / "head.weights.h5")
    second.load_weights(tmp_path / "head.weights.h5")
    expected, found = first(random_inputs), second(random_inputs)
    for name in ("flow_t2s", "flow_s2t"):
        np.testing.assert_array_equal(numpy(found[name]), numpy(expected[name]))


def test_wrong_architecture():
    with pytest.raises(ValueError, match=r"kind must be one of \['student', 'teacher'\], got 'pupil'"):
        head_from_architecture({"kind": "pupil", "channels": [8, 12]})
    with pytest.raises(ValueError, match=r"architecture: .*'depth'"):
        head_from_architecture({"kind": "student", "channels": [8, 12], "depth": 3})
    with pytest.raises(ValueError, match=r"channels must have a value for each .* got \(8,\)"):
        MatchingHead((8,))


def test_small_residual_starts_near_the_backbone(random_inputs):
    head = MatchingHead((8, 12), residual_scale=1e-3, attention="none")
    head.build()
    adapted = head.adapt(random_inputs)
    for name, values in adapted.items():
        np.testing.assert_allclose(numpy(values), random_inputs[name], atol=0.1)


class Backbone(keras.Model):
    """Averages of blocks of pixels, at both strides."""

    def build(self, input_shape=None):
        self.built = True

    def call(self, images):
        return {stride: keras.ops.average_pool(images, stride, stride) for stride in (16, 32)}


def test_network_from_images_and_from_features():
    network = SemanticMatchingNetwork(MatchingHead((3, 3)), Backbone())
    images = np.random.default_rng(0).uniform(size=(2, 1, 96, 64, 3)).astype("float32")
    whole = network({"source": images[0], "target": images[1]})
    cached = {
        f"{side}_{level}": values
        for side, image in zip(("source", "target"), images, strict=True)
        for level, values in network.features(image).items()
    }
    parts = SemanticMatchingNetwork(network.head)(cached)
    for name in ("flow_t2s", "flow_s2t"):
        np.testing.assert_allclose(numpy(whole[name]), numpy(parts[name]), atol=1e-6)
    full = full_resolution(whole, (96, 64), (50, 40))
    assert full["flow_t2s"].shape == (1, 50, 40, 2) and full["flow_s2t"].shape == (1, 96, 64, 2)
    np.testing.assert_allclose(numpy(full["flow_s2t"])[:, ::95, ::63], numpy(whole["flow_s2t"])[:, ::5, ::3])
    with pytest.raises(ValueError, match="this network has no backbone"):
        SemanticMatchingNetwork(network.head)({"source": images[0], "target": images[1]})


def test_mirror_sees_an_image_and_its_mirror_image_alike():
    class Lopsided(Backbone):
        def call(self, images):
            steps = keras.ops.reshape(keras.ops.linspace(0.0, 1.0, images.shape[2]), (1, 1, -1, 1))
            return super().call(images * steps)

    head = MatchingHead((3, 3), blocks=0, attention="none")
    images = np.random.default_rng(0).uniform(size=(2, 1, 96, 64, 3)).astype("float32")
    plain, mirrored = (SemanticMatchingNetwork(head, Lopsided(), mirror=m) for m in (False, True))
    for level in ("16", "32"):
        one, other = (numpy(plain.features(i)[level]) for i in (images[0], images[0][:, :, ::-1]))
        expected = (one + other[:, :, ::-1]) / 2
        np.testing.assert_allclose(numpy(mirrored.features(images[0])[level]), expected, atol=1e-6)
        assert np.abs(expected - one).max() > 0.1
    flow = mirrored({"source": images[0], "target": images[1]})["flow_t2s"]
    turned = mirrored({"source": images[0][:, :, ::-1], "target": images[1][:, :, ::-1]})["flow_t2s"]
    np.testing.assert_allclose(numpy(turned), numpy(flow)[:, :, ::-1] * [-1, 1], atol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_a_share_of_what_the_layers_add(factor):
    keras.utils.set_random_seed(4)
    layer = Adaptation(3, blocks=1)
    features = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype(np.float32)
    added = numpy(layer(features)) - features
    assert added.max() > 0.1
    layer.scale_residuals(factor)
    np.testing.assert_allclose(numpy(layer(features)), features + factor * added, atol=1e-6)
