"""Small files that promise, or unpack to, more than there is memory."""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from file_corpus.examine import Case
from file_corpus.expecting import anything, one_file, reads, refuses
from file_corpus.making import (
    HEIGHT,
    MEGABYTE,
    WIDTH,
    directory_bomb,
    encoded,
    gif_with,
    jpeg_of_size,
    jpeg_with,
    plain_tiff,
    png_file,
    rows,
    smooth,
    webp_canvas,
    zeros,
)

_SIDE = 60_000


def enormous() -> Iterator[Case]:
    """Pictures that are enormous by their header, or really."""
    bmp = bytearray(encoded(smooth(), "BMP"))
    struct.pack_into("<ii", bmp, 18, _SIDE, _SIDE)
    tiles = [(322, 4, 1, _SIDE), (323, 4, 1, _SIDE), (324, 4, 1, 8), (325, 4, 1, 1)]
    nothing = zlib.compress(b"")
    for name, content in {
        "huge.png": png_file(_SIDE, _SIDE, nothing),
        "huge 16 bit.png": png_file(_SIDE, _SIDE, nothing, depth=16),
        "huge.jpg": jpeg_of_size(65_535, 65_535),
        "huge.gif": gif_with((_SIDE, _SIDE), (1, 1)),
        "huge frame.gif": gif_with((1, 1), (_SIDE, _SIDE)),
        "huge frame to dispose of.gif": gif_with((1, 1), (_SIDE, _SIDE), dispose=2),
        "huge.bmp": bytes(bmp),
        "huge.tif": plain_tiff(_SIDE, _SIDE, b"\0"),
        "huge float.tif": plain_tiff(_SIDE, _SIDE, b"\0", (339, 3, 1, 3), bits=32),
        "huge tile.tif": plain_tiff(8, 8, b"\0", *tiles),
        "huge 16 bit tile.tif": plain_tiff(8, 8, b"\0", *tiles, bits=16),
        "huge.webp": webp_canvas(1 << 24, 1 << 24),
        "huge animated.webp": webp_canvas(_SIDE, _SIDE, animated=True),
        "huge lossless.webp": b"RIFF\x30\0\0\0WEBPVP8L\x24\0\0\0\x2f\xff\xff\xff\x0f" + bytes(40),
    }.items():
        yield one_file("enormous", name, content, "refused by its header", refuses("max_pixels"))
    for name, content in {
        "0x5.png": png_file(0, 5, nothing),
        "0x0.jpg": jpeg_of_size(0, 0),
    }.items():
        yield one_file("enormous", name, content, "refused: zero size", refuses("zero size"))

    blank = functools.partial(_blank, 15_000, depth=1, colour=0)
    name = "blank.png: really 225 million pixels, in 28 kB"
    yield one_file("enormous", name, blank, "refused by its header", refuses("max_pixels"))
    side = 2400
    blank, name = functools.partial(_blank, side), "blank.png: really 5.8 million pixels, in 17 kB"
    black = np.zeros((side, side, 3), np.uint8)
    yield one_file("enormous", name, blank, "read", reads(black), pixels=side * side)
    check = refuses("5.8 million; at most 5.0 million")
    yield one_file(
        "enormous", f"{name}, limit 5 million", blank, "refused by its header", check, max_pixels=5_000_000
    )


def bombs() -> Iterator[Case]:
    """Files that would fill the memory by something else than their size in pixels."""
    for name, content, expected, check in (*_png(), *_directories(), *_tiff()):
        yield one_file("bombs", name, content, expected, check)
    yield one_file(
        "bombs",
        "tile.tif: 16 million pixels in 16 kB, of a picture of 16x16, limit 10 million",
        _large_tile(),
        "refused by its header",
        refuses("max_pixels"),
        max_pixels=10_000_000,
    )
    frames = gif_with((5000, 5000), (5000, 5000), frames=20_000)
    yield one_file(
        "bombs",
        "frames.gif: 20,000 frames of 5000x5000",
        frames,
        "read, the first one, or refused",
        anything,
        pixels=25_000_000,
    )


_Row = tuple[str, bytes | Callable[[], bytes], str, Callable]


def _png() -> Iterator[_Row]:
    data = rows(smooth())
    for kind, head in (("zTXt", b"Comment\0\0"), ("iTXt", b"Comment\0\1\0\0\0"), ("iCCP", b"profile\0\0")):
        content = functools.partial(_png_with_bomb, kind.encode(), head)
        yield f"{kind}.png: 40 MB in 40 kB", content, "refused", refuses("header")
    text = (b"zTXt", b"Comment\0\0" + zeros(MEGABYTE - 1))
    content = png_file(WIDTH, HEIGHT, data, *[text] * 200)
    yield "texts.png: 200 of 1 MB in 200 kB", content, "refused", refuses("header")
    content = png_file(WIDTH, HEIGHT, data, after=[text] * 200)
    yield "texts.png: the same behind the pixels", content, "refused", refuses("image data")
    yield "more.png: 40 MB more pixels than the header says", _more_pixels, "read, or refused", anything
    frame = struct.pack(">IIIIIHHBB", 0, _SIDE, _SIDE, 0, 0, 1, 1, 1, 0)
    content = png_file(WIDTH, HEIGHT, data, (b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", frame))
    yield "frame.png: an animation with a frame of 60000x60000", content, "read, or refused", anything
    second = (b"IHDR", struct.pack(">IIBBBBB", _SIDE, _SIDE, 16, 2, 0, 0, 0))
    deep = rows(smooth().astype(">u2"))
    for where, content in {
        "before": png_file(WIDTH, HEIGHT, deep, second, depth=16),
        "behind": png_file(WIDTH, HEIGHT, deep, depth=16, after=[second]),
    }.items():
        yield (
            f"headers.png: a second one of 60000x60000 {where} the pixels",
            content,
            "read, or refused",
            anything,
        )


def _directories() -> Iterator[_Row]:
    """TIFF structures, of which EXIF is one, whose entries all name the same bytes."""
    block = directory_bomb(5000, 65_000)
    expected, check = "refused", refuses("metadata")
    yield "exif.jpg: 5000 entries of the same 65 kB", jpeg_with((0xE1, b"Exif\0\0" + block)), expected, check
    yield "mpf.jpg: likewise, in an index of pictures", jpeg_with((0xE2, b"MPF\0" + block)), expected, check
    large = directory_bomb(20_000, 600_000)
    parts = [b"Exif\0\0" + large[at : at + 60_000] for at in range(0, len(large), 60_000)]
    content = jpeg_with(*[(0xE1, part) for part in parts])
    yield "exif.jpg: 20,000 entries of the same 600 kB, in 10 segments", content, expected, check
    content = png_file(WIDTH, HEIGHT, rows(smooth()), (b"eXIf", directory_bomb(40_000, 2 * MEGABYTE)))
    check = reads(smooth(), note="EXIF")
    yield "exif.png: 40,000 entries of the same 2 MB", content, "read without its EXIF, and said so", check
    content = directory_bomb(60_000, 2 * MEGABYTE)
    yield "entries.tif: 60,000 of the same 2 MB", content, "refused", refuses("counts more")


def _tiff() -> Iterator[_Row]:
    numbers = 3_000_000
    content = plain_tiff(2, 2, bytes(8 * numbers), (282, 5, numbers, 8))
    yield "fractions.tif: 3 million in one entry", content, "refused", refuses("counts more")
    content = plain_tiff(2, 2, bytes(4), (277, 4, 1, 0xFFFFFFFF))
    yield "samples.tif: 4 billion samples a pixel", content, "refused", refuses("header")
    yield (
        "strips.tif: 20,000 strips that are the same 64 kB",
        _one_strip_often(),
        "refused",
        refuses("image data"),
    )


def _blank(side: int, *, depth: int = 8, colour: int = 2) -> bytes:
    bits = depth * (3 if colour == 2 else 1)
    return png_file(side, side, zeros(side * (1 + side * bits // 8)), depth=depth, colour=colour)


def _png_with_bomb(kind: bytes, head: bytes) -> bytes:
    return png_file(WIDTH, HEIGHT, rows(smooth()), (kind, head + zeros(40 * MEGABYTE)))


def _more_pixels() -> bytes:
    compressor = zlib.compressobj()
    data = compressor.compress(zlib.decompress(rows(smooth())))
    for _ in range(40):
        data += compressor.compress(bytes(MEGABYTE))
    return png_file(WIDTH, HEIGHT, data + compressor.flush())


def _one_strip_often() -> bytes:
    """Grey and alpha of 16 bits, 4x4 pixels."""
    count, size = 20_000, 64_000
    table = 8 + size
    return plain_tiff(
        4,
        4,
        bytes(size) + struct.pack("<I", 8) * count + struct.pack("<I", size) * count,
        (258, 3, 2, 0x00100010),
        (273, 4, count, table),
        (277, 3, 1, 2),
        (279, 4, count, table + 4 * count),
        (338, 3, 1, 2),
    )


def _large_tile() -> bytes:
    data = zeros(4000 * 4000)
    tile = [(322, 4, 1, 4000), (323, 4, 1, 4000), (324, 4, 1, 8), (325, 4, 1, len(data))]
    return plain_tiff(16, 16, data, (259, 3, 1, 8), *tile)
