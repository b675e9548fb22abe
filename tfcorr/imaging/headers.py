"""What the first bytes of an image file say, looked up before any library is asked to open the file.

Some libraries make room for the whole picture, or parse all of its metadata, as soon as they open a file.
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

from PIL import JpegImagePlugin

from tfcorr.imaging import exif, png, tiff

START = 32
"""Bytes from the beginning of a file that the functions here look at; JPEG files are read further."""

_SIGNATURES = {
    png.SIGNATURE: "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    **dict.fromkeys(tiff.SIGNATURES, "TIFF"),
}
# Files that people take for images, by a pattern of their first bytes.
_FOREIGN = {
    rb"....ftyp(avif|avis)": "an AVIF image",
    rb"....ftyp(hei[cxms]|hev[cxms])": "a HEIC image",
    rb"....ftyp(mif1|msf1)": "a HEIF image",
    rb"....JXL |\xff\x0a": "a JPEG XL image",
    rb"....jP  |\xff\x4f\xff\x51": "a JPEG 2000 image",
    rb"\x76\x2f\x31\x01": "an OpenEXR image",
    rb"8BPS": "a Photoshop document",
    rb"%PDF": "a PDF document",
    rb"(\xef\xbb\xbf)?\s*(<\?xml|<svg|<!DOCTYPE svg)": "an SVG or XML document",
}


def kind_of(start: bytes) -> str | None:
    """Pillow's name of the type of a file that can be read, None for any other.

    Args:
      start: the first `START` bytes.
    """
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            return kind
    return "WEBP" if start[:4] == b"RIFF" and start[8:12] == b"WEBP" else None


def foreign_kind(start: bytes) -> str | None:
    """What a file is that cannot be read, such as "a HEIC image"; None if it is nothing known."""
    return next((name for pattern, name in _FOREIGN.items() if re.match(pattern, start, re.DOTALL)), None)


def promised_size(kind: str, start: bytes, file: BinaryIO) -> tuple[int, int] | None:
    """Width and height that the header of a PNG, GIF, BMP, WebP or JPEG file promises.

    Args:
      kind: from `kind_of`, but for TIFF.
      start: the first `START` bytes.
      file: the file; its position is changed.

    Returns:
      None where the header is cut off or broken.

    Raises:
      ValueError: the metadata of a JPEG file would fill the memory, see `exif.is_modest`.
    """
    try:
        if kind == "PNG":
            return struct.unpack_from(">II", start, 16) if start[12:16] == b"IHDR" else None
        if kind == "GIF":
            return struct.unpack_from("<HH", start, 6)
        if kind == "BMP":
            (length,) = struct.unpack_from("<I", start, 14)
            width, height = struct.unpack_from("<HH" if length == 12 else "<ii", start, 18)
            return width, abs(height)
        if kind == "WEBP":
            return _webp(start)
        return _jpeg(file)
    except struct.error:
        return None


def _webp(start: bytes) -> tuple[int, int] | None:
    """Of the canvas of an extended file, else of the one frame (RFC 9649)."""
    if start[12:16] == b"VP8X":
        return tuple(1 + int.from_bytes(start[at : at + 3], "little") for at in (24, 27))
    if start[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", start, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", start, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg(file: BinaryIO) -> tuple[int, int] | None:
    """Of the largest frame header before the first scan, stepping from marker to marker as Pillow does."""
    sizes, blocks = [], [b""]
    file.seek(2)
    byte = file.read(1)
    while byte:
        if byte != b"\xff":
            byte = file.read(1)
            continue
        marker = 0xFF00 | int.from_bytes(file.read(1), "big")
        if marker == 0xFFFF:
            continue
        name, _, has_content = JpegImagePlugin.MARKER.get(marker, ("", "", None))
        if name == "SOS":
            break
        if has_content:
            length = int.from_bytes(file.read(2), "big")
            content = file.read(max(0, length - 2))
            if name.startswith("SOF") and len(content) >= 5:
                height, width = struct.unpack_from(">HH", content, 1)
                sizes.append((width, height))
            elif name == "APP1" and content.startswith(exif.PREFIX):
                # Several segments are one block.
                blocks[0] += content[len(exif.PREFIX) if blocks[0] else 0 :]
            elif name == "APP2" and content.startswith(b"MPF\0"):
                blocks.append(content[4:])
        byte = file.read(1)
    if not all(map(exif.is_modest, blocks)):
        raise ValueError("its metadata count more than there is")
    return max(sizes, key=lambda size: size[0] * size[1], default=None)
