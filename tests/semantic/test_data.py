"""Samples of teacher and student, on features that are the pixels of a small image."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tfcorr.config.semantic import ColourJitter, Warps
from tfcorr.semantic.data import (
    DistillationSamples,
    KeypointSamples,
    PairInputs,
    PooledSamples,
    RehearsedSamples,
    WarpedSamples,
    make_pool,
)
from tfcorr.semantic.datasets import ImagePair, KeypointPair
from tfcorr.semantic.features import FeatureCache, network_image
from tfcorr.semantic.hypotheses import hypothesis_records, make_hypotheses
from tfcorr.semantic.synthetic import identity_places, warp
from tfcorr.training.photos import DataError, PhotoCache

SIZE, GRID, M = 32, (4, 4), 3


class Pixels:
    """Stands in for `tfcorr.semantic.features.Extractor`: the map of a stride is the reduced image."""

    size, grid, key = SIZE, GRID, "pixels"
    shapes = {16: (4, 4, 3), 32: (2, 2, 3)}  # noqa: RUF012
    calls = 0

    def __call__(self, images):
        self.calls += 1
        return {
            stride: np.stack([cv2.resize(i, shape[:2], interpolation=cv2.INTER_AREA) for i in images])
            for stride, shape in self.shapes.items()
        }


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for number in range(4):
        coarse = rng.integers(0, 256, (5, 6, 3), np.uint8)
        found.append(tmp_path / f"{number}.png")
        Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC).save(found[-1])
    (tmp_path / "broken.png").write_bytes(b"no image")
    return [*found, tmp_path / "broken.png"]


def test_features_are_computed_once_and_kept(paths, tmp_path):
    extractor, photos = Pixels(), PhotoCache()
    cache = FeatureCache(tmp_path / "features", extractor, paths, photos, shard=3)
    cache.fill()
    assert extractor.calls == 4
    for path in paths[:4]:
        for flip in (False, True):
            image = network_image(photos.get(path), SIZE, flip)
            for stride, expected in extractor(image[None]).items():
                np.testing.assert_allclose(cache.read(path, flip)[stride], expected[0], atol=5e-4)
        np.testing.assert_allclose(
            cache.read(path, True)[16], cache.read(path, False)[16][:, ::-1], atol=1e-3
        )
    again, fresh = Pixels(), PhotoCache()
    second = FeatureCache(tmp_path / "features", again, paths, fresh, shard=3)
    second.fill()
    assert again.calls == 0
    # Also a later process knows which file could not be read.
    assert second.read(paths[4], False) is None and not fresh.bad
    with pytest.raises(DataError, match="choose another folder"):
        FeatureCache(tmp_path / "features", again, paths[:3], fresh, shard=3)


def warped(paths, batch=2, augment=True):
    return WarpedSamples(
        paths,
        PhotoCache(),
        size=SIZE,
        grid=GRID,
        warps=Warps(kind="mixed"),
        jitter=ColourJitter() if augment else None,
        batch=batch,
        seed=3,
        augment=augment,
    )


def test_warped_samples_are_functions_of_seed_and_number(paths):
    one, other = warped(paths).batch(5), warped(paths).batch(5)
    assert one["source"].shape == (2, SIZE, SIZE, 3) and one["source"].dtype == np.float32
    assert one["flow"].shape == (2, *GRID, 2) and one["valid"].shape == (2, *GRID)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert np.any(one["source"] != warped(paths).batch(6)["source"])


def test_a_pool_holds_what_would_have_been_drawn(paths, tmp_path):
    samples = warped(paths, batch=1, augment=False)
    records = make_pool(tmp_path / "pool", samples, Pixels(), 5, shard=2)
    # Interrupted and gone on.
    (tmp_path / "pool/shard-00001.npy").unlink()
    records = make_pool(tmp_path / "pool", samples, Pixels(), 5, shard=2)
    pooled = PooledSamples(records, batch=5, seed=0, augment=False).batch(0)
    for number in range(5):
        drawn = samples.batch(number)
        np.testing.assert_array_equal(pooled["flow"][number], drawn["flow"][0])
        np.testing.assert_array_equal(pooled["valid"][number], drawn["valid"][0])
        for role in ("source", "target"):
            maps = Pixels()(drawn[role])
            np.testing.assert_allclose(pooled[f"{role}_16"][number], maps[16][0], atol=5e-4)
    with pytest.raises(DataError, match="choose another folder"):
        make_pool(tmp_path / "pool", warped(paths, batch=1), Pixels(), 5, shard=2)


@pytest.fixture
def distillation(paths, tmp_path):
    """Samples of five pairs, the last of which cannot be read; flow l of pair i is a known function."""
    photos = PhotoCache()
    pairs = [ImagePair(paths[a], paths[b]) for a, b in ((0, 1), (1, 2), (2, 3), (3, 0))]
    pairs.append(ImagePair(paths[0], paths[4]))
    rng = np.random.default_rng(1)
    truth = {f"flow_{d}": rng.uniform(-0.5, 0.5, (5, M, *GRID, 2)).astype(np.float32) for d in ("t2s", "s2t")}
    records = hypothesis_records(tmp_path / "hypotheses", 5, M, GRID, shard=2, key="k")
    seeds = []

    def teacher(inputs, seed):
        seeds.append(tuple(seed))
        first = 2 * int(seed[1])
        assert len(inputs["source"]) == len(records.members(int(seed[1])))
        return {name: flow[first : first + len(inputs["source"])] for name, flow in truth.items()}

    make_hypotheses(teacher, records, PairInputs(pairs[:4] + pairs[3:4], photos, SIZE).many, seed=7)
    assert seeds == [(7, 0), (7, 1), (7, 2)]

    def samples(**options):
        inputs = PairInputs(pairs, photos, SIZE, options.pop("cache", None))
        return DistillationSamples(inputs, records, **{"batch": 2, "seed": 0, **options})

    return samples, truth, pairs, photos


def test_every_pair_comes_once_as_it_is(distillation):
    samples, truth, _, _ = distillation
    batches = list(samples(batch=3, directions=("t2s", "s2t")).every_pair())
    assert [len(batch["index"]) for batch in batches] == [3, 1]
    index = np.concatenate([batch["index"] for batch in batches])
    # Pair 4 cannot be read.
    np.testing.assert_array_equal(index, [0, 1, 2, 3])
    assert not any(batch["flipped"].any() for batch in batches)
    for direction in ("t2s", "s2t"):
        flows = np.concatenate([batch[f"flows_{direction}"] for batch in batches])
        np.testing.assert_allclose(flows, truth[f"flow_{direction}"][:4], atol=5e-4)
        confidence = np.concatenate([batch[f"confidence_{direction}"] for batch in batches])
        assert confidence.shape == (4, M, *GRID, 1) and 0 <= confidence.min() <= confidence.max() <= 1


def test_mirrored_pairs_are_mirrored_in_all_that_they_hold(distillation):
    samples, truth, pairs, photos = distillation
    seen = set()
    for step in range(30):
        batch = samples(batch=2).batch(step)
        for slot in range(2):
            number, flipped = int(batch["index"][slot]), bool(batch["flipped"][slot])
            seen.add((number, flipped))
            flows = truth["flow_t2s"][number]
            expected = flows[:, :, ::-1] * [-1, 1] if flipped else flows
            np.testing.assert_allclose(batch["flows_t2s"][slot], expected, atol=5e-4)
            image = network_image(photos.get(pairs[number].source), SIZE, flipped)
            np.testing.assert_array_equal(batch["source"][slot], image)
    assert seen == {(number, flipped) for number in range(4) for flipped in (False, True)}
    assert not any(samples(flip=False).batch(step)["flipped"].any() for step in range(4))


def test_maps_of_an_image_and_its_mirror_image_are_averaged(distillation, paths, tmp_path):
    _, _, pairs, photos = distillation
    cache = FeatureCache(tmp_path / "features", Pixels(), paths, photos)
    cache.fill()
    plain, mirrored = (PairInputs(pairs, photos, SIZE, cache, mirror) for mirror in (False, True))
    one, other = plain.one(0), plain.one(0, flip=True)
    for flip in (False, True):
        found = mirrored.one(0, flip)
        assert set(found) == {f"{role}_{stride}" for role in ("source", "target") for stride in (16, 32)}
        for name, map_ in found.items():
            expected = (one[name] + other[name][:, ::-1]) / 2
            np.testing.assert_allclose(map_, expected[:, ::-1] if flip else expected, atol=1e-6)
    assert mirrored.one(4) is None


def test_warped_pairs_among_real_ones(distillation, paths):
    samples, _, _, _ = distillation
    real, warps = samples(directions=("t2s", "s2t")), warped(paths[:4], batch=1)
    both = RehearsedSamples(real, warps).batch(3)
    np.testing.assert_array_equal(both["known"], [False, False, True])
    for name, array in real.batch(3).items():
        np.testing.assert_array_equal(both[name][:2], array)
    drawn = warps.batch(3)
    np.testing.assert_array_equal(both["target"][2], drawn["target"][0])
    assert both["flows_t2s"].shape == (3, M, *GRID, 2)
    for number in range(M):
        np.testing.assert_array_equal(both["flows_t2s"][2, number], drawn["flow"][0])
        np.testing.assert_array_equal(both["valid_t2s"][2, number, ..., 0], drawn["valid"][0])
    assert drawn["valid"].any() and not both["valid_s2t"][2].any() and not both["flipped"][2]
    assert both["valid_s2t"][:2].all() and (both["confidence_t2s"][2] == 1).all()


def test_a_warped_source_takes_its_flows_along(distillation):
    """A source that shows its own x coordinate, in front of hypotheses that all point to one place."""
    samples, _, _, _ = distillation
    one = samples(affine=0.2, flip=False, batch=4).batch(0)
    plain = samples(flip=False, batch=4).batch(0)
    np.testing.assert_array_equal(one["index"], plain["index"])
    np.testing.assert_array_equal(one["target"], plain["target"])
    assert np.any(one["source"] != plain["source"])
    grid = identity_places(*GRID)
    for slot in range(4):
        for flow, was, trust in zip(
            one["flows_t2s"][slot], plain["flows_t2s"][slot], one["valid_t2s"][slot], strict=True
        ):
            inside = np.all(np.abs(flow + grid) <= 0.9, axis=-1) & np.all(np.abs(was + grid) <= 0.9, axis=-1)
            now = warp(one["source"][slot], flow + grid)[inside]
            before = warp(plain["source"][slot], was + grid)[inside]
            np.testing.assert_allclose(now, before, atol=0.12)
            np.testing.assert_array_equal(trust[..., 0], np.all(np.abs(flow + grid) <= 1, axis=-1))
    np.testing.assert_array_equal(one["confidence_t2s"], plain["confidence_t2s"])
    assert plain["valid_t2s"].all() and not one["valid_t2s"].all()
    with pytest.raises(DataError, match="only for direction t2s"):
        samples(affine=0.2, directions=("t2s", "s2t"))
    with pytest.raises(DataError, match="do not go with cache_features"):
        samples(jitter=ColourJitter(), cache=object())


def test_annotated_pairs(paths):
    points = np.array([[5.0, 6], [30, 8], [20, 30], [8, 25]])
    pairs = [
        KeypointPair(paths[0], paths[1], "", source_points=points + np.array([2, 0]), target_points=points)
    ]
    samples = KeypointSamples(PairInputs(pairs, PhotoCache(), SIZE), grid=GRID, radius=0.5, batch=1, seed=0)
    directions = set()
    for step in range(8):
        batch = samples.batch(step)
        valid = batch["valid"][0] > 0
        dx, dy = batch["flow"][0][valid].mean(axis=0)
        directions.add(np.sign(dx))
        # Two pixels of 40, the sides being 2 long; mirrored pairs point the other way.
        np.testing.assert_allclose([abs(dx), dy], [2 * 2 / 39, 0], atol=5e-3)
        assert 1 <= valid.sum() <= 8
    assert directions == {-1.0, 1.0}


def test_pairs_none_of_which_can_be_read_are_named(tmp_path):
    inputs = PairInputs([ImagePair(Path("absent"), Path("absent"))], PhotoCache(), SIZE)
    with pytest.raises(DataError, match="none of the pairs 0 to 0 can be read"):
        inputs.many([0])
