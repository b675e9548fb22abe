"""A real training that is killed ends with the same weights; see the script for what it compares."""

import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "kill_training.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=3000,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
    )


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "steps"), [("matcher", 12), ("semantic", 10)])
def test_a_killed_training_ends_with_the_same_weights(stage, steps, tmp_path):
    done = run("--stage", stage, "--kills", "3", "--steps", str(steps), "--folder", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^3 kills in \d+ trainings: all weights, .* are bit-equal$", done.stdout, re.MULTILINE)
    # The comparison notices a single bit, though not in what a kill left half-written.
    weights = (tmp_path / "killed-1").rglob("*.weights.h5")
    with h5py.File(next(path for path in weights if ".part" not in str(path)), "r+") as file:
        datasets = []
        file.visititems(lambda _, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None)
        datasets[0][...] = np.nextafter(datasets[0][()], np.float32(np.inf))
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from kill_training import differing
    finally:
        sys.path.remove(str(SCRIPT.parent))
    assert differing(tmp_path / "whole", tmp_path / "killed-1")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(tmp_path):
    done = run("--stage", "matcher", "--kills", "0", "--steps", "6", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed-1: at its end; 0 arrays differ" in done.stdout
