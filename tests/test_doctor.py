"""`tfcorr doctor`: what it says, above all where something is missing or broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfcorr import doctor
from tfcorr.cli import main
from tfcorr.ops import build

ROOT = Path(__file__).resolve().parent.parent
WORKING = {
    "version": "2.21.0",
    "gpus": [],
    "keras": "3.15.1",
    "backend": "tensorflow",
    "ops": {
        "deform_conv2d": {
            "implementation": "custom",
            "reason": "built for TensorFlow 2.21.0",
            "library": "x",
        },
        "match_patches": {"implementation": "reference", "reason": "not built yet", "library": None},
    },
    "instruction_set": "avx2",
    "library_up_to_date": None,
}


@pytest.fixture
def found(monkeypatch):
    """Replaces what is found in the process of its own; returns a dictionary to change."""
    answer = json.loads(json.dumps(WORKING))
    monkeypatch.setattr(doctor, "_run_probe", lambda: answer)
    monkeypatch.setattr(doctor, "_models", lambda: ([], []))
    return answer


def fake_tensorflow(tmp_path: Path, code: str) -> dict[str, str]:
    """Returns an environment in which `import tensorflow` runs this code instead."""
    (tmp_path / "tensorflow.py").write_text(code)
    paths = (str(tmp_path), str(ROOT))
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "KERAS_BACKEND": "tensorflow"}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tfcorr", "doctor", *arguments],
        env=environment,
        text=True,
        capture_output=True,
    )


def test_report_names_each_op_and_why(found, capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["deform_conv2d", "custom"] for line in lines)
    assert any(
        line.split()[:2] == ["match_patches", "reference"] and "not built yet" in line for line in lines
    )
    assert "  instruction set          avx2" in lines
    assert any(line.startswith("hint:") and "doctor --build" in line for line in lines)
    assert lines[-1] == "Ready."


def test_json_is_the_whole_report(found, capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tensorflow"] == WORKING and report["problems"] == []
    assert report["packages"]["numpy"]


def test_stale_library_is_a_hint(found):
    found["ops"]["match_patches"] = found["ops"]["deform_conv2d"]
    found["library_up_to_date"] = False
    report = doctor.examine()
    assert not report["problems"] and any("changed since" in hint for hint in report["hints"])


def test_op_that_was_asked_for_and_is_not_there(found, capsys):
    found["ops"]["match_patches"] = {"implementation": None, "reason": "TFCORR_OPS asks", "library": None}
    assert main(["doctor"]) == 1
    assert "problem: match_patches: TFCORR_OPS asks" in capsys.readouterr().out


def test_missing_packages(found, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("tqdm", "tensorboard") else "1.0")
    report = doctor.examine()
    assert report["problems"] == ["the package tqdm is not installed (pip install tqdm)"]
    assert any("tensorboard" in hint for hint in report["hints"])


def test_tensorflow_that_cannot_be_imported(tmp_path):
    environment = fake_tensorflow(tmp_path, "raise ImportError('libwanted.so.7: cannot open')")
    done = run(environment)
    assert done.returncode == 1
    assert "problem: TensorFlow cannot be imported: libwanted.so.7: cannot open" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    built = run(environment, "--build")
    assert built.returncode == 1 and "were not built: TensorFlow" in built.stderr
    assert "Traceback" not in built.stderr


def test_tensorflow_that_kills_the_process(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    done = run(fake_tensorflow(tmp_path, code))
    assert done.returncode == 1
    assert "SIGILL (it needs instructions that this CPU does not have)" in done.stdout


def test_build_that_fails_leaves_a_working_tfcorr(found, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setattr(build, "_writable", lambda folder, version: tmp_path)
    assert main(["doctor", "--build", "--with", "compiler", "--json"]) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert not report["problems"] and "no C++ compiler" in report["build_error"]
    assert printed.err.startswith("tfcorr: the operations were not built: no C++ compiler")


def test_options_of_a_build_need_a_build(capsys):
    assert main(["doctor", "--with", "compiler"]) == 2
    assert "need --build" in capsys.readouterr().err


def test_probe_of_this_installation():
    answer = doctor.probe()
    assert "error" not in answer and set(answer["ops"]) == {"deform_conv2d", "match_patches"}
