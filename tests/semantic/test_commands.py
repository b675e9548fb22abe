"""The regimes of the paper from their own files by `tfcorr train` and `tfcorr evaluate`, on tiny trees."""

import json
import runpy
from pathlib import Path

import keras
import numpy as np
import pytest
from published_trees import pf_pascal, pf_willow, spair, voc

from tfcorr.cli import main
from tfcorr.pretrained import find_model
from tfcorr.semantic import stages
from tfcorr.semantic.loading import SEMANTIC_MATCHING, SEMANTIC_TEACHER, load_network


class Means(keras.Model):
    """Each map holds the mean colours of its blocks."""

    def call(self, images, training=None):
        return {stride: keras.ops.average_pool(images, stride, stride) - 0.5 for stride in (16, 32)}


@pytest.fixture(autouse=True, scope="module")
def small_backbone():
    def backbone(name, weights=None, arguments=None):
        assert (name, weights) == ("means", None)
        return Means()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "backbone", backbone)
        patch.setattr("tfcorr.backbones.backbone", backbone)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for make in (pf_pascal, pf_willow, spair, voc):
        make(folder)
    return folder


SHORT = {
    "steps": 2,
    "batch": 2,
    "log_every": 1,
    "precision": "float32",
    "profile_steps": 0,
    "images_every": 0,
}


def words_for(root, run):
    """A file's own keys but for the sizes."""
    words = [f"data_root={root}", f"run={run}", f"output={run / 'model'}", "size=64"]
    words += ["backbone=means", "backbone_weights=null", "student.steps_per_round=1"]
    words += [
        f"{part}.train.{key}={value}" for part in ("teacher", "student") for key, value in SHORT.items()
    ]
    words += [f"{part}.model={{blocks: 1, kernel_sizes: [3, 3]}}" for part in ("teacher", "student")]
    words += ["hypotheses.count=2", "evaluation.bootstrap=20", "validation.count=2", "validation.every=2"]
    return [*words, "evaluation.methods=[model, identity]"]


def train(name, root, run, *more):
    assert main(["train", f"semantic/{name}", *words_for(root, run), *more]) == 0
    return run


@pytest.fixture(scope="module")
def weak(root, tmp_path_factory):
    return train("weak_pfpascal", root, tmp_path_factory.mktemp("weak"))


def check(run, name):
    """What a regime of PF-PASCAL leaves."""
    result = json.loads((run / "evaluation.json").read_text())
    counts = {benchmark: part["count"] for benchmark, part in result["benchmarks"].items()}
    assert counts == {"PF-PASCAL": 2, "PF-WILLOW": 1}
    card = find_model(run / "model", job="semantic-matching")
    assert card.name == name and card.content["training"]["steps"] == 2
    assert set(card.metrics["evaluation"]) == {
        f"{benchmark} pck@{alpha}"
        for benchmark in ("PF-PASCAL", "PF-WILLOW")
        for alpha in ("0.05", "0.1", "0.15")
    }
    # Two rounds of one step.
    assert (run / "variance/variance-000002.npy").is_file()


def test_weakly_supervised(weak):
    check(weak, "weak_pfpascal")


@pytest.mark.parametrize(
    ("name", "more"), [("unsupervised_pfpascal", ["hypotheses.pairs.0.count=4"]), ("strong_pfpascal", [])]
)
def test_the_other_regimes(root, tmp_path, capsys, name, more):
    check(train(name, root, tmp_path, *more), name)
    printed = capsys.readouterr().out
    assert "2 of its 2 pairs stand in the training list" in printed
    assert "PF-WILLOW: PCK, threshold keypoints, 1 pairs, 10 points" in printed


def test_evaluation_of_a_trained_student(weak, root, tmp_path, capsys):
    out, figures = tmp_path / "result.json", tmp_path / "errors"
    words = [f"data_root={root}", f"model={weak / 'model'}", f"teacher={weak / 'teacher/model'}"]
    words += [f"output={out}", "evaluation.methods=[model, teacher, average, untrained, identity]"]
    words += ["evaluation.bootstrap=20"]
    assert main(["evaluate", "semantic/evaluate", *words, "--figures", str(figures)]) == 0
    result = json.loads(out.read_text())
    assert set(result["benchmarks"]) == {"PF-PASCAL", "PF-WILLOW", "SPair-71k"}
    assert result["models"]["teacher"]["hypotheses"] == 2
    drawn = {folder.name: len(list(folder.glob("*.png"))) for folder in figures.iterdir()}
    assert drawn == {"PF-PASCAL": 2, "PF-WILLOW": 1, "SPair-71k": 2}
    printed = capsys.readouterr().out
    assert "SPair-71k: PCK, threshold box, 2 pairs, 6 points" in printed
    assert f"written to {out}" in printed


def test_the_script_with_fit_trains_the_same_student(weak, root, tmp_path, monkeypatch):
    """Teacher and student from the same words as `tfcorr train` end with the same weights."""
    path = Path(__file__).parents[2] / "scripts" / "fit_semantic.py"
    monkeypatch.setattr("sys.argv", [str(path), "semantic/weak_pfpascal", *words_for(root, tmp_path)])
    runpy.run_path(str(path), run_name="__main__")
    for folder, job in (("teacher/model", SEMANTIC_TEACHER), ("model", SEMANTIC_MATCHING)):
        ours, theirs = (load_network(run / folder, job=job).network for run in (tmp_path, weak))
        for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert (tmp_path / "variance/variance-000002.npy").is_file()
    assert find_model(tmp_path / "model", job=SEMANTIC_MATCHING).content["training"]["steps"] == 2
    monkeypatch.setattr("sys.argv", [str(path), "refsr/teacher_cpu"])
    with pytest.raises(SystemExit, match="stage matcher does not train semantic matching"):
        runpy.run_path(str(path), run_name="__main__")
