"""Data sets in their published layouts, on made-up files, and on the real annotation where it is there."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfcorr.config.semantic import ImageSet, PairSet
from tfcorr.semantic.datasets import (
    ImagePair,
    KeypointPair,
    find_image_set,
    find_pairs,
    in_training,
    overlap_warning,
)
from tfcorr.semantic.keypoints import keypoint_flow, normalised
from tfcorr.semantic.synthetic import affine_places, identity_places
from tfcorr.training.photos import DataError


@pytest.fixture
def root(tmp_path):
    def image(path):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / path)

    for name in ("a1", "a2", "a3", "b1", "b2"):
        image(f"classes/{name[0]}/{name}.jpg")
    (tmp_path / "pairs.csv").write_text(
        "\ufeffsource,target,category,source_x,source_y,target_x,target_y,source_box,target_box\n"
        "a/a1.jpg,a/a2.jpg,a,1;2;3.5,4;5;6,7;8;9,1;2;3,0;0;10;20,1;1;5;6\n"
        "a/a2.jpg,b/b1.jpg,a,1,2,3,4,,\n"
    )
    (tmp_path / "held.csv").write_text("image\nclasses/a/a3.jpg\nclasses/b/b2.jpg\n")
    return tmp_path


def names(pairs):
    return [(pair.source.stem, pair.target.stem) for pair in pairs]


def test_own_list(root):
    first, second = find_pairs(PairSet("csv", "classes", "pairs.csv"), str(root))
    assert first.source == root / "classes/a/a1.jpg" and first.category == "a"
    np.testing.assert_array_equal(first.source_points, [[1, 4], [2, 5], [3.5, 6]])
    np.testing.assert_array_equal(first.target_points, [[7, 1], [8, 2], [9, 3]])
    assert first.source_box == (0, 0, 10, 20) and second.source_box is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,b,c,1;2,1,1;2,1;2,,", "line 2: 2 values of x and 1 of y"),
        ("a,b,c,1;2,1;2,1,1,,", "line 2: 2 points in the source and 1 in the target"),
        ("a,b,c,,,,,,", "line 2: 0 points in the source"),
        ("a,b,c,1,x,1,1,,", "line 2: could not convert string to float: 'x'"),
        ("a,b,c,1,1,1,1,5;5;1;9,", "line 2: '5;5;1;9' is no box"),
        ("a,b", "line 2: not as many values as the header has columns"),
    ],
)
def test_broken_rows_are_named(root, line, message):
    header = (root / "pairs.csv").read_text().splitlines()[0]
    (root / "broken.csv").write_text(f"{header}\n{line}\n")
    with pytest.raises(DataError, match=message):
        find_pairs(PairSet("csv", "classes", "broken.csv"), str(root))


def test_pairs_of_folders(root):
    matched = find_pairs(PairSet("folders", "classes", pairing="matched"), str(root))
    assert len(matched) == 3 * 2 + 2 * 1
    assert all(pair.category == pair.source.parent.name == pair.target.parent.name for pair in matched)
    assert all(pair.source != pair.target for pair in matched)
    unmatched = find_pairs(PairSet("folders", "classes", pairing="unmatched", count=12), str(root))
    assert len(set(names(unmatched))) == 12
    assert all(pair.source.parent != pair.target.parent for pair in unmatched)
    random = PairSet("folders", "classes", pairing="random", count=20, seed=3)
    assert len(set(names(find_pairs(random, str(root))))) == 20
    assert names(find_pairs(random, str(root))) == names(find_pairs(random, str(root)))
    without = PairSet("folders", "classes", pairing="matched", exclude=("held.csv",))
    assert names(find_pairs(without, str(root))) == [("a1", "a2"), ("a2", "a1")]
    only = PairSet("folders", "classes", pairing="random", count=2, only=("held.csv",))
    assert sorted(names(find_pairs(only, str(root)))) == [("a3", "b2"), ("b2", "a3")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairing": "random"}, "pairing random needs a count"),
        ({"pairing": "unmatched", "count": 13}, "12 unmatched pairs of 5 images, asked for 13"),
        ({}, "layout folders has no list"),
        ({"pairing": "matched", "path": "absent"}, "no images in its folders"),
    ],
)
def test_folders_that_cannot_give_the_pairs(root, changes, message):
    with pytest.raises(DataError, match=message):
        find_pairs(PairSet(**{"layout": "folders", "path": "classes", **changes}), str(root))


def test_image_sets(root):
    everything = find_image_set(ImageSet(images=("classes",)), str(root))
    held = find_image_set(ImageSet(images=("classes",), only=("held.csv",)), str(root))
    rest = find_image_set(ImageSet(images=("classes",), exclude=("held.csv",)), str(root))
    assert len(everything) == 5 and {path.stem for path in held} == {"a3", "b2"}
    assert set(held) | set(rest) == set(everything) and not set(held) & set(rest)
    listed = find_image_set(ImageSet(list="held.csv"), str(root))
    assert listed == [root / "classes/a/a3.jpg", root / "classes/b/b2.jpg"]
    with pytest.raises(DataError, match="none of 2 images is left"):
        find_image_set(ImageSet(list="held.csv", exclude=("held.csv",)), str(root))


def test_spair_layout(root):
    folder = root / "SPair/PairAnnotation/val"
    folder.mkdir(parents=True)
    entry = {
        "filename": "000001-x-y:cat",
        "category": "cat",
        "src_imname": "x.jpg",
        "trg_imname": "y.jpg",
        "src_kps": [[1, 2], [30, 40]],
        "trg_kps": [[5, 6], [7, 8]],
        "src_bndbox": [0, 1, 50, 60],
        "trg_bndbox": [2, 3, 40, 50],
    }
    (folder / "000001-x-y:cat.json").write_text(json.dumps(entry))
    (pair,) = find_pairs(PairSet("spair", "SPair", split="val"), str(root))
    assert pair.source == root / "SPair/JPEGImages/cat/x.jpg" and pair.category == "cat"
    np.testing.assert_array_equal(pair.target_points, [[5, 6], [7, 8]])
    assert pair.source_box == (0, 1, 50, 60)
    (folder / "000002-x-y:cat.json").write_text("{}")
    with pytest.raises(DataError, match=r"000002-x-y:cat\.json: not an annotation of SPair-71k"):
        find_pairs(PairSet("spair", "SPair", split="val"), str(root))
    with pytest.raises(DataError, match="no annotations"):
        find_pairs(PairSet("spair", "SPair", split="trn"), str(root))


def test_overlap():
    pair = [ImagePair(Path(a), Path(b)) for a, b in ("xy", "yz", "zx")]
    known = [ImagePair(Path("y"), Path("z"), flip=True), ImagePair(Path("y"), Path("x"))]
    # Also mirrored, and with the roles exchanged: a student learns both directions from a pair.
    assert in_training(pair, known) == [True, True, False]
    assert "2 of its 3 pairs stand in the training list" in overlap_warning("birds", pair, known)
    assert overlap_warning("birds", pair[2:], known) is None


def real_lists():
    folder = Path(os.environ.get("TFCORR_DATA", "")) / "semantic"
    if not (folder / "PF_Pascal").is_dir():
        pytest.skip("needs the published lists below $TFCORR_DATA/semantic")
    return str(folder)


def test_published_lists():
    root = real_lists()
    test = find_pairs(PairSet("pf_pascal", "PF_Pascal", "PF_Pascal/bbox_test_pairs_pf_pascal.csv"), root)
    assert len(test) == 299 and all(isinstance(pair, KeypointPair) for pair in test)
    first = test[0]
    assert (first.source.name, first.category) == ("2011_001407.jpg", "aeroplane")
    np.testing.assert_allclose(first.source_points[0], [253.631662, 58.181333], atol=1e-6)
    assert min(len(pair.source_points) for pair in test) == 4
    # The stated length is the longer side of the box.
    sides = [max(p.source_box[2] - p.source_box[0], p.source_box[3] - p.source_box[1]) for p in test]
    np.testing.assert_allclose(sides, [pair.source_side for pair in test], atol=1e-6)
    training = PairSet("pf_pascal", "PF_Pascal", "weakalign/pf-pascal-flip/train_pairs.csv")
    trained = find_pairs(training, root)
    assert len(trained) == 2940 and sum(pair.flip for pair in trained) == 1470
    assert sum(in_training(test, trained)) == 95
    val = find_pairs(PairSet("pf_pascal", "PF_Pascal", "PF_Pascal/bbox_val_pairs_pf_pascal.csv"), root)
    assert (len(val), sum(in_training(val, trained))) == (308, 99)
    willow = find_pairs(PairSet("pf_willow", "PF_WILLOW", "PF_WILLOW/test_pairs_pf.csv"), root)
    assert len(willow) == 900 and len({pair.category for pair in willow}) == 10
    assert willow[0].category == "car(G)"
    np.testing.assert_allclose(willow[0].target_points[9], [97.285792, 127.612669], atol=1e-6)
    images = ImageSet(list="weakalign/pascal-random/train.csv")
    assert len(find_image_set(images, root)) == 13500
    random = find_pairs(
        PairSet("pf_pascal", "PF_Pascal", training.list, pairing="random", count=60_000), root
    )
    matched = np.mean([a.category == b for a, b in zip(random, categories(random, trained), strict=True)])
    # The paper: fewer than 5 % of the random pairs match; the list's classes are not equally large.
    assert len(random) == 60_000 and matched < 0.1


def categories(pairs, trained):
    known = {path: pair.category for pair in trained for path in (pair.source, pair.target)}
    return [known[pair.target] for pair in pairs]


def test_keypoints_become_a_flow_near_them():
    rng = np.random.default_rng(0)
    matrix = np.array([[1.1, 0.1, 0.1], [-0.1, 0.9, -0.05]])
    target = rng.uniform(20, 80, (8, 2))
    places = affine_places(matrix, normalised(target, (100, 120)))
    source = (places + 1) / 2 * (199, 149)
    flow, valid = keypoint_flow(source, target, (150, 200), (100, 120), grid=(12, 12), radius=1.5)
    grid = identity_places(12, 12)
    # Points of an affine map give that map.
    expected = affine_places(matrix, grid) - grid
    np.testing.assert_allclose(flow[valid], expected[valid], atol=0.02)
    distance = np.linalg.norm((grid[:, :, None] - normalised(target, (100, 120))) * 5.5, axis=-1).min(-1)
    np.testing.assert_array_equal(valid[distance <= 1.5], True)
    assert not valid[distance > 1.5].any()
    # One point, and points on a line, fix a shift only.
    for few in (1, 3):
        line = np.linspace(20, 60, few)[:, None] * [1, 1]
        flow, valid = keypoint_flow(line + 10, line, (101, 101), (101, 101), grid=(6, 6), radius=0)
        np.testing.assert_allclose(flow[valid], 0.2, atol=1e-9)
        assert 1 <= valid.sum() <= few
