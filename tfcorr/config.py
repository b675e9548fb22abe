"""Typed configuration: one schema for every YAML file in ``configs/``.

A file names its ``stage`` (``matcher``, ``restorer`` or ``evaluate``); each stage is a frozen dataclass
below. Unknown keys and wrong types are refused with the path of the key::

    matcher_cpu.yaml: data.crop: expected int, got 'abc'
    matcher_cpu.yaml: train.lerning_rate: unknown key, did you mean 'learning_rate'?

Numbers that come from a paper stand in the YAML files, each beside its section; the defaults here are
neutral. The module reads files and nothing else: below it, functions take plain arguments or one of these
dataclasses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from tfcorr.errors import TfcorrError

DATA_ROOT_VARIABLE = "TFCORR_DATA"


class ConfigError(TfcorrError):
    """A configuration that cannot be used; the message begins with the file and the key."""


# ---------------------------------------------------------------------------------------------------------
# The schema
# ---------------------------------------------------------------------------------------------------------


def _at_least(least: float, default: Any = dataclasses.MISSING) -> Any:
    """A field whose value may not be smaller; without a default it has to be given."""
    return field(default=default, metadata={"least": least})


@dataclass(frozen=True)
class PhotoRule:
    """Photos of one scene (a folder); without ``photos`` (file names without their ending), all of them."""

    scene: str
    photos: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairSource:
    """(input, reference) pairs: a CSV, or two folders with equal file names (the layout of CUFED).

    ``input_path`` and ``reference_path`` make a path from the columns of a row, for example
    ``albums/{scene}/{input}``. Columns ``x, y`` and ``ref_x, ref_y``, where a CSV has them, are the top-left
    corners of a patch of ``patch`` pixels in the two photos; without them the whole photo is the patch.
    """

    csv: str | None = None
    input_path: str = "{input}"
    reference_path: str = "{reference}"
    input_dir: str | None = None
    reference_dir: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class HomographySampling:
    """How the reference of a matcher sample is warped (section 3.5).

    ``published`` moves the corners of a square somewhere at or beyond the centre of the image, each
    coordinate by up to ``jitter`` pixels; what lies outside of the crop is black. ``wide`` is centred on
    the crop: a rotation within +-``rotation`` degrees, a scale within ``scale``, a shift within +-``shift``
    and corners moved by up to ``perspective`` (both shares of the side); what lies outside of the crop
    comes from the photo.
    """

    kind: Literal["published", "wide"] = "wide"
    jitter: int = 9
    rotation: float = 45.0
    scale: tuple[float, float] = (0.6, 1.6)
    perspective: float = 0.1
    shift: float = 0.1


@dataclass(frozen=True)
class Photometric:
    """Photometric changes of the reference side; each is drawn with ``probability`` and up to its
    strength."""

    probability: float = 0.0
    brightness: float = 0.1
    contrast: float = 0.2
    gamma: float = 0.3
    colour: float = 0.1
    blur: float = 1.0
    noise: float = 0.02


@dataclass(frozen=True)
class MatcherData:
    """Single images for the correspondence network: folders or globs under the data root."""

    images: tuple[str, ...]
    exclude: tuple[PhotoRule, ...] = ()
    crop: int = 160
    homography: HomographySampling = HomographySampling()
    photometric: Photometric = Photometric()


@dataclass(frozen=True)
class SingleImages:
    """Single images that are mixed into the pairs: the reference is a warped copy, or another image."""

    images: tuple[str, ...]
    probability: float
    unrelated: float = 0.0
    homography: HomographySampling = HomographySampling()
    photometric: Photometric = Photometric()


@dataclass(frozen=True)
class RestorerData:
    """Pairs for the restoration network. ``crop`` is the side of the input patch, ``patch`` of the
    reference."""

    pairs: tuple[PairSource, ...]
    exclude: tuple[PhotoRule, ...] = ()
    patch: int = 160
    crop: int = 160
    unrelated: float = 0.0
    photometric: Photometric = Photometric()
    singles: SingleImages | None = None


@dataclass(frozen=True)
class MatcherValidation:
    """Held-out images on which the matcher is measured, warped once and for all from ``seed``."""

    images: tuple[str, ...]
    only: tuple[PhotoRule, ...] = ()
    count: int = _at_least(1, 16)
    every: int = _at_least(1, 250)
    seed: int = 0


@dataclass(frozen=True)
class RestorerValidation:
    """Held-out pairs on which the restorer is measured; with ``only``, both photos of a pair are in its
    rules."""

    pairs: tuple[PairSource, ...]
    only: tuple[PhotoRule, ...] = ()
    count: int = _at_least(1, 16)
    every: int = _at_least(1, 250)


@dataclass(frozen=True)
class LearningRate:
    """``constant`` with ``milestones`` (steps) where it is multiplied by ``factor``, or ``cosine`` down to
    ``final`` (a share of ``initial``). Both rise linearly over the first ``warmup`` steps."""

    initial: float
    schedule: Literal["constant", "cosine"] = "constant"
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    warmup: int = 0
    final: float = 0.0


@dataclass(frozen=True)
class Training:
    """How long and with which optimiser (Adam); ``multipliers`` slow down variables by a part of their
    path."""

    steps: int = _at_least(1)
    batch: int = _at_least(1)
    learning_rate: LearningRate = field()
    seed: int = 10
    multipliers: dict[str, float] = field(default_factory=dict)
    ema: float | None = None
    clip_norm: float | None = None
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    max_minutes: float | None = None
    log_every: int = _at_least(1, 20)
    checkpoint_every: int = _at_least(1, 200)
    images_every: int = _at_least(0, 0)
    max_offset: float = 100.0
    workers: int = _at_least(1, 2)
    threads: int | None = _at_least(1, None)


@dataclass(frozen=True)
class MatcherLoss:
    """Eq. 1 to 3. ``safe_radius`` is in cells of the feature grid, ``border`` in pixels of the reference."""

    margin: float
    safe_radius: float
    minimum_positions: int = 128
    border: float = 10.0
    negatives: Literal["matched", "all"] = "matched"
    triplet_weight: float = 1.0
    contrastive_weight: float = 0.0
    temperature: float = 0.07


@dataclass(frozen=True)
class MatcherConfig:
    """Contrastive correspondence network (section 3.1). ``input_side`` is what the input branch sees: the
    reduced and enlarged image (``upsampled``, the student's setting) or the image itself (``image``, the
    teacher's). ``initial_weights``: none for random ones, ``imagenet``, a file, or the folder of a trained
    matcher. ``licence``, of the weights, and ``data_licences`` are for the model's card."""

    stage: Literal["matcher"]
    name: str
    output: str
    run: str
    data: MatcherData
    loss: MatcherLoss
    train: Training
    validation: MatcherValidation | None = None
    model: dict[str, Any] = field(default_factory=dict)
    initial_weights: str | None = None
    input_side: Literal["upsampled", "image"] = "upsampled"
    data_root: str | None = None
    licence: str = "research use"
    data_licences: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RestorerConfig:
    """Restoration network (sections 3.3 and 3.4) over the fixed correspondence network in the folder
    ``matcher``. ``model`` holds its sizes, see `tfcorr.refsr.model.C2Matching.from_architecture`;
    ``vgg_weights`` (``imagenet`` or a file) is read if these ask for VGG19's reference features."""

    stage: Literal["restorer"]
    name: str
    output: str
    run: str
    matcher: str
    data: RestorerData
    train: Training
    validation: RestorerValidation | None = None
    model: dict[str, Any] = field(default_factory=dict)
    initial_weights: str | None = None
    vgg_weights: str = "imagenet"
    data_root: str | None = None
    licence: str = "research use"
    data_licences: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluateConfig:
    """A benchmark: pairs, a model, and which references it is given; ``memory`` is in bytes, for its
    tiles."""

    stage: Literal["evaluate"]
    model: str
    pairs: PairSource
    output: str
    references: tuple[Literal["true", "unrelated", "none"], ...] = ("true",)
    unrelated_path: str = "{unrelated}"
    border: int = 4
    limit: int | None = None
    memory: int | None = None
    data_root: str | None = None


Config = MatcherConfig | RestorerConfig | EvaluateConfig
STAGES: dict[str, type] = {"matcher": MatcherConfig, "restorer": RestorerConfig, "evaluate": EvaluateConfig}


# ---------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------


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


def load_config(name: str | os.PathLike, overrides: Iterable[str] = ()) -> Config:
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
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(mapping).__name__}")
    try:
        return parse_config(apply_overrides(mapping, overrides))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_config(mapping: Mapping[str, Any]) -> Config:
    """Check a mapping against the schema of its ``stage``; raises `ConfigError`."""
    stage = mapping.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        raise ConfigError(f"stage: expected one of {', '.join(STAGES)}, got {stage!r}")
    return _read(STAGES[stage], mapping, "")


def apply_overrides(mapping: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of ``mapping`` with each ``key=value`` set; raises `ConfigError` for a word without ``=``."""
    result = _unshared(mapping)
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r}: expected key=value")
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"{key}: {text!r} is not YAML: {' '.join(str(error).split())}") from error
        _set(result, key.split("."), value, key)
    return result


def _unshared(node: Any) -> Any:
    """A copy in which no two keys hold one object, as the anchors of YAML make them."""
    if isinstance(node, Mapping):
        return {key: _unshared(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_unshared(value) for value in node]
    return node


def _set(node: Any, parts: Sequence[str], value: Any, key: str) -> None:
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth]) or key
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(f"{key}: {where} has {len(node)} items, counted from 0; got {part!r}")
            part = int(part)
        elif not isinstance(node, dict):
            raise ConfigError(f"{key}: {where} is {node!r}, which has no keys")
        if depth == len(parts) - 1:
            node[part] = value
        else:
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = {}
            node = node[part]


def _read(expected: Any, value: Any, path: str) -> Any:
    """``value`` as the annotated type ``expected``; ``path`` is the dotted key for messages."""
    origin = typing.get_origin(expected)
    if dataclasses.is_dataclass(expected):
        return _read_dataclass(expected, value, path)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (inner,) = (t for t in typing.get_args(expected) if t is not type(None))
        return _read(inner, value, path)
    if origin is Literal:
        choices = typing.get_args(expected)
        # YAML reads the bare words true and none as other types; both are names of reference variants.
        name = (
            {True: "true", None: "none"}.get(value, value) if not isinstance(value, (list, dict)) else value
        )
        if name not in choices:
            raise ConfigError(f"{path}: expected one of {', '.join(map(str, choices))}, got {value!r}")
        return name
    if origin is tuple:
        return _read_tuple(typing.get_args(expected), value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: expected a mapping, got {value!r}")
        item = typing.get_args(expected)[1]
        return {str(k): v if item is Any else _read(item, v, f"{path}.{k}") for k, v in value.items()}
    return _read_scalar(expected, value, path)


def _read_scalar(expected: type, value: Any, path: str) -> Any:
    if expected is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4, which has no dot, as text.
        with contextlib.suppress(ValueError):
            value = float(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, expected) or (expected is not bool and isinstance(value, bool)):
        hint = " (write it in quotes)" if expected is str and value is not None else ""
        raise ConfigError(f"{path}: expected {expected.__name__}, got {value!r}{hint}")
    if expected is float and not math.isfinite(value):
        raise ConfigError(f"{path}: expected a finite number, got {value}")
    return value


def _read_tuple(items: tuple, value: Any, path: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{path}: expected a list, got {value!r}")
    if items[-1] is Ellipsis:
        return tuple(_read(items[0], item, f"{path}.{i}") for i, item in enumerate(value))
    if len(value) != len(items):
        raise ConfigError(f"{path}: expected {len(items)} values, got {value!r}")
    return tuple(_read(t, item, f"{path}.{i}") for i, (t, item) in enumerate(zip(items, value, strict=True)))


def _read_dataclass(cls: type, value: Any, path: str) -> Any:
    prefix = f"{path}." if path else ""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path or 'file'}: expected a mapping of keys, got {value!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in value:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys are {', '.join(fields)}"
            raise ConfigError(f"{prefix}{key}: unknown key, {hint}")
    arguments = {}
    for name, spec in fields.items():
        if name in value:
            arguments[name] = _read(hints[name], value[name], prefix + name)
            least = spec.metadata.get("least")
            if least is not None and arguments[name] is not None and arguments[name] < least:
                raise ConfigError(f"{prefix}{name}: expected at least {least}, got {arguments[name]}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name}: missing, expected {_describe(hints[name])}")
    return cls(**arguments)


def _describe(expected: Any) -> str:
    if dataclasses.is_dataclass(expected):
        return "a mapping with " + ", ".join(f.name for f in dataclasses.fields(expected))
    return getattr(expected, "__name__", None) if isinstance(expected, type) else str(expected)


# ---------------------------------------------------------------------------------------------------------
# Uses
# ---------------------------------------------------------------------------------------------------------


def resolve_data_path(path: str, data_root: str | None) -> Path:
    """Where a path of a configuration lies.

    Args:
        path: absolute paths stay as they are; others are below the data root.
        data_root: the configuration's ``data_root``; ``None`` takes the environment variable ``TFCORR_DATA``.

    Returns:
        A path that need not exist (it may be a glob).

    Raises:
        ConfigError: ``path`` is relative and there is no data root.
    """
    expanded = Path(path).expanduser()
    if expanded.is_absolute():
        return expanded
    root = data_root or os.environ.get(DATA_ROOT_VARIABLE)
    if not root:
        raise ConfigError(
            f"{path}: relative to the data root, which is not set; give data_root=FOLDER or set "
            f"{DATA_ROOT_VARIABLE}"
        )
    return Path(root).expanduser() / expanded


def config_hash(config: Config, ignore: Sequence[str] = ()) -> str:
    """Twelve hexadecimal digits that change with any value of a configuration.

    Args:
        config: any stage.
        ignore: dotted keys that may differ, such as ``train.max_minutes``.
    """
    mapping = dataclasses.asdict(config)
    for key in ignore:
        *parents, last = key.split(".")
        node = mapping
        for part in parents:
            node = node[part]
        node.pop(last)
    text = json.dumps(mapping, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
