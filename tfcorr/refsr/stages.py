"""The stages of training, from a configuration to a model folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import tfcorr
from tfcorr.config import MatcherConfig, RestorerConfig, config_hash, resolve_data_path
from tfcorr.errors import TfcorrError
from tfcorr.pretrained import WEIGHTS_FILE, find_model, load_super_resolution, verify
from tfcorr.refsr.data import MatcherSamples, RestorerSamples
from tfcorr.refsr.extractor import CorrespondenceNetwork, load_imagenet_weights
from tfcorr.refsr.matching import correspondences
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.photos import PhotoCache, find_images, find_pairs
from tfcorr.refsr.training import MatcherTrainer, RestorerTrainer
from tfcorr.training.callbacks import RunState
from tfcorr.training.loop import prepare, run_fit
from tfcorr.training.model_folder import portable_command, write_card, write_weights
from tfcorr.training.samples import Samples

CORRESPONDENCE = "correspondence"
SUPER_RESOLUTION = "super-resolution"

# What may change between two calls for one run.
_FREE = (
    "output",
    "run",
    "data_root",
    "licence",
    "data_licences",
    "train.max_minutes",
    "train.log_every",
    "train.checkpoint_every",
    "train.images_every",
    "train.workers",
    "train.threads",
)


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
    policy = prepare(config.train)
    stage = _matcher if config.stage == "matcher" else _restorer
    model, trainer, samples, validation, bad = stage(config, report)
    report(
        f"{config.name}: {len(samples.items)} {'images' if config.stage == 'matcher' else 'pairs'}, "
        f"{sum(int(np.prod(v.shape)) for v in trainer.trainable_variables):,} trained parameters, {policy}"
    )
    validate = config.validation
    held_out = None
    if validation is not None:
        held_out = validation.dataset(0, max(1, validate.count // validation.batch_size), 1).cache()
    state = run_fit(
        trainer,
        lambda start, stop: samples.dataset(start, stop, config.train.workers),
        config.train,
        config.run,
        config_hash=config_hash(config, _FREE),
        validation=held_out,
        validate_every=validate.every if validate else 0,
        metric="accuracy" if config.stage == "matcher" else "psnr_y",
        images=_pictures(trainer, held_out),
        report=report,
    )
    for path, reason in bad.items():
        report(f"skipped {path}: {reason}")
    if bad:
        report(f"{len(bad)} files were skipped")
    if state.stopped and state.stopped != "max_minutes":
        return state
    threshold = None
    if config.stage == "restorer" and held_out is not None and not model.gated:
        threshold = confidence_threshold(model, held_out)
    folder = save_model(config, model, state, command, policy, threshold)
    report(f"model written to {folder}")
    return state


def _matcher(config: MatcherConfig, report: Callable):
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
    )
    return network, trainer, training, validation, cache.bad


def _initialise_matcher(network: CorrespondenceNetwork, config: MatcherConfig) -> None:
    source = config.initial_weights
    if source is None:
        return
    if source != "imagenet" and Path(source).is_dir():
        network.load_weights(_verified_weights(source, CORRESPONDENCE))
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


def _restorer(config: RestorerConfig, report: Callable):
    cache = PhotoCache()
    data = config.data
    pairs = find_pairs(data.pairs, config.data_root, exclude=data.exclude)
    images = find_images(data.singles.images, config.data_root, exclude=data.exclude) if data.singles else ()
    training = RestorerSamples(
        pairs,
        cache,
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
        validation = RestorerSamples(
            held_out,
            cache,
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
    # Behind the initial weights, which have a matcher too: the one that the configuration names counts.
    model.correspondence.load_weights(_verified_weights(config.matcher, CORRESPONDENCE))
    if model.vgg is not None:
        _initialise_vgg(model, config)
    return model, RestorerTrainer(model), training, validation, cache.bad


def _take_initial_weights(model: C2Matching, folder: str, report: Callable) -> None:
    source, _ = load_super_resolution(folder)
    try:
        absent = model.take_weights(source)
    except ValueError as error:
        raise TfcorrError(f"initial_weights: {folder}: {error}") from error
    if absent:
        report(f"initial_weights: not in {folder}, start untrained: {', '.join(absent)}")


def _initialise_vgg(model: C2Matching, config: RestorerConfig) -> None:
    source = config.vgg_weights
    if source != "imagenet":
        source = str(resolve_data_path(source, config.data_root))
    try:
        load_imagenet_weights(model.vgg, source, "vgg19")
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise TfcorrError(f"vgg_weights: {error}") from error


def _pictures(trainer, dataset) -> Callable[[], dict[str, Any]] | None:
    if dataset is None or not hasattr(trainer, "pictures"):
        return None
    return lambda: trainer.pictures(next(iter(dataset.take(1))))


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
    """What the card of a super-resolution model tells of the matcher within it."""
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
    checksums = write_weights(folder, model)
    matcher = config.stage == "matcher"
    card = {
        "name": config.name,
        "job": CORRESPONDENCE if matcher else SUPER_RESOLUTION,
        "architecture": config.model if matcher else model.architecture,
        "licence": config.licence,
        "checksums": checksums,
        "metrics": {"validation": state.metrics} if state.metrics else {},
        "training": {
            "command": portable_command(command),
            "data": dataclasses.asdict(config.data),
            "data_licences": config.data_licences,
            "loss": dataclasses.asdict(config.loss) if matcher else "mean absolute error",
            "settings": dataclasses.asdict(config.train),
            "seed": state.seed,
            "steps": state.step,
            "seconds": round(state.seconds),
            "precision": precision,
            "matcher": None if matcher else _matcher_card(config.matcher),
            "tfcorr": tfcorr.__version__,
        },
    }
    if confidence is not None:
        card["confidence_threshold"] = round(confidence, 4)
    write_card(folder, card)
    return folder
