"""TIFF files: what their header says, samples of 16 and 32 bits, and a writer.

Pillow's modes have no RGB beyond 8 bits; OpenCV decodes such files, but tells nothing of their profile, their
alpha or their meaning, and writes none of it. The directory is read and written by Pillow here, the samples
by OpenCV or zlib (Adobe, "TIFF revision 6.0" and technical notes 1 and 2).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import zlib
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_SIZES = 273, 277, 278, 279
_X_RESOLUTION, _Y_RESOLUTION, _PLANAR, _RESOLUTION_UNIT = 282, 283, 284, 296
_PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_SIZES = 317, 322, 323, 324, 325
_EXTRA, _FORMAT = 338, 339
_XMP, _ICC, _EXIF_IFD, _GPS_IFD = 700, 34675, 34665, 34853
# Tags of the first directory that describe the picture and not the file: texts, makers, dates, people,
# rights.
_DESCRIPTIVE = (270, 271, 272, 305, 306, 315, 316, 33432)

_NO_COMPRESSION, _DEFLATE, _OLD_DEFLATE = 1, 8, 32946
_HORIZONTAL = 2
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_UINT, _FLOAT, _UNDEFINED = 1, 3, 4
_PREMULTIPLIED, _STRAIGHT = 1, 2
_STRIP_BYTES = 1 << 18
_MOST_SAMPLES = 64
_ROWS_AT_ONCE = 64
_LARGEST = (1 << 32) - (1 << 20)


@dataclasses.dataclass(frozen=True)
class Header:
    """The first directory of a TIFF file.

    Attributes:
      width, height: stored size in pixels, before turning upright.
      bits: bits of each sample.
      sample_format: tag 339 (1 unsigned, 2 signed, 3 floating point, 4 undefined).
      photometric: tag 262 (0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, ...).
      compression, predictor: tags 259 and 317.
      planar: whether each channel is stored by itself.
      extra: what the samples beyond the colours are (tag 338); empty if the file does not say.
      more_pages: whether a second directory follows.
      strips, tiles: (position, bytes) of each piece of the samples; a file has one kind.
      tile: pixels of one tile, which the decoder has room for whatever the image's size; 0 for strips.
      icc_profile, exif, xmp, dpi: as in `Picture`; `exif` holds the descriptive tags only.
    """

    width: int
    height: int
    bits: tuple[int, ...]
    sample_format: int
    photometric: int
    compression: int
    predictor: int
    planar: bool
    extra: tuple[int, ...]
    more_pages: bool
    strips: tuple[tuple[int, int], ...]
    tiles: tuple[tuple[int, int], ...]
    tile: int
    icc_profile: bytes | None
    exif: bytes | None
    xmp: bytes | None
    dpi: tuple[float, float] | None

    @property
    def end_of_data(self) -> int:
        """Position behind the last byte of samples."""
        return max((start + size for start, size in self.strips + self.tiles), default=0)

    @property
    def is_plain(self) -> bool:
        """Whether the samples are not compressed."""
        return self.compression == _NO_COMPRESSION

    @property
    def is_deep(self) -> bool:
        """Whether `decode` reads the samples, not Pillow: 16-bit integers or 32-bit floats, grey or RGB."""
        kinds = {16: (_UINT, _UNDEFINED), 32: (_FLOAT,)}
        return (
            len(set(self.bits)) == 1
            and self.sample_format in kinds.get(self.bits[0], ())
            and self.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
            and len(self.bits) in ((3, 4) if self.photometric == _RGB else (1, 2))
        )


def read_header(file: BinaryIO) -> Header:
    """Reads the first directory of a TIFF file, whatever its samples are.

    Args:
      file: opened for reading, its directories modest (`exif.is_modest`); its position is changed.

    Returns:
      What it says.

    Raises:
      Exception: of many kinds, when the directory is damaged.
    """
    directory = _directory(file)
    bits = tuple(directory.get(_BITS, (1,)))
    samples = directory.get(_SAMPLES, 1)
    if not 1 <= samples <= _MOST_SAMPLES:
        raise ValueError(f"{samples} samples a pixel")
    if len(bits) < samples:
        bits = bits[:1] * samples
    strips, tiles = (
        tuple(zip(directory.get(offsets, ()), directory.get(sizes, ()), strict=False))
        for offsets, sizes in ((_STRIP_OFFSETS, _STRIP_SIZES), (_TILE_OFFSETS, _TILE_SIZES))
    )
    formats = directory.get(_FORMAT, (_UINT,))
    return Header(
        width=int(directory[_WIDTH]),
        height=int(directory[_HEIGHT]),
        bits=bits,
        sample_format=formats[0] if len(set(formats)) == 1 else 0,
        photometric=directory.get(_PHOTOMETRIC, _BLACK_IS_ZERO),
        compression=directory.get(_COMPRESSION, _NO_COMPRESSION),
        predictor=directory.get(_PREDICTOR, 1),
        planar=directory.get(_PLANAR, 1) == 2,
        extra=tuple(directory.get(_EXTRA, ())),
        more_pages=bool(directory.next),
        strips=strips,
        tiles=tiles,
        tile=int(directory.get(_TILE_WIDTH, 0)) * int(directory.get(_TILE_HEIGHT, 0)),
        icc_profile=directory.get(_ICC),
        exif=_descriptive_exif(file),
        xmp=directory.get(_XMP),
        dpi=_dpi(directory),
    )


def decode(data: bytes, header: Header) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Decodes the samples of a file whose header `is_deep`.

    Args:
      data: the whole file, with its orientation set to 1.
      header: its header.

    Returns:
      pixels (H, W, 1 or 3) and alpha (H, W) or None, not premultiplied, uint16 or float32 as stored; None if
      the data are damaged or compressed in a way that is not supported.
    """
    channels = len(header.bits)
    if channels == 2 or (header.planar and channels > 1):
        # OpenCV reads two channels as one of 8 bits, and mixes up separate planes.
        samples = _inflate(data, header)
    else:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if samples is not None and samples.ndim == 3:
            samples = samples[..., [2, 1, 0, 3][: samples.shape[2]]]
        elif samples is not None:
            samples = samples[..., None]
    dtype = np.uint16 if header.bits[0] == 16 else np.float32
    if samples is None or samples.shape != (header.height, header.width, channels) or samples.dtype != dtype:
        return None

    colours = 3 if channels >= 3 else 1
    pixels = np.ascontiguousarray(samples[..., :colours])
    # Like Pillow: a further sample is alpha unless the file says that it is something else.
    kind = header.extra[0] if header.extra else _STRAIGHT
    alpha = samples[..., -1].copy() if channels > colours and kind in (_PREMULTIPLIED, _STRAIGHT) else None
    if alpha is not None and kind == _PREMULTIPLIED:
        pixels = _divided(pixels, alpha)
    if header.photometric == _WHITE_IS_ZERO:
        pixels = (65535 if dtype == np.uint16 else np.float32(1)) - pixels
    return pixels, alpha


def encode(
    image: np.ndarray,
    *,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """Encodes an image as TIFF, compressed without loss (deflate; whole numbers differenced along the rows).

    Args:
      image: uint8, uint16 or float32 (H, W, C): grey, grey and alpha, RGB, or RGB and alpha for C = 1, 2, 3,
        4.
      icc_profile, xmp: written as they are.
      exif: EXIF block; its descriptive tags, its EXIF and its GPS directory are taken over.
      dpi: (horizontal, vertical) dots per inch.

    Returns:
      The bytes of the file.

    Raises:
      ValueError: if the file would pass 4 GB, the format's limit.
    """
    height, width, channels = image.shape
    is_float = image.dtype == np.float32
    rows = max(1, _STRIP_BYTES // (width * channels * image.dtype.itemsize))
    strips = [_deflate(image[first : first + rows]) for first in range(0, height, rows)]
    if sum(map(len, strips)) > _LARGEST:
        raise ValueError("a TIFF file holds at most 4 GB")

    directory = ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    if exif:
        _take_over_exif(directory, exif)
    directory[_WIDTH], directory[_HEIGHT] = width, height
    directory[_BITS] = (8 * image.dtype.itemsize,) * channels
    directory[_FORMAT] = (_FLOAT if is_float else _UINT,) * channels
    directory[_COMPRESSION] = _DEFLATE
    directory[_PHOTOMETRIC] = _RGB if channels >= 3 else _BLACK_IS_ZERO
    directory[_SAMPLES] = channels
    directory[_PLANAR] = 1
    if channels in (2, 4):
        directory[_EXTRA] = (_STRAIGHT,)
    if not is_float:
        directory[_PREDICTOR] = _HORIZONTAL
    directory[_ROWS_PER_STRIP] = rows
    sizes = [len(strip) for strip in strips]
    # Counted from the end of the directory: Pillow adds its length when it writes it.
    directory[_STRIP_OFFSETS] = tuple(int(n) for n in np.cumsum([0, *sizes[:-1]]))
    directory[_STRIP_SIZES] = tuple(sizes)
    if dpi:
        directory[_X_RESOLUTION], directory[_Y_RESOLUTION] = (IFDRational(value) for value in dpi)
        directory[_RESOLUTION_UNIT] = 2
    if icc_profile:
        directory[_ICC] = icc_profile
    if xmp:
        directory[_XMP] = xmp

    file = io.BytesIO()
    directory.save(file)
    for strip in strips:
        file.write(strip)
    return file.getvalue()


def _directory(file: BinaryIO) -> ImageFileDirectory_v2:
    file.seek(0)
    start = file.read(8)
    if start[:4] in (b"II+\0", b"MM\0+"):
        start += file.read(8)
    directory = ImageFileDirectory_v2(start)
    file.seek(directory.next)
    directory.load(file)
    return directory


def _descriptive_exif(file: BinaryIO) -> bytes | None:
    """An EXIF block with the tags of the file that speak of the picture, or None if there are none."""
    with contextlib.suppress(Exception):  # damaged metadata must not keep anyone from the pixels
        file.seek(0)
        source = Image.Exif()
        source.load_from_fp(file)
        described = {tag: source[tag] for tag in _DESCRIPTIVE if tag in source}
        directories = {tag: inner for tag in (_EXIF_IFD, _GPS_IFD) if (inner := source.get_ifd(tag))}
        if described or directories:
            block = Image.Exif()
            block.update(described)
            for tag, inner in directories.items():
                block.get_ifd(tag).update(inner)
            return block.tobytes()
    return None


def _take_over_exif(directory: ImageFileDirectory_v2, exif: bytes) -> None:
    with contextlib.suppress(Exception):  # as above
        source = Image.Exif()
        source.load(exif)
        for tag in _DESCRIPTIVE:
            if tag in source:
                directory[tag] = source[tag]
        for tag in (_EXIF_IFD, _GPS_IFD):
            if inner := source.get_ifd(tag):
                directory[tag] = dict(inner)


def _dpi(directory: ImageFileDirectory_v2) -> tuple[float, float] | None:
    factor = {2: 1.0, 3: 2.54}.get(directory.get(_RESOLUTION_UNIT, 2))
    if factor is None or _X_RESOLUTION not in directory or _Y_RESOLUTION not in directory:
        return None
    return float(directory[_X_RESOLUTION]) * factor, float(directory[_Y_RESOLUTION]) * factor


def _deflate(strip: np.ndarray) -> bytes:
    if strip.dtype != np.float32:
        strip = np.concatenate([strip[:, :1], np.diff(strip, axis=1)], axis=1)
    return zlib.compress(np.ascontiguousarray(strip.astype(strip.dtype.newbyteorder("<"))).tobytes())


def _inflate(data: bytes, header: Header) -> np.ndarray | None:
    """Samples (H, W, C) of a file in strips, plain or deflated; None for any other layout."""
    if (
        header.compression not in (_NO_COMPRESSION, _DEFLATE, _OLD_DEFLATE)
        or header.predictor not in (1, _HORIZONTAL)
        or (header.predictor == _HORIZONTAL and header.sample_format == _FLOAT)
        or header.tiles
    ):
        return None
    dtype = np.dtype(np.uint16 if header.bits[0] == 16 else np.float32)
    channels = len(header.bits)
    needed = header.height * header.width * channels * dtype.itemsize
    content = bytearray()
    try:
        for offset, size in header.strips:
            strip = data[offset : offset + size]
            if header.compression != _NO_COMPRESSION:
                strip = zlib.decompressobj().decompress(strip, needed - len(content) + 1)
            content += strip
            # Strips may name the same bytes again and again.
            if len(content) > needed:
                return None
    except zlib.error:
        return None
    if len(content) != needed:
        return None
    samples = np.frombuffer(content, dtype.newbyteorder("<" if data[:2] == b"II" else ">")).astype(dtype)
    if header.planar:
        samples = samples.reshape(channels, header.height, header.width).transpose(1, 2, 0)
    else:
        samples = samples.reshape(header.height, header.width, channels)
    return np.cumsum(samples, axis=1, dtype=dtype) if header.predictor == _HORIZONTAL else samples


def _divided(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Undoes the multiplication of colours by alpha; what is fully transparent becomes black."""
    peak = 65535 if pixels.dtype == np.uint16 else 1.0
    result = np.empty_like(pixels)
    # In float64, a few rows at a time: all of them would be many times as large as the file.
    for first in range(0, len(pixels), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        share = alpha[part, :, None].astype(np.float64) / peak
        with np.errstate(all="ignore"):  # what is not finite is told by the caller
            straight = np.divide(pixels[part], share, out=np.zeros(pixels[part].shape), where=share > 0)
            if pixels.dtype == np.uint16:
                straight = np.rint(straight)
            result[part] = np.minimum(straight, peak)
    return result
