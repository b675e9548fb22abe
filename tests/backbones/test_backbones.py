"""Backbones by name: shapes, preprocessing, and EfficientNet-Lite0 against another implementation."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest

from tfcorr.backbones import backbone
from tfcorr.backbones.efficientnet_lite0 import efficientnet_lite0, load_weights, preprocess
from tfcorr.errors import TfcorrError

CSP = {"stackwise_channels": [8, 8, 16, 16], "stackwise_depth": [1, 1, 1, 1]}
# (expansion, kernel, stride, in, out) of the 16 blocks, as the model's description lists them.
BLOCKS = [
    *[(1, 3, 1, 32, 16), (6, 3, 2, 16, 24), (6, 3, 1, 24, 24), (6, 5, 2, 24, 40), (6, 5, 1, 40, 40)],
    *[(6, 3, 2, 40, 80), (6, 3, 1, 80, 80), (6, 3, 1, 80, 80), (6, 5, 1, 80, 112), (6, 5, 1, 112, 112)],
    *[(6, 5, 1, 112, 112), (6, 5, 2, 112, 192), (6, 5, 1, 192, 192), (6, 5, 1, 192, 192)],
    *[(6, 5, 1, 192, 192), (6, 3, 1, 192, 320)],
]


def random_lite0_weights(seed=0) -> dict[str, np.ndarray]:
    """Arrays by their names in a file; no statistics of any real network."""
    random = np.random.default_rng(seed)
    arrays = {}

    def conv(name, *shape):
        fan_in = np.prod(shape[:2]) * (1 if shape[3] == 1 and "depthwise" in name else shape[2])
        arrays[f"{name}.weight"] = random.normal(0, fan_in**-0.5, shape).astype("float32")

    def norm(name, width):
        values = {
            "weight": random.uniform(0.5, 1.5, width),
            "bias": random.normal(0.5, 0.5, width),
            "running_mean": random.normal(0, 0.2, width),
            "running_var": random.uniform(0.5, 1.5, width),
        }
        arrays.update({f"{name}.{part}": value.astype("float32") for part, value in values.items()})

    conv("_conv_stem", 3, 3, 3, 32)
    norm("_bn0", 32)
    for number, (expansion, kernel, _, channels, width) in enumerate(BLOCKS):
        wide = expansion * channels
        if expansion > 1:
            conv(f"_blocks.{number}._expand_conv", 1, 1, channels, wide)
            norm(f"_blocks.{number}._bn0", wide)
        conv(f"_blocks.{number}._depthwise_conv", kernel, kernel, wide, 1)
        norm(f"_blocks.{number}._bn1", wide)
        conv(f"_blocks.{number}._project_conv", 1, 1, wide, width)
        norm(f"_blocks.{number}._bn2", width)
    return arrays


def torch_lite0(arrays, image):
    """Outputs of the 16 blocks for (B, H, W, 3), written with torch's functions."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def conv(x, name, stride=1, groups=1):
        kernel = torch.tensor(arrays[f"{name}.weight"])
        # (k, k, C, 1) of a depthwise convolution -> (C, 1, k, k); (k, k, I, O) -> (O, I, k, k).
        kernel = kernel.permute(2, 3, 0, 1) if groups > 1 else kernel.permute(3, 2, 0, 1)
        size = kernel.shape[-1]
        padding = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            padding += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, padding), kernel, stride=stride, groups=groups)

    def norm(x, name):
        parts = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(torch.tensor(arrays[f"{name}.{p}"]) for p in parts), eps=1e-3)

    x = torch.tensor(image).permute(0, 3, 1, 2)
    x = functional.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    outputs = []
    for number, (expansion, _, stride, channels, width) in enumerate(BLOCKS):
        name, before = f"_blocks.{number}", x
        if expansion > 1:
            x = functional.relu6(norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0"))
        x = conv(x, f"{name}._depthwise_conv", stride, groups=expansion * channels)
        x = functional.relu6(norm(x, f"{name}._bn1"))
        x = norm(conv(x, f"{name}._project_conv"), f"{name}._bn2")
        if stride == 1 and channels == width:
            x = x + before
        outputs.append(x.permute(0, 2, 3, 1).numpy())
    return outputs


@pytest.fixture(scope="module")
def lite0_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "lite0.npz"
    classifier = {"_fc.bias": np.zeros(1000, "float32"), "_bn1.weight": np.zeros(1280, "float32")}
    np.savez(path, **random_lite0_weights(), **classifier)
    return path


def test_lite0_is_the_network_of_its_description(lite0_file):
    # Odd and even sides: the padding of strides depends on them.
    image = np.random.default_rng(1).uniform(-1, 1, (1, 70, 96, 3)).astype("float32")
    network = efficientnet_lite0()
    load_weights(network, lite0_file)
    found = [keras.ops.convert_to_numpy(value) for value in network(image, training=False)]
    expected = torch_lite0(random_lite0_weights(), image)
    assert len(found) == len(expected) == 16
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


def test_lite0_as_a_backbone(lite0_file):
    extractor = backbone("efficientnet_lite0", lite0_file)
    assert extractor.widths == {4: 24, 8: 40, 16: 112, 32: 320}
    assert extractor.trainable_variables == []
    image = np.random.default_rng(2).uniform(size=(1, 64, 96, 3)).astype("float32")
    found = extractor(image, training=True)
    expected = torch_lite0(random_lite0_weights(), (image * 255 - 127) / 128)
    for stride, number in ((4, 2), (8, 4), (16, 10), (32, 15)):
        values = keras.ops.convert_to_numpy(found[stride])
        assert values.shape[1:3] == (64 // stride, 96 // stride)
        np.testing.assert_allclose(values, expected[number], atol=2e-4 * np.abs(expected[number]).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("_blocks.3._bn0.bias"), r"_blocks\.3\._bn0\.bias is missing"),
        (lambda a: a.update({"_blocks.16._bn0.bias": a["_bn0.bias"]}), r"_blocks\.16\._bn0\.bias is unknown"),
        (
            lambda a: a.update({"_conv_stem.weight": a["_conv_stem.weight"].transpose(3, 2, 0, 1)}),
            r"_conv_stem\.weight has shape \(32, 3, 3, 3\), expected \(3, 3, 3, 32\)",
        ),
    ],
)
def test_lite0_weights_that_do_not_fit(tmp_path, change, message):
    arrays = random_lite0_weights()
    change(arrays)
    np.savez(tmp_path / "wrong.npz", **arrays)
    network = efficientnet_lite0()
    before = network.get_weights()
    with pytest.raises(TfcorrError, match=message):
        load_weights(network, tmp_path / "wrong.npz")
    for was, now in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_lite0_files_that_are_none(tmp_path):
    (tmp_path / "text.npz").write_text("weights")
    with pytest.raises(TfcorrError, match="not an NPZ file"):
        backbone("efficientnet_lite0", tmp_path / "text.npz")
    with pytest.raises(TfcorrError, match="no such file"):
        backbone("efficientnet_lite0", tmp_path / "absent.npz")
    with pytest.raises(TfcorrError, match="nothing to download"):
        backbone("efficientnet_lite0", "imagenet")
    with pytest.raises(TfcorrError, match=r"takes no arguments, got \['alpha'\]"):
        backbone("efficientnet_lite0", arguments={"alpha": 1})


def test_lite0_with_its_real_weights():
    """Against features of the PyTorch model; needs a folder with the weights and their golden numbers."""
    folder = os.environ.get("TFCORR_LITE0")
    if not folder:
        pytest.skip("TFCORR_LITE0 is not set: folder of efficientnet_lite0.npz and ..._golden.npz")
    with np.load(Path(folder) / "efficientnet_lite0_golden.npz") as golden:
        image, features = golden["image_uint8"], {name: golden[name] for name in golden.files}
    image = image[None].astype("float32") / 255
    np.testing.assert_allclose(preprocess(image), features["input"], atol=1e-5)
    found = backbone("efficientnet_lite0", Path(folder) / "efficientnet_lite0.npz")(image)
    for stride, number in ((4, 2), (8, 4), (16, 10), (32, 15)):
        expected = features[f"stride{stride}_block{number}"]
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(found[stride]), expected.reshape(found[stride].shape), atol=2e-3
        )


def test_applications():
    extractor = backbone("MobileNet_V2", arguments={"alpha": 0.35})
    assert list(extractor.widths) == [4, 8, 16, 32] and extractor.widths[32] == 1280
    assert extractor.trainable_variables == []
    image = np.random.default_rng(3).uniform(size=(1, 64, 96, 3)).astype("float32")
    found = extractor(image, training=True)
    for stride, values in found.items():
        assert values.shape == (1, 64 // stride, 96 // stride, extractor.widths[stride])
    # The same network called by hand, with its own preprocessing of values up to 255.
    prepared = keras.applications.mobilenet_v2.preprocess_input(image * 255.0)
    expected = extractor.network(prepared, training=False)
    np.testing.assert_allclose(found[32], expected[3], atol=1e-5)


@pytest.mark.slow
def test_resnet():
    extractor = backbone("resnet50")
    assert extractor.widths == {4: 256, 8: 512, 16: 1024, 32: 2048}
    names = [output._keras_history.operation.name for output in extractor.network.outputs]
    assert names == [
        *["conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"],
    ]


def test_keras_cv():
    pytest.importorskip("keras_cv")
    extractor = backbone("keras_cv:CSPDarkNetBackbone", arguments=CSP)
    assert list(extractor.widths) == [4, 8, 16, 32] and extractor.widths[32] == 16
    image = np.random.default_rng(4).uniform(size=(1, 64, 64, 3)).astype("float32")
    found = extractor(image, training=True)
    assert found[16].shape == (1, 4, 4, 16)
    rescaled = backbone("keras_cv:CSPDarkNetBackbone", arguments={**CSP, "include_rescaling": True})
    rescaled.network.set_weights(extractor.network.get_weights())
    np.testing.assert_allclose(rescaled(image)[32], found[32], rtol=1e-3, atol=1e-5)


def test_names_and_weights_that_are_unknown(tmp_path):
    with pytest.raises(
        TfcorrError, match="unknown backbone 'resnet102'; known: efficientnet_lite0, keras_cv"
    ):
        backbone("resnet102")
    with pytest.raises(TfcorrError, match=r"backbone mobilenetv2 with weights .*absent\.h5: "):
        backbone("mobilenetv2", tmp_path / "absent.h5")
