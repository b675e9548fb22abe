"""What tfcorr runs on: versions, devices, which implementation of each op is in use and why, models.

Everything that imports TensorFlow happens in a process of its own, so that a TensorFlow that is missing,
broken, or killed by an instruction that this processor does not have is a line of the report.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from typing import Any

import tfcorr
from tfcorr.toolchain import BuildError, find_bazel, find_compiler, usable_cores

__all__ = ["examine", "probe", "render"]

PACKAGES = (
    "tensorflow",
    "keras",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pyyaml",
    "tensorboard",
    "tqdm",
)
# Their absence switches something off, but stops nothing.
_OPTIONAL = {"tensorboard": "training writes no TensorBoard logs"}
# The same modules from another distribution serve as well.
_ALTERNATIVES = {
    "tensorflow": ("tensorflow-cpu", "tensorflow-cpu-aws", "tf-nightly"),
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
}
_CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")
_PROBE_SECONDS = 300
_PROBE_MARK = "tfcorr-probe:"


def examine() -> dict[str, Any]:
    """Collects the report.

    Returns:
        A dictionary that JSON can hold: `tfcorr`, `python`, `packages` (name to version or None), `cpu`,
        `tensorflow` (what `probe` found, or `error`), `build_tools`, `models`, `problems` (what keeps
        tfcorr from working), `hints` (what would make it better).
    """
    report: dict[str, Any] = {
        "tfcorr": tfcorr.__version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": {"platform": sys.platform, "machine": platform.machine()},
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "tensorflow": _run_probe(),
        "build_tools": _build_tools(),
    }
    report["models"], broken_models = _models()
    report["problems"], report["hints"] = _judge(report, broken_models)
    return report


def probe() -> dict[str, Any]:
    """Imports TensorFlow, Keras and the ops in this process and tells what there is.

    Returns:
        A dictionary: `version`, `keras`, `backend`, `gpus`, `ops` (see `tfcorr.ops.implementations`),
        `instruction_set` (of the compiled kernels that serve, or None) and `library_up_to_date` (None if
        nobody can tell); `error` instead of what could not be imported.
    """
    found: dict[str, Any] = {}
    try:
        import tensorflow as tf

        found["version"] = tf.__version__
        found["gpus"] = [device.name for device in tf.config.list_physical_devices("GPU")]
    except Exception as error:
        return {"error": f"TensorFlow cannot be imported: {_first_line(error)}"}
    try:
        import keras

        found |= {"keras": keras.__version__, "backend": keras.backend.backend()}
    except Exception as error:
        return found | {"error": f"Keras cannot be imported: {_first_line(error)}"}
    from tfcorr.ops import build, implementations, library

    return found | {
        "ops": implementations(),
        "instruction_set": library.instruction_set(),
        "library_up_to_date": build.up_to_date(found["version"]),
    }


def render(report: dict[str, Any]) -> str:
    """Formats a report of `examine` as text of some thirty lines."""
    python, system, tools = report["python"], report["system"], report["build_tools"]
    lines = [
        f"tfcorr {report['tfcorr']} on Python {python['version']} ({python['executable']}), "
        f"{system['platform']} {system['machine']}",
        "",
        "Packages",
        *(f"  {name:24} {version or 'missing'}" for name, version in report["packages"].items()),
        "",
        "Devices",
        f"  CPU  {report['cpu']['model']}, {report['cpu']['cores']} cores: "
        + (" ".join(report["cpu"]["features"]) or "no vector extensions that tfcorr asks for"),
    ]
    found = report["tensorflow"]
    if "gpus" in found:
        lines.append(f"  GPU  {', '.join(found['gpus']) or 'none that TensorFlow can use'}")
    if "backend" in found and found["backend"] != "tensorflow":
        lines.append(f"  Keras computes with {found['backend']}")
    lines += ["", "Operations"]
    for name, op in found.get("ops", {}).items():
        lines.append(f"  {name:24} {op['implementation'] or 'unavailable':10} {op['reason']}")
    if found.get("instruction_set"):
        lines.append(f"  {'instruction set':24} {found['instruction_set']}")
    if "error" in found:
        lines.append(f"  {found['error']}")
    compiler, bazel = tools["compiler"], tools["bazel"]
    lines += [
        "",
        "Tools to build the operations",
        f"  {'C++ compiler':24} {compiler or tools['compiler_error']}",
        f"  {'Bazel':24} {bazel or 'none; not needed, the compiler serves too'}",
        "",
        "Models",
    ]
    for model in report["models"]:
        size = f"{model['bytes'] / 1e6:.1f} MB"
        lines.append(f"  {model['name']:24} {size:10} {model['job']}{', default' * model['default']}")
    if not report["models"]:
        lines.append("  none")
    lines.append("")
    lines += [f"problem: {text}" for text in report["problems"]]
    lines += [f"hint: {text}" for text in report["hints"]]
    lines.append("Not ready." if report["problems"] else "Ready.")
    return "\n".join(lines)


def _version(name: str) -> str | None:
    for candidate in (name, *_ALTERNATIVES.get(name, ())):
        try:
            version = importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
        return version if candidate == name else f"{version} ({candidate})"
    return None


def _cpu() -> dict[str, Any]:
    fields: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                fields.setdefault(key.strip().lower(), value.strip())
    except OSError:
        pass
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "features": [name for name in _CPU_FEATURES if name in flags],
    }


def _run_probe() -> dict[str, Any]:
    code = f"import json; from tfcorr.doctor import probe; print({_PROBE_MARK!r} + json.dumps(probe()))"
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3"} | os.environ
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            text=True,
            errors="replace",
            capture_output=True,
            timeout=_PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"importing TensorFlow took longer than {_PROBE_SECONDS} s"}
    answers = [line for line in done.stdout.splitlines() if line.startswith(_PROBE_MARK)]
    if answers:
        return json.loads(answers[-1].removeprefix(_PROBE_MARK))
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = " (it needs instructions that this CPU does not have)" if name == "SIGILL" else ""
        return {"error": f"importing TensorFlow or the ops ended the process with {name}{why}"}
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"error": f"TensorFlow, Keras or the ops cannot be imported: {last}"}


def _build_tools() -> dict[str, str | None]:
    tools: dict[str, str | None] = {"compiler": None, "compiler_error": None, "bazel": find_bazel()}
    try:
        command = find_compiler()
    except BuildError as error:
        tools["compiler_error"] = str(error)
    else:
        said = subprocess.run([*command, "--version"], text=True, capture_output=True).stdout
        tools["compiler"] = f"{shutil.which(command[0])} ({(said.splitlines() or ['?'])[0]})"
    return tools


def _models() -> tuple[list[dict[str, Any]], list[str]]:
    from tfcorr.pretrained import available_models

    cards, problems = available_models()
    listed = [
        {"name": card.name, "job": card.job, "bytes": card.size, "default": card.default} for card in cards
    ]
    return listed, problems


def _judge(report: dict[str, Any], broken_models: list[str]) -> tuple[list[str], list[str]]:
    found = report["tensorflow"]
    problems = [
        f"the package {name} is not installed (pip install {name})"
        for name, version in report["packages"].items()
        if version is None and name not in _OPTIONAL
    ]
    if "error" in found:
        problems.append(found["error"])
    for name, op in found.get("ops", {}).items():
        if op["implementation"] is None:
            problems.append(f"{name}: {op['reason']}")
    problems += broken_models
    hints = [
        f"the package {name} is not installed: {effect}"
        for name, effect in _OPTIONAL.items()
        if report["packages"][name] is None
    ]
    if not report["models"]:
        hints.append("no trained model is installed; super-resolve needs the folder of one (--model)")
    on_tensorflow = found.get("backend") == "tensorflow"
    if on_tensorflow and any(op["implementation"] == "reference" for op in found.get("ops", {}).values()):
        hints.append("the portable operations serve, but are slower; `tfcorr doctor --build` compiles them")
    elif found.get("library_up_to_date") is False:
        hints.append("the ops' sources have changed since they were built; `tfcorr doctor --build`")
    return problems, hints


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
