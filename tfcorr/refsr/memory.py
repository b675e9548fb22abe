"""From a memory budget to the size of a tile, and how running out of memory is recognised."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tfcorr.imaging.tiles import tile_for_budget
from tfcorr.refsr.detail import alignment_values
from tfcorr.refsr.extractor import FEATURE_STRIDES, FEATURE_WIDTHS
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.restorer import CUES, LEVEL_FEATURES, LEVEL_SCALES, LEVELS, RestorerSizes
from tfcorr.refsr.single_image import SingleImageSizes

__all__ = ["MemoryPlan", "available_memory", "is_out_of_memory", "within_memory"]

SMALLEST_TILE = 32
SMALLEST_REFERENCE_TILE = 64
_FLOAT = 4
# Widths alive at once while conv1_2 of an extractor runs: image, relu1_1 (kept), conv1_2's output, its
# workspace.
_EXTRACTOR_BYTES = (3 + 64 + 64 + 64) * _FLOAT
_DESCRIPTOR_WIDTH = 256
_T = TypeVar("_T")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryPlan:
    """How large tiles and references may be.

    Attributes:
        budget: bytes.
        tile_bytes: bytes that the restorer takes for one pixel of the input.
        reference_bytes: bytes that the prepared features take for one pixel of a reference.
        extractor_bytes: bytes that computing them takes for one.
    """

    budget: int
    tile_bytes: int
    reference_bytes: int
    extractor_bytes: int = _EXTRACTOR_BYTES

    @classmethod
    def of(cls, model: C2Matching, budget: int) -> MemoryPlan:
        """The plan for a model: half of the budget for references, the rest for the tile at work."""
        width = _FLOAT if model.restorer.compute_dtype == "float32" else 2
        features = sum(
            width * FEATURE_WIDTHS[name] / FEATURE_STRIDES[name] ** 2
            for name in model.restorer.reference_features
        )
        # Descriptors as they come and normalised, at one cell for 16 pixels; always float32.
        descriptors = 2 * _FLOAT * _DESCRIPTOR_WIDTH / FEATURE_STRIDES["relu3_1"] ** 2
        sizes = model.restorer.config
        extractor = _EXTRACTOR_BYTES
        if sizes.detail:
            # The base works at a sixteenth of the reference's pixels, beside what was extracted.
            extractor += single_image_bytes(sizes.base) // LEVEL_SCALES["large"] ** 2
        return cls(budget, restorer_bytes(sizes), math.ceil(features + descriptors), extractor)

    def tile(self, height: int, width: int) -> tuple[int, int]:
        """The largest tile for an input: (height, width) in its pixels, overlaps included."""
        budget = max(self.budget // 2, self.tile_bytes * SMALLEST_TILE**2)
        return tile_for_budget(height, width, budget, self._tile_bytes, minimum=SMALLEST_TILE)

    def reference_tile(self, height: int, width: int) -> tuple[int, int]:
        """The largest tile to compute a reference's features in: (height, width) in its pixels."""
        budget = max(self.budget // 4, self.extractor_bytes * SMALLEST_REFERENCE_TILE**2)
        # Multiples of 8 unless it is the whole reference, hence whole cells.
        return tile_for_budget(
            height, width, budget, lambda h, w: h * w * self.extractor_bytes, minimum=SMALLEST_REFERENCE_TILE
        )

    def smaller(self) -> MemoryPlan | None:
        """The plan with half of the budget, or `None` if the smallest tiles are larger than that."""
        half = replace(self, budget=self.budget // 2)
        return half if half.budget // 2 >= self.tile_bytes * SMALLEST_TILE**2 else None

    def _tile_bytes(self, height: int, width: int) -> int:
        return height * width * self.tile_bytes

    @property
    def reference_pixels(self) -> int:
        """How many pixels all references may have together."""
        # Half of the budget; and twice the memory while the tiles of several maps are put together.
        return max(64 * 64, self.budget // 4 // self.reference_bytes)


def within_memory(plan: MemoryPlan, work: Callable[[MemoryPlan], _T]) -> _T:
    """Calls `work`, again from the start with half the budget each time that memory runs out.

    Everything of a failed attempt is thrown away: no tile of it can end up in the result.

    Raises:
        MemoryError: even the smallest tiles are too large.
    """
    while True:
        try:
            return work(plan)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            smaller = plan.smaller()
            if smaller is None:
                raise MemoryError(
                    "out of memory even with the smallest tiles; smaller references may help"
                ) from error
        plan = smaller


def restorer_bytes(config: RestorerSizes) -> int:
    """Bytes that a restorer takes at its peak for one pixel of its input.

    The peak is in one of the levels with a reference, or in the residual blocks of the finest level. What is
    alive there at once was counted in the graph, and a quarter is added: the growth of resident memory that
    was measured is 0.6 of the sum for the light restorer (96x128 pixels), 0.8 for the compact one (72x96).
    """
    peak = 0
    for number, level in enumerate(LEVELS):
        cells = LEVEL_SCALES[level] ** 2
        # Two convolutions of the content path with their workspace, and the level's input.
        widths = 4 * config.features
        if level in config.reference_levels:
            points = 9 * config.deform_groups
            context = config.features + FEATURE_WIDTHS[LEVEL_FEATURES[level]]
            hidden = config.offset_widths[number]
            # Input, context, hidden, the predicted offsets and logits, pre-offsets of all groups, their sum,
            # mask.
            plan = 3 * points + 2 * points + 2 * points + points + 18
            widths = max(widths, config.features + context + 2 * hidden + plan)
        peak = max(peak, cells * widths * _FLOAT)
    if config.base is not None:
        # Its features at the output's size and its image stay until the end, and what is made of the detail.
        kept = LEVEL_SCALES["large"] ** 2 * (config.features + 3) * _FLOAT
        if config.detail:
            kept += LEVEL_SCALES["large"] ** 2 * (3 + CUES) * _FLOAT
            peak = max(peak, alignment_values() * _FLOAT)
        peak = max(peak + kept, single_image_bytes(config.base))
    return peak * 5 // 4


def single_image_bytes(sizes: SingleImageSizes) -> int:
    """Bytes that a single-image network takes at its peak for one pixel of its input.

    At the output's size: a feature before and after the shuffle, and the last convolution's workspace.
    """
    return 3 * LEVEL_SCALES["large"] ** 2 * sizes.features * _FLOAT


def available_memory() -> int:
    """Bytes that this process can have: what is free in the machine, or in its control group if less."""
    free = [_meminfo_available(), _cgroup_available()]
    known = [value for value in free if value is not None]
    return max(min(known), 256 * 10**6) if known else 4 * 10**9


def _meminfo_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return None


def _cgroup_available() -> int | None:
    """What the control group (version 2, or 1) leaves to this process; None where it has no limit."""
    for folder, limit_file, used_file, cache in (
        (_CGROUP, "memory.max", "memory.current", "inactive_file"),
        (_CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = int((folder / limit_file).read_text(encoding="ascii"))
            used = int((folder / used_file).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        # Files that were read stay counted as used until the room is needed.
        return max(0, limit - max(0, used - _statistic(folder / "memory.stat", cache)))
    return None


def _statistic(path: Path, name: str) -> int:
    """A number out of lines of names and numbers; 0 if it is not there."""
    try:
        return int(dict(line.split() for line in path.read_text(encoding="ascii").splitlines())[name])
    except (OSError, ValueError, KeyError):
        return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error of NumPy or of any Keras backend says that memory could not be had."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return type(error).__name__ in ("ResourceExhaustedError", "OutOfMemoryError", "XlaRuntimeError") and (
        "OOM" in text or "RESOURCE_EXHAUSTED" in text or "memory" in text.lower() or not text
    )
