"""One process a run folder."""

import os
import signal
import subprocess
import sys

import pytest

from tfcorr.training.run_lock import LOCK, RunLockedError, run_lock

_HOLD = """
import sys, time
from tfcorr.training.run_lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    run = tmp_path / "deep" / "run"
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, run], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        (run / ".tfcorr-1.part").write_bytes(b"being written")
        message = rf"run: another call works in this run folder \(process {holder.pid} on .+\); wait"
        with pytest.raises(RunLockedError, match=message), run_lock(run):
            pass
        assert sorted(os.listdir(run)) == [".tfcorr-1.part", LOCK]
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    # A lock ends with its process, and what it left is taken away.
    with run_lock(run):
        assert os.listdir(run) == [LOCK]
        assert (run / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    with run_lock(run):
        pass


def test_without_locks_nothing_is_refused(tmp_path, monkeypatch):
    import fcntl

    def unsupported(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / ".tfcorr-1.part").write_bytes(b"of another process, perhaps")
    with run_lock(tmp_path), run_lock(tmp_path):
        assert (tmp_path / ".tfcorr-1.part").exists()
