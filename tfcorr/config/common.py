"""What the configurations of both methods share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


def at_least(least: float, default: Any = dataclasses.MISSING) -> Any:
    """A field whose value may not be smaller; without a default it has to be given."""
    return field(default=default, metadata={"least": least})


@dataclass(frozen=True)
class PhotoRule:
    """Photos of one scene (a folder); without ``photos`` (file names without their ending), all of them."""

    scene: str
    photos: tuple[str, ...] = ()


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
    path. ``distribute`` divides each batch: ``mirrored`` among ``devices`` of this machine (all GPUs; without
    one, that many parts of the CPU), ``workers`` among the machines that ``TF_CONFIG`` names.
    ``profile_steps`` steps are profiled for TensorBoard, once a run; its images come every ``images_every``
    steps (0 for never) and at the end."""

    steps: int = at_least(1)
    batch: int = at_least(1)
    learning_rate: LearningRate = field()
    seed: int = 10
    multipliers: dict[str, float] = field(default_factory=dict)
    ema: float | None = None
    clip_norm: float | None = None
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    max_minutes: float | None = None
    log_every: int = at_least(1, 20)
    checkpoint_every: int = at_least(1, 200)
    images_every: int = at_least(0, 1000)
    profile_steps: int = at_least(0, 2)
    max_offset: float = 100.0
    workers: int = at_least(1, 2)
    threads: int | None = at_least(1, None)
    distribute: Literal["none", "mirrored", "workers"] = "none"
    devices: int | None = at_least(1, None)


@dataclass(frozen=True, kw_only=True)
class TrainingStage:
    """What each stage of training has. ``name`` is the model's, ``output`` the folder that it is written to,
    ``run`` that of checkpoints and logs; relative paths of data are below ``data_root``.
    ``licence``, of the weights, and ``data_licences`` are for the model's card. ``half_weights`` writes the
    weights of the model as float16."""

    COMMAND: ClassVar[str] = "train"

    stage: str
    name: str
    output: str
    run: str
    data_root: str | None = None
    licence: str = "research use"
    data_licences: dict[str, str] = field(default_factory=dict)
    half_weights: bool = False
