"""Tiny data sets laid out like the published ones: PF-PASCAL, PF-WILLOW, SPair-71k and VOC 2011.

Photographs of one kind show one pattern; keypoints are where a test can say by hand how far apart they are.
"""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("aeroplane", "bird")
#: (width, height) of the photographs with an even and an odd number.
SIZES = ((80, 50), (60, 40))
#: How far the points of a pair of PF-PASCAL are from each other in the frame of 320 x 320 pixels.
PASCAL_OFFSETS = {"aeroplane": (0, 30, 34), "bird": (30, 34, 34, 36)}
#: Of PF-WILLOW and SPair-71k, in pixels of the files.
WILLOW_OFFSETS = (3, 3, 3, 3, 3, 3, 5, 5, 5, 5)
SPAIR_OFFSETS = (3, 5, 3)

_PASCAL_FOLDER = "PF-dataset-PASCAL/JPEGImages"
_PASCAL_COLUMNS = [
    "source image",
    "target image",
    "class",
    "source_x",
    "source_y",
    "target_x",
    "target_y",
    "source_L_pck",
    "target_L_pck",
    "source bbox(x1,y1,x2,y2)",
    "target_bbox(x1,y1,x2,y2)",
]


def photograph(path: Path, pattern: int, size: tuple[int, int]) -> None:
    """A picture of ``size`` (width, height); those of one ``pattern`` are alike."""
    rng = np.random.default_rng(pattern)
    coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


def write_rows(path: Path, header: list[str], rows: list[list]) -> None:
    """A CSV with a header line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def pascal_points(category: str) -> tuple[np.ndarray, np.ndarray]:
    """Points of a source (60 x 40) and a target (80 x 50): (N, 2) each, (x, y) in pixels."""
    offsets = np.array(PASCAL_OFFSETS[category])
    number = np.arange(len(offsets))
    target = np.stack([10 + 10 * number, 5 + 5 * number], axis=-1)
    framed = target * (320 / 80, 320 / 50) + np.stack([offsets, 0 * offsets], axis=-1)
    return framed * (60 / 320, 40 / 320), target


def pf_pascal(root: Path) -> None:
    """Three photographs of each class, a test list with one pair of each, and the training list."""
    names = {kind: [f"2008_{10 * i + n:06d}" for n in range(3)] for i, kind in enumerate(CLASSES)}
    tested, trained = [], []
    for kind, numbers in names.items():
        label = 1 if kind == "aeroplane" else 3
        files = [f"{_PASCAL_FOLDER}/{name}.jpg" for name in numbers]
        for number, file in enumerate(files):
            photograph(root / "PF_Pascal" / file, label, SIZES[number % 2])
        source, target = ([";".join(map(str, column)) for column in p.T] for p in pascal_points(kind))
        boxes = ["5.0;3.0;45.0;33.0", "2.0;2.0;72.0;42.0"]
        tested.append([files[1], files[0], label, *source, *target, 40.0, 70.0, *boxes])
        for one, other in ((0, 1), (0, 2), (2, 1)):
            trained += [[files[one], files[other], label, flip] for flip in (0, 1)]
    write_rows(root / "PF_Pascal/bbox_test_pairs_pf_pascal.csv", _PASCAL_COLUMNS, tested)
    write_rows(root / "PF_Pascal/bbox_train_pairs_pf_pascal.csv", _PASCAL_COLUMNS, tested)
    header = ["source_image", "target_image", "class", "flip"]
    write_rows(root / "weakalign/pf-pascal-flip/train_pairs.csv", header, trained)


def pf_willow(root: Path) -> None:
    """Two photographs and one pair, of which six points of ten are within a tenth of the source's."""
    files = [f"PF-dataset/car(G)/Cars_00{number}a.png" for number in (1, 2)]
    for file in files:
        photograph(root / "PF_WILLOW" / file, 7, (50, 50))
    x = np.array([2, 6, 10, 14, 18, 22, 26, 30, 34, 42])
    y = np.array([5, 10, 15, 20, 25, 5, 10, 15, 20, 25])
    header = ["imageA", "imageB"] + [f"{axis}{n}" for axis in ("XA", "YA", "XB", "YB") for n in range(1, 11)]
    write_rows(root / "PF_WILLOW/test_pairs_pf.csv", header, [[*files, *x, *y, *(x + WILLOW_OFFSETS), *y]])


def spair(root: Path) -> None:
    """Two photographs of each class, annotations of images and of a pair for training and for the test."""
    folder = root / "SPair-71k"
    for kind in CLASSES:
        names = [f"2009_00000{number}" for number in (1, 2)]
        points = np.array([[10, 10], [20, 15], [30, 25]])
        moved = points + np.stack([SPAIR_OFFSETS, np.zeros(3, int)], axis=-1)
        for name, own in zip(names, (points, moved), strict=True):
            photograph(folder / f"JPEGImages/{kind}/{name}.jpg", len(kind), (56, 42))
            annotation = {
                "filename": f"{name}.jpg",
                "category": kind,
                "image_width": 56,
                "image_height": 42,
                "bndbox": [5, 5, 45, 35],
                "kps": {str(n): point for n, point in enumerate(own.tolist())} | {"3": None},
            }
            _write_json(folder / f"ImageAnnotation/{kind}/{name}.json", annotation)
        for split in ("trn", "test"):
            name = f"000001-{names[0]}-{names[1]}:{kind}"
            annotation = {
                "pair_id": 1,
                "filename": name,
                "src_imname": f"{names[0]}.jpg",
                "trg_imname": f"{names[1]}.jpg",
                "src_imsize": [56, 42, 3],
                "trg_imsize": [56, 42, 3],
                "src_bndbox": [5, 5, 45, 35],
                # Of another size: the published threshold is a share of the source's.
                "trg_bndbox": [5, 5, 15, 15],
                "category": kind,
                "src_kps": points.tolist(),
                "trg_kps": moved.tolist(),
                "kps_ids": ["0", "1", "2"],
                "mirror": 0,
            }
            _write_json(folder / f"PairAnnotation/{split}/{name}.json", annotation)


def voc(root: Path) -> None:
    """Four photographs of VOC 2011 and the lists for the teacher's warps."""
    files = [f"TrainVal/VOCdevkit/VOC2011/JPEGImages/2011_00000{number}.jpg" for number in range(4)]
    for number, file in enumerate(files):
        photograph(root / file, 20 + number, (70, 60))
    write_rows(root / "weakalign/pascal-random/train.csv", ["image"], [[file] for file in files[:3]])
    write_rows(root / "weakalign/pascal-random/test.csv", ["image"], [[files[3]]])


def _write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
