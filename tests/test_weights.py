"""Files of weights that lie: about sizes, about where their numbers are, about being weights at all."""

import io
import struct
import zipfile

import h5py
import keras
import numpy as np
import pytest

from tfcorr.weights import WeightsError, check_hdf5, load_weights, opened_npz


@pytest.fixture
def model():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="dense")])


def test_good_weights(model, tmp_path):
    path = tmp_path / "good.weights.h5"
    wanted = [np.arange(12, dtype=np.float32).reshape(3, 4), np.ones(4, np.float32)]
    model.set_weights(wanted)
    model.save_weights(path)
    model.set_weights([np.zeros_like(array) for array in wanted])
    load_weights(model, path)
    for got, expected in zip(model.get_weights(), wanted, strict=True):
        np.testing.assert_array_equal(got, expected)


def external_link(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["secret"] = np.arange(9)
    file["a"] = h5py.ExternalLink("other.h5", "/secret")


def soft_link(file, folder):
    file["a"] = h5py.SoftLink("/etc")


def external_storage(file, folder):
    (folder / "raw").write_bytes(bytes(100))
    file.create_dataset("a", (10,), "u1", external=[("raw", 0, 10)])


def virtual(file, folder):
    external_link(file, folder)
    del file["a"]
    layout = h5py.VirtualLayout((9,), "i8")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "secret", (9,))
    file.create_virtual_dataset("a", layout)


def enormous(file, folder):
    file.create_dataset("a", (1 << 40,), "f4", chunks=(1 << 10,))


def many_times(file, folder):
    file.create_dataset("a", (200_000,), "f4", data=np.zeros(200_000), chunks=(1000,), compression="gzip")


def texts(file, folder):
    file["a"] = "text"


def objects(file, folder):
    file.create_dataset("a", (3,), h5py.vlen_dtype(np.int32))


def nothing(file, folder):
    file["a"] = h5py.Empty("f4")


def circle(file, folder):
    file.create_group("a").create_dataset("fine", data=np.zeros(2))
    file["a/again"] = file["a"]
    file["a/b"] = h5py.SoftLink("/a")


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (external_link, "link to another place"),
        (soft_link, "link to another place"),
        (external_storage, "lies in another file"),
        (virtual, "lies in another file"),
        (enormous, "more bytes than the file"),
        (many_times, "more bytes than the file"),
        (texts, "no array of numbers"),
        (objects, "no array of numbers"),
        (nothing, "no array of numbers"),
        (circle, "link to another place"),
    ],
)
def test_hdf5_that_lies(model, tmp_path, fill, words):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        fill(file, tmp_path)
    with pytest.raises(WeightsError, match=words) as caught:
        load_weights(model, path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_hdf5_that_is_damaged(model, tmp_path):
    path = tmp_path / "a.weights.h5"
    model.save_weights(path)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for number in range(60):
        changed = bytearray(content)
        if number % 3 == 0:
            changed = changed[: random.integers(1, len(changed))]
        else:
            for place in random.integers(0, min(len(changed), 3000), 3):
                changed[place] ^= 1 << random.integers(8)
        path.write_bytes(changed)
        try:
            check_hdf5(path)
        except WeightsError as error:
            assert str(error).startswith(str(path))
    for content in (b"", b"no weights", b"\x89HDF\r\n\x1a\n"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="not an HDF5 file of weights"):
            check_hdf5(path)


# NPZ --------------------------------------------------------------------------------------


def npz(path, **members):
    """An NPZ file of members as they are given: bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def described(dtype: str, shape: str, data: bytes) -> bytes:
    return npy(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}", data)


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def test_good_npz(tmp_path):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.array(3, np.int64),
        "c": np.zeros((0, 4), np.float32),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        with opened_npz(tmp_path / "a.npz") as archive:
            assert set(archive.files) == set(arrays)
            for name, array in arrays.items():
                np.testing.assert_array_equal(archive[name], array)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (described("<f4", "(1099511627776,)", bytes(64)), "another size"),
        (described("<f4", "(2,)", bytes(4)), "another size"),
        (described("|O", "(1,)", b"cos\nsystem\n(S'true'\ntR."), "objects"),
        (npy("__import__('os').system('true')"), "no array"),
        (npy("{" * 60_000), "no array"),
        (b"text", "no array"),
    ],
)
def test_npz_that_lies(tmp_path, content, words):
    npz(tmp_path / "a.npz", a=content)
    with pytest.raises(WeightsError, match=words) as caught, opened_npz(tmp_path / "a.npz"):
        pass
    assert str(caught.value).startswith(str(tmp_path / "a.npz"))


def test_npz_that_unpacks_to_far_more(tmp_path):
    size = 50 << 20
    npz(tmp_path / "a.npz", a=described("|u1", f"({size},)", bytes(size)))
    with pytest.raises(WeightsError, match="would be 52 MB unpacked"), opened_npz(tmp_path / "a.npz"):
        pass


def test_npz_that_is_damaged(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.random.default_rng(0).random((20, 20)))
    content = buffer.getvalue()
    random = np.random.default_rng(1)
    path = tmp_path / "a.npz"
    refused = 0
    for number in range(80):
        changed = bytearray(content)
        if number % 2:
            changed = changed[: random.integers(1, len(changed))]
        else:
            changed[random.integers(len(changed))] ^= 1 << random.integers(8)
        path.write_bytes(changed)
        try:
            with opened_npz(path) as archive:
                dict(archive)
        except WeightsError as error:
            refused += 1
            assert "a.npz" in str(error)
    assert refused > 60
    path.write_bytes(b"")
    with pytest.raises(WeightsError), opened_npz(path):
        pass
    with pytest.raises(WeightsError), opened_npz(tmp_path / "missing.npz"):
        pass
