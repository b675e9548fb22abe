"""Cutting large images into overlapping tiles, and blending what comes out of them, as pure functions.

Along each axis all tiles have one size and are spread evenly, so that neighbours overlap by at least what was
asked for. Half-way through each overlap lies the border between the *cores*, which partition the image;
around it, over half of the overlap, the weight passes smoothly from one tile to the next. The outer quarters
of an overlap carry no weight: there a network saw the padding of its tile. The weights of all tiles sum to
one at each pixel by construction, since those of an axis are differences of one sequence of steps."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Span:
    """One tile's part of one axis, in pixels of the input.

    Attributes:
      start, size: what the tile sees, overlaps included.
      core_start, core_stop: what it is responsible for.
      fade: over how many pixels the weight passes from 0 to 1 around a border between cores.
      is_first, is_last: whether the axis begins or ends here, so that there is no border.
    """

    start: int
    size: int
    core_start: int
    core_stop: int
    fade: float
    is_first: bool
    is_last: bool

    def weights(self, scale: int = 1) -> np.ndarray:
        """Blending weights, float32 (size * scale), in [0, 1]."""
        position = self.start + (np.arange(self.size * scale) + 0.5) / scale
        rising = 1.0 if self.is_first else self._step(position - self.core_start)
        falling = 0.0 if self.is_last else self._step(position - self.core_stop)
        return np.broadcast_to(rising - falling, position.shape).astype(np.float32)

    def _step(self, distance: np.ndarray) -> np.ndarray:
        """0 before a border, 1 behind it, a quarter of a cosine squared in between."""
        if self.fade == 0:
            return (distance >= 0).astype(np.float64)
        return np.sin(np.clip(distance / self.fade + 0.5, 0, 1) * (np.pi / 2)) ** 2


@dataclasses.dataclass(frozen=True)
class Tile:
    """A window of an image, and the part of the output that it is responsible for.

    Attributes:
      rows, columns: its spans along the two axes.
    """

    rows: Span
    columns: Span

    @property
    def window(self) -> tuple[slice, slice]:
        """(rows, columns) of the input that the tile sees."""
        return self.scaled_window(1)

    @property
    def core(self) -> tuple[slice, slice]:
        """(rows, columns) of the input that the tile is responsible for; the cores partition the image."""
        return (
            slice(self.rows.core_start, self.rows.core_stop),
            slice(self.columns.core_start, self.columns.core_stop),
        )

    def scaled_window(self, scale: int) -> tuple[slice, slice]:
        """(rows, columns) of `window` in an output `scale` times as large."""
        return tuple(
            slice(span.start * scale, (span.start + span.size) * scale) for span in (self.rows, self.columns)
        )

    def weights(self, scale: int = 1) -> np.ndarray:
        """Blending weights, float32 (height * scale, width * scale) of the window."""
        return np.outer(self.rows.weights(scale), self.columns.weights(scale))


def plan_tiles(height: int, width: int, tile: int | tuple[int, int], overlap: int) -> tuple[Tile, ...]:
    """Covers an image with overlapping tiles of one size.

    Args:
      height, width: of the image, in pixels.
      tile: the size of a tile, overlaps included: one number, or (height, width). Where the image is smaller,
          the tile
        is as large as the image; otherwise it is never smaller than this, also at the image's ends.
      overlap: pixels that neighbours share at least; below the tile's size along each axis that has to be
          cut.

    Returns:
      The tiles, row by row.

    Raises:
      ValueError: if a number is out of range.
    """
    tile_height, tile_width = (tile, tile) if isinstance(tile, int) else tile
    rows = _plan_axis(height, tile_height, overlap)
    columns = _plan_axis(width, tile_width, overlap)
    return tuple(Tile(row, column) for row in rows for column in columns)


def tile_for_budget(
    height: int,
    width: int,
    budget: int,
    bytes_needed: Callable[[int, int], float],
    *,
    minimum: int,
    multiple: int = 8,
) -> tuple[int, int]:
    """The largest tile whose processing stays within a memory budget.

    Args:
      height, width: of the image, in pixels.
      budget: bytes.
      bytes_needed: tells the bytes that a tile of (height, width) pixels takes; must not fall when a tile
          grows.
      minimum: the smallest useful side of a tile, in pixels; a smaller image is one tile.
      multiple: sides that are smaller than the image's are multiples of this.

    Returns:
      (height, width) for `plan_tiles`: the whole image if it fits, otherwise as square as the image allows.

    Raises:
      ValueError: if not even a tile of the minimum size fits.
    """

    def sides(side: int) -> tuple[int, int]:
        return min(side, height), min(side, width)

    longest = max(height, width)
    if bytes_needed(height, width) <= budget:
        return height, width
    needed = bytes_needed(*sides(minimum))
    if needed > budget:
        raise ValueError(
            f"a tile of {minimum}x{minimum} pixels needs {math.ceil(needed / 1e6)} MB, and only "
            f"{budget / 1e6:.0f} MB are allowed"
        )
    # Invariant: a tile of `fits` multiples fits (or is the minimum), one of `fails` does not.
    fits, fails = minimum // multiple, math.ceil(longest / multiple)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if bytes_needed(*sides(middle * multiple)) <= budget:
            fits = middle
        else:
            fails = middle
    return sides(max(fits * multiple, minimum))


class Canvas:
    """Collects the outputs of all tiles of a plan and blends them.

    Args:
      tiles: the plan of `plan_tiles`.
      channels: of the output.
      scale: how many times larger the output is than the input.
    """

    def __init__(self, tiles: tuple[Tile, ...], channels: int, scale: int = 4):
        """Makes a canvas of zeros for a plan."""
        self._missing = set(tiles)
        self._scale = scale
        height = max(tile.rows.core_stop for tile in tiles)
        width = max(tile.columns.core_stop for tile in tiles)
        self._sum = np.zeros((height * scale, width * scale, channels), np.float32)

    def add(self, tile: Tile, output: np.ndarray) -> None:
        """Adds the output of one tile.

        Args:
          tile: one of the plan that has not been added yet.
          output: (height * scale, width * scale, channels) of the tile's window, floating point.

        Raises:
          ValueError: if the tile is not awaited or the output has another shape.
        """
        if tile not in self._missing:
            raise ValueError(f"this tile is not awaited (added before, or of another plan): {tile}")
        target = self._sum[tile.scaled_window(self._scale)]
        if output.shape != target.shape:
            raise ValueError(f"expected the tile's output as {target.shape}, got {output.shape}")
        target += output * tile.weights(self._scale)[..., None]
        self._missing.remove(tile)

    def finish(self) -> np.ndarray:
        """The blended image, float32 (height * scale, width * scale, channels).

        Raises:
          ValueError: if a tile is missing.
        """
        if self._missing:
            raise ValueError(f"{len(self._missing)} tiles have not been added")
        return self._sum


def _plan_axis(length: int, size: int, overlap: int) -> list[Span]:
    if length < 1 or size < 1 or overlap < 0:
        raise ValueError(
            "lengths and tiles must be at least 1 and overlaps at least 0, "
            f"got length {length}, tile {size}, overlap {overlap}"
        )
    if size >= length:
        return [Span(0, length, 0, length, 0.0, True, True)]
    if overlap >= size:
        raise ValueError(f"an overlap of {overlap} pixels needs a larger tile than {size}")
    count = math.ceil((length - size) / (size - overlap)) + 1
    starts = [round(i * (length - size) / (count - 1)) for i in range(count)]
    borders = [(right + left + size) // 2 for left, right in itertools.pairwise(starts)]
    edges = [0, *borders, length]
    # Fades of two borders must not meet; they lie as far apart as the tiles' starts, to one pixel.
    fade = min(overlap / 2, (length - size) / (count - 1) - 1)
    return [
        Span(start, size, *edges[i : i + 2], max(fade, 0.0), i == 0, i == count - 1)
        for i, start in enumerate(starts)
    ]
