"""The kernels for AMX: on emulated tiles, by their machine code, and where the processor has none of it.

Nothing here needs a processor with AMX. On one that has it, `test_environment_variable` runs the real
kernels.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tfcorr.ops import build, library

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "custom_ops"
KERNEL = SOURCES / "kernels" / "deform_conv2d_amx.cc"
FLAGS = build.Flags.read(SOURCES / "flags.bzl")

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="AMX is an extension of x86-64"
)


@pytest.fixture
def objdump():
    if (found := shutil.which("objdump")) is None:
        pytest.skip("there is no objdump")
    return found


def processor_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(text.partition("flags")[2].partition("\n")[0].split())


@pytest.mark.slow
def test_emulation(compiler, tmp_path):
    """The whole forward pass on emulated tiles, under two sanitizers, against the generic kernels."""
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    probe = tmp_path / "probe.cc"
    probe.write_text("int main() { return 0; }\n")
    command = [*compiler, *sanitizers, str(probe), "-o", str(tmp_path / "probe")]
    if subprocess.run(command, capture_output=True).returncode != 0:
        sanitizers = []
    common = [*compiler, "-O1", "-std=c++17", "-Wall", "-Werror", "-iquote", str(SOURCES)]
    # Without AVX-512 in this processor the same code runs on the vectors that all have.
    wide = FLAGS.x86["_amx"] if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= processor_flags() else []
    objects = [str(tmp_path / name) for name in ("amx.o", "generic.o")]
    generic = str(SOURCES / "kernels" / "deform_conv2d_generic.cc")
    program = tmp_path / "amx_emulation"
    for command in (
        [*common, *wide, *sanitizers, "-DTFCORR_EMULATE_TILES", "-c", str(KERNEL), "-o", objects[0]],
        [*common, *FLAGS.x86["_generic"], "-c", generic, "-o", objects[1]],
        [*common, "-c", str(SOURCES / "fuzz" / "amx_emulation.cc"), "-o", f"{program}.o"],
        [*compiler, *sanitizers, f"{program}.o", *objects, "-lpthread", "-o", str(program)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    done = subprocess.run([str(program), "--cases", "40"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "40 cases passed" in done.stdout


def test_machine_code(compiler, objdump, tmp_path):
    """What is written as bytes are the instructions and operands that are meant."""
    target = tmp_path / "amx.o"
    tensorflow = build._TensorFlow("2.21.0", "/tf/include", [], [])
    subprocess.run(build.compile_command(compiler, KERNEL, target, SOURCES, FLAGS, tensorflow), check=True)
    listing = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", str(target)], capture_output=True, text=True, check=True
    ).stdout
    if "tilerelease" not in listing:
        pytest.skip("this objdump does not know AMX")
    found = set(re.findall(r"\b(?:ldtilecfg|tile\w+|tdpbf16ps)\b(?: +\S+)?", listing))
    products = {("0", "4", "6"), ("1", "4", "7"), ("2", "5", "6"), ("3", "5", "7")}
    assert {" ".join(text.split()) for text in found} == {
        "ldtilecfg (%rax)",
        "tilerelease",
        *(f"tileloadd (%rax,%rdx,1),%tmm{n}" for n in range(8)),
        *(f"tilestored %tmm{n},(%rax,%rdx,1)" for n in range(4)),
        *(f"tdpbf16ps %tmm{b},%tmm{a},%tmm{c}" for c, a, b in products),
    }


@pytest.mark.skipif(library.load() is None, reason=library.status().reason)
@pytest.mark.parametrize(
    "instructions, namespace",
    [(r"ldtilecfg|tile\w+|tdp\w+", "3amx"), (r"vdpbf16ps|vcvtne2?ps2bf16\w?", "10avx512bf16")],
)
def test_no_other_code_has_the_instructions(objdump, instructions, namespace):
    """Instructions of few processors stand only in the namespace that is entered where they serve."""
    listing = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", str(library.status().path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if namespace not in listing:
        pytest.skip("the library has no symbols, or was built from older sources")
    users, function = set(), ""
    for line in listing.splitlines():
        if line.endswith(">:"):
            function = line.split("<")[1].removesuffix(">:")
        elif re.search(rf"\s({instructions})\b", line):
            users.add(function)
    if not users and namespace == "3amx":
        pytest.skip("this objdump does not know AMX")
    assert users, "the instructions are nowhere"
    assert not [name for name in users if namespace not in name]


# Runs the op with each setting, which the library reads on every call; prints instruction sets and outputs.
RUN_SETTINGS = """
import json, os
import numpy as np
from tfcorr.ops import deform_conv2d, library
random = np.random.default_rng(3)
x, kernel, offset, mask, bias = (
    random.normal(size=size).astype(np.float32)
    for size in ((2, 9, 11, 12), (3, 3, 12, 21), (2, 9, 11, 36), (2, 9, 11, 18), (21,))
)
found = {}
for name, variables in {
    "plain": {}, "one": {"TFCORR_AMX": "1"}, "zero": {"TFCORR_AMX": "0"},
    "avx2": {"TFCORR_AMX": "1", "TFCORR_ISA": "avx2"},
}.items():
    for variable in ("TFCORR_AMX", "TFCORR_ISA"):
        os.environ.pop(variable, None)
    os.environ.update(variables)
    out = deform_conv2d(x, kernel, offset, mask, bias, deform_groups=2, implementation="custom")
    found[name] = library.instruction_set(), np.asarray(out).ravel().tolist()
print(json.dumps(found))
"""


@pytest.mark.skipif(library.load() is None, reason=library.status().reason)
def test_environment_variable():
    """TFCORR_AMX=1 changes nothing where there is no AMX, and little where there is."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_SETTINGS],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    plain, want = found["plain"]
    asked, have = found["one"]
    assert plain in ("generic", "avx2", "avx512", "avx512bf16") and found["zero"] == found["plain"]
    assert found["avx2"][0] in ("generic", "avx2")
    wide = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}
    assert not processor_flags() or (plain == "avx512bf16") == (wide <= processor_flags())
    if asked == "amx":
        assert {"amx_tile", "amx_bf16"} <= processor_flags()
        assert max(abs(a - b) for a, b in zip(have, want, strict=True)) <= 2e-5 * max(map(abs, want))
    else:
        assert (asked, have) == (plain, want)
