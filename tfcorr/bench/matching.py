"""`tfcorr bench matching`: the search from coarse to fine beside the exact one, on large images."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tfcorr.bench import children, reports
from tfcorr.toolchain import usable_cores

# Height and width of the large images in pixels.
FULL_SIZE = (1500, 2000)
QUICK_SIZE = (240, 320)


def run(
    *,
    inputs: Sequence[Path] = (),
    references: Sequence[Path] = (),
    size: tuple[int, int] | None = None,
    doublings: int = 0,
    model: str = "matcher-cpu",
    sampled: int = 2000,
    exact: bool = False,
    repeats: int | None = None,
    threads: int | None = None,
    quick: bool = False,
    memory: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures how long the search takes, and how many of its matches are those of the exact search.

    The input is a photograph of the given size, reduced by 4, whose descriptors are computed as for an
    upscaling; the reference is another of that size. A photograph is put together of all that are given,
    which are cut to the size of the smallest and repeated until they fill it; the references are one place
    further in it than the inputs. Without photographs a random texture is matched with itself after a warp.

    Args:
        inputs, references: photographs; each input is matched with the reference of its number.
        size: (height, width) in pixels; `FULL_SIZE` by default, `QUICK_SIZE` with `quick`.
        doublings: how many smaller sizes are measured before it, each with half the pixels of the next.
        model: whose matcher computes the descriptors, of either job.
        sampled: patches of the input, drawn at random, whose exact matches are looked up.
        exact: time the exact search of all patches too.
        repeats: timed rounds; 1 by default.
        threads: threads to use; by default as many as this process may run on.
        quick: a small size, to see that everything works.
        memory: measure the extra memory, too, in a process of its own.
        progress: called with a line of text before each measurement.

    Returns:
        As `tfcorr.bench.ops.run`. A row: `size` (height, width), `pairs` (of patches), `median_s`,
        `fastest_s`, `times_s` (index and search together), `index_s`, `exact_s` (None if it was not timed),
        `equal` and `within_one` (shares of the sampled patches with the very match, and with one at most a
        cell away on both axes), `score_lost` (mean), and with `memory` `extra_bytes`.

    Raises:
        ValueError: an argument is out of its range, or there are other numbers of inputs and references.
        TfcorrError: no such model or photograph, or a measuring process failed.
    """
    from tfcorr.bench.pipeline import doubling_sizes

    repeats = 1 if repeats is None else repeats
    threads = usable_cores() if threads is None else threads
    size = (QUICK_SIZE if quick else FULL_SIZE) if size is None else size
    for name, value, least in (
        ("repeats", repeats, 1),
        ("threads", threads, 1),
        ("doublings", doublings, 0),
        ("sampled", sampled, 1),
        ("the images' smaller side", min(size), 64),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if len(inputs) != len(references):
        raise ValueError(f"expected as many references as inputs, got {len(references)} and {len(inputs)}")
    rows, gemm, measured = [], [], {}
    for height, width in doubling_sizes(*size, doublings):
        progress(f"{width}x{height}")
        job = {
            "kind": "matching",
            "inputs": [str(path) for path in inputs],
            "references": [str(path) for path in references],
            "size": [height // 4 * 4, width // 4 * 4],
            "model": model,
            "threads": threads,
        }
        measured = children.measure(
            {**job, "measure": "times", "repeats": repeats, "sampled": sampled, "exact": exact}
        )
        gemm += measured.pop("gemm_gflops")
        times = measured["times_s"]
        row = {"size": job["size"], "median_s": statistics.median(times), "fastest_s": min(times)}
        row |= {name: value for name, value in measured.items() if name != "versions"}
        if memory:
            progress(f"{width}x{height}: memory")
            row |= children.measure({**job, "measure": "memory"})
        rows.append(row)
    return {
        "machine": reports.machine(measured["versions"]["tensorflow"]),
        "settings": {"repeats": repeats, "threads": threads, "quick": quick, "sampled": sampled},
        "gemm_gflops": statistics.median(gemm),
        "rows": rows,
        "notes": [] if exact else ["the exact search of all patches (--exact)"],
    }


def format_table(result: dict[str, Any]) -> str:
    """Returns what `run` measured as text."""
    lines = [*reports.heading(result), f"{result['settings']['sampled']} patches looked up exactly", ""]
    header = (
        "images",
        "coarse to fine",
        "of it index",
        "exact",
        "equal",
        "within 1",
        "score lost",
        "extra memory",
    )
    rows = [
        (
            f"{row['size'][1]}x{row['size'][0]}",
            reports.seconds(row["median_s"]),
            reports.seconds(row["index_s"]),
            "" if row["exact_s"] is None else reports.seconds(row["exact_s"]),
            f"{row['equal']:.1%}",
            f"{row['within_one']:.1%}",
            f"{row['score_lost']:.1e}",
            reports.mebibytes(row, "extra_bytes"),
        )
        for row in result["rows"]
    ]
    lines += reports.align([header, *rows], left=1)
    lines += [
        "",
        "images: width x height of the enlarged input and of the reference. of it index: what is done once",
        "for a reference. equal, within 1: shares of random patches whose match is the exact one, or at most",
        "one cell (4 pixels) from it. score lost: mean over these patches. extra memory: growth of the peak",
        "resident memory, less the result.",
    ]
    lines += [f"left out: {note}" for note in result["notes"]]
    return "\n".join(lines)


def point(row: dict[str, Any]) -> tuple[str, float, float] | None:
    """A row's place in the plot of cost against size, see `tfcorr.bench.reports.plot_costs`."""
    return "coarse to fine", row["size"][0] * row["size"][1], row["median_s"]
