"""Configurations of the training stages of C2-Matching."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tfcorr.config.common import PhotoRule, Training, at_least


@dataclass(frozen=True)
class PairSource:
    """(input, reference) pairs: a CSV, or two folders with equal file names (the layout of CUFED).

    ``input_path`` and ``reference_path`` make a path from the columns of a row, for example
    ``albums/{scene}/{input}``. Columns ``x, y`` and ``ref_x, ref_y``, where a CSV has them, are the top-left
    corners of a patch of ``patch`` pixels in the two photos; without them the whole photo is the patch.
    """

    csv: str | None = None
    input_path: str = "{input}"
    reference_path: str = "{reference}"
    input_dir: str | None = None
    reference_dir: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class HomographySampling:
    """How the reference of a matcher sample is warped (section 3.5).

    ``published`` moves the corners of a square somewhere at or beyond the centre of the image, each
    coordinate by up to ``jitter`` pixels; what lies outside of the crop is black. ``wide`` is centred on
    the crop: a rotation within +-``rotation`` degrees, a scale within ``scale``, a shift within +-``shift``
    and corners moved by up to ``perspective`` (both shares of the side); what lies outside of the crop
    comes from the photo.
    """

    kind: Literal["published", "wide"] = "wide"
    jitter: int = 9
    rotation: float = 45.0
    scale: tuple[float, float] = (0.6, 1.6)
    perspective: float = 0.1
    shift: float = 0.1


@dataclass(frozen=True)
class Photometric:
    """Photometric changes of the reference side; each is drawn with ``probability`` and up to its
    strength."""

    probability: float = 0.0
    brightness: float = 0.1
    contrast: float = 0.2
    gamma: float = 0.3
    colour: float = 0.1
    blur: float = 1.0
    noise: float = 0.02


@dataclass(frozen=True)
class MatcherData:
    """Single images for the correspondence network: folders or globs under the data root."""

    images: tuple[str, ...]
    exclude: tuple[PhotoRule, ...] = ()
    crop: int = 160
    homography: HomographySampling = HomographySampling()
    photometric: Photometric = Photometric()


@dataclass(frozen=True)
class SingleImages:
    """Single images that are mixed into the pairs: the reference is a warped copy, or another image."""

    images: tuple[str, ...]
    probability: float
    unrelated: float = 0.0
    homography: HomographySampling = HomographySampling()
    photometric: Photometric = Photometric()


@dataclass(frozen=True)
class RestorerData:
    """Pairs for the restoration network. ``crop`` is the side of the input patch, ``patch`` of the reference.
    ``unrelated`` is the probability that a reference comes from another pair, ``partly_related`` that it fits
    in part at best: it shows another place of its photo, or a part of it is replaced by another photo."""

    pairs: tuple[PairSource, ...]
    exclude: tuple[PhotoRule, ...] = ()
    patch: int = 160
    crop: int = 160
    unrelated: float = 0.0
    partly_related: float = 0.0
    photometric: Photometric = Photometric()
    singles: SingleImages | None = None


@dataclass(frozen=True)
class MatcherValidation:
    """Held-out images on which the matcher is measured, warped once and for all from ``seed``."""

    images: tuple[str, ...]
    only: tuple[PhotoRule, ...] = ()
    count: int = at_least(1, 16)
    every: int = at_least(1, 250)
    seed: int = 0


@dataclass(frozen=True)
class RestorerValidation:
    """Held-out pairs on which the restorer is measured; with ``only``, both photos of a pair are in its
    rules."""

    pairs: tuple[PairSource, ...]
    only: tuple[PhotoRule, ...] = ()
    count: int = at_least(1, 16)
    every: int = at_least(1, 250)


@dataclass(frozen=True)
class MatcherLoss:
    """Eq. 1 to 3. ``safe_radius`` is in cells of the feature grid, ``border`` in pixels of the reference."""

    margin: float
    safe_radius: float
    minimum_positions: int = 128
    border: float = 10.0
    negatives: Literal["matched", "all"] = "matched"
    triplet_weight: float = 1.0
    contrastive_weight: float = 0.0
    temperature: float = 0.07


@dataclass(frozen=True)
class MatcherConfig:
    """Contrastive correspondence network (section 3.1). ``input_side`` is what the input branch sees: the
    reduced and enlarged image (``upsampled``, the student's setting) or the image itself (``image``, the
    teacher's). ``initial_weights``: none for random ones, ``imagenet``, a file, or the folder of a trained
    matcher. ``licence``, of the weights, and ``data_licences`` are for the model's card."""

    COMMAND: ClassVar[str] = "train"
    RUNNER: ClassVar[str] = "tfcorr.refsr.stages:train"

    stage: Literal["matcher"]
    name: str
    output: str
    run: str
    data: MatcherData
    loss: MatcherLoss
    train: Training
    validation: MatcherValidation | None = None
    model: dict[str, Any] = field(default_factory=dict)
    initial_weights: str | None = None
    input_side: Literal["upsampled", "image"] = "upsampled"
    data_root: str | None = None
    licence: str = "research use"
    data_licences: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RestorerConfig:
    """Restoration network (sections 3.3 and 3.4) over the fixed correspondence network in the folder
    ``matcher``. ``model`` holds its sizes, see `tfcorr.refsr.model.C2Matching.from_architecture`;
    ``vgg_weights`` (``imagenet`` or a file) is read if these ask for VGG19's reference features."""

    COMMAND: ClassVar[str] = "train"
    RUNNER: ClassVar[str] = "tfcorr.refsr.stages:train"

    stage: Literal["restorer"]
    name: str
    output: str
    run: str
    matcher: str
    data: RestorerData
    train: Training
    validation: RestorerValidation | None = None
    model: dict[str, Any] = field(default_factory=dict)
    initial_weights: str | None = None
    vgg_weights: str = "imagenet"
    data_root: str | None = None
    licence: str = "research use"
    data_licences: dict[str, str] = field(default_factory=dict)


STAGES: dict[str, type] = {"matcher": MatcherConfig, "restorer": RestorerConfig}
