"""Which photos there are: folders, globs, exclusion rules, lists, and a cache of pixels."""

from __future__ import annotations

import glob
import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tfcorr.config import PhotoRule, resolve_data_path
from tfcorr.errors import TfcorrError
from tfcorr.imaging.depth import convert_depth
from tfcorr.imaging.errors import ImageError
from tfcorr.imaging.files import read_image

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


class DataError(TfcorrError):
    """Data that a configuration names and that is not there or cannot be used."""


class PhotoCache:
    """Decoded photos by path, uint8 RGB, kept in memory. Safe to use from several threads.

    A file that is missing or cannot be decoded is named once in the log, remembered in `bad`, and given as
    None.

    Args:
        keep: how many photos are kept, the latest ones; None keeps all.
    """

    def __init__(self, keep: int | None = None):
        self.bad: dict[Path, str] = {}
        self._keep = keep
        self._pixels: dict[Path, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, path: Path) -> np.ndarray | None:
        """The (H, W, 3) uint8 pixels of a file, upright; None if it cannot be read. Do not write to them."""
        with self._lock:
            if path in self._pixels:
                return self._pixels[path]
            if path in self.bad:
                return None
        try:
            pixels = convert_depth(read_image(path).pixels, np.uint8)
        except ImageError as error:
            with self._lock:
                if path not in self.bad:
                    self.bad[path] = str(error)
                    logger.warning("skipped: %s", error)
            return None
        if pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        with self._lock:
            if self._keep is not None and len(self._pixels) >= self._keep:
                self._pixels.pop(next(iter(self._pixels)))
            return self._pixels.setdefault(path, pixels)


def excluded(scene: str, path: Path, rules: Iterable[PhotoRule]) -> bool:
    """Whether a rule covers the photo ``path`` (its name without the ending) of ``scene``."""
    return any(rule.scene == scene and (not rule.photos or path.stem in rule.photos) for rule in rules)


def find_images(
    sources: Sequence[str],
    data_root: str | None,
    *,
    exclude: Sequence[PhotoRule] = (),
    only: Sequence[PhotoRule] = (),
) -> list[Path]:
    """All images of some folders and globs, sorted within each source.

    Args:
        sources: folders (searched with their subfolders) or globs, below the data root.
        data_root: see `tfcorr.config.resolve_data_path`.
        exclude: rules of photos to leave out; a photo's scene is the name of its folder.
        only: if given, photos that no rule covers are left out.

    Returns:
        Paths without repetition.

    Raises:
        DataError: a source has no image, or the rules leave none.
    """
    found: dict[Path, None] = {}
    for source in sources:
        place = resolve_data_path(source, data_root)
        candidates = place.rglob("*") if place.is_dir() else map(Path, glob.glob(str(place), recursive=True))
        images = sorted(p for p in candidates if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise DataError(f"{place}: no images there (looked for {', '.join(IMAGE_SUFFIXES)})")
        found.update(dict.fromkeys(images))
    kept = [p for p in found if not excluded(p.parent.name, p, exclude)]
    if only:
        kept = [p for p in kept if excluded(p.parent.name, p, only)]
    if not kept:
        raise DataError(f"{', '.join(sources)}: none of the {len(found)} images is left by the rules")
    return kept


def resolve_list_path(name: str, data_root: str | None) -> Path:
    """A list of pairs: a file as given, one that ships in ``configs``, or one below the data root."""
    from tfcorr.resources import configs_dir

    for candidate in (Path(name), configs_dir() / name):
        if candidate.is_file():
            return candidate
    path = resolve_data_path(name, data_root)
    if not path.is_file():
        raise DataError(f"{path}: no such list of pairs (a CSV with a header line)")
    return path
