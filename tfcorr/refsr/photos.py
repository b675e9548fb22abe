"""Which photos and pairs of photos there are: folders, globs, CSV lists, exclusion rules, and a cache of
pixels."""

from __future__ import annotations

import csv
import glob
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tfcorr.config import PairSource, PhotoRule, resolve_data_path
from tfcorr.errors import TfcorrError
from tfcorr.imaging.depth import convert_depth
from tfcorr.imaging.errors import ImageError
from tfcorr.imaging.files import read_image

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


class DataError(TfcorrError):
    """Data that a configuration names and that is not there or cannot be used."""


@dataclass(frozen=True)
class Pair:
    """An input photo and its reference; ``at`` and ``reference_at`` are the (y, x) of a patch, or None.

    ``columns`` holds the row of the CSV, for whoever wants more of it.
    """

    scene: str
    input: Path
    reference: Path
    at: tuple[int, int] | None
    reference_at: tuple[int, int] | None
    columns: dict[str, str]


class PhotoCache:
    """Decoded photos by path, uint8 RGB, kept in memory. Safe to use from several threads.

    A file that is missing or cannot be decoded is named once in the log, remembered in `bad`, and given as
    None.

    Args:
        keep: how many photos are kept, the latest ones; None keeps all.
    """

    def __init__(self, keep: int | None = None):
        self.bad: dict[Path, str] = {}
        self._keep = keep
        self._pixels: dict[Path, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, path: Path) -> np.ndarray | None:
        """The (H, W, 3) uint8 pixels of a file, upright; None if it cannot be read. Do not write to them."""
        with self._lock:
            if path in self._pixels:
                return self._pixels[path]
            if path in self.bad:
                return None
        try:
            pixels = convert_depth(read_image(path).pixels, np.uint8)
        except ImageError as error:
            with self._lock:
                if path not in self.bad:
                    self.bad[path] = str(error)
                    logger.warning("skipped: %s", error)
            return None
        if pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        with self._lock:
            if self._keep is not None and len(self._pixels) >= self._keep:
                self._pixels.pop(next(iter(self._pixels)))
            return self._pixels.setdefault(path, pixels)


def excluded(scene: str, path: Path, rules: Iterable[PhotoRule]) -> bool:
    """Whether a rule covers the photo ``path`` (its name without the ending) of ``scene``."""
    return any(rule.scene == scene and (not rule.photos or path.stem in rule.photos) for rule in rules)


def find_images(
    sources: Sequence[str],
    data_root: str | None,
    *,
    exclude: Sequence[PhotoRule] = (),
    only: Sequence[PhotoRule] = (),
) -> list[Path]:
    """All images of some folders and globs, sorted within each source.

    Args:
        sources: folders (searched with their subfolders) or globs, below the data root.
        data_root: see `tfcorr.config.resolve_data_path`.
        exclude: rules of photos to leave out; a photo's scene is the name of its folder.
        only: if given, photos that no rule covers are left out.

    Returns:
        Paths without repetition.

    Raises:
        DataError: a source has no image, or the rules leave none.
    """
    found: dict[Path, None] = {}
    for source in sources:
        place = resolve_data_path(source, data_root)
        candidates = place.rglob("*") if place.is_dir() else map(Path, glob.glob(str(place), recursive=True))
        images = sorted(p for p in candidates if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise DataError(f"{place}: no images there (looked for {', '.join(IMAGE_SUFFIXES)})")
        found.update(dict.fromkeys(images))
    kept = [p for p in found if not excluded(p.parent.name, p, exclude)]
    if only:
        kept = [p for p in kept if excluded(p.parent.name, p, only)]
    if not kept:
        raise DataError(f"{', '.join(sources)}: none of the {len(found)} images is left by the rules")
    return kept


def find_pairs(
    sources: Sequence[PairSource],
    data_root: str | None,
    *,
    exclude: Sequence[PhotoRule] = (),
    only: Sequence[PhotoRule] = (),
) -> list[Pair]:
    """All pairs of some CSV lists or pairs of folders, in their order.

    Args:
        sources: see `tfcorr.config.PairSource`.
        data_root: see `tfcorr.config.resolve_data_path`.
        exclude: a pair is left out if *either* of its photos is covered by one of these rules.
        only: if given, a pair is kept only if *both* of its photos are covered.

    Raises:
        DataError: a list or folder is missing, lacks a column, or the rules leave no pair.
    """
    pairs: list[Pair] = []
    for source in sources:
        found = _csv_pairs(source, data_root) if source.csv else _folder_pairs(source, data_root)
        kept = [
            pair
            for pair in found
            if not any(excluded(pair.scene, photo, exclude) for photo in (pair.input, pair.reference))
            and (not only or all(excluded(pair.scene, photo, only) for photo in (pair.input, pair.reference)))
        ]
        if not kept:
            name = source.csv or source.input_dir
            raise DataError(f"{name}: none of its {len(found)} pairs is left by the rules")
        pairs += kept[: source.limit]
    return pairs


def _csv_pairs(source: PairSource, data_root: str | None) -> list[Pair]:
    path = resolve_list_path(source.csv, data_root)
    # Spreadsheets put a byte order mark in front of UTF-8.
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    pairs = []
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{path}, line {number}: not as many values as the header has columns")
        try:
            input_path = resolve_data_path(source.input_path.format(**row), data_root)
            reference_path = resolve_data_path(source.reference_path.format(**row), data_root)
            at = (int(row["y"]), int(row["x"])) if "x" in row else None
            reference_at = (int(row["ref_y"]), int(row["ref_x"])) if "ref_x" in row else None
        except KeyError as error:
            raise DataError(f"{path}: no column {error}; its columns are {', '.join(row)}") from None
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        scene = row.get("scene") or input_path.parent.name
        pairs.append(Pair(scene, input_path, reference_path, at, reference_at, row))
    return pairs


def resolve_list_path(name: str, data_root: str | None) -> Path:
    """A list of pairs: a file as given, one that ships in ``configs``, or one below the data root."""
    from tfcorr.resources import configs_dir

    for candidate in (Path(name), configs_dir() / name):
        if candidate.is_file():
            return candidate
    path = resolve_data_path(name, data_root)
    if not path.is_file():
        raise DataError(f"{path}: no such list of pairs (a CSV with a header line)")
    return path


def _folder_pairs(source: PairSource, data_root: str | None) -> list[Pair]:
    if not (source.input_dir and source.reference_dir):
        raise DataError("pairs: expected a csv, or input_dir and reference_dir")
    inputs, references = (
        {
            p.name: p
            for p in sorted(resolve_data_path(d, data_root).glob("*"))
            if p.suffix.lower() in IMAGE_SUFFIXES
        }
        for d in (source.input_dir, source.reference_dir)
    )
    common = sorted(inputs.keys() & references.keys())
    if not common:
        raise DataError(
            f"{source.input_dir} ({len(inputs)} images) and {source.reference_dir} "
            f"({len(references)} images) have no file name in common"
        )
    return [Pair(inputs[n].parent.name, inputs[n], references[n], None, None, {}) for n in common]


def at_least(image: np.ndarray, side: int) -> np.ndarray:
    """An (H, W, 3) image, enlarged (bicubic, same aspect) where a side is shorter than ``side`` pixels."""
    height, width = image.shape[:2]
    if min(height, width) >= side:
        return image
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
