"""The benchmark protocol of reference-based super-resolution (paper, section 5.1, and its published code).

Both photos are cut to multiples of 4; the low-resolution image is Pillow's antialiased bicubic reduction by
4 of the 8-bit input; PSNR and SSIM are those of the Y channel, on the rounded output, without a border of 4
pixels. Means stand with their standard error, and models are compared by paired differences over the same
images.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from tfcorr.imaging import crop_to_multiple, downscale, evaluate_pair, pad_to_size, rgb_to_y, upscale
from tfcorr.refsr import SCALE
from tfcorr.refsr.layouts import NONE, TRUE, Case, check_references
from tfcorr.refsr.photos import DataError, PhotoCache

BICUBIC = "bicubic"
PADDINGS = ("none", "published")
MEASURES = ("psnr_y", "ssim_y")


class Upscaler(Protocol):
    """What is evaluated: `tfcorr.SuperResolver` or anything like it."""

    def upscale(self, low_res: np.ndarray, reference: list[np.ndarray] | np.ndarray | None) -> np.ndarray:
        """(h, w, 3) and (H, W, 3), several of those, or None, uint8 -> (4 h, 4 w, 3) uint8."""


class Figures(Protocol):
    """Where contact sheets go, see `tfcorr.refsr.figures.ContactSheets`."""

    def wants(self, case: Case, contender: Contender, name: str) -> bool:
        """Whether this result is to be drawn."""

    def draw(
        self,
        case: Case,
        contender: Contender,
        name: str,
        small: np.ndarray,
        references: list[np.ndarray],
        truth: np.ndarray,
    ) -> np.ndarray:
        """Upscales and draws; returns the upscaled image."""


@dataclass(frozen=True)
class Statistic:
    """A mean over images and its standard error (sample deviation / sqrt(n); 0 for one image)."""

    mean: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Statistic:
        """The statistic of some numbers, at least one."""
        numbers = np.asarray(list(values), np.float64)
        error = numbers.std(ddof=1) / math.sqrt(len(numbers)) if len(numbers) > 1 else 0.0
        return cls(float(numbers.mean()), float(error), len(numbers))


class ScoreCache:
    """Scores of single images in a file of JSON lines, so that an interrupted evaluation goes on.

    Args:
        path: of the file; None keeps nothing.
        key: of everything that a score depends on; lines with another key are not used.
    """

    def __init__(self, path: Path | None = None, key: str = ""):
        self.path = path
        self.key = key
        self._scores: dict[str, dict[str, float]] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    # The line that was being written when the evaluation was interrupted.
                    continue
                if entry["key"] == key:
                    self._scores[entry["image"]] = entry["scores"]

    def get(
        self, image: str, compute: Callable[[], dict[str, float]], *, again: bool = False
    ) -> dict[str, float]:
        """The scores of ``image``, computed unless they are known, or ``again`` for what else that does."""
        if again or image not in self._scores:
            scores = compute()
            if self.path is not None and scores != self._scores.get(image):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a", encoding="utf-8") as file:
                    entry = {"key": self.key, "image": image, "scores": scores}
                    file.write(json.dumps(entry) + "\n")
            self._scores[image] = scores
        return self._scores[image]


@dataclass(frozen=True)
class Contender:
    """A model to be measured.

    Attributes:
        name: in the tables.
        upscaler: the model.
        references: names of the sets of references that it is given, each in its own row.
        cache: of its scores.
    """

    name: str
    upscaler: Upscaler
    references: tuple[str, ...] = (TRUE,)
    cache: ScoreCache = field(default_factory=ScoreCache)


def evaluate(
    contenders: Sequence[Contender],
    cases: Sequence[Case],
    *,
    border: int = SCALE,
    padding: str = "none",
    group_by: Sequence[str] = (),
    texture: bool = False,
    figures: Figures | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict:
    """Measures models, and bicubic interpolation beside them, on the images of a benchmark.

    Args:
        contenders: the models, with different names.
        cases: the images, see `tfcorr.refsr.layouts`.
        border: pixels left out on each side.
        padding: ``published`` brings input and references to their common size with zeros at right and
            bottom, before the low resolution is made, and cuts the result back; ``none`` leaves them.
        group_by: columns of the list; the images with one value there make a subset.
        texture: whether to make a subset of the third of the inputs with the highest `texture_strength`.
        figures: draws contact sheets.
        progress: takes a line after each result.

    Returns:
        A dictionary for JSON: ``summary``, for ``bicubic`` and each model and its references the statistics
        ``psnr_y`` and ``ssim_y``; ``differences`` of PSNR, paired, such as ``true - bicubic``, in dB;
        ``subsets`` with the same two and the number of images; ``texture``, the inputs of that subset;
        ``images``, the scores of each; ``skipped``, files that cannot be read, with the reason. With one
        model the rows have the names of its references, else ``model: reference``.

    Raises:
        DataError: a reference that the cases do not have, another padding, names that are not different, or
            no image that can be read.
    """
    if padding not in PADDINGS:
        raise DataError(f"padding: expected {' or '.join(PADDINGS)}, got {padding!r}")
    if len({contender.name for contender in contenders}) != len(contenders):
        raise DataError(f"models: names occur twice: {', '.join(c.name for c in contenders)}")
    for contender in contenders:
        check_references(cases, contender.references)
    photos = PhotoCache(keep=8)
    bicubic: dict[Path, tuple[dict[str, float], float]] = {}
    rows: dict[int, dict] = {}
    needed = {name for contender in contenders for name in contender.references}
    for number, case in enumerate(cases):
        files = [case.input, *(path for name in sorted(needed) for path in case.references[name])]
        # All of them are read, so that every one that cannot be is named.
        if [path for path in files if photos.get(path) is None]:
            continue
        if case.input not in bicubic:
            truth = crop_to_multiple(photos.get(case.input), SCALE)
            enlarged = upscale(downscale(truth, SCALE), SCALE)
            bicubic[case.input] = _scores(enlarged, truth, border), texture_strength(truth)
        scores, strength = bicubic[case.input]
        rows[number] = {
            "scene": case.scene,
            "input": _named(case.input),
            "references": {name: list(map(_named, case.references[name])) for name in sorted(needed)},
            **{column: case.columns[column] for column in group_by if column in case.columns},
            "texture": round(strength, 4),
            BICUBIC: scores,
        }
    if not rows:
        raise DataError(f"none of the {len(cases)} images can be read; the log names each file")

    labels = row_labels(contenders)
    # In the order of the references: their features are then computed once for all images that share them.
    tasks = sorted(
        (place, name, [str(path) for path in cases[number].references[name]], number)
        for place, contender in enumerate(contenders)
        for name in contender.references
        for number in rows
    )
    for done, (place, name, files, number) in enumerate(tasks, start=1):
        contender, case = contenders[place], cases[number]
        label = labels[place, name]

        def measure(contender=contender, case=case, name=name):
            return _measure(contender, case, name, photos, border, padding, figures)

        # Files of one reference by their path alone, and None for none: keys of older caches.
        key = f"{case.input}|{'|'.join(files) if files else None}|{name}"
        draw = figures is not None and figures.wants(case, contender, name)
        rows[number][label] = contender.cache.get(key, measure, again=draw)
        shown = "  ".join(f"{n} {rows[number][n]['psnr_y']:.2f}" for n in (BICUBIC, label))
        progress(f"{done}/{len(tasks)}  {_named(case.input)}  {shown}")

    images = [rows[number] for number in sorted(rows)]
    names = (BICUBIC, *labels.values())
    couples = _couples(contenders, labels)
    result = _summary(images, names, couples)
    result["subsets"] = _subsets(images, names, couples, group_by)
    if texture:
        chosen = textured({path: strength for path, (_, strength) in bicubic.items()})
        result["texture"] = sorted(map(_named, chosen))
        subset = [rows[number] for number in sorted(rows) if cases[number].input in chosen]
        result["subsets"]["texture"] = _summary(subset, names, couples)
    result["images"] = images
    result["skipped"] = {str(path): reason for path, reason in photos.bad.items()}
    return result


def texture_strength(image: np.ndarray) -> float:
    """Mean length of the gradient of Y by central differences: (H, W, 3) uint8 -> grey levels a pixel."""
    down, across = np.gradient(rgb_to_y(image))
    return float(np.hypot(down, across).mean())


def textured(strengths: Mapping[Path, float]) -> set[Path]:
    """The third (rounded up) of some images with the highest `texture_strength`."""
    ordered = sorted(strengths, key=lambda path: (-strengths[path], path))
    return set(ordered[: math.ceil(len(ordered) / 3)])


def degrade(
    truth: np.ndarray, references: Sequence[np.ndarray], padding: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The low-resolution image, and the references as a model gets them.

    Args:
        truth: (H, W, 3) uint8, sides multiples of 4.
        references: each (H', W', 3) uint8.
        padding: see `evaluate`.

    Returns:
        (h, w, 3) uint8, and references whose sides are multiples of 4. With ``published`` padding and
        references of other sizes, h and w belong to the common size.
    """
    references = [crop_to_multiple(reference, SCALE) for reference in references]
    if padding == "published" and references:
        size = tuple(np.max([image.shape[:2] for image in (truth, *references)], axis=0))
        truth = pad_to_size(truth, size)
        references = [pad_to_size(reference, size) for reference in references]
    return downscale(truth, SCALE), references


def _named(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _measure(
    contender: Contender,
    case: Case,
    name: str,
    photos: PhotoCache,
    border: int,
    padding: str,
    figures: Figures | None,
) -> dict[str, float]:
    truth = crop_to_multiple(photos.get(case.input), SCALE)
    small, references = degrade(truth, [photos.get(path) for path in case.references[name]], padding)
    start = time.perf_counter()
    if figures is not None and figures.wants(case, contender, name):
        result = figures.draw(case, contender, name, small, references, truth)
    else:
        given = references[0] if len(references) == 1 else references or None
        result = contender.upscaler.upscale(small, given)
    seconds = time.perf_counter() - start
    result = result[: truth.shape[0], : truth.shape[1]]
    return {**_scores(result, truth, border), "seconds": round(seconds, 3)}


def _scores(image: np.ndarray, truth: np.ndarray, border: int) -> dict[str, float]:
    scores = evaluate_pair(image, truth, border)
    return {name: scores[name] for name in (*MEASURES, "psnr_rgb")}


def row_labels(contenders: Sequence[Contender]) -> dict[tuple[int, str], str]:
    """The name of each row of a table, by the model's place and the references' name."""
    return {
        (place, name): name if len(contenders) == 1 else f"{contender.name}: {name}"
        for place, contender in enumerate(contenders)
        for name in contender.references
    }


def _couples(contenders: Sequence[Contender], labels: Mapping[tuple[int, str], str]) -> list[tuple[str, str]]:
    """Which rows are subtracted: each and bicubic; ``true`` and a model's other references; the first model
    and each other one with the same references, or with none where the other takes none."""
    couples = [(label, BICUBIC) for label in labels.values()]
    for place, contender in enumerate(contenders):
        if TRUE in contender.references:
            others = [name for name in contender.references if name != TRUE]
            couples += [(labels[place, TRUE], labels[place, name]) for name in others]
    for place, contender in list(enumerate(contenders))[1:]:
        for first in contenders[0].references:
            other = NONE if contender.references == (NONE,) else first
            if other in contender.references:
                couples.append((labels[0, first], labels[place, other]))
    return couples


def _summary(images: Sequence[dict], names: Sequence[str], couples: Sequence[tuple[str, str]]) -> dict:
    def statistic(values: Iterable[float]) -> dict:
        return vars(Statistic.of(values))

    return {
        "count": len(images),
        "summary": {
            name: {measure: statistic(row[name][measure] for row in images) for measure in MEASURES}
            for name in names
        },
        "differences": {
            f"{a} - {b}": statistic(row[a]["psnr_y"] - row[b]["psnr_y"] for row in images) for a, b in couples
        },
    }


def _subsets(
    images: Sequence[dict], names: Sequence[str], couples: Sequence[tuple[str, str]], columns: Sequence[str]
) -> dict[str, dict]:
    subsets = {}
    for column in columns:
        values = sorted({row[column] for row in images if column in row})
        if not values:
            raise DataError(f"group_by: the list has no column {column!r}")
        for value in values:
            chosen = [row for row in images if row.get(column) == value]
            subsets[f"{column} {value}"] = _summary(chosen, names, couples)
    return subsets
