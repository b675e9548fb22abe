"""Files and folders that are whole or not there."""

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
import time

import pytest
from killing import each_death

from tfcorr import atomic
from tfcorr.atomic import (
    WriteError,
    append_line,
    check_folder,
    remove_leftovers,
    replacing,
    replacing_folder,
    write_bytes,
    write_text,
)
from tfcorr.errors import TfcorrError


def content(folder):
    """What a reader sees: names and bytes, without what killed processes left."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".tfcorr-" not in path.as_posix()
    }


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_killed_write_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    seen = []

    def prepare():
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        (tmp_path / "a").write_bytes(b"old")

    for _ in each_death(monkeypatch, prepare, lambda: write_bytes(tmp_path / "a", b"new")):
        seen.append((tmp_path / "a").read_bytes())
        assert set(content(tmp_path)) == {"a"}
        remove_leftovers(tmp_path, older_than=0)
        assert os.listdir(tmp_path) == ["a"]
    # One change, and enough deaths on both of its sides.
    assert seen == sorted(seen, reverse=True) and seen.count(b"old") >= 4 and seen.count(b"new") >= 2


@pytest.mark.parametrize("exchange", [True, False])
def test_a_killed_folder_is_the_old_one_or_the_new_one(tmp_path, monkeypatch, exchange):
    target = tmp_path / "model"
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)

    def prepare():
        shutil.rmtree(tmp_path)
        (target / "sub").mkdir(parents=True)
        for name in ("card", "weights", "sub/mine"):
            (target / name).write_bytes(b"old")

    def work():
        with replacing_folder(target, keep=True) as part:
            for name in ("card", "weights"):
                (part / name).write_bytes(b"new")

    states = {word: {"card": word, "weights": word, "sub/mine": b"old"} for word in (b"old", b"new")}.values()
    for _ in each_death(monkeypatch, prepare, work):
        if exchange:
            assert content(target) in states
        else:
            # Without an exchange in one step there is a moment when the folder has another name.
            assert any(content(folder) in states for folder in tmp_path.iterdir() if folder.is_dir())
    assert content(tmp_path) == {f"model/{name}": data for name, data in list(states)[1].items()}
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, monkeypatch, call):
    write_bytes(tmp_path / "a", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(WriteError, match=r"/a: cannot be written: the disk is full$") as caught:
            write_bytes(tmp_path / "a", b"new")
    assert caught.value.is_full and caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value, TfcorrError) and isinstance(caught.value, OSError)
    assert content(tmp_path) == {"a": b"old"} and os.listdir(tmp_path) == ["a"]


def test_others_that_write_run_into_a_full_disk(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "card").write_bytes(b"old")
    with (
        pytest.raises(WriteError, match="/model: cannot be written: the disk is full"),
        replacing_folder(tmp_path / "model") as part,
    ):
        (part / "half").write_bytes(b"x")
        full()
    # HDF5 tells it in words.
    with pytest.raises(WriteError, match="disk is full"), replacing(tmp_path / "b"):
        raise OSError("Can't write data (file write failed: errno = 28, error message = 'No space left')")
    # An error about something else is left as it is.
    with pytest.raises(FileNotFoundError, match="nothing"), replacing(tmp_path / "b"):
        open(tmp_path / "nothing").close()
    assert content(tmp_path) == {"model/card": b"old"} and os.listdir(tmp_path) == ["model"]


_LIMITED = """
import sys
from tfcorr.atomic import WriteError, append_line, write_bytes
for write, data in ((write_bytes, bytes(200_000)), (append_line, "b" * 200_000)):
    try:
        write(sys.argv.pop(1), data)
    except WriteError as error:
        print(error.errno, error)
"""


def test_a_limit_of_the_system_is_named(tmp_path):
    """The limit of a file's size strikes in the middle of a write, as a full disk does."""
    (tmp_path / "old").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, tmp_path / "old", tmp_path / "log"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    number = errno.EFBIG
    assert done.stdout.splitlines() == [
        f"{number} {tmp_path}/{name}: cannot be written: {os.strerror(number)}" for name in ("old", "log")
    ], done.stderr
    assert (tmp_path / "old").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["log", "old"]


def test_an_interruption_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "b") as part:
        (part / "half").write_bytes(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_rights_and_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    write_bytes(tmp_path / "link", b"1")
    (tmp_path / "plain").write_bytes(b"1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "plain").chmod(0o640)
    write_bytes(tmp_path / "plain", b"2")
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o640
    # The rights to the folder decide, as for any rename.
    (tmp_path / "plain").chmod(0o444)
    write_bytes(tmp_path / "plain", b"3")
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o444
    with replacing(tmp_path / "program") as part:
        part.chmod(0o755)
    assert stat.S_IMODE((tmp_path / "program").stat().st_mode) == 0o755
    (tmp_path / "there").mkdir()
    with replacing_folder(tmp_path / "new"):
        pass
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "there").stat().st_mode


def test_what_cannot_be_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"1")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WriteError, match="folder: is a folder; name a file"):
        write_bytes(tmp_path / "folder", b"")
    with pytest.raises(WriteError, match="pipe: is not a regular file"):
        write_bytes(tmp_path / "pipe", b"")
    with pytest.raises(WriteError, match="file: is there already"):
        write_bytes(tmp_path / "file", b"2", overwrite=False)
    with pytest.raises(WriteError, match="nowhere/a: cannot be written: No such file or directory"):
        write_bytes(tmp_path / "nowhere" / "a", b"")
    with (
        pytest.raises(WriteError, match="file: is a file, expected a folder"),
        replacing_folder(tmp_path / "file"),
    ):
        pass
    with pytest.raises(WriteError, match="is a mount point"), replacing_folder("/proc"):
        pass
    with pytest.raises(WriteError, match=r"file/model: cannot be written: '.*file' is not a folder"):
        check_folder(tmp_path / "file" / "model")
    check_folder(tmp_path / "new" / "model")
    write_text(tmp_path / "deep" / "er" / "a.md", "ä")
    assert (tmp_path / "deep" / "er" / "a.md").read_bytes() == "ä".encode()
    assert sorted(os.listdir(tmp_path)) == ["deep", "file", "folder", "pipe"]
    assert (tmp_path / "file").read_bytes() == b"1"


def test_the_file_before_is_kept_under_another_name(tmp_path, monkeypatch):
    places = [tmp_path / name for name in ("last", "previous")]

    def prepare():
        for place, data in zip(places, (b"2", b"1"), strict=True):
            place.write_bytes(data)

    def work():
        with replacing(places[0], previous=places[1]) as part:
            part.write_bytes(b"3")

    seen = set()
    for _ in each_death(monkeypatch, prepare, work):
        state = tuple(place.read_bytes() if place.exists() else None for place in places)
        assert state in {(b"2", b"1"), (None, b"2"), (b"3", b"2")}
        seen.add(state)
    assert len(seen) == 3


def test_a_line_stands_alone(tmp_path):
    path = tmp_path / "log"
    append_line(path, "one")
    with open(path, "ab") as file:
        file.write(b"ha")
    append_line(path, "two", synchronise=True)
    append_line(path, "three")
    assert path.read_text() == "one\nha\ntwo\nthree\n"


def test_leftovers_of_others_are_left_until_they_are_old(tmp_path):
    for name in (".tfcorr-1.part", ".tfcorr-2.part", "mine.part"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".tfcorr-3.part" / "sub").mkdir(parents=True)
    assert remove_leftovers(tmp_path) == 0
    old = time.time() - 4000
    for path in tmp_path.iterdir():
        os.utime(path, (old, old))
    assert remove_leftovers(tmp_path) == 3
    assert os.listdir(tmp_path) == ["mine.part"]
    assert remove_leftovers(tmp_path / "nowhere") == 0
