"""Training of the yardstick, a single-image network: samples, trainer, and the stage `single_image`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from keras import ops

import tfcorr
from tfcorr.atomic import check_folder
from tfcorr.config import SingleImageConfig, config_hash
from tfcorr.errors import TfcorrError
from tfcorr.imaging.depth import convert_depth
from tfcorr.imaging.resize import downscale
from tfcorr.pretrained import SINGLE_IMAGE
from tfcorr.refsr import SCALE
from tfcorr.refsr.homography import orient
from tfcorr.refsr.losses import reconstruction_loss
from tfcorr.refsr.photos import DataError, PhotoCache, at_least, find_images
from tfcorr.refsr.single_image import SingleImageNetwork
from tfcorr.refsr.stages import FREE_KEYS, pictures
from tfcorr.refsr.training import psnr_y
from tfcorr.refsr.upsampling import BicubicUpsampling
from tfcorr.training.callbacks import RunState
from tfcorr.training.distribution import is_chief, make_strategy
from tfcorr.training.loop import prepare, run_fit
from tfcorr.training.model_folder import portable_command, write_model
from tfcorr.training.samples import Samples
from tfcorr.training.tensorboard import flattened
from tfcorr.training.trainer import StageTrainer

__all__ = ["SingleImageSamples", "SingleImageTrainer", "train"]


class SingleImageSamples(Samples):
    """Crops of photos and what Pillow's antialiased bicubic reduction by 4 leaves of them.

    A sample has ``hr`` (crop, crop, 3) and ``lr`` (crop/4, crop/4, 3), float32 in [0, 1] with 8-bit values;
    flipped and transposed at random.

    Args:
        images: paths of photos; those with a side below ``crop`` are enlarged to it.
        cache: decoded photos.
        crop: side of the crop, a multiple of 4.
        batch, seed, augment: see `tfcorr.training.samples.Samples`; without ``augment`` the middle is cut.
    """

    def __init__(
        self,
        images: Sequence[Path],
        cache: PhotoCache,
        *,
        crop: int,
        batch: int,
        seed: int,
        augment: bool = True,
    ):
        if crop <= 0 or crop % SCALE:
            raise DataError(f"crop must be a positive multiple of {SCALE}, got {crop}")
        super().__init__(images, batch, seed, augment)
        self.cache = cache
        self.crop = crop

    def sample(self, item: Path, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        photo = self.cache.get(item)
        if photo is None:
            return None
        photo = at_least(photo, self.crop)
        room = [side - self.crop for side in photo.shape[:2]]
        y, x = (int(rng.integers(r + 1)) if self.augment else r // 2 for r in room)
        image = photo[y : y + self.crop, x : x + self.crop]
        if self.augment:
            image = orient(image, *(rng.random(3) < 0.5))
        image = np.ascontiguousarray(image)
        return {
            "lr": convert_depth(downscale(image, SCALE), np.float32),
            "hr": convert_depth(image, np.float32),
        }


class SingleImageTrainer(StageTrainer):
    """Trains a single-image network with the mean absolute error.

    A step reports ``loss``; an evaluation ``psnr_y`` and ``gain``, the decibels over bicubic upsampling (Y of
    the 8-bit images, border 4, mean over the crops).

    Args:
        network: a built `SingleImageNetwork`, trained in place.
    """

    def __init__(self, network: SingleImageNetwork, **kwargs):
        super().__init__(("psnr_y", "gain"), **kwargs)
        self.network = network
        self._bicubic = BicubicUpsampling(SCALE, quantize=True, dtype="float32")

    def call(self, inputs, training=None):
        return self.network(inputs["lr"], training=training)

    def losses_of(self, data, training):
        return {"loss": reconstruction_loss(data["hr"], self(data, training=training))}

    def measures_of(self, data):
        psnr = psnr_y(self(data), data["hr"])
        return {"psnr_y": psnr, "gain": psnr - psnr_y(self._bicubic(data["lr"]), data["hr"])}

    def pictures(self, data) -> dict:
        """Enlarged input, output and truth of a batch beside each other: (B, H, 3 W, 3)."""
        parts = ops.concatenate([self._bicubic(data["lr"]), self(data), data["hr"]], axis=2)
        return {"bicubic, restored, truth": ops.clip(parts, 0.0, 1.0)}


def train(
    config: SingleImageConfig, command: Sequence[str], report: Callable[[str], None] = print
) -> RunState:
    """Runs the stage to its end, or until it is stopped, and writes its model folder.

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
    cache = PhotoCache()
    data, validation = config.data, config.validation
    photos = find_images(data.images, config.data_root, exclude=data.exclude)
    samples = SingleImageSamples(
        photos, cache, crop=data.crop, batch=config.train.batch, seed=config.train.seed
    )
    held_out = None
    if validation:
        photos = find_images(validation.images, config.data_root, only=validation.only)[: validation.count]
        middles = SingleImageSamples(
            photos, cache, crop=validation.crop, batch=len(photos), seed=0, augment=False
        )
        held_out = middles.dataset(0, 1, 1).cache()
    with strategy.scope():
        try:
            network = SingleImageNetwork(**config.model)
        except (TypeError, ValueError) as error:
            raise TfcorrError(f"model: {error}") from error
        network.build()
        trainer = SingleImageTrainer(network)
    report(
        f"{config.name}: {len(samples.items)} images, {network.count_params():,} trained parameters, {policy}"
    )
    state = run_fit(
        trainer,
        lambda start, stop: samples.dataset(start, stop, config.train.workers),
        config.train,
        config.run,
        config_hash=config_hash(config, FREE_KEYS),
        data_key=samples.key,
        validation=held_out,
        validate_every=validation.every if validation else 0,
        metric="psnr_y",
        images=pictures(trainer, samples, held_out),
        parameters=flattened(config),
        report=report,
    )
    for path, reason in cache.bad.items():
        report(f"skipped {path}: {reason}")
    if (state.stopped and state.stopped != "max_minutes") or not is_chief(strategy):
        return state
    folder = _save(config, network, state, command, policy)
    report(f"model written to {folder}")
    return state


def _save(
    config: SingleImageConfig,
    network: SingleImageNetwork,
    state: RunState,
    command: Sequence[str],
    precision: str,
) -> Path:
    folder = Path(config.output)
    card = {
        "name": config.name,
        "job": SINGLE_IMAGE,
        "architecture": network.architecture,
        "licence": config.licence,
        "metrics": {"validation": state.metrics} if state.metrics else {},
        "training": {
            "command": portable_command(command),
            "data": dataclasses.asdict(config.data),
            "data_licences": config.data_licences,
            "loss": "mean absolute error",
            "settings": dataclasses.asdict(config.train),
            "seed": state.seed,
            "steps": state.step,
            "seconds": round(state.seconds),
            "precision": precision,
            "tfcorr": tfcorr.__version__,
        },
    }
    write_model(folder, network, card, config.half_weights)
    return folder
