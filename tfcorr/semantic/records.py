"""Numbered records of arrays on disk: sharded, checksummed, written once, resumable.

A folder holds ``shard-00000.npy``, ``shard-00001.npy``, ..., each a NumPy file of structured records, and
``index.jsonl``: what the records are, and a line with the SHA-256 of each finished shard. A shard is written
beside its place and renamed, and counts from its line on; whatever a crash leaves behind is made again. Read
shards are mapped, not loaded, after their checksum was compared once. `Records.check` finds those that were
damaged since, which are made again too.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tfcorr.atomic import append_line, remove_leftovers, write_bytes
from tfcorr.pretrained import sha256_of
from tfcorr.training.photos import DataError

__all__ = ["Records"]

logger = logging.getLogger(__name__)

INDEX = "index.jsonl"


class Records:
    """A folder of records; safe to read from several threads.

    Args:
        folder: made if it is missing.
        fields: name -> (shape, dtype) of one record's array.
        count: records in all.
        shard: records in a file.
        key: names what the records were made from; a folder with other records is refused.

    Raises:
        DataError: the folder holds records of another key, size or shape.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        fields: Mapping[str, tuple[Sequence[int], str]],
        count: int,
        *,
        shard: int = 64,
        key: str = "",
    ):
        self.folder = Path(folder)
        self.fields = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in fields.items()}
        self.count = count
        self.shard = shard
        self._dtype = np.dtype([(name, dtype, shape) for name, (shape, dtype) in self.fields.items()])
        self._checksums: dict[int, str] = {}
        self._open: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        self._read_index(
            {
                "key": key,
                "count": count,
                "shard": shard,
                "fields": {name: [list(shape), dtype.str] for name, (shape, dtype) in self.fields.items()},
            }
        )

    def _read_index(self, header: dict) -> None:
        path = self.folder / INDEX
        lines = path.read_bytes().splitlines() if path.is_file() else []
        if not lines:
            self._append(header)
            return
        try:
            found = json.loads(lines[0])
        except ValueError as error:
            raise DataError(
                f"{path}: not an index of records; delete the folder to make them again"
            ) from error
        for name, value in header.items():
            if found.get(name) != value:
                raise DataError(
                    f"{self.folder}: its records have {name} {found.get(name)!r}, expected {value!r}; choose "
                    "another folder or delete this one"
                )
        for line in lines[1:]:
            try:
                entry = json.loads(line)
            except ValueError:
                # The line that was being written when the power went; its shard is made again.
                continue
            if isinstance(entry, dict) and {"number", "sha256"} <= entry.keys():
                self._checksums[entry["number"]] = entry["sha256"]

    def _append(self, entry: dict) -> None:
        append_line(self.folder / INDEX, json.dumps(entry), synchronise=True)

    @property
    def shards(self) -> int:
        """The number of shards when all are there."""
        return -(-self.count // self.shard)

    def missing(self) -> list[int]:
        """Numbers of the shards that have yet to be written."""
        return [n for n in range(self.shards) if n not in self._checksums or not self._path(n).is_file()]

    def check(self) -> None:
        """Compares all shards with their checksums; one that differs is named in the log, and missing now."""
        for number in range(self.shards):
            path = self._path(number)
            if number not in self._checksums or number in self._open or not path.is_file():
                continue
            if sha256_of(path) != self._checksums[number]:
                logger.warning("%s: differs from its checksum in %s, to be made again", path, INDEX)
                del self._checksums[number]
            else:
                self._open[number] = np.load(path, mmap_mode="r", allow_pickle=False)

    def members(self, number: int) -> range:
        """Numbers of the records in a shard."""
        return range(number * self.shard, min(self.count, (number + 1) * self.shard))

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes a shard.

        Args:
            number: of the shard.
            arrays: each field of its records, stacked along a first axis.

        Raises:
            ValueError: fields are missing or have another shape.
            WriteError: the disk is full, for example; nothing was changed.
        """
        size = len(self.members(number))
        records = np.empty(size, self._dtype)
        for name, (shape, _) in self.fields.items():
            if np.shape(arrays[name]) != (size, *shape):
                raise ValueError(f"{name}: expected {(size, *shape)}, got {np.shape(arrays[name])}")
            records[name] = arrays[name]
        # Through memory: NumPy's own writing to a file does not tell why it failed.
        content = io.BytesIO()
        np.save(content, records, allow_pickle=False)
        checksum = hashlib.sha256(content.getbuffer()).hexdigest()
        write_bytes(self._path(number), content.getbuffer())
        self._append({"number": number, "sha256": checksum})
        with self._lock:
            self._checksums[number] = checksum
            self._open.pop(number, None)

    def read(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Some records, by number: each field stacked along a first axis.

        Raises:
            IndexError: no such record.
            DataError: its shard has not been written, or differs from its checksum.
        """
        rows = []
        for index in map(int, indices):
            if not 0 <= index < self.count:
                raise IndexError(f"record {index} of {self.count}")
            number, place = divmod(index, self.shard)
            rows.append(self._shard(number)[place])
        return {name: np.stack([row[name] for row in rows]) for name in self.fields}

    def _shard(self, number: int) -> np.ndarray:
        with self._lock:
            if number not in self._open:
                self._open[number] = self._verified(number)
            return self._open[number]

    def _verified(self, number: int) -> np.ndarray:
        path = self._path(number)
        if number not in self._checksums or not path.is_file():
            raise DataError(f"{path}: not written yet")
        if sha256_of(path) != self._checksums[number]:
            raise DataError(f"{path}: differs from its checksum in {INDEX}; delete it to make it again")
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.npy"
