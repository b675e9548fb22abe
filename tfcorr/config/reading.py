"""From YAML to dataclasses: unknown keys and wrong types are refused with the path of the key."""

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
from pathlib import Path
from typing import Any, Literal

import yaml

from tfcorr.errors import TfcorrError

DATA_ROOT_VARIABLE = "TFCORR_DATA"
MAX_BYTES = 1 << 20
"""Of a configuration; those that ship have a few thousand."""
MAX_NODES = 20_000


class ConfigError(TfcorrError):
    """A configuration that cannot be used; the message begins with the file and the key."""


class _Loader(yaml.SafeLoader):
    """The safe loader of YAML, which makes plain values only, and takes no key twice."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    told = f"the key {shown(key.value)} is there twice"
                    raise yaml.composer.ComposerError(None, None, told, key.start_mark)
                seen.add(key.value)
        return node


def load_yaml(text: str) -> Any:
    """The value of a YAML text, made of dictionaries, lists and scalars.

    Args:
        text: one document.

    Raises:
        ConfigError: no YAML, a tag that stands for anything but a plain value, a key twice, nested too
            deeply, or more than `MAX_NODES` values with what its aliases repeat.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _expanded(node, {}) > MAX_NODES:
                raise ConfigError(f"its aliases stand for more than {MAX_NODES} values")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ConfigError("nested too deeply") from None
    except ValueError as error:  # a date that is none, a number of thousands of digits
        raise ConfigError(str(error)) from error


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for when its aliases are written out; many where it holds itself."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1
        parts = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]


def shown(value: Any, most: int = 80) -> str:
    """A value as an error message repeats it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def apply_overrides(mapping: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of ``mapping`` with each ``key=value`` set; raises `ConfigError` for a word without ``=``."""
    result = _unshared(mapping)
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r}: expected key=value")
        try:
            value = load_yaml(text) if text else ""
        except ConfigError as error:
            raise ConfigError(f"{key}: {shown(text)} is not YAML: {error}") from error
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
            raise ConfigError(f"{key}: {where} is {shown(node)}, which has no keys")
        if depth == len(parts) - 1:
            node[part] = value
        else:
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = {}
            node = node[part]


def read(expected: Any, value: Any, path: str) -> Any:
    """``value`` as the annotated type ``expected``; ``path`` is the dotted key for messages."""
    origin = typing.get_origin(expected)
    if dataclasses.is_dataclass(expected):
        return _read_dataclass(expected, value, path)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (inner,) = (t for t in typing.get_args(expected) if t is not type(None))
        return read(inner, value, path)
    if origin is Literal:
        choices = typing.get_args(expected)
        # YAML reads the bare words true and none as other types; both are names of reference variants.
        name = (
            {True: "true", None: "none"}.get(value, value) if not isinstance(value, (list, dict)) else value
        )
        if name not in choices:
            raise ConfigError(f"{path}: expected one of {', '.join(map(str, choices))}, got {shown(value)}")
        return name
    if origin is tuple:
        return _read_tuple(typing.get_args(expected), value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: expected a mapping, got {shown(value)}")
        item = typing.get_args(expected)[1]
        return {str(k): v if item is Any else read(item, v, f"{path}.{k}") for k, v in value.items()}
    return _read_scalar(expected, value, path)


def _read_scalar(expected: type, value: Any, path: str) -> Any:
    if expected is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4, which has no dot, as text.
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{path}: expected a number of at most 64 bits, got {shown(value)}")
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, expected) or (expected is not bool and isinstance(value, bool)):
        hint = " (write it in quotes)" if expected is str and value is not None else ""
        raise ConfigError(f"{path}: expected {expected.__name__}, got {shown(value)}{hint}")
    if expected is float and not math.isfinite(value):
        raise ConfigError(f"{path}: expected a finite number, got {value}")
    return value


def _read_tuple(items: tuple, value: Any, path: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{path}: expected a list, got {shown(value)}")
    if items[-1] is Ellipsis:
        return tuple(read(items[0], item, f"{path}.{i}") for i, item in enumerate(value))
    if len(value) != len(items):
        raise ConfigError(f"{path}: expected {len(items)} values, got {shown(value)}")
    return tuple(read(t, item, f"{path}.{i}") for i, (t, item) in enumerate(zip(items, value, strict=True)))


def _read_dataclass(cls: type, value: Any, path: str) -> Any:
    prefix = f"{path}." if path else ""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path or 'file'}: expected a mapping of keys, got {shown(value)}")
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
            arguments[name] = read(hints[name], value[name], prefix + name)
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


def config_hash(config: Any, ignore: Sequence[str] = ()) -> str:
    """Twelve hexadecimal digits that change with the values of a configuration.

    Only what differs from its default counts: a key that a later version adds leaves the digits of older
    files as they were, so that their runs can go on.

    Args:
        config: any stage.
        ignore: dotted keys that may differ, such as ``train.max_minutes``; those it does not have are passed
            over.
    """
    mapping = _changed(config)
    for key in ignore:
        *parents, last = key.split(".")
        node = mapping
        for part in parents:
            node = node.get(part, {})
        node.pop(last, None)
    text = json.dumps(mapping, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _changed(value: Any) -> Any:
    """A value as JSON holds it; of a dataclass, only the fields that differ from their defaults."""
    if isinstance(value, Mapping):
        return {str(key): _changed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_changed(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    changed = {}
    for spec in dataclasses.fields(value):
        item, default = getattr(value, spec.name), spec.default
        if spec.default_factory is not dataclasses.MISSING:
            default = spec.default_factory()
        if default is dataclasses.MISSING or item != default:
            changed[spec.name] = _changed(item)
    return changed
