"""Model folders: finding, listing, verifying and loading them.

A model folder holds `card.json` and the files that the card names:

    saved_models/<name>/card.json          what it is, what it was trained on, how good it is, checksums
    saved_models/<name>/model.weights.h5   Keras weights

Weights are read only after their SHA-256 agrees with the card. Nothing in a folder is ever executed: the card
is JSON with a checked structure, the weights are HDF5.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcorr.errors import TfcorrError
from tfcorr.reading import read_json_object
from tfcorr.resources import models_dirs

if TYPE_CHECKING:
    from tfcorr.refsr.model import C2Matching

__all__ = [
    "CARD_FILE",
    "WEIGHTS_FILE",
    "ModelCard",
    "ModelError",
    "available_models",
    "file_states",
    "find_model",
    "load_super_resolution",
    "read_card",
    "sha256_of",
    "verify",
]

CARD_FILE = "card.json"
WEIGHTS_FILE = "model.weights.h5"
CORRESPONDENCE = "correspondence"
SUPER_RESOLUTION = "super-resolution"
SINGLE_IMAGE = "single-image-super-resolution"

_CARD_LIMIT = 1 << 20  # bytes; a card is a page of text, anything larger is not one
_MOST_PARTS = 2000
_LARGEST = 1 << 20
_PLAIN_NAME = re.compile(r"[\w.:-]{0,100}")
_NOT_IN_A_CARD = {"class_name", "config", "module", "registered_name", "weights"}
_PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


class ModelError(TfcorrError):
    """A model folder is missing, incomplete, damaged or of another kind; the message names it."""


@dataclass(frozen=True)
class ModelCard:
    """What `card.json` says about a model.

    Attributes:
        folder: the folder that the card was read from.
        name: the model's name.
        job: what it does, `"super-resolution"`.
        architecture: the configuration that `tfcorr.refsr.model.C2Matching` is built from.
        checksums: file name in the folder -> SHA-256 in hexadecimal; has the weights at least.
        licence: the licence of the weights.
        confidence_threshold: matching score in [0, 1] from which on a pixel counts as taken from the
            reference.
        registration: whether the model was trained with references in the view of the input, see
            `tfcorr.refsr.registration`.
        metrics: measured quality, names to numbers or to groups of them.
        default: whether this is the model that is loaded when none is named.
        content: the whole card.
    """

    folder: Path
    name: str
    job: str
    architecture: dict[str, Any]
    checksums: dict[str, str]
    licence: str = "not stated"
    confidence_threshold: float = 0.5
    registration: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)
    default: bool = False
    content: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """Bytes of all files that the card names, as far as they are there."""
        paths = [self.folder / name for name in self.checksums]
        return sum(path.stat().st_size for path in paths if path.is_file())


def read_card(folder: str | Path) -> ModelCard:
    """Reads and checks the card of a model folder.

    Args:
        folder: the model folder.

    Returns:
        The card.

    Raises:
        ModelError: the folder or its card is missing, the card is no JSON object, a field is missing or has
            another type than expected, or a file name leads out of the folder.
    """
    folder = Path(folder)
    path = folder / CARD_FILE
    if not folder.is_dir():
        raise ModelError(f"{folder}: not a model folder (expected a folder with {CARD_FILE})")
    if not path.is_file():
        raise ModelError(f"{folder}: not a model folder: {CARD_FILE} is missing")
    content = read_json_object(path, most=_CARD_LIMIT, error=ModelError)

    def value(key: str, kind: type | tuple[type, ...], expected: str, default: Any = None) -> Any:
        if key not in content:
            if default is None:
                raise ModelError(f"{path}: the field {key!r} is missing (expected {expected})")
            return default
        found = content[key]
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise ModelError(f"{path}: {key!r} is {json.dumps(found)[:80]}, expected {expected}")
        if isinstance(found, str) and not found.isprintable():
            raise ModelError(f"{path}: {key!r} has control characters in it")
        return found

    threshold = value("confidence_threshold", (int, float), "a number in [0, 1]", 0.5)
    if not 0 <= threshold <= 1:
        raise ModelError(f"{path}: 'confidence_threshold' is {threshold}, expected a number in [0, 1]")
    checksums = value("checksums", dict, "an object {file name: SHA-256}")
    for name, digest in checksums.items():
        if not name.isprintable() or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise ModelError(
                f"{path}: 'checksums' names {name!r}, expected the name of a file in this folder"
            )
        if not isinstance(digest, str) or len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef"):
            raise ModelError(f"{path}: the checksum of {name!r} is no SHA-256 (64 hexadecimal digits)")
    architecture = value("architecture", dict, "an object")
    strange = _strange(architecture)
    if strange:
        raise ModelError(f"{path}: 'architecture' {strange}")
    return ModelCard(
        folder=folder,
        name=value("name", str, "a text"),
        job=value("job", str, "a text"),
        architecture=architecture,
        checksums=checksums,
        licence=value("licence", str, "a text", "not stated"),
        confidence_threshold=float(threshold),
        registration=value("registration", bool, "true or false", False),
        metrics=value("metrics", dict, "an object", {}),
        default=value("default", bool, "true or false", False),
        content=content,
    )


def _strange(architecture: dict[str, Any]) -> str:
    """What in an architecture is no number, no list and no plain name; empty if there is nothing.

    Keras makes objects out of configurations that name a class and a module, and weights and presets may be
    named by files and addresses. Nothing of that belongs into a card.
    """
    pending: list[Any] = [architecture]
    for count, node in enumerate(pending):
        if count == _MOST_PARTS:
            return f"has more than {_MOST_PARTS} parts"
        if isinstance(node, dict):
            for key in node:
                if key in _NOT_IN_A_CARD or not key.isidentifier():
                    return f"has the key {key[:40]!r}, which belongs to no architecture"
            pending += node.values()
        elif isinstance(node, list):
            pending += node
        elif isinstance(node, str) and not _PLAIN_NAME.fullmatch(node):
            return f"names {node[:40]!r}, expected letters, digits and the signs _ . : -"
        elif isinstance(node, (int, float)) and not abs(node) <= _LARGEST:
            return f"has a number beyond {_LARGEST:,}, or one that is none"
    return ""


def available_models() -> tuple[list[ModelCard], list[str]]:
    """Lists the models in `saved_models/`, that is in every folder of `tfcorr.resources.models_dirs()`.

    Of two models with one name the first found is kept, as `find_model` does.

    Returns:
        The readable cards, sorted by name, and one message for each folder whose card cannot be read.
    """
    cards: dict[str, ModelCard] = {}
    problems = []
    for directory in map(Path, models_dirs()):
        if not directory.is_dir():
            continue
        for folder in sorted(path for path in directory.iterdir() if (path / CARD_FILE).is_file()):
            try:
                cards.setdefault(folder.name, read_card(folder))
            except ModelError as error:
                problems.append(str(error))
    return [cards[name] for name in sorted(cards)], problems


def find_model(name_or_folder: str | Path | None = None, *, job: str | None = SUPER_RESOLUTION) -> ModelCard:
    """Finds a model by name, by folder, or the default one.

    Args:
        name_or_folder: the name of a model in `saved_models/`, the path of a model folder (anything that
            contains a path separator, or an existing folder with a card), or `None` for the job's default:
            the one whose card says `"default": true`, or the only one.
        job: what the model has to do; `None` is anything, for a model that is named.

    Returns:
        The model's card.

    Raises:
        ModelError: no such model, several that could be meant, or a model for another job.
    """
    if name_or_folder is None:
        card = _default_model(job)
    else:
        given = Path(name_or_folder)
        is_path = isinstance(name_or_folder, Path) or len(given.parts) != 1
        if is_path or (given / CARD_FILE).is_file():
            card = read_card(given)
        else:
            cards, _ = available_models()
            matching = [card for card in cards if card.folder.name == str(name_or_folder)]
            if not matching:
                names = ", ".join(card.folder.name for card in cards) or "none is installed"
                raise ModelError(
                    f"no model is called {str(name_or_folder)!r}; there is: {names} "
                    "(or give the path of a model folder)"
                )
            card = matching[0]
    if job is not None and card.job != job:
        raise ModelError(f"{card.folder}: a model for {card.job}, expected one for {job}")
    return card


def _default_model(job: str) -> ModelCard:
    cards = [card for card in available_models()[0] if card.job == job]
    marked = [card for card in cards if card.default]
    chosen = marked or cards
    if len(chosen) == 1:
        return chosen[0]
    if not cards:
        places = ", ".join(str(path) for path in models_dirs())
        raise ModelError(
            f"no model for {job} is installed (looked in {places}); train one or name its folder"
        )
    names = ", ".join(card.folder.name for card in chosen)
    raise ModelError(f"name the model for {job}: {names}")


def sha256_of(path: str | Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_states(card: ModelCard) -> dict[str, str]:
    """Compares the files of a model folder with the card's checksums.

    Returns:
        File name -> `"ok"`, `"missing"`, or `"mismatch"`.
    """
    states = {}
    for name, expected in card.checksums.items():
        path = card.folder / name
        if not path.is_file():
            states[name] = "missing"
        else:
            states[name] = "ok" if sha256_of(path) == expected.lower() else "mismatch"
    return states


def verify(card: ModelCard) -> None:
    """Checks every file that the card names.

    Raises:
        ModelError: a file is missing or differs from its checksum; the message names it and both checksums.
    """
    for name, state in file_states(card).items():
        path = card.folder / name
        if state == "missing":
            raise ModelError(
                f"{path}: missing, though the model's card names it; fetch the model folder again"
            )
        if state == "mismatch":
            raise ModelError(
                f"{path}: its SHA-256 is {sha256_of(path)}, but the model's card says "
                f"{card.checksums[name]}; the file is damaged or was exchanged, fetch the model folder again"
            )


def load_super_resolution(
    name_or_folder: str | Path | None = None, *, precision: str = "float32"
) -> tuple[C2Matching, ModelCard]:
    """Loads a model for reference-based super-resolution after verifying its checksums.

    Args:
        name_or_folder: see `find_model`.
        precision: `"float32"`, or `"bfloat16"` for computing in bfloat16 with float32 weights.

    Returns:
        The built model with its weights, and its card.

    Raises:
        ModelError: the model cannot be found or verified, its architecture cannot be built, or its weights do
            not belong to its architecture.
        ValueError: another `precision`.
    """
    if precision not in _PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(_PRECISIONS)}")
    card = find_model(name_or_folder)
    if WEIGHTS_FILE not in card.checksums:
        raise ModelError(f"{card.folder / CARD_FILE}: 'checksums' does not name {WEIGHTS_FILE}")
    verify(card)
    return _build(card, _PRECISIONS[precision]), card


def _build(card: ModelCard, policy: str) -> C2Matching:
    from tfcorr.refsr.model import C2Matching
    from tfcorr.weights import load_weights

    try:
        model = C2Matching.from_architecture(card.architecture, dtype=policy)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{card.folder / CARD_FILE}: 'architecture' cannot be built: {error}") from error
    try:
        load_weights(model, card.folder / WEIGHTS_FILE)
    except (KeyError, OSError, ValueError) as error:
        raise ModelError(
            f"{card.folder / WEIGHTS_FILE}: no weights of the architecture in {CARD_FILE}: {error}"
        ) from error
    return model


def quality_summary(metrics: Mapping[str, Any], limit: int = 3) -> str:
    """Returns the first few numbers of a card's metrics on one line, for example `psnr_y 30.91, ssim_y
    0.874`."""
    entries: list[str] = []

    def collect(group: Mapping[str, Any], prefix: str) -> None:
        for key, value in group.items():
            if isinstance(value, Mapping):
                collect(value, f"{prefix}{key} ")
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                entries.append(f"{prefix}{key} {value:.4g}")

    collect(metrics, "")
    return ", ".join(entries[:limit])
