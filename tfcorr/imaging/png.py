"""PNG files with 16 bits a sample.

Pillow knows no 16-bit RGB, and OpenCV writes no colour profile; the format itself is small enough to be
written here (W3C, "Portable Network Graphics", third edition; the sections named below are its).
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_SUB, _UP, _PAETH = 1, 2, 4
_ROWS_AT_ONCE = 64
_METRES_PER_INCH = 0.0254


def encode(
    image: np.ndarray,
    *,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
    text: dict[str, str] | None = None,
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """Encodes an image as PNG with 16 bits a sample.

    Args:
      image: uint16 (H, W, C): grey, grey and alpha, RGB, or RGB and alpha for C = 1, 2, 3, 4.
      icc_profile: colour profile, written as `iCCP`.
      exif: TIFF structure of an EXIF block, without b"Exif\\0\\0", written as `eXIf`.
      xmp: XMP packet in UTF-8, written as an `iTXt` of the registered key.
      text: keys (at most 79 Latin-1 characters) and their texts.
      dpi: (horizontal, vertical) dots per inch.

    Returns:
      The bytes of the file.
    """
    height, width, channels = image.shape
    parts = [
        SIGNATURE,
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)),
    ]
    if icc_profile:
        parts.append(chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile)))
    if dpi:
        dots = (round(value / _METRES_PER_INCH) for value in dpi)
        parts.append(chunk(b"pHYs", struct.pack(">IIB", *dots, 1)))
    if exif:
        parts.append(chunk(b"eXIf", exif))
    if xmp:
        parts.append(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    parts += [_text_chunk(key, value) for key, value in (text or {}).items()]
    parts += [chunk(b"IDAT", block) for block in _compressed_rows(image)]
    parts.append(chunk(b"IEND", b""))
    return b"".join(parts)


def pixels_only(data: bytes) -> bytes:
    """The file `data`, which is a PNG, reduced to header and image data, with fresh checksums and an end.

    What is left is decoded alike by every library: no profile to complain of, no orientation to apply, no
    animation, no single transparent colour, and no second header with another size.
    """
    parts, position = [SIGNATURE], len(SIGNATURE)
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"IDAT" or (name == b"IHDR" and len(parts) == 1):
            parts.append(chunk(name, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return b"".join([*parts, chunk(b"IEND", b"")])


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk (section 5.3): length, name, content, and the checksum of the latter two."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _text_chunk(key: str, value: str) -> bytes:
    name = key.encode("latin-1", "replace")
    try:
        return chunk(b"tEXt", name + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return chunk(b"iTXt", name + b"\0\0\0\0\0" + value.encode("utf-8", "replace"))


def _compressed_rows(image: np.ndarray):
    """The zlib stream of the filtered rows, a few at a time."""
    height, width, channels = image.shape
    compressor = zlib.compressobj()
    # A row of zeros above the image and one pixel of zeros before each row, as the filters see them.
    above = np.zeros((1, width * channels * 2), np.uint8)
    for first in range(0, height, _ROWS_AT_ONCE):
        rows = np.ascontiguousarray(image[first : first + _ROWS_AT_ONCE].astype(">u2")).view(np.uint8)
        rows = rows.reshape(len(rows), -1)
        block = compressor.compress(_filtered(rows, above, 2 * channels).tobytes())
        if block:
            yield block
        above = rows[-1:]
    yield compressor.flush()


def _filtered(rows: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    """Filters rows of bytes (section 9.2), each by the filter with the smallest sum of absolute differences.

    Args:
      rows: uint8 (R, N).
      above: uint8 (1, N), the row before the first.
      step: bytes a pixel.

    Returns:
      uint8 (R, 1 + N): the filter's number and the filtered bytes.
    """
    up = np.concatenate([above, rows[:-1]])
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, step:], corner[:, step:] = rows[:, :-step], up[:, :-step]

    a, b, c = (side.astype(np.int16) for side in (left, up, corner))
    from_a, from_b, from_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    paeth = np.where((from_a <= from_b) & (from_a <= from_c), left, np.where(from_b <= from_c, up, corner))

    candidates = np.stack([rows - left, rows - up, rows - paeth])
    costs = np.abs(candidates.view(np.int8).astype(np.int32)).sum(axis=2)
    best = costs.argmin(axis=0)
    numbers = np.array([_SUB, _UP, _PAETH], np.uint8)[best]
    return np.concatenate([numbers[:, None], candidates[best, np.arange(len(rows))]], axis=1)
