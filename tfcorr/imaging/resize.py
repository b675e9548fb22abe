"""Antialiased bicubic resizing with Pillow's kernel, the degradation of the super-resolution benchmarks.

Pillow widens its bicubic kernel (a = -0.5) by the reduction factor, so that it averages over all the pixels
that an output pixel covers. `tf.image.resize`, OpenCV and PyTorch do other things by default, and the
difference is worth several tenths of a decibel: whatever is measured against published numbers has to go
through here.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_SUPPORTED = (np.uint8, np.uint16, np.float32)


def resize_bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image with Pillow's antialiased bicubic kernel.

    Args:
      image: (H, W) or (H, W, C), any number of channels, of dtype
        uint8: resized by Pillow's 8-bit code, hence bit for bit what the benchmarks use;
        uint16: computed in floating point, rounded and clipped to 0...65535;
        float32: not clipped, as a bicubic kernel overshoots at edges.
      size: (height, width) of the result, in pixels, both at least 1.

    Returns:
      The image of that size, with the dtype and the number of axes of `image`. Channels are independent of
      each other; a fourth one is not taken for an alpha channel.

    Raises:
      TypeError: for another dtype.
      ValueError: for another number of axes, an empty image, or a size below 1.
    """
    image = np.asarray(image)
    if image.dtype.type not in _SUPPORTED:
        raise TypeError(f"resize_bicubic takes uint8, uint16 or float32, got {image.dtype}")
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(
            f"resize_bicubic takes a non-empty image (H, W) or (H, W, C), got shape {image.shape}"
        )
    height, width = (int(n) for n in size)
    if height < 1 or width < 1:
        raise ValueError(f"resize_bicubic needs a size (height, width) of at least 1, got {tuple(size)}")

    if image.ndim == 2:
        return _resize_plane(image, height, width)
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    planes = [_resize_plane(image[..., c], height, width) for c in range(image.shape[2])]
    return np.stack(planes, axis=-1)


def downscale(image: np.ndarray, factor: int = 4) -> np.ndarray:
    """Makes an image `factor` times smaller with `resize_bicubic`.

    Rows at the bottom and columns at the right that do not fill a whole output pixel are cut off first
    (`crop_to_multiple`), as the published protocol does; so output pixel (y, x) always covers the input
    pixels [factor*y, factor*(y+1)) x [factor*x, factor*(x+1)).

    Args:
      image: (H, W) or (H, W, C), uint8, uint16 or float32, both sides at least `factor`.
      factor: a whole number, at least 1.

    Returns:
      (H // factor, W // factor[, C]), dtype of `image`.

    Raises:
      TypeError, ValueError: as `resize_bicubic` and `crop_to_multiple`.
    """
    image = crop_to_multiple(image, factor)
    return resize_bicubic(image, (image.shape[0] // factor, image.shape[1] // factor))


def upscale(image: np.ndarray, factor: int = 4) -> np.ndarray:
    """Makes an image `factor` times larger with `resize_bicubic`.

    Args:
      image: (H, W) or (H, W, C), uint8, uint16 or float32.
      factor: a whole number, at least 1.

    Returns:
      (H * factor, W * factor[, C]), dtype of `image`.

    Raises:
      TypeError, ValueError: as `resize_bicubic`.
    """
    image = np.asarray(image)
    return resize_bicubic(image, (image.shape[0] * factor, image.shape[1] * factor))


def crop_to_multiple(image: np.ndarray, multiple: int = 4) -> np.ndarray:
    """Cuts an image at the bottom and at the right to the largest size that `multiple` divides.

    Args:
      image: (H, W) or (H, W, C), any dtype, both sides at least `multiple`.
      multiple: a whole number, at least 1.

    Returns:
      A view on `image`, (H - H % multiple, W - W % multiple[, C]).

    Raises:
      ValueError: if `multiple` is below 1 or nothing would be left.
    """
    image = np.asarray(image)
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}")
    height, width = (n - n % multiple for n in image.shape[:2])
    if height == 0 or width == 0:
        raise ValueError(
            f"an image of {image.shape[0]}x{image.shape[1]} (HxW) is smaller than {multiple} pixels"
        )
    return image[:height, :width]


def pad_to_size(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Adds zeros at the bottom and at the right.

    The published test protocol brings an input and a reference of different sizes to one size in this way.

    Args:
      image: (H, W) or (H, W, C), any dtype.
      size: (height, width) in pixels, neither below that of `image`.

    Returns:
      (height, width[, C]), dtype of `image`.

    Raises:
      ValueError: if the image is larger than `size`.
    """
    image = np.asarray(image)
    below, right = size[0] - image.shape[0], size[1] - image.shape[1]
    if below < 0 or right < 0:
        raise ValueError(f"an image of {image.shape[:2]} (H, W) cannot be padded to {tuple(size)}")
    return np.pad(image, [(0, below), (0, right)] + [(0, 0)] * (image.ndim - 2))


def _resize_plane(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """One channel (H, W) of a supported dtype; Pillow's modes "L" and "F" run the same kernel."""
    source = plane if plane.dtype == np.uint8 else plane.astype(np.float32)
    resized = np.asarray(
        Image.fromarray(np.ascontiguousarray(source)).resize((width, height), Image.Resampling.BICUBIC)
    )
    if plane.dtype == np.uint16:
        return np.clip(np.rint(resized), 0, 65535).astype(np.uint16)
    return resized
