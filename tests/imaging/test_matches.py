import numpy as np

from tfcorr.imaging.matches import draw_matches


def test_points_are_joined_in_the_colour_of_their_trust():
    image, reference = np.zeros((20, 30, 3), np.float32), np.full((40, 24, 3), 128, np.uint8)
    points, matched = np.array([[5, 10], [15, 20]]), np.array([[30, 4], [2, 20]])
    sheet = draw_matches(image, reference, points, matched, np.array([1.0, 0.0]))
    assert sheet.shape == (40, 30 + 8 + 24, 3) and sheet.dtype == np.uint8
    # The line begins and ends at the points, in green and in red.
    for (y, x), (there_y, there_x), right in ((points[0], matched[0], True), (points[1], matched[1], False)):
        for colour in (sheet[y, x].astype(int), sheet[there_y, there_x + 38].astype(int)):
            assert bool(colour[1] > colour[0]) is right
    assert (sheet[39, 0] == 255).all() and (sheet[0, 0] == 0).all() and (sheet[39, 61] == 128).all()
