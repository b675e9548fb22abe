#!/usr/bin/env python
"""Kills a real training at random moments until it has survived enough, and compares what it ends with.

    scripts/kill_training.py --stage matcher --kills 20
    scripts/kill_training.py --stage semantic --kills 20 --folder /tmp/kills

Trains a tiny model on made-up photographs, with one thread: once in one go, and once killed (SIGKILL) and
started again, over and over, by the command line. Some kills come while it starts, some between
two lines of its output, some while a file is being written. At the end all weights, optimiser states and
variances have to be equal bit by bit; then the exit status is 0.

`semantic` goes through all parts: features, warped pairs, teacher, hypotheses, student with its E-steps.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tfcorr.atomic import LEFTOVERS

KINDS = ("line", "write", "start", "write")
"""What a kill waits for, in turn."""

_TRAIN = {
    "batch": 2,
    "learning_rate": {"initial": 1.0e-3, "schedule": "cosine", "warmup": 5},
    "clip_norm": 1.0,
    "precision": "float32",
    "threads": 1,
    "log_every": 1,
    "profile_steps": 0,
}


def matcher_config(steps: int) -> dict:
    """A matcher from random weights, with validation."""
    return {
        "stage": "matcher",
        "name": "killed",
        "data": {"images": ["photos"], "crop": 32, "photometric": {"probability": 0.5}},
        "loss": {
            "margin": 1.0,
            "safe_radius": 2.0,
            "minimum_positions": 1,
            "triplet_weight": 0.5,
            "contrastive_weight": 1.0,
        },
        "train": {**_TRAIN, "steps": steps, "checkpoint_every": 3, "ema": 0.9},
        "validation": {"images": ["photos"], "count": 2, "every": 10},
    }


def semantic_config(steps: int) -> dict:
    """All parts of the weakly supervised regime, on a random backbone."""
    return {
        "stage": "semantic",
        "name": "killed",
        "backbone": "mobilenet",
        "backbone_arguments": {"alpha": 0.25},
        "backbone_weights": None,
        "size": 64,
        "cache_features": True,
        "teacher": {
            "synthetic": {"source": {"images": ["photos"]}, "warps": {"kind": "mixed"}, "pool": 64},
            "train": {**_TRAIN, "steps": steps, "checkpoint_every": 3},
        },
        "hypotheses": {
            "pairs": [{"layout": "folders", "path": "photos", "pairing": "matched", "count": 12}],
            "count": 2,
            "shard": 1,
        },
        "student": {
            "train": {**_TRAIN, "steps": steps, "seed": 11, "checkpoint_every": 4},
            "from_teacher": 1.0,
            "steps_per_round": 5,
        },
        "validation": {"source": {"images": ["photos"]}, "count": 2, "every": 10},
    }


CONFIGS: dict[str, Callable[[int], dict]] = {"matcher": matcher_config, "semantic": semantic_config}


def make_photos(folder: Path) -> None:
    """Two kinds of photographs, four of each, smooth enough to be matched."""
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)
        pattern = rng.integers(0, 256, (9, 12, 3), np.uint8)
        for number in range(4):
            noisy = np.clip(pattern + rng.normal(0, 12, pattern.shape), 0, 255).astype(np.uint8)
            picture = Image.fromarray(noisy).resize((96, 72), Image.Resampling.BICUBIC)
            picture.save(folder / kind / f"{kind}{number}.png")


class Fresh:
    """Starts each call in an interpreter of its own, as a shell would."""

    def start(self, arguments: list[str]) -> tuple[int, int]:
        """Returns the process's number and a descriptor of its output."""
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "tfcorr", *arguments], stdout=writing, stderr=subprocess.STDOUT
        )
        os.close(writing)
        return process.pid, reading


class Forked:
    """Starts each call as a copy of this process, which has imported TensorFlow but computed nothing."""

    def __init__(self):
        import tensorflow  # noqa: F401

        import tfcorr.refsr.stages
        import tfcorr.semantic.stages  # noqa: F401

    def start(self, arguments: list[str]) -> tuple[int, int]:
        """See `Fresh.start`."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writing)
            return pid, reading
        try:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            from tfcorr.cli import main

            os._exit(main(arguments))
        except BaseException:
            os._exit(99)


@dataclass
class Call:
    """A training that runs.

    Attributes:
        lines: its output so far.
        seconds: since its start, when it ended.
    """

    pid: int
    output: int
    lines: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    status: int | None = None

    def __post_init__(self):
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with os.fdopen(self.output, encoding="utf-8", errors="replace") as file:
            for line in file:
                if not re.match(r"WARNING: All log|[IWE]\d{4} ", line):  # TensorFlow's
                    self.lines.append(line.rstrip())

    def ended(self) -> bool:
        """Whether it ended by itself, or was killed."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                self.seconds = time.monotonic() - self.started
                self._reader.join()
        return self.status is not None

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Waits; False if it ended before."""
        while not condition():
            if self.ended():
                return False
            time.sleep(0.002)
        return not self.ended()

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait_until(lambda: False)


@dataclass
class Kill:
    """One row of the table."""

    kind: str
    seconds: float
    last_line: str
    leftovers: list[str]
    resumed: str = ""


def leftovers(run: Path) -> list[str]:
    """Names of the files and folders that are being written, or were when the process died."""
    return sorted(path.parent.name for path in run.parent.rglob(LEFTOVERS))


def kill_somewhere(
    call: Call, kind: str, run: Path, rng: random.Random, pace: tuple[float, int]
) -> Kill | None:
    """Waits for a moment and kills; None if the training ended before.

    Args:
        call: just started.
        kind: of `KINDS`.
        run: its run folder.
        rng: chooses the moment.
        pace: seconds until the first step, and lines that a call may get on by.
    """
    start, most = pace
    if kind == "start":
        moment = time.monotonic() + rng.uniform(0.1, 1.1) * start
        alive = call.wait_until(lambda: time.monotonic() > moment)
    else:
        lines = rng.randint(1, most)
        alive = call.wait_until(lambda: len(call.lines) >= lines)
        if alive and kind == "write":
            before = len(leftovers(run))
            alive = call.wait_until(lambda: len(leftovers(run)) > before)
            time.sleep(rng.uniform(0, 0.01))
        elif alive:
            time.sleep(rng.uniform(0, 0.2))
    if not alive or call.ended():
        return None
    call.kill()
    last = call.lines[-1] if call.lines else "(nothing yet)"
    return Kill(kind, call.seconds, last[:48], leftovers(run))


def resumed_at(lines: list[str]) -> str:
    """Where a call went on, from its own words."""
    places = []
    for line in lines:
        if found := re.match(r"going on from .*?([\w-]+)/(\w+\.npz), step (\d+)", line):
            places.append(f"{found[1]}/{found[2]} step {found[3]}")
        elif found := re.match(r"(\S+): finished before", line):
            places.append(f"{Path(found[1]).parent.name} finished")
    if not places and not any(line.startswith("step ") for line in lines):
        return "(killed again before it could tell)"
    return ", ".join(places) or "the beginning"


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the checkpoints, weights and variances in a run, but for half-written leftovers."""
    import h5py

    def files(pattern: str) -> list[Path]:
        return sorted(
            path
            for path in folder.rglob(pattern)
            if not any(fnmatch.fnmatch(part, LEFTOVERS) for part in path.relative_to(folder).parts)
        )

    found: dict[str, np.ndarray] = {}
    for path in files("last.npz"):
        with np.load(path) as archive:
            name = path.relative_to(folder)
            found.update(
                {f"{name}:{_numbered(key)}": archive[key] for key in archive.files if key != "state"}
            )
    for path in files("*.weights.h5"):
        with h5py.File(path) as file:
            file.visititems(
                lambda key, item, path=path: (
                    found.update({f"{path.relative_to(folder)}:{key}": item[()]})
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
    for path in files("variance-*.npy"):
        found[f"{path.relative_to(folder)}"] = np.load(path)
    return found


def _numbered(key: str) -> str:
    """A variable's kind, number and last word: Keras counts optimisers a process, which changes the rest."""
    kind, number, *path = key.split("/")
    return f"{kind}/{number}/{path[-1].rpartition('_')[2]}"


def differing(one: Path, other: Path) -> list[str]:
    """Names of the arrays that are not bit-equal in two runs."""
    first, second = arrays_of(one), arrays_of(other)
    names = sorted(first.keys() | second.keys())
    if not any("weights" in name for name in names):
        raise SystemExit("nothing to compare: no weights were written")

    def same(name: str) -> bool:
        a, b = first.get(name), second.get(name)
        return a is not None and b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes()

    return [name for name in names if not same(name)]


class Trial:
    """A training in one go, and the same training killed again and again.

    Args:
        stage: a name of `CONFIGS`.
        folder: for everything.
        steps: of the training.
        starter: starts a call.
        rng: chooses the moments.
    """

    def __init__(self, stage: str, folder: Path, steps: int, starter: Fresh | Forked, rng: random.Random):
        self.folder, self.starter, self.rng = folder, starter, rng
        make_photos(folder / "data" / "photos")
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump({**CONFIGS[stage](steps), "run": "-", "output": "-"}))
        self.kills: list[Kill] = []
        self.failures: list[str] = []

    def call(self, name: str) -> Call:
        run = self.folder / name
        places = [f"data_root={self.folder / 'data'}", f"run={run / 'run'}", f"output={run / 'model'}"]
        return Call(*self.starter.start(["train", str(self.config), *places]))

    def whole(self) -> tuple[float, int]:
        """The training in one go; returns the seconds until its first step, and its number of lines."""
        call = self.call("whole")
        call.wait_until(lambda: any(line.startswith("step ") for line in call.lines))
        first = time.monotonic() - call.started
        call.wait_until(lambda: False)
        if call.status:
            raise SystemExit("the training fails by itself:\n" + "\n".join(call.lines[-20:]))
        print(
            f"in one go: {call.seconds:.0f} s, {len(call.lines)} lines, the first step after {first:.0f} s",
            flush=True,
        )
        return first, len(call.lines)

    def killed(self, number: int, kills: int, pace: tuple[float, int]) -> None:
        """One training that is killed until it is at its end, or `kills` were made in all; then compared."""
        name = f"killed-{number}"
        run = self.folder / name / "run"
        while True:
            call = self.call(name)
            kill = None
            if len(self.kills) < kills:
                kill = kill_somewhere(call, KINDS[len(self.kills) % len(KINDS)], run, self.rng, pace)
            if kill is None:
                call.wait_until(lambda: False)
            if self.kills and not self.kills[-1].resumed:
                self.kills[-1].resumed = resumed_at(call.lines)
                self._tell(len(self.kills), self.kills[-1])
            if kill is None:
                break
            self.kills.append(kill)
        if call.status:
            self.failures.append(f"{name}: exit status {call.status}\n" + "\n".join(call.lines[-10:]))
            return
        different = differing(self.folder / "whole", self.folder / name)
        print(f"{name}: at its end; {len(different)} arrays differ", flush=True)
        self.failures += [f"{name}: {array} differs" for array in different]

    def _tell(self, number: int, kill: Kill) -> None:
        left = ", ".join(kill.leftovers) or "-"
        print(
            f"{number:>4}  {kill.kind:<6} {kill.seconds:>7.1f} s  {kill.last_line:<48}  "
            f"half-written in: {left:<12}  went on from {kill.resumed}",
            flush=True,
        )


def main() -> int:
    """Runs the trial; returns 0 if everything is equal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=sorted(CONFIGS), default="matcher")
    parser.add_argument("--kills", type=int, default=20, help="0 compares two trainings in one go")
    parser.add_argument(
        "--steps", type=int, default=40, help="of the training (of each part's, for semantic)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--folder", type=Path, help="for everything; by default one that is removed at the end"
    )
    parser.add_argument(
        "--start",
        choices=("fresh", "fork"),
        default="fresh",
        help="each call in an interpreter of its own, or, quicker, in a copy of this one",
    )
    args = parser.parse_args()
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", PYTHONUNBUFFERED="1", CUDA_VISIBLE_DEVICES="-1")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="tfcorr-kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        starter = Forked() if args.start == "fork" else Fresh()
        trial = Trial(args.stage, folder, args.steps, starter, random.Random(args.seed))
        first, lines = trial.whole()
        # Several kills for each training, several trainings for all kills.
        pace = first, max(2, lines // 3)
        number = 0
        while not trial.failures and (number == 0 or len(trial.kills) < args.kills):
            number += 1
            trial.killed(number, args.kills, pace)
    finally:
        if args.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    for failure in trial.failures:
        print(failure)
    print(
        f"{len(trial.kills)} kills in {number} trainings: "
        + ("MISMATCH" if trial.failures else "all weights, optimiser states and variances are bit-equal")
    )
    return 1 if trial.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
