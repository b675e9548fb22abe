"""Measuring processes: every job runs in a process of its own, see `tfcorr.bench.worker`.

A process of its own gives every run the asked number of threads, which TensorFlow fixes when it starts, and
every memory figure a heap in which nothing lay before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tfcorr
from tfcorr.errors import TfcorrError


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Runs one job of `tfcorr.bench.worker` and returns its result.

    Args:
        job: plain data with `kind`, `threads` (a number, or None for the libraries' own choice), and what
            the kind needs.

    Raises:
        TfcorrError: the process failed; the message tells its last words.
    """
    package_parent = str(Path(tfcorr.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (package_parent, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {
        "PYTHONPATH": path,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": "tensorflow",
    }
    if job["threads"] is not None:
        environment["OMP_NUM_THREADS"] = str(job["threads"])
    with tempfile.TemporaryDirectory(prefix="tfcorr-bench-") as folder:
        result = Path(folder) / "result.json"
        done = subprocess.run(
            [sys.executable, "-m", "tfcorr.bench.worker", str(result)],
            input=json.dumps(job),
            env=environment,
            text=True,
            capture_output=True,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise TfcorrError(f"the measuring process failed: {lines[-1]}")
        return json.loads(result.read_text())
