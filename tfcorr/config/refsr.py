"""Configurations of the training stages of C2-Matching."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tfcorr.config.common import LearningRate, PhotoRule, Training, TrainingStage, at_least


@dataclass(frozen=True)
class PairSource:
    """(input, reference) pairs: a CSV, or two folders with equal file names (the layout of CUFED).

    ``input_path`` and ``reference_path`` make a path from the columns of a row, for example
    ``albums/{scene}/{input}``. Columns ``x, y`` and ``ref_x, ref_y``, where a CSV has them, are the top-left
    corners of a patch of ``patch`` pixels in the two photos; without them the whole photo is the patch.

    ``where`` keeps the rows of a CSV that have one of some values in a column, as in ``{similarity_level:
    [L1, L2]}``. With ``register``, for pairs without positions, a reference is brought into the view of its
    input first (`tfcorr.refsr.registration`), as a predictor does, where the two agree on enough; patches are
    then cut at the same place. What was found is kept in the run's folder.
    """

    csv: str | None = None
    input_path: str = "{input}"
    reference_path: str = "{reference}"
    input_dir: str | None = None
    reference_dir: str | None = None
    where: dict[str, tuple[str, ...]] = field(default_factory=dict)
    register: bool = False
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
    """Eq. 1 to 3, and with a teacher eq. 4 to 7. ``safe_radius`` is in cells of the feature grid, ``border``
    in pixels of the reference. ``temperature`` belongs to the contrastive loss that is not in the paper,
    ``distillation_temperature`` is tau of eq. 4."""

    margin: float
    safe_radius: float
    minimum_positions: int = 128
    border: float = 10.0
    negatives: Literal["matched", "all"] = "matched"
    triplet_weight: float = 1.0
    contrastive_weight: float = 0.0
    temperature: float = 0.07
    distillation_weight: float = 1.0
    distillation_temperature: float = 0.15
    distillation_support: Literal["matched", "all"] = "matched"


@dataclass(frozen=True, kw_only=True)
class MatcherConfig(TrainingStage):
    """Contrastive correspondence network (section 3.1). ``input_side`` is what the input branch sees: the
    reduced and enlarged image (``upsampled``, the student's setting) or the image itself (``image``, the
    teacher's). ``teacher`` is the folder of a trained one, whose correlations are distilled (section 3.2).
    ``initial_weights``: none for random ones, ``imagenet``, a file, or the folder of a trained matcher."""

    RUNNER: ClassVar[str] = "tfcorr.refsr.stages:train"

    stage: Literal["matcher"]
    data: MatcherData
    loss: MatcherLoss
    train: Training
    validation: MatcherValidation | None = None
    model: dict[str, Any] = field(default_factory=dict)
    initial_weights: str | None = None
    input_side: Literal["upsampled", "image"] = "upsampled"
    teacher: str | None = None


@dataclass(frozen=True)
class PerceptualLoss:
    """Eq. 11, under ``network``: VGG19's relu5_1, or EfficientNet-Lite0 (``lite0``). ``weights`` are
    ``imagenet`` (VGG19) or a file. ``norm`` is ``batch`` (published) or ``channel`` (eq. 11 as printed)."""

    weight: float
    network: Literal["vgg19", "lite0"] = "vgg19"
    weights: str = "imagenet"
    norm: Literal["batch", "channel"] = "batch"


@dataclass(frozen=True)
class AdversarialLoss:
    """Eq. 12 and 13. ``penalty`` is the weight of the gradient penalty; the discriminator has ``features``
    channels in its first block, and ``end`` and ``normalization`` as published or as later work has them;
    without a ``learning_rate`` of its own it takes the restorer's."""

    weight: float
    penalty: float = 10.0
    features: int = at_least(1, 32)
    end: Literal["sigmoid", "linear"] = "sigmoid"
    normalization: Literal["batch", "none"] = "batch"
    learning_rate: LearningRate | None = None


@dataclass(frozen=True)
class RestorerLoss:
    """Weights of eq. 10 to 12. In the first ``warmup`` steps the reconstruction loss stands alone.
    ``reciprocal`` weighs the loss of a reference that is restored with the output as its own reference."""

    reconstruction: float = 1.0
    reciprocal: float = 0.0
    perceptual: PerceptualLoss | None = None
    adversarial: AdversarialLoss | None = None
    warmup: int = at_least(0, 0)


@dataclass(frozen=True, kw_only=True)
class RestorerConfig(TrainingStage):
    """Restoration network (sections 3.3 and 3.4) over the fixed correspondence network in the folder
    ``matcher``. ``model`` holds its sizes, see `tfcorr.refsr.model.C2Matching.from_architecture`;
    ``vgg_weights`` (``imagenet``, a file, or a trained matcher, whose reference side is taken) is read if
    these ask for VGG19's reference features. ``base``, for sizes that have one, is the folder of a trained
    single-image network, which is then left as it is; without it the restorer's base trains with the rest.
    ``initial_weights`` is the folder of a trained model to go on from."""

    RUNNER: ClassVar[str] = "tfcorr.refsr.stages:train"

    stage: Literal["restorer"]
    matcher: str
    data: RestorerData
    train: Training
    validation: RestorerValidation | None = None
    model: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    initial_weights: str | None = None
    vgg_weights: str = "imagenet"
    loss: RestorerLoss = RestorerLoss()


@dataclass(frozen=True)
class SingleImageData:
    """Photos for the single-image network; ``crop`` is the side of the sharp crop."""

    images: tuple[str, ...]
    exclude: tuple[PhotoRule, ...] = ()
    crop: int = at_least(4, 128)


@dataclass(frozen=True)
class SingleImageValidation:
    """Held-out photos, of which the middle square of ``crop`` pixels is measured."""

    images: tuple[str, ...]
    only: tuple[PhotoRule, ...] = ()
    crop: int = at_least(16, 256)
    count: int = at_least(1, 16)
    every: int = at_least(1, 250)


@dataclass(frozen=True, kw_only=True)
class SingleImageConfig(TrainingStage):
    """The yardstick: a single-image network without references (not in the paper). ``model`` holds its sizes,
    see `tfcorr.refsr.single_image.SingleImageNetwork`."""

    RUNNER: ClassVar[str] = "tfcorr.refsr.single_image_stage:train"

    stage: Literal["single_image"]
    data: SingleImageData
    train: Training
    validation: SingleImageValidation | None = None
    model: dict[str, Any] = field(default_factory=dict)


STAGES: dict[str, type] = {
    "matcher": MatcherConfig,
    "restorer": RestorerConfig,
    "single_image": SingleImageConfig,
}
