"""Image files made byte by byte, or by Pillow."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tfcorr.imaging import png, write_image

MEGABYTE = 1 << 20
HEIGHT, WIDTH = 11, 14


def smooth(height: int = HEIGHT, width: int = WIDTH, channels: int = 3) -> np.ndarray:
    """A uint8 image that lossy formats keep nearly as it is."""
    y, x = np.mgrid[:height, :width]
    planes = [90 + 5 * y + 3 * x, 200 - 4 * y - 2 * x, 60 + 2 * y + 6 * x, 255 - 9 * y][:channels]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    """The bytes of an image file, written by Pillow."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_file(
    width: int,
    height: int,
    data: bytes,
    *chunks: tuple[bytes, bytes],
    depth: int = 8,
    colour: int = 2,
    after: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG file with anything in it, checksums right."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), *after, (b"IEND", b"")]
    return png.SIGNATURE + b"".join(png.chunk(*part) for part in parts)


def rows(image: np.ndarray) -> bytes:
    """Unfiltered rows of a PNG file, compressed."""
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in image))


def zeros(count: int) -> bytes:
    """So many zeros, compressed without having been in memory."""
    compressor, parts = zlib.compressobj(), []
    block = bytes(MEGABYTE)
    while count > 0:
        parts.append(compressor.compress(block[: min(count, MEGABYTE)]))
        count -= MEGABYTE
    return b"".join([*parts, compressor.flush()])


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG file with further segments (marker, content) at its beginning."""
    inserted = b"".join(
        struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments
    )
    whole = encoded(smooth(), "JPEG")
    return whole[:2] + inserted + whole[2:]


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG file whose frame header promises another size."""
    data = bytearray(encoded(smooth(), "JPEG"))
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


def tiff_file(entries: Sequence[tuple[int, int, int, int]], data: bytes = b"", order: str = "<") -> bytes:
    """A TIFF file of one directory; entries (tag, type, count, value or position), `data` at position 8."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    start = 8 + len(data) + len(data) % 2
    directory = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in sorted(entries):
        short = kind == 3 and count == 1
        directory += struct.pack(
            order + ("HHIHH" if short else "HHII"), tag, kind, count, value, *([0] * short)
        )
    return mark + struct.pack(order + "I", start) + data.ljust(start - 8, b"\0") + directory + bytes(4)


def plain_tiff(
    width: int, height: int, data: bytes, *entries: tuple[int, int, int, int], bits: int = 8
) -> bytes:
    """A grey TIFF file of one strip, some entries replaced or added."""
    common = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, bits),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, len(data)),
    }
    common.update({tag: rest for tag, *rest in entries})
    return tiff_file([(tag, *rest) for tag, rest in common.items()], data)


def directory_bomb(entries: int, size: int) -> bytes:
    """A TIFF structure of so many bytes, nearly all of which each of its entries names."""
    total = max(size, 8 + 2 + 12 * entries + 4)
    head = b"II*\0" + struct.pack("<IH", 8, entries)
    body = b"".join(struct.pack("<HHII", 5000 + n, 7, total - 16, 0) for n in range(entries))
    return (head + body + bytes(4)).ljust(total, b"\0")


def gif_with(screen: tuple[int, int], frame: tuple[int, int], *, dispose: int = 0, frames: int = 1) -> bytes:
    """A GIF file that promises sizes and holds next to nothing."""
    data = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    one = b"!\xf9\x04" + struct.pack("<BHBB", dispose << 2, 0, 0, 0)
    one += b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\0"
    return data + one * frames + b";"


def webp_canvas(width: int, height: int, *, animated: bool = False) -> bytes:
    """An extended WebP file whose canvas has another size than its frame."""
    frame = encoded(smooth(), "WEBP", lossless=True)[12:]
    canvas = bytes([2 if animated else 0, 0, 0, 0]) + b"".join(
        (n - 1).to_bytes(3, "little") for n in (width, height)
    )
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas
    if animated:
        place = bytes(6) + (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little") + bytes(4)
        body += b"ANIM" + struct.pack("<I", 6) + bytes(6)
        body += b"ANMF" + struct.pack("<I", len(place) + len(frame)) + place + frame
    else:
        body += frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def good_files() -> dict[str, bytes]:
    """One file of each kind that is read, small and full of noise, by name."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 4)).astype(np.uint8)
    frames = [Image.fromarray(noise[..., :3] // divisor) for divisor in (1, 2)]
    moving = {"save_all": True, "append_images": frames[1:]}
    files = {
        "8.png": encoded(noise[..., :3], "PNG"),
        "alpha.png": encoded(noise, "PNG"),
        "palette.png": encoded(frames[0].quantize(16), "PNG"),
        "animated.png": encoded(frames[0], "PNG", **moving),
        "a.jpg": encoded(noise[..., :3], "JPEG", exif=exif_with(6)),
        "progressive.jpg": encoded(noise[..., :3], "JPEG", progressive=True),
        "cmyk.jpg": encoded(frames[0].convert("CMYK"), "JPEG"),
        "a.webp": encoded(noise[..., :3], "WEBP"),
        "lossless.webp": encoded(noise, "WEBP", lossless=True),
        "animated.webp": encoded(frames[0], "WEBP", **moving),
        "a.gif": encoded(frames[0].quantize(16), "GIF"),
        "animated.gif": encoded(frames[0], "GIF", **moving),
        "a.bmp": encoded(noise[..., :3], "BMP"),
        "palette.bmp": encoded(frames[0].quantize(16), "BMP"),
        "a.tif": encoded(noise[..., :3], "TIFF"),
        "deflate.tif": encoded(noise[..., :3], "TIFF", compression="tiff_deflate"),
        "lzw.tif": encoded(noise[..., :3], "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(noise[..., :3], "TIFF", compression="jpeg"),
        "pages.tif": encoded(frames[0], "TIFF", **moving),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, array in {
            "16.png": noise[..., :3].astype(np.uint16) * 257,
            "16.tif": noise[..., :3].astype(np.uint16) * 257,
            "float.tif": noise[..., :3].astype(np.float32) / 255,
        }.items():
            write_image(Path(folder) / name, array)
            files[name] = (Path(folder) / name).read_bytes()
    return files


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769).update({0x829A: 0.5})
    return exif
