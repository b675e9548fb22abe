"""Plots of results as SVG, with matplotlib where it is installed (``pip install tfcorr[figures]``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfcorr.atomic import replacing

_COLOURS = ("#9aa0a6", "#1a73e8", "#e8710a", "#188038", "#9334e6", "#d93025", "#12b5cb", "#f9ab00")


def write_plot(path: Path, draw: Callable[[Any], None], *, columns: int = 1) -> str | None:
    """Draws on matplotlib axes and writes them as SVG, beside the target and renamed.

    Args:
        path: of the file.
        draw: takes one `matplotlib.axes.Axes`, or a list of ``columns`` of them.
        columns: axes beside each other.

    Returns:
        None, or a sentence if there is no plot because matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        return f"no plot {path.name}: matplotlib is not installed (pip install 'tfcorr[figures]')"
    # No pyplot: nothing global is touched, and no display is needed.
    figure = Figure(figsize=(1.5 + 5.5 * columns, 4.5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    draw(axes[0] if columns == 1 else list(axes))
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same result gives the same file.
    with replacing(path) as part, matplotlib.rc_context({"svg.hashsalt": "tfcorr"}):
        figure.savefig(part, format="svg", metadata={"Date": None})
    return None


def bars(axes: Any, result: dict) -> None:
    """PSNR of a benchmark: the gain over bicubic of each row, for the whole and each subset.

    Args:
        axes: `matplotlib.axes.Axes`.
        result: of `tfcorr.refsr.evaluation.evaluate`.
    """
    parts = {"all": result, **result["subsets"]}
    gains = [name for name in result["differences"] if name.endswith(" - bicubic")]
    for row, name in enumerate(gains):
        statistics = [part["differences"][name] for part in parts.values()]
        width = 0.8 / len(gains)
        places = [place + (row - (len(gains) - 1) / 2) * width for place in range(len(parts))]
        axes.bar(
            places,
            [statistic["mean"] for statistic in statistics],
            width,
            yerr=[statistic["error"] for statistic in statistics],
            label=name.removesuffix(" - bicubic"),
            color=_COLOURS[(row + 1) % len(_COLOURS)],
            capsize=2,
        )
    axes.set_xticks(range(len(parts)), [f"{name}\n({part['count']})" for name, part in parts.items()])
    axes.set_ylabel("PSNR-Y over bicubic, dB")
    _finish(axes)


def lines(axes: Any, series: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str) -> None:
    """One line for each of some series of (x, y) points."""
    for number, (name, points) in enumerate(series.items()):
        if not points:
            continue
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="o", label=name, color=_COLOURS[(number + 1) % len(_COLOURS)])
    axes.set_xticks(sorted({x for points in series.values() for x, _ in points}))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    _finish(axes)


def stacked_bars(axes: Any, parts: Mapping[str, Mapping[str, int]], ylabel: str) -> None:
    """A bar for each name, stacked from its parts."""
    names = list(dict.fromkeys(part for counts in parts.values() for part in counts))
    bottoms = [0.0] * len(parts)
    for number, part in enumerate(names):
        heights = [counts.get(part, 0) for counts in parts.values()]
        axes.bar(
            list(parts), heights, 0.6, bottom=bottoms, label=part, color=_COLOURS[number % len(_COLOURS)]
        )
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    axes.set_ylabel(ylabel)
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
