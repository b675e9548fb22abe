"""Tile plans: cores partition, weights sum to one, and an identity through tiles stays an identity."""

import numpy as np
import pytest

from tfcorr.imaging.tiles import Canvas, plan_tiles, tile_for_budget

PLANS = [
    (1, 1, 8, 0),
    (5, 300, 64, 16),
    (64, 64, 64, 32),
    (65, 63, 64, 32),
    (97, 131, 40, 12),
    (40, 43, 17, 16),
    (211, 89, (50, 64), 24),
    (130, 75, 32, 0),
    (41, 200, (64, 30), 29),
]


@pytest.mark.parametrize("plan", PLANS)
def test_plan(plan):
    height, width, tile, overlap = plan
    tile = (tile, tile) if isinstance(tile, int) else tile
    tiles = plan_tiles(*plan)
    counted = np.zeros((height, width), int)
    for one in tiles:
        counted[one.core] += 1
        seen = np.zeros((height, width), bool)
        seen[one.window] = True
        assert seen[one.core].all() and seen.sum() == min(tile[0], height) * min(tile[1], width)
        # Away from the image's ends a core keeps half of the overlap as its margin.
        for span, length in ((one.rows, height), (one.columns, width)):
            assert span.is_first == (span.start == 0) and span.is_last == (span.start + span.size == length)
            assert span.is_first or span.core_start - span.start >= overlap // 2
            assert span.is_last or span.start + span.size - span.core_stop >= overlap // 2
    assert (counted == 1).all()


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("plan", PLANS)
def test_weights_sum_to_one_and_are_smooth(plan, scale):
    height, width = plan[:2]
    total = np.zeros((height * scale, width * scale))
    for one in plan_tiles(*plan):
        weights = one.weights(scale)
        assert weights.dtype == np.float32 and weights.min() >= 0 and weights.max() <= 1
        total[one.scaled_window(scale)] += weights
        fade = min(one.rows.fade, one.columns.fade)
        if fade > 2:
            for axis in (0, 1):
                assert np.abs(np.diff(weights, axis=axis)).max(initial=0) <= np.pi / 2 / (fade * scale) + 1e-6
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("plan", PLANS)
def test_identity_through_tiles(plan):
    height, width = plan[:2]
    image = np.random.default_rng(0).random((height, width, 3)).astype(np.float32)
    for scale in (1, 4):
        tiles = plan_tiles(*plan)
        canvas = Canvas(tiles, 3, scale)
        for tile in reversed(tiles):
            canvas.add(tile, image[tile.window].repeat(scale, axis=0).repeat(scale, axis=1))
        expected = image.repeat(scale, axis=0).repeat(scale, axis=1)
        np.testing.assert_allclose(canvas.finish(), expected, atol=1e-6)


def test_wrong_borders_of_tiles_are_not_seen():
    """What a network gets wrong in the outer quarter of an overlap does not reach the output."""
    tiles = plan_tiles(100, 120, 48, 16)
    canvas = Canvas(tiles, 1, 4)
    for tile in tiles:
        output = np.ones((48 * 4, 48 * 4, 1), np.float32)
        rows, columns = tile.rows, tile.columns
        output[: 0 if rows.is_first else 16] = 99
        output[len(output) - (0 if rows.is_last else 16) :] = 99
        output[:, : 0 if columns.is_first else 16] = 99
        output[:, output.shape[1] - (0 if columns.is_last else 16) :] = 99
        canvas.add(tile, output)
    np.testing.assert_allclose(canvas.finish(), 1, atol=1e-6)


def test_canvas_refuses_what_does_not_belong():
    tiles = plan_tiles(50, 50, 32, 8)
    canvas = Canvas(tiles, 3, 1)
    with pytest.raises(ValueError, match=r"\(32, 32, 3\).*\(31, 32, 3\)"):
        canvas.add(tiles[0], np.zeros((31, 32, 3), np.float32))
    canvas.add(tiles[0], np.zeros((32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="not awaited"):
        canvas.add(tiles[0], np.zeros((32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="3 tiles"):
        canvas.finish()


@pytest.mark.parametrize("args", [(0, 5, 4, 1), (5, 5, 0, 0), (5, 5, 4, -1), (5, 5, 4, 4)])
def test_bad_plans(args):
    with pytest.raises(ValueError):
        plan_tiles(*args)


@pytest.mark.parametrize("budget", [40_000, 100_000, 333_333, 10**7])
def test_budget_against_exhaustive_search(budget):
    def needed(height, width):
        return 7 * height * width + 100 * (height + width)

    for height, width in ((300, 400), (90, 1200), (64, 64), (30, 35), (1000, 50)):
        found = tile_for_budget(height, width, budget, needed, minimum=48)
        assert needed(*found) <= budget
        if needed(height, width) <= budget:
            assert found == (height, width)
            continue
        candidates = [(min(s, height), min(s, width)) for s in range(48, max(height, width), 8)]
        assert found == max((c for c in candidates if needed(*c) <= budget), key=lambda c: c[0] * c[1])


def test_budget_too_small():
    with pytest.raises(ValueError, match="64x64 pixels needs 5 MB"):
        tile_for_budget(500, 500, 1000, lambda h, w: 1000 * h * w, minimum=64)
