"""The GPU kernels' index arithmetic on the host, against loops: needs a C++ compiler, no GPU and no CUDA."""

import subprocess
from pathlib import Path

import pytest

from tfcorr.toolchain import BuildError, find_compiler

ROOT = Path(__file__).parents[2]


def test_index_arithmetic(tmp_path):
    try:
        compiler = find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    program = tmp_path / "index_test"
    source = ROOT / "tests" / "cuda" / "index_test.cc"
    subprocess.run(
        [*compiler, "-std=c++17", "-iquote", str(ROOT / "custom_ops"), str(source), "-o", str(program)],
        check=True,
    )
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "ok\n", done.stdout
