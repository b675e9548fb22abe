"""The machine's tools and cores, found without importing TensorFlow."""

from __future__ import annotations

import os
import shlex
import shutil

from tfcorr.errors import TfcorrError

__all__ = ["BuildError", "find_bazel", "find_compiler", "usable_cores"]


class BuildError(TfcorrError):
    """The ops could not be built; the message names the step and the log."""


def find_compiler() -> list[str]:
    """Returns the C++ compiler's command: `$CXX`, else the first of c++, g++, clang++ on the PATH.

    Raises:
        BuildError: if there is none, or `$CXX` names none.
    """
    if named := os.environ.get("CXX", "").strip():
        command = shlex.split(named)
        if shutil.which(command[0]) is None:
            raise BuildError(f"no C++ compiler: CXX is {named!r}, which is not on the PATH")
        return command
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise BuildError(
        "no C++ compiler: neither c++, g++ nor clang++ is on the PATH "
        "(on Debian or Ubuntu: apt-get install g++); until then the portable implementation serves"
    )


def find_bazel() -> str | None:
    """Returns Bazel's path (`bazel` or `bazelisk`), or None if there is none."""
    return shutil.which("bazel") or shutil.which("bazelisk")


def usable_cores() -> int:
    """Returns how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
