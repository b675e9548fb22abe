"""The stages of training, from a configuration to a model folder."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import tfcorr
from tfcorr.atomic import check_folder
from tfcorr.config import AdversarialLoss, MatcherConfig, RestorerConfig, config_hash, resolve_data_path
from tfcorr.errors import TfcorrError
from tfcorr.pretrained import (
    CORRESPONDENCE,
    SUPER_RESOLUTION,
    WEIGHTS_FILE,
    find_model,
    load_super_resolution,
    verify,
)
from tfcorr.refsr.adversarial import Adversary, Discriminator
from tfcorr.refsr.data import MatcherSamples, RestorerSamples
from tfcorr.refsr.extractor import CorrespondenceNetwork, load_imagenet_weights
from tfcorr.refsr.matching import correspondences
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.perceptual import PerceptualNetwork
from tfcorr.refsr.photos import PhotoCache, find_images, find_pairs
from tfcorr.refsr.registered import RegisteredReferences
from tfcorr.refsr.single_image_resolver import load_single_image
from tfcorr.refsr.training import AdversarialRestorerTrainer, MatcherTrainer, RestorerTrainer
from tfcorr.training.callbacks import Phases, RunState
from tfcorr.training.distribution import is_chief, make_strategy
from tfcorr.training.loop import prepare, run_fit
from tfcorr.training.model_folder import portable_command, write_model
from tfcorr.training.optimizer import make_optimizer
from tfcorr.training.samples import Samples
from tfcorr.training.tensorboard import flattened
from tfcorr.training.trainer import StageTrainer
from tfcorr.weights import load_weights

# What may change between two calls for one run.
FREE_KEYS = (
    "output",
    "run",
    "data_root",
    "licence",
    "data_licences",
    "half_weights",
    "train.max_minutes",
    "train.log_every",
    "train.checkpoint_every",
    "train.images_every",
    "train.profile_steps",
    "train.workers",
    "train.threads",
    "train.distribute",
    "train.devices",
)
_SHOWN = 4  # samples in TensorBoard


def train(
    config: MatcherConfig | RestorerConfig, command: Sequence[str], report: Callable = print
) -> RunState:
    """Run a stage to its end, or until it is stopped, and write its model folder.

    Args:
        config: of the stage.
        command: the words that started it, for the model's card.
        report: prints a line.

    Returns:
        The state of the run; where ``stopped`` is the name of a signal, no model folder was written.

    Raises:
        TfcorrError: configuration, data, checkpoint or training cannot be used; the message says which.
    """
    check_folder(config.output)
    policy = prepare(config.train)
    strategy = make_strategy(config.train)
    with strategy.scope():
        stage = build(config, report)
    trainer, samples, model = stage.trainer, stage.samples, stage.model
    report(
        f"{config.name}: {len(samples.items)} {'images' if config.stage == 'matcher' else 'pairs'}, "
        f"{sum(int(np.prod(v.shape)) for v in trainer.trainable_variables):,} trained parameters, {policy}"
    )
    if strategy.num_replicas_in_sync > 1:
        report(f"{strategy.num_replicas_in_sync} replicas share each batch")
    held_out = stage.held_out()
    state = run_fit(
        trainer,
        lambda start, stop: samples.dataset(start, stop, config.train.workers),
        config.train,
        config.run,
        config_hash=config_hash(config, FREE_KEYS),
        data_key=samples.key,
        callbacks=lambda state: [Phases(state)] if hasattr(trainer, "phase") else [],
        validation=held_out,
        validate_every=config.validation.every if config.validation else 0,
        metric="accuracy" if config.stage == "matcher" else "psnr_y",
        images=pictures(trainer, samples, held_out),
        parameters=flattened(config),
        report=report,
    )
    for path, reason in stage.bad.items():
        report(f"skipped {path}: {reason}")
    if stage.bad:
        report(f"{len(stage.bad)} files were skipped")
    if (state.stopped and state.stopped != "max_minutes") or not is_chief(strategy):
        return state
    threshold = None
    if config.stage == "restorer" and held_out is not None and not model.gated:
        threshold = confidence_threshold(model, held_out)
    folder = save_model(config, model, state, command, policy, threshold)
    report(f"model written to {folder}")
    return state


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage of training works with.

    Attributes:
        model: what is trained, and saved.
        trainer: the Keras model whose ``train_step`` trains it; not compiled.
        samples: for training.
        validation: held-out samples, or None.
        count: of the held-out samples that are used.
        bad: path -> reason, of the files that could not be read so far.
    """

    model: CorrespondenceNetwork | C2Matching
    trainer: MatcherTrainer | RestorerTrainer
    samples: Samples
    validation: Samples | None
    count: int
    bad: dict[str, str]

    def held_out(self):
        """The held-out batches as a `tf.data.Dataset`, or None."""
        if self.validation is None:
            return None
        return self.validation.dataset(0, max(1, self.count // self.validation.batch_size), 1).cache()


def build(config: MatcherConfig | RestorerConfig, report: Callable = print) -> Stage:
    """Data, model and trainer of a configuration, ready to `compile` and `fit`.

    Args:
        config: of the stage.
        report: prints a line.

    Raises:
        TfcorrError: data or weights cannot be used; the message says which.
    """
    return _matcher(config) if config.stage == "matcher" else _restorer(config, report)


def _matcher(config: MatcherConfig) -> Stage:
    cache = PhotoCache()
    data = config.data

    def samples(images: list[Path], seed: int, augment: bool) -> Samples:
        return MatcherSamples(
            images,
            cache,
            crop=data.crop,
            homography=data.homography,
            photometric=data.photometric,
            border=config.loss.border,
            batch=config.train.batch,
            seed=seed,
            augment=augment,
        )

    training = samples(
        find_images(data.images, config.data_root, exclude=data.exclude), config.train.seed, True
    )
    validation = None
    if config.validation:
        held_out = find_images(config.validation.images, config.data_root, only=config.validation.only)
        validation = samples(held_out, config.validation.seed, True)
    network = CorrespondenceNetwork(**config.model)
    network.build()
    _initialise_matcher(network, config)
    trainer = MatcherTrainer(
        network,
        margin=config.loss.margin,
        safe_radius=config.loss.safe_radius,
        minimum_positions=config.loss.minimum_positions,
        negatives=config.loss.negatives,
        triplet_weight=config.loss.triplet_weight,
        contrastive_weight=config.loss.contrastive_weight,
        temperature=config.loss.temperature,
        input_side=config.input_side,
        teacher=_teacher(config.teacher) if config.teacher else None,
        distillation_weight=config.loss.distillation_weight,
        distillation_temperature=config.loss.distillation_temperature,
        distillation_support=config.loss.distillation_support,
    )
    count = config.validation.count if config.validation else 0
    return Stage(network, trainer, training, validation, count, cache.bad)


def _teacher(folder: str) -> CorrespondenceNetwork:
    card = find_model(folder, job=CORRESPONDENCE)
    verify(card)
    network = CorrespondenceNetwork(**card.architecture)
    network.build()
    load_weights(network, card.folder / WEIGHTS_FILE)
    return network


def _initialise_matcher(network: CorrespondenceNetwork, config: MatcherConfig) -> None:
    source = config.initial_weights
    if source is None:
        return
    if source != "imagenet" and Path(source).is_dir():
        load_weights(network, _verified_weights(source, CORRESPONDENCE))
        return
    if source != "imagenet":
        source = str(resolve_data_path(source, config.data_root))
    try:
        for extractor in (network.input_extractor, network.reference_extractor):
            load_imagenet_weights(extractor, source)
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise TfcorrError(f"initial_weights: {error}") from error


def _verified_weights(folder: str | os.PathLike, job: str) -> Path:
    card = find_model(str(folder), job=job)
    verify(card)
    return card.folder / WEIGHTS_FILE


def _restorer(config: RestorerConfig, report: Callable) -> Stage:
    cache = PhotoCache()
    registered = RegisteredReferences(cache, Path(config.run) / "registered")
    data = config.data
    pairs = find_pairs(data.pairs, config.data_root, exclude=data.exclude)
    images = find_images(data.singles.images, config.data_root, exclude=data.exclude) if data.singles else ()
    training = RestorerSamples(
        pairs,
        cache,
        registered=registered,
        patch=data.patch,
        crop=data.crop,
        photometric=data.photometric,
        unrelated=data.unrelated,
        partly_related=data.partly_related,
        singles=data.singles,
        single_images=images,
        batch=config.train.batch,
        seed=config.train.seed,
    )
    validation = None
    if config.validation:
        held_out = find_pairs(config.validation.pairs, config.data_root, only=config.validation.only)
        # From all of the list, which has the pairs of one input beside each other.
        held_out = held_out[:: max(1, len(held_out) // config.validation.count)]
        validation = RestorerSamples(
            held_out,
            cache,
            registered=registered,
            patch=data.patch,
            crop=data.patch,
            photometric=dataclasses.replace(data.photometric, probability=0.0),
            batch=min(config.train.batch, len(held_out), config.validation.count),
            seed=0,
            augment=False,
        )
    model = C2Matching.from_architecture(config.model)
    if config.initial_weights:
        _take_initial_weights(model, config.initial_weights, report)
    # Behind the initial weights, which have both as well: those that the configuration names count.
    load_weights(model.correspondence, _verified_weights(config.matcher, CORRESPONDENCE))
    if config.base:
        _take_base(model, config.base)
    if model.vgg is not None:
        _initialise_vgg(model, config)
    count = config.validation.count if config.validation else 0
    return Stage(model, _restorer_trainer(model, config), training, validation, count, cache.bad)


def _restorer_trainer(model: C2Matching, config: RestorerConfig) -> RestorerTrainer:
    loss = config.loss
    common = {"reconstruction": loss.reconstruction, "reciprocal": loss.reciprocal}
    if loss.perceptual is None and loss.adversarial is None:
        return RestorerTrainer(model, **common)
    perceptual, adversary = None, None
    if loss.perceptual:
        weights = loss.perceptual.weights
        if weights != "imagenet":
            weights = str(resolve_data_path(weights, config.data_root))
        perceptual = PerceptualNetwork(loss.perceptual.network, weights, loss.perceptual.norm)
    if loss.adversarial:
        adversary = _adversary(loss.adversarial, config)
    return AdversarialRestorerTrainer(
        model,
        perceptual=perceptual,
        perceptual_weight=loss.perceptual.weight if loss.perceptual else 0.0,
        adversary=adversary,
        adversarial_weight=loss.adversarial.weight if loss.adversarial else 0.0,
        warmup=loss.warmup,
        **common,
    )


def _adversary(loss: AdversarialLoss, config: RestorerConfig) -> Adversary:
    discriminator = Discriminator(loss.features, loss.end, loss.normalization)
    discriminator.build()
    optimizer = make_optimizer(
        loss.learning_rate or config.train.learning_rate,
        config.train.steps,
        start=config.loss.warmup,
    )
    return Adversary(discriminator, optimizer, penalty=loss.penalty, seed=config.train.seed)


def _take_initial_weights(model: C2Matching, folder: str, report: Callable) -> None:
    source, _ = load_super_resolution(folder)
    ours, theirs = (dataclasses.asdict(m.restorer.config) for m in (model, source))
    # Sizes show in the shapes; what a network does with them does not.
    left_out = {"gate", "detail"}
    if model.restorer.base is not None and source.restorer.base is None:
        left_out |= {"base", "content_blocks", "blocks"}
    differing = {name: theirs[name] for name in ours if name not in left_out and ours[name] != theirs[name]}
    try:
        absent = model.take_weights(source)
    except ValueError as error:
        raise TfcorrError(f"initial_weights: {folder}: {error}") from error
    if differing:
        report(f"initial_weights: {folder} was trained otherwise: {differing}")
    if absent:
        parts = dict.fromkeys("/".join(name.split("/")[:2]) for name in absent)
        report(f"initial_weights: not taken from {folder}: {', '.join(parts)}")


def _take_base(model: C2Matching, folder: str) -> None:
    network, _ = load_single_image(folder)
    base = model.restorer.base
    if base is None or base.sizes != network.sizes:
        expected = "no base" if base is None else f"one of {base.sizes}"
        raise TfcorrError(f"base: {folder} has {network.sizes}, the restorer asks for {expected}")
    base.set_weights(network.get_weights())
    base.trainable = False


def _initialise_vgg(model: C2Matching, config: RestorerConfig) -> None:
    source = config.vgg_weights
    if source != "imagenet" and Path(source).suffix not in (".npz", ".h5"):
        matcher = CorrespondenceNetwork()
        matcher.build()
        load_weights(matcher, _verified_weights(source, CORRESPONDENCE))
        model.vgg.set_weights(matcher.reference_extractor.get_weights())
        return
    if source != "imagenet":
        source = str(resolve_data_path(source, config.data_root))
    try:
        load_imagenet_weights(model.vgg, source, "vgg19")
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise TfcorrError(f"vgg_weights: {error}") from error


def pictures(trainer: StageTrainer, samples: Samples, held_out=None) -> Callable[[], dict[str, Any]]:
    """What a run shows in TensorBoard: always the same few samples.

    Args:
        trainer: its ``pictures`` draws a batch.
        samples: for training; their first batch is shown where nothing is held out.
        held_out: a `tf.data.Dataset` of batches, or None.

    Returns:
        A function that draws: name -> (B, H, W, 3).
    """

    @functools.cache
    def shown() -> dict[str, Any]:
        batch = samples.batch(0) if held_out is None else next(iter(held_out.take(1)))
        return {name: values[:_SHOWN] for name, values in batch.items()}

    return lambda: trainer.pictures(shown())


def confidence_threshold(model: C2Matching, dataset, share: float = 0.95) -> float:
    """The matching score that unrelated references rarely reach: a patch above it counts as found.

    Args:
        model: whose matcher is asked.
        dataset: batches with ``lr`` and ``reference``; each input is matched with the reference of its
            neighbour.
        share: of the scores with unrelated references that lie below the threshold.

    Returns:
        A score in [0, 1].
    """
    scores = []
    for batch in dataset:
        descriptors = model.correspondence.query_features(batch["lr"])
        reference = model.extract(keras.ops.roll(batch["reference"], 1, axis=0))["conv3_1"]
        scores.append(keras.ops.convert_to_numpy(correspondences(descriptors, reference).score))
    return float(np.clip(np.quantile(np.concatenate([s.ravel() for s in scores]), share), 0, 1))


def _matcher_card(folder: str) -> dict[str, Any]:
    """What a card tells of the matcher that the training used: the one within, or the teacher."""
    content = find_model(str(folder), job=CORRESPONDENCE).content
    return {key: content[key] for key in ("name", "checksums", "metrics", "training") if key in content}


def save_model(
    config: MatcherConfig | RestorerConfig,
    model: keras.Model,
    state: RunState,
    command: Sequence[str],
    precision: str,
    confidence: float | None = None,
) -> Path:
    """Write weights and card of a trained model to the folder that the configuration names.

    Args:
        config: of the stage.
        model: `CorrespondenceNetwork` or `C2Matching`.
        state: of the run.
        command: the words that started it.
        precision: the dtype policy it was trained with.
        confidence: see `confidence_threshold`.

    Returns:
        The folder.
    """
    folder = Path(config.output)
    matcher = config.stage == "matcher"
    card = {
        "name": config.name,
        "job": CORRESPONDENCE if matcher else SUPER_RESOLUTION,
        "architecture": config.model if matcher else model.architecture,
        "licence": config.licence,
        "metrics": {"validation": state.metrics} if state.metrics else {},
        "training": {
            "command": portable_command(command),
            "data": dataclasses.asdict(config.data),
            "data_licences": config.data_licences,
            "loss": dataclasses.asdict(config.loss),
            "settings": dataclasses.asdict(config.train),
            "seed": state.seed,
            "steps": state.step,
            "seconds": round(state.seconds),
            "precision": precision,
            "teacher": _matcher_card(config.teacher) if matcher and config.teacher else None,
            "matcher": None if matcher else _matcher_card(config.matcher),
            "tfcorr": tfcorr.__version__,
        },
    }
    if confidence is not None:
        card["confidence_threshold"] = round(confidence, 4)
    if not matcher:
        card["registration"] = any(source.register for source in config.data.pairs)
    write_model(folder, model, card, config.half_weights)
    return folder
