"""References for inputs out of a folder of candidates, in the spirit of WR-SR (paper, section 4).

The paper searched the web for photos that look like an input, kept the 50 most similar, chose the most
suitable one by hand, scaled references that were much larger to the size of the input, and abandoned inputs
without a proper one. Here a global descriptor (colours, and edges by place) stands for the search, matches of
local features that one view of a scene explains for the choice, and a contact sheet for the eye that should
go over it.

What is written is the layout of WR-SR, ``input/NNN.png`` and ``ref/NNN_ref.png`` with the list ``pairs.txt``,
and beside it ``scores.csv``, ``sheets/NNN.png`` and ``collect.jsonl``, from which an interrupted run goes on.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from tfcorr.atomic import append_line, write_text
from tfcorr.errors import TfcorrError
from tfcorr.imaging import convert_depth, read_image, resize_bicubic, upscale, write_image
from tfcorr.imaging.errors import ImageError
from tfcorr.imaging.figure import contact_sheet
from tfcorr.refsr import SCALE
from tfcorr.refsr.selection import ReferencePool
from tfcorr.refsr.sift import SiftFeatures, epipolar_inliers, match_sift, relative_scale, sift_features

COLUMNS = ("name", "status", "input", "rank", "candidate", "score", "global", "matches", "inliers", "scale")
FOUND, NOTHING = "found", "nothing similar"
_STATE = "collect.jsonl"
_SUFFIX = ".png"

# Photos are compared at this long side, in pixels.
_THUMBNAIL = 128
_LOCAL = 1024
_FEATURES = 3000
# Features of so many candidates are kept, 1.5 MB each.
_REMEMBERED = 128
# Above this correlation of small grey images, one photo is the other again, resized or compressed anew.
_SAME = 0.985
_SAME_SIDE = 32
_SHOWN = 7


@dataclass(frozen=True)
class Options:
    """How references are chosen.

    Attributes:
        pool: candidates that a global descriptor leaves for the comparison of local features; 50 in the
            paper.
        minimum: score below which an input is abandoned: matches that one view explains, or, with a model,
            the mean score of its patches.
        duplicates: whether the input itself may be its reference, and pictures nearly the same.
        largest: references whose long side is more than this many times the input's are reduced to the
            input's.
        low_resolution: whether the inputs are small images that are to be enlarged 4 times, instead of sharp
            ones that a benchmark would reduce.
    """

    pool: int = 50
    minimum: float = 25.0
    duplicates: bool = False
    largest: float = 1.25
    low_resolution: bool = False


@dataclass(frozen=True)
class Candidate:
    """A candidate for one input: its file and its scores; ``scale``, how much larger things are in it."""

    path: str
    score: float
    similarity: float
    matches: int | None = None
    inliers: int | None = None
    scale: float | None = None


def collect(
    inputs: Sequence[Path],
    candidates: Sequence[Path],
    output: Path,
    options: Options,
    *,
    pool: ReferencePool | None = None,
    fingerprint: str = "sift",
    report: Callable[[str], None] = print,
) -> tuple[int, list[str]]:
    """Finds a reference for each input and writes all of them in the layout of WR-SR.

    Args:
        inputs: image files; number NNN of the output is the place in this order.
        candidates: image files.
        output: folder to write.
        options: see `Options`.
        pool: empty, with the model that compares; None compares by SIFT.
        fingerprint: of what compares; a run goes on only with the same one.
        report: takes a line for each input.

    Returns:
        How many inputs have a reference, and one message for each file that cannot be read.

    Raises:
        TfcorrError: no input or candidate can be read, or the folder holds the output of other inputs.
    """
    state = _State(output, inputs, candidates, options, fingerprint)
    library = _Library(candidates, pool)
    problems = list(library.problems)
    names = _names(len(inputs))
    rows = []
    for number, (name, path) in enumerate(zip(names, inputs, strict=True), start=1):
        known = state.get(name)
        if known is None:
            try:
                picture = _pixels(path)
            except ImageError as error:
                problems.append(str(error))
                report(f"{number}/{len(inputs)}  {path.name}: cannot be read")
                continue
            ranking = library.rank(path, picture, options)
            known = _write(output, name, picture, ranking, options)
            state.add(name, known)
        rows.append((name, path, known))
        report(f"{number}/{len(inputs)}  {_line(path, known, options)}")
    if not rows:
        raise TfcorrError(f"none of the {len(inputs)} inputs can be read; the first: {problems[-1]}")
    found = [name for name, _, ranking in rows if _accepted(ranking, options)]
    pairs = "".join(f"{name}{_SUFFIX} {name}_ref{_SUFFIX}\n" for name in found)
    write_text(output / "pairs.txt", pairs)
    write_text(output / "scores.csv", _scores(rows, options))
    return len(found), problems


class _Library:
    """Candidates: what is known of each is computed once."""

    def __init__(self, paths: Sequence[Path], pool: ReferencePool | None):
        self.problems: list[str] = []
        self._paths: list[Path] = []
        self._pool = pool
        descriptors, small = [], []
        for path in paths:
            try:
                picture = _pixels(path)
            except ImageError as error:
                self.problems.append(str(error))
                continue
            self._paths.append(path)
            descriptors.append(global_descriptor(picture))
            small.append(_tiny(picture))
            if pool is not None:
                pool.add(picture)
        if not self._paths:
            first = self.problems[0]
            raise TfcorrError(f"none of the {len(paths)} candidates can be read; the first: {first}")
        self._descriptors, self._small = np.stack(descriptors), np.stack(small)
        self._features = functools.lru_cache(_REMEMBERED)(self._features_of)

    def rank(self, path: Path, picture: np.ndarray, options: Options) -> list[Candidate]:
        """The candidates for an input, the best first; empty if all are the input itself."""
        similarity = self._descriptors @ global_descriptor(picture)
        allowed = [
            number
            for number in range(len(self._paths))
            if options.duplicates or not self._same(number, path, picture)
        ]
        nearest = sorted(allowed, key=lambda number: (-similarity[number], number))[: options.pool]
        if self._pool is not None:
            small = picture if options.low_resolution else _reduced(picture)
            ratings = self._pool.rate(small, nearest)
            found = [
                Candidate(str(self._paths[number]), round(ratings[number], 4), float(similarity[number]))
                for number in nearest
            ]
        else:
            sharp = upscale(picture, SCALE) if options.low_resolution else picture
            features = _features(sharp)
            found = [self._compared(number, features, float(similarity[number])) for number in nearest]
        return sorted(found, key=lambda candidate: (-candidate.score, -candidate.similarity))

    def _compared(self, number: int, features: SiftFeatures, similarity: float) -> Candidate:
        here, there = match_sift(features, self._features(number))
        inliers = epipolar_inliers(here, there)
        count = int(inliers.sum())
        scale = relative_scale(here[inliers], there[inliers])
        return Candidate(str(self._paths[number]), count, similarity, len(here), count, scale)

    def _features_of(self, number: int) -> SiftFeatures:
        return _features(_pixels(self._paths[number]))

    def _same(self, number: int, path: Path, picture: np.ndarray) -> bool:
        if self._paths[number].resolve() == path.resolve():
            return True
        return float((self._small[number] * _tiny(picture)).sum()) > _SAME


class _State:
    """What an earlier run with the same files and options has found, by name."""

    def __init__(
        self,
        output: Path,
        inputs: Sequence[Path],
        candidates: Sequence[Path],
        options: Options,
        fingerprint: str,
    ):
        self._file = output / _STATE
        self._output = output
        self._known: dict[str, list[Candidate]] = {}
        files = [*inputs, None, *candidates]
        text = json.dumps([list(map(_stamp, files)), asdict(options), fingerprint])
        self._key = hashlib.sha256(text.encode()).hexdigest()[:16]
        if not self._file.is_file():
            if (output / "input").exists() or (output / "ref").exists():
                raise TfcorrError(
                    f"{output}: has a folder input or ref that is not from here; choose another --output"
                )
            return
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                # The line that was being written when the run was interrupted.
                continue
            if entry["key"] != self._key:
                raise TfcorrError(
                    f"{output}: holds the references of other inputs, candidates or options; choose another "
                    "--output, or remove it"
                )
            self._known[entry["name"]] = [Candidate(**candidate) for candidate in entry["ranking"]]

    def get(self, name: str) -> list[Candidate] | None:
        """The ranking for an input whose files are there."""
        if name in self._known and (self._output / "sheets" / f"{name}{_SUFFIX}").is_file():
            return self._known[name]
        return None

    def add(self, name: str, ranking: list[Candidate]) -> None:
        """Notes a ranking whose files have been written."""
        entry = {"key": self._key, "name": name, "ranking": [asdict(candidate) for candidate in ranking]}
        append_line(self._file, json.dumps(entry))


def global_descriptor(image: np.ndarray) -> np.ndarray:
    """What a photo looks like from afar: the shares of colours, and the directions of edges by place.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        float64 (512 + 128,), of unit length: square roots of the shares of 8x8x8 colours (CIE Lab), and of
        the gradients' strengths in 8 directions in each of 4x4 fields.
    """
    small = _fitted(image, _THUMBNAIL)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    colours = cv2.calcHist([lab], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3).ravel().astype(np.float64)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float64)
    down, across = np.gradient(grey)
    strength = np.hypot(down, across)
    # Directions of edges: a half turn changes nothing.
    direction = (np.arctan2(down, across) % np.pi / np.pi * 8).astype(int) % 8
    row, column = (np.arange(length) * 4 // length for length in grey.shape)
    field = (row[:, None] * 4 + column[None]) * 8 + direction
    edges = np.bincount(field.ravel(), strength.ravel(), minlength=128)
    parts = [np.sqrt(part / max(part.sum(), 1e-9)) for part in (colours, edges)]
    joined = np.concatenate(parts)
    return joined / max(np.linalg.norm(joined), 1e-9)


def _write(
    output: Path, name: str, picture: np.ndarray, ranking: list[Candidate], options: Options
) -> list[Candidate]:
    """Writes the images and the sheet of an input; returns the ranking as it is kept."""
    kept = ranking[:_SHOWN]
    for folder in ("input", "ref", "sheets"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    accepted = _accepted(kept, options)
    if accepted:
        reference = _pixels(Path(kept[0].path))
        factor = SCALE if options.low_resolution else 1
        reference = comparable(reference, picture, options.largest, factor)
        write_image(output / "ref" / f"{name}_ref{_SUFFIX}", reference)
        write_image(output / "input" / f"{name}{_SUFFIX}", picture)
    panels = [("input", picture)]
    for number, candidate in enumerate(kept, start=1):
        panels.append((f"{number}: {_score(candidate)}", _pixels(Path(candidate.path))))
    title = f"{name}: {Path(kept[0].path).name if accepted else NOTHING}"
    sheet = contact_sheet(title, [panels[start : start + 4] for start in range(0, len(panels), 4)])
    write_image(output / "sheets" / f"{name}{_SUFFIX}", sheet)
    return kept


def comparable(reference: np.ndarray, image: np.ndarray, largest: float, factor: int = 1) -> np.ndarray:
    """A reference, reduced to the long side of an image if it is more than ``largest`` times as long.

    Args:
        reference, image: (H, W, 3) uint8.
        largest: at least 1.
        factor: how many times the image counts as larger than it is.
    """
    long_side = factor * max(image.shape[:2])
    ratio = long_side / max(reference.shape[:2])
    if ratio * largest >= 1:
        return reference
    return resize_bicubic(reference, tuple(max(1, round(side * ratio)) for side in reference.shape[:2]))


def _accepted(ranking: list[Candidate], options: Options) -> bool:
    return bool(ranking) and ranking[0].score >= options.minimum


def _score(candidate: Candidate) -> str:
    if candidate.inliers is None:
        return f"score {candidate.score:.3f}"
    return f"{candidate.inliers} of {candidate.matches} matches agree"


def _line(path: Path, ranking: list[Candidate], options: Options) -> str:
    if not ranking:
        return f"{path.name}: {NOTHING}"
    best = f"{Path(ranking[0].path).name}, {_score(ranking[0])}"
    return f"{path.name}: {best if _accepted(ranking, options) else f'{NOTHING} (best: {best})'}"


def _scores(rows: list[tuple[str, Path, list[Candidate]]], options: Options) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, path, ranking in rows:
        status = FOUND if _accepted(ranking, options) else NOTHING
        for rank, one in enumerate(ranking, start=1):
            scale = "" if one.scale is None else f"{one.scale:.3f}"
            matches, inliers = ("" if value is None else value for value in (one.matches, one.inliers))
            scores = (one.score, f"{one.similarity:.4f}", matches, inliers, scale)
            writer.writerow((name, status, path.name, rank, one.path, *scores))
        if not ranking:
            writer.writerow((name, status, path.name, *[""] * (len(COLUMNS) - 3)))
    return text.getvalue()


def _names(count: int) -> list[str]:
    """``000``, ``001``, ... as in WR-SR, with more digits where they are needed."""
    digits = max(3, len(str(count - 1)))
    return [f"{number:0{digits}d}" for number in range(count)]


def _stamp(path: Path | None) -> list | None:
    """What changes with a file; None for one that is not there."""
    if path is None or not path.is_file():
        return None
    status = path.stat()
    return [str(path.resolve()), status.st_mtime_ns, status.st_size]


def _pixels(path: Path) -> np.ndarray:
    return convert_depth(read_image(path).to_rgb(), np.uint8)


def _features(image: np.ndarray) -> SiftFeatures:
    """Features at a common long side, in pixels of the image itself."""
    small = _fitted(image, _LOCAL)
    found = sift_features(small, most=_FEATURES)
    return SiftFeatures(found.points * (image.shape[1] / small.shape[1]), found.descriptors)


def _reduced(image: np.ndarray) -> np.ndarray:
    return resize_bicubic(image, tuple(max(1, side // SCALE) for side in image.shape[:2]))


def _fitted(image: np.ndarray, long_side: int) -> np.ndarray:
    """An image whose long side is at most ``long_side``; the same one if it is."""
    ratio = long_side / max(image.shape[:2])
    if ratio >= 1:
        return image
    return resize_bicubic(image, tuple(max(1, round(side * ratio)) for side in image.shape[:2]))


def _tiny(image: np.ndarray) -> np.ndarray:
    """The image as 32x32 greys without their mean, of unit length: products are correlations."""
    grey = cv2.cvtColor(resize_bicubic(image, (_SAME_SIDE,) * 2), cv2.COLOR_RGB2GRAY).astype(np.float64)
    grey -= grey.mean()
    return grey / max(np.linalg.norm(grey), 1e-9)
