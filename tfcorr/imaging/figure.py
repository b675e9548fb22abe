"""One picture that explains a reference-based upscaling: what went in, what came out, and what came from
where."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tfcorr.imaging.depth import convert_depth
from tfcorr.imaging.resize import resize_bicubic

_PANEL = 480  # sides of the square that a panel is fitted into, in pixels
_GAP = 16
_TITLE_SIZE, _CAPTION_SIZE = 22, 17
_PAPER, _INK, _MARK = (255, 255, 255), (40, 40, 40), (255, 48, 48)
_SMALLEST_DETAIL = 24  # pixels of the output

# Colours of the corners of the references: top left, top right, bottom left, bottom right.
_CORNERS = np.array([[[255, 190, 0], [240, 20, 120]], [[0, 190, 90], [60, 80, 255]]], np.float32)
_SQUARES = 8  # of the chequered pattern, along the longer side of the references
# From dark blue over green to yellow: ordered in lightness too, so that a grey print keeps the order.
_RAMP = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float32)


@dataclasses.dataclass(frozen=True)
class _Box:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The part of the image inside."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def comparison_figure(
    low_res: np.ndarray,
    result: np.ndarray,
    references: Sequence[np.ndarray],
    correspondence: np.ndarray,
    confidence: np.ndarray,
    used_share: float,
    *,
    truth: np.ndarray | None = None,
) -> np.ndarray:
    """Draws nine panels about one upscaled image, and two more where the truth is known.

    First row: the input enlarged by bicubic interpolation, the result, the truth, the references. Second row:
    a detail of each, where the references changed most (the place in the reference is the one that the
    matches point to). Third row: the references dyed by place, in a chequered pattern; the input in the
    colours of the places that its pixels were matched with, grey where that is not trusted; and the
    confidence of the matches.

    Args:
      low_res: (h, w, 3) RGB, uint8, uint16 or float32 in [0, 1].
      result: (H, W, 3), the upscaled image, same choice of dtypes.
      references: (H', W', 3) each; empty when the image was its own reference.
      correspondence: int32 (h, w, 3): number of the reference, and y, x in its pixels.
      confidence: float32 (h, w) in [0, 1].
      used_share: share of the pixels that count as taken from the references, in [0, 1].
      truth: (H, W, 3), what the result should be, same choice of dtypes; or None.

    Returns:
      uint8 (rows, columns, 3).

    Raises:
      ValueError: if `correspondence` or `confidence` has not the size of `low_res`, or `truth` that of
        `result`.
    """
    if correspondence.shape != (*low_res.shape[:2], 3) or confidence.shape != low_res.shape[:2]:
        raise ValueError(
            f"correspondence and confidence must have the input's size {low_res.shape[:2]}, got "
            f"{correspondence.shape} and {confidence.shape}"
        )
    if truth is not None and truth.shape != result.shape:
        raise ValueError(f"truth must have the result's shape {result.shape}, got {truth.shape}")
    low_res, result = convert_depth(low_res, np.uint8), convert_depth(result, np.uint8)
    sources = [convert_depth(image, np.uint8) for image in references] or [low_res]
    enlarged = resize_bicubic(low_res, result.shape[:2])
    detail = _liveliest(enlarged, result, confidence)
    number, place = _matched_place(detail, result.shape[:2], sources, correspondence, confidence)

    sheet, dye = _side_by_side(sources), _side_by_side(_dyes(sources))
    marked = [_marked(image, place) if i == number else image for i, image in enumerate(sources)]
    source = "reference" if references else "input"
    if len(references) > 1:
        what = f"{len(references)} references"
    else:
        what = f"{'reference' if references else 'no reference: the input itself,'} {_size(sources[0])}"
    rows = [
        [
            (f"input {_size(low_res)}, enlarged (bicubic)", _marked(enlarged, detail)),
            (f"result {_size(result)}", _marked(result, detail)),
            (what, _side_by_side(marked)),
        ],
        [
            ("detail of the input, enlarged", detail.cut(enlarged)),
            ("detail of the result", detail.cut(result)),
            (f"its match in the {source}", place.cut(sources[number])),
        ],
        [
            (f"places in the {source}, by colour", _tinted(sheet, dye, 1.0)),
            ("where each pixel found its match", _matches(low_res, sources, correspondence, confidence)),
            ("confidence of the match", _coloured(confidence)),
        ],
    ]
    if truth is not None:
        truth = convert_depth(truth, np.uint8)
        rows[0].insert(2, (f"truth {_size(truth)}", _marked(truth, detail)))
        rows[1].insert(2, ("detail of the truth", detail.cut(truth)))
    title = (
        f"{_size(low_res)} to {_size(result)} pixels, {100 * used_share:.0f} % with detail from the {source}"
    )
    return _page(title, rows)


def contact_sheet(title: str, rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
    """Puts images with captions on one sheet.

    Args:
      title: a line above all.
      rows: of (caption, image), each image (H, W, 3) uint8, fitted into a square panel.

    Returns:
      uint8 (rows, columns, 3).
    """
    return _page(title, rows, with_scale=False)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _liveliest(enlarged: np.ndarray, result: np.ndarray, confidence: np.ndarray) -> _Box:
    """The square of the output where the references changed most: weighted by the trust in the matches."""
    height, width = result.shape[:2]
    side = min(height, width, max(_SMALLEST_DETAIL, max(height, width) // 5))
    trust = resize_bicubic(np.ascontiguousarray(confidence, np.float32), (height, width))
    change = np.abs(enlarged.astype(np.float32) - result).mean(axis=2) * np.clip(trust, 0.01, 1)
    total = np.pad(change.astype(np.float64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(np.argmax(sums), sums.shape)
    return _Box(int(top), int(left), side, side)


def _matched_place(
    detail: _Box,
    size: tuple[int, int],
    sources: Sequence[np.ndarray],
    correspondence: np.ndarray,
    confidence: np.ndarray,
) -> tuple[int, _Box]:
    """The number of the reference that most of a detail was matched with, and a box about the middle there.

    `size` is that of the output, in whose pixels `detail` is.
    """
    factor = size[0] / correspondence.shape[0], size[1] / correspondence.shape[1]
    top, left = int(detail.top / factor[0]), int(detail.left / factor[1])
    rows = slice(top, max(top + 1, round((detail.top + detail.height) / factor[0])))
    columns = slice(left, max(left + 1, round((detail.left + detail.width) / factor[1])))
    matches, trust = correspondence[rows, columns].reshape(-1, 3), confidence[rows, columns].ravel()
    number = int(np.argmax(np.bincount(matches[:, 0], np.maximum(trust, 1e-3))))
    chosen = matches[:, 0] == number
    # The better half: scattered matches would pull the middle away.
    chosen &= trust >= np.median(trust[chosen])
    middle = np.median(matches[chosen, 1:], axis=0)
    corner, sides = [], []
    for axis, side in enumerate((detail.height, detail.width)):
        limit = sources[number].shape[axis]
        sides.append(min(side, limit))
        corner.append(int(np.clip(round(middle[axis] - sides[axis] / 2), 0, limit - sides[axis])))
    return number, _Box(*corner, *sides)


def _dyes(sources: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A colour for each place of each reference: uint8, sizes of the references.

    Bilinear between four corner colours, and darker in every other square; references beside each other
    share one field of colours, so that no two places have the same.
    """
    longest = max(max(image.shape[:2]) for image in sources)
    columns, rows = _grid(len(sources))
    dyes = []
    for number, image in enumerate(sources):
        y, x = (np.arange(n, dtype=np.float32) for n in image.shape[:2])
        down = ((number // columns + y / image.shape[0]) / rows)[:, None, None]
        across = ((number % columns + x / image.shape[1]) / columns)[None, :, None]
        (a, b), (c, d) = _CORNERS
        colour = (a * (1 - across) + b * across) * (1 - down) + (c * (1 - across) + d * across) * down
        square = longest / _SQUARES
        dark = (np.floor(y / square)[:, None] + np.floor(x / square)[None]) % 2
        dyes.append(np.rint(colour * (1 - 0.3 * dark[..., None])).astype(np.uint8))
    return dyes


def _matches(
    low_res: np.ndarray, sources: Sequence[np.ndarray], correspondence: np.ndarray, confidence: np.ndarray
) -> np.ndarray:
    """The input in the colours of its matched places, (h, w, 3)."""
    dye = np.zeros_like(low_res)
    for number, source in enumerate(_dyes(sources)):
        here = correspondence[..., 0] == number
        y, x = (np.clip(correspondence[..., axis + 1][here], 0, source.shape[axis] - 1) for axis in (0, 1))
        dye[here] = source[y, x]
    return _tinted(low_res, dye, np.clip(confidence, 0, 1)[..., None])


def _tinted(image: np.ndarray, dye: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """Dye with the light and dark of an image shining through; where `share` is below 1, more of its grey."""
    grey = image.mean(axis=2, keepdims=True)
    dyed = dye * (0.6 + 0.4 * grey / 255)
    pale = 128 + 0.5 * grey
    return np.rint(np.clip(dyed * share + pale * (1 - share), 0, 255)).astype(np.uint8)


def _coloured(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as colours: (h, w) -> uint8 (h, w, 3)."""
    position = np.clip(values, 0, 1) * (len(_RAMP) - 1)
    lower = np.minimum(position.astype(int), len(_RAMP) - 2)
    share = (position - lower)[..., None]
    return np.rint(_RAMP[lower] * (1 - share) + _RAMP[lower + 1] * share).astype(np.uint8)


def _marked(image: np.ndarray, box: _Box) -> np.ndarray:
    """The image, fitted into a panel, with a frame around a box."""
    drawing = Image.fromarray(_fitted(image))
    factor = drawing.width / image.shape[1]
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    left, top, right, bottom = (round(corner * factor) for corner in corners)
    ImageDraw.Draw(drawing).rectangle((left, top, right - 1, bottom - 1), outline=_MARK, width=2)
    return np.asarray(drawing)


def _grid(count: int) -> tuple[int, int]:
    """(columns, rows) for that many images."""
    columns = math.ceil(math.sqrt(count))
    return columns, math.ceil(count / columns)


def _side_by_side(images: Sequence[np.ndarray]) -> np.ndarray:
    """Several images as one, each fitted into a cell of one width; a single one as it is."""
    if len(images) == 1:
        return images[0]
    columns, rows = _grid(len(images))
    cell = _PANEL // columns
    small = [_fitted(image, cell - 4) for image in images]
    heights = [max(i.shape[0] for i in small[row * columns : (row + 1) * columns]) + 4 for row in range(rows)]
    sheet = np.full((sum(heights), columns * cell, 3), _PAPER, np.uint8)
    for number, image in enumerate(small):
        row, column = divmod(number, columns)
        target = sheet[sum(heights[:row]) :, column * cell :]
        target[: image.shape[0], : image.shape[1]] = image
    return sheet


def _fitted(image: np.ndarray, side: int = _PANEL) -> np.ndarray:
    """Scales an image so that its longer side is `side`; magnified pixels stay visible as squares."""
    factor = side / max(image.shape[:2])
    size = tuple(max(1, round(n * factor)) for n in image.shape[:2])
    if factor >= 2:
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST))
    return resize_bicubic(image, size)


def _page(
    title: str, rows: Sequence[Sequence[tuple[str, np.ndarray]]], *, with_scale: bool = True
) -> np.ndarray:
    """Puts captioned panels on paper; below the last one, of the confidence, its scale."""
    fitted = [[(caption, _fitted(panel)) for caption, panel in row] for row in rows]
    heights = [max(panel.shape[0] for _, panel in row) for row in fitted]
    columns = max(map(len, rows))
    caption_room, scale_room = _CAPTION_SIZE + 8, 44 if with_scale else 0
    height = 2 * _GAP + _TITLE_SIZE + sum(h + caption_room + _GAP for h in heights) + scale_room
    page = Image.new("RGB", (_GAP + columns * (_PANEL + _GAP), height), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, _GAP - 4), title, _INK, font=ImageFont.load_default(_TITLE_SIZE))
    font = ImageFont.load_default(_CAPTION_SIZE)
    top = 2 * _GAP + _TITLE_SIZE
    for row, row_height in zip(fitted, heights, strict=True):
        for number, (caption, panel) in enumerate(row):
            left = _GAP + number * (_PANEL + _GAP)
            draw.text((left, top), caption, _INK, font=font)
            page.paste(Image.fromarray(panel), (left, top + caption_room))
        top += row_height + caption_room + _GAP
    if not with_scale:
        return np.asarray(page)
    ramp = _coloured(np.linspace(0, 1, _PANEL)[None].repeat(12, axis=0))
    page.paste(Image.fromarray(ramp), (left, top - 4))
    draw.text((left, top + 12), "0", _INK, font=font)
    draw.text((left + _PANEL, top + 12), "1", _INK, font=font, anchor="ra")
    return np.asarray(page)
