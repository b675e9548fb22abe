"""EXIF blocks changed in place: Pillow reads what was written, and everything else stays as it was."""

import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from tfcorr.imaging import exif


def block(endian: str, orientation: int | None = 6, width=4000, height=3000) -> bytes:
    source = Image.Exif()
    source.endian = endian
    if orientation is not None:
        source[0x0112] = orientation
    source[0x0110] = "Model"
    source.get_ifd(0x8769).update({0xA002: width, 0xA003: height, 0x927C: b"maker\0note"})
    return source.tobytes()


def parsed(data: bytes) -> Image.Exif:
    result = Image.Exif()
    result.load(data)
    return result


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("prefix", [True, False])
def test_read_and_change(endian, prefix):
    data = block(endian)
    if not prefix:
        data = data.removeprefix(exif.PREFIX)
    assert exif.orientation(data) == 6
    upright = exif.with_size(exif.make_upright(data), 1234, 5678)
    assert len(upright) == len(data) and sum(a != b for a, b in zip(upright, data, strict=True)) <= 6
    assert exif.orientation(upright) == 1
    after = parsed(upright)
    assert after[0x0112] == 1 and after[0x0110] == "Model"
    inner = after.get_ifd(0x8769)
    assert (inner[0xA002], inner[0xA003], inner[0x927C]) == (5678, 1234, b"maker\0note")


def test_size_that_does_not_fit_is_left_alone():
    assert parsed(exif.with_size(block("<"), 10, 70_000)).get_ifd(0x8769)[0xA002] == 4000


def test_thumbnail_is_unlinked():
    data = bytearray(block("<", width=10, height=10))
    # The link to a second directory stands behind the entries of the first.
    count = int.from_bytes(data[14:16], "little")
    position = 16 + 12 * count
    data[position : position + 4] = (len(data) - len(exif.PREFIX)).to_bytes(4, "little")
    data += struct.pack("<HHHIIHHI", 1, 0x0103, 3, 1, 6, 0, 0, 0)
    assert parsed(bytes(data)).get_ifd(ExifTags.IFD.IFD1)
    clean = exif.without_thumbnail(bytes(data))
    assert not parsed(clean).get_ifd(ExifTags.IFD.IFD1) and parsed(clean)[0x0110] == "Model"


@pytest.mark.parametrize(
    "data", [None, b"", b"II", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"no tiff at all", b"MM\0*\0\0"]
)
def test_damaged_blocks_say_nothing(data):
    assert exif.orientation(data) == 1
    if data is not None:
        assert exif.make_upright(data) == exif.without_thumbnail(data) == exif.with_size(data, 1, 1) == data


def test_damaged_blocks_never_raise():
    random = np.random.default_rng(0)
    good = np.frombuffer(block("<"), np.uint8)
    for _ in range(300):
        bad = good.copy()
        bad[random.integers(6, len(bad), 4)] = random.integers(0, 256, 4)
        bad = bad[: random.integers(8, len(bad) + 1)].tobytes()
        assert 1 <= exif.orientation(bad) <= 8
        for change in (exif.make_upright, exif.without_thumbnail, lambda b: exif.with_size(b, 5, 5)):
            assert len(change(bad)) == len(bad)


def test_nonsense_orientations_are_upright():
    assert exif.orientation(block("<", 0)) == exif.orientation(block("<", 9)) == 1
    assert exif.orientation(block("<", None)) == 1


@pytest.mark.parametrize("xmp", [b'<a tiff:Orientation="8"/>', b"<tiff:Orientation>8</tiff:Orientation>"])
def test_xmp(xmp):
    assert exif.orientation(None, xmp) == exif.orientation(block("<", None), xmp) == 8
    assert exif.orientation(block("<", 3), xmp) == 3
    assert exif.orientation(None, exif.make_xmp_upright(xmp)) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning(orientation):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    stored = Image.fromarray(image)
    stored.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(exif.turn_upright(image, orientation), expected)
    np.testing.assert_array_equal(exif.turn_upright(image[..., 0], orientation), expected[..., 0])
