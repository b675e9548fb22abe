"""Records and variances on disk: whole or not there, checked, resumable."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from killing import each_death

from tfcorr.atomic import WriteError
from tfcorr.semantic.hypotheses import VarianceStore, hypothesis_records
from tfcorr.semantic.records import INDEX, Records
from tfcorr.training.photos import DataError

FIELDS = {"map": ((2, 3), "<f2"), "number": ((), "<i4")}


def arrays(records, number):
    members = np.array(records.members(number))
    return {"map": members[:, None, None] + np.zeros((len(members), 2, 3)), "number": members}


def filled(folder, count=10, shard=4, key="k"):
    records = Records(folder, FIELDS, count, shard=shard, key=key)
    for number in records.missing():
        records.write(number, arrays(records, number))
    return records


def test_records_come_back_by_number(tmp_path):
    records = filled(tmp_path)
    assert (records.shards, records.missing(), len(records.members(2))) == (3, [], 2)
    found = Records(tmp_path, FIELDS, 10, shard=4, key="k").read([9, 0, 5, 9])
    np.testing.assert_array_equal(found["number"], [9, 0, 5, 9])
    assert found["map"].shape == (4, 2, 3) and found["map"].dtype == np.float16
    np.testing.assert_array_equal(found["map"][:, 1, 2], [9, 0, 5, 9])
    with pytest.raises(IndexError, match="record 10 of 10"):
        records.read([10])


def test_an_interrupted_writing_goes_on(tmp_path):
    records = Records(tmp_path, FIELDS, 10, shard=4, key="k")
    records.write(1, arrays(records, 1))
    # A line and a file that the crash left half written.
    with open(tmp_path / INDEX, "ab") as file:
        file.write(b'{"number": 2, "sha')
    (tmp_path / ".shard-00002.npy.123").write_bytes(b"half")
    again = Records(tmp_path, FIELDS, 10, shard=4, key="k")
    assert again.missing() == [0, 2]
    with pytest.raises(DataError, match="not written yet"):
        again.read([0])
    for number in again.missing():
        again.write(number, arrays(again, number))
    whole = Records(tmp_path, FIELDS, 10, shard=4, key="k")
    assert whole.missing() == []
    np.testing.assert_array_equal(whole.read(range(10))["number"], np.arange(10))


def test_damage_is_named(tmp_path):
    filled(tmp_path)
    path = tmp_path / "shard-00001.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    records = Records(tmp_path, FIELDS, 10, shard=4, key="k")
    records.read([0, 9])
    with pytest.raises(DataError, match=r"shard-00001.npy: differs from its checksum"):
        records.read([5])
    path.unlink()
    assert Records(tmp_path, FIELDS, 10, shard=4, key="k").missing() == [1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"key": "other"}, "key 'k', expected 'other'"), ({"count": 11}, "count 10, expected 11")],
)
def test_other_records_are_refused(tmp_path, changed, message):
    filled(tmp_path)
    with pytest.raises(DataError, match=message):
        filled(tmp_path, **changed)


def test_shapes_are_checked_before_anything_is_written(tmp_path):
    records = Records(tmp_path, FIELDS, 10, shard=4, key="k")
    with pytest.raises(ValueError, match=r"map: expected \(4, 2, 3\), got \(3, 2, 3\)"):
        records.write(0, {"map": np.zeros((3, 2, 3)), "number": np.zeros(4)})
    assert records.missing() == [0, 1, 2]


def test_hypotheses_are_compact(tmp_path):
    records = hypothesis_records(tmp_path, 60_000, 4, (20, 20), shard=64, key="k")
    # Flows and confidence of both directions: 60,000 pairs below 1.2 GB.
    assert 60_000 * sum(np.prod(s) * d.itemsize for s, d in records.fields.values()) < 1.2e9
    assert json.loads((tmp_path / INDEX).read_text())["count"] == 60_000


SHAPE = (1, 3, 4, 2)


def values(indices, version):
    return np.asarray(indices, np.float32)[:, None, None, None, None] + np.full(
        SHAPE, 100 * version, np.float32
    )


def test_variances_by_version(tmp_path):
    store = VarianceStore(tmp_path, 5, SHAPE, initial=0.25)
    np.testing.assert_array_equal(store.read(np.array([3, 1]), 0), np.full((2, *SHAPE), 0.25))
    assert not list(tmp_path.iterdir())
    store.write(np.arange(5), values(range(5), 1), 1)
    with pytest.raises(DataError, match="missing, though the checkpoint goes on from it"):
        store.read(np.array([0]), 1)
    store.commit(1)
    np.testing.assert_array_equal(store.read(np.array([4, 2]), 1), values([4, 2], 1))
    for version in (2, 3):
        store.write(np.array([0, 1, 2]), values([0, 1, 2], version), version)
        store.write(np.array([3, 4]), values([3, 4], version), version)
        store.commit(version)
    # The last two stay: a checkpoint may be older than the last E-step's end.
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == [
        "variance-000002.npy",
        "variance-000003.npy",
    ]
    assert len(list(tmp_path.iterdir())) == 4
    again = VarianceStore(tmp_path, 5, SHAPE)
    np.testing.assert_array_equal(again.read(np.array([0, 4]), 2), values([0, 4], 2))
    np.testing.assert_array_equal(again.read(np.array([0, 4]), 3), values([0, 4], 3))
    with pytest.raises(IndexError, match="there are 5"):
        store.read(np.array([5]), 3)
    with pytest.raises(ValueError, match="version 4 has not been written"):
        store.commit(4)
    with pytest.raises(DataError, match=r"has shape \(5, 1, 3, 4, 2\), expected \(6, 1, 3, 4, 2\)"):
        VarianceStore(tmp_path, 6, SHAPE).read(np.array([0]), 3)


def test_an_e_step_that_was_cut_short_leaves_the_version_before(tmp_path):
    store = VarianceStore(tmp_path, 5, SHAPE)
    store.write(np.arange(5), values(range(5), 1), 1)
    store.commit(1)
    store.write(np.array([0, 1]), values([0, 1], 2), 2)
    del store
    again = VarianceStore(tmp_path, 5, SHAPE)
    np.testing.assert_array_equal(again.read(np.arange(5), 1), values(range(5), 1))
    with pytest.raises(DataError, match="missing"):
        again.read(np.array([0]), 2)
    again.write(np.arange(5), values(range(5), 2), 2)
    again.commit(2)
    np.testing.assert_array_equal(again.read(np.arange(5), 2), values(range(5), 2))
    # An E-step that is done again, from the checkpoint before it, replaces what it wrote.
    again.write(np.arange(5), values(range(5), 7), 2)
    again.commit(2)
    np.testing.assert_array_equal(again.read(np.array([1]), 2), values([1], 7))


def test_a_damaged_shard_is_found_and_made_again(tmp_path, caplog):
    filled(tmp_path)
    path = tmp_path / "shard-00001.npy"
    good = path.read_bytes()
    for damaged in (good[:-1] + bytes([good[-1] ^ 1]), good[:40], b""):
        path.write_bytes(damaged)
        records = Records(tmp_path, FIELDS, 10, shard=4, key="k")
        records.check()
        assert records.missing() == [1]
        assert f"{path}: differs from its checksum" in caplog.text
        records.read([0, 9])
        records.write(1, arrays(records, 1))
        assert path.read_bytes() == good
        again = Records(tmp_path, FIELDS, 10, shard=4, key="k")
        again.check()
        assert again.missing() == []


def test_a_killed_shard_is_whole_or_missing(tmp_path, monkeypatch):
    folder = tmp_path / "records"

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        records = Records(folder, FIELDS, 10, shard=4, key="k")
        records.write(0, arrays(records, 0))

    def work():
        records = Records(folder, FIELDS, 10, shard=4, key="k")
        records.write(1, arrays(records, 1))

    seen = []
    for _ in each_death(monkeypatch, prepare, work):
        records = Records(folder, FIELDS, 10, shard=4, key="k")
        records.check()
        seen.append(len(records.missing()))
        for number in records.missing():
            records.write(number, arrays(records, number))
        np.testing.assert_array_equal(records.read(range(10))["number"], np.arange(10))
    assert seen == sorted(seen, reverse=True) and set(seen) == {1, 2}


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    records = Records(tmp_path / "records", FIELDS, 10, shard=4, key="k")
    store = VarianceStore(tmp_path / "variance", 5, SHAPE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WriteError, match=r"shard-00000\.npy: cannot be written: the disk is full"):
            records.write(0, arrays(records, 0))
    with monkeypatch.context() as patch:
        # A mapped file would end the process where its space was not taken before.
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(WriteError, match=r"variance-000001\.npy: cannot be written: the disk is full"):
            store.write(np.arange(5), values(range(5), 1), 1)
    assert records.missing() == [0, 1, 2]
    assert not list((tmp_path / "variance").iterdir())
    store.write(np.arange(5), values(range(5), 1), 1)
    store.commit(1)
    np.testing.assert_array_equal(store.read(np.array([4]), 1), values([4], 1))


def test_damaged_variances_are_named(tmp_path):
    store = VarianceStore(tmp_path, 5, SHAPE)
    store.write(np.arange(5), values(range(5), 1), 1)
    store.commit(1)
    path = tmp_path / "variance-000001.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"variance-000001\.npy: differs from its checksum in .*\.sha256"):
        VarianceStore(tmp_path, 5, SHAPE).read(np.array([0]), 1)


def test_a_killed_commit_leaves_the_version_before_and_can_be_done_again(tmp_path, monkeypatch):
    folder = tmp_path / "variance"

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        store = VarianceStore(folder, 5, SHAPE)
        for version in (1, 2):
            store.write(np.arange(5), values(range(5), version), version)
            store.commit(version)

    def work():
        store = VarianceStore(folder, 5, SHAPE)
        store.write(np.arange(5), values(range(5), 3), 3)
        store.commit(3)

    for _ in each_death(monkeypatch, prepare, work):
        again = VarianceStore(folder, 5, SHAPE)
        np.testing.assert_array_equal(again.read(np.arange(5), 2), values(range(5), 2))
        again.write(np.arange(5), values(range(5), 3), 3)
        again.commit(3)
        for version in (2, 3):
            np.testing.assert_array_equal(again.read(np.arange(5), version), values(range(5), version))
