"""PCK against the published programs (goldens), and what is made of it."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import GOLDENS, load_golden
from PIL import Image

from tfcorr.config import parse_config
from tfcorr.config.semantic import Evaluation
from tfcorr.semantic import evaluation
from tfcorr.semantic.datasets import KeypointPair
from tfcorr.semantic.evaluation import headline, table
from tfcorr.semantic.loading import SEMANTIC_MATCHING, SEMANTIC_TEACHER, save_network
from tfcorr.semantic.network import MatchingHead, SemanticMatchingNetwork
from tfcorr.semantic.pck import PairScore, bilinear, bootstrap, score_pair, summarise, transfer_points
from tfcorr.semantic.teacher import TeacherHead
from tfcorr.training.photos import DataError
from tfcorr.training.tensorboard import means

PROTOCOLS = {
    "pascal_image_size": ("image", False),
    "pascal_bounding_box": ("box", False),
    "willow_bounding_box": ("keypoints", True),
    "willow_image_size": ("image", True),
    "spair_bounding_box": ("box", False),
}


@pytest.fixture(scope="module")
def goldens():
    known = json.loads((GOLDENS / "pmd" / "pck.json").read_text())
    return load_golden("pmd/pck"), known


def annotated(arrays, known, number, willow, stated=True):
    prefix = "w_src", "w_tgt"
    source, target = (arrays[f"{name}_{number}"].T for name in (prefix if willow else ("src_pts", "tgt_pts")))
    entry = known["pairs"][number]
    return KeypointPair(
        f"{number}a",
        f"{number}b",
        entry["category"],
        source_points=source,
        target_points=target,
        source_box=tuple(entry["src_bbox"]),
        source_side=entry["csv_source_L_pck"] if stated else None,
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_published_protocols(goldens, protocol):
    arrays, known = goldens
    threshold, willow = PROTOCOLS[protocol]
    scores, pairs = [], []
    for number in range(4):
        pair = annotated(arrays, known, number, willow, stated=protocol != "spair_bounding_box")
        sizes = (tuple(map(int, arrays[f"{side}_size_WH_{number}"][::-1])) for side in ("src", "tgt"))
        score = score_pair(arrays[f"grid_T2S_{number}"], pair, *sizes, threshold=threshold)
        # The published program works in float32, and its points reach 500 pixels.
        np.testing.assert_allclose(score.points.T, arrays[f"{protocol}_est_{number}"], atol=5e-3)
        np.testing.assert_allclose(score.distance, arrays[f"{protocol}_dist_{number}"], atol=5e-3)
        np.testing.assert_allclose(score.length, arrays[f"{protocol}_L_{number}"], rtol=1e-5)
        scores.append(score)
        pairs.append(pair)
    result = summarise(scores, [pair.category for pair in pairs], Evaluation(bootstrap=0))
    for alpha, values in known["results"][protocol]["totals"].items():
        found = result["pck"][f"{float(alpha):g}"]
        assert found["per_pair"] == pytest.approx(values["mean_over_pairs"], abs=1e-6)
        assert found["per_point"] == pytest.approx(values["mean_over_points"], abs=1e-6)
    printed = known["results"][protocol]["official_printed_PCK"]
    assert result["pck"]["0.1"]["per_pair"] == pytest.approx(printed, abs=1e-6)
    # Each pair is a class of its own here.
    assert result["pck"]["0.1"]["mean_of_classes"] == pytest.approx(printed, abs=1e-6)


def test_classes_per_pair_and_per_point():
    """Pairs of one, three and two points; distances in pixels, L is 10."""

    def score(*distances):
        points = np.zeros((len(distances), 2))
        return PairScore(points, points, np.array(distances, float), 10.0, (32, 32))

    scores = [score(0), score(0, 2, 2), score(0.5, 3)]
    pck = summarise(scores, ["a", "a", "b"], Evaluation(bootstrap=0))["pck"]["0.1"]
    assert pck["per_pair"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3) and pck["per_point"] == 0.5
    assert pck["classes"] == pytest.approx({"a": 2 / 3, "b": 1 / 2})
    assert pck["classes_per_point"] == {"a": 0.5, "b": 0.5}
    assert pck["mean_of_classes"] == pytest.approx(7 / 12) and pck["mean_of_classes_per_point"] == 0.5


def test_points_are_rounded_to_even_and_held_within():
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5)), -1)
    moved = transfer_points(grid, [[0.5, 1.5], [2.5, 3.5], [40, 30], [39.4, 0]], (30, 40), (30, 40))
    np.testing.assert_allclose(moved, [[0, 2], [2, 4], [39, 29], [39, 0]], atol=1e-9)


def test_bilinear_is_linear_and_holds_at_the_border():
    y, x = np.mgrid[:3, :4]
    values = np.stack([x, y, x + 2 * y], -1).astype(float)
    at = np.array([[0, 0], [1.25, 0.5], [3, 2], [-5, 9]])
    held = np.clip(at, 0, [3, 2])
    np.testing.assert_allclose(bilinear(values, at), np.stack([*held.T, held[:, 0] + 2 * held[:, 1]], -1))
    np.testing.assert_allclose(bilinear(values[:1, :1], at), np.zeros((4, 3)))


def test_a_box_is_needed_where_it_is_the_measure():
    pair = KeypointPair(
        Path("a"), Path("b"), "", source_points=np.ones((1, 2)), target_points=np.ones((1, 2))
    )
    with pytest.raises(DataError, match="has no source_box"):
        score_pair(np.zeros((4, 4, 2)), pair, (9, 9), (9, 9), threshold="box")


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        values = rng.normal(0.3, 0.2, 40)
        low, high = bootstrap(values, 300, trial)
        inside += low <= 0.3 <= high
    assert 0.87 <= inside / 200 <= 0.99
    assert bootstrap(values, 0, 0) is None


def test_table_says_what_was_measured():
    pck = {
        "per_pair": 0.5,
        "per_point": 0.25,
        "interval": (0.4, 0.6),
        "classes": {"a": 0.5},
        "mean_of_classes": 0.5,
    }
    part = {
        "count": 3,
        "points": 12,
        "threshold": "box",
        "methods": {"model": {"pck": {"0.1": pck}}},
        "differences": {"model - identity": {"0.1": {"mean": 0.125, "interval": (0.1, 0.2)}}},
    }
    synthetic = {"count": 7, "methods": {"model": {"pck": {"0.05": 0.91}}}}
    result = {"benchmarks": {"birds": part}, "synthetic": {"warps": synthetic}}
    assert headline(result) == {"birds pck@0.1": 0.5, "warps pck@0.05": 0.91}
    text = table(result)
    assert "birds: PCK, threshold box, 3 pairs, 12 points" in text
    assert "50.0 per pair [40.0, 60.0]   25.0 per point" in text
    assert "model - identity    @0.1     +12.5 [10.0, 20.0]" in text
    assert "@0.05  91.0" in text and "per pair / per point" not in text
    synthetic["methods"]["model"]["intervals"] = {"0.05": (0.9, 0.92)}
    pck["classes"] = {f"kind{i}": i / 10 for i in range(4)}
    pck["classes_per_point"] = {f"kind{i}": i / 20 for i in range(4)}
    lines = table(result).splitlines()
    assert "@0.05  91.0 [90.0, 92.0]" in lines[-1]
    (row,) = [line for line in lines if "kind3" in line]
    assert row.split() == ["kind3", "30.0", "/", "15.0"]
    pck["classes"] = {f"kind{i}": 0.5 for i in range(26)}
    assert "kind3" not in table(result)


@pytest.fixture
def marked(tmp_path, monkeypatch):
    """Three annotated pairs, one of which cannot be read; in the others the target is the source, moved."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8)).save(tmp_path / f"photos/{name}.png")
    (tmp_path / "photos/broken.png").write_bytes(b"no image")
    rows = [
        "source,target,category,source_x,source_y,target_x,target_y,source_box,target_box",
        "a.png,b.png,one,10;40,10;40,10;40,10;40,0;0;40;20,0;0;40;20",
        "b.png,c.png,two,10;46,10;40,10;40,10;40,0;0;40;20,0;0;40;20",
        "a.png,broken.png,two,1,1,1,1,0;0;9;9,0;0;9;9",
    ]
    (tmp_path / "marks.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "trained.csv").write_text("source,target\nb.png,c.png\n")

    def shifted(source, target):
        flow = np.zeros((1, 4, 4, 2), np.float32)
        flow[..., 0] = 2 * 6 / 59
        return flow

    def still(source, target):
        return np.zeros((1, 4, 4, 2), np.float32)

    methods = {"model": shifted, "identity": still}
    monkeypatch.setattr(evaluation, "_methods", lambda *args: (methods, 64, {"model": {"name": "m"}}))
    marks = {"layout": "csv", "path": "photos", "list": "marks.csv"}
    return parse_config(
        {
            "stage": "semantic_evaluate",
            "model": "m",
            "output": str(tmp_path / "out/result.json"),
            "figures": str(tmp_path / "figures"),
            "data_root": str(tmp_path),
            "evaluation": {
                "benchmarks": [
                    {
                        "name": "marks",
                        "pairs": marks,
                        "threshold": "box",
                        "training": [{**marks, "list": "trained.csv"}],
                    }
                ],
                "synthetic": [{"name": "warps", "source": {"images": ["photos/[abc].png"]}, "count": 2}],
                "alphas": [0.1],
                "bootstrap": 50,
            },
        }
    )


def test_an_evaluation_from_its_configuration(marked, tmp_path):
    lines = []
    result, text = evaluation.benchmark(marked, report=lines.append)
    marks = result["benchmarks"]["marks"]
    assert (marks["count"], marks["points"]) == (2, 4)
    # Six pixels to the right are right for one of four points, and wrong by 6 > 4 for the others.
    assert marks["methods"]["model"]["pck"]["0.1"]["per_pair"] == 0.25
    assert marks["methods"]["identity"]["pck"]["0.1"]["per_pair"] == 0.75
    assert marks["methods"]["identity"]["pck"]["0.1"]["classes"] == {"one": 1.0, "two": 0.5}
    assert marks["differences"]["model - identity"]["0.1"]["mean"] == -0.5
    assert marks["pairs"][1]["identity"] == [0.0, 0.15]
    assert marks["without_overlap"]["count"] == 1
    assert marks["without_overlap"]["methods"]["identity"]["pck"]["0.1"]["per_pair"] == 1
    assert any("1 of its 3 pairs stand in the training list" in line for line in lines)
    assert list(result["skipped"]) == [str(tmp_path / "photos/broken.png")]
    warps = result["synthetic"]["warps"]["methods"]["model"]
    low, high = warps["intervals"]["0.1"]
    assert 0 <= low <= warps["pck"]["0.1"] <= high <= 1
    assert means(result) == {
        "benchmarks/marks/methods/model/pck/0.1": 0.25,
        "benchmarks/marks/methods/identity/pck/0.1": 0.75,
        "benchmarks/marks/differences/model - identity/0.1": -0.5,
        "benchmarks/marks/without_overlap/methods/model/pck/0.1": 0.0,
        "benchmarks/marks/without_overlap/methods/identity/pck/0.1": 1.0,
        "benchmarks/marks/without_overlap/differences/model - identity/0.1": -1.0,
        **{
            f"synthetic/warps/methods/{name}/pck/0.1": scores["pck"]["0.1"]
            for name, scores in result["synthetic"]["warps"]["methods"].items()
        },
    }
    saved = json.loads((tmp_path / "out/result.json").read_text())
    assert saved["benchmarks"] == json.loads(json.dumps(result["benchmarks"]))
    assert [path.name for path in sorted((tmp_path / "figures/marks").iterdir())] == [
        "0000-a-b.png",
        "0001-b-c.png",
    ]
    assert "without the pairs of the training list: 1 pairs" in text


@pytest.mark.parametrize("given", [None, 3])
def test_baselines_match_like_the_model(monkeypatch, tmp_path, given):
    """An untrained student is the untrained backbone under its own matching, not under the default one."""

    class Means(keras.Model):
        def call(self, images, training=None):
            return {s: keras.ops.average_pool(images, s, s) - 0.5 for s in (16, 32)}

    monkeypatch.setattr("tfcorr.backbones.backbone", lambda name, arguments: Means())
    matching = {"beta": 7.0, "kernel_sigma": 1.0}
    student = MatchingHead((3, 3), blocks=0, attention="none", **matching)
    card = {"name": "s", "job": SEMANTIC_MATCHING, "training": {"hypotheses": {"count": 5}}}
    rest = {"backbone": {"name": "means", "arguments": {}}, "size": 64}
    save_network(tmp_path / "s", SemanticMatchingNetwork(student, Means()), card=card, **rest)
    teacher = TeacherHead((3, 3), kernel_sizes=(3, 3), blocks=1, **matching)
    card = {"name": "t", "job": SEMANTIC_TEACHER}
    save_network(tmp_path / "t", SemanticMatchingNetwork(teacher, Means()), card=card, **rest)
    asked = Evaluation(methods=("model", "untrained", "teacher", "average"), hypotheses=given)
    functions, size, cards = evaluation._methods(asked, tmp_path / "s", tmp_path / "t")
    assert size == 64 and cards["teacher"]["hypotheses"] == (given or 5)
    images = np.random.default_rng(0).uniform(size=(2, 1, 64, 64, 3)).astype(np.float32)
    np.testing.assert_array_equal(functions["model"](*images), functions["untrained"](*images))
    assert np.any(functions["average"](*images) != functions["teacher"](*images))


def test_pairs_without_keypoints_cannot_be_evaluated(marked, tmp_path):
    plain = dataclasses.replace(marked.evaluation.benchmarks[0].pairs, list="trained.csv")
    one = dataclasses.replace(marked.evaluation.benchmarks[0], pairs=plain)
    changed = dataclasses.replace(marked.evaluation, benchmarks=(one,))
    with pytest.raises(DataError, match="marks: some of its pairs have no keypoints"):
        evaluation.benchmark(dataclasses.replace(marked, evaluation=changed), report=str)
