"""The networks of the perceptual loss: VGG19 against PyTorch, EfficientNet-Lite0 against its backbone."""

import numpy as np
import pytest
import tensorflow as tf

from tfcorr.backbones import efficientnet_lite0
from tfcorr.errors import TfcorrError
from tfcorr.refsr.losses import perceptual_loss
from tfcorr.refsr.perceptual import PerceptualNetwork

_WIDTHS = [64, 64, "pool", 128, 128, "pool", *[256] * 4, "pool", *[512] * 4, "pool", 512]


def torch_vgg19(seed=0):
    """torchvision's `vgg19.features` up to relu5_1, random weights."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    layers, channels = [], 3
    for width in _WIDTHS:
        if width == "pool":
            layers.append(torch.nn.MaxPool2d(2))
        else:
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
            torch.nn.init.kaiming_normal_(layers[-2].weight)
            channels = width
    return torch.nn.Sequential(*layers).eval()


def test_vgg19_is_torchvisions_relu5_1(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = torch_vgg19()
    arrays = {f"features.{name}": value.numpy() for name, value in theirs.state_dict().items()}
    np.savez(tmp_path / "vgg19.npz", **arrays)
    images = np.random.default_rng(0).random((2, 32, 48, 3), np.float32)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = ((images - mean) / deviation).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(normalised)).numpy().transpose(0, 2, 3, 1)
    network = PerceptualNetwork("vgg19", str(tmp_path / "vgg19.npz"))
    (features,) = network.features(images)
    assert features.shape == (2, 2, 3, 512)
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4 * expected.max())
    other = images[::-1].copy()
    (expected_loss,) = [np.sqrt(np.sum((expected - expected[::-1]) ** 2))]
    np.testing.assert_allclose(network.loss(images, other), expected_loss, rtol=1e-3)


@pytest.fixture(scope="module")
def lite0_weights(tmp_path_factory):
    """A file of random weights by the stored names."""
    network = efficientnet_lite0.efficientnet_lite0()
    parts = ("weight", "bias", "running_mean", "running_var")
    arrays = {
        f"{efficientnet_lite0._stored_name(layer.name)}.{part}": np.array(variable)
        for layer in network.layers
        if layer.weights
        for part, variable in zip(parts, layer.weights, strict=False)
    }
    path = tmp_path_factory.mktemp("weights") / "lite0.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("norm", ["batch", "channel"])
def test_lite0_sums_the_losses_of_two_strides(lite0_weights, norm):
    network = PerceptualNetwork("lite0", str(lite0_weights), norm)
    rng = np.random.default_rng(1)
    truth, restored = (tf.constant(rng.random((2, 32, 64, 3), np.float32)) for _ in range(2))
    shapes = [tuple(f.shape) for f in network.features(truth)]
    assert shapes == [(2, 4, 8, 40), (2, 2, 4, 112)]
    with tf.GradientTape() as tape:
        tape.watch([truth, restored])
        loss = network.loss(truth, restored)
    pairs = zip(network.features(truth), network.features(restored), strict=True)
    expected = sum(float(perceptual_loss(a, b, norm=norm)) for a, b in pairs)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    d_truth, d_restored = tape.gradient(loss, [truth, restored])
    assert d_truth is None and float(tf.reduce_max(tf.abs(d_restored))) > 0


def test_what_cannot_be_had(tmp_path):
    with pytest.raises(ValueError, match="alexnet"):
        PerceptualNetwork("alexnet", "imagenet")
    np.savez(tmp_path / "empty.npz", a=np.zeros(1))
    with pytest.raises(TfcorrError, match=r"could not get VGG19's weights from .*empty\.npz"):
        PerceptualNetwork("vgg19", str(tmp_path / "empty.npz"))
    with pytest.raises(TfcorrError, match="nothing to download"):
        PerceptualNetwork("lite0", "imagenet")
