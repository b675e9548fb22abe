"""The GPU kernels' own code on the host: compiled for emulation/, tested by test_kernels.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfcorr.toolchain import BuildError, find_compiler

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent


@pytest.mark.slow
def test_kernels_on_the_host(tmp_path):
    pytest.importorskip("torch")
    try:
        compiler = find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    library = tmp_path / "libtfcorr_cuda.so"
    command = [
        *compiler,
        "-O1",
        "-std=c++17",
        "-fPIC",
        "-shared",
        "-Wno-unknown-pragmas",
        "-DTFCORR_CUDA_EMULATION",
    ]
    command += ["-I", str(FOLDER / "emulation"), "-I", str(ROOT / "custom_ops"), "-x", "c++"]
    command += [str(path) for path in sorted((ROOT / "custom_ops" / "cuda").glob("*.cu"))]
    subprocess.run([*command, "-o", str(library)], check=True)
    environment = os.environ | {"TFCORR_CUDA_EMULATION": "1", "TFCORR_CUDA_LIBRARY": str(library)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / "test_kernels.py")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
