import keras
import numpy as np
import pytest
from conftest import hwio, nhwc

from tfcorr.refsr.extractor import CorrespondenceNetwork, FeatureExtractor, load_imagenet_weights

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def network(golden):
    arrays = golden("contrastive_extractor", "w")
    network = CorrespondenceNetwork()
    network.build()
    for side, extractor in (("image1", network.input_extractor), ("image2", network.reference_extractor)):
        for layer in extractor.layers:
            if isinstance(layer, keras.layers.Conv2D):
                layer.set_weights(
                    [hwio(arrays[f"{side}.{layer.name}.weight"]), arrays[f"{side}.{layer.name}.bias"]]
                )
    return network


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_golden_descriptors(golden, network, case):
    arrays = golden("contrastive_extractor", case)
    query, reference = network({"input": nhwc(arrays["image1"]), "reference": nhwc(arrays["image2"])})
    np.testing.assert_allclose(query, nhwc(arrays["features1"]), **TOLERANCE)
    np.testing.assert_allclose(reference, nhwc(arrays["features2"]), **TOLERANCE)


def test_golden_reference_features(golden, network):
    image = nhwc(golden("contrastive_extractor", "case0")["image2"])
    features = network.reference_features(image)
    for name, expected in golden("contrastive_extractor", "vgg_ref").items():
        np.testing.assert_allclose(features[name], nhwc(expected), **TOLERANCE)


def test_parameter_count():
    network = CorrespondenceNetwork()
    network.build()
    assert network.count_params() == 1_110_656


def test_one_descriptor_a_low_resolution_pixel(network):
    assert network.query_features(np.zeros((1, 7, 5, 3), "float32")).shape == (1, 7, 5, 256)


def test_weights_from_a_torchvision_file(golden, network, tmp_path):
    arrays = golden("contrastive_extractor", "w")
    numbers = {"conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10}
    stored = {
        f"features.{number}.{kind}": arrays[f"image2.{name}.{kind}"]
        for name, number in numbers.items()
        for kind in ("weight", "bias")
    }
    np.savez(tmp_path / "vgg.npz", **stored)
    extractor = FeatureExtractor()
    load_imagenet_weights(extractor, str(tmp_path / "vgg.npz"))
    image = np.random.default_rng(0).random((1, 12, 16, 3), dtype=np.float32)
    np.testing.assert_allclose(
        extractor(image)["conv3_1"], network.reference_features(image)["conv3_1"], rtol=1e-6
    )


def test_caffe_weights_are_folded_into_our_convention(tmp_path):
    """A keras.applications network on its own preprocessing gives the features of ours on plain RGB."""
    vgg = keras.applications.VGG16(include_top=False, weights=None)
    path = str(tmp_path / "vgg.weights.h5")
    vgg.save_weights(path)
    extractor = FeatureExtractor()
    load_imagenet_weights(extractor, path)
    image = np.random.default_rng(0).random((1, 24, 24, 3), dtype=np.float32)
    inner = keras.Model(vgg.input, vgg.get_layer("block2_conv1").output)
    caffe = image[..., ::-1] * 255.0 - np.array([103.939, 116.779, 123.68], np.float32)
    expected = keras.ops.convert_to_numpy(inner(caffe))
    ours = keras.ops.convert_to_numpy(extractor(image)["relu2_1"])
    inner = slice(2, -2)  # The outermost pixels see the padding, which stands for another colour.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ours[:, inner, inner], expected[:, inner, inner], atol=1e-5 * scale)
    np.testing.assert_allclose(ours, expected, atol=2e-2 * scale)


def test_missing_weights_are_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load_imagenet_weights(FeatureExtractor(), str(tmp_path / "absent.npz"))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match=r"features\.0\.weight"):
        load_imagenet_weights(FeatureExtractor(), str(tmp_path / "other.npz"))
    (tmp_path / "broken.h5").write_bytes(b"not hdf5")
    with pytest.raises(RuntimeError, match="Two ways"):
        load_imagenet_weights(FeatureExtractor(), str(tmp_path / "broken.h5"))
