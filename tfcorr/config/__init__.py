"""Typed configuration: one schema for every YAML file in ``configs/``.

A file names its ``stage``; each stage is a frozen dataclass of one of the schema modules. Unknown keys and
wrong types are refused with the path of the key::

    matcher_cpu.yaml: data.crop: expected int, got 'abc'
    matcher_cpu.yaml: train.lerning_rate: unknown key, did you mean 'learning_rate'?

A stage says by ``COMMAND`` which command takes it (``train`` or ``evaluate``) and by ``RUNNER``, a
``module:function``, what runs it. Numbers that come from a paper stand in the YAML files, each beside its
section; the defaults here are neutral. The package reads files and nothing else: below it, functions take
plain arguments or one of these dataclasses.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tfcorr.config import evaluation, refsr, semantic
from tfcorr.config.common import LearningRate, PhotoRule, Training
from tfcorr.config.evaluation import (
    AblationConfig,
    AblationStep,
    EvaluateConfig,
    ModelSizesConfig,
    PublishedSet,
    RobustnessConfig,
)
from tfcorr.config.reading import (
    DATA_ROOT_VARIABLE,
    MAX_BYTES,
    ConfigError,
    apply_overrides,
    config_hash,
    load_yaml,
    read,
    resolve_data_path,
)
from tfcorr.config.refsr import (
    AdversarialLoss,
    HomographySampling,
    MatcherConfig,
    MatcherData,
    MatcherLoss,
    MatcherValidation,
    PairSource,
    PerceptualLoss,
    Photometric,
    RestorerConfig,
    RestorerData,
    RestorerLoss,
    RestorerValidation,
    SingleImageConfig,
    SingleImageData,
    SingleImages,
    SingleImageValidation,
)
from tfcorr.config.semantic import SemanticConfig, SemanticEvaluateConfig

__all__ = [
    "AblationConfig",
    "AblationStep",
    "AdversarialLoss",
    "ConfigError",
    "DATA_ROOT_VARIABLE",
    "EvaluateConfig",
    "HomographySampling",
    "LearningRate",
    "MatcherConfig",
    "MatcherData",
    "MatcherLoss",
    "MatcherValidation",
    "ModelSizesConfig",
    "PairSource",
    "PerceptualLoss",
    "Photometric",
    "PhotoRule",
    "PublishedSet",
    "RestorerConfig",
    "RestorerData",
    "RestorerLoss",
    "RestorerValidation",
    "RobustnessConfig",
    "SemanticConfig",
    "SemanticEvaluateConfig",
    "SingleImageConfig",
    "SingleImageData",
    "SingleImageValidation",
    "SingleImages",
    "STAGES",
    "Training",
    "apply_overrides",
    "check_command",
    "config_hash",
    "find_config",
    "load_config",
    "parse_config",
    "resolve_data_path",
    "runner",
]

STAGES: dict[str, type] = {**refsr.STAGES, **evaluation.STAGES, **semantic.STAGES}


def find_config(name: str | os.PathLike) -> Path:
    """The file that a name on the command line means.

    Args:
        name: a path, or a path relative to the ``configs`` folder that ships with the package; ``.yaml``
            may be left out there.

    Returns:
        The path of an existing file.

    Raises:
        ConfigError: there is no such file; the message lists the configurations that ship.
    """
    from tfcorr.resources import configs_dir

    path = Path(name)
    shipped = configs_dir()
    for candidate in (path, shipped / path, shipped / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    known = sorted(str(p.relative_to(shipped)) for p in shipped.rglob("*.yaml"))
    raise ConfigError(f"{name}: no such configuration; those that ship are: {', '.join(known) or 'none'}")


def load_config(name: str | os.PathLike, overrides: Iterable[str] = ()) -> Any:
    """Read and check a configuration.

    Args:
        name: as for `find_config`.
        overrides: ``key=value`` words; ``key`` is a dotted path (``train.steps``, ``data.pairs.0.limit``) and
            ``value`` is YAML (``[1, 2]``, ``null``, ``text``).

    Returns:
        The dataclass of the file's stage.

    Raises:
        ConfigError: for a missing file, broken YAML, unknown or missing keys, wrong types.
    """
    path = find_config(name)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{size} bytes long, expected at most {MAX_BYTES}")
        mapping = load_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a YAML file: not a text in UTF-8") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(mapping).__name__}")
    try:
        return parse_config(apply_overrides(mapping, overrides))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_config(mapping: Mapping[str, Any]) -> Any:
    """Check a mapping against the schema of its ``stage``; raises `ConfigError`."""
    stage = mapping.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        raise ConfigError(f"stage: expected one of {', '.join(STAGES)}, got {stage!r}")
    return read(STAGES[stage], mapping, "")


def check_command(config: Any, command: str) -> None:
    """Refuse a configuration that was given to the wrong command.

    Args:
        config: from `load_config`.
        command: ``train`` or ``evaluate``.

    Raises:
        ConfigError: its stage belongs to another command.
    """
    if command != config.COMMAND:
        raise ConfigError(
            f"stage {config.stage} is not for `tfcorr {command}`; use `tfcorr {config.COMMAND}`"
        )


def runner(config: Any) -> Callable[..., Any]:
    """The function that runs a stage, as its ``RUNNER`` names it.

    Those of ``train`` are called with ``(config, command, report)``, the words of the command among them, and
    return a `tfcorr.training.callbacks.RunState`; those of ``evaluate`` with ``(config, report)``, and return
    the result and its printed table.
    """
    module, _, function = config.RUNNER.partition(":")
    return getattr(importlib.import_module(module), function)
