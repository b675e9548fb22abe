"""What a measuring process does for `tfcorr.bench.train`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfcorr.bench import measure

# Not timed: the first traces, the next ones find a queue that was filled meanwhile.
_WARM_UP = 3
_PHOTOS = 12


def run(job: dict[str, Any]) -> dict[str, Any]:
    """A job of `tfcorr.bench.train`."""
    measure.limit_threads(job["threads"])
    if job["measure"] == "memory":
        return {"extra_bytes": measure.peak_memory_growth(lambda: _first_steps(_stage(job), 2))}
    return _times(job)


@dataclasses.dataclass(frozen=True)
class _Stage:
    """A stage ready to train: its name, `StageTrainer`, `Samples`, and `Training` settings."""

    name: str
    trainer: Any
    samples: Any
    settings: Any


def _times(job: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf

    stage = _stage(job)
    step, batches = _first_steps(stage, _WARM_UP, job["steps"])
    waits, works, batch = [], [], None
    for _ in range(job["steps"]):
        start = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter()
        float(step(batch)["loss"])
        waits.append(waited - start)
        works.append(time.perf_counter() - waited)
    start = time.perf_counter()
    stage.samples.batch(_WARM_UP + job["steps"])
    input_seconds = time.perf_counter() - start
    parts = _fixed_parts(stage.trainer, batch)
    times = measure.interleaved_times({**parts, "gemm": measure.gemm()}, job["repeats"])
    gemm = times.pop("gemm")
    return {
        "stage": stage.name,
        "batch": stage.samples.batch_size,
        "waits": waits,
        "works": works,
        "input_s": input_seconds,
        "fixed": {name: sorted(seconds)[len(seconds) // 2] for name, seconds in times.items()} or None,
        "gemm_gflops": [measure.GEMM_FLOPS / seconds / 1e9 for seconds in gemm],
        "versions": {"tensorflow": tf.__version__},
    }


def _first_steps(stage: _Stage, count: int, more: int = 0) -> tuple[Callable, Iterator]:
    """Compiles as `run_fit` does, trains `count` steps, and returns the step and `more` further batches."""
    import tensorflow as tf

    from tfcorr.training.loop import compile_trainer

    settings, trainer = stage.settings, stage.trainer
    compile_trainer(trainer, settings)
    step = tf.function(trainer.train_step)
    batches = iter(stage.samples.dataset(0, count + more, settings.workers))
    for _ in range(count):
        step(next(batches))
    return step, batches


def _stage(job: dict[str, Any]) -> _Stage:
    """Builds data, networks and trainer of a configuration."""
    from tfcorr.config import load_config
    from tfcorr.training.loop import prepare

    config = load_config(job["config"])
    words = _overrides(config, job)
    if config.stage.startswith("semantic"):
        words.append(f"teacher.train.precision={job['precision']}")
        words += _halved("teacher.train.batch", config.teacher.train.batch, job)
        config = load_config(job["config"], [*words, *job["overrides"]])
        prepare(config.teacher.train)
        return _semantic_teacher(config, Path(job["made_up"]))
    words.append(f"train.precision={job['precision']}")
    words += _halved("train.batch", config.train.batch, job)
    config = load_config(job["config"], [*words, *job["overrides"]])
    prepare(config.train)
    from tfcorr.refsr import stages

    built = stages.build(config, report=lambda line: None)
    return _Stage(config.stage, built.trainer, built.samples, config.train)


def _halved(key: str, batch: int, job: dict[str, Any]) -> list[str]:
    return [f"{key}={max(1, (job['batch'] or batch) >> job['halvings'])}"]


def _overrides(config: Any, job: dict[str, Any]) -> list[str]:
    """Words that make a configuration runnable by itself: the shipped matcher, and made-up data."""
    root = job["data_root"]
    words = [f"data_root={root or job['made_up']}", "validation=null"]
    if config.stage == "matcher":
        words += ["initial_weights=null", *(["teacher=matcher-cpu"] if config.teacher else [])]
    elif config.stage == "restorer":
        words += ["initial_weights=null", "matcher=matcher-cpu"]
    if root is not None:
        return words
    _make_up(Path(job["made_up"]))
    if config.stage == "matcher":
        words += ["data.images=[photos]", "data.exclude=[]"]
    elif config.stage == "restorer":
        words += ["data.pairs=[{input_dir: input, reference_dir: reference}]", "data.exclude=[]"]
        words += ["data.singles.images=[photos]"] if config.data.singles else []
        words += ["loss.perceptual=null"] if config.loss.perceptual else []
    else:
        words += ["backbone_weights=null", "evaluation=null", f"teacher.synthetic.pool={4 * _PHOTOS}"]
        words += ["teacher.synthetic.source={images: [photos]}"]
    return words


def _make_up(folder: Path) -> None:
    """Writes photographs of 640 x 480 pixels and pairs of 160 x 160, once."""
    from PIL import Image

    from tfcorr.bench.networks import make_images

    if (folder / "photos").is_dir():
        return
    for name in ("photos", "input", "reference"):
        (folder / name).mkdir(parents=True)
    for number in range(_PHOTOS):
        photo = make_images(120, 160, number)[1]
        Image.fromarray(photo).save(folder / "photos" / f"{number:03}.jpg", quality=95)
        for name, shift in (("input", 0), ("reference", 40)):
            patch = photo[100 + shift : 260 + shift, 200 + shift : 360 + shift]
            Image.fromarray(patch).save(folder / name / f"{number:03}.png")


def _semantic_teacher(config: Any, folder: Path) -> _Stage:
    """The teacher of a regime on warped photographs, as `tfcorr.semantic.stages` trains it."""
    from tfcorr.backbones import backbone
    from tfcorr.config import resolve_data_path
    from tfcorr.semantic.data import PooledSamples, WarpedSamples, make_pool
    from tfcorr.semantic.datasets import find_image_set
    from tfcorr.semantic.features import Extractor
    from tfcorr.semantic.network import SemanticMatchingNetwork
    from tfcorr.semantic.teacher import TeacherHead
    from tfcorr.semantic.training import TeacherTrainer
    from tfcorr.training.photos import PhotoCache

    source, teacher = config.backbone_weights, config.teacher
    if source not in (None, "imagenet"):
        source = str(resolve_data_path(source, config.data_root))
    network = backbone(config.backbone, source, config.backbone_arguments)
    extractor = Extractor(network, config.size)
    head = TeacherHead(tuple(shape[2] for shape in extractor.shapes.values()), **teacher.model)
    head.build()
    pool = teacher.synthetic.pool
    samples = WarpedSamples(
        find_image_set(teacher.synthetic.source, config.data_root),
        PhotoCache(),
        size=config.size,
        grid=extractor.grid,
        warps=teacher.synthetic.warps,
        jitter=teacher.synthetic.jitter,
        batch=1 if pool else teacher.train.batch,
        seed=teacher.train.seed,
    )
    if pool:
        records = make_pool(folder / f"pool-{config.size}", samples, extractor, pool)
        samples = PooledSamples(records, teacher.train.batch, teacher.train.seed)
    whole = SemanticMatchingNetwork(head, None if pool else network)
    whole.build()
    trainer = TeacherTrainer(whole, seed=teacher.train.seed, **dataclasses.asdict(teacher.loss))
    return _Stage("semantic teacher", trainer, samples, teacher.train)


def _fixed_parts(trainer: Any, batch: dict) -> dict[str, Callable[[], Any]]:
    """What a step computes from networks that do not learn, as calls to be timed; none without such networks.

    `all_s`: extractors and matching. `features_s`: the extractor of the features that are aggregated, which
    known matches would not spare.
    """
    import tensorflow as tf

    from tfcorr.ops import match_patches
    from tfcorr.refsr.extractor import FEATURE_STRIDES
    from tfcorr.refsr.matching import PATCH_SIZE, l2_normalize
    from tfcorr.refsr.training import RestorerTrainer

    if not isinstance(trainer, RestorerTrainer):
        return {}
    model = trainer.model
    extractor = model.vgg or model.correspondence.reference_extractor
    deepest = max(model.restorer.reference_features, key=FEATURE_STRIDES.get)

    @tf.function
    def everything(lr, reference):
        features = model.extract(reference)
        matches = match_patches(model.describe(lr), l2_normalize(features["conv3_1"]), patch_size=PATCH_SIZE)
        return tuple(matches), features

    @tf.function
    def features(reference):
        return extractor(reference, last=deepest)

    lr, reference = batch["lr"], batch["reference"]
    return {
        "all_s": lambda: everything(lr, reference)[0][0].numpy(),
        "features_s": lambda: features(reference)[deepest].numpy(),
    }
