"""The teacher's flows for the real pairs (PMD, section 3.2, 2), and the variances of their errors (section
3.3), on disk.

Flows are kept as float16 in [-1, 1] units, a hundredth of a cell on a grid of 20 x 20; each with the
confidence mask of section 3.4, for both directions. Nothing here fits in memory for 60,000 pairs, and nothing
has to: `Records` are mapped, and so are the variances.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tfcorr.atomic import WriteError, replacing, write_text
from tfcorr.pretrained import sha256_of
from tfcorr.semantic.records import Records
from tfcorr.training.photos import DataError

__all__ = ["DIRECTIONS", "VarianceStore", "hypothesis_records", "make_hypotheses"]

DIRECTIONS = ("t2s", "s2t")


def hypothesis_records(
    folder: str | os.PathLike, pairs: int, samples: int, grid: tuple[int, int], *, shard: int, key: str
) -> Records:
    """The records of all pairs, float16, for both directions: ``flows_<direction>`` (m, h, w, 2) and
    ``confidence_<direction>`` (m, h, w, 1).

    Args:
        folder: of the records.
        pairs: their number.
        samples: m.
        grid: (h, w), the feature grid.
        shard: pairs in a file.
        key: names the teacher and the pairs.
    """
    fields = {}
    for direction in DIRECTIONS:
        fields[f"flows_{direction}"] = ((samples, *grid, 2), "<f2")
        fields[f"confidence_{direction}"] = ((samples, *grid, 1), "<f2")
    return Records(folder, fields, pairs, shard=shard, key=key)


def make_hypotheses(
    flows: Callable[[dict[str, np.ndarray], np.ndarray], dict],
    records: Records,
    inputs: Callable[[Sequence[int]], dict[str, np.ndarray]],
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Lets the teacher look at each pair m times, and writes what it sees; goes on where it was stopped.

    Args:
        flows: the teacher: inputs and a seed, int32 (2,), -> ``flow_t2s`` and ``flow_s2t``, (B, m, h, w, 2).
        records: from `hypothesis_records`.
        inputs: pair numbers -> the teacher's inputs, stacked.
        seed: with the shard's number it makes the samples, so that a shard made again is the same.
        progress: called with (shards done, shards to do).
    """
    from keras import ops

    from tfcorr.semantic.matching import confidence

    todo = records.missing()
    for done, number in enumerate(todo, start=1):
        found = flows(inputs(records.members(number)), np.array([seed, number], np.int32))
        arrays = {}
        for direction, other in zip(DIRECTIONS, DIRECTIONS[::-1], strict=True):
            flow = found[f"flow_{direction}"]
            arrays[f"flows_{direction}"] = ops.convert_to_numpy(flow)
            arrays[f"confidence_{direction}"] = ops.convert_to_numpy(confidence(flow, found[f"flow_{other}"]))
        records.write(number, arrays)
        progress(done, len(todo))


class VarianceStore:
    """Variances of the hypotheses' errors, one for each pair, direction, cell and flow component, on disk.

    Each version is a file of its own, mapped into memory, with its SHA-256 beside it, which is compared once.
    An E-step reads version v and writes v + 1 into a file that gets its name only when it is whole; v stays
    for a run that goes on from a checkpoint made before the E-step's end. Version 0 is ``initial`` everywhere
    and needs no file.

    Args:
        folder: made if it is missing.
        count: pairs.
        shape: (D, h, w, 2) of one pair, D the trained directions.
        initial: value of version 0; the paper's is 0.
    """

    def __init__(
        self, folder: str | os.PathLike, count: int, shape: tuple[int, int, int, int], initial: float = 0.0
    ):
        self.folder = Path(folder)
        self.count = count
        self.shape = tuple(shape)
        self.initial = initial
        self._maps: dict[int, np.ndarray] = {}
        self._writing: tuple[int, np.ndarray] | None = None
        self._lock = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, indices: np.ndarray, version: int) -> np.ndarray:
        """The variances of some pairs.

        Args:
            indices: (n,) pair numbers.
            version: 0, or a committed one.

        Returns:
            float32 (n, D, h, w, 2).

        Raises:
            DataError: the version was never committed, is damaged, or has another size.
        """
        indices = self._checked(indices)
        if version == 0:
            return np.full((len(indices), *self.shape), self.initial, np.float32)
        with self._lock:
            if version not in self._maps:
                self._maps[version] = self._mapped(version)
            values = self._maps[version]
        return np.array(values[indices])

    def write(self, indices: np.ndarray, values: np.ndarray, version: int) -> None:
        """Puts values into a version that is being written; see `commit`.

        Args:
            indices: (n,) pair numbers.
            values: (n, D, h, w, 2).
            version: at least 1.

        Raises:
            WriteError: there is no space for the version.
        """
        indices = self._checked(indices)
        if self._writing is None or self._writing[0] != version:
            # A file of an E-step that was cut short is begun again: all of its pairs come once more.
            self._writing = (version, self._new_map(version))
        self._writing[1][indices] = values

    def commit(self, version: int) -> None:
        """Makes a written version readable, durably, and removes those before the last one.

        Raises:
            ValueError: nothing was written to this version.
        """
        if self._writing is None or self._writing[0] != version:
            raise ValueError(f"version {version} has not been written")
        self._writing[1].flush()
        self._writing = None
        path, part = self._path(version), self._part(version)
        # Of the version that is there already, if this E-step is done again, the checksum goes first.
        self._checksum(version).unlink(missing_ok=True)
        checksum = sha256_of(part)
        with replacing(path) as place:
            os.replace(part, place)
        write_text(self._checksum(version), checksum + "\n")
        with self._lock:
            self._maps = {v: m for v, m in self._maps.items() if v == version - 1}
        for other in self.folder.glob("variance-*"):
            if int(other.stem.partition("-")[2]) < version - 1:
                other.unlink()

    def _new_map(self, version: int) -> np.ndarray:
        part, shape = self._part(version), (self.count, *self.shape)
        values = np.lib.format.open_memmap(part, "w+", np.float32, shape)
        try:
            with open(part, "rb+") as file:
                _reserve(file.fileno(), os.path.getsize(part))
        except OSError as error:
            del values
            part.unlink(missing_ok=True)
            raise WriteError.of(self._path(version), error) from error
        return values

    def _checked(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices)
        if indices.size and not 0 <= indices.min() <= indices.max() < self.count:
            raise IndexError(f"pair numbers from {indices.min()} to {indices.max()}, there are {self.count}")
        return indices

    def _mapped(self, version: int) -> np.ndarray:
        path = self._path(version)
        if not path.is_file():
            raise DataError(f"{path}: missing, though the checkpoint goes on from it")
        checksum = self._checksum(version)
        # Without one: of an earlier version of tfcorr, or the process was killed between the two writes.
        if checksum.is_file() and checksum.read_text().strip() != sha256_of(path):
            raise DataError(
                f"{path}: differs from its checksum in {checksum.name}; the student has to begin anew: "
                "delete the folder student beside this one"
            )
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if values.shape != (self.count, *self.shape):
            raise DataError(f"{path}: has shape {values.shape}, expected {(self.count, *self.shape)}")
        return values

    def _path(self, version: int) -> Path:
        return self.folder / f"variance-{version:06d}.npy"

    def _checksum(self, version: int) -> Path:
        return self._path(version).with_suffix(".sha256")

    def _part(self, version: int) -> Path:
        return self.folder / f".variance-{version:06d}.part"


def _reserve(descriptor: int, size: int) -> None:
    """Takes the space of a file that will be mapped: a write for which there is none would end the process
    without a word."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
