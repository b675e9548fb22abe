"""Model sizes (paper, supplement C, table 4): parameters of networks, by part."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcorr.config import ConfigError, ModelSizesConfig
from tfcorr.refsr.plots import stacked_bars, write_plot
from tfcorr.refsr.reports import markdown_table, text_table, write_report

if TYPE_CHECKING:
    import keras

#: Table 4 of the paper, in millions: the restoration network alone, without the extractors.
PAPER = {"full": 8.9, "light": 4.8}
MATCHER, REFERENCE_FEATURES, RESTORER = "matcher", "reference features", "restorer"


def parameter_count(model: keras.Model) -> dict[str, int]:
    """Parameters of a built model by its networks.

    Returns:
        Of `tfcorr.refsr.model.C2Matching`: ``restorer`` (what table 4 of the paper counts), ``matcher``,
        ``reference features`` where they have a network of their own, and ``total``; of any other model
        ``total``.
    """
    parts = {
        RESTORER: getattr(model, "restorer", None),
        MATCHER: getattr(model, "correspondence", None),
        REFERENCE_FEATURES: getattr(model, "vgg", None),
    }
    counts = {name: _size(network.weights) for name, network in parts.items() if network is not None}
    return {**counts, "total": _size(model.weights)}


def restorer_parts(restorer: keras.Model) -> dict[str, int]:
    """Parameters of a built restoration network by its direct parts (levels, heads, bodies, tails)."""
    parts: dict[str, int] = {}
    for weight in restorer.weights:
        part = _part(weight.path, restorer.name)
        parts[part] = parts.get(part, 0) + _size([weight])
    return parts


def run(config: ModelSizesConfig, report: Callable[[str], None] = print) -> tuple[dict, str]:
    """Counts the parameters of what a configuration names, beside table 4.

    Returns:
        What is written to ``output``: ``networks``, by name ``parameters`` (`parameter_count`), ``restorer``
        (`restorer_parts`) and the ``paper``'s millions; and the table as text.

    Raises:
        TfcorrError: a model is not there.
    """
    from tfcorr.pretrained import load_super_resolution
    from tfcorr.refsr.model import C2Matching
    from tfcorr.refsr.restorer import PRESETS

    networks: dict[str, dict[str, Any]] = {}
    for name in config.presets:
        if name not in PRESETS:
            raise ConfigError(f"presets: expected {', '.join(PRESETS)}, got {name!r}")
        networks[name] = _counted(C2Matching.from_architecture({"restorer": name}), PAPER.get(name))
    for name in config.models:
        model, card = load_super_resolution(name)
        networks[card.name] = _counted(model, None)
    if not networks:
        raise ConfigError("expected presets or models")
    result = {"networks": networks, "skipped": {}}
    header, rows = _rows(networks)
    output = Path(config.output)
    write_report(output, result, markdown_table(header, rows))
    parts = {name: network["restorer"] for name, network in networks.items()}
    note = write_plot(
        output.with_suffix(".svg"), lambda axes: stacked_bars(axes, parts, "parameters of the restorer")
    )
    return result, "\n".join(filter(None, [text_table(header, rows), note]))


def _counted(model: keras.Model, paper: float | None) -> dict[str, Any]:
    return {
        "parameters": parameter_count(model),
        "restorer": restorer_parts(model.restorer),
        "paper": paper,
    }


def _rows(networks: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    header = ["network", "restorer", "paper, table 4", "matcher", "total"]
    rows = []
    for name, network in networks.items():
        counts, paper = network["parameters"], network["paper"]
        rows.append(
            [
                name,
                f"{counts[RESTORER]:,}",
                "" if paper is None else f"{paper}M",
                f"{counts[MATCHER]:,}",
                f"{counts['total']:,}",
            ]
        )
    return header, rows


def _size(weights: list) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def _part(path: str, network: str) -> str:
    """The direct part of a network that a weight's path leads through."""
    names = path.split("/")
    below = names[names.index(network) + 1 :] if network in names else names
    # Numbered layers of one kind count together.
    return re.sub(r"_?\d+$", "", below[0])
