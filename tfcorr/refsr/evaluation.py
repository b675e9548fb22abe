"""The benchmark protocol of reference-based super-resolution (paper, section 5.1, and its published code).

Both photos are cut to multiples of 4; the low-resolution image is Pillow's antialiased bicubic reduction by
4 of the 8-bit input; PSNR and SSIM are those of the Y channel, on the rounded output, without a border of 4
pixels. Means stand with their standard error, and models are compared by paired differences over the same
images.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

import tfcorr
from tfcorr.config import EvaluateConfig, resolve_data_path
from tfcorr.imaging import crop_to_multiple, downscale, evaluate_pair, upscale
from tfcorr.refsr.photos import DataError, Pair, PhotoCache, find_pairs

SCALE = 4
BICUBIC = "bicubic"
#: What a model may be given: the pair's reference, one of another scene, or none (then its input is the
#: reference).
REFERENCES = ("true", "unrelated", "none")


class Upscaler(Protocol):
    """What is evaluated: `tfcorr.SuperResolver` or anything like it."""

    def upscale(self, low_res: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
        """(h, w, 3) and (H, W, 3) or None, uint8 -> (4 h, 4 w, 3) uint8."""


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

    def __init__(self, path: Path | None, key: str):
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

    def get(self, image: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The scores of ``image``, computed unless they are known."""
        if image not in self._scores:
            self._scores[image] = compute()
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a", encoding="utf-8") as file:
                    entry = {"key": self.key, "image": image, "scores": self._scores[image]}
                    file.write(json.dumps(entry) + "\n")
        return self._scores[image]


def evaluate(
    upscaler: Upscaler,
    pairs: Sequence[Pair],
    *,
    references: Sequence[str] = ("true",),
    unrelated: Sequence[Path] = (),
    border: int = SCALE,
    cache: ScoreCache | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict:
    """Measure an upscaler, and bicubic interpolation beside it, on pairs of photos.

    Args:
        upscaler: the model.
        pairs: whole photos; positions are not used.
        references: which of `REFERENCES` the model is given, each in its own column of the result.
        unrelated: for each pair, the photo for ``unrelated``.
        border: pixels left out on each side.
        cache: of the scores.
        progress: takes a line after each image.

    Returns:
        A dictionary for JSON: ``summary``, for ``bicubic`` and each of ``references`` the statistics
        ``psnr_y`` and ``ssim_y``; ``differences``, paired, such as ``true - bicubic`` and ``true -
        unrelated``, in dB; ``images``, the scores of each; ``skipped``, files that cannot be read, with the
        reason.

    Raises:
        DataError: an unknown reference, no unrelated photos where they are asked for, or no pair that can
        be read.
    """
    unknown = set(references) - set(REFERENCES)
    if unknown:
        raise DataError(f"references: expected {', '.join(REFERENCES)}, got {', '.join(sorted(unknown))}")
    if "unrelated" in references and len(unrelated) != len(pairs):
        raise DataError(f"unrelated references: {len(unrelated)} for {len(pairs)} pairs")
    cache = cache or ScoreCache(None, "")
    photos = PhotoCache(keep=8)
    images = []
    for number, pair in enumerate(pairs):
        row = {"scene": pair.scene, "input": pair.input.name, "reference": pair.reference.name}
        files = {
            "true": pair.reference,
            "unrelated": unrelated[number] if len(unrelated) else None,
            "none": None,
        }
        needed = [pair.input, *(files[kind] for kind in references if files[kind] is not None)]
        if any(photos.get(path) is None for path in needed):
            continue
        truth = crop_to_multiple(photos.get(pair.input), SCALE)
        small = downscale(truth, SCALE)
        row[BICUBIC] = cache.get(
            f"{pair.input}|{BICUBIC}", lambda t=truth, s=small: _scores(upscale(s, SCALE), t, border)
        )
        for kind in references:

            def measure(kind=kind, truth=truth, small=small, files=files):
                reference = files[kind]
                if reference is not None:
                    reference = crop_to_multiple(photos.get(reference), SCALE)
                start = time.perf_counter()
                result = upscaler.upscale(small, reference)
                seconds = time.perf_counter() - start
                return {**_scores(result, truth, border), "seconds": round(seconds, 3)}

            row[kind] = cache.get(f"{pair.input}|{files[kind]}|{kind}", measure)
        images.append(row)
        shown = "  ".join(f"{kind} {row[kind]['psnr_y']:.2f}" for kind in (BICUBIC, *references))
        progress(f"{number + 1}/{len(pairs)}  {pair.scene}/{pair.input.name}  {shown}")
    if not images:
        raise DataError(f"none of the {len(pairs)} pairs can be read; the log names each file")
    return {
        "summary": {
            kind: {
                name: vars(Statistic.of(row[kind][name] for row in images)) for name in ("psnr_y", "ssim_y")
            }
            for kind in (BICUBIC, *references)
        },
        "differences": _differences(images, references),
        "images": images,
        "skipped": {str(path): reason for path, reason in photos.bad.items()},
    }


def _scores(image: np.ndarray, truth: np.ndarray, border: int) -> dict[str, float]:
    scores = evaluate_pair(image, truth, border)
    return {name: scores[name] for name in ("psnr_y", "ssim_y", "psnr_rgb")}


def _differences(images: list[dict], references: Sequence[str]) -> dict[str, dict]:
    """Paired differences of PSNR: each kind against bicubic, and ``true`` against the other references."""
    couples = [(kind, BICUBIC) for kind in references]
    if "true" in references:
        couples += [("true", kind) for kind in references if kind != "true"]
    return {
        f"{a} - {b}": vars(Statistic.of(row[a]["psnr_y"] - row[b]["psnr_y"] for row in images))
        for a, b in couples
    }


def list_digest(pairs: Sequence[Pair], unrelated: Sequence[Path] = ()) -> str:
    """Twelve hexadecimal digits that name a list of pairs: scenes and file names, in order."""
    rows = [[p.scene, p.input.name, p.reference.name] for p in pairs]
    rows += [[path.parent.name, path.name] for path in unrelated]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def table(result: dict) -> str:
    """The summary and differences of `evaluate` as lines of text."""
    lines = [f"{'':<22}{'PSNR-Y':>16}{'SSIM-Y':>18}"]
    for kind, statistics in result["summary"].items():
        psnr, ssim = statistics["psnr_y"], statistics["ssim_y"]
        name = kind if kind == BICUBIC else f"reference: {kind}"
        luma = f"{psnr['mean']:>8.3f} +- {psnr['error']:.3f}"
        lines.append(f"{name:<22}{luma}{ssim['mean']:>10.4f} +- {ssim['error']:.4f}")
    lines += ["", "paired differences of PSNR-Y, dB"]
    for name, difference in result["differences"].items():
        lines.append(f"{name:<22}{difference['mean']:>+8.3f} +- {difference['error']:.3f}")
    lines.append(f"{len(result['images'])} images; mean +- standard error")
    return "\n".join(lines)


def run_benchmark(config: EvaluateConfig, report: Callable[[str], None] = print) -> dict:
    """Evaluate the model that a configuration names and write the result to its ``output``.

    Returns:
        What `evaluate` returns, with ``model`` (name and checksum) and ``protocol`` (list, border, memory,
        version).

    Raises:
        TfcorrError: the model or the pairs cannot be used.
    """
    from tfcorr.pretrained import WEIGHTS_FILE, find_model
    from tfcorr.refsr.predictor import SuperResolver

    pairs = find_pairs([config.pairs], config.data_root)[: config.limit]
    unrelated = []
    if "unrelated" in config.references:
        unrelated = [_unrelated(pair, config) for pair in pairs]
    card = find_model(config.model)
    checksum = card.checksums[WEIGHTS_FILE]
    output = Path(config.output)
    # With less memory, references are reduced, and scores fall.
    protocol = {
        "border": config.border,
        "scale": SCALE,
        "memory": config.memory,
        "tfcorr": tfcorr.__version__,
    }
    key = f"{checksum[:16]}-{config.border}-{config.memory}-{tfcorr.__version__}"
    cache = ScoreCache(output.with_suffix(".cache.jsonl"), key)
    result = evaluate(
        SuperResolver.from_pretrained(config.model, memory=config.memory),
        pairs,
        references=config.references,
        unrelated=unrelated,
        border=config.border,
        cache=cache,
        progress=report,
    )
    protocol["list"] = list_digest(pairs, unrelated)
    result = {"model": {"name": card.name, "sha256": checksum}, "protocol": protocol, **result}
    write_result(output, result)
    return result


def benchmark(config: EvaluateConfig, report: Callable[[str], None] = print) -> tuple[dict, str]:
    """What `tfcorr evaluate` runs: the result of `run_benchmark`, and its table."""
    result = run_benchmark(config, report)
    return result, table(result)


def _unrelated(pair: Pair, config: EvaluateConfig) -> Path:
    try:
        return resolve_data_path(config.unrelated_path.format(**pair.columns), config.data_root)
    except KeyError as error:
        raise DataError(f"{config.pairs.csv}: no column {error}, which unrelated_path names") from None


def write_result(path: Path, result: dict) -> None:
    """Write a result as JSON, beside the target and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
