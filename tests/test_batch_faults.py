"""Commands over many files, when the disk is full or the process is killed or ended."""

import errno
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from killing import each_death
from PIL import Image

import tfcorr.cli.super_resolve as command
from tfcorr.cli import main

NAMES = ("a.png", "b.png", "sub/c.png")


class Enlarger:
    """Stands for a model: repeats pixels."""

    card = SimpleNamespace(name="repeats")
    model = None

    def __init__(self):
        self.calls = 0

    def upscale(self, pixels, references, *, details, progress):
        self.calls += 1
        image = pixels.repeat(4, axis=0).repeat(4, axis=1)
        return SimpleNamespace(image=image, used_share=0.0, confidence=np.ones(pixels.shape[:2]))


@pytest.fixture
def enlarger(monkeypatch):
    made = Enlarger()
    monkeypatch.setattr(command, "_load", lambda _: made)
    return made


@pytest.fixture
def photos(tmp_path):
    """A folder with three images, and what becomes of each."""
    rng = np.random.default_rng(0)
    expected = {}
    for name in NAMES:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        expected[name] = pixels.repeat(4, axis=0).repeat(4, axis=1)
    return tmp_path / "in", expected


def written(out, expected):
    """Names of the outputs, each of which has to be whole."""
    names = set()
    for path in out.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            name = path.relative_to(out).as_posix()
            np.testing.assert_array_equal(np.asarray(Image.open(path)), expected[name])
            names.add(name)
    return names


def test_a_batch_that_is_killed_leaves_whole_images_and_goes_on(
    tmp_path, photos, enlarger, monkeypatch, capsys
):
    folder, expected = photos
    out = tmp_path / "out"
    counts = []

    def work():
        main(["super-resolve", str(folder), "--output", str(out)])

    def prepare():
        shutil.rmtree(out, ignore_errors=True)

    for _ in each_death(monkeypatch, prepare, work):
        counts.append(len(written(out, expected)) if out.exists() else 0)
        enlarger.calls = 0
        work()
        # Only what is missing is made again.
        assert written(out, expected) == set(NAMES) and enlarger.calls == len(NAMES) - counts[-1]
    assert counts == sorted(counts) and set(counts) == {0, 1, 2, 3}
    capsys.readouterr()


def test_a_full_disk_ends_the_batch(tmp_path, photos, enlarger, monkeypatch, capsys):
    folder, expected = photos
    out = tmp_path / "out"
    replace = os.replace

    def full(source, target):
        if os.fspath(target).endswith("b.png"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert main(["super-resolve", str(folder), "--output", str(out)]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"tfcorr: {out}/b.png: cannot be written: the disk is full",
        f"tfcorr: {folder}/sub/c.png: not tried, as there was no space for the one before",
    ]
    assert captured.out.splitlines()[-1] == "1 written, 0 skipped, 2 failed"
    assert written(out, expected) == {"a.png"} and enlarger.calls == 2
    assert not list(out.rglob(".tfcorr-*"))
    # With space again.
    assert main(["super-resolve", str(folder), "--output", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 written, 1 skipped, 0 failed"
    assert written(out, expected) == set(NAMES)


def test_sigterm_takes_away_what_was_begun(tmp_path, photos, enlarger, monkeypatch, capsys):
    folder, expected = photos
    out = tmp_path / "out"
    fsync = os.fsync
    calls = []

    def ended(descriptor):
        calls.append(descriptor)
        # In the middle of the second image: a file and its folder are synchronised for each.
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        fsync(descriptor)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", ended)
        assert main(["super-resolve", str(folder), "--output", str(out)]) == 130
    assert capsys.readouterr().err == "tfcorr: interrupted\n"
    assert written(out, expected) == {"a.png"} and not list(out.rglob(".tfcorr-*"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_that_is_ended_before_its_first_step_says_that_it_goes_on(monkeypatch, capsys):
    def train(config, command, report):
        report("features: 1/9 files")
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not interrupted")

    monkeypatch.setattr("tfcorr.cli.train.start_tensorflow", lambda: None)
    for name, value in {"load_config": None, "check_command": None, "runner": train}.items():
        monkeypatch.setattr(f"tfcorr.config.{name}", lambda *_, value=value: value)
    assert main(["train", "my.yaml"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "features: 1/9 files",
        "interrupted; what was finished is kept, and the same command goes on",
    ]
