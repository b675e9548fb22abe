"""Each regime from made-up photographs to an evaluated student, on a tiny random backbone."""

import csv
import json
from typing import get_args

import keras
import numpy as np
import pytest
from conftest import logged_pictures
from PIL import Image

from tfcorr.config import parse_config
from tfcorr.config.semantic import EvaluatedMethod
from tfcorr.pretrained import find_model, verify
from tfcorr.semantic import stages
from tfcorr.semantic.datasets import find_pairs
from tfcorr.semantic.loading import SEMANTIC_TEACHER, load_network
from tfcorr.training.checkpoint import LAST, read_state

SIZE = 64


class Tiny(keras.Model):
    """A random backbone: one convolution a stride."""

    def __init__(self):
        super().__init__(name="tiny")
        self.convolutions = {
            stride: keras.layers.Conv2D(
                width, stride, stride, kernel_initializer=keras.initializers.HeNormal(seed=stride)
            )
            for stride, width in ((16, 6), (32, 8))
        }
        for convolution in self.convolutions.values():
            convolution.build((None, None, None, 3))
        self.trainable = False
        self.built = True

    def call(self, images, training=None):
        return {stride: convolution(images - 0.5) for stride, convolution in self.convolutions.items()}


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    def backbone(name, weights=None, arguments=None):
        assert (name, weights, arguments) == ("tiny", None, {})
        return Tiny()

    monkeypatch.setattr(stages, "backbone", backbone)
    monkeypatch.setattr("tfcorr.backbones.backbone", backbone)


POINTS = np.array([[10.0, 12], [50, 15], [30, 40], [12, 30], [55, 44]])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two kinds of photographs, three of each, with five points that are the same in all."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        pattern = rng.integers(0, 256, (6, 8, 3), np.uint8)
        (folder / "photos" / kind).mkdir(parents=True)
        for number in range(3):
            noisy = np.clip(pattern + rng.normal(0, 10, pattern.shape), 0, 255).astype(np.uint8)
            picture = Image.fromarray(noisy).resize((64, 48), Image.Resampling.BICUBIC)
            picture.save(folder / "photos" / kind / f"{kind}{number}.png")
    with open(folder / "marks.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "source",
                "target",
                "category",
                "source_x",
                "source_y",
                "target_x",
                "target_y",
                "source_box",
                "target_box",
            ]
        )
        x, y = (";".join(map(str, column)) for column in POINTS.T)
        for kind in ("a", "b"):
            for one, other in ((0, 1), (1, 2)):
                paths = f"{kind}/{kind}{one}.png", f"{kind}/{kind}{other}.png"
                writer.writerow([*paths, kind, x, y, x, y, "5;5;60;46", "5;5;60;46"])
    return folder


def regime(root, run, **changes):
    training = {
        "steps": 2,
        "batch": 2,
        "learning_rate": {"initial": 1e-3},
        "log_every": 1,
        "precision": "float32",
        "images_every": 0,
        "profile_steps": 0,
    }
    marks = {"layout": "csv", "path": "photos", "list": "marks.csv"}
    mapping = {
        "stage": "semantic",
        "name": "tiny",
        "run": str(run),
        "output": str(run / "model"),
        "data_root": str(root),
        "backbone": "tiny",
        "backbone_weights": None,
        "size": SIZE,
        "teacher": {
            "synthetic": {"source": {"images": ["photos"]}, "warps": {"kind": "mixed"}},
            "train": training,
        },
        "hypotheses": {
            "pairs": [{"layout": "folders", "path": "photos", "pairing": "matched", "count": 5}],
            "count": 2,
            "shard": 2,
        },
        "student": {"train": {**training, "steps": 4}, "steps_per_round": 2},
        "validation": {"source": {"images": ["photos"]}, "count": 2, "every": 2},
        "evaluation": {
            "benchmarks": [{"name": "marks", "pairs": marks, "threshold": "box"}],
            "synthetic": [{"name": "warps", "source": {"images": ["photos"]}, "count": 2}],
            "methods": ["model", "identity"],
            "alphas": [0.1],
            "bootstrap": 20,
        },
    }
    for key, value in changes.items():
        part = mapping
        *parents, last = key.split(".")
        for name in parents:
            part = part[name]
        part[last] = value
    return parse_config(mapping)


COMMAND = ["tfcorr", "train", "semantic/tiny"]


def check(root, config, state, lines):
    """What a whole regime leaves."""
    run = stages.Path(config.run)
    assert state.step == 4 and state.stopped is None
    card = find_model(config.output, job="semantic-matching")
    verify(card)
    assert card.content["training"]["steps"] == 4
    student = load_network(config.output).network
    photo = np.asarray(Image.open(root / "photos/a/a0.png").resize((SIZE, SIZE)), np.float32)[None] / 255
    flow = student({"source": photo, "target": photo})["flow_t2s"]
    assert flow.shape == (1, 4, 4, 2) and np.isfinite(flow).all()
    result = json.loads((run / "evaluation.json").read_text())
    marks = result["benchmarks"]["marks"]
    assert (marks["count"], marks["points"]) == (4, 20)
    # The points of all photographs are at the same places.
    assert marks["methods"]["identity"]["pck"]["0.1"]["per_pair"] == 1
    assert set(marks["methods"]) == set(result["synthetic"]["warps"]["methods"])
    assert set(marks["methods"]["model"]["pck"]["0.1"]["classes"]) == {"a", "b"}
    assert any(line.startswith("marks: PCK, threshold box, 4 pairs") for line in lines)
    # 4 steps in rounds of 2: two E-steps.
    assert sorted(path.name for path in (run / "variance").glob("*.npy")) == [
        "variance-000001.npy",
        "variance-000002.npy",
    ]
    known = marks["methods"]["model"]["pck"]["0.1"]["per_pair"]
    assert state.metrics["marks pck@0.1"] == pytest.approx(known, abs=1e-4)
    assert find_model(config.output, job="semantic-matching").metrics["evaluation"] == {
        name: value for name, value in state.metrics.items() if "@" in name
    }


def test_weak_supervision_from_photographs_to_an_evaluated_student(root, tmp_path):
    lines = []
    config = regime(
        root,
        tmp_path,
        **{
            "cache_features": True,
            "teacher.synthetic": {"source": {"images": ["photos"]}, "pool": 3},
            "student.directions": ["t2s", "s2t"],
            "teacher.train.images_every": 1000,
            "student.train.images_every": 1000,
            "student.from_teacher": 1.0,
            "student.rehearsal": 0.5,
            "hypotheses.mirror": True,
            "student.mirror": True,
            "evaluation.methods": list(get_args(EvaluatedMethod)),
        },
    )
    state = stages.train(config, COMMAND, report=lines.append)
    check(root, config, state, lines)
    errors = json.loads((tmp_path / "evaluation.json").read_text())["synthetic"]["warps"]["methods"]
    assert errors["untrained"]["end_point_error"] != errors["untrained_mirrored"]["end_point_error"]
    assert errors["model"] == errors["model_mirrored"] != errors["model_plain"]
    # The average is that of as many hypotheses as the student was distilled from.
    assert json.loads((tmp_path / "evaluation.json").read_text())["models"]["teacher"]["hypotheses"] == 2
    assert any(line.endswith("average: of 2 hypotheses of the teacher") for line in lines)
    assert load_network(config.output).network.mirror
    variances = np.load(tmp_path / "variance/variance-000002.npy")
    assert variances.shape == (5, 2, 4, 4, 2) and (variances > 0).any()
    for name, step in (("teacher", 2), ("student", 4)):
        ((when, drawn),) = logged_pictures(tmp_path / name)["matches"]
        assert when == step and len(drawn) == 3
        assert all(picture.shape == drawn[0].shape and picture.std() > 40 for picture in drawn)
    # A second call finds everything done.
    again = []
    assert stages.train(config, COMMAND, report=again.append).step == 4
    assert sum("finished before" in line for line in again) == 2
    assert not any(line.startswith("step") for line in again)


def test_unsupervised_random_pairs_on_images(root, tmp_path):
    lines = []
    pairs = [{"layout": "folders", "path": "photos", "pairing": "random", "count": 6}]
    config = regime(
        root,
        tmp_path,
        **{"hypotheses.pairs": pairs, "student.jitter": {}, "student.affine": 0.15},
    )
    state = stages.train(config, COMMAND, report=lines.append)
    check(root, config, state, lines)


def test_strong_supervision_teacher_from_keypoints(root, tmp_path):
    lines = []
    marks = {"layout": "csv", "path": "photos", "list": "marks.csv"}
    config = regime(
        root,
        tmp_path,
        **{
            "teacher.synthetic": None,
            "teacher.keypoints": {"pairs": [marks]},
            "hypotheses.pairs": [marks],
            "cache_features": True,
        },
    )
    state = stages.train(config, COMMAND, report=lines.append)
    check(root, config, state, lines)
    # The student sees images and flows alone.
    assert all(
        pair.source_points.shape == (5, 2) for pair in find_pairs(config.hypotheses.pairs[0], str(root))
    )
    assert any(
        line.startswith("warning: marks: 4 of its 4 pairs stand in the training list") for line in lines
    )


def test_parts_run_by_themselves_and_say_what_is_missing(root, tmp_path):
    from tfcorr.errors import TfcorrError

    changes = {"cache_features": True, "teacher.probabilistic": False, "hypotheses.count": 1}
    with pytest.raises(TfcorrError, match="no teacher there; run stage=semantic_teacher first"):
        stages.train(regime(root, tmp_path, stage="semantic_student", **changes), COMMAND, report=str)
    teacher = regime(root, tmp_path, stage="semantic_teacher", **changes)
    stages.train(teacher, COMMAND, report=str)
    assert load_network(tmp_path / "teacher/model", job=SEMANTIC_TEACHER).network.head.kind == "student"
    with pytest.raises(TfcorrError, match="not finished; run stage=semantic_hypotheses first"):
        stages.train(regime(root, tmp_path, stage="semantic_student", **changes), COMMAND, report=str)
    stages.train(regime(root, tmp_path, stage="semantic_hypotheses", **changes), COMMAND, report=str)
    changes["student.loss"] = {"reweight": False, "confidence": False}
    stages.train(regime(root, tmp_path, stage="semantic_student", **changes), COMMAND, report=str)
    assert find_model(tmp_path / "model", job="semantic-matching").content["training"]["steps"] == 4
    assert not any((tmp_path / "variance").iterdir())
    with pytest.raises(TfcorrError, match="delete this one"):
        changes["hypotheses.count"] = 2
        stages.train(regime(root, tmp_path, stage="semantic_hypotheses", **changes), COMMAND, report=str)


@pytest.mark.parametrize("part", ["teacher", "student"])
@pytest.mark.parametrize("kind", ["mirrored", "workers"])
def test_more_than_one_device_is_refused(root, tmp_path, part, kind):
    from tfcorr.errors import TfcorrError

    config = regime(root, tmp_path, **{f"{part}.train.distribute": kind})
    with pytest.raises(TfcorrError, match=f"{part}.train.distribute: .* one device, .* got {kind}"):
        stages.train(config, COMMAND, report=str)
    assert not any(tmp_path.iterdir())


def test_a_rehearsal_that_cannot_be(root, tmp_path):
    from tfcorr.errors import TfcorrError

    base = {"cache_features": True, "teacher.synthetic": {"source": {"images": ["photos"]}, "pool": 3}}
    stages.train(regime(root, tmp_path / "one", stage="semantic_teacher", **base), COMMAND, report=str)
    base["teacher_model"] = str(tmp_path / "one/teacher/model")
    for changes, message in (
        ({"student.rehearsal": 1.0}, "expected a share below 1, got 1"),
        ({"student.rehearsal": 0.5, "teacher.synthetic": None}, "there are no warped pairs"),
        ({"student.rehearsal": 0.5, "teacher.synthetic": {"source": {"images": ["photos"]}}}, "or neither"),
    ):
        config = regime(root, tmp_path / "one", **{**base, **changes})
        with pytest.raises(TfcorrError, match=message):
            stages.train(config, COMMAND, report=str)


def test_a_student_that_was_stopped_ends_like_one_that_was_not(root, tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    common = {"cache_features": True, "evaluation": None, "student.train.steps": 6}
    stages.train(regime(root, whole, **common), COMMAND, report=str)
    # In the middle of the second round.
    common["teacher_model"] = str(whole / "teacher/model")
    common["student.train.images_every"] = 2  # which changes nothing
    common["student.train.checkpoint_every"] = 3
    first = regime(root, parted, **common)
    real = stages.run_fit

    def stopped(trainer, batches, *args, **kwargs):
        return real(trainer, lambda start, stop: batches(start, 3), *args, **kwargs)

    stages.run_fit, kept = stopped, stages.run_fit
    try:
        stages.train(first, COMMAND, report=str)
    finally:
        stages.run_fit = kept
    assert read_state(parted / "student" / LAST)["step"] == 3
    assert not (parted / "model").exists()
    stages.train(first, COMMAND, report=str)
    assert [step for step, _ in logged_pictures(parted / "student")["matches"]] == [2, 3, 4, 6]
    assert not logged_pictures(whole / "student")
    one, other = (load_network(run / "model").network.get_weights() for run in (whole, parted))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for version in (2, 3):
        files = [np.load(run / f"variance/variance-{version:06d}.npy") for run in (whole, parted)]
        np.testing.assert_allclose(*files, atol=1e-5)
