"""Pairs of photographs for semantic matching: PF-PASCAL, PF-WILLOW and SPair-71k in their published layouts,
folders by class, and lists of one's own.

================  =====================================================================================
layout            what lies below ``path``, and what the list is
================  =====================================================================================
``pf_pascal``     ``PF-dataset-PASCAL/JPEGImages/*.jpg``; CSV with the keypoints (``bbox_test_pairs_pf_
                  pascal.csv``) or without (``train_pairs.csv``, whose ``flip`` mirrors both images)
``pf_willow``     ``PF-dataset/<class>/*.png``; CSV ``test_pairs_pf.csv``, ten points a pair
``spair``         ``JPEGImages/<category>/*.jpg`` and ``PairAnnotation/<split>/*.json``; no list
``csv``           any images; CSV with ``source``, ``target`` (paths below ``path``), ``category``, and for
                  annotated pairs ``source_x``, ``source_y``, ``target_x``, ``target_y``, ``source_box``,
                  ``target_box`` (``x1;y1;x2;y2``): numbers separated by ``;``, pixels of the files
``folders``       ``<class>/<image>``; no list
================  =====================================================================================

Convention: points are (x, y) in pixels of the image files, the centre of the first pixel at (0, 0).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfcorr.config import resolve_data_path
from tfcorr.config.semantic import ImageSet, PairSet
from tfcorr.paths import DataFolder, PathError
from tfcorr.reading import read_json_object, read_rows
from tfcorr.training.photos import IMAGE_SUFFIXES, DataError, find_images, resolve_list_path

__all__ = ["ImagePair", "KeypointPair", "find_image_set", "find_pairs", "in_training", "overlap_warning"]

VOC_CLASSES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
_WILLOW_POINTS = 10


@dataclass(frozen=True, eq=False)
class ImagePair:
    """Two photographs; ``flip`` mirrors both.

    Attributes:
        source, target: paths.
        category: the class, for tables.
        flip: whether both are taken mirrored.
    """

    source: Path
    target: Path
    category: str = ""
    flip: bool = False

    @property
    def name(self) -> str:
        """What a report calls the pair."""
        return f"{self.source.stem} {self.target.stem}{' mirrored' if self.flip else ''}"


@dataclass(frozen=True, eq=False)
class KeypointPair(ImagePair):
    """An annotated pair.

    Attributes:
        source_points, target_points: float64 (N, 2), (x, y) in pixels; row i of both is the same part.
        source_box, target_box: (x1, y1, x2, y2) in pixels; None where the data set has none.
        source_side: the longer side of the source's box, as the list states it; None takes it from the box.
    """

    source_points: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2)))
    target_points: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2)))
    source_box: tuple[float, ...] | None = None
    target_box: tuple[float, ...] | None = None
    source_side: float | None = None


def find_pairs(pairs: PairSet, data_root: str | None) -> list[ImagePair]:
    """The pairs that a configuration describes; the image files need not be there.

    Args:
        pairs: see `tfcorr.config.semantic.PairSet`.
        data_root: see `tfcorr.config.resolve_data_path`.

    Returns:
        `KeypointPair`s where the list has keypoints and the pairing is ``listed``, else `ImagePair`s; in the
        order of the list, or as drawn.

    Raises:
        DataError: list or folder is missing or broken, or there are fewer pairs than ``count``.
    """
    root = resolve_data_path(pairs.path or ".", data_root)
    found = _LAYOUTS[pairs.layout](pairs, root, data_root)
    kept = _kept(found, pairs, data_root)
    if not kept:
        raise DataError(f"{pairs.list or root}: none of the {len(found)} pairs is left by the lists")
    if pairs.pairing != "listed":
        return _made(kept, pairs, root)
    if pairs.count is None:
        return kept
    if pairs.count > len(kept):
        raise DataError(f"{pairs.list or root}: {len(kept)} pairs, asked for {pairs.count}")
    chosen = np.random.default_rng(pairs.seed).permutation(len(kept))[: pairs.count]
    return [kept[i] for i in sorted(chosen)]


def find_image_set(images: ImageSet, data_root: str | None) -> list[Path]:
    """The photographs that a configuration describes, without repetition.

    Raises:
        DataError: a list or folder is missing or empty, or nothing is left.
    """
    found: dict[Path, None] = {}
    if images.list:
        root = DataFolder(resolve_data_path(images.root or ".", data_root))
        path, names = _image_column(images.list, data_root)
        for number, name in enumerate(names, start=2):
            try:
                found[root / name] = None
            except PathError as error:
                raise DataError(f"{path}, line {number}: {error}") from None
    if images.images:
        found.update(dict.fromkeys(find_images(images.images, data_root)))
    without, only = (_listed_images(names, data_root) for names in (images.exclude, images.only))
    kept = [p for p in found if p not in without and (not images.only or p in only)]
    if not kept:
        raise DataError(f"none of {len(found)} images is left ({images.list or ', '.join(images.images)})")
    return kept


def in_training(tested: Iterable[ImagePair], trained: Iterable[ImagePair]) -> list[bool]:
    """For each tested pair, whether the same two images, in whichever roles, were trained on."""
    seen = {frozenset((pair.source, pair.target)) for pair in trained}
    return [frozenset((pair.source, pair.target)) in seen for pair in tested]


def overlap_warning(name: str, tested: Sequence[ImagePair], trained: Sequence[ImagePair]) -> str | None:
    """A line for the user where tested pairs stand in the training list, or None."""
    count = sum(in_training(tested, trained))
    if not count:
        return None
    return (
        f"warning: {name}: {count} of its {len(tested)} pairs stand in the training list; the result is also "
        "given without them"
    )


def _kept(found: list[ImagePair], pairs: PairSet, data_root: str | None) -> list[ImagePair]:
    without, only = (_listed_images(names, data_root) for names in (pairs.exclude, pairs.only))
    return [
        pair
        for pair in found
        if not {pair.source, pair.target} & without and (not pairs.only or {pair.source, pair.target} <= only)
    ]


def _listed_images(names: Sequence[str], data_root: str | None) -> set[Path]:
    # Compared only, never opened.
    columns = [_image_column(name, data_root)[1] for name in names]
    return {resolve_data_path(image, data_root) for column in columns for image in column}


def _image_column(name: str, data_root: str | None) -> tuple[Path, list[str]]:
    path, rows = _rows(name, data_root)
    if "image" not in rows[0]:
        raise DataError(f"{path}: no column 'image'; its columns are {', '.join(rows[0])}")
    return path, [row["image"] for row in rows]


def _made(listed: list[ImagePair], pairs: PairSet, root: Path) -> list[ImagePair]:
    """Pairs of two different images of the listed ones, by the rule of ``pairing``."""
    classes = {path: pair.category for pair in listed for path in (pair.source, pair.target)}
    images = sorted(classes)
    number = {name: i for i, name in enumerate(sorted(set(classes.values())))}
    category = np.array([number[classes[path]] for path in images])
    first, second = (a.ravel() for a in np.indices((len(images),) * 2))
    allowed = first != second
    if pairs.pairing == "matched":
        allowed &= category[first] == category[second]
    elif pairs.pairing == "unmatched":
        allowed &= category[first] != category[second]
    codes = np.flatnonzero(allowed)
    if pairs.count is None and pairs.pairing != "matched":
        raise DataError(f"{pairs.list or root}: pairing {pairs.pairing} needs a count")
    if pairs.count is not None:
        if pairs.count > len(codes):
            raise DataError(
                f"{pairs.list or root}: {len(codes)} {pairs.pairing} pairs of {len(images)} images, "
                f"asked for {pairs.count}"
            )
        codes = np.random.default_rng(pairs.seed).choice(codes, pairs.count, replace=False)
    return [ImagePair(images[first[c]], images[second[c]], classes[images[first[c]]]) for c in codes]


def _rows(name: str | None, data_root: str | None) -> tuple[Path, list[dict[str, str]]]:
    if not name:
        raise DataError("list: missing, this layout needs a CSV list")
    path = resolve_list_path(name, data_root)
    _, rows = read_rows(path, error=DataError)
    if not rows:
        raise DataError(f"{path}: empty, expected a CSV with a header line")
    return path, rows


def _read_rows(
    pairs: PairSet, root: Path, data_root: str | None, read: Callable[[dict, DataFolder], ImagePair]
) -> list[ImagePair]:
    path, rows = _rows(pairs.list, data_root)
    folder, found = DataFolder(root), []
    for number, row in enumerate(rows, start=2):
        try:
            found.append(read(row, folder))
        except KeyError as error:
            raise DataError(f"{path}: no column {error}; its columns are {', '.join(row)}") from None
        except (ValueError, IndexError) as error:
            raise DataError(f"{path}, line {number}: {error}") from None
    return found


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(";") if word.strip()]


def _points(x: str, y: str) -> np.ndarray:
    columns = _numbers(x), _numbers(y)
    if len(columns[0]) != len(columns[1]):
        raise ValueError(f"{len(columns[0])} values of x and {len(columns[1])} of y")
    points = np.array(columns).T.reshape(-1, 2)
    # Some lists are filled up to one length with -1.
    return points[: np.count_nonzero(np.all(points != -1, axis=1))]


def _box(text: str) -> tuple[float, ...]:
    box = tuple(_numbers(text))
    if len(box) != 4 or box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError(f"{text!r} is no box (expected x1;y1;x2;y2)")
    return box


def _keypoint_pair(source, target, category, source_points, target_points, **more) -> KeypointPair:
    if len(source_points) != len(target_points) or not len(source_points):
        raise ValueError(f"{len(source_points)} points in the source and {len(target_points)} in the target")
    return KeypointPair(
        source, target, category, source_points=source_points, target_points=target_points, **more
    )


def _pf_pascal(pairs: PairSet, root: Path, data_root: str | None) -> list[ImagePair]:
    return _read_rows(pairs, root, data_root, _pascal_row)


def _pascal_row(row: dict[str, str], root: DataFolder) -> ImagePair:
    if "source_image" in row:
        category = VOC_CLASSES[int(row["class"]) - 1]
        flip = row.get("flip", "0") == "1"
        return ImagePair(root / row["source_image"], root / row["target_image"], category, flip)
    return _keypoint_pair(
        root / row["source image"],
        root / row["target image"],
        VOC_CLASSES[int(row["class"]) - 1],
        _points(row["source_x"], row["source_y"]),
        _points(row["target_x"], row["target_y"]),
        source_box=_box(row["source bbox(x1,y1,x2,y2)"]),
        target_box=_box(row["target_bbox(x1,y1,x2,y2)"]),
        source_side=float(row["source_L_pck"]),
    )


def _pf_willow(pairs: PairSet, root: Path, data_root: str | None) -> list[ImagePair]:
    return _read_rows(pairs, root, data_root, _willow_row)


def _willow_row(row: dict[str, str], root: DataFolder) -> ImagePair:
    source, target = (
        np.array([[float(row[f"{axis}{i}"]) for axis in (f"X{side}", f"Y{side}")] for i in _WILLOW_RANGE])
        for side in "AB"
    )
    path = root / row["imageA"]
    return _keypoint_pair(path, root / row["imageB"], path.parent.name, source, target)


_WILLOW_RANGE = range(1, _WILLOW_POINTS + 1)


def _spair(pairs: PairSet, root: Path, data_root: str | None) -> list[ImagePair]:
    folder = root / "PairAnnotation" / pairs.split
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DataError(f"{folder}: no annotations (expected *.json there)")
    images, found = DataFolder(root / "JPEGImages"), []
    for path in files:
        row = read_json_object(path, error=DataError)
        try:
            category = row["category"]
            found.append(
                _keypoint_pair(
                    images / f"{category}/{row['src_imname']}",
                    images / f"{category}/{row['trg_imname']}",
                    category,
                    np.array(row["src_kps"], np.float64).reshape(-1, 2),
                    np.array(row["trg_kps"], np.float64).reshape(-1, 2),
                    source_box=tuple(map(float, row["src_bndbox"])),
                    target_box=tuple(map(float, row["trg_bndbox"])),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not an annotation of SPair-71k ({error})") from None
    return found


def _csv(pairs: PairSet, root: Path, data_root: str | None) -> list[ImagePair]:
    return _read_rows(pairs, root, data_root, _csv_row)


def _csv_row(row: dict[str, str], root: DataFolder) -> ImagePair:
    source, target, category = root / row["source"], root / row["target"], row.get("category", "")
    if "source_x" not in row:
        return ImagePair(source, target, category, row.get("flip", "0") == "1")
    boxes = {name: _box(row[name]) for name in ("source_box", "target_box") if row.get(name)}
    points = (_points(row[f"{side}_x"], row[f"{side}_y"]) for side in ("source", "target"))
    return _keypoint_pair(source, target, category, *points, **boxes)


def _folders(pairs: PairSet, root: Path, data_root: str | None) -> list[ImagePair]:
    """Each image paired with itself: what `_made` takes images and their classes from."""
    if pairs.pairing == "listed":
        raise DataError("layout folders has no list; set pairing to matched, random or unmatched")
    images = sorted(path for path in root.glob("*/*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"{root}: no images in its folders (expected <class>/<image>)")
    return [ImagePair(path, path, path.parent.name) for path in images]


_LAYOUTS = {
    "pf_pascal": _pf_pascal,
    "pf_willow": _pf_willow,
    "spair": _spair,
    "csv": _csv,
    "folders": _folders,
}
