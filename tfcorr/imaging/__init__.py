"""Image files, resizing, tiling, colour, quality measures: NumPy arrays in and out, no models."""

from tfcorr.imaging.depth import convert_depth
from tfcorr.imaging.errors import ImageError
from tfcorr.imaging.files import check_output, read_image, write_image
from tfcorr.imaging.metrics import evaluate_pair, psnr, rgb_to_y, ssim
from tfcorr.imaging.picture import Picture
from tfcorr.imaging.resize import crop_to_multiple, downscale, pad_to_size, resize_bicubic, upscale

__all__ = [
    "ImageError",
    "Picture",
    "check_output",
    "convert_depth",
    "crop_to_multiple",
    "downscale",
    "evaluate_pair",
    "pad_to_size",
    "psnr",
    "read_image",
    "resize_bicubic",
    "rgb_to_y",
    "ssim",
    "upscale",
    "write_image",
]
