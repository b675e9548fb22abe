"""Finds, checks and loads the compiled ops, and decides which implementation of an op is used.

The library is `_tfcorr_ops.so`, in a folder named after the TensorFlow minor that it was built for
(`tf2.21`), because TensorFlow's C++ ABI holds within a minor only. The version stands in the file as text,
too; it is read from there before anything is loaded, so that a library built for another TensorFlow is
refused with a sentence and cannot take the process down.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import mmap
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tfcorr.errors import TfcorrError

LIBRARY_NAME = "_tfcorr_ops.so"

# Public function -> the function that TensorFlow generates for its op ("Tfcorr>DeformConv2D", ...).
GENERATED_NAMES = {
    "deform_conv2d": "tfcorr_deform_conv2d",
    "match_patches": "tfcorr_match_patches",
}

_DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-cpu-aws", "tf-nightly")
_MARKER = re.compile(rb"tfcorr-built-for-tensorflow=([0-9A-Za-z.+-]{1,40});")
_BUILD_HINT = "run `tfcorr doctor --build`"

_lock = threading.Lock()
_required: ContextVar[str | None] = ContextVar("implementation", default=None)
_loaded: tuple[ModuleType | None, LibraryStatus] | None = None


class OpsUnavailableError(TfcorrError, RuntimeError):
    """The compiled implementation was asked for and cannot be used; the message says why."""


@dataclass(frozen=True)
class LibraryStatus:
    """What is known of the compiled ops.

    Attributes:
        path: the library that was loaded or refused; None if none was found.
        loaded: whether its ops are registered in this process.
        reason: one sentence: why it is loaded, or why not and what to do.
        tensorflow_built: version of TensorFlow that the library was built for; None if unknown.
        tensorflow_installed: version of the installed TensorFlow; None if there is none.
    """

    path: Path | None
    loaded: bool
    reason: str
    tensorflow_built: str | None
    tensorflow_installed: str | None


def minor(version: str) -> str:
    """Returns `major.minor` of a version: `"2.21"` for `"2.21.0-rc1"`."""
    return ".".join(version.split(".")[:2])


def installed_tensorflow() -> str | None:
    """Returns the version of the installed TensorFlow without importing it, or None if there is none."""
    if (module := sys.modules.get("tensorflow")) is not None and hasattr(module, "__version__"):
        return module.__version__
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def library_dirs(tensorflow_version: str) -> list[Path]:
    """Returns the folders in which the library for this TensorFlow may lie, first choice first.

    The package's own folder comes first; the user's cache serves where that is not writable.

    Args:
        tensorflow_version: e.g. `"2.21.0"`.
    """
    name = f"tf{minor(tensorflow_version)}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [Path(__file__).resolve().parent / "_lib" / name, cache / "tfcorr" / "ops" / name]


def find(tensorflow_version: str) -> Path | None:
    """Returns the library to use with this TensorFlow, or None if it has not been built.

    The environment variable `TFCORR_OPS_LIBRARY` names one file that is used instead of the usual places.

    Args:
        tensorflow_version: e.g. `"2.21.0"`.
    """
    if named := os.environ.get("TFCORR_OPS_LIBRARY"):
        return Path(named)
    for folder in library_dirs(tensorflow_version):
        if (path := folder / LIBRARY_NAME).is_file():
            return path
    return None


def built_for(path: Path) -> str | None:
    """Reads from a library, without loading it, which TensorFlow it was built for.

    Args:
        path: an existing file.

    Returns:
        The version, e.g. `"2.21.0"`; None if the file does not tell (it is no library of tfcorr's).
    """
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = _MARKER.search(content)
        return found.group(1).decode() if found else None


def _elsewhere_built(installed: str) -> str | None:
    """Names the TensorFlow minors for which a library lies beside the wanted one, for the error message."""
    found = sorted(
        {
            folder.name.removeprefix("tf")
            for wanted in library_dirs(installed)
            if wanted.parent.is_dir()
            for folder in wanted.parent.iterdir()
            if folder != wanted and (folder / LIBRARY_NAME).is_file()
        }
    )
    return ", ".join(found) or None


def _attempt() -> tuple[ModuleType | None, LibraryStatus]:
    installed = installed_tensorflow()

    def refuse(reason: str, path: Path | None = None, built: str | None = None):
        return None, LibraryStatus(path, False, reason, built, installed)

    if installed is None:
        return refuse("TensorFlow is not installed")
    path = find(installed)
    if path is None:
        others = _elsewhere_built(installed)
        there = f" (there is one for TensorFlow {others})" if others else ""
        return refuse(f"not built yet for TensorFlow {installed}{there}: {_BUILD_HINT}")
    try:
        built = built_for(path)
    except OSError as error:
        return refuse(f"{path} cannot be read ({error.strerror})", path)
    if built is None:
        return refuse(f"{path} is not a library of tfcorr's ops, or it is damaged: {_BUILD_HINT}", path)
    if minor(built) != minor(installed):
        return refuse(
            f"{path} was built for TensorFlow {built}, but {installed} is installed: {_BUILD_HINT}",
            path,
            built,
        )
    try:
        import tensorflow as tf

        module = tf.load_op_library(str(path))
    except Exception as error:  # whatever it is, the portable implementation serves and the reason is told
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return refuse(f"{path} could not be loaded ({first_line}): {_BUILD_HINT}", path, built)
    return module, LibraryStatus(path, True, f"built for TensorFlow {built}", built, installed)


def _result() -> tuple[ModuleType | None, LibraryStatus]:
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _attempt()
        return _loaded


def load() -> ModuleType | None:
    """Loads the compiled ops and registers them with TensorFlow, once in a process.

    Returns:
        The module of generated functions (`tfcorr_deform_conv2d`, ...), or None if the ops cannot be used;
        `status().reason` then says why. Never raises.
    """
    return _result()[0]


def status() -> LibraryStatus:
    """Tells whether the compiled ops are loaded, from where, and why or why not. Tries to load them."""
    return _result()[1]


def instruction_set() -> str | None:
    """Tells which of the compiled kernels serve on this processor.

    Returns:
        `"generic"`, `"avx2"`, `"avx512"`, `"avx512bf16"` or `"amx"`, as the environment variables
        `TFCORR_ISA` and `TFCORR_AMX` leave it now; None if the compiled ops cannot be used, or the library is
        too old to tell.
    """
    state = status()
    if not state.loaded:
        return None
    try:
        ask = ctypes.CDLL(str(state.path)).tfcorr_instruction_set
    except (AttributeError, OSError):
        return None
    ask.restype = ctypes.c_char_p
    return ask().decode()


def retry() -> LibraryStatus:
    """Tries to load the ops again where that has failed, e.g. because they were built since then.

    A library that is loaded stays.
    """
    global _loaded
    with _lock:
        if _loaded is not None and not _loaded[1].loaded:
            _loaded = None
    return status()


def resolve(op: str, implementation: str | None = None) -> str:
    """Decides which implementation of an op is used.

    Args:
        op: `"deform_conv2d"` or `"match_patches"`.
        implementation: `"custom"` (compiled), `"reference"` (`keras.ops`), or None: what the environment
            variable `TFCORR_OPS` says, else the compiled one where it can be used.

    Returns:
        `"custom"` or `"reference"`.

    Raises:
        ValueError: for another name than these, in the argument or in `TFCORR_OPS`.
        OpsUnavailableError: if `"custom"` is asked for and cannot be used.
    """
    return _decide(op, implementation)[0]


@contextmanager
def using(implementation: str) -> Iterator[None]:
    """Within it, ops whose caller names no implementation use this one, whatever `TFCORR_OPS` says.

    For tracing graphs that have to run elsewhere. It holds in the calling thread only.

    Args:
        implementation: `"custom"` or `"reference"`.
    """
    token = _required.set(implementation)
    try:
        yield
    finally:
        _required.reset(token)


def _decide(op: str, implementation: str | None) -> tuple[str, str]:
    """Returns the implementation and one sentence that says why."""
    if op not in GENERATED_NAMES:
        raise ValueError(f"unknown op {op!r}; expected one of {', '.join(GENERATED_NAMES)}")
    asked_by = "implementation"
    if implementation is None:
        implementation, asked_by = _required.get(), "the graph being made"
    if implementation is None:
        implementation, asked_by = os.environ.get("TFCORR_OPS") or None, "TFCORR_OPS"
    if implementation not in (None, "custom", "reference"):
        raise ValueError(f'{asked_by} is {implementation!r}; expected "custom" or "reference"')
    if implementation == "reference":
        return "reference", f"asked for by {asked_by}"

    if reason := _why_not_custom(op):
        if implementation == "custom":
            raise OpsUnavailableError(
                f'{asked_by} asks for the compiled {op} ("custom"), which cannot be used: {reason}'
            )
        return "reference", reason
    return "custom", status().reason


def _why_not_custom(op: str) -> str | None:
    import keras

    if (backend := keras.backend.backend()) != "tensorflow":
        return f"the Keras backend is {backend}, and the compiled ops are TensorFlow's"
    module, state = _result()
    if module is None:
        return state.reason
    if not hasattr(module, GENERATED_NAMES[op]):
        return f"{state.path} does not contain it: {_BUILD_HINT}"
    return None


def implementations() -> dict[str, dict]:
    """Tells which implementation of each op is in use by default, and why.

    Returns:
        For each op's name a dictionary: `implementation` (`"custom"`, `"reference"`, or None if the
        environment asks for one that cannot be used), `reason` (one sentence), `library` (the compiled
        library's path, or None).
    """
    report = {}
    for op in GENERATED_NAMES:
        try:
            choice, reason = _decide(op, None)
        except (OpsUnavailableError, ValueError) as error:
            choice, reason = None, str(error)
        library = str(status().path) if choice == "custom" else None
        report[op] = {"implementation": choice, "reason": reason, "library": library}
    return report
