"""What all benchmarks print and write: the machine, tables, and the plot of cost against size."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tfcorr

# A row of a result as (series, size, cost); None leaves it out of the plot.
Point = Callable[[dict[str, Any]], tuple[str, float, float] | None]


def machine(tensorflow: str) -> dict[str, str]:
    """Processor, system and versions, for a result."""
    return {
        "processor": _processor(),
        "system": platform.platform(),
        "tensorflow": tensorflow,
        "tfcorr": tfcorr.__version__,
    }


def heading(result: dict[str, Any]) -> list[str]:
    """The first lines of every table."""
    found, settings = result["machine"], result["settings"]
    return [
        f"{found['processor']}, {settings['threads']} threads, TensorFlow {found['tensorflow']}, "
        f"tfcorr {found['tfcorr']}",
        f"medians of {settings['repeats']} interleaved rounds; float32 matrix product "
        f"{result['gemm_gflops']:.0f} GFLOP/s",
    ]


def align(rows: Sequence[Sequence[str]], *, left: int = 2) -> list[str]:
    """Pads columns to one width: the first `left` to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]


def without_repeated_first(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The rows with the first cell empty where it is that of the row above."""
    previous = [None, *(cells[0] for cells in rows)]
    return [
        ("" if cells[0] == before else cells[0], *cells[1:])
        for cells, before in zip(rows, previous, strict=False)
    ]


def seconds(value: float) -> str:
    """A duration with a unit that fits."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def mebibytes(row: dict[str, Any], key: str) -> str:
    """A number of bytes, or nothing where it was not measured."""
    return f"{row[key] / 2**20:.1f} MiB" if row.get(key) is not None else ""


def share(value: float | None) -> str:
    """A share in per cent, or nothing."""
    return "" if value is None else f"{value:.0%}"


def plot_costs(path: Path, rows: Sequence[dict[str, Any]], point: Point, size: str, cost: str) -> str | None:
    """Draws cost against size, both logarithmic, a line for each series.

    Args:
        path: of the SVG.
        rows: of a result.
        point: takes a row to its place in the plot.
        size, cost: what the axes are called.

    Returns:
        None, or a sentence if there is no plot because matplotlib is not installed.
    """
    from tfcorr.refsr.plots import lines, write_plot

    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if (place := point(row)) is not None:
            name, x, y = place
            series.setdefault(name, []).append((x, y))

    def draw(axes: Any) -> None:
        lines(axes, {name: sorted(points) for name, points in series.items()}, size, cost)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")

    return write_plot(path, draw)


def _processor() -> str:
    try:
        found = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        found = []
    names = (line.split(":", 1)[1].strip() for line in found if line.startswith("model name"))
    return next(names, None) or platform.processor() or platform.machine()
