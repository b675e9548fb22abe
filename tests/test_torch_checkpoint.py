"""The reader of PyTorch's files: both formats, made by hand and by PyTorch, and files that mean harm."""

import pickle
import zipfile

import checkpoints
import numpy as np
import pytest

from tfcorr.torch_checkpoint import CheckpointFileError, read_checkpoint


@pytest.fixture(params=[False, True], ids=["zip", "stream"])
def legacy(request):
    return request.param


def arrays():
    random = np.random.default_rng(0)
    return {
        "kernel": random.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "half": random.normal(size=(5,)).astype(np.float16),
        "counter": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }


def test_nested_arrays(tmp_path, legacy):
    path = tmp_path / "weights.pth"
    checkpoints.save(path, {"a": arrays(), "b": {"one": np.ones(2, np.float32)}}, legacy=legacy)
    content = read_checkpoint(path)
    assert list(content) == ["a", "b"]
    for name, expected in arrays().items():
        np.testing.assert_array_equal(content["a"][name], expected)
        assert content["a"][name].dtype == expected.dtype
    np.testing.assert_array_equal(content["b"]["one"], [1, 1])


def test_files_of_pytorch(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    saved = layer.state_dict()
    saved["part of another"] = torch.arange(24.0).reshape(4, 6)[1:3, 2:].t()
    saved["bfloat16"] = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    saved["parameter"] = torch.nn.Parameter(torch.ones(2))
    content = {"net": saved, "steps": 12, "rates": [1e-3, (2, None)], "name": "a"}
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(path)
    assert {key: found[key] for key in ("steps", "rates", "name")} == {
        key: content[key] for key in ("steps", "rates", "name")
    }
    assert list(found["net"]) == list(saved)
    for name, expected in saved.items():
        np.testing.assert_array_equal(found["net"][name], expected.detach().float().numpy(), err_msg=name)


HARM = {
    "a shell command": ("os", "system"),
    "by another name": ("posix", "system"),
    "evaluation": ("builtins", "eval"),
    "importing": ("importlib", "import_module"),
    "a way through a known module": ("torch._utils", "_import_dotted_name"),
    "a way through a known class": ("collections", "OrderedDict.fromkeys"),
    "a model's own class": ("torch.nn.modules.container", "Sequential"),
}


@pytest.mark.parametrize("function", HARM.values(), ids=HARM)
def test_nothing_that_a_file_says_is_called(tmp_path, legacy, function):
    witness = tmp_path / "witness"
    body = checkpoints.call(*function, checkpoints.text(f"touch {witness}"))
    path = tmp_path / "weights.pth"
    checkpoints.write(path, checkpoints.program(checkpoints.mapping({"a": body})), [], legacy=legacy)
    with pytest.raises(CheckpointFileError, match=r"weights\.pth: names .*nothing was called"):
        read_checkpoint(path)
    assert not witness.exists()


@pytest.mark.parametrize("opcode", [pickle.STACK_GLOBAL, pickle.INST])
def test_other_ways_of_naming_are_watched_too(tmp_path, opcode):
    witness = tmp_path / "witness"
    argument = checkpoints.text(f"touch {witness}")
    if opcode == pickle.INST:
        body = pickle.MARK + argument + pickle.INST + b"os\nsystem\n"
    else:
        names = checkpoints.text("os") + checkpoints.text("system")
        body = names + opcode + checkpoints.group(argument) + pickle.REDUCE
    checkpoints.write(tmp_path / "weights.pth", checkpoints.program(body), [])
    with pytest.raises(CheckpointFileError, match=r"names os\.system"):
        read_checkpoint(tmp_path / "weights.pth")
    assert not witness.exists()


def test_what_was_pickled_by_python_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"a": Harmful()}))
    with pytest.raises(CheckpointFileError, match=r"names builtins\.exec"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "shape",
    [
        {"size": (3,)},
        {"offset": 1},
        {"offset": -1},
        {"size": (2,), "stride": (2,)},
        {"size": (2,), "stride": (-1,)},
        {"size": (1000, 1000), "stride": (0, 0)},
        {"size": (2, 1)},
    ],
)
def test_tensors_stay_within_their_storage(tmp_path, legacy, shape):
    array = np.ones(2, np.float32)
    body = checkpoints.tensor("0", array, legacy=legacy, **{"size": (2,), "stride": (1,), **shape})
    path = tmp_path / "weights.pth"
    checkpoints.write(path, checkpoints.program(body), [array], legacy=legacy)
    with pytest.raises(CheckpointFileError, match="damaged"):
        read_checkpoint(path)


def test_damaged_files(tmp_path, legacy):
    path = tmp_path / "weights.pth"
    checkpoints.save(path, arrays(), legacy=legacy)
    data = path.read_bytes()
    for length in (0, 1, 20, len(data) // 2, len(data) - 5):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointFileError, match=r"weights\.pth: "):
            read_checkpoint(path)
    random = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(data)
        for place in random.integers(len(data), size=3):
            broken[place] = random.integers(256)
        path.write_bytes(bytes(broken))
        # Either the damage fell among the numbers, or it is noticed; no other error comes out.
        try:
            read_checkpoint(path)
        except CheckpointFileError as error:
            assert str(path) in str(error)


def test_other_files(tmp_path):
    with pytest.raises(CheckpointFileError, match="cannot be read"):
        read_checkpoint(tmp_path / "missing.pth")
    path = tmp_path / "weights.pth"
    path.write_text("<!DOCTYPE html>")
    with pytest.raises(CheckpointFileError, match="not a PyTorch checkpoint"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(CheckpointFileError, match="no PyTorch checkpoint"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        pickled = checkpoints.tensor("0", np.zeros(4, np.float32), legacy=False)
        archive.writestr("w/data.pkl", checkpoints.program(pickled))
        archive.writestr("w/data/0", bytes(16))
    with pytest.raises(CheckpointFileError, match="compressed"):
        read_checkpoint(path)


def test_a_node_that_holds_itself(tmp_path):
    body = pickle.EMPTY_LIST + pickle.BINPUT + b"\x00" + pickle.BINGET + b"\x00" + pickle.APPEND
    checkpoints.write(tmp_path / "weights.pth", checkpoints.program(body), [])
    with pytest.raises(CheckpointFileError, match="RecursionError"):
        read_checkpoint(tmp_path / "weights.pth")


def test_compressed_pickles_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", pickle.dumps("x" * (1 << 20)))
    with pytest.raises(CheckpointFileError, match=r"w/data\.pkl is compressed"):
        read_checkpoint(path)


def test_entries_on_top_of_each_other(tmp_path):
    """An archive whose entries are all the same bytes would be a thousand times as large in memory."""
    path = tmp_path / "weights.pth"
    checkpoints.save(path, {"a": np.zeros(50_000, np.float32), "b": np.zeros(50_000, np.float32)})
    with zipfile.ZipFile(path) as archive:
        places = {entry.filename: entry.header_offset for entry in archive.infolist()}
    data = bytearray(path.read_bytes())
    # The directory's entry of the second storage is led to the first one, and the second one is cut out.
    first, second = places["weights/data/0"], places["weights/data/1"]
    at = data.rindex(b"weights/data/1") - 4
    assert int.from_bytes(data[at : at + 4], "little") == second
    data[at : at + 4] = first.to_bytes(4, "little")
    gap = places["weights/version"] - second
    end = data.rindex(b"PK\5\6")
    start = int.from_bytes(data[end + 16 : end + 20], "little")
    data[end + 16 : end + 20] = (start - gap).to_bytes(4, "little")
    at = data.rindex(b"weights/version") - 4
    data[at : at + 4] = second.to_bytes(4, "little")
    del data[second : second + gap]
    path.write_bytes(data)
    with pytest.raises(CheckpointFileError, match="more bytes together than the file"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f", "keeps more values than it has"),
        (pickle.NONE + pickle.PUT + b"99999999999\n", "keeps more values than it has"),
        (pickle.FRAME + b"\xff\xff\xff\xff\xff\xff\xff\x7f" + pickle.NONE, "a pickle of more than"),
        (pickle.BINUNICODE8 + b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x", "damaged"),
        (pickle.BINBYTES8 + b"\0\0\0\0\xff\0\0\0" + b"x", "damaged"),
        (pickle.BYTEARRAY8 + b"\0\0\0\0\xff\0\0\0" + b"x", "damaged"),
        (pickle.LONG4 + b"\xff\xff\xff\x7f" + b"x", "damaged"),
    ],
)
def test_pickles_that_ask_for_memory_by_a_number(tmp_path, legacy, body, words):
    path = tmp_path / "weights.pth"
    checkpoints.write(path, checkpoints.program(body), [], legacy=legacy)
    with pytest.raises(CheckpointFileError, match=words):
        read_checkpoint(path)
