"""Golden numbers: produced by the published implementations, in tests/goldens (see its README)."""

from pathlib import Path

import numpy as np
import pytest

GOLDENS = Path(__file__).parent / "goldens"


def load_golden(name: str, prefix: str | None = None) -> dict[str, np.ndarray]:
    """Arrays of ``goldens/<name>.npz``; with ``prefix``, those under ``<prefix>/``, named without it."""
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as archive:
        if prefix is None:
            return {key: archive[key] for key in archive.files}
        start = prefix + "/"
        return {key.removeprefix(start): archive[key] for key in archive.files if key.startswith(start)}


@pytest.fixture(scope="session")
def golden():
    """``golden(file, prefix=None)`` -> dict of arrays."""
    return load_golden


def nhwc(array: np.ndarray) -> np.ndarray:
    """(B, C, H, W) -> (B, H, W, C)."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def hwio(kernel: np.ndarray) -> np.ndarray:
    """(O, I, kh, kw) -> (kh, kw, I, O)."""
    return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))
