"""Make the list of PF-PASCAL's training pairs with keypoints, which nobody publishes, from your own copy.

    python scripts/pf_pascal_pairs.py data/PF_Pascal data/weakalign/pf-pascal-flip/train_pairs.csv

PF_Pascal is the folder that holds `PF-dataset-PASCAL`, whose `Annotations/<class>/<image>.mat` have the
keypoints of an image, `kps` (N, 2), NaN where one is not seen, and its box, `bbox` (x1, y1, x2, y2), in
pixels. The list names pairs: `source_image,target_image,class,flip`. Those with flip=1 repeat the others
mirrored and are left out. Written is `bbox_train_pairs_pf_pascal.csv` with the columns of the published test
list, for `tfcorr train semantic/strong_pfpascal`. Needs SciPy, which reads the .mat files.
"""

import argparse
import csv
import io
import sys
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from tfcorr.atomic import write_bytes
from tfcorr.errors import TfcorrError
from tfcorr.paths import DataFolder, PathError
from tfcorr.reading import read_rows
from tfcorr.semantic.datasets import VOC_CLASSES
from tfcorr.training.photos import DataError

COLUMNS = [
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


def annotation(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (N, 2), NaN where not seen, and box (4,) of an image, both in pixels.

    Raises:
        DataError: the file is missing or has not these two.
    """
    try:
        content = loadmat(path, variable_names=["kps", "bbox"])
        points = np.asarray(content["kps"], np.float64).reshape(-1, 2)
        box = np.asarray(content["bbox"], np.float64).reshape(4)
    except (OSError, KeyError, MatReadError, NotImplementedError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no annotation of PF-PASCAL ({error})") from None
    return points, box


def pair_row(row: dict[str, str], folder: Path) -> list | None:
    """The row of a pair, with the keypoints that both images show; None if there are none.

    Raises:
        DataError: an annotation cannot be read, or the two have other numbers of keypoints.
    """
    category = VOC_CLASSES[int(row["class"]) - 1]
    names = row["source_image"], row["target_image"]
    annotations = DataFolder(folder / "PF-dataset-PASCAL" / "Annotations" / category)
    (source, source_box), (target, target_box) = (
        annotation(Path(annotations / f"{Path(name).stem}.mat")) for name in names
    )
    if len(source) != len(target):
        raise DataError(f"{' and '.join(names)}: {len(source)} and {len(target)} keypoints")
    seen = np.isfinite(source).all(axis=1) & np.isfinite(target).all(axis=1)
    if not seen.any():
        return None
    columns = [_joined(column) for points in (source, target) for column in points[seen].T]
    sides = [float(max(box[2] - box[0], box[3] - box[1])) for box in (source_box, target_box)]
    return [*names, row["class"], *columns, *sides, _joined(source_box), _joined(target_box)]


def _joined(values: np.ndarray) -> str:
    return ";".join(map(repr, values.tolist()))


def make_list(folder: Path, pairs: Path, output: Path) -> tuple[int, int]:
    """Writes the list; returns how many pairs it has, and how many have no common keypoint.

    Raises:
        DataError: the list or an annotation cannot be used; the message names it.
    """
    _, rows = read_rows(pairs, error=DataError)
    written, without = [], 0
    for number, row in enumerate(rows, start=2):
        try:
            if row.get("flip", "0") == "1":
                continue
            made = pair_row(row, folder)
        except KeyError as error:
            raise DataError(f"{pairs}: no column {error}; its columns are {', '.join(row)}") from None
        except (ValueError, IndexError, PathError) as error:
            raise DataError(f"{pairs}, line {number}: {error}") from None
        without += made is None
        if made is not None:
            written.append(made)
    if not written:
        raise DataError(f"{pairs}: none of its pairs has keypoints in both images")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *written])
    write_bytes(output, text.getvalue().encode())
    return len(written), without


def main() -> None:
    """Makes the list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="holds PF-dataset-PASCAL")
    parser.add_argument("pairs", type=Path, help="CSV: source_image, target_image, class, flip")
    parser.add_argument("--output", type=Path, help="default: bbox_train_pairs_pf_pascal.csv in the folder")
    args = parser.parse_args()
    output = args.output or args.folder / "bbox_train_pairs_pf_pascal.csv"
    try:
        count, without = make_list(args.folder, args.pairs, output)
    except TfcorrError as error:
        sys.exit(f"error: {error}")
    print(f"{count} pairs in {output}; {without} without a common keypoint left out")


if __name__ == "__main__":
    main()
