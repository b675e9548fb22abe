"""Where the files that belong to the package lie: trained models, configurations, sources of the ops.

In a checkout (also in an editable install) they stand beside the package, at the top level; a wheel carries
them inside it, under `tfcorr/_data/` (see `setup.py`). Everything that reads one of them asks here.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent
_WHEEL = _PACKAGE / "_data"


def in_checkout() -> bool:
    """Tells whether tfcorr runs from its source tree (a clone, or an editable install of one)."""
    return (_CHECKOUT / "setup.cfg").is_file() and (_CHECKOUT / "custom_ops").is_dir()


def data_dir(name: str) -> Path:
    """Returns the folder of packaged files called `name` at the top level of the repository.

    Args:
        name: `"configs"`, `"custom_ops"`, `"saved_models"`, or `"docs"` (in a wheel: the sample pair).

    Returns:
        Its path; not checked to exist.
    """
    return (_CHECKOUT if in_checkout() else _WHEEL) / name


def models_dirs() -> list[Path]:
    """Returns the folders that hold `<name>/card.json` model folders: first match first, existing only."""
    return [folder for folder in (data_dir("saved_models"),) if folder.is_dir()]


def configs_dir() -> Path:
    """Returns the folder of the YAML configurations that ship."""
    return data_dir("configs")


def custom_ops_dir() -> Path:
    """Returns the folder of the ops' C++ sources, `flags.bzl` and Bazel files."""
    return data_dir("custom_ops")
