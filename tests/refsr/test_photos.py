"""Lists of photos and pairs: rules, layouts, and files that cannot be read."""

import csv
import dataclasses
import logging

import numpy as np
import pytest
from PIL import Image

from tfcorr.config import PairSource, PhotoRule
from tfcorr.refsr.photos import DataError, PhotoCache, at_least, find_images, find_pairs


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for scene, count in (("church", 3), ("market", 2)):
        (tmp_path / "albums" / scene).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "albums" / scene / f"{i:03d}.png")
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scene", "input", "reference", "x", "y", "ref_x", "ref_y"])
        writer.writerow(["church", "000.png", "001.png", 1, 2, 3, 4])
        writer.writerow(["church", "001.png", "002.png", 0, 0, 0, 0])
        writer.writerow(["market", "000.png", "001.png", 0, 0, 0, 0])
    return tmp_path


def names(paths):
    return [f"{p.parent.name}/{p.stem}" for p in paths]


ALBUMS = PairSource(
    csv="pairs.csv", input_path="albums/{scene}/{input}", reference_path="albums/{scene}/{reference}"
)


def test_images_and_rules(root):
    everything = find_images(["albums"], str(root))
    assert names(everything) == ["church/000", "church/001", "church/002", "market/000", "market/001"]
    assert names(find_images(["albums/*/000.png", "albums/market"], str(root))) == [
        "church/000",
        "market/000",
        "market/001",
    ]
    rules = [PhotoRule("market"), PhotoRule("church", ("001",))]
    assert names(find_images(["albums"], str(root), exclude=rules)) == ["church/000", "church/002"]
    assert names(find_images(["albums"], str(root), only=rules)) == ["church/001", "market/000", "market/001"]
    with pytest.raises(DataError, match="nowhere: no images there"):
        find_images(["nowhere"], str(root))
    with pytest.raises(DataError, match="none of the 5 images is left"):
        find_images(["albums"], str(root), exclude=[PhotoRule("church"), PhotoRule("market")])


def test_pairs_and_rules(root):
    pairs = find_pairs([ALBUMS], str(root))
    assert [p.scene for p in pairs] == ["church", "church", "market"]
    assert pairs[0].at == (2, 1) and pairs[0].reference_at == (4, 3)
    assert names([pairs[0].input, pairs[0].reference]) == ["church/000", "church/001"]
    # A rule takes a pair out if it covers either side, and keeps it, as `only`, if it covers both.
    one = [PhotoRule("church", ("001",))]
    assert [p.scene for p in find_pairs([ALBUMS], str(root), exclude=one)] == ["market"]
    two = [PhotoRule("church", ("001", "002"))]
    assert names(p.input for p in find_pairs([ALBUMS], str(root), only=two)) == ["church/001"]
    with pytest.raises(DataError, match="none of its 3 pairs is left"):
        find_pairs([ALBUMS], str(root), only=one)


def test_rows_of_a_list(root):
    some = dataclasses.replace(ALBUMS, where={"scene": ("market", "castle"), "reference": ("001.png",)})
    assert [p.scene for p in find_pairs([some], str(root))] == ["market"]
    with pytest.raises(DataError, match=r"pairs\.csv: no column 'level'; its columns are scene, input"):
        find_pairs([dataclasses.replace(ALBUMS, where={"level": ("L1",)})], str(root))
    with pytest.raises(DataError, match=r"pairs\.csv: register is for pairs of whole photos"):
        find_pairs([dataclasses.replace(ALBUMS, register=True)], str(root))
    (root / "whole.csv").write_text("input,reference\na.png,b.png\n")
    (pair,) = find_pairs([PairSource(csv="whole.csv", register=True)], str(root))
    assert pair.register and not find_pairs([PairSource(csv="whole.csv")], str(root))[0].register


def test_folder_pairs(root):
    pairs = find_pairs([PairSource(input_dir="albums/church", reference_dir="albums/market")], str(root))
    assert [(p.input.name, p.at, p.columns) for p in pairs] == [("000.png", None, {}), ("001.png", None, {})]
    with pytest.raises(DataError, match="no file name in common"):
        find_pairs([PairSource(input_dir="albums/church", reference_dir="albums")], str(root))


def test_bad_lists(root):
    with pytest.raises(DataError, match="no such list of pairs"):
        find_pairs([PairSource(csv="missing.csv")], str(root))
    with pytest.raises(DataError, match="no column 'left'; its columns are scene"):
        find_pairs([PairSource(csv="pairs.csv", input_path="{left}")], str(root))
    (root / "bad.csv").write_text("input,reference,x,y\na,b,1,two\n")
    with pytest.raises(DataError, match=r"bad\.csv, line 2: .*'two'"):
        find_pairs([PairSource(csv="bad.csv")], str(root))
    for line in ("a", "a,b,c"):
        (root / "bad.csv").write_text(f"input,reference\n{line}\n")
        with pytest.raises(
            DataError, match=r"bad\.csv, line 2: (more|not as many) values (than|as) the header"
        ):
            find_pairs([PairSource(csv="bad.csv")], str(root))


def test_a_list_saved_by_a_spreadsheet(root):
    (root / "marked.csv").write_text("input,reference\na.png,b.png\n", encoding="utf-8-sig")
    (pair,) = find_pairs([PairSource(csv="marked.csv")], str(root))
    assert (pair.input.name, pair.reference.name) == ("a.png", "b.png")


def test_cache(root, caplog):
    cache = PhotoCache(keep=1)
    good, other = (root / "albums" / "church" / f"00{i}.png" for i in range(2))
    assert cache.get(good) is cache.get(good)
    first = cache.get(good)
    cache.get(other)
    assert cache.get(good) is not first
    np.testing.assert_array_equal(cache.get(good), np.asarray(Image.open(good)))
    Image.fromarray(np.full((4, 5), 7, np.uint8)).save(root / "grey.png")
    assert cache.get(root / "grey.png").shape == (4, 5, 3)
    broken = root / "broken.png"
    broken.write_bytes(good.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        assert cache.get(broken) is None and cache.get(broken) is None
        assert cache.get(root / "missing.png") is None
    assert set(cache.bad) == {broken, root / "missing.png"}
    assert [str(broken) in r.message for r in caplog.records] == [True, False]


def test_small_photos_are_enlarged():
    assert at_least(np.zeros((20, 30, 3), np.uint8), 40).shape == (40, 60, 3)
    image = np.zeros((50, 60, 3), np.uint8)
    assert at_least(image, 40) is image
