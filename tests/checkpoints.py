"""Checkpoints as PyTorch writes them, put together by hand, opcode by opcode: no PyTorch is needed."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}
_MAGIC = 0x1950A86A20F9469CFC6C


def name(module: str, attribute: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def whole(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)


def group(*parts: bytes) -> bytes:
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def mapping(parts: dict[str, bytes]) -> bytes:
    items = b"".join(text(key) + value for key, value in parts.items())
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def program(body: bytes) -> bytes:
    return pickle.PROTO + b"\x02" + body + pickle.STOP


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + group(*arguments) + pickle.REDUCE


def tensor(key: str, array: np.ndarray, *, legacy: bool, offset=0, size=None, stride=None) -> bytes:
    """A tensor on a storage of its own, contiguous unless told otherwise."""
    size = array.shape if size is None else size
    stride = [s // array.itemsize for s in array.strides] if stride is None else stride
    parts = [text("storage"), name("torch", _STORAGES[array.dtype.name]), text(key), text("cpu")]
    parts.append(whole(array.size))
    if legacy:
        parts.append(pickle.NONE)
    storage = group(*parts) + pickle.BINPERSID
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage,
        whole(offset),
        group(*map(whole, size)),
        group(*map(whole, stride)),
        pickle.NEWFALSE,
        call("collections", "OrderedDict"),
    )


def save(path: Path, content: dict, *, legacy: bool = False) -> None:
    """Saves nested dictionaries of arrays, as PyTorch's zip archive or stream of pickles."""
    arrays: list[np.ndarray] = []

    def node(value) -> bytes:
        if isinstance(value, dict):
            return mapping({key: node(item) for key, item in value.items()})
        arrays.append(np.ascontiguousarray(value))
        return tensor(str(len(arrays) - 1), arrays[-1], legacy=legacy)

    write(path, program(node(content)), arrays, legacy=legacy)


def write(path: Path, pickled: bytes, arrays: list[np.ndarray], *, legacy: bool = False) -> None:
    """Writes a pickle and its storages."""
    if not legacy:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights/data.pkl", pickled)
            archive.writestr("weights/byteorder", b"little")
            for number, array in enumerate(arrays):
                archive.writestr(f"weights/data/{number}", array.tobytes())
            archive.writestr("weights/version", b"3\n")
        return
    stream = io.BytesIO()
    for value in (_MAGIC, 1001, {"protocol_version": 1001, "little_endian": True}):
        pickle.dump(value, stream, protocol=2)
    stream.write(pickled)
    pickle.dump([str(number) for number in range(len(arrays))], stream, protocol=2)
    for array in arrays:
        stream.write(struct.pack("<q", array.size) + array.tobytes())
    path.write_bytes(stream.getvalue())
