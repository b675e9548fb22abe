"""Image files, resizing, tiling, colour, quality measures: NumPy arrays in and out, no models."""

from tfcorr.imaging.color import match_low_frequencies
from tfcorr.imaging.depth import convert_depth
from tfcorr.imaging.errors import ImageError
from tfcorr.imaging.files import check_output, read_image, write_image
from tfcorr.imaging.metrics import evaluate_pair, psnr, rgb_to_y, ssim
from tfcorr.imaging.picture import Picture
from tfcorr.imaging.resize import crop_to_multiple, downscale, pad_to_size, resize_bicubic, upscale
from tfcorr.imaging.tiles import Canvas, Tile, plan_tiles, tile_for_budget

__all__ = [
    "Canvas",
    "ImageError",
    "Picture",
    "Tile",
    "check_output",
    "convert_depth",
    "crop_to_multiple",
    "downscale",
    "evaluate_pair",
    "match_low_frequencies",
    "pad_to_size",
    "plan_tiles",
    "psnr",
    "read_image",
    "resize_bicubic",
    "rgb_to_y",
    "ssim",
    "tile_for_budget",
    "upscale",
    "write_image",
]
