"""tfcorr bench matching: its truth is that of the op, and what it reports."""

import json

import numpy as np
import pytest
from PIL import Image

from tfcorr import cli
from tfcorr.bench import matching, matching_work
from tfcorr.ops import match_patches


def test_the_exact_matches_are_those_of_the_op():
    rng = np.random.default_rng(0)
    query, reference = (rng.normal(size=(h, w, 8)).astype("float32") for h, w in ((9, 12), (11, 10)))
    expected = match_patches(query[None], reference[None], implementation="reference")
    sample = np.array([0, 9, 10, 55, 69])
    index, score = matching_work.exact_matches(query, reference, sample)
    np.testing.assert_array_equal(index, np.asarray(expected.index).ravel()[sample])
    np.testing.assert_allclose(score, np.asarray(expected.score).ravel()[sample], atol=1e-5)


def test_mosaic():
    photos = [np.full((4, 5, 3), value, np.uint8) for value in range(3)]
    found = matching_work._mosaic(photos, 7, 9, 1)[..., 0]
    assert found.shape == (7, 9)
    np.testing.assert_array_equal(found[[0, 0, 5, 5], [0, 8, 0, 8]], [1, 2, 0, 1])


def test_blocks_have_the_descriptors_of_the_whole(tiny_model_folder):
    from tfcorr.refsr.matching import l2_normalize

    network = matching_work._matcher(str(tiny_model_folder))
    image = np.random.default_rng(0).random((600, 24, 3), "float32")
    parts = matching_work._in_blocks(
        image, 4, 12, lambda part: network.reference_features(part[None])["conv3_1"]
    )
    whole = np.asarray(l2_normalize(network.reference_features(image[None])["conv3_1"]))[0]
    np.testing.assert_allclose(parts, whole, atol=1e-5)


@pytest.mark.slow
def test_command(tmp_path, capsys):
    for name in ("a", "b"):
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((160, 140)).save(tmp_path / f"{name}.png")
    target = tmp_path / "figures.json"
    options = [
        "--input",
        str(tmp_path / "a.png"),
        "--reference",
        str(tmp_path / "b.png"),
        "--size",
        "240x200",
    ]
    options += ["--sampled", "50", "--exact", "--threads", "1", "--json", str(target)]
    assert cli.main(["bench", "matching", *options]) == 0
    (row,) = json.loads(target.read_text())["rows"]
    assert row["size"] == [200, 240]
    assert row["pairs"] == (48 * 58) ** 2
    assert 0.5 < row["equal"] <= row["within_one"] <= 1
    assert 0 < row["index_s"] < row["median_s"] and row["exact_s"] > 0
    assert "240x200" in capsys.readouterr().out


def test_wrong_calls(tmp_path, capsys):
    assert cli.main(["bench", "matching", "--input", str(tmp_path / "a.png")]) == 2
    assert "1 --input and 0 --reference" in capsys.readouterr().err
    with pytest.raises(ValueError, match="smaller side must be at least 64"):
        matching.run(size=(60, 80))
