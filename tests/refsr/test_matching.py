import keras
import numpy as np
import pytest
from conftest import nhwc

from tfcorr.refsr.matching import (
    correspondences,
    flow_from_index,
    matched_cells,
    pre_offsets,
    refine_offsets,
)

CASES = ["rand16", "shift256", "ties_tiled", "const_padding", "zero_input_region", "tiny5"]


@pytest.mark.parametrize("case", CASES)
def test_golden_correspondences(golden, case):
    arrays = golden("feature_match", case)
    index, score = correspondences(nhwc(arrays["feat_in"]), nhwc(arrays["feat_ref"]))
    decided = arrays["margin"] > 1e-4
    np.testing.assert_array_equal(np.asarray(index)[decided], arrays["max_idx"][decided])
    np.testing.assert_allclose(score, arrays["max_val"], atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_golden_pre_offsets(golden, case):
    arrays = golden("feature_match", case)
    offsets = pre_offsets(arrays["max_idx"], arrays["feat_ref"].shape[-1])
    for name, scale in (("relu3_1", 1), ("relu2_1", 2), ("relu1_1", 4)):
        expected = np.moveaxis(
            arrays[f"pre_offset_{name}"][..., ::-1], 1, 3
        )  # (x, y) by point -> (dy, dx) last
        ours = keras.ops.convert_to_numpy(refine_offsets(offsets, scale))
        np.testing.assert_array_equal(ours.reshape(expected.shape), expected)


def test_reference_of_another_size_is_decoded_by_its_own_width():
    index = np.array([[[0, 11], [5, 23]]], np.int32)  # Patches of a 5 x 8 map: 3 rows of 6.
    flow = keras.ops.convert_to_numpy(flow_from_index(index, 8))
    expected = np.array([[[[0, 0], [1, 4]], [[-1, 5], [2, 4]]]], np.float32)
    np.testing.assert_array_equal(flow, expected)


def test_matched_cells_are_those_that_the_middle_point_names():
    rng = np.random.default_rng(3)
    feature = rng.normal(size=(2, 7, 9, 3)).astype("float32")
    offsets = rng.integers(-5, 6, (2, 6, 8, 18)).astype("float32")
    cells = np.asarray(matched_cells(feature, offsets))
    expected = np.zeros((2, 6, 8, 3), "float32")
    for b, y, x in np.ndindex(2, 6, 8):
        row, column = y + int(offsets[b, y, x, 8]), x + int(offsets[b, y, x, 9])
        if 0 <= row < 7 and 0 <= column < 9:
            expected[b, y, x] = feature[b, row, column]
    assert np.any(expected == 0) and np.any(expected != 0)
    np.testing.assert_array_equal(cells, expected)
