"""References of training pairs in the view of their inputs, made once and kept in a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

import tfcorr
from tfcorr.imaging.files import write_image
from tfcorr.imaging.picture import Picture
from tfcorr.imaging.resize import downscale
from tfcorr.refsr import SCALE
from tfcorr.refsr.registration import register
from tfcorr.training.photos import PhotoCache

__all__ = ["RegisteredReferences"]


class RegisteredReferences:
    """The references of pairs of photos in the view of their inputs. Safe to use from several threads.

    The input of a pair is reduced by 4 and its reference registered to that, as a predictor does. The result
    is written to ``folder``, under a name that changes with the two files and the version of tfcorr; so is an
    empty file for a pair that cannot be registered.

    Args:
        cache: decoded photos, which keeps those that are read from the folder, too.
        folder: is made when it is first needed.
    """

    def __init__(self, cache: PhotoCache, folder: Path):
        self._cache = cache
        self._folder = folder

    def get(self, input: Path, reference: Path) -> np.ndarray | None:
        """The reference as the input shows it, (H, W, 3) uint8 with the input's sides cut to multiples of 4.

        A reference that cannot be registered comes as it is; a file that cannot be read gives None.
        """
        name = _name(input, reference)
        if name is None:
            return self._cache.get(reference)
        made, none = self._folder / f"{name}.png", self._folder / f"{name}.none"
        if none.exists():
            return self._cache.get(reference)
        if not made.exists() and not self._make(input, reference, made, none):
            return self._cache.get(reference)
        return self._cache.get(made)

    def _make(self, input: Path, reference: Path, made: Path, none: Path) -> bool:
        image, other = self._cache.get(input), self._cache.get(reference)
        if image is None or other is None:
            return False
        small, other = (x.astype(np.float32) / np.float32(255) for x in (downscale(image, SCALE), other))
        found = register(small, other)
        self._folder.mkdir(parents=True, exist_ok=True)
        if found is None:
            none.touch()
            return False
        pixels = np.rint(found.warp(other) * 255).astype(np.uint8)
        write_image(made, Picture.from_array(pixels), overwrite=True)
        return True


def _name(input: Path, reference: Path) -> str | None:
    """A name that changes with the two files and the version; None if a file is missing."""
    digest = hashlib.sha256(tfcorr.__version__.encode())
    try:
        for path in (input, reference):
            state = path.stat()
            digest.update(repr((path.parent.name, path.name, state.st_size, state.st_mtime_ns)).encode())
    except OSError:
        return None
    return digest.hexdigest()[:20]
