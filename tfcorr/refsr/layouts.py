"""The test sets of reference-based super-resolution in the folders that they are published in.

Each layout becomes a list of `Case`: an image and, by name, the references that it may be given. ``true`` is
the one that the literature uses, ``all`` are all that the set has for the image, ``level1`` to ``level5``
those of CUFED5; ``none`` stands for the image itself in its low resolution, which is the protocol of
Urban100, and ``unrelated`` for a photo of something else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tfcorr.config import PairSource, PublishedSet, resolve_data_path
from tfcorr.paths import PathError
from tfcorr.refsr.photos import IMAGE_SUFFIXES, DataError, RowPath, find_pairs

TRUE, UNRELATED, NONE, ALL = "true", "unrelated", "none", "all"
LEVELS = tuple(f"level{number}" for number in range(1, 6))


@dataclass(frozen=True)
class Case:
    """An image of a test set.

    Attributes:
        scene: what other images of one scene share.
        input: the sharp image, the truth.
        references: files by the name of the set of references; ``none`` is always there, and empty.
        columns: the row of the list, where there is one.
    """

    scene: str
    input: Path
    references: Mapping[str, tuple[Path, ...]]
    columns: Mapping[str, str]


def find_cases(
    pairs: PairSource | None,
    test_set: PublishedSet | None,
    data_root: str | None,
    *,
    unrelated_path: str | None = None,
    limit: int | None = None,
) -> list[Case]:
    """The images of a benchmark.

    Args:
        pairs: a CSV or two folders, see `tfcorr.refsr.photos.find_pairs`; or
        test_set: a published layout.
        data_root: see `tfcorr.config.resolve_data_path`.
        unrelated_path: for a CSV, makes the path of the unrelated photo out of a row's columns; None, or a
            list without these columns, takes the reference of another image (`_strangers`).
        limit: how many images are kept, the first ones.

    Raises:
        DataError: not exactly one of ``pairs`` and ``test_set`` is given, or files are not there.
    """
    if (pairs is None) == (test_set is None):
        raise DataError("expected either pairs or test_set, got " + ("none" if pairs is None else "both"))
    cases = (
        _listed(pairs, data_root, unrelated_path)
        if pairs
        else _LAYOUTS[test_set.layout](test_set, resolve_data_path(test_set.folder, data_root))
    )
    # Strangers first: a shorter run has the same ones as a whole.
    return _strangers(cases)[:limit]


def list_digest(cases: Sequence[Case], names: Sequence[str] = (TRUE,)) -> str:
    """Twelve hexadecimal digits that name a list of images and references: scenes and file names, in order.

    Pixels and other columns of a list do not count.

    Args:
        cases: the images.
        names: which of their references count.
    """
    rows = [[c.scene, c.input.name, *(p.name for p in c.references.get(TRUE, ()))] for c in cases]
    for name in names:
        if name in (TRUE, NONE):
            continue
        rows += [
            [part for path in c.references[name] for part in (path.parent.name, path.name)] for c in cases
        ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def check_references(cases: Sequence[Case], names: Sequence[str]) -> None:
    """Refuses names of references that the cases do not all have; raises `DataError`."""
    for name in names:
        lacking = [case for case in cases if name not in case.references]
        if lacking:
            known = ", ".join(lacking[0].references)
            raise DataError(
                f"references: {name!r} is not there for {lacking[0].input.name}, which has: {known}"
            )


def _listed(source: PairSource, data_root: str | None, unrelated_path: str | None) -> list[Case]:
    if source.register:
        raise DataError(
            "pairs: register is for training; an evaluation registers its references, or not, by the models' "
            "cards, or by its own key `registration`"
        )
    unrelated = RowPath(unrelated_path, data_root) if unrelated_path is not None else None
    cases = []
    for pair in find_pairs([source], data_root):
        references = {TRUE: (pair.reference,)}
        try:
            if unrelated is not None:
                references[UNRELATED] = (unrelated.of(pair.columns),)
        except KeyError:
            pass  # a list without such columns: another image's reference serves
        except PathError as error:
            raise DataError(f"{source.csv}: {error}") from None
        cases.append(_case(pair.scene, pair.input, references, pair.columns))
    return cases


def _cufed5(test_set: PublishedSet, folder: Path) -> list[Case]:
    """``NNN_0.png`` with references ``NNN_1.png``, the most similar, to ``NNN_5.png``.

    The published list pairs every image with its first one, which is ``true``.
    """
    files = {path.stem: path for path in _images(folder)}
    cases = []
    for stem, path in files.items():
        number = stem.removesuffix("_0")
        if number == stem:
            continue
        # A file that is missing stays in the list, and is named when it is to be read.
        stems = [f"{number}_{level}" for level in range(1, 6)]
        every = tuple(files.get(stem, folder / f"{stem}{path.suffix}") for stem in stems)
        levels = {name: (file,) for name, file in zip(LEVELS, every, strict=True)}
        cases.append(_case(number, path, {TRUE: every[:1], ALL: every, **levels}))
    return _not_empty(cases, folder, "NNN_0.png with NNN_1.png to NNN_5.png")


def _sun80(test_set: PublishedSet, folder: Path) -> list[Case]:
    """``Sun_Hays_SR_groundtruth/NAME.jpg`` with 20 scene matches in ``Sun_Hays_SR_scenematches/NAME.jpg/``.

    The paper does not say which one is used, and published loaders draw one anew at every run. Here ``true``
    is drawn once and for all from the seed (``choice: random``), or the first by name (``first``).
    """
    inputs = _images(folder / "Sun_Hays_SR_groundtruth")
    matches = folder / "Sun_Hays_SR_scenematches"
    rng = np.random.default_rng(test_set.seed)
    cases = []
    for path in inputs:
        references = _images(matches / path.name)
        if not references:
            raise DataError(
                f"{matches / path.name}: no images there, expected the scene matches of {path.name}"
            )
        # Drawn for every image, so that the choice for one does not depend on the others' folders.
        drawn = float(rng.random())
        place = 0 if test_set.choice == "first" else int(drawn * len(references))
        cases.append(_case(path.stem, path, {TRUE: (references[place],), ALL: tuple(references)}))
    return _not_empty(cases, folder, "Sun_Hays_SR_groundtruth/*.jpg")


def _manga109(test_set: PublishedSet, folder: Path) -> list[Case]:
    """Images in one folder; the reference of each is another one, drawn once and for all from the seed."""
    inputs = _images(folder)
    if len(inputs) < 2:
        raise DataError(f"{folder}: {len(inputs)} images, expected two at least")
    rng = np.random.default_rng(test_set.seed)
    steps = rng.integers(1, len(inputs), len(inputs))
    return [
        _case(path.stem, path, {TRUE: (inputs[(number + int(step)) % len(inputs)],)})
        for number, (path, step) in enumerate(zip(inputs, steps, strict=True))
    ]


def _wr_sr(test_set: PublishedSet, folder: Path) -> list[Case]:
    """``input/NNN.png`` with ``ref/NNN_ref.png``, which is also what `tfcorr collect` writes."""
    references = {path.stem: path for path in _images(folder / "ref")}
    cases = []
    for path in _images(folder / "input"):
        stem = f"{path.stem}_ref"
        reference = references.get(stem, folder / "ref" / f"{stem}{path.suffix}")
        cases.append(_case(path.stem, path, {TRUE: (reference,)}))
    return _not_empty(cases, folder, "input/NNN.png with ref/NNN_ref.png")


def _single_images(test_set: PublishedSet, folder: Path) -> list[Case]:
    """Images without references: Set5, Set14, Urban100 (``none``: its low-resolution image is the reference).

    Where low-resolution versions lie beside the sharp ones, as in the published folders
    (``..._HR.png``, ``..._LR.png``), the sharp ones are taken.
    """
    images = _images(folder)
    sharp = [path for path in images if re.search(r"_HR$", path.stem)]
    return _not_empty([_case(path.stem, path, {}) for path in sharp or images], folder, "images")


_LAYOUTS = {
    "cufed5": _cufed5,
    "sun80": _sun80,
    "manga109": _manga109,
    "wr_sr": _wr_sr,
    "images": _single_images,
}


def _strangers(cases: list[Case]) -> list[Case]:
    """Gives every case without an unrelated photo one: the reference, or the image, half the list further.

    From there on, the first of another scene is taken; where all are of one scene there is none.
    """
    done = []
    for number, case in enumerate(cases):
        if UNRELATED not in case.references:
            others = (cases[(number + len(cases) // 2 + step) % len(cases)] for step in range(len(cases)))
            stranger = next((other for other in others if other.scene != case.scene), None)
            if stranger is not None:
                photo = stranger.references.get(TRUE) or (stranger.input,)
                case = replace(case, references={**case.references, UNRELATED: photo})
        done.append(case)
    return done


def _case(
    scene: str,
    path: Path,
    references: Mapping[str, tuple[Path, ...]],
    columns: Mapping[str, str] | None = None,
) -> Case:
    return Case(scene, path, {**references, NONE: ()}, columns or {})


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _not_empty(cases: list[Case], folder: Path, expected: str) -> list[Case]:
    if not cases:
        raise DataError(f"{folder}: no images of this layout there, expected {expected}")
    return cases
