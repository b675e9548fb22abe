"""Trainers on tiny networks: what a step does, whole EM runs, and restarts in the middle of a round."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcorr.backbones import backbone
from tfcorr.config import LearningRate, Training
from tfcorr.semantic.hypotheses import VarianceStore
from tfcorr.semantic.matching import identity_grid
from tfcorr.semantic.network import MatchingHead, SemanticMatchingNetwork
from tfcorr.semantic.pck import bilinear
from tfcorr.semantic.synthetic import identity_places
from tfcorr.semantic.teacher import TeacherHead
from tfcorr.semantic.training import DistillationTrainer, EStep, TeacherTrainer
from tfcorr.training.callbacks import RunState
from tfcorr.training.checkpoint import LAST, read_state
from tfcorr.training.loop import run_fit

GRID = (6, 5)


def numpy(value):
    return keras.ops.convert_to_numpy(value)


class FreeFlow(keras.Model):
    """A student that can learn any flow of any pair: what the loss asks for is what it becomes."""

    def __init__(self, pairs, grid=GRID):
        super().__init__()
        self.flow = self.add_weight(shape=(pairs, *grid, 2), initializer="zeros", name="flow")

    def call(self, inputs, training=None):
        flow = keras.ops.take(self.flow, inputs["index"], axis=0)
        return {"flow_t2s": flow, "flow_s2t": -flow}


def hypotheses_of(pairs, grid=GRID, wrong=0.3, seed=0):
    """True flows and four hypotheses of each, the last wrong on a share of the cells."""
    random = np.random.default_rng(seed)
    slope = random.uniform(-0.15, 0.15, (pairs, 1, 1, 2, 3))
    own = np.concatenate([numpy(identity_grid(*grid)), np.ones((*grid, 1))], axis=-1)
    truth = np.sum(slope * own[None, :, :, None], axis=-1)
    found = truth[:, None] + random.normal(0, 0.02, (pairs, 4, *grid, 2))
    angle = random.uniform(0, 2 * np.pi, (pairs, *grid))
    error = random.uniform(0.3, 0.6, (pairs, *grid, 1)) * np.stack([np.cos(angle), np.sin(angle)], -1)
    found[:, 3] += error * (random.uniform(size=(pairs, *grid, 1)) < wrong)
    return truth.astype("float32"), found.astype("float32")


def distillation_batches(hypotheses, batch=2):
    """``batches(start, stop)`` for `run_fit`: shuffled passes, the order given by a step's number."""
    pairs = len(hypotheses)

    def load(step):
        order = tf.random.experimental.stateless_shuffle(
            tf.range(pairs), seed=tf.stack([1, tf.cast(step, tf.int32) * batch // pairs])
        )
        return order[tf.cast(step, tf.int32) % (pairs // batch) * batch :][:batch]

    def batches(start, stop):
        numbers = tf.data.Dataset.range(start, stop).map(load)
        return numbers.map(lambda index: {"index": index, "flows_t2s": tf.gather(hypotheses, index)})

    return batches


def all_pairs(hypotheses):
    return [
        {"index": np.arange(start, start + 2), "flows_t2s": tf.constant(hypotheses[start : start + 2])}
        for start in range(0, len(hypotheses), 2)
    ]


def settings(steps, rate=0.02, **changes):
    return Training(
        **{
            "steps": steps,
            "batch": 2,
            "learning_rate": LearningRate(rate),
            "log_every": 1000,
            "checkpoint_every": 1000,
            **changes,
        }
    )


def silent(line):
    pass


def distil(folder, hypotheses, steps, steps_per_round, *, stop=None, store=None, **options):
    """A run, or a part of one; returns the student's flow and the store."""
    grid = hypotheses.shape[2:4]
    store = store or VarianceStore(folder / "variances", len(hypotheses), (1, *grid, 2))
    trainer = DistillationTrainer(FreeFlow(len(hypotheses), grid), store, confidence=False, **options)
    batches = distillation_batches(hypotheses)
    state = run_fit(
        trainer,
        lambda start, end: batches(start, end if stop is None else stop),
        settings(steps),
        folder,
        config_hash="c",
        callbacks=lambda state: (
            [EStep(state, folder, lambda: all_pairs(hypotheses), steps_per_round, silent)]
            if trainer.reweight
            else []
        ),
        report=silent,
    )
    return numpy(trainer.network.flow), store, state


def end_point_error(flow, truth):
    return float(np.mean(np.linalg.norm(flow - truth, axis=-1)))


def features_of(truth, channels, seed=3):
    """Of pairs with these flows: the target's features are the source's, moved."""
    random = np.random.default_rng(seed)
    side, found = truth.shape[1], {}
    for level, cells in ((16, side), (32, side // 2)):
        places = (identity_places(cells, cells).reshape(-1, 2) + 1) / 2
        source = np.maximum(random.normal(size=(len(truth), cells, cells, channels)), 0)
        target = np.empty_like(source)
        for number, flow in enumerate(truth):
            there = places + bilinear(flow, places * (side - 1)) / 2
            target[number] = bilinear(source[number], there * (cells - 1)).reshape(source.shape[1:])
        found |= {f"source_{level}": source.astype("float32"), f"target_{level}": target.astype("float32")}
    return {name: tf.constant(values) for name, values in found.items()}


def test_a_student_learns_which_hypothesis_is_wrong(tmp_path):
    """A real head, one of four hypotheses wrong on 30 % of the cells, by two fifths of the side; the
    smoothness of birds_cpu.yaml. The paper's 0.05 smooths both students' flows away here."""
    pairs, side, steps = 2, 10, 320
    truth, hypotheses = hypotheses_of(pairs, (side, side), wrong=0)
    random = np.random.default_rng(5)
    for number in range(pairs):
        y, x = random.integers(0, 5, 2)
        angle = random.uniform(0, 2 * np.pi)
        shift = 0.8 * np.float32([np.cos(angle), np.sin(angle)])
        hypotheses[number, 3, y : y + 6, x : x + 5] += shift
    features = features_of(truth, 96)

    def with_features(batch):
        return {**batch, **{name: tf.gather(values, batch["index"]) for name, values in features.items()}}

    def student(reweight):
        keras.utils.set_random_seed(0)
        head = MatchingHead((96, 96), residual_scale=1.0)
        head.build()
        folder = tmp_path / str(reweight)
        store = VarianceStore(folder / "variances", pairs, (1, side, side, 2))
        options = {"confidence": False, "reweight": reweight, "smooth_weight": 1e-4}
        batches = distillation_batches(hypotheses)
        every = [with_features(batch) for batch in all_pairs(hypotheses)]
        run_fit(
            DistillationTrainer(head, store, **options),
            lambda start, stop: batches(start, stop).map(with_features),
            settings(steps, 0.01, profile_steps=0),
            folder,
            config_hash="c",
            callbacks=lambda state: (
                [EStep(state, folder, lambda: every, steps // 4, silent)] if reweight else []
            ),
            report=silent,
        )
        return end_point_error(numpy(head(features, training=False)["flow_t2s"]), truth)

    assert student(reweight=True) <= 0.7 * student(reweight=False)


def test_reweighting_beats_plain_averaging(tmp_path):
    """With one of four hypotheses wrong on 30 % of the cells; the paper's values but for the floor.

    Without smoothness, which pulls at a flow without a network behind it alike with and without weights.
    """
    truth, hypotheses = hypotheses_of(4)
    options = {"steps": 160, "steps_per_round": 40, "smooth_weight": 0.0}
    weighted, store, _ = distil(tmp_path / "weighted", hypotheses, **options)
    average, _, _ = distil(tmp_path / "average", hypotheses, reweight=False, **options)
    assert end_point_error(average, hypotheses.mean(axis=1)) < 0.01
    assert end_point_error(weighted, truth) <= 0.7 * end_point_error(average, truth)
    # Four E-steps at phi = 0.01: the variances that are stored tell the wrong cells.
    variance = store.read(np.arange(4), 4)[:, 0]
    wrong = np.linalg.norm(hypotheses[:, 3] - truth, axis=-1) > 0.2
    assert variance[wrong].mean() > 20 * variance[~wrong].mean()


def test_the_papers_literal_floor_stays_finite(tmp_path):
    """Variances are 0 at first, and where a hypothesis is met exactly, also among known pairs."""
    _, hypotheses = hypotheses_of(4)
    hypotheses[:, :, 0, 0] = 0.0
    store = VarianceStore(tmp_path / "variances", 4, (1, *GRID, 2))
    trainer = DistillationTrainer(FreeFlow(4), store, confidence=False, floor=0.0)
    known = {"index": tf.range(4), "flows_t2s": tf.constant(hypotheses), "known": tf.constant([True] * 4)}
    assert np.isfinite([float(value) for value in trainer.losses_of(known, training=True).values()]).all()
    flow, store, state = distil(tmp_path, hypotheses, 8, 4, floor=0.0, store=store)
    assert state.step == 8 and np.isfinite(flow).all()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    values = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert values and np.isfinite(values).all()
    trainer.network.flow.assign(flow)
    trainer.round.assign(2)
    found = trainer.losses_of({name: known[name] for name in ("index", "flows_t2s")}, training=True)
    # The weights are those of eq. 3 with nothing below its variance: all but lost, as the paper's are.
    assert np.isfinite([float(value) for value in found.values()]).all() and float(found["weight"]) < 0.1


def test_first_round_averages_and_reports(tmp_path):
    _, hypotheses = hypotheses_of(2)
    store = VarianceStore(tmp_path, 2, (1, *GRID, 2), initial=0.04)
    trainer = DistillationTrainer(FreeFlow(2), store, confidence=False)
    data = {"index": tf.constant([0, 1]), "flows_t2s": tf.constant(hypotheses)}
    first = trainer.losses_of(data, training=True)
    assert set(first) == {"loss", "flow", "smoothness", "divergence", "weight"}
    assert float(first["weight"]) == 1.0
    assert float(first["flow"]) == pytest.approx(float(np.mean(np.sum(hypotheses**2, -1))), rel=1e-5)
    trainer.round.assign(1)
    store.write(np.arange(2), np.full((2, 1, *GRID, 2), 0.04, "float32"), 1)
    store.commit(1)
    weights = np.exp(-(hypotheses.astype("float64") ** 2) / 0.04)
    second = trainer.losses_of(data, training=True)
    assert float(second["weight"]) == pytest.approx(weights.mean(), rel=1e-5)
    assert float(second["flow"]) == pytest.approx(np.mean(np.sum(weights * hypotheses**2, -1)), rel=1e-4)


def test_known_pairs_are_not_weighed(tmp_path):
    _, hypotheses = hypotheses_of(2)
    store = VarianceStore(tmp_path, 2, (1, *GRID, 2))
    store.write(np.arange(2), np.full((2, 1, *GRID, 2), 0.04, "float32"), 1)
    store.commit(1)
    trainer = DistillationTrainer(FreeFlow(2), store, confidence=False)
    trainer.round.assign(1)
    data = {"index": tf.constant([0, 0]), "flows_t2s": tf.constant(hypotheses)}
    squares = hypotheses.astype("float64") ** 2
    weights = np.exp(-squares / 0.04)
    plain = trainer.losses_of(data, training=True)
    assert float(plain["flow"]) == pytest.approx(np.mean(np.sum(weights * squares, -1)), rel=1e-4)
    found = trainer.losses_of({**data, "known": tf.constant([False, True])}, training=True)
    weights[1] = 1
    assert float(found["flow"]) == pytest.approx(np.mean(np.sum(weights * squares, -1)), rel=1e-4)
    # Nothing is stored of a known pair, so nothing diverges from it.
    one = trainer.losses_of(
        {**data, "flows_t2s": data["flows_t2s"][:1], "index": tf.constant([0])}, training=True
    )
    assert float(found["divergence"]) == pytest.approx(float(one["divergence"]) / 2, rel=1e-5)


def test_both_directions_confidence_valid_and_mirrored_pairs(tmp_path):
    _, hypotheses = hypotheses_of(2)
    random = np.random.default_rng(5)
    variance = random.uniform(0.01, 0.2, (2, 2, *GRID, 2)).astype("float32")
    store = VarianceStore(tmp_path, 2, (2, *GRID, 2))
    store.write(np.arange(2), variance, 1)
    store.commit(1)
    trainer = DistillationTrainer(FreeFlow(2), store, directions=("t2s", "s2t"), smooth_weight=0.0)
    trainer.round.assign(1)
    trainer.network.flow.assign(random.normal(0, 0.1, (2, *GRID, 2)))
    confidence = random.uniform(size=(2, 4, *GRID, 1)).astype("float32")
    valid = random.uniform(size=(2, *GRID)) < 0.7
    data = {
        "index": tf.constant([0, 1]),
        "flipped": tf.constant([False, True]),
        "valid": tf.constant(valid),
        "flows_t2s": tf.constant(hypotheses),
        "flows_s2t": tf.constant(-2 * hypotheses),
        "confidence_t2s": tf.constant(confidence),
        "confidence_s2t": tf.constant(confidence**2),
    }
    found = float(trainer.losses_of(data, training=True)["flow"])
    seen = variance.copy()
    seen[1] = seen[1, :, :, ::-1]
    flow = numpy(trainer.network.flow)
    expected = []
    for number, (own, target, mask) in enumerate(
        ((flow, hypotheses, confidence), (-flow, -2 * hypotheses, confidence**2))
    ):
        error = (own[:, None] - target) ** 2
        weights = np.exp(-error / np.maximum(seen[:, None, number], 0.05**2))
        cells = np.sum(weights * mask * error, axis=-1).mean(axis=1)
        expected.append(np.sum(cells * valid) / valid.sum())
    assert found == pytest.approx(np.mean(expected), rel=1e-5)
    # The E-step sees the pair as it is.
    del data["flipped"]
    updated = trainer.updated_variances(data)
    empirical = np.mean((flow[:, None] - hypotheses) ** 2, axis=1)
    np.testing.assert_allclose(updated[:, 0], variance[:, 0] * 0.99 + 0.01 * empirical, rtol=1e-4)


@pytest.mark.parametrize("confidence", [True, False])
def test_hypotheses_that_are_not_valid_are_not_learnt(confidence):
    """Neither what a warp moved out of the source nor a direction without truth, whatever eq. 7 is."""
    _, hypotheses = hypotheses_of(2)
    random = np.random.default_rng(3)
    trust = random.uniform(size=(2, 4, *GRID, 1)).astype("float32")
    valid = random.uniform(size=trust.shape) < 0.6
    valid[:, :, 0] = False
    trainer = DistillationTrainer(
        FreeFlow(2),
        directions=("t2s", "s2t"),
        smooth_weight=0.0,
        reweight=False,
        confidence=confidence,
    )
    data = {
        "index": tf.constant([0, 1]),
        "flows_t2s": tf.constant(hypotheses),
        "flows_s2t": tf.constant(hypotheses),
        "confidence_t2s": tf.constant(trust),
        "confidence_s2t": tf.constant(trust),
        "valid_t2s": tf.constant(valid),
        "valid_s2t": tf.zeros(valid.shape, tf.bool),
    }
    with tf.GradientTape() as tape:
        terms = trainer.losses_of(data, training=True)
    gradient = numpy(tf.convert_to_tensor(tape.gradient(terms["loss"], trainer.network.flow.value)))
    factor = valid * (trust if confidence else 1.0)
    expected = np.mean(np.sum(factor * hypotheses.astype("float64") ** 2, axis=-1)) / 2
    assert float(terms["flow"]) == pytest.approx(expected, rel=1e-5)
    assert (gradient[:, 0] == 0).all() and (gradient != 0).any()
    # The published form: what is not valid has no confidence.
    del data["valid_t2s"], data["valid_s2t"]
    masked = {**data, "confidence_t2s": trust * valid, "confidence_s2t": 0 * trust}
    if confidence:
        assert float(trainer.losses_of(masked, training=True)["loss"]) == float(terms["loss"])


def test_a_restart_in_the_middle_of_a_round_goes_on_exactly(tmp_path):
    _, hypotheses = hypotheses_of(6)
    options = {"steps": 12, "steps_per_round": 5, "step_size": 0.5}
    whole, whole_store, _ = distil(tmp_path / "whole", hypotheses, **options)
    # Stopped two steps into the second round, and once more at the end of one.
    for stop in (7, 10):
        _, _, state = distil(tmp_path / "parts", hypotheses, stop=stop, **options)
        assert state.step == stop == read_state(tmp_path / "parts" / LAST)["step"]
    parts, parts_store, state = distil(tmp_path / "parts", hypotheses, **options)
    assert state.step == 12
    np.testing.assert_array_equal(whole, parts)
    values = [store.read(np.arange(6), 2) for store in (whole_store, parts_store)]
    np.testing.assert_array_equal(*values)
    assert values[0].max() > 1e-4


class Failing(VarianceStore):
    """Loses power in the middle of the second E-step."""

    def write(self, indices, values, version):
        if version == 2 and 2 in indices:
            raise OSError("no power")
        super().write(indices, values, version)


def test_an_e_step_that_was_cut_short_is_done_again(tmp_path):
    _, hypotheses = hypotheses_of(6)
    options = {"steps": 12, "steps_per_round": 5, "step_size": 0.5}
    whole, whole_store, _ = distil(tmp_path / "whole", hypotheses, **options)
    failing = Failing(tmp_path / "cut" / "variances", 6, (1, *GRID, 2))
    with pytest.raises(OSError, match="no power"):
        distil(tmp_path / "cut", hypotheses, store=failing, **options)
    assert read_state(tmp_path / "cut" / LAST)["step"] == 10
    cut, cut_store, _ = distil(tmp_path / "cut", hypotheses, **options)
    np.testing.assert_array_equal(whole, cut)
    np.testing.assert_array_equal(*(s.read(np.arange(6), 2) for s in (whole_store, cut_store)))


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"directions must be some of .* got \('both',\)"):
        DistillationTrainer(FreeFlow(1), directions=("both",), reweight=False)
    with pytest.raises(ValueError, match="needs a store of variances"):
        DistillationTrainer(FreeFlow(1))


def shifted_pair(seed=0, batch=4, channels=6, grid=(8, 8)):
    """Features of a pair whose target is the source moved by one cell, and its flow."""
    random = np.random.default_rng(seed)
    fine = random.normal(size=(batch, *grid, channels)).astype("float32")
    coarse = random.normal(size=(batch, grid[0] // 2, grid[1] // 2, channels)).astype("float32")
    flow = np.zeros((batch, *grid, 2), "float32")
    flow[..., 0] = -2 / (grid[1] - 1)
    valid = np.ones((batch, *grid), bool)
    valid[:, :, 0] = False
    return {
        "source_16": fine,
        "target_16": np.roll(fine, 1, axis=2),
        "source_32": coarse,
        "target_32": coarse,
        "flow": flow,
        "valid": valid,
    }


@pytest.mark.parametrize("kind", [TeacherHead, MatchingHead])
def test_teacher_learns(kind):
    keras.utils.set_random_seed(0)
    batch = {name: tf.constant(value) for name, value in shifted_pair().items()}
    trainer = TeacherTrainer(SemanticMatchingNetwork(kind((6, 6), kernel_sizes=(3, 3), blocks=1)), seed=3)
    trainer.compile(optimizer=keras.optimizers.Adam(3e-3), jit_compile=False)
    data = tf.data.Dataset.from_tensors(batch)
    before = trainer.evaluate(data, verbose=0, return_dict=True)
    history = trainer.fit(data.repeat(60), verbose=0).history
    after = trainer.evaluate(data, verbose=0, return_dict=True)
    assert after["loss"] < 0.6 * before["loss"] and after["epe"] < before["epe"]
    names = {"loss", "flow", "smoothness"} | ({"divergence"} if kind is TeacherHead else set())
    assert names <= set(history)


def test_draws_of_a_step_depend_on_its_number_alone():
    data = {name: tf.constant(value) for name, value in shifted_pair().items()}
    trainer = TeacherTrainer(SemanticMatchingNetwork(TeacherHead((6, 6))), samples=2, seed=3)
    trainer.compile(optimizer=keras.optimizers.SGD(0.0), jit_compile=False)
    values = []
    for step in (5, 6, 5):
        trainer.optimizer.iterations.assign(step)
        values.append(float(trainer.losses_of(data, training=True)["flow"]))
    assert values[0] == values[2] != values[1]


def test_measures_of_known_flows():
    class Fixed(keras.Model):
        def call(self, inputs, training=None):
            return {"flow_t2s": inputs["found"]}

    random = np.random.default_rng(0)
    flow = random.uniform(-1, 1, (2, 4, 5, 2)).astype("float32")
    found = flow + random.uniform(-0.15, 0.15, flow.shape).astype("float32")
    valid = random.uniform(size=(2, 4, 5)) < 0.6
    trainer = TeacherTrainer(Fixed())
    trainer.compile(jit_compile=False)
    data = {"found": found, "flow": flow, "valid": valid}
    # Two batches of different numbers of valid cells count by them.
    parts = tf.data.Dataset.from_tensor_slices(data).batch(1)
    measured = trainer.evaluate(parts, verbose=0, return_dict=True)
    distance = np.linalg.norm(found - flow, axis=-1)[valid]
    assert measured["epe"] == pytest.approx(distance.mean(), rel=1e-5)
    assert measured["pck"] == pytest.approx(np.mean(distance <= 0.1), rel=1e-5)
    assert measured["loss"] == pytest.approx(np.mean(distance**2), rel=1e-5)


def test_a_keras_cv_backbone_with_random_weights_runs_a_step(tmp_path):
    pytest.importorskip("keras_cv")
    arguments = {"stackwise_channels": [8, 8, 16, 16], "stackwise_depth": [1, 1, 1, 1]}
    extractor = backbone("keras_cv:CSPDarkNetBackbone", arguments=arguments)
    widths = extractor.widths[16], extractor.widths[32]
    random = np.random.default_rng(0)
    images = {side: random.uniform(size=(2, 64, 96, 3)).astype("float32") for side in ("source", "target")}
    teacher = SemanticMatchingNetwork(TeacherHead(widths, kernel_sizes=(3, 3)), extractor)
    truth = {"flow": np.zeros((2, 4, 6, 2), "float32"), "valid": np.ones((2, 4, 6), bool)}
    frozen = [value.copy() for value in extractor.get_weights()]
    trained = [numpy(v).copy() for v in teacher.head.trainable_variables]
    trainer = TeacherTrainer(teacher)
    trainer.compile(optimizer=keras.optimizers.Adam(1e-2), jit_compile=False)
    trainer.fit(tf.data.Dataset.from_tensors({**images, **truth}), verbose=0)
    assert {v.path for v in trainer.trainable_variables} == {v.path for v in teacher.head.trainable_variables}
    for was, now in zip(frozen, extractor.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    moved = [
        np.abs(numpy(v) - was).max() for v, was in zip(teacher.head.trainable_variables, trained, strict=True)
    ]
    assert all(np.isfinite(moved)) and max(moved) > 1e-3
    hypotheses = teacher(images, samples=3, seed=np.array([0, 1], "int32"))
    student = SemanticMatchingNetwork(MatchingHead(widths, kernel_sizes=(3, 3)), extractor)
    store = VarianceStore(tmp_path, 2, (1, 4, 6, 2))
    trainer = DistillationTrainer(student, store, confidence=False)
    trainer.compile(optimizer=keras.optimizers.Adam(1e-2), jit_compile=False)
    batch = {**images, "index": np.arange(2), "flows_t2s": numpy(hypotheses["flow_t2s"])}
    trainer.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
    assert np.isfinite(numpy(trainer.updated_variances({k: tf.constant(v) for k, v in batch.items()}))).all()


def test_e_step_reports_its_round(tmp_path):
    _, hypotheses = hypotheses_of(2)
    store = VarianceStore(tmp_path / "variances", 2, (1, *GRID, 2))
    trainer = DistillationTrainer(FreeFlow(2), store, confidence=False, step_size=1.0)
    trainer.compile(optimizer=keras.optimizers.SGD(0.0), jit_compile=False)
    trainer.optimizer.build(trainer.trainable_variables)
    lines = []
    step = EStep(
        RunState(seed=0, config="c", step=4), tmp_path, lambda: all_pairs(hypotheses), 4, lines.append
    )
    step.set_model(trainer)
    # Step 4 of rounds of 4, and no round is over: an E-step is owed.
    step.on_train_begin()
    assert int(trainer.round) == 1
    expected = np.mean(hypotheses**2, axis=1)
    np.testing.assert_allclose(store.read(np.arange(2), 1)[:, 0], expected, rtol=1e-4, atol=1e-7)
    deviation = np.sqrt(expected.mean())
    assert lines == [f"round 1: variances of 2 pairs, mean deviation {deviation:.3f}"]
    step.on_train_begin()
    assert int(trainer.round) == 1
