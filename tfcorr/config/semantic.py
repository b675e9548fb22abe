"""Configurations of PMD: training of a regime, and the evaluation of semantic matching."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tfcorr.config.common import Training, TrainingStage, at_least


@dataclass(frozen=True)
class ImageSet:
    """Photographs: folders or globs below the data root, or a CSV ``list`` with a column ``image``, whose
    paths are below ``root``. ``exclude`` and ``only`` are further such lists, of paths below the data root:
    images to leave out, and the only ones to keep."""

    images: tuple[str, ...] = ()
    list: str | None = None
    root: str = ""
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairSet:
    """Pairs of photographs of a data set in its published ``layout`` below ``path``.

    ``csv`` is the layout of one's own: a ``list`` with the columns of `tfcorr.semantic.datasets`; ``folders``
    has the images of each class in a folder and no list. ``pairing`` takes the pairs as ``listed``, or makes
    them of the images: ``matched`` (one class), ``random`` (any), ``unmatched`` (two classes). ``count`` of
    them are drawn with ``seed``; without it all listed or matched ones are taken. ``split`` is SPair-71k's.
    """

    layout: Literal["pf_pascal", "pf_willow", "spair", "csv", "folders"]
    path: str = ""
    list: str | None = None
    split: Literal["trn", "val", "test"] = "trn"
    pairing: Literal["listed", "matched", "random", "unmatched"] = "listed"
    count: int | None = at_least(1, None)
    seed: int = 0
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Warps:
    """Random warps that make a pair of one photograph, and its exact flow (section 3.2, 1).

    ``affine`` is the deviation of each of the six entries from the identity's; ``thin_plate`` the largest
    shift of each of ``points`` x ``points`` control points, in [-1, 1] units. ``mixed`` bends a ``share`` of
    the pairs. Without ``both`` the source stays as it is. ``padding`` continues the photograph outside, with
    black or by its mirror image; ``zoom`` below 1 shows the middle of it only.
    """

    kind: Literal["affine", "thin_plate", "mixed"] = "affine"
    affine: float = at_least(0.0, 0.15)
    thin_plate: float = at_least(0.0, 0.4)
    points: int = at_least(2, 3)
    share: float = 0.5
    both: bool = True
    padding: Literal["zeros", "symmetric"] = "zeros"
    zoom: float = 1.0


@dataclass(frozen=True)
class ColourJitter:
    """Changes of colour, drawn for each image: factors 1 +- value; ``hue`` is a share of the circle."""

    brightness: float = at_least(0.0, 0.1)
    contrast: float = at_least(0.0, 0.1)
    saturation: float = at_least(0.0, 0.1)
    hue: float = at_least(0.0, 0.1)


@dataclass(frozen=True)
class SyntheticPairs:
    """Pairs made of single photographs. ``pool`` of them are made once and their features are kept, so that
    a step costs no backbone; 0 makes new ones for each step."""

    source: ImageSet
    warps: Warps = Warps()
    jitter: ColourJitter = ColourJitter()
    pool: int = at_least(0, 0)


@dataclass(frozen=True)
class KeypointPairs:
    """Annotated pairs, whose flow is interpolated between the points (thin plates) and holds within
    ``radius`` feature cells of one of them."""

    pairs: tuple[PairSet, ...]
    radius: float = at_least(0.0, 2.0)


@dataclass(frozen=True)
class HeldOutWarps:
    """Held-out photographs on which teacher and student are measured, warped once and for all."""

    source: ImageSet
    warps: Warps = Warps()
    count: int = at_least(1, 64)
    every: int = at_least(1, 250)
    seed: int = 0


@dataclass(frozen=True)
class TeacherLoss:
    """Eq. 2: ``smooth_weight`` is its alpha, ``divergence_weight`` its beta, ``samples`` the draws of
    attention a step. The rest are variants, see `tfcorr.semantic.losses`."""

    smooth_weight: float = 0.05
    divergence_weight: float = 0.01
    samples: int = at_least(1, 1)
    smooth_form: Literal["published", "components"] = "published"
    components: Literal["sum", "mean"] = "sum"


@dataclass(frozen=True)
class TeacherStage:
    """Training of the teacher: on ``synthetic`` pairs, or (strong supervision) on ``keypoints``.

    Without ``probabilistic`` it is the static teacher of table 3. ``model`` goes to the head, see
    `tfcorr.semantic.teacher.TeacherHead` (a static one: `tfcorr.semantic.network.MatchingHead`).
    """

    train: Training
    synthetic: SyntheticPairs | None = None
    keypoints: KeypointPairs | None = None
    probabilistic: bool = True
    model: dict[str, Any] = field(default_factory=dict)
    loss: TeacherLoss = TeacherLoss()


@dataclass(frozen=True)
class HypothesesStage:
    """Flows of the teacher for the real pairs: ``count`` is m of section 3.2, 2. With ``mirror`` (not in the
    paper) the teacher sees the mean of each image's features and of its mirror image's, see
    `tfcorr.semantic.network.SemanticMatchingNetwork`. ``shard`` pairs make a file."""

    pairs: tuple[PairSet, ...]
    count: int = at_least(1, 4)
    mirror: bool = False
    shard: int = at_least(1, 64)
    seed: int = 0


@dataclass(frozen=True)
class StudentLoss:
    """Eq. 3 to 7. ``divergence_weight`` is lambda of eq. 4, ``step_size`` phi of eq. 6, ``floor`` the least
    deviation in eq. 3. Without ``reweight`` the hypotheses are averaged, without ``confidence`` the loss is
    the plain mean squared error (table 3). The rest are variants, see
    `tfcorr.semantic.training.DistillationTrainer`."""

    smooth_weight: float = 0.05
    divergence_weight: float = 0.01
    floor: float = at_least(0.0, 0.05)
    step_size: float = 0.01
    weights: Literal["paper", "gaussian"] = "paper"
    normalize: bool = False
    reweight: bool = True
    confidence: bool = True
    detach: bool = True
    divergence_gradient: bool = False
    smooth_form: Literal["published", "components"] = "published"
    components: Literal["sum", "mean"] = "sum"


@dataclass(frozen=True)
class StudentStage:
    """Distillation (section 3.3). ``steps_per_round`` is the length of a round of algorithm 1, by default
    one pass over the pairs. ``flip`` mirrors half of the pairs; ``jitter`` changes their colours and
    ``affine`` warps the source (as `Warps.affine`; direction t2s only), both not with cached features.
    ``model`` goes to `tfcorr.semantic.network.MatchingHead`; ``from_teacher`` starts from the teacher's
    adaptation layers instead of random ones; what they add to the backbone's features is multiplied by it.
    ``rehearsal`` (not in the paper) is the share of a batch that consists of the teacher's warped pairs, with
    the truth in place of hypotheses, so that the student stays good at them. ``mirror`` makes a student
    that, once it is trained, sees the mean of each image's features and of its mirror image's, like the
    teacher with `HypothesesStage.mirror`; training without was better for both ways of using it."""

    train: Training
    model: dict[str, Any] = field(default_factory=dict)
    loss: StudentLoss = StudentLoss()
    directions: tuple[Literal["t2s", "s2t"], ...] = ("t2s",)
    steps_per_round: int | None = at_least(1, None)
    flip: bool = True
    jitter: ColourJitter | None = None
    affine: float = at_least(0.0, 0.0)
    from_teacher: float = at_least(0.0, 0.0)
    rehearsal: float = at_least(0.0, 0.0)
    mirror: bool = False


@dataclass(frozen=True)
class Benchmark:
    """Annotated pairs. ``threshold`` says what alpha is a share of: the side of the ``image``, both brought
    to ``frame`` x ``frame`` pixels; the longer side of the source's object ``box``; or that of the box
    around the source's ``keypoints`` (PF-WILLOW). ``training`` are pairs that were trained on, for a
    warning."""

    name: str
    pairs: PairSet
    threshold: Literal["image", "box", "keypoints"]
    frame: int = at_least(2, 320)
    training: tuple[PairSet, ...] = ()


@dataclass(frozen=True)
class SyntheticBenchmark:
    """Warps of held-out photographs: PCK over all cells, alpha a share of the image's side."""

    name: str
    source: ImageSet
    warps: Warps = Warps()
    count: int = at_least(1, 200)
    seed: int = 0


EvaluatedMethod = Literal[
    "model",
    "model_mirrored",
    "model_plain",
    "teacher",
    "teacher_mirrored",
    "average",
    "average_mirrored",
    "untrained",
    "untrained_mirrored",
    "identity",
]


@dataclass(frozen=True)
class Evaluation:
    """What is measured. ``methods`` beside the ``model``: its ``teacher``, the plain ``average`` of
    ``hypotheses`` samples of the teacher (by default as many as the model was distilled from, 4 where its
    card does not say), the ``untrained`` backbone under the same matching head, and ``identity``. Behind all
    names but the last, ``_mirrored`` makes the features the mean of each image's and of its mirror image's,
    ``_plain`` takes the image's alone; without either, the model does what its card says and the others are
    plain. ``bootstrap`` resamples give the intervals."""

    benchmarks: tuple[Benchmark, ...] = ()
    synthetic: tuple[SyntheticBenchmark, ...] = ()
    methods: tuple[EvaluatedMethod, ...] = ("model",)
    alphas: tuple[float, ...] = (0.05, 0.1, 0.15)
    hypotheses: int | None = at_least(1, None)
    bootstrap: int = at_least(0, 2000)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SemanticConfig(TrainingStage):
    """A regime of PMD, from photographs to an evaluated student.

    ``stage`` says how much of it runs: ``semantic`` all, or one part of it, which finds those before it in
    ``run``. ``backbone``, ``backbone_weights`` and ``backbone_arguments`` are the arguments of
    `tfcorr.backbones.backbone`; a file of weights lies below the data root. Images are resized to ``size`` x
    ``size`` pixels. With ``cache_features`` the backbone sees each photograph (and its mirror image) once.
    ``teacher_model``, a teacher's model folder, stands in for the teacher's training, as in ablations.
    """

    RUNNER: ClassVar[str] = "tfcorr.semantic.stages:train"

    stage: Literal["semantic", "semantic_teacher", "semantic_hypotheses", "semantic_student"]
    teacher: TeacherStage
    hypotheses: HypothesesStage
    student: StudentStage
    backbone: str = "resnet101"
    backbone_weights: str | None = "imagenet"
    backbone_arguments: dict[str, Any] = field(default_factory=dict)
    size: int = at_least(32, 320)
    cache_features: bool = False
    teacher_model: str | None = None
    validation: HeldOutWarps | None = None
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class SemanticEvaluateConfig:
    """Measures a trained model: ``model`` and ``teacher`` are names or folders of models; the JSON result
    goes to ``output``, pictures of the keypoints' errors to the folder ``figures``."""

    COMMAND: ClassVar[str] = "evaluate"
    RUNNER: ClassVar[str] = "tfcorr.semantic.evaluation:benchmark"

    stage: Literal["semantic_evaluate"]
    model: str
    output: str
    evaluation: Evaluation
    teacher: str | None = None
    figures: str | None = None
    data_root: str | None = None


STAGES: dict[str, type] = {
    "semantic": SemanticConfig,
    "semantic_teacher": SemanticConfig,
    "semantic_hypotheses": SemanticConfig,
    "semantic_student": SemanticConfig,
    "semantic_evaluate": SemanticEvaluateConfig,
}
