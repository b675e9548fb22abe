"""What a reader of a run's event files finds, read back with TensorBoard's own reader."""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import logged_pictures

from tfcorr.config import LearningRate, Training
from tfcorr.training.loop import run_fit
from tfcorr.training.tensorboard import PROFILE_AFTER, flattened, means, write_evaluation

pytest.importorskip("tensorboard")
STEPS = PROFILE_AFTER + 4


class Line(keras.Model):
    """Fits one weight: a trainer as small as one can be."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.dense.build((None, 3))
        self.built = True

    def call(self, x):
        return self.dense(x)

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.dense(x) - y) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}

    def test_step(self, batch):
        x, y = batch
        return {"closeness": -tf.reduce_mean((self.dense(x) - y) ** 2)}


def batches(start, stop):
    random = np.random.default_rng(0)
    x = random.random((STEPS, 4, 3), np.float32)
    pairs = tf.data.Dataset.from_tensor_slices((x, x.sum(axis=2, keepdims=True)))
    return pairs.skip(start).take(stop - start)


def run(folder: Path, steps: int, *, images_every: int = 7, **named):
    settings = Training(
        steps=steps,
        batch=4,
        learning_rate=LearningRate(0.01),
        log_every=2,
        images_every=images_every,
        profile_steps=2,
    )
    return run_fit(
        Line(),
        batches,
        settings,
        folder,
        config_hash="0123456789ab",
        validation=batches(0, 2),
        validate_every=7,
        metric="closeness",
        images=lambda: {"noise": np.zeros((1, 8, 8, 3), np.float32)},
        report=lambda line: None,
        **named,
    )


def read(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def text(accumulator, tag: str) -> str:
    (event,) = accumulator.Tensors(tag)
    return event.tensor_proto.string_val[0].decode()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "line"
    run(folder, STEPS, parameters={"train.steps": STEPS, "name": "a|line", "fast": True, "rate": 0.01})
    return folder


def test_scalars_images_and_texts(finished):
    found = read(finished / "tensorboard")
    tags = found.Tags()
    assert {"train/loss", "train/learning_rate", "validation/closeness", "pictures/noise"} <= set(
        tags["tensors"]
    )
    assert [event.step for event in found.Tensors("train/loss")] == list(range(2, STEPS + 1, 2))
    assert [event.step for event in found.Tensors("pictures/noise")] == [7, 14]
    assert text(found, "run/config") == "0123456789ab"
    table = text(found, "run/parameters")
    assert f"| train.steps | {STEPS} |" in table
    assert "a\\|line" in table  # does not break the table
    assert "| closeness | -" in text(found, "run/validation")


def test_a_short_run_has_images_at_its_end(tmp_path):
    every = Training(steps=1, batch=1, learning_rate=LearningRate(1.0)).images_every
    assert every > STEPS
    for steps in (3, 5):
        run(tmp_path / "line", steps, images_every=every)
    run(tmp_path / "line", 5, images_every=every)  # nothing is left to do
    ((name, written),) = logged_pictures(tmp_path / "line").items()
    assert name == "noise" and [step for step, _ in written] == [3, 5]
    run(tmp_path / "without", 3, images_every=0)
    assert not logged_pictures(tmp_path / "without")


def test_who_interrupts_a_run_does_not_wait_for_images(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def __init__(self, state):
            super().__init__()
            self.state = state

        def on_train_batch_end(self, batch, logs=None):
            self.state.stopped = "SIGINT"

    state = run(tmp_path / "line", 5, callbacks=lambda state: [Interrupt(state)])
    assert state.step == 1 and not logged_pictures(tmp_path / "line")


def test_graph(finished):
    found = read(finished / "tensorboard")
    assert found.SummaryMetadata("train_step").plugin_data.plugin_name == "graph_run_metadata_graph"
    (event,) = found.Tensors("train_step")
    traced = tf.compat.v1.RunMetadata.FromString(event.tensor_proto.string_val[0])
    operations = {node.op for graph in traced.function_graphs for node in graph.pre_optimization_graph.node}
    operations |= {
        node.op
        for graph in traced.function_graphs
        for function in graph.pre_optimization_graph.library.function
        for node in function.node_def
    }
    assert "MatMul" in operations  # of the one layer


def test_hyper_parameters(finished):
    from tensorboard.plugins.hparams import metadata

    found = read(finished / "tensorboard")
    content = found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.group_name == "line"
    assert start.hparams["train.steps"].number_value == STEPS
    assert start.hparams["name"].string_value == "a|line"
    assert start.hparams["fast"].bool_value


def test_profile_of_a_few_steps(finished):
    (profile,) = (finished / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert 0 < profile.stat().st_size < 50_000_000


def test_interrupted_and_continued(tmp_path, finished):
    """The parameters, the graph and the profile are there once, and the curves go on."""
    folder = tmp_path / "line"
    run(folder, 4, parameters={"a": 1})
    assert not (folder / "tensorboard" / "plugins").exists()  # it ended before
    run(folder, STEPS, parameters={"a": 1})
    found = read(folder / "tensorboard")
    assert len(found.Tensors("run/parameters")) == 1
    assert len(list((folder / "tensorboard/plugins/profile").glob("*"))) == 1
    assert [event.step for event in found.Tensors("train/loss")] == list(range(2, STEPS + 1, 2))


def test_run_that_ends_while_it_is_profiled(tmp_path):
    run(tmp_path / "short", PROFILE_AFTER + 1)
    assert list((tmp_path / "short/tensorboard/plugins/profile").glob("*/*.xplane.pb"))
    run(tmp_path / "next", STEPS)  # the profiler is free again
    assert list((tmp_path / "next/tensorboard/plugins/profile").glob("*/*.xplane.pb"))


def test_evaluation(tmp_path):
    assert write_evaluation(tmp_path, "albums", "a  b\n1  2", {"psnr": 30.5, "bad": float("nan")}, step=7)
    found = read(tmp_path)
    assert text(found, "evaluation/albums") == "```\na  b\n1  2\n```"
    (event,) = found.Tensors("evaluation/albums/psnr")
    assert (event.step, tf.make_ndarray(event.tensor_proto)) == (7, 30.5)
    assert "evaluation/albums/bad" not in found.Tags()["tensors"]
    write_evaluation(tmp_path / "markdown", "x", "| a |\n| --- |", {})
    assert text(read(tmp_path / "markdown"), "evaluation/x") == "| a |\n| --- |"


def test_means():
    result = {
        "summary": {"true": {"psnr": {"mean": 30.0, "error": 0.1}}},
        "images": [{"mean": 1.0}],
        "mean": "no",
        "pck": "no",
        "per_point": 0.5,
    }
    assert means(result) == {"summary/true/psnr": 30.0}


def test_flattened():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        rate: float = 0.5
        names: tuple = ("a", "b")

    @dataclasses.dataclass(frozen=True)
    class Outer:
        steps: int = 3
        inner: Inner = Inner()
        nothing: None = None
        rules: tuple = (Inner(),)
        long: tuple = tuple("x" * 9 for _ in range(40))
        table: dict = dataclasses.field(default_factory=lambda: {"a": 1})

    values = flattened(Outer())
    assert list(values)[:4] == ["steps", "inner.rate", "inner.names", "nothing"]
    assert values["inner.rate"] == 0.5 and values["nothing"] == "none"
    assert values["inner.names"] == '["a", "b"]' and values["table"] == '{"a": 1}'
    assert values["rules"] == '[{"rate": 0.5, "names": ["a", "b"]}]'
    assert len(values["long"]) < 130 and values["long"].endswith(" ...")
