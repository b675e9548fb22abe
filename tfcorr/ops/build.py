"""Compiles the C++ ops against the installed TensorFlow: with Bazel, or with the C++ compiler directly.

Both ways take the sources from `custom_ops/`, their flags from `custom_ops/flags.bzl`, and what depends on
TensorFlow from `tf.sysconfig`. The result is moved into place by one rename, so that no process ever sees a
half-written library.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tfcorr import resources
from tfcorr.atomic import replacing, write_text
from tfcorr.ops import library
from tfcorr.toolchain import BuildError, find_bazel, find_compiler, usable_cores

TOOLS = ("bazel", "compiler")

_RECORD_NAME = "build.json"
_BAZEL_TARGET = "//:_tfcorr_ops.so"
# Bazel sees nothing of the environment but this: its rule for TensorFlow asks this Python.
_BAZEL_PYTHON_VARIABLE = "TFCORR_PYTHON"


@dataclass(frozen=True)
class BuildResult:
    """A built library.

    Attributes:
        path: where it lies.
        tool: `"bazel"` or `"compiler"`.
        seconds: how long the build took; 0 if it was up to date.
        note: what the user should know besides (Bazel was tried and failed, ...); may be empty.
    """

    path: Path
    tool: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Flags:
    """The contents of `custom_ops/flags.bzl`."""

    common: list[str]
    kernel_suffixes: list[str]
    x86: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> Flags:
        """Parses the file: assignments of literals, which Starlark and Python share.

        Args:
            path: the file.

        Raises:
            BuildError: if a value is missing or no literal.
        """
        try:
            values = {
                statement.targets[0].id: ast.literal_eval(statement.value)
                for statement in ast.parse(path.read_text()).body
                if isinstance(statement, ast.Assign)
            }
            return cls(values["COMMON_FLAGS"], values["KERNEL_SUFFIXES"], values["X86_FLAGS"])
        except (OSError, SyntaxError, ValueError, KeyError) as error:
            raise BuildError(f"{path}: cannot read the compiler's flags ({error!r})") from error

    def kernel_suffix(self, source: Path) -> str | None:
        """Returns which suffix of a kernel file the name has; None for a file that may see TensorFlow."""
        return next((s for s in self.kernel_suffixes if source.stem.endswith(s)), None)


def sources(folder: Path | None = None) -> list[Path]:
    """Returns the ops' C++ files, sorted: `*.cc` and `kernels/*.cc` of `custom_ops/`.

    Args:
        folder: another folder of the same layout.
    """
    folder = folder or resources.custom_ops_dir()
    return sorted([*folder.glob("*.cc"), *folder.glob("kernels/*.cc")])


def sources_digest(folder: Path | None = None) -> str:
    """Returns the SHA-256 over all that a build reads from `custom_ops/`, names included."""
    folder = folder or resources.custom_ops_dir()
    patterns = ("*.cc", "*.h", "kernels/*.cc", "kernels/*.h", "kernels/*.inc", "flags.bzl")
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def up_to_date(tensorflow_version: str | None = None) -> bool | None:
    """Tells whether the library that would be loaded was built from the present sources.

    Args:
        tensorflow_version: e.g. `"2.21.0"`; by default the installed one.

    Returns:
        None if there is no library, or no record of its build beside it (then nobody can tell).
    """
    version = tensorflow_version or library.installed_tensorflow()
    path = version and library.find(version)
    if not path:
        return None
    record = _read_record(path)
    return None if record is None else record.get("sources") == sources_digest()


def build(
    tool: str | None = None,
    *,
    force: bool = False,
    output_dir: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> BuildResult:
    """Builds the ops' library for the installed TensorFlow.

    Args:
        tool: `"bazel"` or `"compiler"`; None: Bazel where it is there and works, else the compiler.
        force: build although the library at hand was built from these very sources.
        output_dir: folder for the library; by default the first writable one of `library.library_dirs`.
        progress: called with one line of text for each step.

    Returns:
        The library's path, and what built it.

    Raises:
        BuildError: no TensorFlow, no compiler, a compile error (the message names the log), or a library
            that does not load.
    """
    if tool not in (None, *TOOLS):
        raise ValueError(f"tool is {tool!r}; expected one of {', '.join(TOOLS)}, or None")
    tensorflow = _TensorFlow.installed()
    target = _writable(output_dir, tensorflow.version) / library.LIBRARY_NAME
    # Taken first: sources that change during the build are not those of the library.
    digest = sources_digest()

    if not force and target.is_file() and (record := _read_record(target)):
        same = record.get("sources") == digest and record.get("tensorflow") == tensorflow.version
        if same and tool in (None, record.get("tool")):
            return BuildResult(target, record["tool"], 0.0, "already built from these sources")

    started, note = time.monotonic(), ""
    with tempfile.TemporaryDirectory(prefix="tfcorr-build-") as scratch:
        log = target.parent / "build.log"
        if tool == "bazel" or (tool is None and find_bazel()):
            try:
                built, used = _build_with_bazel(tensorflow, Path(scratch), log, progress), "bazel"
            except BuildError as error:
                if tool == "bazel":
                    raise
                note = f"Bazel did not serve ({error}), so the compiler was called directly"
                progress(note)
                log = target.parent / "build-compiler.log"
                built, used = _build_with_compiler(tensorflow, Path(scratch), log, progress), "compiler"
        else:
            built, used = _build_with_compiler(tensorflow, Path(scratch), log, progress), "compiler"
        _check_loads(built)
        record = {"tensorflow": tensorflow.version, "sources": digest, "tool": used}
        _install(built, target, record)
    return BuildResult(target, used, time.monotonic() - started, note)


@dataclass(frozen=True)
class _TensorFlow:
    version: str
    include: str
    defines: list[str]
    link: list[str]

    @classmethod
    def installed(cls) -> _TensorFlow:
        try:
            import tensorflow as tf
        except ImportError as error:
            raise BuildError(f"TensorFlow cannot be imported ({error}); install it first") from error
        flags = tf.sysconfig.get_compile_flags()
        return cls(
            tf.__version__,
            tf.sysconfig.get_include(),
            [flag for flag in flags if flag.startswith("-D")],
            tf.sysconfig.get_link_flags(),
        )


def compile_command(
    compiler: Sequence[str], source: Path, target: Path, folder: Path, flags: Flags, tensorflow: _TensorFlow
) -> list[str]:
    """Returns the command that compiles one file; see `flags.bzl` for the rules by suffix."""
    command = [*compiler, *flags.common, "-iquote", str(folder)]
    suffix = flags.kernel_suffix(source)
    if suffix is None:
        # TensorFlow's headers are not ours to lint: as system headers they give no warnings.
        command += ["-isystem", tensorflow.include, *tensorflow.defines]
        command += [f"-DTFCORR_TF_VERSION={tensorflow.version}"]
    elif platform.machine().lower() in ("x86_64", "amd64"):
        command += flags.x86[suffix]
    return [*command, "-c", str(source), "-o", str(target)]


def _build_with_compiler(
    tensorflow: _TensorFlow, scratch: Path, log: Path, progress: Callable[[str], None]
) -> Path:
    folder = resources.custom_ops_dir()
    if not (files := sources(folder)):
        raise BuildError(f"{folder}: the ops' C++ sources are not there; the installation is incomplete")
    flags = Flags.read(folder / "flags.bzl")
    compiler = find_compiler()
    progress(f"compiling {len(files)} files with {shlex.join(compiler)} for TensorFlow {tensorflow.version}")
    log.write_text("")

    def compile_one(source: Path) -> Path:
        target = scratch / f"{source.stem}.o"
        command = compile_command(compiler, source, target, folder, flags, tensorflow)
        _run(command, log, f"compiling {source.relative_to(folder)}")
        return target

    # The files that include TensorFlow take by far the longest, so they start first.
    files.sort(key=lambda source: flags.kernel_suffix(source) is not None)
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        objects = [str(path) for path in pool.map(compile_one, files)]
    built = scratch / library.LIBRARY_NAME
    _run([*compiler, "-shared", "-o", str(built), *objects, *tensorflow.link], log, "linking")
    return built


def _build_with_bazel(
    tensorflow: _TensorFlow, scratch: Path, log: Path, progress: Callable[[str], None]
) -> Path:
    bazel = find_bazel()
    if bazel is None:
        raise BuildError("Bazel is not on the PATH")
    folder = resources.custom_ops_dir()
    if not (folder / "WORKSPACE").is_file():
        raise BuildError(f"{folder}: Bazel's files are not there; the installation is incomplete")
    progress(f"building with {bazel} for TensorFlow {tensorflow.version}")
    log.write_text("")
    # Bazel's own folders lie outside the sources, which may be an installed package's.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfcorr" / "bazel"
    startup = [bazel, f"--output_user_root={cache}", "--max_idle_secs=5"]
    environment = os.environ | {_BAZEL_PYTHON_VARIABLE: sys.executable}
    link_prefix = scratch / "bazel-"
    _run(
        [*startup, "build", f"--symlink_prefix={link_prefix}", _BAZEL_TARGET],
        log,
        "bazel build",
        cwd=folder,
        environment=environment,
    )
    return Path(f"{link_prefix}bin") / library.LIBRARY_NAME


def _run(
    command: Sequence[str],
    log: Path,
    step: str,
    *,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with log.open("a") as file:
        file.write(f"$ {shlex.join(command)}\n{done.stdout}\n")
    if done.returncode != 0:
        errors = [line for line in done.stdout.splitlines() if "error" in line.lower()]
        first = f": {errors[0].strip()[:200]}" if errors else ""
        raise BuildError(f"{step} failed{first} (see {log})")


def _check_loads(built: Path) -> None:
    """Loads the library in a process of its own, so that a bad one is never put in place."""
    code = "import sys, tensorflow as tf; tf.load_op_library(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(built)], text=True, errors="replace", capture_output=True
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BuildError(f"the library was built, but TensorFlow does not load it: {lines[-1][:300]}")


def _writable(output_dir: Path | None, version: str) -> Path:
    folders = [output_dir] if output_dir else library.library_dirs(version)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise BuildError(f"none of these folders can be written: {', '.join(map(str, folders))}")


def _install(built: Path, target: Path, record: dict) -> None:
    with replacing(target) as part:
        shutil.copyfile(built, part)
        part.chmod(0o755)
    write_text(target.parent / _RECORD_NAME, json.dumps(record, indent=1) + "\n")


def _read_record(path: Path) -> dict | None:
    try:
        record = json.loads((path.parent / _RECORD_NAME).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
