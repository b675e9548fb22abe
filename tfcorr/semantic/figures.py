"""Pictures of semantic matching: arrays in, one array out.

What a reader needs to see is which place went where. So places of the target have colours, the source is
shown in the colours of the places that it was matched with, and some points are numbered in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tfcorr.semantic.synthetic import warp

if TYPE_CHECKING:
    from tfcorr.semantic.datasets import KeypointPair
    from tfcorr.semantic.pck import PairScore

__all__ = ["keypoint_figure", "match_figure", "warped_target"]

_PANEL = 420  # longer side of a panel, in pixels
_GAP, _CAPTION = 14, 16
_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_RIGHT, _WRONG = (0, 150, 70), (225, 30, 30)
# Colours of the corners of the target: top left, top right, bottom left, bottom right.
_CORNERS = np.array([[[255, 190, 0], [240, 20, 120]], [[0, 190, 90], [60, 80, 255]]], np.float32)
_SQUARES = 8  # of the chequered pattern, along a side


def warped_target(target: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The target as a flow brings it to the source: black where it points outside.

    Args:
        target: (H', W', 3) uint8.
        flow: (H, W, 2), (dx, dy) in pixels, from the source's grid into the target.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x, y], axis=-1) + flow
    limit = np.maximum(np.array(target.shape[1::-1]) - 1, 1)
    return warp(target, 2 * pixels / limit - 1)


def match_figure(
    source: np.ndarray,
    target: np.ndarray,
    flow: np.ndarray,
    confidence: np.ndarray,
    points: np.ndarray | None = None,
    transferred: np.ndarray | None = None,
) -> np.ndarray:
    """Draws what a match found: source and target with numbered points, both in the colours of the target's
    places, and the target warped to the source.

    Args:
        source: (H, W, 3) uint8.
        target: (H', W', 3) uint8.
        flow: (H, W, 2), (dx, dy) in pixels.
        confidence: (H, W) in [0, 1]; places of little confidence are pale.
        points, transferred: (N, 2), (x, y) in pixels of source and target; without them, trusted places are
            taken from all over the source.

    Returns:
        uint8 (rows, columns, 3).
    """
    if points is None:
        points = _spread(confidence)
        transferred = points + flow[points[:, 1], points[:, 0]]
    colours = _number_colours(len(points))
    dye = _dye(target.shape[:2])
    rows = [
        [
            ("source", _with_points(source, points, colours)),
            ("target", _with_points(target, transferred, colours)),
            ("target, warped to the source", _fitted(warped_target(target, flow))),
        ],
        [
            (
                "source, in the colours of its matches",
                _fitted(_tinted(source, warped_target(dye, flow), confidence)),
            ),
            ("target, each place its colour", _fitted(_tinted(target, dye, np.ones(target.shape[:2])))),
            ("confidence, white is 1", _fitted(_grey(confidence))),
        ],
    ]
    return _page(rows)


def keypoint_figure(
    source: np.ndarray,
    target: np.ndarray,
    pair: KeypointPair,
    scores: Mapping[str, PairScore],
    alpha: float = 0.1,
) -> np.ndarray:
    """Draws the errors of a pair's keypoints, as figure 5 of the paper.

    The target with its numbered points; then, for each method, the source with the true points (rings) and
    where the method put them (crosses), joined by a line that is green within ``alpha`` and red beyond.

    Args:
        source, target: (H, W, 3) uint8 each.
        pair: the annotation.
        scores: by method.
        alpha: of PCK.

    Returns:
        uint8 (rows, columns, 3).
    """
    colours = _number_colours(len(pair.target_points))
    panels = [("target", _with_points(target, pair.target_points, colours))]
    for name, score in scores.items():
        caption = f"{name}: {100 * score.correct(alpha).mean():.0f} % within {alpha:g}"
        panels.append((caption, _errors(source, score, alpha)))
    return _page([panels[i : i + 3] for i in range(0, len(panels), 3)])


def _errors(source: np.ndarray, score: PairScore, alpha: float) -> np.ndarray:
    # Points may be in a frame of another size than the photograph.
    to_photo = np.array(source.shape[1::-1]) / np.array(score.frame[::-1])
    image = Image.fromarray(_fitted(source))
    factor = to_photo * image.width / source.shape[1]
    draw = ImageDraw.Draw(image)
    for true, found, right in zip(
        score.truth * factor, score.points * factor, score.correct(alpha), strict=True
    ):
        colour = _RIGHT if right else _WRONG
        draw.line([tuple(true), tuple(found)], colour, width=2)
        draw.ellipse([*(true - 4), *(true + 4)], outline=colour, width=2)
        for way in ((4, 4), (4, -4)):
            draw.line([tuple(found - way), tuple(found + way)], colour, width=2)
    return np.asarray(image)


def _spread(confidence: np.ndarray, across: int = 6) -> np.ndarray:
    """(N, 2) integer (x, y): the most trusted pixel of each field of a grid, where that is above one half."""
    height, width = confidence.shape
    chosen = []
    for rows in np.array_split(np.arange(height), min(across, height)):
        for columns in np.array_split(np.arange(width), min(across, width)):
            field = confidence[np.ix_(rows, columns)]
            y, x = np.unravel_index(np.argmax(field), field.shape)
            if field[y, x] > 0.5:
                chosen.append((columns[x], rows[y]))
    return np.array(chosen, int).reshape(-1, 2)


def _number_colours(count: int) -> list[tuple[int, int, int]]:
    """Colours that neighbouring numbers do not share."""
    hues = (np.arange(count) * 0.618) % 1
    wheel = Image.fromarray(
        np.stack([hues * 255, np.full(count, 220), np.full(count, 235)], -1)[None].astype(np.uint8), "HSV"
    )
    return [tuple(map(int, colour)) for colour in np.asarray(wheel.convert("RGB"))[0]] if count else []


def _with_points(
    image: np.ndarray, points: np.ndarray, colours: Sequence[tuple[int, int, int]]
) -> np.ndarray:
    drawing = Image.fromarray(_fitted(image))
    factor = drawing.width / image.shape[1]
    draw = ImageDraw.Draw(drawing)
    font = ImageFont.load_default(12)
    for number, (point, colour) in enumerate(zip(np.asarray(points) * factor, colours, strict=True), start=1):
        draw.ellipse([*(point - 5), *(point + 5)], fill=colour, outline=_PAPER, width=1)
        draw.text(
            (point[0] + 6, point[1] - 7), str(number), _PAPER, font=font, stroke_width=2, stroke_fill=_INK
        )
    return np.asarray(drawing)


def _dye(size: tuple[int, int]) -> np.ndarray:
    """A colour for each place: uint8 (height, width, 3), darker in every other square."""
    y, x = (np.linspace(0, 1, n, dtype=np.float32) for n in size)
    (a, b), (c, d) = _CORNERS
    down, across = y[:, None, None], x[None, :, None]
    colour = (a * (1 - across) + b * across) * (1 - down) + (c * (1 - across) + d * across) * down
    dark = (np.floor(y * _SQUARES)[:, None] + np.floor(x * _SQUARES)[None]) % 2
    return np.rint(colour * (1 - 0.3 * dark[..., None])).astype(np.uint8)


def _tinted(image: np.ndarray, dye: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Dye with the light and dark of an image shining through; pale where ``share`` is small."""
    grey = image.mean(axis=2, keepdims=True)
    dyed = dye * (0.5 + 0.5 * grey / 255)
    share = share[..., None]
    return np.rint(np.clip(dyed * share + (128 + 0.5 * grey) * (1 - share), 0, 255)).astype(np.uint8)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def _fitted(image: np.ndarray) -> np.ndarray:
    factor = _PANEL / max(image.shape[:2])
    size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _page(rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
    """Captioned panels on paper; columns and rows are as large as their largest panel."""
    room = _CAPTION + 8
    font = ImageFont.load_default(_CAPTION)
    heights = [max(panel.shape[0] for _, panel in row) + room + _GAP for row in rows]
    widths = [
        max(max(row[i][1].shape[1], round(font.getlength(row[i][0]))) for row in rows if i < len(row)) + _GAP
        for i in range(max(map(len, rows)))
    ]
    page = Image.new("RGB", (_GAP + sum(widths), _GAP + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, row in enumerate(rows):
        top = _GAP + sum(heights[:number])
        for column, (caption, panel) in enumerate(row):
            left = _GAP + sum(widths[:column])
            draw.text((left, top), caption, _INK, font=font)
            page.paste(Image.fromarray(panel), (left, top + room))
    return np.asarray(page)
