"""Configurations of the benchmarks of super-resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tfcorr.config.refsr import PairSource


@dataclass(frozen=True)
class EvaluateConfig:
    """A benchmark: pairs, a model, and which references it is given; ``memory`` is in bytes, for its
    tiles."""

    COMMAND: ClassVar[str] = "evaluate"
    RUNNER: ClassVar[str] = "tfcorr.refsr.evaluation:benchmark"

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


STAGES: dict[str, type] = {"evaluate": EvaluateConfig}
