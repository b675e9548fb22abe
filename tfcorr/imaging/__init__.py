"""Image files, resizing, tiling, colour and quality measures: NumPy arrays in, NumPy arrays out, no models."""

from tfcorr.imaging.metrics import evaluate_pair, psnr, rgb_to_y, ssim, to_8bit
from tfcorr.imaging.resize import crop_to_multiple, downscale, pad_to_size, resize_bicubic, upscale

__all__ = [
    "crop_to_multiple",
    "downscale",
    "evaluate_pair",
    "pad_to_size",
    "psnr",
    "resize_bicubic",
    "rgb_to_y",
    "ssim",
    "to_8bit",
    "upscale",
]
