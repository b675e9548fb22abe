"""Orientation and size inside EXIF, TIFF and XMP data, read and changed in place.

Values are overwritten where they stand, so that everything else (maker notes, positions, unknown tags) stays
byte for byte what it was; writing a block anew from its parsed tags loses some of it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import numpy as np

PREFIX = b"Exif\0\0"

_ORIENTATION = 0x0112
_EXIF_IFD, _GPS_IFD, _INTEROPERABILITY_IFD = 0x8769, 0x8825, 0xA005
_WIDTH, _HEIGHT = 0xA002, 0xA003
_SHORT, _LONG = 3, 4

_NESTED = (_EXIF_IFD, _GPS_IFD, _INTEROPERABILITY_IFD)
_MOST_DIRECTORIES = 8
# Bytes of one value of each TIFF type, and the types that are read as a whole, not number by number.
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_TEXTS = (1, 2, 6, 7)
_MOST_ENTRIES = 2000
# Enough for positions and sizes of 131,072 strips or tiles.
_MOST_NUMBERS = 1 << 18
# What entries may share, in bytes: some writers let short values overlap.
_SHARED = 1 << 16

_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)([1-8])")


def orientation(block: bytes | None, xmp: bytes | None = None) -> int:
    """How an image has to be turned to stand upright.

    Args:
      block: an EXIF block, with or without its b"Exif\\0\\0", or a whole TIFF file.
      xmp: an XMP packet, asked when the block is silent.

    Returns:
      1 (upright) to 8, as EXIF tag 0x0112 counts; 1 where nothing or nonsense is said.
    """
    for tag, kind, _, position, order in _entries(block or b""):
        if tag == _ORIENTATION and kind in (_SHORT, _LONG):
            value = _read(block, kind, position, order)
            return value if 1 <= value <= 8 else 1
    found = _XMP_ORIENTATION.search(xmp or b"")
    return int(found[2]) if found else 1


def is_modest(block: bytes) -> bool:
    """Whether the directories of an EXIF block or TIFF file can be parsed in memory of about their own size.

    An entry of a directory names a range of bytes, and nothing keeps a thousand entries from naming the same
    megabyte. Pillow reads them all as they stand, and makes an object of each number.

    Args:
      block: an EXIF block, with or without its b"Exif\\0\\0", or a whole TIFF file, also as a memory map.
        What is damaged, no one can read; it is passed over.
    """
    room = len(block) - _start(block)
    size = numbers = 0
    for entries, (_, kind, count, _, _) in enumerate(_entries(block, _NESTED), start=1):
        needed = count * _SIZES.get(kind, 0)
        if needed <= room:
            size += needed
            numbers += 0 if kind in _TEXTS else count
        if entries > _MOST_ENTRIES or size > room + _SHARED or numbers > _MOST_NUMBERS:
            return False
    return True


def make_upright(block: bytes) -> bytes:
    """The EXIF block or TIFF file `block` with its orientation set to 1; `block` itself where it says so."""
    changed = None
    for tag, kind, _, position, order in _entries(block):
        if tag == _ORIENTATION and _read(block, kind, position, order) != 1:
            # Such a file may have gigabytes: only one that is changed is copied.
            changed = bytearray(block) if changed is None else changed
            _write(changed, kind, position, order, 1)
    return block if changed is None else bytes(changed)


def make_xmp_upright(xmp: bytes) -> bytes:
    """The XMP packet `xmp` with every orientation set to 1."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def without_thumbnail(block: bytes) -> bytes:
    """The EXIF block `block` with its second directory, the thumbnail, no longer linked."""
    changed = bytearray(block)
    start = _start(block)
    order = _order(block, start)
    if order is None:
        return block
    try:
        (first,) = struct.unpack_from(order + "I", block, start + 4)
        (count,) = struct.unpack_from(order + "H", block, start + first)
        struct.pack_into(order + "I", changed, start + first + 2 + 12 * count, 0)
    except (struct.error, OverflowError):
        return block
    return bytes(changed)


def with_size(block: bytes, height: int, width: int) -> bytes:
    """The EXIF block `block` with the image size that it tells, if it does, set to height x width."""
    changed = bytearray(block)
    for tag, kind, _, position, order in _entries(block):
        if tag in (_WIDTH, _HEIGHT):
            _write(changed, kind, position, order, width if tag == _WIDTH else height)
    return bytes(changed)


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an array (H, W, ...) that was stored with an EXIF orientation of 1 to 8 upright."""
    if orientation in (5, 6, 7, 8):
        image = np.swapaxes(image, 0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _start(block: bytes) -> int:
    return len(PREFIX) if block[: len(PREFIX)] == PREFIX else 0


def _order(block: bytes, start: int) -> str | None:
    """Byte order of the TIFF structure at `start`, as `struct` writes it."""
    return {b"II": "<", b"MM": ">"}.get(bytes(block[start : start + 2]))


def _entries(
    block: bytes, nested: tuple[int, ...] = (_EXIF_IFD,)
) -> Iterator[tuple[int, int, int, int, str]]:
    """(tag, type, count, position of its value in `block`, byte order) of the entries of the first directory
    and of those that the tags `nested` point to.

    Classic TIFF structures and BigTIFF; a damaged block ends early.
    """
    start = _start(block)
    order = _order(block, start)
    if order is None:
        return
    try:
        (magic,) = struct.unpack_from(order + "H", block, start + 2)
        big = magic == 43
        pointer, counter, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
        pending = [struct.unpack_from(order + pointer, block, start + (8 if big else 4))[0]]
        for directory in pending:
            (entries,) = struct.unpack_from(order + counter, block, start + directory)
            first = start + directory + struct.calcsize(order + counter)
            for number in range(min(entries, 1 << 16)):
                at = first + number * entry
                tag, kind, count = struct.unpack_from(order + "HH" + pointer, block, at)
                position = at + (12 if big else 8)
                if tag in nested and len(pending) < _MOST_DIRECTORIES:
                    pending.append(struct.unpack_from(order + pointer, block, position)[0])
                yield tag, kind, count, position, order
    except (struct.error, OverflowError):
        return


def _read(block: bytes, kind: int, position: int, order: str) -> int:
    try:
        return struct.unpack_from(order + ("H" if kind == _SHORT else "I"), block, position)[0]
    except struct.error:
        return 0


def _write(block: bytearray, kind: int, position: int, order: str, value: int) -> None:
    """Overwrites a SHORT or LONG; where the value does not fit, or of another type, nothing is changed."""
    code, size = {_SHORT: ("H", 2), _LONG: ("I", 4)}.get(kind, ("", 0))
    if value < 1 << (8 * size) and position + size <= len(block):
        struct.pack_into(order + code, block, position, value)
