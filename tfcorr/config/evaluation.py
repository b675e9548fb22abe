"""Configurations of the measurements of super-resolution: benchmarks, robustness, ablation, model sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tfcorr.config.common import PhotoRule, at_least
from tfcorr.config.refsr import PairSource

#: What a model is given: the protocol's reference, a photo of something else, nothing (then the input is its
#: own reference), all references of an image at once, or one level of CUFED5.
ReferenceName = Literal["true", "unrelated", "none", "all", "level1", "level2", "level3", "level4", "level5"]


@dataclass(frozen=True)
class PublishedSet:
    """A published test set in its published layout, see `tfcorr.refsr.layouts`.

    ``choice`` says which of several references of an image is the ``true`` one, where the layout leaves it
    open (``sun80``); ``seed`` fixes what is drawn (``sun80``, ``manga109``).
    """

    layout: Literal["cufed5", "sun80", "manga109", "wr_sr", "images"]
    folder: str
    choice: Literal["random", "first"] = "random"
    seed: int = 0


@dataclass(frozen=True)
class EvaluateConfig:
    """A benchmark: images with references, models, and which references these are given.

    Exactly one of ``pairs`` and ``test_set`` says what is measured. ``models``, if given, stands in the place
    of ``model``; none of them means the default model. ``padding: published`` brings input and references to
    one size with zeros, as the published test code does. ``group_by`` are columns of the list whose values
    get means of their own; ``texture``, whether the third of the inputs with the highest mean gradient does.
    ``memory`` is in bytes, for the tiles of a model; ``registration`` is that of `tfcorr.SuperResolver`, by
    default what a model's card says. Beside ``output`` stand a table (``.md``), a plot (``.svg``) and the
    scores of single images; contact sheets go to the folder ``figures``.
    """

    COMMAND: ClassVar[str] = "evaluate"
    RUNNER: ClassVar[str] = "tfcorr.refsr.benchmark:run"

    stage: Literal["evaluate"]
    output: str
    model: str | None = None
    models: tuple[str, ...] = ()
    pairs: PairSource | None = None
    test_set: PublishedSet | None = None
    references: tuple[ReferenceName, ...] = ("true",)
    unrelated_path: str = "{unrelated}"
    padding: Literal["none", "published"] = "none"
    group_by: tuple[str, ...] = ()
    texture: bool = True
    border: int = at_least(0, 4)
    limit: int | None = at_least(1, None)
    memory: int | None = at_least(1, None)
    registration: bool | None = None
    figures: str | None = None
    data_root: str | None = None


@dataclass(frozen=True)
class RobustnessConfig:
    """Section 5.4: scaled and rotated versions of the inputs as references.

    ``matchers``: ``rgb``, ``sift``, ``efficientnet_lite0``, ``vgg16``, or models, compared by the error of
    their correspondences: of the job correspondence, or of the job super-resolution, which register the
    reference first if their cards say so; ``models``, of the job super-resolution, also by PSNR. ``scales``
    are factors, ``rotations`` degrees. Of each photo the middle square of ``crop`` pixels is taken.
    ``threshold`` is in pixels of the reference. ``weights`` holds the files of ``efficientnet_lite0`` and
    ``vgg16`` (there also ``imagenet``), and is read for matchers that are asked for.
    """

    COMMAND: ClassVar[str] = "evaluate"
    RUNNER: ClassVar[str] = "tfcorr.refsr.robustness:run"

    stage: Literal["robustness"]
    output: str
    images: tuple[str, ...]
    scales: tuple[float, ...]
    rotations: tuple[float, ...]
    only: tuple[PhotoRule, ...] = ()
    matchers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    crop: int = at_least(64, 320)
    threshold: float = 8.0
    limit: int | None = at_least(1, None)
    memory: int | None = at_least(1, None)
    weights: dict[str, str] = field(default_factory=dict)
    data_root: str | None = None


@dataclass(frozen=True)
class AblationStep:
    """One row of the ablation: a model that has one part more than the row above.

    ``paper_gain`` is the paper's increment in dB over the row above, ``paper_texture_gain`` that on its
    texture subset.
    """

    label: str
    model: str
    paper_gain: float | None = None
    paper_texture_gain: float | None = None


@dataclass(frozen=True)
class AblationConfig:
    """Section 5.3: models with one part more each, on the same pairs, whole and on the texture subset."""

    COMMAND: ClassVar[str] = "evaluate"
    RUNNER: ClassVar[str] = "tfcorr.refsr.ablation:run"

    stage: Literal["ablation"]
    output: str
    steps: tuple[AblationStep, ...]
    pairs: PairSource | None = None
    test_set: PublishedSet | None = None
    padding: Literal["none", "published"] = "none"
    border: int = at_least(0, 4)
    limit: int | None = at_least(1, None)
    memory: int | None = at_least(1, None)
    figures: str | None = None
    data_root: str | None = None


@dataclass(frozen=True)
class ModelSizesConfig:
    """Table 4: parameters of networks, by part. ``presets`` are names of `tfcorr.refsr.restorer.PRESETS`,
    ``models`` trained ones."""

    COMMAND: ClassVar[str] = "evaluate"
    RUNNER: ClassVar[str] = "tfcorr.refsr.sizes:run"

    stage: Literal["model_sizes"]
    output: str
    presets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


STAGES: dict[str, type] = {
    "evaluate": EvaluateConfig,
    "robustness": RobustnessConfig,
    "ablation": AblationConfig,
    "model_sizes": ModelSizesConfig,
}
