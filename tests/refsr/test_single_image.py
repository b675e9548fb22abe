"""The yardstick: the network against PyTorch, its samples, its stage, and its place in evaluations."""

import json

import keras
import numpy as np
import pytest
from conftest import logged_pictures
from PIL import Image

from tfcorr.config import parse_config
from tfcorr.errors import InputError
from tfcorr.pretrained import SINGLE_IMAGE, ModelError, find_model
from tfcorr.refsr.benchmark import find_contenders
from tfcorr.refsr.memory import MemoryPlan
from tfcorr.refsr.photos import DataError, PhotoCache
from tfcorr.refsr.single_image import SingleImageNetwork
from tfcorr.refsr.single_image_resolver import SingleImageResolver
from tfcorr.refsr.single_image_stage import SingleImageSamples, train


def image(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (height // 3 + 2, width // 3 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(2)
    network = SingleImageNetwork(features=8, blocks=2)
    network.build()
    return network


def test_size():
    network = SingleImageNetwork()
    network.build()
    assert network.count_params() == 1_222_147


def test_it_begins_as_the_bilinear_enlargement():
    network = SingleImageNetwork(features=8, blocks=2)
    lr = np.random.default_rng(0).random((1, 6, 5, 3), dtype=np.float32)
    np.testing.assert_array_equal(network(lr), network.upsampling(lr))
    # And learns from there: the rectifiers are open.
    features, _ = network.parts(lr)
    assert np.abs(features["large"]).min() > 0


def test_against_pytorch(network):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def convolve(x, layer):
        kernel, bias = (torch.tensor(keras.ops.convert_to_numpy(w)) for w in (layer.kernel, layer.bias))
        return functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1)

    def shuffle(x):
        # Channels k * C + c, with k the place in the 2x2 cell; PyTorch has c * 4 + k.
        batch, channels, height, width = x.shape
        x = x.reshape(batch, 4, channels // 4, height, width).swapaxes(1, 2)
        return functional.pixel_shuffle(x.reshape(batch, channels, height, width), 2)

    network.conv_last.kernel.assign(np.random.default_rng(1).normal(0, 0.1, network.conv_last.kernel.shape))
    lr = np.random.default_rng(0).random((2, 7, 5, 3), dtype=np.float32)
    given = torch.tensor(lr).permute(0, 3, 1, 2)
    first = x = convolve(given, network.conv_first)
    for block in network.body:
        x = x + convolve(torch.relu(convolve(x, block.conv1)), block.conv2)
    x = first + convolve(x, network.conv_body)
    for layer in network.upscalers:
        x = functional.leaky_relu(shuffle(convolve(x, layer)), 0.1)
    x = convolve(x, network.conv_last)
    x = x + functional.interpolate(given, scale_factor=4, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(network(lr), x.permute(0, 2, 3, 1).numpy(), atol=1e-4)


def test_samples_are_reduced_by_pillow(tmp_path):
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image(40, 60, number)).save(paths[-1])
    samples = SingleImageSamples(paths, PhotoCache(), crop=32, batch=4, seed=5)
    batch = samples.batch(1)
    assert batch["hr"].shape == (4, 32, 32, 3)
    for lr, hr in zip(batch["lr"], batch["hr"], strict=True):
        eight = Image.fromarray((hr * 255).round().astype(np.uint8))
        small = np.asarray(eight.resize((8, 8), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal((lr * 255).round(), small)
    again = SingleImageSamples(paths, PhotoCache(), crop=32, batch=4, seed=5).batch(1)
    np.testing.assert_array_equal(again["hr"], batch["hr"])
    middle = SingleImageSamples(paths, PhotoCache(), crop=32, batch=1, seed=5, augment=False).batch(0)
    np.testing.assert_array_equal((middle["hr"][0] * 255).round(), image(40, 60)[4:36, 14:46])
    with pytest.raises(DataError, match="multiple of 4, got 30"):
        SingleImageSamples(paths, PhotoCache(), crop=30, batch=1, seed=0)


def test_images_of_users(network):
    resolver = SingleImageResolver(network, memory=10**9)
    colour = resolver.upscale(image(9, 7))
    assert colour.shape == (36, 28, 3)
    assert colour.dtype == np.uint8
    np.testing.assert_array_equal(resolver.upscale(image(9, 7), image(30, 30, 1)), colour)
    assert resolver.upscale(image(1, 1)[..., 0].astype(np.uint16) * 257).shape == (4, 4)
    # The colours are the input's, whatever the network makes of them.
    mean = np.asarray(Image.fromarray(colour).resize((7, 9), Image.Resampling.BICUBIC)).mean((0, 1))
    np.testing.assert_allclose(mean, image(9, 7).mean((0, 1)), atol=2)
    with pytest.raises(InputError, match="low_res has dtype float64"):
        resolver.upscale(np.zeros((4, 4, 3)))
    with pytest.raises(InputError, match="memory is 0"):
        SingleImageResolver(network, memory=0)


def test_result_does_not_depend_on_tiles(network):
    picture = image(60, 80)
    whole = SingleImageResolver(network, memory=10**9)
    tiled = SingleImageResolver(network, memory=10**9)
    tiled._memory = MemoryPlan(2 * 48**2, 1, 0)
    steps = []
    result = tiled.upscale(picture, progress=lambda done, all_of_them: steps.append((done, all_of_them)))
    assert len(steps) > 3
    assert steps[-1][0] == steps[-1][1]
    assert np.abs(result.astype(int) - whole.upscale(picture)).max() <= 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model folder as the stage writes it, and the reported lines."""
    root = tmp_path_factory.mktemp("yardstick")
    (root / "photos").mkdir()
    for number in range(3):
        Image.fromarray(image(40, 60, number)).save(root / "photos" / f"{number}.png")
    config = parse_config(
        {
            "stage": "single_image",
            "name": "tiny",
            "output": str(root / "model"),
            "run": str(root / "run"),
            "data_root": str(root),
            "data": {
                "images": ["photos"],
                "exclude": [{"scene": "photos", "photos": ["2"]}],
                "crop": 16,
            },
            "model": {"features": 8, "blocks": 1},
            "train": {"steps": 2, "batch": 2, "learning_rate": {"initial": 1.0e-3}, "ema": 0.9},
            "validation": {
                "images": ["photos"],
                "only": [{"scene": "photos", "photos": ["2"]}],
                "crop": 32,
                "every": 2,
            },
        }
    )
    lines = []
    state = train(config, ["tfcorr", "train", "tiny.yaml", f"data_root={root}"], lines.append)
    assert state.step == 2
    return root / "model", lines


def test_the_run_shows_pictures(trained):
    ((name, written),) = logged_pictures(trained[0].parent / "run").items()
    ((step, (shown,)),) = written
    assert (name, step, shown.shape) == ("bicubic, restored, truth", 2, (32, 96, 3))
    truth = image(40, 60, 2)[4:36, 14:46]
    np.testing.assert_array_equal(shown[:, 64:], truth)
    small = Image.fromarray(truth).resize((8, 8), Image.Resampling.BICUBIC)
    enlarged = np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(shown[:, :32] - enlarged).max() <= 1


def test_the_stage_writes_a_model(trained):
    folder, lines = trained
    card = json.loads((folder / "card.json").read_text())
    assert card["job"] == SINGLE_IMAGE
    assert card["architecture"] == {"features": 8, "blocks": 1}
    assert card["training"]["command"] == "tfcorr train tiny.yaml"
    assert set(card["metrics"]["validation"]) >= {"psnr_y", "gain"}
    assert any(line.startswith("tiny: 2 images") for line in lines)
    resolver = SingleImageResolver.from_pretrained(folder)
    assert resolver.upscale(image(5, 6)).shape == (20, 24, 3)
    with pytest.raises(ModelError, match="expected one for super-resolution"):
        find_model(folder)


def test_a_folder_that_does_not_fit_is_refused(trained, tmp_path):
    folder, _ = trained
    card = json.loads((folder / "card.json").read_text())
    copy = tmp_path / "model"
    copy.mkdir()
    (copy / "model.weights.h5").write_bytes((folder / "model.weights.h5").read_bytes())
    for architecture in ({"features": 4, "blocks": 1}, {"width": 8}):
        (copy / "card.json").write_text(json.dumps({**card, "architecture": architecture}))
        with pytest.raises(ModelError, match="do not fit"):
            SingleImageResolver.from_pretrained(copy)


def test_evaluations_measure_it_without_references(trained, tmp_path):
    folder, _ = trained
    contenders, models = find_contenders(
        [str(folder)], ("true", "unrelated"), tmp_path / "r.json", setting="4-none", memory=None
    )
    assert contenders[0].references == ("none",)
    assert contenders[0].upscaler.upscale(image(6, 6), None).shape == (24, 24, 3)
    assert models["tiny"]["parameters"]["total"] == contenders[0].upscaler.model.count_params()
