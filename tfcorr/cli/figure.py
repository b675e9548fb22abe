"""The picture of `tfcorr super-resolve --figure`: input, result, references, and what came from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tfcorr.imaging.depth import convert_depth
from tfcorr.imaging.resize import resize_bicubic

__all__ = ["draw_figure"]

_PANEL = 480  # longest side of a panel, in pixels
_GAP = 12
_CAPTION = 28
_PAPER, _INK, _MARK = (255, 255, 255), (32, 32, 32), (255, 64, 64)
# From dark blue over green to yellow: ordered in lightness too, so that a grey print keeps the order.
_RAMP = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float32)


def draw_figure(
    low_res: np.ndarray,
    result: np.ndarray,
    references: Sequence[np.ndarray],
    correspondence: np.ndarray,
    confidence: np.ndarray,
    used_share: float,
) -> np.ndarray:
    """Draws eight panels about one upscaled image.

    Above: the input enlarged by bicubic interpolation, the result, the references, and the reference's pixels
      put where
    the matches say. Below: the place where input and result differ most, magnified, out of the first two and
    the fourth; and the confidence of the matches.

    Args:
        low_res: (h, w, 3) RGB, uint8, uint16 or float32 in [0, 1].
        result: (4h, 4w, 3), the upscaled image.
        references: the references, (H', W', 3) each; empty when the image was its own reference.
        correspondence: int32 (h, w, 3), see `tfcorr.refsr.predictor.UpscaleResult`.
        confidence: float32 (h, w) in [0, 1].
        used_share: share of the pixels that count as taken from the references, in [0, 1].

    Returns:
        uint8 (rows, columns, 3).
    """
    low_res, result = convert_depth(low_res, np.uint8), convert_depth(result, np.uint8)
    enlarged = resize_bicubic(low_res, result.shape[:2])
    sources = [convert_depth(image, np.uint8) for image in references] or [low_res]
    rearranged = _rearranged(sources, correspondence)
    top, left, side = _liveliest(enlarged, result)
    detail = (slice(top, top + side), slice(left, left + side))
    heat = np.repeat(np.repeat(_coloured(confidence), 4, axis=0), 4, axis=1)
    kind = "no reference: the input itself" if not references else _size_text("reference", references[0])
    if len(references) > 1:
        kind = f"{len(references)} references"
    upper = [
        (_size_text("input, bicubic", low_res), _fitted(_marked(enlarged, top, left, side))),
        (_size_text("result", result), _fitted(_marked(result, top, left, side))),
        (kind, _fitted(_grid(sources))),
        ("reference, put where it matches", _fitted(_marked(rearranged, top, left, side))),
    ]
    lower = [
        ("detail: input, bicubic", _fitted(enlarged[detail])),
        ("detail: result", _fitted(result[detail])),
        ("detail: reference, put where it matches", _fitted(rearranged[detail])),
        (f"confidence 0 to 1, {100 * used_share:.0f} % used", _fitted(heat)),
    ]
    return _sheet([upper, lower])


def _size_text(name: str, image: np.ndarray) -> str:
    return f"{name}, {image.shape[1]}x{image.shape[0]}"


def _rearranged(sources: Sequence[np.ndarray], correspondence: np.ndarray) -> np.ndarray:
    """Copies for each input pixel the 4x4 pixels of the reference it corresponds to: uint8 (4h, 4w, 3)."""
    height, width = correspondence.shape[:2]
    image = np.zeros((4 * height, 4 * width, 3), np.uint8)
    step = np.arange(4) - 2
    for number, source in enumerate(sources):
        at_y, at_x = np.nonzero(correspondence[..., 0] == number)
        y, x = correspondence[at_y, at_x, 1], correspondence[at_y, at_x, 2]
        from_y = np.clip(y[:, None, None] + step[:, None], 0, source.shape[0] - 1)
        from_x = np.clip(x[:, None, None] + step, 0, source.shape[1] - 1)
        to_y = 4 * at_y[:, None, None] + np.arange(4)[:, None]
        to_x = 4 * at_x[:, None, None] + np.arange(4)
        image[to_y, to_x] = source[from_y, from_x]
    return image


def _liveliest(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int]:
    """Returns (top, left, side) of the square, a quarter of the image wide, where two images differ most."""
    height, width = before.shape[:2]
    side = min(height, width, max(16, max(height, width) // 4))
    difference = np.abs(before.astype(np.float64) - after).mean(axis=2)
    total = np.pad(difference.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(np.argmax(sums), sums.shape)
    return int(top), int(left), side


def _marked(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """Draws the frame of a square."""
    image = image.copy()
    line = max(1, max(image.shape[:2]) // 200)
    square = image[top : top + side, left : left + side]
    inside = square[line:-line, line:-line].copy()
    square[:] = _MARK
    square[line:-line, line:-line] = inside
    return image


def _coloured(values: np.ndarray) -> np.ndarray:
    """Turns values in [0, 1] into colours: (h, w) -> uint8 (h, w, 3)."""
    place = np.clip(values, 0.0, 1.0) * (len(_RAMP) - 1)
    lower = np.minimum(place.astype(int), len(_RAMP) - 2)
    share = (place - lower)[..., None]
    return np.rint(_RAMP[lower] * (1 - share) + _RAMP[lower + 1] * share).astype(np.uint8)


def _grid(images: Sequence[np.ndarray]) -> np.ndarray:
    """Puts several images into one, row by row, each fitted into an equal cell."""
    if len(images) == 1:
        return images[0]
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    cell = _PANEL // columns
    sheet = np.full((rows * cell, columns * cell, 3), _PAPER, np.uint8)
    for number, image in enumerate(images):
        small = _fitted(image, cell - 4)
        top, left = number // columns * cell, number % columns * cell
        sheet[top : top + small.shape[0], left : left + small.shape[1]] = small
    return sheet


def _fitted(image: np.ndarray, side: int = _PANEL) -> np.ndarray:
    """Scales an image so that its longer side is `side`; magnified pixels stay visible as squares."""
    factor = side / max(image.shape[:2])
    size = tuple(max(1, round(n * factor)) for n in image.shape[:2])
    if factor >= 2:
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST))
    return resize_bicubic(image, size)


def _sheet(rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
    """Puts captioned panels on paper."""
    heights = [max(panel.shape[0] for _, panel in row) for row in rows]
    columns = max(len(row) for row in rows)
    sheet = Image.new(
        "RGB",
        (_GAP + columns * (_PANEL + _GAP), _GAP + sum(height + _CAPTION + _GAP for height in heights)),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(16)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for number, (caption, panel) in enumerate(row):
            left = _GAP + number * (_PANEL + _GAP)
            draw.text((left, top + 4), caption, _INK, font=font)
            sheet.paste(Image.fromarray(panel), (left, top + _CAPTION))
        top += height + _CAPTION + _GAP
    return np.asarray(sheet)
