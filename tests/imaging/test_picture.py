"""`Picture`: back from a model's colours to the file's own type."""

import numpy as np
import pytest
from PIL import Image

from tfcorr.imaging.picture import Picture


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_to_float_and_back(dtype, channels):
    random = np.random.default_rng(0)
    pixels = random.random((6, 5, channels))
    pixels = (pixels * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype)
    picture = Picture(pixels, icc_profile=b"profile", text={"a": "b"})
    as_float = picture.to_float()
    assert as_float.shape == (6, 5, 3) and as_float.dtype == np.float32 and as_float.max() <= 1
    back = picture.with_pixels(as_float)
    assert back.pixels.dtype == dtype and back.icc_profile == b"profile" and back.text == {"a": "b"}
    np.testing.assert_allclose(back.pixels, pixels, atol=1e-6)


def test_grey_takes_the_luma_and_colour_repeats_grey():
    colour = np.zeros((1, 3, 3), np.float32)
    colour[0, [0, 1, 2], [0, 1, 2]] = 1
    grey = Picture(np.zeros((2, 2, 1), np.uint8)).with_pixels(colour)
    np.testing.assert_array_equal(grey.pixels[0, :, 0], [76, 150, 29])
    repeated = Picture(np.zeros((2, 2, 3), np.uint8)).with_pixels(np.full((4, 4, 1), 0.5, np.float32))
    assert repeated.pixels.shape == (4, 4, 3) and (repeated.pixels == 128).all()


def test_alpha_and_overshoot():
    picture = Picture(np.zeros((2, 2, 3), np.float32), alpha=np.ones((2, 2), np.float32))
    large = picture.with_pixels(
        np.linspace(-0.2, 1.3, 48, dtype=np.float32).reshape(4, 4, 3), np.full((4, 4), 1.1, np.float32)
    )
    assert large.pixels.min() == 0 and large.pixels.max() == 1 and (large.alpha == 1).all()
    assert picture.with_pixels(large.pixels).alpha is None


def test_exif_tells_the_new_size():
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA002: 2, 0xA003: 3})
    picture = Picture(np.zeros((3, 2, 3), np.uint8), exif=exif.tobytes()).with_pixels(
        np.zeros((12, 8, 3), np.uint8)
    )
    after = Image.Exif()
    after.load(picture.exif)
    assert after.get_ifd(0x8769)[0xA002] == 8 and after.get_ifd(0x8769)[0xA003] == 12


@pytest.mark.parametrize(
    ("shape", "pixels", "alpha"),
    [
        ((4, 5), (4, 5, 1), None),
        ((4, 5, 2), (4, 5, 1), (4, 5)),
        ((4, 5, 3), (4, 5, 3), None),
        ((4, 5, 4), (4, 5, 3), (4, 5)),
    ],
)
def test_from_array(shape, pixels, alpha):
    picture = Picture.from_array(np.zeros(shape))
    assert picture.pixels.shape == pixels and picture.pixels.dtype == np.float32
    assert (None if picture.alpha is None else picture.alpha.shape) == alpha
    assert (picture.height, picture.width, picture.is_grey) == (4, 5, pixels[2] == 1)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Picture(np.zeros((4, 5), np.uint8)), ValueError, r"\(4, 5\)"),
        (lambda: Picture(np.zeros((0, 5, 3), np.uint8)), ValueError, "non-empty"),
        (lambda: Picture(np.zeros((4, 5, 3), np.int32)), TypeError, "int32"),
        (
            lambda: Picture(np.zeros((4, 5, 3), np.uint8), alpha=np.zeros((4, 4), np.uint8)),
            ValueError,
            r"\(4, 4\)",
        ),
        (lambda: Picture.from_array(np.zeros((4, 5, 5), np.uint8)), ValueError, r"\(4, 5, 5\)"),
        (
            lambda: Picture(np.zeros((4, 5, 3), np.uint8)).with_pixels(np.zeros((4, 5))),
            ValueError,
            r"\(4, 5\)",
        ),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()
