"""Robustness to scale and rotation (paper, section 5.4): correspondences with known truth.

The reference is the input itself, scaled or turned on a black canvas that holds all of it. Measured are the
average end-point error of the correspondences (AEE), the share of the points that are found within some
pixels, where no answer is a wrong one, and the PSNR of a model that gets this reference.

The paper gives neither its factors and angles nor its unit. Here errors are in pixels of the reference, and
the points are all pixels of the low-resolution input that have eight neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

import tfcorr
from tfcorr.config import ConfigError, RobustnessConfig
from tfcorr.imaging import downscale, evaluate_pair, upscale
from tfcorr.refsr import SCALE
from tfcorr.refsr.benchmark import find_contenders
from tfcorr.refsr.evaluation import (
    BICUBIC,
    Contender,
    ScoreCache,
    Statistic,
    texture_strength,
    textured,
)
from tfcorr.refsr.homography import scaled_and_turned
from tfcorr.refsr.layouts import TRUE
from tfcorr.refsr.matchers import Matcher, find_matcher, inner_points
from tfcorr.refsr.photos import DataError, PhotoCache, find_images
from tfcorr.refsr.plots import lines, write_plot
from tfcorr.refsr.reports import counted, markdown_table, mean, text_table, write_report

BORDER = SCALE
_MEASURES = ("aee", "within", "answered")


@dataclass(frozen=True)
class Transform:
    """A change of the reference: a scale (factor) or a rotation (degrees)."""

    kind: str
    amount: float

    @property
    def label(self) -> str:
        """In the tables: ``scale 1.25``."""
        return f"{self.kind} {self.amount:g}"

    def apply(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The changed image, black around it, and the (3, 3) matrix to its pixels, (x, y, 1)."""
        scale, degrees = (self.amount, 0.0) if self.kind == "scale" else (1.0, self.amount)
        matrix, (height, width) = scaled_and_turned(*image.shape[:2], scale, degrees)
        return cv2.warpPerspective(image, matrix, (width, height), flags=cv2.INTER_CUBIC), matrix


def end_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Where a matrix for (x, y, 1) takes (n, 2) points (y, x); (n, 2), (y, x)."""
    moved = np.concatenate([points[:, ::-1], np.ones((len(points), 1))], axis=1) @ matrix.T
    return moved[:, 1::-1] / moved[:, 2:]


def measure_matcher(matcher: Matcher, image: np.ndarray, transform: Transform, threshold: float) -> dict:
    """How well a matcher finds an image in its transformed self.

    Args:
        matcher: see `tfcorr.refsr.matchers`.
        image: (H, W, 3) uint8, sides multiples of 4.
        transform: of the reference.
        threshold: pixels of the reference up to which a point counts as found.

    Returns:
        ``aee``, the mean error in pixels of the points with an answer (None if there is none); ``within``,
        the share of all points that are found; ``answered``, the share with an answer.
    """
    small = downscale(image, SCALE)
    reference, matrix = transform.apply(image)
    points = inner_points(*small.shape[:2])
    found, answered = matcher.locate(small, reference, points)
    error = np.linalg.norm(found - end_points(points, matrix), axis=1)
    return {
        "aee": float(error[answered].mean()) if answered.any() else None,
        "within": float(np.mean(answered & (error <= threshold))),
        "answered": float(np.mean(answered)),
    }


def measure_model(contender: Contender, image: np.ndarray, transform: Transform) -> dict[str, float]:
    """PSNR of the Y channel of a model with the transformed image as its reference; ``psnr_y``."""
    result = contender.upscaler.upscale(downscale(image, SCALE), transform.apply(image)[0])
    return {"psnr_y": evaluate_pair(result, image, BORDER)["psnr_y"]}


def run(config: RobustnessConfig, report: Callable[[str], None] = print) -> tuple[dict, str]:
    """Measures matchers and models on the transformed images of a configuration.

    Returns:
        What is written to ``output``: ``matchers``, by name, transform and ``all`` or ``texture`` the
        statistics over images of `measure_matcher`; ``models``, those of ``psnr_y``, with ``bicubic``;
        ``images`` and ``texture``, the names; ``skipped``. And the table as text.

    Raises:
        TfcorrError: an image, a matcher or a model cannot be used.
    """
    transforms = [
        *(Transform("scale", factor) for factor in config.scales),
        *(Transform("rotation", degrees) for degrees in config.rotations),
    ]
    if not transforms or not (config.matchers or config.models):
        raise ConfigError("expected scales or rotations, and matchers or models")
    if any(factor <= 0 for factor in config.scales):
        raise ConfigError(f"scales: expected positive factors, got {list(config.scales)}")
    output = Path(config.output)
    images, skipped = _images(config)
    study = _Study(
        images,
        textured({path: texture_strength(image) for path, image in images.items()}),
        transforms,
        output.with_suffix(".cache.jsonl"),
        report,
    )
    matchers = _matchers(config, study)
    scores, models = _models(config, output, study)
    result = {
        "protocol": {
            "threshold": config.threshold,
            "crop": config.crop,
            "transforms": [transform.label for transform in transforms],
            "memory": config.memory,
            "models": models,
            "tfcorr": tfcorr.__version__,
        },
        "images": [_named(path) for path in images],
        "texture": sorted(_named(path) for path in study.textured),
        "matchers": matchers,
        "models": scores,
        "skipped": skipped,
    }
    tables = _tables(result, transforms)
    write_report(output, result, "\n".join(f"**{t}**\n\n{markdown_table(h, r)}" for t, h, r in tables))
    plots = len({transform.kind for transform in transforms}) * (bool(matchers) + bool(scores))
    plot = output.with_suffix(".svg")
    note = write_plot(plot, lambda axes: _draw(axes, result, transforms), columns=plots)
    return result, "\n".join(filter(None, [*(f"{t}\n{text_table(h, r)}\n" for t, h, r in tables), note]))


@dataclass(frozen=True)
class _Study:
    """The images, those with much texture, what is done to them, and where scores are kept."""

    images: dict[Path, np.ndarray]
    textured: set[Path]
    transforms: Sequence[Transform]
    cache: Path
    report: Callable[[str], None]

    def over_images(
        self, name: str, score: Callable[[Path, Transform], dict[str, float]], measures: Sequence[str]
    ) -> dict:
        """Statistics over all images and over those with much texture, by transform."""
        subsets = {"all": list(self.images), "texture": [p for p in self.images if p in self.textured]}
        statistics: dict[str, dict] = {}
        for transform in self.transforms:
            scores = {path: score(path, transform) for path in self.images}
            statistics[transform.label] = {
                subset: {measure: _statistic(scores[path][measure] for path in paths) for measure in measures}
                for subset, paths in subsets.items()
            }
            shown = statistics[transform.label]["all"][measures[0]]
            value = "no answer" if shown is None else f"{measures[0]} {shown['mean']:.2f}"
            self.report(f"{name}  {transform.label}  {value}")
        return statistics


def _matchers(config: RobustnessConfig, study: _Study) -> dict[str, dict]:
    """The statistics of each matcher by its name."""
    results = {}
    for name in config.matchers:
        matcher = find_matcher(name, config.weights, config.data_root)
        key = f"{matcher.fingerprint}-{config.crop}-{config.threshold}-{tfcorr.__version__}"
        cache = ScoreCache(study.cache, key)

        def score(path, transform, matcher=matcher, cache=cache):
            return cache.get(
                f"{path}|{transform.label}",
                lambda: measure_matcher(matcher, study.images[path], transform, config.threshold),
            )

        results[matcher.name] = study.over_images(matcher.name, score, _MEASURES)
    return results


def _models(config: RobustnessConfig, output: Path, study: _Study) -> tuple[dict[str, dict], dict[str, dict]]:
    """The statistics of each model by its name, and of bicubic interpolation; and what the models are."""
    setting = f"{BORDER}-{config.memory}-{tfcorr.__version__}-crop{config.crop}"
    contenders, models = find_contenders(config.models, (TRUE,), output, setting, config.memory)
    if not contenders:
        return {}, models
    bicubic = {
        path: evaluate_pair(upscale(downscale(image, SCALE), SCALE), image, BORDER)
        for path, image in study.images.items()
    }
    results = {BICUBIC: study.over_images(BICUBIC, lambda path, _: bicubic[path], ("psnr_y",))}
    for contender in contenders:

        def score(path, transform, contender=contender):
            return contender.cache.get(
                f"{path}|{transform.label}", lambda: measure_model(contender, study.images[path], transform)
            )

        results[contender.name] = study.over_images(contender.name, score, ("psnr_y",))
    return results, models


def _images(config: RobustnessConfig) -> tuple[dict[Path, np.ndarray], dict[str, str]]:
    """The middle squares of the photos by their paths, and the reasons why others are left out."""
    photos = PhotoCache(keep=1)
    images, small = {}, {}
    for path in find_images(config.images, config.data_root, only=config.only)[: config.limit]:
        photo = photos.get(path)
        if photo is None:
            continue
        side = min(config.crop, *photo.shape[:2]) // SCALE * SCALE
        if side < 64:
            small[str(path)] = f"{path}: {photo.shape[1]}x{photo.shape[0]} pixels, expected 64x64 at least"
            continue
        top, left = ((length - side) // 2 for length in photo.shape[:2])
        images[path] = np.ascontiguousarray(photo[top : top + side, left : left + side])
    skipped = {**{str(path): reason for path, reason in photos.bad.items()}, **small}
    if not images:
        raise DataError(f"none of the images can be used: {'; '.join(skipped.values())}")
    return images, skipped


def _named(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _statistic(values: Iterable[float | None]) -> dict | None:
    """Over the images that have a value; None if none has."""
    known = [value for value in values if value is not None]
    return vars(Statistic.of(known)) if known else None


def _tables(result: dict, transforms: Sequence[Transform]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table."""
    labels = [transform.label for transform in transforms]
    count = counted(len(result["images"]))
    threshold = f"{result['protocol']['threshold']:g}"
    titles = {
        ("matchers", "aee"): ("AEE in pixels of the reference", 2, 1),
        ("matchers", "within"): (f"points within {threshold} pixels, %", 1, 100),
        ("models", "psnr_y"): ("PSNR-Y, dB", 2, 1),
    }
    tables = []
    for (group, measure), (title, digits, factor) in titles.items():
        for subset in ("all", "texture") if result[group] else ():
            rows = [
                [name, *(_scaled(per[label][subset][measure], digits, factor) for label in labels)]
                for name, per in result[group].items()
            ]
            what = count if subset == "all" else f"texture subset, {counted(len(result['texture']))}"
            tables.append((f"{title}, {what}", ["", *labels], rows))
    return tables


def _scaled(statistic: dict | None, digits: int, factor: float) -> str:
    if statistic is None:
        return "no answer"
    return mean({key: statistic[key] * factor for key in ("mean", "error")}, digits)


def _draw(axes, result: dict, transforms: Sequence[Transform]) -> None:
    """AEE of the matchers and PSNR of the models over the amounts of each kind (figure 6)."""
    axes = iter(axes if isinstance(axes, list) else [axes])
    for group, measure, ylabel in (("matchers", "aee", "AEE, pixels"), ("models", "psnr_y", "PSNR-Y, dB")):
        for kind, unit in (("scale", "factor"), ("rotation", "degrees")):
            chosen = [transform for transform in transforms if transform.kind == kind]
            if not result[group] or not chosen:
                continue
            series = {
                name: [
                    (t.amount, per[t.label]["all"][measure]["mean"])
                    for t in chosen
                    if per[t.label]["all"][measure] is not None
                ]
                for name, per in result[group].items()
            }
            lines(next(axes), series, f"{kind}, {unit}", ylabel)
