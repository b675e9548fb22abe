"""Reading and writing image files: PNG, JPEG, WebP, TIFF (and GIF and BMP, to read).

What holds for every file:

* The depth of a picture is that of its file's type (8 bits, 16 bits, 32-bit float), never guessed from its
  values.
* Pictures come upright; what is written says so.
* The colour profile stays with the pixels, in and out, also where other metadata are stripped.
* Nothing is decoded before the size that the header promises has been found acceptable.
* An output is complete or not there: it is written beside its target, synchronised and renamed.
* Everything that goes wrong is an `ImageError`, one line that names the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from tfcorr.atomic import WriteError, write_bytes
from tfcorr.imaging import exif as exif_block
from tfcorr.imaging import headers, png, tiff
from tfcorr.imaging.depth import convert_depth
from tfcorr.imaging.errors import ImageError
from tfcorr.imaging.picture import Picture
from tfcorr.quiet import standard_error_turned_away

MAX_PIXELS = 200_000_000
"""Pixels of the largest image that is read unless the caller says otherwise: 600 MB at 8 bits RGB."""

BYTES_A_PIXEL = 16
"""Bytes of a file that are accepted for each pixel that is: four 32-bit numbers, not compressed."""

METADATA_BYTES = 64 << 20
"""Bytes of a file that are accepted beyond that, for profiles, previews and further pages."""

INPUT_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"})
"""Suffixes by which a folder is searched for images; a single file is read whatever it is called."""

OUTPUT_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})

JPEG_QUALITY = 95
WEBP_QUALITY = 95

_READABLE = "PNG, JPEG, WebP, TIFF, GIF or BMP"
_SIDE_LIMITS = {"JPEG": 65535, "WEBP": 16383}
_JPEG_SEGMENT = 65533  # bytes of a JPEG segment, less its own length
_XMP_HEADER = len(b"http://ns.adobe.com/xap/1.0/\0")
_header_lock = threading.RLock()


def read_image(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Reads an image file, upright, with its metadata.

    Grey stays one channel; palettes become RGB; 1-bit images become 8-bit grey; CMYK becomes sRGB through the
    file's profile, which is then dropped, or by Pillow's formula where there is none. Transparency, also that
    of a palette or of a single colour, becomes `alpha`. 16-bit PNG and TIFF files give uint16, 32-bit float
    TIFF files float32 clamped to [0, 1]; all others give uint8. Of an animated file, or one of several pages,
    the first frame is read. `Picture.notes` says where one of these changed something that a user might miss.

    Args:
      path: a PNG, JPEG, WebP, TIFF, GIF or BMP file; its content counts, not its suffix.
      max_pixels: the largest number of pixels accepted, checked on the header before anything is decoded. A
        file may have `BYTES_A_PIXEL` times as many bytes, and `METADATA_BYTES` more.

    Returns:
      The picture.

    Raises:
      ImageError: if the file is missing, a folder, unreadable, empty, no image of these kinds, damaged,
        truncated, of zero size, larger than `max_pixels`, or holds samples that are not supported.
    """
    path = Path(path)
    with _opened(path, BYTES_A_PIXEL * max_pixels + METADATA_BYTES) as file:
        start = file.read(headers.START)
        file.seek(0)
        kind = headers.kind_of(start)
        if kind is None:
            raise ImageError(path, _not_an_image(start))
        if kind == "TIFF":
            return _read_tiff(path, file.read(), max_pixels)
        return _read_other(path, file, kind, start, max_pixels)


def write_image(
    path: str | os.PathLike,
    picture: Picture | np.ndarray,
    *,
    strip_metadata: bool = False,
    overwrite: bool = True,
) -> tuple[str, ...]:
    """Writes an image file whose type is given by its suffix, completely or not at all.

    PNG holds 8 and 16 bits (float32 is rounded to 16), TIFF 8 and 16 bits and float32. JPEG (quality 95,
    colour not subsampled) and WebP (quality 95) hold 8 bits, to which more is rounded. JPEG knows no
    transparency: such pictures are laid over white. The colour profile is always written (WebP, which holds
    RGB only, has no place for one of grey); EXIF, XMP and dots per inch in every type that has a place for
    them, and texts in PNG.

    Args:
      path: the target; .png, .jpg, .jpeg, .webp, .tif or .tiff in any case.
      picture: what to write; an array is taken as `Picture.from_array` describes.
      strip_metadata: leave out everything but the colour profile.
      overwrite: replace a file that is there already.

    Returns:
      What a user should be told, such as "reduced from 16 to 8 bits a sample, as JPEG holds no more"; each
      without the file's name.

    Raises:
      ImageError: if the suffix is another one, the folder is missing or not writable, the target is a folder,
        or is there and `overwrite` is false, or the type cannot hold so large a picture, or the disk is full.
      ValueError, TypeError: if an array is no image.
    """
    check_output(path, overwrite=overwrite)
    if not isinstance(picture, Picture):
        picture = Picture.from_array(picture)
    encode = {".png": _encode_png, ".webp": _encode_webp, ".tif": _encode_tiff, ".tiff": _encode_tiff}
    notes: list[str] = []
    data = encode.get(Path(path).suffix.lower(), _encode_jpeg)(Path(path), picture, strip_metadata, notes)
    try:
        write_bytes(path, data, overwrite=overwrite)
    except WriteError as error:
        raise ImageError(path, error.problem) from error
    return tuple(notes)


def check_output(path: str | os.PathLike, *, overwrite: bool = True) -> None:
    """Finds out before long work whether `write_image` could write this file.

    Args:
      path: the target.
      overwrite: whether a file that is there may be replaced.

    Raises:
      ImageError: as `write_image`, as far as it can be known before.
    """
    path = Path(path)
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        told = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise ImageError(path, f"cannot be written with {told}; use {', '.join(sorted(OUTPUT_SUFFIXES))}")
    try:
        if path.is_dir():
            raise ImageError(path, "is a folder; name a file in it")
        if path.exists() and not overwrite:
            raise ImageError(path, "is there already and is not to be overwritten")
        folder = path.parent
        if not folder.exists():
            raise ImageError(path, f"cannot be written: there is no folder {str(folder)!r}; create it first")
        if not folder.is_dir():
            raise ImageError(path, f"cannot be written: {str(folder)!r} is not a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ImageError(path, f"cannot be written: no permission to write in the folder {str(folder)!r}")
    except OSError as error:
        raise ImageError(path, f"cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _opened(path: Path, most: int) -> Iterator[BinaryIO]:
    """The file, opened for reading, if it is one that has content, of at most `most` bytes."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(path, "is a folder; an image file is needed")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(path, "is not a regular file; an image file is needed")
        if status.st_size == 0:
            raise ImageError(path, "is empty (0 bytes)")
        if status.st_size > most:
            raise ImageError(
                path,
                f"is {status.st_size / 1e6:,.0f} MB long; at most {most / 1e6:,.0f} MB are read (max_pixels)",
            )
        file = path.open("rb")
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(path, "does not exist") from error
    except PermissionError as error:
        raise ImageError(path, "cannot be read: permission denied") from error
    except (OSError, ValueError) as error:
        raise ImageError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with file:
        yield file


def _not_an_image(start: bytes) -> str:
    foreign = headers.foreign_kind(start)
    if foreign:
        return f"is {foreign}, which is not supported; convert it to PNG, JPEG, WebP or TIFF"
    return f"is not an image that can be read; {_READABLE} is needed"


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(path, f"has zero size ({width}x{height} pixels)")
    if width * height > max_pixels:
        raise ImageError(
            path,
            f"promises {width}x{height} pixels in its header, {width * height / 1e6:,.1f} million; "
            + _accepted(max_pixels),
        )


def _accepted(max_pixels: int) -> str:
    return f"at most {max_pixels / 1e6:,.1f} million are accepted (max_pixels)"


def _damaged(path: Path, what: str, error: Exception) -> ImageError:
    reason = str(error) or type(error).__name__
    return ImageError(path, f"{what} is damaged or truncated ({reason})")


@contextlib.contextmanager
def _pillow_limited(max_pixels: int) -> Iterator[None]:
    """Gives Pillow our limit of pixels for whatever it makes room for, and keeps its warnings to itself.

    The settings belong to the whole process, hence the lock.
    """
    with _header_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        # Pillow warns above its limit and refuses above twice that.
        Image.MAX_IMAGE_PIXELS = max_pixels / 2
        disabled, TiffImagePlugin.logger.disabled = TiffImagePlugin.logger.disabled, True
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
            TiffImagePlugin.logger.disabled = disabled


def _open_with_pillow(path: Path, file: BinaryIO, kind: str, max_pixels: int) -> Image.Image:
    """Parses the header of a file, and no more."""
    with _pillow_limited(max_pixels):
        try:
            image = Image.open(file, formats=[kind])
        except Image.DecompressionBombError as error:
            raise _large_part(path, max_pixels) from error
        except Exception as error:  # plugins raise whatever parsing hostile bytes leads to
            raise _broken_header(path, kind, error) from error
    _check_size(path, *image.size, max_pixels)
    return image


def _large_part(path: Path, max_pixels: int) -> ImageError:
    return ImageError(path, f"has a part of too many pixels; {_accepted(max_pixels)}")


def _broken_header(path: Path, kind: str, error: Exception) -> ImageError:
    # That no plugin took the file says nothing more.
    reason = "" if isinstance(error, UnidentifiedImageError) else f" ({str(error) or type(error).__name__})"
    return ImageError(path, f"is damaged or truncated: its {kind} header cannot be read{reason}")


def _load(path: Path, image: Image.Image, max_pixels: int) -> None:
    # Pillow's TIFF reader looks at the limit once more, which may be another thread's.
    with _pillow_limited(max_pixels) if image.format == "TIFF" else contextlib.nullcontext():
        try:
            image.load()
        except Image.DecompressionBombError as error:
            raise _large_part(path, max_pixels) from error
        except Exception as error:  # as above
            raise _damaged(path, "its image data", error) from error
    # Frames of some formats may be larger than the header said.
    _check_size(path, *image.size, max_pixels)


def _is_animated(image: Image.Image, max_pixels: int) -> bool:
    """Whether there is a second frame; the first one has been loaded."""
    with _pillow_limited(max_pixels):
        try:
            # The further pictures of a phone's MPO file are previews and depth maps.
            return bool(getattr(image, "is_animated", False)) and image.format != "MPO"
        except Exception:  # what follows the first frame is damaged, or too large
            return True


def _read_other(path: Path, file: BinaryIO, kind: str, start: bytes, max_pixels: int) -> Picture:
    """PNG, JPEG, WebP, GIF, BMP."""
    try:
        size = headers.promised_size(kind, start, file)
    except ValueError as error:
        raise ImageError(path, f"is damaged: {error}") from error
    # The screen of a GIF file is often given as 0x0.
    if size is not None and (kind != "GIF" or all(size)):
        _check_size(path, *size, max_pixels)
    file.seek(0)
    image = _open_with_pillow(path, file, kind, max_pixels)
    notes: list[str] = []
    _load(path, image, max_pixels)
    if _is_animated(image, max_pixels):
        notes.append("animated: only the first frame is used")

    info = image.info
    exif = info.get("exif") or _imagemagick_exif(info)
    xmp = info.get("xmp")
    orientation = exif_block.orientation(exif, xmp)
    if exif and not exif_block.is_modest(exif):
        exif = None
        notes.append("its EXIF metadata are damaged and left out")
    profile = info.get("icc_profile") or None
    if kind == "PNG" and start[24] == 16:
        pixels, alpha = _decode_png16(path, file, start[25], info.get("transparency"))
    else:
        pixels, alpha, profile = _decode_pillow(path, image, profile, notes)
    return _picture(
        path, pixels, alpha, orientation, profile, exif, xmp, info.get("dpi"), _texts(image), tuple(notes)
    )


def _read_tiff(path: Path, data: bytes, max_pixels: int) -> Picture:
    if not exif_block.is_modest(data):
        raise ImageError(path, "is damaged: its TIFF header counts more than there is")
    with _pillow_limited(max_pixels):
        try:
            header = tiff.read_header(io.BytesIO(data))
        except Exception as error:  # plugins raise whatever parsing hostile bytes leads to
            raise _broken_header(path, "TIFF", error) from error
    _check_size(path, header.width, header.height, max_pixels)
    if header.tile > max_pixels:
        raise ImageError(path, f"has tiles of too many pixels; {_accepted(max_pixels)}")
    if header.end_of_data > len(data):
        raise ImageError(
            path, f"its image data is truncated ({header.end_of_data - len(data)} bytes are missing)"
        )
    notes = ["has several pages: only the first is used"] if header.more_pages else []

    orientation = exif_block.orientation(data, header.xmp)
    # Pillow turns TIFF files, and OpenCV some of them; both get one that stands upright by its tag.
    data = exif_block.make_upright(data)
    profile = header.icc_profile
    if header.is_deep:
        decoded = _quiet_opencv(tiff.decode, data, header)
        if decoded is None:
            raise ImageError(
                path, "its image data is damaged, or compressed or arranged in a way that is not supported"
            )
        pixels, alpha = decoded
        if pixels.dtype == np.float32:
            pixels, alpha = _clamped(path, pixels, alpha, notes)
    else:
        if max(header.bits) > 8 and not (set(header.bits) == {16} and header.photometric == 5):
            raise ImageError(
                path,
                f"holds {max(header.bits)}-bit samples of a kind that is not supported; grey or RGB in whole "
                "numbers of 8 or 16 bits, or in 32-bit floats, is needed",
            )
        if max(header.bits) > 8:
            notes.append("CMYK of 16 bits is reduced to 8 bits a sample")
        image = _open_with_pillow(path, io.BytesIO(data), "TIFF", max_pixels)
        # Pillow lets libtiff tell of damaged data on the terminal.
        with contextlib.nullcontext() if header.is_plain else _quiet_terminal():
            _load(path, image, max_pixels)
        pixels, alpha, profile = _decode_pillow(path, image, profile, notes)
    return _picture(
        path, pixels, alpha, orientation, profile, header.exif, header.xmp, header.dpi, {}, tuple(notes)
    )


def _picture(path, pixels, alpha, orientation, profile, exif, xmp, dpi, text, notes) -> Picture:
    """Turns everything upright and puts it together."""
    if exif:
        if exif[: len(exif_block.PREFIX)] != exif_block.PREFIX:
            exif = exif_block.PREFIX + exif
        exif = exif_block.without_thumbnail(exif_block.make_upright(exif))
    dpi = _sane_dpi(dpi)
    if dpi and orientation >= 5:
        dpi = dpi[::-1]
    return Picture(
        pixels=exif_block.turn_upright(pixels, orientation),
        alpha=None if alpha is None else exif_block.turn_upright(alpha, orientation),
        icc_profile=profile,
        exif=exif or None,
        xmp=exif_block.make_xmp_upright(xmp) if xmp else None,
        text=text,
        dpi=dpi,
        path=path,
        notes=notes,
    )


def _decode_pillow(
    path: Path, image: Image.Image, profile: bytes | None, notes: list[str]
) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
    """8-bit pixels, alpha and the colour profile that holds for them, of an image in any mode."""
    if image.mode == "CMYK":
        return np.asarray(_cmyk_to_rgb(image, profile, notes)), None, None
    grey = image.mode in ("1", "L", "LA", "La")
    if not grey and image.mode not in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"):
        raise ImageError(
            path, f"holds pixels of kind {image.mode!r}, which is not supported; save it as RGB or grey"
        )
    if image.has_transparency_data:
        # Two steps for the modes that Pillow converts no other way.
        array = np.asarray(image.convert("RGBA"))
        alpha = np.ascontiguousarray(array[..., 3])
        return np.ascontiguousarray(array[..., : 1 if grey else 3]), alpha, profile
    array = np.array(image.convert("L" if grey else "RGB"))
    return array[..., None] if grey else array, None, profile


def _cmyk_to_rgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
        except (ImageCms.PyCMSError, OSError, ValueError):
            notes.append("its CMYK profile cannot be used: converted to RGB without it")
        else:
            notes.append("converted from CMYK to sRGB through its profile")
            return converted
    else:
        notes.append("converted from CMYK, which has no profile, to RGB by formula")
    return image.convert("RGB")


def _decode_png16(
    path: Path, file: BinaryIO, colour_type: int, transparent: int | tuple[int, ...] | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """16-bit pixels and alpha of a PNG file that Pillow has found to be whole.

    `colour_type` is that of its header, `transparent` the one value or colour that stands for "nothing here".
    """
    file.seek(0)
    data = np.frombuffer(png.pixels_only(file.read()), np.uint8)
    samples = _quiet_opencv(cv2.imdecode, data, cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise ImageError(path, "its image data is damaged")
    if samples.ndim == 2:
        samples = samples[..., None]
    alpha = np.ascontiguousarray(samples[..., -1]) if samples.shape[2] in (2, 4) else None
    pixels = np.ascontiguousarray(samples[..., 2::-1] if colour_type & 2 else samples[..., :1])
    if alpha is None and transparent is not None:
        alpha = np.where((pixels == np.array(transparent)).all(axis=-1), 0, 65535).astype(np.uint16)
    return pixels, alpha


@contextlib.contextmanager
def _quiet_terminal() -> Iterator[None]:
    with _header_lock, standard_error_turned_away():
        yield


def _quiet_opencv(function, *args):
    """Calls a function without OpenCV's own report of damaged data on the terminal; None where it raises."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return function(*args)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)


def _clamped(
    path: Path, pixels: np.ndarray, alpha: np.ndarray | None, notes: list[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Floating-point samples within [0, 1]."""
    if not (np.isfinite(pixels).all() and (alpha is None or np.isfinite(alpha).all())):
        raise ImageError(
            path, "holds values that are not finite; floating-point samples have to lie in [0, 1]"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        notes.append(f"floating-point values from {low:.4g} to {high:.4g} are clamped to [0, 1]")
    return np.clip(pixels, 0, 1), None if alpha is None else np.clip(alpha, 0, 1)


def _imagemagick_exif(info: dict) -> bytes | None:
    """EXIF in the text chunk that ImageMagick used before PNG had a chunk for it."""
    lines = info.get("Raw profile type exif")
    if not isinstance(lines, str):
        return None
    with contextlib.suppress(ValueError):
        return bytes.fromhex("".join(lines.split("\n")[3:]))
    return None


def _texts(image: Image.Image) -> dict[str, str]:
    """The texts of a PNG file, but for those that carry EXIF and XMP, which have fields of their own."""
    texts = getattr(image, "text", {}) if image.format == "PNG" else {}
    return {
        key: str(value)
        for key, value in texts.items()
        if key != "XML:com.adobe.xmp" and not key.startswith("Raw profile type ")
    }


def _sane_dpi(dpi) -> tuple[float, float] | None:
    try:
        across, down = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    usable = all(math.isfinite(value) and 1 <= value <= 65535 for value in (across, down))
    return (across, down) if usable else None


def _encode_png(path: Path, picture: Picture, strip: bool, notes: list[str]) -> bytes:
    kept = (
        {} if strip else {"exif": picture.exif, "xmp": picture.xmp, "text": picture.text, "dpi": picture.dpi}
    )
    if picture.pixels.dtype != np.uint8:
        if picture.pixels.dtype == np.float32:
            notes.append("rounded from floating point to 16 bits a sample, as PNG holds no more")
        if kept.get("exif"):
            kept["exif"] = kept["exif"].removeprefix(exif_block.PREFIX)
        samples = convert_depth(_joined(picture), np.uint16)
        return png.encode(samples, icc_profile=picture.icc_profile, **kept)

    texts = PngImagePlugin.PngInfo()
    for key, value in (kept.get("text") or {}).items():
        texts.add_text(key, value)
    if kept.get("xmp"):
        texts.add_itxt("XML:com.adobe.xmp", kept["xmp"].decode("utf-8", "replace"))
    options = {key: kept[key] for key in ("exif", "dpi") if kept.get(key)}
    return _encode_pillow(path, _pillow_image(_joined(picture)), "PNG", picture, pnginfo=texts, **options)


def _encode_jpeg(path: Path, picture: Picture, strip: bool, notes: list[str]) -> bytes:
    picture = _reduced(picture, "JPEG", notes)
    pixels = picture.pixels
    if picture.alpha is not None:
        notes.append("laid over white, as JPEG holds no transparency")
        share = picture.alpha[..., None] / 255.0
        pixels = np.rint(pixels * share + 255.0 * (1.0 - share)).astype(np.uint8)
    options = {"quality": JPEG_QUALITY, "subsampling": 0}
    if not strip:
        for name, block, room in (
            ("EXIF", picture.exif, _JPEG_SEGMENT),
            ("XMP", picture.xmp, _JPEG_SEGMENT - _XMP_HEADER),
        ):
            if block and len(block) > room:
                notes.append(f"{name} metadata left out: {len(block)} bytes are more than JPEG holds")
            elif block:
                options[name.lower()] = block
        if picture.dpi:
            options["dpi"] = tuple(round(value) for value in picture.dpi)
    return _encode_pillow(path, _pillow_image(pixels), "JPEG", picture, **options)


def _encode_webp(path: Path, picture: Picture, strip: bool, notes: list[str]) -> bytes:
    picture = _reduced(picture, "WebP", notes)
    if picture.icc_profile and picture.icc_profile[16:20] == b"GRAY":
        notes.append("its colour profile, which is for grey, is left out, as WebP holds RGB only")
        picture = dataclasses.replace(picture, icc_profile=None)
    options = {} if strip else {"exif": picture.exif, "xmp": picture.xmp}
    options = {key: value for key, value in options.items() if value}
    return _encode_pillow(
        path, _pillow_image(_joined(picture)), "WEBP", picture, quality=WEBP_QUALITY, **options
    )


def _encode_tiff(path: Path, picture: Picture, strip: bool, notes: list[str]) -> bytes:
    del notes  # TIFF holds everything
    kept = {} if strip else {"exif": picture.exif, "xmp": picture.xmp, "dpi": picture.dpi}
    try:
        return tiff.encode(_joined(picture), icc_profile=picture.icc_profile, **kept)
    except ValueError as error:
        raise ImageError(path, f"cannot be written: {error}; use .png") from error


def _encode_pillow(path: Path, image: Image.Image, kind: str, picture: Picture, **options) -> bytes:
    limit = _SIDE_LIMITS.get(kind)
    if limit and max(image.size) > limit:
        raise ImageError(
            path,
            f"cannot be written: {image.width}x{image.height} pixels, and {kind} holds at most {limit} "
            "a side; use .png",
        )
    if picture.icc_profile:
        options["icc_profile"] = picture.icc_profile
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (OSError, ValueError, struct.error) as error:
        raise ImageError(path, f"cannot be written as {kind}: {error}") from error
    return buffer.getvalue()


def _joined(picture: Picture) -> np.ndarray:
    """Pixels and alpha as one array (H, W, 1 to 4)."""
    if picture.alpha is None:
        return picture.pixels
    return np.concatenate([picture.pixels, picture.alpha[..., None]], axis=2)


def _reduced(picture: Picture, kind: str, notes: list[str]) -> Picture:
    """The picture with 8 bits a sample."""
    if picture.pixels.dtype == np.uint8:
        return picture
    before = "floating point" if picture.pixels.dtype == np.float32 else "16"
    notes.append(f"reduced from {before} to 8 bits a sample, as {kind} holds no more")
    alpha = None if picture.alpha is None else convert_depth(picture.alpha, np.uint8)
    return dataclasses.replace(picture, pixels=convert_depth(picture.pixels, np.uint8), alpha=alpha)


def _pillow_image(image: np.ndarray) -> Image.Image:
    """uint8 (H, W, 1 to 4) as "L", "LA", "RGB" or "RGBA"."""
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image))
