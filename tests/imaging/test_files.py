"""Image files of every kind, written and read back by Pillow, OpenCV and tifffile, and damaged on purpose."""

import io
import os
import struct
import threading
import warnings
import zlib

import cv2
import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, ImageOps

from tfcorr.errors import TfcorrError
from tfcorr.imaging import files, png
from tfcorr.imaging.errors import ImageError
from tfcorr.imaging.files import check_output, read_image, write_image
from tfcorr.imaging.picture import Picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6">caf\xc3\xa9</rdf></x:xmpmeta>'
SIZE = (11, 14)


@pytest.fixture(scope="module")
def random():
    return np.random.default_rng(0)


def smooth(height=SIZE[0], width=SIZE[1], channels=3) -> np.ndarray:
    """A uint8 image that lossy formats keep nearly as it is."""
    y, x = np.mgrid[:height, :width]
    planes = [90 + 5 * y + 3 * x, 200 - 4 * y - 2 * x, 60 + 2 * y + 6 * x, 255 - 9 * y][:channels]
    return np.stack(planes, axis=-1).astype(np.uint8)


def exif_with(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769).update({0x829A: 0.5, 0xA002: 14, 0xA003: 11})
    return exif


def error_of(call) -> str:
    with pytest.raises(ImageError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert isinstance(caught.value, TfcorrError) and isinstance(caught.value, ValueError)
    return message


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        (mode, suffix)
        for mode, suffixes in {
            "1": ["png", "tif", "bmp", "gif"],
            "L": ["png", "tif", "bmp", "jpg", "webp"],
            "LA": ["png", "tif"],
            "P": ["png", "tif", "bmp", "gif"],
            "RGB": ["png", "tif", "bmp", "jpg", "webp"],
            "RGBA": ["png", "tif", "webp"],
            "I;16": ["png", "tif"],
            "YCbCr": ["jpg", "tif"],
            "CMYK": ["jpg", "tif"],
        }.items()
        for suffix in suffixes
    ],
)
def test_every_mode_in_every_format(tmp_path, mode, suffix):
    if (mode, suffix) == ("YCbCr", "tif") and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("Pillow 12 cannot read the YCbCr TIFF that it writes itself")
    path = tmp_path / f"image.{suffix}"
    if mode == "I;16":
        image = Image.fromarray(smooth()[..., 0].astype(np.uint16) * 250)
    else:
        image = Image.fromarray(smooth(channels=4)).convert("RGBA" if mode == "LA" else "RGB")
        image = image.convert(mode) if mode != "RGBA" else Image.fromarray(smooth(channels=4))
    options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
    image.save(path, **options)

    picture = read_image(path)
    assert picture.path == path
    grey = mode in ("1", "L", "LA", "I;16") and suffix != "webp"
    assert picture.pixels.shape == (*SIZE, 1 if grey else 3)
    assert picture.pixels.dtype == (np.uint16 if mode == "I;16" else np.uint8)
    with Image.open(path) as again:
        if mode == "I;16":
            np.testing.assert_array_equal(picture.pixels[..., 0], np.asarray(again))
            return
        expected = np.asarray(again.convert("RGBA"))
    np.testing.assert_array_equal(picture.pixels, expected[..., : 1 if grey else 3])
    if mode in ("LA", "RGBA"):
        np.testing.assert_array_equal(picture.alpha, expected[..., 3])
    else:
        assert picture.alpha is None
    assert bool(picture.notes) == (mode == "CMYK")


def test_transparent_palette_and_single_colours(tmp_path):
    image = Image.fromarray(smooth()).quantize(8)
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128] + [255] * 6))
    picture = read_image(tmp_path / "palette.png")
    indices = np.asarray(image)
    np.testing.assert_array_equal(picture.alpha, np.where(indices == 0, 0, np.where(indices == 1, 128, 255)))

    grey = smooth()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png", transparency=int(grey[3, 4]))
    picture = read_image(tmp_path / "grey.png")
    assert picture.is_grey
    np.testing.assert_array_equal(picture.alpha, np.where(grey == grey[3, 4], 0, 255))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_kept_whatever_the_values(tmp_path, random, suffix, channels):
    """A dark image uses values below 256 only; its type still says 16 bits."""
    image = random.integers(0, 200, (*SIZE, channels)).astype(np.uint16)
    stored = image[..., [2, 1, 0, 3][:channels]] if channels > 1 else image
    assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), stored)
    picture = read_image(tmp_path / f"a.{suffix}")
    assert picture.pixels.dtype == np.uint16 and picture.notes == ()
    np.testing.assert_array_equal(picture.pixels, image[..., : min(channels, 3)])
    if channels == 4:
        np.testing.assert_array_equal(picture.alpha, image[..., 3])


def png_file(colour_type: int, samples: np.ndarray, *extra: tuple[bytes, bytes]) -> bytes:
    """An unfiltered 16-bit PNG file, chunk by chunk."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return png.SIGNATURE + b"".join(png.chunk(*one) for one in chunks)


def test_16_bit_png_of_grey_and_alpha_and_of_transparent_colours(tmp_path, random):
    path = tmp_path / "a.png"
    samples = random.integers(0, 65536, (*SIZE, 2)).astype(np.uint16)
    path.write_bytes(png_file(4, samples))
    picture = read_image(path)
    np.testing.assert_array_equal(picture.pixels, samples[..., :1])
    np.testing.assert_array_equal(picture.alpha, samples[..., 1])

    for colour_type, channels in ((0, 1), (2, 3)):
        samples = random.integers(0, 65536, (*SIZE, channels)).astype(np.uint16)
        path.write_bytes(png_file(colour_type, samples, (b"tRNS", samples[2, 3].astype(">u2").tobytes())))
        picture = read_image(path)
        np.testing.assert_array_equal(picture.pixels, samples)
        np.testing.assert_array_equal(picture.alpha == 0, (samples == samples[2, 3]).all(axis=-1))
        assert picture.alpha.max() == 65535


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize(
    ("photometric", "channels", "options"),
    [
        ("rgb", 3, {}),
        ("rgb", 3, {"byteorder": ">"}),
        ("rgb", 3, {"bigtiff": True}),
        ("rgb", 3, {"compression": "zlib", "rowsperstrip": 4}),
        ("rgb", 3, {"planarconfig": "separate"}),
        ("rgb", 4, {"extrasamples": ["unassalpha"]}),
        ("rgb", 4, {"extrasamples": ["assocalpha"]}),
        ("minisblack", 1, {}),
        ("miniswhite", 1, {}),
        ("minisblack", 2, {"extrasamples": ["unassalpha"], "planarconfig": "contig"}),
        ("minisblack", 2, {"extrasamples": ["unassalpha"], "planarconfig": "contig", "byteorder": ">"}),
    ],
)
def test_deep_tiff_of_another_writer(tmp_path, random, dtype, photometric, channels, options):
    tifffile = pytest.importorskip("tifffile")
    image = random.random((*SIZE, channels)).astype(np.float32)
    if options.get("extrasamples") == ["assocalpha"]:
        image[..., :3] *= image[..., 3:]
    if dtype == np.uint16:
        image = np.rint(image * 65535).astype(np.uint16)
    stored = image.transpose(2, 0, 1) if options.get("planarconfig") == "separate" else image
    stored = np.ascontiguousarray(stored[..., 0] if channels == 1 else stored)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, metadata=None, **options)

    picture = read_image(tmp_path / "a.tif")
    assert picture.pixels.dtype == dtype
    peak = 65535 if dtype == np.uint16 else 1
    colours = image[..., : 3 if channels > 2 else 1].astype(np.float64)
    if photometric == "miniswhite":
        colours = peak - colours
    if options.get("extrasamples") == ["assocalpha"]:
        colours = np.minimum(colours / image[..., 3:] * peak, peak)
    tolerance = 0.5 if dtype == np.uint16 else 1e-6
    np.testing.assert_allclose(picture.pixels, colours, atol=tolerance)
    if channels in (2, 4):
        np.testing.assert_array_equal(picture.alpha, image[..., -1])


def test_float_tiff_is_clamped_and_says_so(tmp_path):
    image = np.linspace(-0.5, 1.5, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(image).save(tmp_path / "a.tif")
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels[..., 0], np.clip(image, 0, 1))
    assert "-0.5 to 1.5" in picture.notes[0]
    image[1, 1] = np.nan
    Image.fromarray(image).save(tmp_path / "b.tif")
    assert "not finite" in error_of(lambda: read_image(tmp_path / "b.tif"))


def test_unsupported_samples_are_named(tmp_path):
    Image.fromarray(np.zeros((3, 4), np.int32)).save(tmp_path / "a.tif")
    assert "32-bit" in error_of(lambda: read_image(tmp_path / "a.tif"))
    Image.new("LAB", (4, 3)).save(tmp_path / "b.tif")
    assert "'LAB'" in error_of(lambda: read_image(tmp_path / "b.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "16.png", "16.tif", "float.tif"])
def test_orientation(tmp_path, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    stored = smooth()
    exif = exif_with(orientation)
    if suffix == "16.png":
        block = exif.tobytes().removeprefix(b"Exif\0\0")
        path.write_bytes(png_file(2, stored.astype(np.uint16) * 257, (b"eXIf", block)))
    elif suffix in ("16.tif", "float.tif"):
        tifffile = pytest.importorskip("tifffile")
        deep = stored.astype(np.uint16) * 257 if suffix == "16.tif" else stored.astype(np.float32) / 255
        tifffile.imwrite(path, deep, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    else:
        options = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0}
        Image.fromarray(stored).save(path, exif=exif, dpi=(100, 200), **options)

    picture = read_image(path)
    probe = Image.fromarray(stored)
    probe.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(probe))
    np.testing.assert_allclose(picture.to_float() * 255, upright, atol=4 if suffix == "jpg" else 0.01)
    if suffix in ("jpg", "png", "tif"):
        np.testing.assert_allclose(picture.dpi, (200, 100) if orientation >= 5 else (100, 200), rtol=1e-3)

    # Written again, it must not be turned a second time.
    for target in ("out.png", "out.jpg", "out.webp", "out.tif"):
        write_image(tmp_path / target, picture)
        if (suffix, target) != ("float.tif", "out.tif"):  # which Pillow cannot open
            with Image.open(tmp_path / target) as again:
                assert again.size == upright.shape[1::-1]
                assert again.getexif().get(0x0112, 1) == 1
        assert read_image(tmp_path / target).pixels.shape == upright.shape


def test_orientation_told_by_xmp_alone(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", xmp=XMP)
    picture = read_image(tmp_path / "a.jpg")
    assert picture.pixels.shape[:2] == SIZE[::-1]
    assert b'tiff:Orientation="1"' in picture.xmp


def test_first_frame_of_animations_and_pages(tmp_path):
    frames = [Image.fromarray(smooth() // divisor) for divisor in (1, 2, 3)]
    for name, word in {
        "a.gif": "animated",
        "a.webp": "animated",
        "a.png": "animated",
        "a.tif": "pages",
    }.items():
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        picture = read_image(tmp_path / name)
        assert len(picture.notes) == 1 and word in picture.notes[0]
        np.testing.assert_allclose(picture.pixels, smooth(), atol=12 if name == "a.gif" else 0)


def test_cmyk_without_profile_and_with_a_useless_one(tmp_path):
    image = Image.fromarray(smooth()).convert("CMYK")
    image.save(tmp_path / "a.tif")
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    assert "no profile" in picture.notes[0]
    # sRGB is no profile for CMYK.
    image.save(tmp_path / "b.tif", icc_profile=SRGB)
    picture = read_image(tmp_path / "b.tif")
    np.testing.assert_array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    assert "cannot be used" in picture.notes[0] and picture.icc_profile is None


def test_cmyk_goes_through_its_profile(tmp_path, monkeypatch):
    """No CMYK profile is free to ship: this one is replaced, which shows what it is asked for."""
    seen = {}

    def convert(image, source, target, **options):
        seen.update(options, mode=image.mode, source=source)
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(files.ImageCms, "profileToProfile", convert)
    Image.fromarray(smooth()).convert("CMYK").save(tmp_path / "a.jpg", icc_profile=SRGB)
    picture = read_image(tmp_path / "a.jpg")
    assert seen["mode"] == "CMYK" and seen["outputMode"] == "RGB"
    assert seen["source"].tobytes() == SRGB
    assert (picture.pixels == (1, 2, 3)).all() and picture.icc_profile is None
    assert "through its profile" in picture.notes[0]


# ---------------------------------------------------------------- bad input


def test_bad_files_are_named_in_one_line(tmp_path):
    good = io.BytesIO()
    Image.fromarray(smooth()).save(good, "PNG")
    cases = {
        "missing.png": (None, "does not exist"),
        "empty.png": (b"", "empty"),
        "text.png": (b"This is no image at all, but a text of some length.", "not an image"),
        "heic.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        "header.png": (good.getvalue()[:20], "header"),
        "header.tif": (b"II*\0\xff\xff\xff\0", "header"),
        "header.jpg": (b"\xff\xd8\xff\xe0\0\x10JFIF", "header"),
    }
    for name, (content, words) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        message = error_of(lambda name=name: read_image(tmp_path / name))
        assert message.startswith(str(tmp_path / name)) and words in message
    assert "folder" in error_of(lambda: read_image(tmp_path))
    assert "does not exist" in error_of(lambda: read_image(tmp_path / "no" / "such.png"))
    assert "cannot be read" in error_of(lambda: read_image(tmp_path / "text.png" / "a.png"))
    assert "regular file" in error_of(lambda: read_image(os.devnull))
    assert "cannot be read" in error_of(lambda: read_image("nul\0byte.png"))
    assert "\\n" in error_of(lambda: read_image(tmp_path / "two\nlines.png"))


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.gif", "a.bmp", "16.png", "16.tif", "f.tif"]
)
def test_truncated_anywhere(tmp_path, random, capfd, name):
    """A cut file gives an error, or, if only what follows the pixels was cut, all of the pixels."""
    path = tmp_path / name
    noise = random.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    if name in ("16.png", "16.tif"):
        write_image(path, noise.astype(np.uint16) * 200)
    elif name == "f.tif":
        write_image(path, noise.astype(np.float32) / 255)
    else:
        Image.fromarray(noise).save(path, **({"compression": "tiff_deflate"} if name == "a.tif" else {}))
    whole, data = read_image(path).pixels, path.read_bytes()
    refused = 0
    for length in np.linspace(1, len(data) - 1, 25).astype(int):
        path.write_bytes(data[:length])
        try:
            np.testing.assert_array_equal(read_image(path).pixels, whole)
        except ImageError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused >= 23
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize("kind", ["png", "tif", "bmp", "gif"])
def test_small_file_that_promises_gigabytes(tmp_path, kind):
    path = tmp_path / f"bomb.{kind}"
    side = 60_000
    if kind == "png":
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        path.write_bytes(png.SIGNATURE + png.chunk(b"IHDR", header) + png.chunk(b"IDAT", zlib.compress(b"")))
    else:
        Image.new("L", (3, 3)).save(path)
        data = bytearray(path.read_bytes())
        if kind == "bmp":
            struct.pack_into("<ii", data, 18, side, side)
        elif kind == "gif":
            struct.pack_into("<HH", data, 6, side, side)
        else:
            for tag in (256, 257):
                position = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
                struct.pack_into("<I", data, position, side)
        path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = error_of(lambda: read_image(path))
    assert "60000x60000" in message and "max_pixels" in message


def test_max_pixels_is_inclusive_and_may_pass_pillows_own(tmp_path, monkeypatch):
    limit = SIZE[0] * SIZE[1]
    for name in ("a.png", "a.tif"):
        Image.fromarray(smooth()).save(tmp_path / name)
        assert read_image(tmp_path / name, max_pixels=limit).pixels.shape[:2] == SIZE
        assert "14x11" in error_of(lambda name=name: read_image(tmp_path / name, max_pixels=limit - 1))
        with monkeypatch.context() as patch, warnings.catch_warnings():
            patch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
            warnings.simplefilter("error")
            read_image(tmp_path / name)
            assert Image.MAX_IMAGE_PIXELS == 10


def test_zero_size(tmp_path):
    header = struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(png.SIGNATURE + png.chunk(b"IHDR", header) + png.chunk(b"IEND", b""))
    assert "zero size" in error_of(lambda: read_image(tmp_path / "a.png"))


def test_unicode_and_misnamed_files(tmp_path):
    path = tmp_path / "Füße 写真 🏔.jpeg"
    Image.fromarray(smooth()).save(path, "PNG")
    np.testing.assert_array_equal(read_image(path).pixels, smooth())
    write_image(tmp_path / ("ü" * 120 + ".png"), smooth())
    np.testing.assert_array_equal(read_image(tmp_path / ("ü" * 120 + ".png")).pixels, smooth())


def test_many_threads(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.png")
    seen = []
    threads = [
        threading.Thread(
            target=lambda: seen.extend(read_image(tmp_path / "a.png").pixels.shape for _ in range(10))
        )
        for _ in range(8)
    ]
    before = Image.MAX_IMAGE_PIXELS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80 and before == Image.MAX_IMAGE_PIXELS


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".jpg", ".JPEG", ".webp"])
def test_round_trip(tmp_path, channels, dtype, suffix):
    image = smooth(channels=4)[..., {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]]
    scale = {np.uint8: 1, np.uint16: 257, np.float32: np.float32(1 / 255)}[dtype]
    image = image.astype(dtype) * scale
    path = tmp_path / f"a{suffix}"
    notes = " ".join(write_image(path, image))
    again = read_image(path)
    assert again.notes == ()

    lossy = suffix.lower() in (".jpg", ".jpeg", ".webp")
    kept = np.uint8 if lossy else np.uint16 if suffix == ".png" and dtype == np.float32 else dtype
    assert again.pixels.dtype == kept
    assert ("8 bits" in notes) == (lossy and dtype != np.uint8)
    assert ("16 bits a sample, as PNG" in notes) == (suffix == ".png" and dtype == np.float32)
    assert again.is_grey == (channels < 3 and suffix != ".webp")

    source = Picture.from_array(image)
    colours, got = source.to_float(), again.to_float()
    if suffix.lower() in (".jpg", ".jpeg") and channels in (2, 4):
        assert "white" in notes and again.alpha is None
        share = Picture.from_array(source.alpha).to_float()
        colours = colours * share + 1 - share
    elif channels in (2, 4):
        alpha, expected = (Picture.from_array(p.alpha).to_float() for p in (again, source))
        np.testing.assert_allclose(alpha, expected, atol=1e-5)
    np.testing.assert_allclose(got, colours, atol=0.04 if lossy else 1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_other_readers_agree(tmp_path, random, channels, dtype, suffix):
    image = random.random((150, 37, channels))
    image = (image * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype)
    path = tmp_path / f"a.{suffix}"
    write_image(path, image)
    if suffix == "png" and dtype == np.float32:
        image = np.rint(image.astype(np.float64) * 65535).astype(np.uint16)
    if (suffix, dtype, channels) != ("tif", np.uint8, 4):  # which OpenCV multiplies by alpha
        seen = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).reshape(image.shape)
        if channels >= 3:
            seen = seen[..., [2, 1, 0, 3][:channels]]
        np.testing.assert_array_equal(seen, image)
    if suffix == "tif":
        tifffile = pytest.importorskip("tifffile")
        seen = tifffile.imread(path).reshape(image.shape)
        np.testing.assert_array_equal(seen, image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_metadata(tmp_path, dtype, suffix):
    Image.fromarray(smooth()).save(
        tmp_path / "in.jpg", exif=exif_with(6), xmp=XMP, icc_profile=SRGB, dpi=(240, 240), quality=100
    )
    read = read_image(tmp_path / "in.jpg")
    assert read.icc_profile == SRGB
    source = Picture(
        (read.to_float() * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype),
        icc_profile=read.icc_profile,
        exif=read.exif,
        xmp=read.xmp,
        dpi=read.dpi,
        text={"Title": "Füße", "Comment": "写真"},
    )
    path = tmp_path / f"out.{suffix}"
    write_image(path, source)
    if suffix == "tif" and dtype == np.float32:  # which Pillow cannot open
        again = read_image(path)
        exif = Image.Exif()
        exif.load(again.exif)
        assert again.icc_profile == SRGB and exif[0x010F] == "Maker" and exif.get_ifd(0x8769)[0x829A] == 0.5
        assert again.dpi == (240, 240) and b"caf\xc3\xa9" in again.xmp
        return
    with Image.open(path) as seen:
        seen.load()
        assert seen.info["icc_profile"] == SRGB
        assert seen.getexif()[0x010F] == "Maker"
        assert seen.getexif().get_ifd(0x8769)[0x829A] == 0.5
        assert b"caf\xc3\xa9" in seen.info["xmp"]
        if suffix != "webp":
            np.testing.assert_allclose([float(v) for v in seen.info["dpi"]], 240, rtol=1e-3)
        if suffix == "png":
            assert seen.text["Title"] == "Füße" and seen.text["Comment"] == "写真"
    again = read_image(path)
    assert again.icc_profile == SRGB
    assert (again.text == source.text) == (suffix == "png")

    write_image(path, source, strip_metadata=True)
    with Image.open(path) as seen:
        seen.load()
        assert seen.info["icc_profile"] == SRGB
        assert 0x010F not in seen.getexif() and not seen.getexif().get_ifd(0x8769)
        assert not seen.info.get("xmp") and not getattr(seen, "text", None)


def test_profiles_of_grey(tmp_path):
    profile = SRGB[:16] + b"GRAY" + SRGB[20:]
    grey = Picture(smooth(channels=1), icc_profile=profile)
    for suffix in ("png", "jpg", "tif"):
        assert write_image(tmp_path / f"a.{suffix}", grey) == ()
        assert read_image(tmp_path / f"a.{suffix}").icc_profile == profile
    assert "for grey" in write_image(tmp_path / "a.webp", grey)[0]
    assert read_image(tmp_path / "a.webp").icc_profile is None


def test_metadata_too_large_for_jpeg_is_left_out_and_said(tmp_path):
    big = Picture(smooth(), exif=exif_with().tobytes() + bytes(70_000), xmp=XMP + b" " * 70_000)
    notes = write_image(tmp_path / "a.jpg", big)
    assert len(notes) == 2 and "EXIF" in notes[0] and "XMP" in notes[1]
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg").pixels, smooth(), atol=6)


def test_errors_of_writing(tmp_path):
    image = smooth()
    for name, words in {
        "a.gif": "'.gif'",
        "a": "no suffix",
        "no/such.png": "create it first",
    }.items():
        assert words in error_of(lambda name=name: write_image(tmp_path / name, image))
    (tmp_path / "folder.png").mkdir()
    assert "is a folder" in error_of(lambda: write_image(tmp_path / "folder.png", image))
    (tmp_path / "file").write_bytes(b"x")
    assert "not a folder" in error_of(lambda: write_image(tmp_path / "file" / "a.png", image))
    (tmp_path / "there.png").write_bytes(b"x")
    assert "there already" in error_of(lambda: write_image(tmp_path / "there.png", image, overwrite=False))
    assert (tmp_path / "there.png").read_bytes() == b"x"
    assert "16383" in error_of(lambda: write_image(tmp_path / "wide.webp", np.zeros((1, 20000), np.uint8)))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png", "there.png"]
    check_output(tmp_path / "there.png")
    with pytest.raises(ImageError):
        check_output(tmp_path / "there.png", overwrite=False)


def test_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda *args: False)
    message = error_of(lambda: write_image(tmp_path / "a.png", smooth()))
    assert "permission" in message and str(tmp_path) in message


@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
def test_failure_leaves_nothing_behind(tmp_path, monkeypatch, step):
    target = tmp_path / "a.png"
    target.write_bytes(b"earlier")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, step, fail)
        message = error_of(lambda: write_image(target, smooth()))
    assert message == f"{target}: cannot be written: the disk is full"
    assert os.listdir(tmp_path) == ["a.png"] and target.read_bytes() == b"earlier"


def test_links_and_permissions(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "real" / "a.png")
    write_image(tmp_path / "link.png", smooth())
    assert (tmp_path / "link.png").is_symlink()
    np.testing.assert_array_equal(read_image(tmp_path / "real" / "a.png").pixels, smooth())
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "real" / "a.png").stat().st_mode & 0o777 == 0o666 & ~mask
