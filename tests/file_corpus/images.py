"""Files that users have: every kind of pixel, animations, names, and samples that are not supported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from file_corpus.examine import Case
from file_corpus.expecting import one_file, reads, refuses
from file_corpus.making import HEIGHT, WIDTH, encoded, exif_with, plain_tiff, png_file, rows, smooth


def kinds() -> Iterator[Case]:
    colours, grey = smooth(), smooth()[..., :1]
    with_alpha = smooth(channels=4)
    group, as_it_is = "kinds", "read, all pixels as they are"
    for kind, suffix, options in (
        ("PNG", "png", {}),
        ("BMP", "bmp", {}),
        ("TIFF", "tif", {}),
        ("WEBP", "webp", {"lossless": True}),
    ):
        yield one_file(group, f"rgb.{suffix}", encoded(colours, kind, **options), as_it_is, reads(colours))
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP")):
        yield one_file(group, f"grey.{suffix}", encoded(grey[..., 0], kind), "read, one channel", reads(grey))
    yield one_file(
        group,
        "rgba.png",
        encoded(with_alpha, "PNG"),
        "read with its transparency",
        reads(colours, alpha=with_alpha[..., 3]),
    )
    la = Image.fromarray(with_alpha).convert("LA")
    yield one_file(
        group,
        "grey and alpha.png",
        encoded(la, "PNG"),
        "read with its transparency",
        reads(np.asarray(la)[..., :1], alpha=np.asarray(la)[..., 1]),
    )
    one_bit = Image.fromarray(colours).convert("1")
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP")):
        expected = np.asarray(one_bit.convert("L"))[..., None]
        yield one_file(
            group,
            f"1 bit.{suffix}",
            encoded(one_bit, kind),
            "read, grey of 8 bits, 0 and 255",
            reads(expected),
        )
    palette = Image.fromarray(colours).quantize(8)
    expected, places = np.asarray(palette.convert("RGB")), np.asarray(palette)
    for suffix, kind in (("png", "PNG"), ("gif", "GIF"), ("bmp", "BMP"), ("tif", "TIFF")):
        yield one_file(group, f"palette.{suffix}", encoded(palette, kind), "read, RGB", reads(expected))
    yield one_file(
        group,
        "transparent palette.png",
        encoded(palette, "PNG", transparency=bytes([0, 128])),
        "read, RGB with the palette's transparency",
        reads(expected, alpha=np.array([0, 128] + [255] * 6, np.uint8)[places]),
    )
    deep = colours.astype(np.uint16) * 250 + 7
    yield one_file(
        group,
        "16 bit grey.png",
        png_file(WIDTH, HEIGHT, rows(deep[..., 0].astype(">u2")), depth=16, colour=0),
        "read, 16 bits",
        reads(deep[..., :1]),
    )
    yield one_file(
        group,
        "16 bit.png",
        png_file(WIDTH, HEIGHT, rows(deep.astype(">u2")), depth=16),
        "read, 16 bits",
        reads(deep),
    )
    stored = cv2.imencode(".tif", deep[..., ::-1])[1].tobytes()
    yield one_file(group, "16 bit.tif", stored, "read, 16 bits", reads(deep))
    values = colours.astype(np.float32) / 255
    stored = cv2.imencode(".tif", values[..., ::-1])[1].tobytes()
    yield one_file(group, "float.tif", stored, "read, 32-bit floating point", reads(values))
    wide = values * 5 - 1
    stored = cv2.imencode(".tif", wide[..., ::-1])[1].tobytes()
    yield one_file(
        group,
        "float.tif: values from -1 to 4",
        stored,
        "read, clamped to [0, 1], and said so",
        reads(np.clip(wide, 0, 1), note="clamped", tolerance=1e-6),
    )
    yield one_file(
        group,
        "rgb.jpg",
        encoded(colours, "JPEG", quality=100, subsampling=0),
        "read",
        reads(colours, tolerance=3),
    )
    yield one_file(
        group,
        "progressive.jpg",
        encoded(colours, "JPEG", quality=100, subsampling=0, progressive=True),
        "read",
        reads(colours, tolerance=3),
    )
    cmyk = Image.fromarray(colours).convert("CMYK")
    yield one_file(
        group,
        "cmyk.jpg",
        encoded(cmyk, "JPEG", quality=100),
        "read, converted to RGB, and said so",
        reads(np.asarray(cmyk.convert("RGB")), note="CMYK", tolerance=4),
    )
    yield one_file(
        group,
        "cmyk.jpg: with a profile that is none",
        encoded(cmyk, "JPEG", quality=100, icc_profile=b"x" * 500),
        "read, converted without it, and said so",
        reads(np.asarray(cmyk.convert("RGB")), note="cannot be used", tolerance=4),
    )
    for orientation in range(2, 9):
        image = Image.fromarray(colours)
        image.getexif()[0x0112] = orientation
        upright = np.asarray(ImageOps.exif_transpose(image))
        yield one_file(
            group,
            f"turned {orientation}.png: EXIF orientation {orientation}",
            encoded(colours, "PNG", exif=exif_with(orientation)),
            "read, upright",
            reads(upright),
        )
    for height, width in ((1, 1), (1, 20000), (20000, 1)):
        line = smooth(height, width)
        yield one_file(
            group, f"{width}x{height}.png", encoded(line, "PNG"), as_it_is, reads(line), pixels=height * width
        )
    yield one_file(
        group,
        "behind.png: 100 kB of text behind its end",
        encoded(colours, "PNG") + b"text " * 20000,
        as_it_is,
        reads(colours),
    )
    yield one_file(
        group,
        "zip.jpg: with a zip archive behind its end",
        encoded(colours, "JPEG", quality=100) + b"PK\3\4" * 99,
        "read",
        reads(colours, tolerance=6),
    )


def frames() -> Iterator[Case]:
    frames = [Image.fromarray(smooth() // divisor) for divisor in (1, 2, 3)]
    for name, kind, word, options in (
        ("animated.gif", "GIF", "animated", {}),
        ("animated.png", "PNG", "animated", {}),
        ("animated.webp", "WEBP", "animated", {"lossless": True}),
        ("pages.tif", "TIFF", "pages", {}),
    ):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        tolerance = 12 if kind == "GIF" else 0
        yield one_file(
            "frames",
            name,
            content,
            "read, the first one, and said so",
            reads(smooth(), note=word, tolerance=tolerance),
        )
    cut = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    second = cut.index(b"!\xf9", cut.index(b"!\xf9") + 2)
    yield one_file(
        "frames",
        "second frame cut.gif",
        cut[: second + 12],
        "read, the first one, and said so",
        reads(smooth(), note="animated", tolerance=12),
    )


def names() -> Iterator[Case]:
    picture = encoded(smooth(), "PNG")
    for name in (
        "no suffix",
        "two\nlines.png",
        "-rf.png",
        "a'b\"c`d$(e);f&g|h.png",
        "\x1b[31mred.png",
        "Füße 写真 🏔.png",
        "..png",
        "n" * 251 + ".png",
        "back\\slash.png",
        os.fsdecode(b"no UTF-8 \xff\xfe.png"),
    ):
        shown = name.encode("unicode_escape").decode()
        shown = shown if len(shown) < 60 else f"{shown[:20]}...{shown[-10:]} ({len(name)} characters)"

        def make(folder: Path, name: str = name) -> list[Path]:
            (folder / name).write_bytes(picture)
            return [folder / name]

        def make_none(folder: Path, name: str = name) -> list[Path]:
            return [folder / name]

        yield Case("names", shown, "read", make, reads(smooth()))
        yield Case(
            "names", f"{shown}: not there", "refused: does not exist", make_none, refuses("does not exist")
        )
    for name, content, tolerance in (
        ("png.jpg: a PNG file", picture, 0),
        ("jpeg.tif: a JPEG file", encoded(smooth(), "JPEG", quality=100, subsampling=0), 3),
        ("tiff.png: a TIFF file", encoded(smooth(), "TIFF"), 0),
        ("webp.gif: a WebP file", encoded(smooth(), "WEBP", lossless=True), 0),
    ):
        yield one_file(
            "names", name, content, "read: the content counts", reads(smooth(), tolerance=tolerance)
        )


def samples() -> Iterator[Case]:
    """Pixels that are not supported, or are no numbers."""
    values = smooth().astype(np.float32) / 255
    for name, bad in (("NaN", np.nan), ("infinity", np.inf)):
        damaged = values.copy()
        damaged[3, 4, 1] = bad
        stored = cv2.imencode(".tif", damaged[..., ::-1])[1].tobytes()
        yield one_file("samples", f"float.tif: {name}", stored, "refused: not finite", refuses("not finite"))
    yield one_file(
        "samples",
        "float.tif: NaN in alpha",
        _float_alpha(np.nan),
        "refused: not finite",
        refuses("not finite"),
    )
    for name, image, word in (
        ("32 bit.tif", Image.fromarray(np.zeros((3, 4), np.int32)), "32-bit"),
        ("lab.tif", Image.new("LAB", (4, 3)), "'LAB'"),
    ):
        yield one_file("samples", name, encoded(image, "TIFF"), f"refused: {word}", refuses(word))
    double = cv2.imencode(".tif", smooth()[..., 0].astype(np.float64))[1].tobytes()
    yield one_file("samples", "64 bit.tif", double, "refused: 64-bit", refuses("64-bit"))
    seven = plain_tiff(4, 3, bytes(84), (277, 3, 1, 7), (262, 3, 1, 2))
    yield one_file("samples", "seven channels.tif", seven, "refused", refuses("TIFF"))


def _float_alpha(alpha: float) -> bytes:
    """Grey and alpha in 32-bit floating point."""
    pixels = np.zeros((HEIGHT, WIDTH, 2), "<f4")
    pixels[..., 1] = alpha
    # A count of 2 in type SHORT stands in the entry itself.
    return plain_tiff(
        WIDTH,
        HEIGHT,
        pixels.tobytes(),
        (258, 3, 2, 32 << 16 | 32),
        (277, 3, 1, 2),
        (338, 3, 1, 2),
        (339, 3, 2, 3 << 16 | 3),
    )
