"""Conversions between sample types against exact fractions."""

from fractions import Fraction

import numpy as np
import pytest

from tfcorr.imaging.depth import convert_depth


def test_uint16_to_uint8_rounds_to_nearest():
    values = np.arange(65536, dtype=np.uint16)
    exact = [round(Fraction(int(v), 257)) for v in values]
    np.testing.assert_array_equal(convert_depth(values, np.uint8), exact)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_round_trips(dtype):
    values = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
    as_float = convert_depth(values, np.float32)
    assert as_float.dtype == np.float32 and as_float[0] == 0 and as_float[-1] == 1
    np.testing.assert_array_equal(convert_depth(as_float, dtype), values)
    np.testing.assert_array_equal(convert_depth(convert_depth(values, np.uint16), dtype), values)


def test_floating_point_is_clamped_and_rounded():
    values = np.array([-1.0, 0.5 / 255 - 1e-6, 0.5 / 255 + 1e-6, 1.0, 2.0])
    np.testing.assert_array_equal(convert_depth(values, np.uint8), [0, 0, 1, 255, 255])
    np.testing.assert_array_equal(convert_depth(values, np.float32), values.astype(np.float32))


@pytest.mark.parametrize(
    ("source", "target"), [(np.int32, np.uint8), (np.uint8, np.float64), (bool, np.uint8)]
)
def test_other_types_are_refused(source, target):
    with pytest.raises(TypeError, match=r"int32|float64|bool"):
        convert_depth(np.zeros(3, source), target)
