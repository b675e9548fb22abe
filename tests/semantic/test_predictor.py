"""`SemanticMatcher` and `tfcorr match`, on a backbone whose features are the pixels."""

import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tfcorr.cli import main
from tfcorr.errors import InputError
from tfcorr.pretrained import ModelError
from tfcorr.semantic.figures import keypoint_figure, match_figure, warped_target
from tfcorr.semantic.loading import SEMANTIC_MATCHING, load_network, save_network
from tfcorr.semantic.network import MatchingHead, SemanticMatchingNetwork
from tfcorr.semantic.predictor import SemanticMatcher


class Blocks(keras.Model):
    """Each map holds the pixels of its blocks: what is alike is similar, and nothing else."""

    def call(self, images, training=None):
        maps = {}
        for stride in (16, 32):
            batch, height, width = images.shape[0], images.shape[1] // stride, images.shape[2] // stride
            cut = keras.ops.reshape(images, (batch, height, stride, width, stride, 3))
            cut = keras.ops.transpose(cut, (0, 1, 3, 2, 4, 5))
            maps[stride] = keras.ops.reshape(cut, (batch, height, width, stride * stride * 3)) - 0.5
        return maps


@pytest.fixture(scope="module")
def matcher():
    head = MatchingHead((16 * 16 * 3, 32 * 32 * 3), blocks=0, attention="none")
    return SemanticMatcher(SemanticMatchingNetwork(head, Blocks()), size=320)


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (320, 320, 3), np.uint8)


def test_the_direction_and_the_unit(matcher, photo):
    """The target is the source moved right by 64 and down by 32 pixels, at twice the width."""
    moved = np.roll(photo, (32, 64), axis=(0, 1))
    target = np.repeat(moved, 2, axis=1)
    result = matcher.match(photo, target, details=True)
    assert result.flow.shape == (320, 320, 2) and result.flow.dtype == np.float32
    middle = result.flow[80:240, 80:200]
    x = np.arange(80, 200)
    # One cell of the feature grid is 17 pixels of the source, twice that across the target.
    assert np.abs(middle[..., 0] - (x + 64) * 639 / 319 + x).max() < 12
    assert np.abs(middle[..., 1] - 32).max() < 6
    # The other direction is its inverse, so it is trusted.
    assert result.confidence[80:240, 80:200].min() > 0.9
    np.testing.assert_array_equal(matcher.match(photo, target), result.flow)
    points = np.array([[100.0, 100], [150.5, 200.25]])
    places = result.transfer(points)
    np.testing.assert_allclose(places, matcher.transfer(photo, target, points), atol=1e-4)
    np.testing.assert_allclose(places[0], points[0] + result.flow[100, 100], atol=1e-4)
    assert np.abs(result.warped[100:220, 100:180].astype(int) - photo[100:220, 100:180]).mean() < 100


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (33, 47)])
def test_any_size_and_dtype(matcher, photo, size):
    small = photo[: size[0], : size[1]]
    flow = matcher.match(small, photo)
    assert flow.shape == (*size, 2) and np.isfinite(flow).all()
    same = [small.astype(np.float32) / 255, small.astype(np.uint16) * 257]
    for image in same:
        np.testing.assert_allclose(matcher.match(image, photo), flow, atol=1e-3)
    grey = matcher.match(small[..., 0], photo)
    np.testing.assert_array_equal(matcher.match(small[..., :1], photo), grey)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 5), np.uint8), "source: expected an image"),
        (np.zeros((0, 4, 3), np.uint8), "source: pixels must be non-empty"),
        (np.zeros((4, 4, 3), np.int64), "source: pixels must be uint8"),
        (np.full((4, 4, 3), np.nan), "source has values that are not finite"),
        (np.full((4, 4, 3), 200.0), "source has values from 200 to 200, expected float values in"),
    ],
)
def test_images_that_cannot_be_used(matcher, photo, image, message):
    with pytest.raises(InputError, match=message):
        matcher.match(image, photo)


def test_points_that_cannot_be_used(matcher, photo):
    result = matcher.match(photo, photo, details=True)
    with pytest.raises(InputError, match=r"shape \(3,\), expected \(N, 2\)"):
        result.transfer([1, 2, 3])
    with pytest.raises(InputError, match=r"point 1 is at \(320, 5\), outside of the source \(320 x 320"):
        result.transfer([[0, 0], [320, 5]])


def test_the_target_warped_by_a_known_flow():
    target = np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3)
    flow = np.broadcast_to(np.array([2.0, 1.0]), (5, 6, 2))
    np.testing.assert_array_equal(warped_target(target, flow), target[1:6, 2:8])
    assert warped_target(target, flow + 100).max() == 0


def test_figures_have_their_panels(photo):
    from pathlib import Path

    from tfcorr.semantic.datasets import KeypointPair
    from tfcorr.semantic.pck import PairScore

    flow, confidence = np.zeros((320, 320, 2), np.float32), np.ones((320, 320), np.float32)
    drawn = match_figure(photo, photo, flow, confidence)
    assert drawn.dtype == np.uint8 and drawn.shape[1] > 3 * 420
    nothing = match_figure(photo, photo, flow, np.zeros((320, 320), np.float32))
    assert nothing.shape == drawn.shape
    points = np.array([[10.0, 20], [300, 200]])
    pair = KeypointPair(Path("a"), Path("b"), "", source_points=points, target_points=points)
    score = PairScore(points + 5, points, np.array([7.0, 7.0]), 100.0, (320, 320))
    sheet = keypoint_figure(photo, photo, pair, {"model": score, "teacher": score, "identity": score})
    assert sheet.shape[0] > 2 * 420


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tfcorr.backbones import backbone

    keras.utils.set_random_seed(0)
    frozen = backbone("mobilenet", None, {"alpha": 0.25})
    channels = frozen.widths[16], frozen.widths[32]
    network = SemanticMatchingNetwork(MatchingHead(channels), frozen)
    place = tmp_path_factory.mktemp("models") / "tiny"
    save_network(
        place,
        network,
        backbone={"name": "mobilenet", "arguments": {"alpha": 0.25}},
        size=64,
        card={"name": "tiny", "job": SEMANTIC_MATCHING},
    )
    return place, network


def test_a_model_folder_comes_back(folder, photo):
    place, network = folder
    loaded = load_network(place)
    for a, b in zip(network.get_weights(), loaded.network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    matcher = SemanticMatcher.from_pretrained(place)
    assert (matcher.size, matcher.card.name) == (64, "tiny")
    known = SemanticMatcher(network, size=64).match(photo, photo[:100])
    np.testing.assert_allclose(matcher.match(photo, photo[:100]), known, atol=1e-3)
    assert not matcher.network.mirror
    assert SemanticMatcher.from_pretrained(place, mirror=True).network.mirror


def test_a_model_that_looks_twice_does_so_unless_told_not_to(folder, tmp_path):
    _, network = folder
    twice = SemanticMatchingNetwork(network.head, network.backbone, mirror=True)
    card = {"name": "twice", "job": SEMANTIC_MATCHING}
    backbone = {"name": "mobilenet", "arguments": {"alpha": 0.25}}
    save_network(tmp_path / "twice", twice, backbone=backbone, size=64, card=card)
    assert SemanticMatcher.from_pretrained(tmp_path / "twice").network.mirror
    assert not SemanticMatcher.from_pretrained(tmp_path / "twice", mirror=False).network.mirror


def test_without_a_model_it_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr("tfcorr.pretrained.models_dirs", list)
    with pytest.raises(ModelError, match=r"no model for semantic-matching is installed.*tfcorr train"):
        SemanticMatcher.from_pretrained()


@pytest.fixture
def call(folder, photo, tmp_path):
    for name, cut in (("one", photo[:60, :80]), ("other", photo[:70, 100:150])):
        Image.fromarray(cut).save(tmp_path / f"{name}.png")
    (tmp_path / "in.csv").write_text("name,x,y\neye,10,20\nbeak,79,59.4\n")

    def run(*arguments):
        given = [str(tmp_path / word) if "." in word and "-" not in word else word for word in arguments]
        return main(["match", *given, "--model", str(folder[0])])

    return run


def test_command_writes_flow_figure_and_points(call, tmp_path, capsys):
    images = ("one.png", "other.png")
    output = (
        "--output",
        "flow.npz",
        "--figure",
        "fig.png",
        "--points",
        "in.csv",
        "--points-output",
        "out.csv",
    )
    assert call(*images, *output, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["source_size"] == [80, 60] and told["target_size"] == [50, 70] and len(told["written"]) == 3
    with np.load(tmp_path / "flow.npz") as archive:
        flow, confidence = archive["flow"], archive["confidence"]
    assert flow.shape == (60, 80, 2) and flow.dtype == np.float32
    assert confidence.shape == (60, 80) and 0 <= confidence.min() <= confidence.max() <= 1
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["eye", "beak"]
    np.testing.assert_allclose(float(rows[0]["target_x"]), 10 + flow[20, 10, 0], atol=0.01)
    assert Image.open(tmp_path / "fig.png").size[0] > 700
    # What is there is not replaced without being told to.
    before = (tmp_path / "flow.npz").read_bytes()
    assert call(*images, "--output", "flow.npz") == 1
    assert "flow.npz: is there already (--overwrite replaces it)" in capsys.readouterr().err
    assert (tmp_path / "flow.npz").read_bytes() == before
    assert call(*images, "--output", "flow.npz", "--overwrite") == 0
    assert "both directions agree for" in capsys.readouterr().out
    assert not list(tmp_path.glob(".tfcorr*"))


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("one.png", "other.png", "--output", "flow.txt"), 2, "expected a name that ends in .npz"),
        (("one.png", "other.png", "--output", "f.npz", "--points", "in.csv"), 2, "belong together"),
        (("one.png", "absent.png", "--output", "f.npz"), 1, "absent.png: "),
        (
            ("one.png", "other.png", "--output", "f.npz", "--points", "in.csv", "--points-output", "in.csv"),
            2,
            "outputs must differ",
        ),
    ],
)
def test_wrong_calls_say_so_in_one_line(call, tmp_path, capsys, words, status, message):
    assert call(*words) == status
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "expected a header line with the columns x and y"),
        ("x,y\n", "has no points"),
        ("x,y\n1,two\n", "line 2: x is '1', y is 'two', expected numbers"),
        ("x,y\n1\n", "line 2: not as many values as the header has columns"),
        ("x,y\n1e999,2\n", "line 2: x is '1e999', y is '2', expected numbers"),
        ("x,y\nnan,2\n", "line 2: x is 'nan', y is '2', expected numbers"),
        ("x,y\n1," + "2" * 200_000 + "\n", "not a CSV file (field larger than field limit"),
        ("x,y\n1," + "x" * 100_000 + "\n", "line 2: x is '1', y is 'xxxxx"),
        ("x" * (2 << 20), "has a line of more than 1,048,576 characters"),
        ("x,y\n\x1b[2J,2\n", "line 2: x is '\\x1b[2J', y is '2', expected numbers"),
        ("x,y\n1,2,3\n", "line 2: more values than the header has columns"),
        ("x,y\n500,2\n", "point 0 is at (500, 2), outside of the source (80 x 60 pixels)"),
    ],
)
def test_points_files_that_cannot_be_used(call, tmp_path, capsys, text, message):
    (tmp_path / "in.csv").write_text(text)
    words = ("--output", "f.npz", "--points", "in.csv", "--points-output", "out.csv")
    assert call("one.png", "other.png", *words) == 1
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and told[:-1].isprintable() and len(told) < 500
    assert not (tmp_path / "f.npz").exists() and not (tmp_path / "out.csv").exists()


def test_the_shipped_model_finds_a_moved_window():
    sample = Path(__file__).parents[2] / "docs" / "sample" / "ground_truth.png"
    image = np.asarray(Image.open(sample).convert("RGB"))
    dy, dx = (side // 8 for side in image.shape[:2])
    source, target = image[dy:, dx:], image[:-dy, :-dx]
    flow = SemanticMatcher.from_pretrained().match(source, target)
    # A place in the source lies (dx, dy) further right and down in the target; at the rim it lies outside.
    height, width = source.shape[:2]
    inner = flow[height // 8 : -height // 4, width // 8 : -width // 4]
    error = np.hypot(inner[..., 0] - dx, inner[..., 1] - dy)
    assert np.median(error) < 0.03 * max(height, width)
    assert (error < 0.1 * max(height, width)).mean() > 0.9
