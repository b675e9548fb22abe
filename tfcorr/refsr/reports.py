"""Results as files and tables: JSON and Markdown beside each other, whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tfcorr.atomic import write_text
from tfcorr.refsr.evaluation import BICUBIC

_TITLES = {"psnr_y": "PSNR-Y", "ssim_y": "SSIM-Y"}


def write_report(output: Path, result: dict, markdown: str) -> None:
    """Writes a result as JSON to ``output`` and its table beside it, ending in ``.md``."""
    write_text(output, json.dumps(result, indent=2) + "\n")
    write_text(output.with_suffix(".md"), markdown)


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as plain text: the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, rule, *rows])


def mean(statistic: Mapping[str, float], digits: int, *, sign: bool = False) -> str:
    """``31.154 ± 0.312`` out of a `tfcorr.refsr.evaluation.Statistic` as a dictionary."""
    form = f"{'+' if sign else ''}.{digits}f"
    return f"{statistic['mean']:{form}} ± {statistic['error']:.{digits}f}"


def counted(count: int) -> str:
    """``1 image``, ``2 images``."""
    return f"{count} image" if count == 1 else f"{count} images"


def benchmark_table(result: dict) -> str:
    """The result of `tfcorr.refsr.evaluation.evaluate` as lines of text."""
    blocks = []
    for title, part in _parts(result):
        blocks += [title, text_table(*_quality(part)), ""]
    blocks += ["paired differences of PSNR-Y, dB", text_table(*_differences(result)), ""]
    return "\n".join(blocks) + "mean ± standard error"


def benchmark_markdown(result: dict) -> str:
    """The result of `tfcorr.refsr.evaluation.evaluate`, with its ``protocol``, as a Markdown document."""
    blocks = [f"**{title}**\n\n{markdown_table(*_quality(part))}" for title, part in _parts(result)]
    differences = markdown_table(*_differences(result))
    blocks.append(f"**Paired differences of PSNR-Y, dB, by subset**\n\n{differences}")
    if "models" in result:
        rows = [
            [name, f"{model['parameters']['total']:,}", model["sha256"][:12]]
            for name, model in result["models"].items()
        ]
        blocks.append(markdown_table(["model", "parameters", "SHA-256"], rows))
    protocol = ", ".join(f"{key} {value}" for key, value in result.get("protocol", {}).items())
    blocks.append(f"Mean ± standard error. Protocol: {protocol}.\n")
    return "\n".join(blocks)


def _parts(result: dict) -> list[tuple[str, dict]]:
    """The whole and the subsets, each with a title."""
    parts = {"all": result, **result.get("subsets", {})}
    return [(f"{name}, {counted(part['count'])}", part) for name, part in parts.items()]


def _quality(part: dict) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            name if name == BICUBIC or ": " in name else f"reference: {name}",
            mean(statistics["psnr_y"], 3),
            mean(statistics["ssim_y"], 4),
        ]
        for name, statistics in part["summary"].items()
    ]
    return ["", *_TITLES.values()], rows


def _differences(result: dict) -> tuple[list[str], list[list[str]]]:
    """A column for the whole and each subset, a row for each difference."""
    parts = {"all": result, **result.get("subsets", {})}
    rows = [
        [name, *(mean(part["differences"][name], 3, sign=True) for part in parts.values())]
        for name in result["differences"]
    ]
    return ["", *parts], rows
