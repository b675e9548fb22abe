"""The ablation of section 5.3: the same pairs with one part of the method more in each row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tfcorr.config import AblationConfig, ConfigError
from tfcorr.refsr.benchmark import find_contenders, protocol, setting
from tfcorr.refsr.evaluation import Contender, Statistic, evaluate, row_labels
from tfcorr.refsr.figures import ContactSheets
from tfcorr.refsr.layouts import TRUE, find_cases
from tfcorr.refsr.plots import bars, write_plot
from tfcorr.refsr.reports import markdown_table, mean, text_table, write_report

_HEADER = ["", "PSNR-Y", "gain", "paper", "texture: PSNR-Y", "gain", "paper"]


def run(config: AblationConfig, report: Callable[[str], None] = print) -> tuple[dict, str]:
    """Measures the rows of the ablation with the references of the pairs.

    Returns:
        What is written to ``output``: the result of `tfcorr.refsr.evaluation.evaluate`, with ``steps``, the
        gain of each row over the one above, paired, in dB, on all images and on the texture subset, beside
        the paper's; and the table as text.

    Raises:
        TfcorrError: no steps, or a model or the images cannot be used.
    """
    if not config.steps:
        raise ConfigError("steps: expected at least one")
    cases = find_cases(config.pairs, config.test_set, config.data_root, limit=config.limit)
    output = Path(config.output)
    names = [step.model for step in config.steps]
    found, models = find_contenders(names, (TRUE,), output, setting(config), config.memory)
    contenders = [
        Contender(step.label, contender.upscaler, contender.references, contender.cache)
        for step, contender in zip(config.steps, found, strict=True)
    ]
    result = evaluate(
        contenders,
        cases,
        border=config.border,
        padding=config.padding,
        texture=True,
        figures=ContactSheets(config.figures) if config.figures else None,
        progress=report,
    )
    steps = _steps(config, contenders, result)
    result = {"models": models, "protocol": protocol(config, cases, (TRUE,)), "steps": steps, **result}
    rows = _rows(steps)
    write_report(output, result, markdown_table(_HEADER, rows))
    note = write_plot(output.with_suffix(".svg"), lambda axes: bars(axes, result))
    return result, "\n".join(filter(None, [text_table(_HEADER, rows), note]))


def _steps(config: AblationConfig, contenders: list[Contender], result: dict) -> list[dict]:
    """For each row its means, and its gains over the row above."""
    labels = list(row_labels(contenders).values())
    texture = set(result["texture"])
    steps = []
    for number, step in enumerate(config.steps):
        entry = {
            "label": step.label,
            "paper_gain": step.paper_gain,
            "paper_texture_gain": step.paper_texture_gain,
        }
        for subset, part in (("all", result), ("texture", result["subsets"]["texture"])):
            entry[subset] = part["summary"][labels[number]]["psnr_y"]
            if number:
                rows = result["images"] if subset == "all" else _textured(result["images"], texture)
                gains = (row[labels[number]]["psnr_y"] - row[labels[number - 1]]["psnr_y"] for row in rows)
                entry[f"{subset} gain"] = vars(Statistic.of(gains))
        steps.append(entry)
    return steps


def _textured(images: list[dict], texture: set[str]) -> list[dict]:
    return [row for row in images if row["input"] in texture]


def _rows(steps: list[dict]) -> list[list[str]]:
    rows = []
    for step in steps:
        row = [step["label"]]
        for subset, paper in (("all", step["paper_gain"]), ("texture", step["paper_texture_gain"])):
            gain = step.get(f"{subset} gain")
            row += [
                mean(step[subset], 3),
                mean(gain, 3, sign=True) if gain else "",
                "" if paper is None else f"{paper:+.2f}",
            ]
        rows.append(row)
    return rows
