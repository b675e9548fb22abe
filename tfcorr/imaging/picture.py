"""An image in memory together with what its file said beside the pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from tfcorr.imaging.depth import convert_depth
from tfcorr.imaging.exif import with_size

# Weights of R, G, B when a grey picture gets three-channel pixels (ITU-R BT.601, full range).
_GREY = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """Pixels, transparency and metadata of one image, upright.

    Attributes:
      pixels: (H, W, 3) RGB or (H, W, 1) grey; uint8, uint16, or float32 in [0, 1].
      alpha: (H, W), dtype of `pixels`, not premultiplied; None if the image is opaque by its type.
      icc_profile: the colour profile that `pixels` are in; None means sRGB by custom.
      exif: EXIF block, beginning with b"Exif\\0\\0"; its orientation says "upright".
      xmp: XMP packet.
      text: texts of a PNG file.
      dpi: (horizontal, vertical) dots per inch.
      path: the file that this was read from.
      notes: what a user should be told about the reading, such as "animated: only the first frame is used";
        each a sentence without the file's name.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    text: dict[str, str] = dataclasses.field(default_factory=dict)
    dpi: tuple[float, float] | None = None
    path: Path | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pixels, alpha = self.pixels, self.alpha
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.size == 0:
            raise ValueError(f"pixels must be non-empty (H, W, 1) or (H, W, 3), got shape {pixels.shape}")
        if pixels.dtype not in (np.uint8, np.uint16, np.float32):
            raise TypeError(f"pixels must be uint8, uint16 or float32, got {pixels.dtype}")
        if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
            raise ValueError(
                f"alpha must be (H, W) of pixels' size and dtype, {pixels.shape[:2]} {pixels.dtype}, "
                f"got {alpha.shape} {alpha.dtype}"
            )

    @classmethod
    def from_array(cls, image: np.ndarray) -> Picture:
        """Wraps an array without metadata.

        Args:
          image: (H, W) or (H, W, 1) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB, (H, W, 4) RGB and alpha;
            uint8, uint16, or floating point in [0, 1].

        Raises:
          ValueError, TypeError: for another shape or dtype.
        """
        image = np.asarray(image)
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim != 3 or image.shape[2] not in (1, 2, 3, 4):
            raise ValueError(f"expected an image (H, W) or (H, W, 1 to 4), got shape {image.shape}")
        if np.issubdtype(image.dtype, np.floating):
            image = convert_depth(image, np.float32)
        if image.shape[2] % 2:
            return cls(image)
        return cls(image[..., :-1], alpha=image[..., -1])

    @property
    def height(self) -> int:
        """Rows."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.pixels.shape[1]

    @property
    def is_grey(self) -> bool:
        """Whether there is one channel."""
        return self.pixels.shape[2] == 1

    def to_rgb(self) -> np.ndarray:
        """The colours as (H, W, 3) in the picture's own dtype; grey is repeated, alpha left out."""
        return np.repeat(self.pixels, 3, axis=2) if self.is_grey else self.pixels

    def to_float(self) -> np.ndarray:
        """The colours as float32 (H, W, 3) in [0, 1]; grey is repeated, alpha left out."""
        return convert_depth(self.to_rgb(), np.float32)

    def with_pixels(self, pixels: np.ndarray, alpha: np.ndarray | None = None) -> Picture:
        """This picture's dtype, channels and metadata with other pixels, of any size.

        Args:
          pixels: (H, W, 3) or (H, W, 1); uint8, uint16, or floating point in [0, 1], clamped. Three channels
            become their luma when this picture is grey; one channel is repeated when it is not.
          alpha: (H, W), same choice of dtypes, or None for an opaque result.

        Returns:
          A new picture whose EXIF block tells the new size.

        Raises:
          ValueError, TypeError: if the arrays do not fit each other or this picture.
        """
        pixels = np.asarray(pixels)
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
            raise ValueError(f"pixels must be (H, W, 1) or (H, W, 3), got shape {pixels.shape}")
        if np.issubdtype(pixels.dtype, np.floating):
            pixels = np.clip(pixels, 0.0, 1.0)
        if self.is_grey and pixels.shape[2] == 3:
            luma = pixels.astype(np.float64) @ _GREY
            whole = np.issubdtype(pixels.dtype, np.integer)
            pixels = (np.rint(luma) if whole else luma).astype(pixels.dtype)[..., None]
        elif not self.is_grey and pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        pixels = convert_depth(pixels, self.pixels.dtype)
        if alpha is not None:
            alpha = np.asarray(alpha)
            if np.issubdtype(alpha.dtype, np.floating):
                alpha = np.clip(alpha, 0.0, 1.0)
            alpha = convert_depth(alpha, self.pixels.dtype)
        exif = None if self.exif is None else with_size(self.exif, pixels.shape[0], pixels.shape[1])
        return dataclasses.replace(self, pixels=pixels, alpha=alpha, exif=exif)
