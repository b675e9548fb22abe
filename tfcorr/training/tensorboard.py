"""What TensorBoard shows of a run beside the curves and pictures of `callbacks.Log`.

| dashboard | name | what |
| --- | --- | --- |
| Text | `run/config`, `run/parameters` | hash of the configuration; all of its values in a table |
| HParams | the run | the same values, for comparing runs |
| Graphs | the run, tag `train_step` | the graph of one training step |
| Profile | `plugins/profile` | a few steps after the first ones |
| Text | `run/validation` | the last validation and the best |
| Text, Scalars | `evaluation/NAME` | what `tfcorr evaluate` measured |

The events of a run go into one file, that of its `Log`: TensorBoard reads the files of a folder one after the
other, and does not come back to one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from tfcorr.training.callbacks import Log, RunState

__all__ = ["Graph", "Profile", "Tables", "flattened", "means", "tensorboard_callbacks", "write_evaluation"]

PROFILE_AFTER = 10
"""Steps before the profile: the first ones trace, allocate and fill buffers."""

_LONGEST_VALUE = 120  # characters; lists of scenes would hide the rest of a table


def tensorboard_callbacks(
    log: Log,
    folder: Path,
    *,
    profile_steps: int,
    parameters: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> list[keras.callbacks.Callback]:
    """The callbacks of this module for a run; none without TensorBoard.

    Args:
        log: of the run.
        folder: of the run.
        profile_steps: how many steps are profiled; 0 for none.
        parameters: name -> value, see `flattened`.
        report: prints a line.
    """
    if log.writer is None:
        return []
    callbacks: list[keras.callbacks.Callback] = [Tables(log, parameters or {}), Graph(log)]
    if profile_steps:
        callbacks.append(Profile(log.state, folder, profile_steps, report=report))
    return callbacks


def flattened(config: Any) -> dict[str, bool | int | float | str]:
    """The values of a configuration under dotted names, in its own order.

    Args:
        config: a dataclass of dataclasses.

    Returns:
        Numbers, truth values and texts; ``None`` is "none", and lists are JSON, cut to 120 characters.
    """
    values: dict[str, bool | int | float | str] = {}

    def collect(node: Any, prefix: str) -> None:
        for spec in dataclasses.fields(node):
            value, name = getattr(node, spec.name), f"{prefix}{spec.name}"
            if dataclasses.is_dataclass(value):
                collect(value, f"{name}.")
            else:
                values[name] = _plain(value)

    collect(config, "")
    return values


def _plain(value: Any) -> bool | int | float | str:
    if value is None:
        return "none"
    if isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else json.dumps(_json_ready(value))
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]} ..."


def _json_ready(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


class Tables(keras.callbacks.Callback):
    """Writes the parameters when a run begins, and the table of its validation when it ends.

    Args:
        log: of the run.
        parameters: name -> value.
    """

    def __init__(self, log: Log, parameters: Mapping[str, bool | int | float | str]):
        super().__init__()
        self.log = log
        self.parameters = dict(parameters)

    def on_train_begin(self, logs=None):
        import tensorflow as tf

        # A run that goes on has them already, unless an earlier version began it.
        if not self.parameters or self.log.state.step:
            return
        from tensorboard.plugins.hparams import api

        with self.log.writer.as_default(step=0):
            tf.summary.text("run/parameters", _table(("parameter", "value"), self.parameters.items()))
            # The name of the trial is that of the run: by default it would be a hash of the values.
            api.hparams(self.parameters, trial_id=self.log.path.parent.name)
        self.log.writer.flush()

    def on_train_end(self, logs=None):
        import tensorflow as tf

        state = self.log.state
        if not state.metrics:
            return
        rows = [(name, f"{value:.4f}") for name, value in state.metrics.items()]
        if state.best is not None:
            rows.append(("best", f"{state.best:.4f}"))
        with self.log.writer.as_default(step=state.step):
            tf.summary.text("run/validation", _table(("validation", f"step {state.step}"), rows))


class Graph(keras.callbacks.Callback):
    """Writes the graph of a run's first step.

    Args:
        log: of the run.
    """

    def __init__(self, log: Log):
        super().__init__()
        self.log = log
        self._tracing = False

    def on_train_batch_begin(self, batch, logs=None):
        import tensorflow as tf

        if self.log.state.step == 0 and not self._tracing:
            tf.summary.trace_on(graph=True, profiler=False)
            self._tracing = True

    def on_train_batch_end(self, batch, logs=None):
        import tensorflow as tf

        if self._tracing:
            with self.log.writer.as_default(step=0):
                tf.summary.trace_export("train_step")
            self._tracing = False


class Profile(keras.callbacks.Callback):
    """Profiles a few steps of a run, once.

    Args:
        state: of the run.
        folder: of the run; the profile goes to ``tensorboard/plugins/profile`` in it.
        steps: how many.
        after: how many steps of the run come before.
        report: prints a line.
    """

    def __init__(
        self,
        state: RunState,
        folder: Path,
        steps: int,
        *,
        after: int = PROFILE_AFTER,
        report: Callable[[str], None] = print,
    ):
        super().__init__()
        self.state = state
        self.folder = folder / "tensorboard"
        self.steps = steps
        self.after = after
        self.report = report
        self._left = 0

    def on_train_batch_begin(self, batch, logs=None):
        import tensorflow as tf

        if self.state.step != self.after or self._left:
            return
        try:
            tf.profiler.experimental.start(os.fspath(self.folder))
        except (tf.errors.AlreadyExistsError, tf.errors.UnavailableError) as error:
            self.report(f"no profile of the run: {error.message}")
            return
        self._left = self.steps

    def on_train_batch_end(self, batch, logs=None):
        if self._left:
            self._left -= 1
            if not self._left:
                self._stop()

    def on_train_end(self, logs=None):
        if self._left:
            self._left = 0
            self._stop()

    def _stop(self):
        import tensorflow as tf

        tf.profiler.experimental.stop()


def write_evaluation(
    folder: str | os.PathLike, name: str, table: str, values: Mapping[str, float], *, step: int = 0
) -> bool:
    """Writes what an evaluation found, as text and as scalars.

    Args:
        folder: for the event file, such as ``runs/evaluate_albums/tensorboard``.
        name: of the evaluation; the tags are ``evaluation/NAME`` and ``evaluation/NAME/VALUE``.
        table: for people, with aligned columns or in Markdown.
        values: finite ones are written.
        step: of the model that was measured.

    Returns:
        Whether it was written: False without TensorBoard.
    """
    import tensorflow as tf

    try:
        writer = tf.summary.create_file_writer(os.fspath(folder))
    except Exception as error:  # TBNotInstalledError, whose module is private.
        if type(error).__name__ != "TBNotInstalledError":
            raise
        return False
    is_markdown = table.lstrip().startswith(("|", "#"))
    with writer.as_default(step=step):
        tf.summary.text(f"evaluation/{name}", table if is_markdown else f"```\n{table}\n```")
        for key, value in values.items():
            if math.isfinite(value):
                tf.summary.scalar(f"evaluation/{name}/{key}", value)
    writer.close()
    return True


def means(result: Mapping[str, Any]) -> dict[str, float]:
    """The means in the result of an evaluation, as scalars for `write_evaluation`.

    Args:
        result: nested dictionaries. A mean is a number under ``mean`` or, of PCK, ``per_pair``; or one of the
            numbers that ``pck`` has for each alpha.

    Returns:
        The path of each, joined by slashes, without the word for the mean itself -> value.
    """
    found: dict[str, float] = {}

    def collect(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                if not isinstance(value, (int, float)):
                    collect(value, (*path, str(key)))
                elif key in ("mean", "per_pair"):
                    found["/".join(path)] = float(value)
                elif path[-1:] == ("pck",):
                    found["/".join((*path, str(key)))] = float(value)

    collect(result, ())
    return found


def _table(header: tuple[str, str], rows: Any) -> str:
    """A table of two columns in Markdown."""

    def cell(value: Any) -> str:
        return str(value).replace("|", "\\|").replace("\n", " ")

    lines = [f"| {header[0]} | {header[1]} |", "| --- | --- |"]
    lines += [f"| {cell(name)} | {cell(value)} |" for name, value in rows]
    return "\n".join(lines)
