"""From a configuration to a benchmark's result: `stage: evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tfcorr
from tfcorr.config import AblationConfig, EvaluateConfig
from tfcorr.errors import TfcorrError
from tfcorr.pretrained import SINGLE_IMAGE, SUPER_RESOLUTION, WEIGHTS_FILE, ModelCard, find_model, verify
from tfcorr.refsr import SCALE
from tfcorr.refsr.evaluation import Contender, ScoreCache, evaluate
from tfcorr.refsr.figures import ContactSheets
from tfcorr.refsr.layouts import NONE, Case, find_cases, list_digest
from tfcorr.refsr.plots import bars, write_plot
from tfcorr.refsr.reports import benchmark_markdown, benchmark_table, write_report
from tfcorr.refsr.sizes import parameter_count

# Bytes for the descriptors of inputs that are matched with one reference after the other.
_INPUTS = 10**9


def run(config: EvaluateConfig, report: Callable[[str], None] = print) -> tuple[dict, str]:
    """Evaluates the models that a configuration names.

    Returns:
        What is written to ``output``: the result of `tfcorr.refsr.evaluation.evaluate` with ``models``
        (checksum and parameters of each) and ``protocol`` (list, border, padding, memory, version); and the
        table as text. The same as Markdown and a plot stand beside ``output``.

    Raises:
        TfcorrError: a model or the images cannot be used.
    """
    cases = find_cases(
        config.pairs,
        config.test_set,
        config.data_root,
        unrelated_path=config.unrelated_path,
        limit=config.limit,
    )
    output = Path(config.output)
    names = config.models or (config.model,)
    contenders, models = find_contenders(
        names, config.references, output, setting(config), config.memory, config.registration
    )
    result = evaluate(
        contenders,
        cases,
        border=config.border,
        padding=config.padding,
        group_by=config.group_by,
        texture=config.texture,
        figures=ContactSheets(config.figures) if config.figures else None,
        progress=report,
    )
    result = {"models": models, "protocol": protocol(config, cases, config.references), **result}
    write_report(output, result, benchmark_markdown(result))
    note = write_plot(output.with_suffix(".svg"), lambda axes: bars(axes, result))
    return result, "\n".join(filter(None, [benchmark_table(result), note]))


def protocol(
    config: EvaluateConfig | AblationConfig, cases: Sequence[Case], references: Sequence[str]
) -> dict[str, Any]:
    """What a result belongs to, for its JSON: how and on which images it was measured."""
    return {
        "scale": SCALE,
        "border": config.border,
        "padding": config.padding,
        # With less memory, references are reduced, and scores fall.
        "memory": config.memory,
        "list": list_digest(cases, references),
        "tfcorr": tfcorr.__version__,
    }


def setting(config: EvaluateConfig | AblationConfig) -> str:
    """What the scores of an image depend on beside the model and the references, as a text."""
    padding = "" if config.padding == "none" else f"-{config.padding}"
    return f"{config.border}-{config.memory}-{tfcorr.__version__}{padding}"


def find_contenders(
    names: Sequence[str | None],
    references: tuple[str, ...],
    output: Path,
    setting: str,
    memory: int | None,
    registration: bool | None = None,
) -> tuple[list[Contender], dict[str, dict[str, Any]]]:
    """Loads models for an evaluation.

    Args:
        names: models by name or folder; None is the default one. Single-image models are measured once,
            without references.
        references: what the others are given.
        output: of the result; scores of single images are kept beside it.
        setting: changes with what scores depend on beside the model.
        memory: bytes for the tiles of a model; None leaves it to the model.
        registration: see `tfcorr.SuperResolver`; None leaves it to the card.

    Returns:
        The contenders, and for each name its checksum and its parameters.

    Raises:
        TfcorrError: a model is not there, is damaged, or of another kind.
    """
    contenders, models = [], {}
    for name in names:
        card = _card(name)
        checksum = card.checksums[WEIGHTS_FILE]
        upscaler = load_upscaler(card, memory, registration)
        registered = "-registered" if getattr(upscaler, "registration", False) else ""
        title = _title(card, [contender.name for contender in contenders])
        contenders.append(
            Contender(
                title,
                upscaler,
                references if card.job == SUPER_RESOLUTION else (NONE,),
                ScoreCache(output.with_suffix(".cache.jsonl"), f"{checksum[:16]}-{setting}{registered}"),
            )
        )
        models[title] = {"sha256": checksum, "parameters": parameter_count(upscaler.model)}
    return contenders, models


def load_upscaler(card: ModelCard, memory: int | None, registration: bool | None = None) -> Any:
    """What upscales with the model of a card: `SuperResolver`, or the single-image yardstick."""
    if card.job == SUPER_RESOLUTION:
        from tfcorr.refsr.memory import available_memory
        from tfcorr.refsr.predictor import SuperResolver

        resolver = SuperResolver.from_pretrained(card.folder, memory=memory, registration=registration)
        resolver.remember_inputs(min(_INPUTS, available_memory() // 4))
        return resolver
    from tfcorr.refsr.single_image_resolver import SingleImageResolver

    return SingleImageResolver.from_pretrained(card.folder, memory=memory)


def _card(name: str | None) -> ModelCard:
    try:
        card = find_model(name)
    except TfcorrError as error:
        try:
            card = find_model(name, job=SINGLE_IMAGE)
        except TfcorrError:
            raise error from None
    verify(card)
    return card


def _title(card: ModelCard, taken: Sequence[str]) -> str:
    """The model's name; with its folder where two models have one name."""
    return card.name if card.name not in taken else f"{card.name} ({card.folder})"
