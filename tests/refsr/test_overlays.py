import numpy as np

from tfcorr.refsr.overlays import known_matches, scored_matches, spread_cells


def _colour_at(sheet, cell, offset):
    y, x = (int(4 * c) + offset for c in cell)
    return sheet[y, x].astype(int)


def test_cells_are_spread_without_the_borders_and_without_repeats():
    cells = spread_cells(20, 9, count=3)
    assert cells.tolist() == [[y, x] for y in (5, 10, 14) for x in (2, 4, 6)]
    assert spread_cells(1, 1).tolist() == [[0, 0]]


def test_known_matches_are_green_where_right_and_red_where_wrong():
    descriptors = np.eye(36, dtype=np.float32).reshape(1, 6, 6, 36)
    cells = np.stack(np.divmod(np.arange(36), 6), -1)[None]
    target = cells.copy()
    target[0, :18] = 5 - target[0, :18]  # the upper half is told that it is wrong
    black = np.zeros((1, 24, 24, 3), np.float32)
    sheet = known_matches(descriptors, descriptors, target, np.ones((1, 36), bool), black, black)
    assert sheet.shape == (1, 24, 24 + 8 + 24, 3)
    for cell in spread_cells(6, 6):
        red, green, _ = _colour_at(sheet[0], cell, 0)
        wrong = np.abs(target[0, cell[0] * 6 + cell[1]] - cell).max() > 1
        assert (red > green) == wrong
    nothing = known_matches(descriptors, descriptors, target, np.zeros((1, 36), bool), black, black)
    assert not nothing[0, :, :24].any()


def test_scored_matches_begin_at_the_middles_of_their_patches():
    index = np.arange(16).reshape(1, 4, 4)  # each patch is its own match
    score = np.zeros((1, 4, 4), np.float32)
    score[0, 2:] = 1.0
    black = np.zeros((1, 24, 24, 3), np.float32)
    sheet = scored_matches(index, score, 4, black, black)
    for cell in spread_cells(4, 4):
        red, green, _ = _colour_at(sheet[0], cell, 4)
        assert (green > red) == (cell[0] >= 2)
        there = sheet[0, 4 * cell[0] + 4, 4 * cell[1] + 4 + 32].astype(int)
        assert (there[1] > there[0]) == (cell[0] >= 2)
