"""The list of PF-PASCAL's training pairs from its annotation files."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from published_trees import write_rows

from tfcorr.config.semantic import PairSet
from tfcorr.semantic.datasets import find_pairs

io = pytest.importorskip("scipy.io")

SCRIPT = Path(__file__).parents[2] / "scripts" / "pf_pascal_pairs.py"
FOLDER = "PF-dataset-PASCAL/JPEGImages"


@pytest.fixture
def root(tmp_path):
    """Three birds; the second is seen from behind, and of the third no other part is seen."""
    nan = [np.nan, np.nan]
    parts = {"1": [[1.5, 2.25], [30, 4], nan], "2": [[5, 6], nan, [7, 8]], "3": [nan, [9, 9], [1, 1]]}
    annotations = tmp_path / "PF_Pascal/PF-dataset-PASCAL/Annotations/bird"
    annotations.mkdir(parents=True)
    for name, points in parts.items():
        content = {"kps": np.array(points), "bbox": np.array([[4.5, 10, 50.5, 30]])}
        io.savemat(annotations / f"2008_{name}.mat", content)
    rows = [[f"{FOLDER}/2008_{a}.jpg", f"{FOLDER}/2008_{b}.jpg", 3, flip] for a, b, flip in _PAIRS]
    write_rows(tmp_path / "pairs.csv", ["source_image", "target_image", "class", "flip"], rows)
    return tmp_path


_PAIRS = [("1", "2", 0), ("1", "2", 1), ("2", "3", 0), ("1", "2", 0)]


def run(monkeypatch, root):
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(root / "PF_Pascal"), str(root / "pairs.csv")])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_list_is_read_like_the_published_ones(root, monkeypatch, capsys):
    run(monkeypatch, root)
    assert "3 pairs in " in capsys.readouterr().out
    listed = PairSet("pf_pascal", "PF_Pascal", "PF_Pascal/bbox_train_pairs_pf_pascal.csv")
    first, second, third = find_pairs(listed, str(root))
    assert first.category == "bird" and first.source == root / "PF_Pascal" / FOLDER / "2008_1.jpg"
    # The one part that both show.
    np.testing.assert_array_equal(first.source_points, [[1.5, 2.25]])
    np.testing.assert_array_equal(first.target_points, [[5, 6]])
    assert first.source_box == (4.5, 10, 50.5, 30) and first.source_side == 46
    np.testing.assert_array_equal(second.target_points, [[1, 1]])
    assert third.source == first.source


def test_what_cannot_be_used_is_named(root, monkeypatch):
    broken = root / "PF_Pascal/PF-dataset-PASCAL/Annotations/bird/2008_2.mat"
    broken.write_bytes(b"no matrix at all")
    with pytest.raises(SystemExit, match=r"2008_2\.mat: no annotation of PF-PASCAL"):
        run(monkeypatch, root)
    io.savemat(broken, {"kps": np.zeros((2, 2)), "bbox": np.zeros((1, 4))})
    with pytest.raises(SystemExit, match="3 and 2 keypoints"):
        run(monkeypatch, root)
    assert not (root / "PF_Pascal/bbox_train_pairs_pf_pascal.csv").exists()
