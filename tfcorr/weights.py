"""Files of weights, looked over before they are read: HDF5 of Keras, and NumPy's NPZ.

Both are formats of numbers, and no code of theirs is ever run. But both may lie about sizes, an HDF5 file may
lead to other files, and an NPZ file may hold pickles. Whoever reads weights goes through here.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tfcorr.errors import TfcorrError

if TYPE_CHECKING:
    import h5py
    import keras

__all__ = ["WeightsError", "check_hdf5", "load_weights", "opened_npz"]

_MOST_OBJECTS = 100_000
# What reading a damaged archive raises; the last two where it says that it is encrypted, or compressed anew.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)
# Weights are noise, which no compression halves; arrays of zeros among them may shrink to nothing.
_MOST_EXPANSION = 20
_SMALL = 16 << 20


class WeightsError(TfcorrError, ValueError):
    """A file of weights that lies about its content, or is none."""


def load_weights(model: keras.Model, path: str | os.PathLike) -> None:
    """Puts the weights of an HDF5 file into a built Keras model.

    Args:
        model: built, of the architecture that the file was written from.
        path: of a file that `keras.Model.save_weights` wrote.

    Raises:
        WeightsError: see `check_hdf5`.
        KeyError, OSError, ValueError: the file has other weights than the model.
    """
    check_hdf5(path)
    model.load_weights(path)


def check_hdf5(path: str | os.PathLike) -> None:
    """Refuses HDF5 files that lead elsewhere or promise more than they hold.

    Raises:
        WeightsError: the file is no HDF5 file; it has links to other places or files, virtual or external
            arrays, or others than of plain numbers; or its arrays have more bytes together than the file.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            _check_group(file, os.path.getsize(path))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: not an HDF5 file of weights, or damaged ({error})") from error


def _check_group(root: h5py.Group, room: int) -> None:
    import h5py

    pending, seen, objects = [root], set(), 0
    while pending:
        group = pending.pop()
        # Groups may hold each other.
        place = h5py.h5o.get_info(group.id).addr
        if place in seen:
            continue
        seen.add(place)
        for name in group:
            objects += 1
            if objects > _MOST_OBJECTS:
                raise WeightsError(f"has more than {_MOST_OBJECTS} parts")
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise WeightsError(f"{name!r} is a link to another place, which weights do not need")
            item = group[name]
            if isinstance(item, h5py.Group):
                pending.append(item)
                continue
            if not isinstance(item, h5py.Dataset) or item.shape is None or item.dtype.kind not in "fiubV":
                raise WeightsError(f"{name!r} is no array of numbers")
            if item.is_virtual or item.external:
                raise WeightsError(f"{name!r} lies in another file, which weights do not need")
            room -= math.prod(item.shape) * item.dtype.itemsize
            if room < 0:
                raise WeightsError(f"its arrays up to {name!r} have more bytes than the file")


@contextlib.contextmanager
def opened_npz(path: str | os.PathLike) -> Iterator[np.lib.npyio.NpzFile]:
    """Opens an NPZ file of weights, `with opened_npz(path) as archive: archive["name"]`.

    Raises:
        WeightsError: the file is no NPZ file, holds anything but arrays of numbers, an array's header
            promises another size than there is, or everything together would be far larger than the file.
    """
    try:
        _check_npz(path)
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except _DAMAGE as error:
        raise WeightsError(f"{path}: not an NPZ file of weights, or damaged ({error})") from error


def _check_npz(path: str | os.PathLike) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        room = max(_SMALL, _MOST_EXPANSION * os.path.getsize(path))
        if total > room or len(members) > _MOST_OBJECTS:
            raise WeightsError(f"{path}: would be {total / 1e6:,.0f} MB unpacked, too much for its size")
        for member in members:
            with archive.open(member) as file:
                try:
                    version = np.lib.format.read_magic(file)
                    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
                    shape, _, dtype = read[version[0]](file)
                except (KeyError, ValueError) as error:
                    raise WeightsError(f"{path}: {member.filename!r} is no array ({error})") from error
                if dtype.hasobject:
                    raise WeightsError(f"{path}: {member.filename!r} holds objects, which may be code")
                if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
                    raise WeightsError(
                        f"{path}: {member.filename!r} promises {shape} {dtype}, and has another size"
                    )
