"""PMD from a configuration to an evaluated student: teacher, hypotheses, distillation (paper, section 3).

What a stage leaves in the folder ``run``:

    teacher/        checkpoints and log; teacher/model is its model folder
    features/       the frozen backbone's maps of the real photographs (with ``cache_features``)
    pool/           warped pairs and their maps (with ``teacher.synthetic.pool``)
    validation/     the same of the held-out photographs
    hypotheses/     the teacher's flows of the real pairs
    variance/       the error model of section 3.3
    student/        checkpoints and log; its model folder is the configuration's ``output``
    evaluation.json

Every part goes on where it was stopped, and is passed over once it is finished.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import tfcorr
from tfcorr.atomic import check_folder
from tfcorr.backbones import backbone
from tfcorr.config import config_hash, resolve_data_path
from tfcorr.config.semantic import PairSet, SemanticConfig, StudentStage, TeacherStage
from tfcorr.errors import TfcorrError
from tfcorr.imaging.depth import convert_depth
from tfcorr.pretrained import CARD_FILE, WEIGHTS_FILE, ModelError, read_card, verify
from tfcorr.semantic.data import (
    ROLES,
    DistillationSamples,
    KeypointSamples,
    PairInputs,
    PooledSamples,
    RehearsedSamples,
    WarpedSamples,
    make_pool,
)
from tfcorr.semantic.datasets import ImagePair, KeypointPair, find_image_set, find_pairs
from tfcorr.semantic.features import Extractor, FeatureCache, files_key
from tfcorr.semantic.figures import match_figure
from tfcorr.semantic.hypotheses import VarianceStore, hypothesis_records, make_hypotheses
from tfcorr.semantic.loading import (
    SEMANTIC_MATCHING,
    SEMANTIC_TEACHER,
    LoadedNetwork,
    load_network,
    save_network,
)
from tfcorr.semantic.network import Head, MatchingHead, SemanticMatchingNetwork
from tfcorr.semantic.predictor import SemanticMatcher
from tfcorr.semantic.records import Records
from tfcorr.semantic.teacher import TeacherHead
from tfcorr.semantic.training import DistillationTrainer, EStep, TeacherTrainer
from tfcorr.training.callbacks import RunState
from tfcorr.training.loop import prepare, run_fit
from tfcorr.training.model_folder import portable_command, write_card
from tfcorr.training.photos import DataError, PhotoCache
from tfcorr.training.run_lock import run_lock
from tfcorr.training.samples import Samples
from tfcorr.training.tensorboard import flattened

__all__ = ["Part", "Regime", "train"]

# What may change between two calls for one run.
_FREE = tuple(
    f"train.{name}"
    for name in (
        "max_minutes",
        "log_every",
        "checkpoint_every",
        "images_every",
        "profile_steps",
        "workers",
        "threads",
    )
)
_KEPT_PHOTOS = 1000
_SHOWN = 3  # pairs in TensorBoard


def train(config: SemanticConfig, command: Sequence[str], report: Callable = print) -> RunState:
    """Runs a regime, or the part of it that ``stage`` names, to its end or until it is stopped.

    Args:
        config: of the regime.
        command: the words that started it, for the models' cards.
        report: prints a line.

    Returns:
        The state of the last part that ran; where ``stopped`` is set, the parts behind it did not run.

    Raises:
        TfcorrError: configuration, data, checkpoint or training cannot be used; the message says which.
    """
    regime = Regime(config, command, report)
    first = config.teacher.train if config.stage == "semantic_teacher" else config.student.train
    check_folder(config.output)
    prepare(first)
    parts = {
        "semantic_teacher": regime.teacher,
        "semantic_hypotheses": regime.hypotheses,
        "semantic_student": regime.student,
    }
    chosen = list(parts.values()) if config.stage == "semantic" else [parts[config.stage]]
    if config.teacher_model is not None:
        chosen = [part for part in chosen if part != regime.teacher]
    state = RunState(seed=first.seed, config="")
    with run_lock(config.run):
        for part in chosen:
            state = part()
            if state.stopped:
                return state
        if config.stage == "semantic" and config.evaluation is not None:
            state.metrics = {**state.metrics, **regime.evaluate()}
    return state


def _check_devices(config: SemanticConfig) -> None:
    for part, stage in (("teacher", config.teacher), ("student", config.student)):
        if stage.train.distribute != "none":
            raise TfcorrError(
                f"{part}.train.distribute: the semantic stages train on one device, expected none, "
                f"got {stage.train.distribute}"
            )


@dataclasses.dataclass(frozen=True)
class Part:
    """Data, model and trainer of a regime's teacher or student, ready to `compile` and `fit`.

    Attributes:
        name: ``teacher`` or ``student``.
        stage: its section of the configuration.
        head: what is trained.
        trainer: of the head on its backbone.
        samples: what it is trained on.
        cached: whether these are features instead of images.
        callbacks: further ones, made for the run's state; None for none.
        mirror: whether the trained network looks twice.
    """

    name: str
    stage: TeacherStage | StudentStage
    head: Head
    trainer: TeacherTrainer | DistillationTrainer
    samples: Samples
    cached: bool
    callbacks: Callable[[RunState], list[keras.callbacks.Callback]] | None = None
    mirror: bool = False


class Regime:
    """The parts of a regime, which share photographs, backbone and folders.

    Args:
        config: of the regime.
        command: the words that started it, for the models' cards.
        report: prints a line.

    Raises:
        TfcorrError: the configuration asks for more than one device.
    """

    def __init__(self, config: SemanticConfig, command: Sequence[str], report: Callable = print):
        _check_devices(config)
        self.config = config
        self.command = command
        self.report = report
        self.run = Path(config.run)
        self.photos = PhotoCache(keep=_KEPT_PHOTOS)

    # What the parts share.

    @functools.cached_property
    def backbone(self) -> keras.Model:
        source = self.config.backbone_weights
        if source not in (None, "imagenet"):
            source = str(resolve_data_path(source, self.config.data_root))
        # Random weights, of use in tests alone, are the same for all parts.
        keras.utils.set_random_seed(self.config.teacher.train.seed)
        return backbone(self.config.backbone, source, self.config.backbone_arguments)

    @functools.cached_property
    def extractor(self) -> Extractor:
        return Extractor(self.backbone, self.config.size)

    @property
    def grid(self) -> tuple[int, int]:
        return self.extractor.grid

    @property
    def channels(self) -> tuple[int, int]:
        return tuple(shape[2] for shape in self.extractor.shapes.values())

    def _head(self, kind: type[Head], stage: TeacherStage | StudentStage, section: str) -> Head:
        """A built head, whose weights depend on the part's own seed alone, whatever ran before."""
        channels = self.channels
        keras.utils.set_random_seed(stage.train.seed)
        try:
            head = kind(channels, **stage.model)
            head.build()
        except (TypeError, ValueError) as error:
            raise TfcorrError(f"{section}.model: {error}") from error
        return head

    def _network(self, head: Head, cached: bool) -> SemanticMatchingNetwork:
        network = SemanticMatchingNetwork(head, None if cached else self.backbone)
        network.build()
        return network

    def _progress(self, what: str) -> Callable[[int, int], None]:
        def tell(done: int, total: int) -> None:
            if done == total or done % max(1, total // 10) == 0:
                self.report(f"{what}: {done}/{total} files")

        return tell

    def _inputs(self, pairs: Sequence[ImagePair], mirror: bool = False) -> PairInputs:
        """The inputs of real pairs; their features are computed now if they are to be cached."""
        cache = None
        if self.config.cache_features:
            images = sorted({path for pair in pairs for path in (pair.source, pair.target)})
            folder = self.run / "features" / files_key(images)
            cache = FeatureCache(folder, self.extractor, images, self.photos)
            cache.fill(self._progress("features"))
        return PairInputs(pairs, self.photos, self.config.size, cache, mirror)

    def _pairs(self, sets: Sequence[PairSet]) -> list[ImagePair]:
        return [pair for one in sets for pair in find_pairs(one, self.config.data_root)]

    @functools.cached_property
    def _real_pairs(self) -> list[ImagePair]:
        return self._pairs(self.config.hypotheses.pairs)

    def held_out(self, part: Part):
        """A dataset of held-out warps for a part, or None."""
        held_out, cached, batch = self.config.validation, part.cached, part.stage.train.batch
        if held_out is None:
            return None
        samples = WarpedSamples(
            find_image_set(held_out.source, self.config.data_root),
            self.photos,
            size=self.config.size,
            grid=self.grid,
            warps=held_out.warps,
            jitter=None,
            batch=1 if cached else batch,
            seed=held_out.seed,
            augment=False,
        )
        if cached:
            records = make_pool(
                self.run / "validation",
                samples,
                self.extractor,
                held_out.count,
                progress=self._progress("validation"),
            )
            samples = PooledSamples(records, min(batch, held_out.count), held_out.seed, augment=False)
        return samples.dataset(0, max(1, held_out.count // samples.batch_size), 1).cache()

    def _pictures(self, head: Head, mirror: bool = False) -> Callable[[], dict[str, np.ndarray]] | None:
        """Draws how a few of the real pairs are matched; None if there are no pairs."""
        try:
            inputs = PairInputs(self._real_pairs, self.photos, self.config.size)
        except TfcorrError as error:
            # A teacher alone can do without them.
            self.report(f"no images in TensorBoard: {error}")
            return None
        network = SemanticMatchingNetwork(head, self.backbone, mirror=mirror)
        matcher = SemanticMatcher(network, size=self.config.size)
        numbers = np.unique(np.linspace(0, len(inputs.pairs) - 1, _SHOWN).astype(int))

        def draw() -> dict[str, np.ndarray]:
            figures = []
            for pair in filter(None, map(inputs.one, numbers)):
                source, target = (convert_depth(pair[role], np.uint8) for role in ROLES)
                found = matcher.match(source, target, details=True)
                figures.append(match_figure(source, target, found.flow, found.confidence))
            return {"matches": np.stack(figures)} if figures else {}

        return draw

    def _fit(self, part: Part, key: str) -> RunState:
        trainer, samples, settings = part.trainer, part.samples, part.stage.train
        self.report(
            f"{self.config.name}, {part.name}: {len(samples.items)} samples, "
            f"{sum(int(np.prod(v.shape)) for v in trainer.trainable_variables):,} trained parameters, "
            f"{keras.config.dtype_policy().name}"
        )
        held_out = self.config.validation
        return run_fit(
            trainer,
            lambda start, stop: samples.dataset(start, stop, settings.workers),
            settings,
            self.run / part.name,
            config_hash=key,
            data_key=samples.key,
            validation=self.held_out(part),
            validate_every=held_out.every if held_out else 0,
            metric="pck",
            images=self._pictures(part.head, part.mirror) if settings.images_every else None,
            parameters=flattened(self.config),
            callbacks=part.callbacks,
            report=self.report,
        )

    def _tell_skipped(self) -> None:
        for path, reason in self.photos.bad.items():
            self.report(f"skipped {path}: {reason}")

    # Keys: what the result of each part depends on.

    @property
    def _teacher_key(self) -> str:
        return _digest(config_hash(self.config.teacher, _FREE), self.extractor.key)

    @property
    def _hypotheses_key(self) -> str:
        weights = read_card(self._teacher_folder).checksums[WEIGHTS_FILE]
        return _digest(config_hash(self.config.hypotheses), weights)

    @property
    def _student_key(self) -> str:
        return _digest(config_hash(self.config.student, _FREE), self._hypotheses_key)

    # Folders of the models.

    @property
    def _teacher_folder(self) -> Path:
        return Path(self.config.teacher_model or self.run / "teacher" / "model")

    def _finished(self, folder: Path, key: str, steps: int) -> RunState | None:
        """The state that a model folder was written with, if it is whole, has this key and all steps."""
        if not (folder / CARD_FILE).is_file():
            return None
        card = read_card(folder)
        training = card.content.get("training", {})
        if training.get("key") != key or training["steps"] < steps:
            return None
        try:
            verify(card)
        except ModelError as error:
            self.report(f"warning: {error}; written again from the checkpoint")
            return None
        self.report(f"{folder}: finished before")
        return RunState(
            seed=training["seed"], config=key, step=training["steps"], seconds=training["seconds"]
        )

    def save(self, part: Part, state: RunState) -> None:
        """Writes the model folder of a trained part."""
        config, student = self.config, part.name == "student"
        folder = Path(config.output) if student else self._teacher_folder
        card = {
            "name": config.name if student else f"{config.name}-teacher",
            "job": SEMANTIC_MATCHING if student else SEMANTIC_TEACHER,
            "licence": config.licence,
            "metrics": {"validation": state.metrics} if state.metrics else {},
            "training": {
                "command": portable_command(self.command),
                "key": state.config,
                "settings": dataclasses.asdict(part.stage),
                "hypotheses": dataclasses.asdict(config.hypotheses) if student else None,
                "data_licences": config.data_licences,
                "seed": state.seed,
                "steps": state.step,
                "seconds": round(state.seconds),
                "precision": keras.config.dtype_policy().name,
                "tfcorr": tfcorr.__version__,
            },
        }
        save_network(
            folder,
            SemanticMatchingNetwork(part.head, self.backbone, mirror=part.mirror),
            backbone={"name": config.backbone, "arguments": config.backbone_arguments},
            size=config.size,
            card=card,
            half=config.half_weights and student,
        )
        self.report(f"model written to {folder}")

    # The parts.

    def teacher(self) -> RunState:
        """Section 3.2, 1: trains the teacher on warped photographs, or on annotated pairs."""
        stage, key = self.config.teacher, self._teacher_key
        if finished := self._finished(self._teacher_folder, key, stage.train.steps):
            return finished
        return self._trained(self.teacher_part(), key)

    def _trained(self, part: Part, key: str) -> RunState:
        state = self._fit(part, key)
        self._tell_skipped()
        if state.step == part.stage.train.steps or part.stage.train.max_minutes == 0:
            self.save(part, state)
        return state

    def teacher_part(self) -> Part:
        """The untrained teacher and its data.

        Raises:
            TfcorrError: the configuration or its data cannot be used; the message says which.
        """
        stage = self.config.teacher
        if (stage.synthetic is None) == (stage.keypoints is None):
            raise TfcorrError("teacher: expected one of synthetic and keypoints")
        samples, cached = self._warped() if stage.synthetic else self._annotated()
        kind = TeacherHead if stage.probabilistic else MatchingHead
        head = self._head(kind, stage, "teacher")
        trainer = TeacherTrainer(
            self._network(head, cached), seed=stage.train.seed, **dataclasses.asdict(stage.loss)
        )
        return Part("teacher", stage, head, trainer, samples, cached)

    def _warped(self, batch: int | None = None) -> tuple[Samples, bool]:
        """The teacher's warped pairs, and whether they are features."""
        stage = self.config.teacher
        batch = batch or stage.train.batch
        samples = WarpedSamples(
            find_image_set(stage.synthetic.source, self.config.data_root),
            self.photos,
            size=self.config.size,
            grid=self.grid,
            warps=stage.synthetic.warps,
            jitter=stage.synthetic.jitter,
            batch=1 if stage.synthetic.pool else batch,
            seed=stage.train.seed,
        )
        if not stage.synthetic.pool:
            return samples, False
        records = make_pool(
            self.run / "pool",
            samples,
            self.extractor,
            stage.synthetic.pool,
            progress=self._progress("warped pairs"),
        )
        return PooledSamples(records, batch, stage.train.seed), True

    def _annotated(self) -> tuple[Samples, bool]:
        stage = self.config.teacher
        pairs = self._pairs(stage.keypoints.pairs)
        if not all(isinstance(pair, KeypointPair) for pair in pairs):
            raise DataError("teacher.keypoints.pairs: some of the pairs have no keypoints")
        samples = KeypointSamples(
            self._inputs(pairs),
            grid=self.grid,
            radius=stage.keypoints.radius,
            batch=stage.train.batch,
            seed=stage.train.seed,
        )
        return samples, self.config.cache_features

    def hypotheses(self) -> RunState:
        """Section 3.2, 2: the teacher's flows of the real pairs."""
        inputs, records = self._hypotheses()
        records.check()
        if records.missing():
            teacher = load_network(self._teacher_folder, job=SEMANTIC_TEACHER).network
            teacher.mirror = self.config.hypotheses.mirror
            make_hypotheses(
                _compiled(teacher, self.config.hypotheses.count),
                records,
                self._inputs(inputs.pairs, teacher.mirror).many,
                seed=self.config.hypotheses.seed,
                progress=self._progress("hypotheses"),
            )
        self._tell_skipped()
        self.report(
            f"{records.count} pairs, {self.config.hypotheses.count} hypotheses each in {records.folder}"
        )
        return RunState(seed=self.config.hypotheses.seed, config=self._hypotheses_key, step=records.count)

    def _hypotheses(self) -> tuple[PairInputs, Records]:
        stage = self.config.hypotheses
        pairs = self._real_pairs
        records = hypothesis_records(
            self.run / "hypotheses",
            len(pairs),
            stage.count,
            self.grid,
            shard=stage.shard,
            key=f"{self._hypotheses_key}-{_pairs_key(pairs)}",
        )
        return self._inputs(pairs), records

    def student(self) -> RunState:
        """Section 3.3: distils the hypotheses into the student (algorithm 1)."""
        if not (self._teacher_folder / CARD_FILE).is_file():
            raise ModelError(f"{self._teacher_folder}: no teacher there; run stage=semantic_teacher first")
        key = self._student_key
        if finished := self._finished(Path(self.config.output), key, self.config.student.train.steps):
            return finished
        return self._trained(self.student_part(), key)

    def student_part(self) -> Part:
        """The untrained student and its data, from the teacher's hypotheses in ``run``.

        Raises:
            TfcorrError: as `teacher_part`, or the hypotheses are not finished.
        """
        stage = self.config.student
        inputs, records = self._hypotheses()
        records.check()
        if records.missing():
            raise DataError(f"{records.folder}: not finished; run stage=semantic_hypotheses first")

        rehearsed = round(stage.rehearsal * stage.train.batch)
        if rehearsed and self.config.teacher.synthetic is None:
            raise TfcorrError("student.rehearsal: there are no warped pairs; it needs teacher.synthetic")
        if rehearsed >= stage.train.batch:
            raise TfcorrError(f"student.rehearsal: expected a share below 1, got {stage.rehearsal:g}")

        def samples(augment: bool) -> DistillationSamples:
            return DistillationSamples(
                inputs,
                records,
                directions=stage.directions,
                batch=stage.train.batch - rehearsed,
                seed=stage.train.seed,
                augment=augment,
                flip=stage.flip,
                jitter=stage.jitter,
                affine=stage.affine,
            )

        cached = self.config.cache_features
        head = self._head(MatchingHead, stage, "student")
        network = self._network(head, cached)
        if stage.from_teacher:
            teacher = load_network(self._teacher_folder, job=SEMANTIC_TEACHER)
            _copy_adaptation(teacher, head, stage.from_teacher)
        store = VarianceStore(
            self.run / "variance", len(inputs.pairs), (len(stage.directions), *self.grid, 2)
        )
        trainer = DistillationTrainer(
            network, store, directions=stage.directions, **dataclasses.asdict(stage.loss)
        )
        one_pass = math.ceil(len(inputs.pairs) / (stage.train.batch - rehearsed))

        def callbacks(state: RunState) -> list[keras.callbacks.Callback]:
            rounds = stage.steps_per_round or one_pass
            e_step = samples(augment=False).every_pair
            return [EStep(state, self.run / "student", e_step, rounds, report=self.report)]

        trained = samples(augment=True)
        if rehearsed:
            warped, features = self._warped(rehearsed)
            if features != cached:
                raise TfcorrError(
                    "student.rehearsal: give both of cache_features and teacher.synthetic.pool, or neither"
                )
            trained = RehearsedSamples(trained, warped)
        further = callbacks if stage.loss.reweight else None
        return Part("student", stage, head, trainer, trained, cached, further, stage.mirror)

    def evaluate(self) -> dict[str, float]:
        """Measures the student, and what the configuration names beside it."""
        from tfcorr.atomic import write_bytes
        from tfcorr.semantic.evaluation import headline, run_evaluation, table

        result = run_evaluation(
            self.config.evaluation,
            model=self.config.output,
            teacher=self._teacher_folder,
            data_root=self.config.data_root,
            trained=self._real_pairs,
            report=self.report,
        )
        write_bytes(self.run / "evaluation.json", (json.dumps(result, indent=2) + "\n").encode())
        self.report(table(result))
        scores = headline(result)
        card = read_card(self.config.output).content
        card["metrics"]["evaluation"] = scores
        write_card(Path(self.config.output), card)
        return scores


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]


def _pairs_key(pairs: Sequence[ImagePair]) -> str:
    rows = [[str(path.name) for path in (pair.source, pair.target)] + [pair.flip] for pair in pairs]
    return _digest(rows)


def _compiled(network: SemanticMatchingNetwork, samples: int) -> Callable[..., dict]:
    """The network as a function of inputs and seed, traced once a shape."""
    import tensorflow as tf

    probabilistic = isinstance(network.head, TeacherHead)

    @tf.function(autograph=False)
    def flows(inputs, seed):
        if probabilistic:
            return network(inputs, training=False, samples=samples, seed=seed)
        found = network(inputs, training=False)
        return {name: tf.repeat(found[name][:, None], samples, axis=1) for name in ("flow_t2s", "flow_s2t")}

    return flows


def _copy_adaptation(teacher: LoadedNetwork, head: Head, share: float) -> None:
    for level, layer in head.adaptations.items():
        try:
            layer.set_weights(teacher.network.head.adaptations[level].get_weights())
        except ValueError as error:
            raise TfcorrError(
                f"student.from_teacher: the teacher's layers have other sizes: {error}"
            ) from error
        layer.scale_residuals(share)
