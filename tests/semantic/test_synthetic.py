"""Warps and their exact flow, against the goldens (PyTorch's affine_grid and grid_sample) and OpenCV."""

import cv2
import numpy as np
import pytest
from conftest import load_golden, nhwc

from tfcorr.config.semantic import ColourJitter, Warps
from tfcorr.semantic.synthetic import (
    ThinPlate,
    affine_places,
    change_colours,
    exact_flow,
    flip_flow,
    identity_places,
    moved_source,
    random_affine,
    random_pair,
    random_thin_plate,
    warp,
)

# OpenCV before version 5 rounds bilinear weights to 1/32.
EXACT = 1e-5 if int(cv2.__version__.split(".")[0]) >= 5 else 0.05


@pytest.fixture(scope="module")
def goldens():
    return load_golden("pmd/synthetic")


def test_affine_pair_like_the_golden(goldens):
    source, target = (goldens[f"synth_theta_{side}"].reshape(2, 3).astype(float) for side in ("src", "tgt"))
    flow, _ = exact_flow(source, lambda places: affine_places(target, places), (20, 20))
    np.testing.assert_allclose(flow, goldens["synth_gt_flow_T2S_20x20"], atol=1e-5)
    back, _ = exact_flow(target, lambda places: affine_places(source, places), (20, 20))
    np.testing.assert_allclose(back, goldens["synth_gt_flow_S2T_20x20"], atol=1e-5)
    image = nhwc(goldens["synth_image"])[0]
    for matrix, side in ((source, "src"), (target, "tgt")):
        places = affine_places(matrix, identity_places(32, 48))
        np.testing.assert_allclose(places, goldens[f"synth_ac1_grid_{side}"][0], atol=1e-5)
        np.testing.assert_allclose(warp(image, places), nhwc(goldens[f"synth_ac1_{side}_img"])[0], atol=EXACT)


def test_flipped_flow_like_the_golden(goldens):
    flow = goldens["resize_in"]
    np.testing.assert_array_equal(flip_flow(flow), goldens["flip_out"])
    np.testing.assert_array_equal(flip_flow(flip_flow(flow)), flow)


def test_hypotheses_of_a_warped_source_like_the_golden(goldens):
    matrix = goldens["aug_theta"].reshape(2, 3).astype(float)
    moved = moved_source(goldens["aug_flow_T2S_in"], matrix)
    np.testing.assert_allclose(moved, goldens["aug_affine_flow_exact"], atol=1e-5)
    # The published program is exact for hypothesis 0 within the source; others' increments it warps twice.
    places = moved[0] + identity_places(20, 20)
    inside = np.all(np.abs(goldens["aug_flow_T2S_in"][0] + identity_places(20, 20)) <= 0.99, axis=-1)
    inside &= np.all(np.abs(places) <= 0.99, axis=-1)
    assert inside.mean() > 0.3
    published = goldens["aug_ac1_affine_flow_out"][0]
    np.testing.assert_allclose(moved[0][inside], published[inside], atol=1e-4)


def test_thin_plate_meets_its_points_and_bends_least():
    rng = np.random.default_rng(0)
    places = rng.uniform(-1, 1, (7, 2))
    images = places + rng.normal(0, 0.2, (7, 2))
    plate = ThinPlate.between(places, images)
    np.testing.assert_allclose(plate(places), images, atol=1e-10)
    # An affine map needs no bending, and is met everywhere.
    matrix = random_affine(rng, 0.3)
    flat = ThinPlate.between(places, affine_places(matrix, places))
    grid = identity_places(5, 4)
    np.testing.assert_allclose(flat(grid), affine_places(matrix, grid), atol=1e-9)


def test_thin_plate_like_scipy():
    interpolate = pytest.importorskip("scipy.interpolate")
    rng = np.random.default_rng(1)
    places, images = rng.uniform(-1, 1, (2, 9, 2))
    grid = identity_places(6, 7)
    known = interpolate.RBFInterpolator(places, images, kernel="thin_plate_spline")(grid.reshape(-1, 2))
    np.testing.assert_allclose(ThinPlate.between(places, images)(grid).reshape(-1, 2), known, atol=1e-8)


@pytest.mark.parametrize("kind", ["affine", "thin_plate", "mixed"])
def test_the_flow_leads_to_the_same_place_of_the_photograph(kind):
    """A photograph whose colours are its coordinates shows, at both ends of the flow, the same colours."""
    size = 64
    y, x = np.mgrid[:size, :size] / (size - 1)
    photo = np.stack([x, y, 0.5 * (x + y)], -1)
    rng = np.random.default_rng(3)
    warps = Warps(kind=kind, affine=0.1, thin_plate=0.3, share=0.5)
    pair = random_pair((photo * 255).astype(np.uint8), rng, size, warps)
    flow, valid = pair.flow((size, size))
    assert 0.1 <= valid.mean() < 1
    places = identity_places(size, size) + flow
    seen = warp(pair.source, places).astype(float)[valid]
    assert np.abs(seen - pair.target.astype(float)[valid]).mean() < 2
    coarse, inside = pair.flow((9, 9))
    np.testing.assert_allclose(coarse[inside][0], np.array(pair.flow((9, 9))[0])[inside][0])
    # The full resolution and the feature grid are samples of one function.
    fine = pair.flow((17, 17))[0]
    np.testing.assert_allclose(fine[::2, ::2], coarse, atol=1e-12)


def test_validity_is_that_of_photograph_and_source():
    half = np.array([[1.0, 0, 1.0], [0, 1, 0]])
    _, valid = exact_flow(np.eye(2, 3), lambda places: affine_places(half, places), (3, 5))
    np.testing.assert_array_equal(valid, [[True, True, True, False, False]] * 3)
    _, valid = exact_flow(half, lambda places: places, (3, 5))
    np.testing.assert_array_equal(valid, [[False, False, True, True, True]] * 3)


def test_symmetric_padding_leaves_no_black():
    photo = np.full((40, 50, 3), 200, np.uint8)
    for padding, least in (("zeros", 0), ("symmetric", 200)):
        warps = Warps(affine=0.3, padding=padding)
        pair = random_pair(photo, np.random.default_rng(5), 32, warps)
        assert min(pair.source.min(), pair.target.min()) == least


def test_draws_depend_on_the_generator_alone():
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    one, same, other = (
        random_pair(photo, np.random.default_rng(seed), 32, Warps(kind="mixed")) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.target, same.target)
    assert np.any(one.target != other.target)
    plates = [random_thin_plate(np.random.default_rng(4), 3, 0.4) for _ in range(2)]
    moved = plates[0].centres + 0.4
    assert np.all(np.abs(plates[0](plates[0].centres) - plates[0].centres) <= 0.4 + 1e-9)
    np.testing.assert_array_equal(plates[0](moved), plates[1](moved))


def test_colours():
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    same = change_colours(image, np.random.default_rng(0), ColourJitter(0, 0, 0, 0))
    assert np.abs(same.astype(int) - image).max() <= 1
    changed = change_colours(image, np.random.default_rng(0), ColourJitter())
    assert changed.dtype == np.uint8 and np.any(changed != image)
    grey = np.full((4, 4, 3), 100, np.uint8)
    lighter = change_colours(grey, np.random.default_rng(0), ColourJitter(0.1, 0, 0, 0)).astype(int)
    expected = 100 * (1 + 0.1 * np.random.default_rng(0).uniform(-1, 1, 4)[0])
    assert np.abs(lighter - expected).max() <= 1
