"""Training samples: determinism, alignment of flips and crops, the degradation, files that cannot be read."""

import dataclasses

import cv2
import numpy as np
import pytest
from PIL import Image

from tfcorr.config import HomographySampling, Photometric, SingleImages
from tfcorr.refsr.data import MatcherSamples, RestorerSamples, warped_pair
from tfcorr.refsr.photos import DataError, Pair, PhotoCache

WIDE = HomographySampling(kind="wide", rotation=30.0, scale=(0.8, 1.2), perspective=0.05, shift=0.05)
STRONG = Photometric(probability=1.0)


def smooth(seed, height=96, width=112):
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.random((height, width, 3)), (0, 0), 4)
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return (noise * 255).astype(np.uint8)


@pytest.fixture
def photos(tmp_path):
    paths = []
    for i in range(5):
        path = tmp_path / f"{i}.png"
        Image.fromarray(smooth(i)).save(path)
        paths.append(path)
    return paths


def matcher_samples(paths, **changes):
    arguments = {
        "crop": 32,
        "homography": WIDE,
        "photometric": STRONG,
        "border": 2.0,
        "batch": 3,
        "seed": 7,
        **changes,
    }
    return MatcherSamples(paths, PhotoCache(), **arguments)


def restorer_samples(pairs, **changes):
    arguments = {"patch": 32, "crop": 24, "photometric": Photometric(), "batch": 2, "seed": 7, **changes}
    return RestorerSamples(pairs, PhotoCache(), **arguments)


def pairs_of(paths):
    return [
        Pair("s", a, b, (3, 5), (7, 9), {"row": "1"})
        for a, b in zip(paths, paths[1:] + paths[:1], strict=True)
    ]


def assert_equal_batches(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


def test_batches_depend_on_seed_and_number_alone(photos):
    first, second = matcher_samples(photos), matcher_samples(photos)
    second.batch(5)
    assert_equal_batches(first.batch(4), second.batch(4))
    assert not np.array_equal(first.batch(4)["image"], first.batch(5)["image"])
    assert not np.array_equal(first.batch(4)["image"], matcher_samples(photos, seed=8).batch(4)["image"])
    # A run that goes on at batch 3, with other workers, sees what an uninterrupted one sees.
    whole = list(first.dataset(0, 5, workers=1))
    rest = list(second.dataset(3, 5, workers=3))
    assert len(rest) == 2
    for a, b in zip(whole[3:], rest, strict=True):
        assert_equal_batches(a, b)


def test_each_item_once_an_epoch(photos):
    samples = matcher_samples(photos, batch=5)
    seen = []
    samples.sample = lambda item, rng: seen.append(item) or {"n": np.zeros(1)}
    samples.batch(0)
    samples.batch(1)
    assert sorted(seen[:5]) == sorted(photos) == sorted(seen[5:])
    assert seen[:5] != seen[5:]


def test_matcher_sample(photos):
    batch = matcher_samples(photos, photometric=Photometric(), crop=48).batch(0)
    shapes = {name: (array.shape, array.dtype) for name, array in batch.items()}
    image = ((3, 48, 48, 3), np.float32)
    assert shapes == {
        "image": image,
        "upsampled": image,
        "reference": image,
        "target": ((3, 144, 2), np.int32),
        "valid": ((3, 144), np.bool_),
    }
    # Independently, with Pillow: down and up by 4 in 8 bits.
    eight = Image.fromarray((batch["image"][0] * 255).round().astype(np.uint8))
    down = eight.resize((12, 12), Image.Resampling.BICUBIC)
    up = np.asarray(down.resize((48, 48), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal((batch["upsampled"][0] * 255).round(), up)
    # On a smooth photo, what the target cell shows is what the image's cell shows.
    for b in range(3):
        kept = np.flatnonzero(batch["valid"][b])
        assert len(kept) > 30
        y, x = 4 * np.array(np.unravel_index(kept, (12, 12)))
        ty, tx = 4 * batch["target"][b, kept].T
        here, there = batch["image"][b, y, x], batch["reference"][b, ty, tx]
        # Targets are rounded to cells, 2 pixels at most; one cell off already agrees less.
        agreement = np.corrcoef(here.ravel(), there.ravel())[0, 1]
        beside = batch["reference"][b, ty, (tx + 4) % 48]
        assert agreement > max(0.93, np.corrcoef(here.ravel(), beside.ravel())[0, 1])


@pytest.mark.parametrize("kind", ["published", "wide"])
def test_warped_pair_follows_its_matrix(kind):
    rng = np.random.default_rng(3)
    sampling = dataclasses.replace(WIDE, kind=kind)
    photo = smooth(9, 200, 220)
    image, reference, matrix = warped_pair(photo, rng, 96, sampling)
    for y in range(4, 92, 8):
        for x in range(4, 92, 8):
            u, v = cv2.perspectiveTransform(np.array([[[float(x), float(y)]]]), matrix)[0, 0]
            if 2 < u < 93 and 2 < v < 93:
                found = cv2.getRectSubPix(reference, (1, 1), (u, v))[0, 0].astype(int)
                assert np.abs(found - image[y, x]).max() <= 12


def test_restorer_sample_without_augmentation(photos):
    samples = restorer_samples(pairs_of(photos), augment=False, crop=32)
    batch = samples.batch(0)
    photo = np.asarray(Image.open(photos[0]))[3:35, 5:37]
    reference = np.asarray(Image.open(photos[1]))[7:39, 9:41]
    np.testing.assert_array_equal((batch["hr"][0] * 255).round(), photo)
    np.testing.assert_array_equal((batch["reference"][0] * 255).round(), reference)
    small = np.asarray(Image.fromarray(photo).resize((8, 8), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal((batch["lr"][0] * 255).round(), small)


def test_input_and_reference_are_turned_together(photos):
    # Each photo is its own reference, at the same place: what was turned together is still equal.
    pairs = [Pair("s", p, p, (4, 4), (4, 4), {"row": "1"}) for p in photos]
    turned = set()
    for step in range(8):
        batch = restorer_samples(pairs, crop=32).batch(step)
        np.testing.assert_array_equal(batch["hr"], batch["reference"])
        plain = {np.asarray(Image.open(p))[4:36, 4:36].tobytes() for p in photos}
        turned.update((hr * 255).round().astype(np.uint8).tobytes() not in plain for hr in batch["hr"])
    assert turned == {True, False}


def test_crop_is_cut_from_the_patch(photos):
    batch = restorer_samples(pairs_of(photos)).batch(0)
    assert batch["lr"].shape == (2, 6, 6, 3)
    assert batch["hr"].shape == (2, 24, 24, 3)
    assert batch["reference"].shape == (2, 32, 32, 3)


def test_layouts_without_positions(photos, tmp_path):
    # Like CUFED: resized to the patch. Lists of photos: a random crop, the reference at the same place.
    folders = [Pair("s", photos[0], photos[1], None, None, {})]
    batch = restorer_samples(folders, crop=32, augment=False, batch=1).batch(0)
    expected = Image.open(photos[1]).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal((batch["reference"][0] * 255).round(), np.asarray(expected))
    lists = [Pair("s", p, p, None, None, {"input": "a"}) for p in photos]
    batch = restorer_samples(lists, crop=32).batch(1)
    np.testing.assert_array_equal(batch["hr"], batch["reference"])


def test_singles_and_unrelated(photos):
    singles = SingleImages(images=("x",), probability=1.0, homography=WIDE)
    batch = restorer_samples(pairs_of(photos), singles=singles, single_images=photos, batch=4).batch(0)
    assert batch["reference"].shape == (4, 32, 32, 3)
    # A warped copy has nearly its photo's mean colour; another photo's crop is anywhere.
    assert np.abs(batch["reference"].mean((1, 2)) - batch["hr"].mean((1, 2))).max() < 0.25
    related = restorer_samples(pairs_of(photos)).batch(0)
    unrelated = restorer_samples(pairs_of(photos), unrelated=1.0).batch(0)
    assert not np.array_equal(related["reference"], unrelated["reference"])


def test_partly_related_references(photos):
    same = [Pair("s", p, p, (4, 4), (4, 4), {"row": "1"}) for p in photos]
    replaced, elsewhere = 0, 0
    for step in range(12):
        batch = restorer_samples(same, crop=32, partly_related=1.0, augment=False).batch(step)
        for hr, reference in zip(batch["hr"], batch["reference"], strict=True):
            kept = np.all(hr == reference, axis=2)
            # Whole rows or whole columns are the pair's own, or the whole patch is another one.
            shares = max((kept.all(1).mean(), kept.all(0).mean()))
            replaced += 1 / 3 <= round(shares, 2) + 0.02 <= 0.72
            elsewhere += shares < 0.1
    assert replaced + elsewhere >= 22 and min(replaced, elsewhere) >= 5
    # A folder pair has no photo around its reference: it keeps a part of it at least.
    folders = [Pair("s", p, p, None, None, {}) for p in photos]
    for step in range(4):
        batch = restorer_samples(folders, crop=32, partly_related=1.0, augment=False).batch(step)
        kept = np.all(batch["hr"] == batch["reference"], axis=3)
        assert ((kept.all(1).mean(1) > 0.3) | (kept.all(2).mean(1) > 0.3)).all()
        assert not kept.all((1, 2)).any()


def test_files_that_cannot_be_read(photos, tmp_path):
    missing = tmp_path / "missing.png"
    samples = matcher_samples([missing, photos[0]])
    assert samples.batch(0)["image"].shape[0] == 3
    assert list(samples.cache.bad) == [missing]
    with pytest.raises(DataError, match="none of the 1 items can be read"):
        matcher_samples([missing]).batch(0)


def test_sizes_are_checked(photos):
    with pytest.raises(DataError, match="crop must be a positive multiple of 4, got 30"):
        matcher_samples(photos, crop=30)
    with pytest.raises(DataError, match="crop must not exceed patch, got crop 36 and patch 32"):
        restorer_samples(pairs_of(photos), crop=36)
