#!/usr/bin/env bash
# Compiles the ops' GPU kernels for sm_80, sm_90 and, as PTX, for what comes after.
# Usage: scripts/build_cuda.sh [--tensorflow]
# Without an option: build/cuda/libtfcorr_cuda.so, the kernels with a C interface for the stand-alone tests and timings;
# needs nvcc (on the PATH, in $CUDA_HOME/bin, or named by NVCC) and no TensorFlow.
# --tensorflow: build/cuda/_tfcorr_ops.so, the operations for CPU and GPU, for TFCORR_OPS_LIBRARY. Bazel makes the same
# by `bazel build --config=cuda //:_tfcorr_ops.so` in custom_ops/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cuda=${CUDA_HOME:-/usr/local/cuda}
nvcc=${NVCC:-$(command -v nvcc || printf '%s' "$cuda/bin/nvcc")}
if ! command -v "$nvcc" >/dev/null; then
    printf 'build_cuda.sh: no nvcc on the PATH or in %s/bin; NVCC=... names one\n' "$cuda" >&2
    exit 1
fi
output=build/cuda
mkdir -p "$output"
# The flags that Bazel uses.
mapfile -t flags < <(python3 - <<'END'
import ast
text = open("custom_ops/flags.bzl").read()
flags = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(text).body if isinstance(s, ast.Assign)}
print(*flags["NVCC_FLAGS"], sep="\n")
END
)
flags+=(-Icustom_ops)

objects=()
processes=()
for name in deform_conv2d match_patches standalone; do
    objects+=("$output/$name.o")
    # Each on its own processor, and only if something has changed.
    if [ ! -e "$output/$name.o" ] || [ -n "$(find custom_ops -newer "$output/$name.o" -name '*.[ch]u*' -o \
        -newer "$output/$name.o" -path '*cuda*' -name '*.h')" ]; then
        printf '== nvcc custom_ops/cuda/%s.cu\n' "$name" >&2
        "$nvcc" "${flags[@]}" -c "custom_ops/cuda/$name.cu" -o "$output/$name.o" &
        processes+=($!)
    fi
done
for process in ${processes[@]+"${processes[@]}"}; do wait "$process"; done
"$nvcc" -shared -o "$output/libtfcorr_cuda.so" "${objects[@]}"
printf '%s\n' "$output/libtfcorr_cuda.so"
if [ "${1:-}" != --tensorflow ]; then exit 0; fi

python=${PYTHON:-.venv/bin/python}
include=$(dirname "$(dirname "$(readlink -f "$(command -v "$nvcc")")")")/include
if [ ! -e "$include/cuda_runtime_api.h" ]; then include=$cuda/include; fi
"$python" - "$output" "$include" <<'END'
import os
import subprocess
import sys
from pathlib import Path

# The files of the CPU's library, and the GPU's op kernels, with the flags of the usual build.
from tfcorr import resources
from tfcorr.ops import build
from tfcorr.toolchain import find_compiler

output, include = Path(sys.argv[1]), sys.argv[2]
folder = resources.custom_ops_dir()
flags = build.Flags.read(folder / "flags.bzl")
tensorflow = build._TensorFlow.installed()
objects = []
for source in [*build.sources(folder), folder / "cuda" / "gpu_ops.cc"]:
    target = output / f"{source.stem}.host.o"
    objects.append(str(target))
    command = build.compile_command(find_compiler(), source, target, folder, flags, tensorflow)
    if not target.exists() or target.stat().st_mtime < max(p.stat().st_mtime for p in folder.rglob("*.[hci]*")):
        print("==", source.relative_to(folder), file=sys.stderr)
        subprocess.run([*command, "-DGOOGLE_CUDA=1", "-isystem", include], check=True)
libraries = next(p for p in (Path(include).parent / "lib64", Path(include).parent / "lib") if p.is_dir())
subprocess.run(
    [*find_compiler(), "-shared", "-o", str(output / "_tfcorr_ops.so"), *objects]
    + [str(output / "deform_conv2d.o"), str(output / "match_patches.o")]
    + [*tensorflow.link, f"-L{libraries}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"],
    check=True,
)
END
printf '%s\n' "$output/_tfcorr_ops.so"
