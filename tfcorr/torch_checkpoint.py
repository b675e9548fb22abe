"""Reading PyTorch checkpoints without PyTorch, and without running anything that a file says.

A checkpoint is a pickle, and a pickle can name any function to be called. Here the names are compared with
the few that tensors need, and stand for code of this module; any other name is refused before it is looked
up. `torch.load(weights_only=True)` does the same; a reader of our own spares users the whole of PyTorch for
the minute of a conversion, and those who have an old one its flaw in exactly that option (CVE-2025-32434).

Both formats are read: the zip archive that PyTorch writes since 1.6, and the stream of pickles before that,
which the published weights of 2021 may be in.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tfcorr.errors import TfcorrError

__all__ = ["CheckpointFileError", "read_checkpoint"]

# NumPy has no bfloat16: its bits are the upper half of a float32.
_BFLOAT16 = "bfloat16"
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# Bytes of a pickle, which names tensors and does not hold them.
_LARGEST_PICKLE = 64 << 20
# What the pickles in a stream begin with.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class CheckpointFileError(TfcorrError):
    """A file is no PyTorch checkpoint, is damaged, or names what no checkpoint of weights needs."""


def read_checkpoint(path: str | Path) -> Any:
    """Reads a file of `torch.save`.

    Args:
        path: of a checkpoint that holds dictionaries, lists, numbers, texts and tensors.

    Returns:
        What was saved; tensors and parameters are NumPy arrays, bfloat16 ones in float32.

    Raises:
        CheckpointFileError: the file cannot be read, has another format, is damaged, or names a function or
            class that does not belong to tensors; nothing of it was called.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                content, storages = _read_archive(file)
            else:
                file.seek(0)
                content, storages = _read_stream(file)
        return _resolved(content, storages, {})
    except CheckpointFileError as error:
        raise CheckpointFileError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    # Pickles of garbage end in almost any error.
    except Exception as error:
        raise CheckpointFileError(
            f"{path}: not a PyTorch checkpoint, or damaged ({type(error).__name__}: {error})"
        ) from error


class _Storage(NamedTuple):
    """Where numbers lie: the storage's name in the file, their type, and how many it has."""

    key: str
    dtype: str
    count: int


class _Tensor(NamedTuple):
    """A tensor before its storage has been read."""

    storage: _Storage
    offset: int
    size: tuple
    stride: tuple


class _Unpickler(pickle.Unpickler):
    """Knows the names of tensors and of ordered dictionaries, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor"): lambda *given: _Tensor(*given[:4]),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *given: _Tensor(*given[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise CheckpointFileError(
            f"names {module}.{name}, which weights do not need; nothing was called (a checkpoint of a whole "
            "model has to be saved as its state_dict first, where it comes from)"
        )

    def persistent_load(self, identity: Any) -> _Storage:
        kind, dtype, key, _, count, *rest = identity
        if kind != "storage" or dtype not in _STORAGES.values() or (rest and rest[0] is not None):
            raise CheckpointFileError(f"unknown kind of storage: {identity!r:.80}")
        return _Storage(str(key), dtype, int(count))


def _read_archive(file: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    archive = zipfile.ZipFile(file)
    sizes = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in sizes if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointFileError("a zip archive, but no PyTorch checkpoint (expected one data.pkl in it)")
    root = pickles[0].removesuffix("data.pkl")
    _check_entries(archive.infolist(), file.seek(0, os.SEEK_END))
    order = f"{root}byteorder"
    if order in sizes and archive.read(order).strip() != b"little":
        raise CheckpointFileError("written on a big-endian machine, which is not supported")
    content = _unpickled(io.BytesIO(archive.read(pickles[0])))
    # Read here, as the file is closed behind this function.
    data = {}
    for name in sizes:
        if name.startswith(f"{root}data/"):
            data[name.removeprefix(f"{root}data/")] = archive.read(name)
    return content, lambda storage: _numbers(storage, data.get(storage.key))


def _check_entries(entries: list[zipfile.ZipInfo], room: int) -> None:
    """Refuses an archive that unpacks to more than it is: compressed, or one entry on top of another."""
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointFileError(f"{entry.filename} is compressed, which PyTorch never does")
    if sum(entry.file_size for entry in entries) > room:
        raise CheckpointFileError("damaged: its entries have more bytes together than the file")


def _unpickled(file: BinaryIO) -> Any:
    """The next pickle of a file, after a look at its instructions: some ask for memory by a number alone."""
    start = file.tell()
    for count, (instruction, argument, position) in enumerate(pickletools.genops(file)):
        if "PUT" in instruction.name and int(argument) > count:
            raise CheckpointFileError("damaged: a pickle keeps more values than it has")
        length = argument if instruction.name == "FRAME" else position - start
        if length > _LARGEST_PICKLE:
            raise CheckpointFileError(f"damaged: a pickle of more than {_LARGEST_PICKLE} bytes")
    file.seek(start)
    return _Unpickler(file).load()


def _read_stream(file: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    if _unpickled(file) != _MAGIC:
        raise CheckpointFileError("not a PyTorch checkpoint")
    if _unpickled(file) != _PROTOCOL:
        raise CheckpointFileError("of an unknown version of PyTorch's format")
    system = _unpickled(file)
    if not system.get("little_endian", True):
        raise CheckpointFileError("written on a big-endian machine, which is not supported")
    content = _unpickled(file)
    tensors: dict[int, _Tensor] = {}
    _collect(content, tensors, set())
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
    data = {}
    for key in map(str, _unpickled(file)):
        count = int.from_bytes(_exactly(file, 8), "little", signed=True)
        if key not in dtypes:
            raise CheckpointFileError(f"storage {key} belongs to no tensor")
        data[key] = _exactly(file, count * _itemsize(dtypes[key]))
    return content, lambda storage: _numbers(storage, data.get(storage.key))


def _exactly(file: BinaryIO, count: int) -> bytes:
    if count < 0:
        raise CheckpointFileError("damaged: a storage of negative size")
    place = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(place)
    if end - place < count:
        raise CheckpointFileError("cut off: a storage is not whole")
    return file.read(count)


def _itemsize(dtype: str) -> int:
    return 2 if dtype == _BFLOAT16 else np.dtype(dtype).itemsize


def _numbers(storage: _Storage, data: bytes | None) -> np.ndarray:
    """The storage's content as a flat array."""
    if data is None or len(data) != storage.count * _itemsize(storage.dtype):
        raise CheckpointFileError(f"damaged: storage {storage.key} is missing or has another size")
    if storage.dtype == _BFLOAT16:
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(storage.dtype).newbyteorder("<"))


def _collect(node: Any, tensors: dict[int, _Tensor], seen: set[int]) -> None:
    """Notes all tensors below a node of dictionaries, lists and tuples, each node once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, _Tensor):
        tensors[id(node)] = node
    elif isinstance(node, (dict, list, tuple)):
        for value in node.values() if isinstance(node, dict) else node:
            _collect(value, tensors, seen)


def _resolved(node: Any, numbers: Callable[[_Storage], np.ndarray], done: dict[int, Any]) -> Any:
    """The node with arrays in the place of tensors, and plain dictionaries; a shared node is made once."""
    if id(node) not in done:
        if isinstance(node, _Tensor):
            done[id(node)] = _array(node, numbers)
        elif isinstance(node, dict):
            done[id(node)] = {key: _resolved(value, numbers, done) for key, value in node.items()}
        elif isinstance(node, (list, tuple)):
            done[id(node)] = type(node)([_resolved(value, numbers, done) for value in node])
        else:
            return node
    return done[id(node)]


def _array(tensor: _Tensor, numbers: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    size, stride = tuple(map(int, tensor.size)), tuple(map(int, tensor.stride))
    offset = int(tensor.offset)
    if len(size) != len(stride) or offset < 0 or min((*size, *stride), default=0) < 0:
        raise CheckpointFileError(f"damaged: a tensor of size {size} and stride {stride}")
    flat = numbers(tensor.storage)
    count = math.prod(size)
    if count == 0:
        return np.zeros(size, flat.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A tensor with more elements than its storage would be one number many times, as no weights are.
    if last >= flat.size or count > flat.size:
        raise CheckpointFileError(f"damaged: a tensor of size {size} reaches beyond its storage")
    strides = [step * flat.itemsize for step in stride]
    view = np.lib.stride_tricks.as_strided(flat[offset:], size, strides, writeable=False)
    return np.ascontiguousarray(view)
