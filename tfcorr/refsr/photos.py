"""Which pairs of photos there are: CSV lists and folders. For single photos see `tfcorr.training.photos`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tfcorr.config import PairSource, PhotoRule, resolve_data_path
from tfcorr.paths import DataFolder
from tfcorr.reading import read_rows
from tfcorr.training.photos import (
    IMAGE_SUFFIXES,
    DataError,
    PhotoCache,
    excluded,
    find_images,
    resolve_list_path,
)

__all__ = ["DataError", "Pair", "PhotoCache", "RowPath", "at_least", "excluded", "find_images", "find_pairs"]


@dataclass(frozen=True)
class Pair:
    """An input photo and its reference; ``at`` and ``reference_at`` are the (y, x) of a patch, or None.

    ``columns`` holds the row of the CSV, for whoever wants more of it; ``register`` is that of the source.
    """

    scene: str
    input: Path
    reference: Path
    at: tuple[int, int] | None
    reference_at: tuple[int, int] | None
    columns: dict[str, str]
    register: bool = False


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
        if source.register and any(pair.at or pair.reference_at for pair in found):
            raise DataError(
                f"{source.csv}: register is for pairs of whole photos; these are patches at positions"
            )
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
    _, rows = read_rows(path, error=DataError)
    wanted = source.where
    if rows and (missing := wanted.keys() - rows[0].keys()):
        raise DataError(f"{path}: no column {min(missing)!r}; its columns are {', '.join(rows[0])}")
    inputs, references = (
        RowPath(pattern, data_root) for pattern in (source.input_path, source.reference_path)
    )
    pairs = []
    for number, row in enumerate(rows, start=2):
        if any(row[column] not in values for column, values in wanted.items()):
            continue
        try:
            input_path, reference_path = inputs.of(row), references.of(row)
            at = (int(row["y"]), int(row["x"])) if "x" in row else None
            reference_at = (int(row["ref_y"]), int(row["ref_x"])) if "ref_x" in row else None
        except KeyError as error:
            raise DataError(f"{path}: no column {error}; its columns are {', '.join(row)}") from None
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        scene = row.get("scene") or input_path.parent.name
        pairs.append(Pair(scene, input_path, reference_path, at, reference_at, row, source.register))
    return pairs


class RowPath:
    """Makes paths out of the rows of a list, below the folder that a pattern begins with.

    Args:
        pattern: as in `tfcorr.config.PairSource`: folders, then names of columns in braces.
        data_root: see `tfcorr.config.resolve_data_path`.
    """

    def __init__(self, pattern: str, data_root: str | None):
        start, brace, rest = pattern.partition("{")
        folder, slash, name = start.rpartition("/")
        self._folder = DataFolder(resolve_data_path(folder + slash or ".", data_root))
        self._name = name + brace + rest

    def of(self, row: Mapping[str, str]) -> Path:
        """The path of a row.

        Raises:
            KeyError: the row lacks a column.
            PathError: the values lead out of the folder.
        """
        return self._folder / self._name.format(**row)


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
    return [
        Pair(inputs[n].parent.name, inputs[n], references[n], None, None, {}, source.register) for n in common
    ]


def at_least(image: np.ndarray, side: int) -> np.ndarray:
    """An (H, W, 3) image, enlarged (bicubic, same aspect) where a side is shorter than ``side`` pixels."""
    height, width = image.shape[:2]
    if min(height, width) >= side:
        return image
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
