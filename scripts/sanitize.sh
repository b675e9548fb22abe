#!/usr/bin/env bash
# Runs the tests of the ops with a library that is built under AddressSanitizer and UndefinedBehaviorSanitizer.
# Usage: scripts/sanitize.sh [--bazel] [arguments of pytest, in the place of tests/ops]
# The library is built by the compiler, or with --bazel by Bazel (--config=asan), into build/sanitize/; only it is
# instrumented, neither TensorFlow nor Python. The fuzzer of the kernels without TensorFlow: scripts/fuzz_ops.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tool=compiler
if [ "${1:-}" = --bazel ]; then
    tool=bazel
    shift
fi
python=${PYTHON:-.venv/bin/python}
folder=$PWD/build/sanitize
compiler=${CXX:-c++}
# TensorFlow frees nothing at its end, and it is loaded before the library that needs AddressSanitizer.
export ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0:detect_odr_violation=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}

mkdir -p "$folder"
if [ "$tool" = bazel ]; then
    (cd custom_ops && TFCORR_PYTHON=$(readlink -f "../$(dirname "$python")")/$(basename "$python") \
        bazel build --config=asan --symlink_prefix="$folder/bazel-" //:_tfcorr_ops.so)
    install -m 755 "$folder/bazel-bin/_tfcorr_ops.so" "$folder/_tfcorr_ops.so"
    rm -f "$folder/build.json"
else
    # Without the checks of null pointers: with them GCC takes constant expressions of Abseil's for none.
    CXX="$compiler -fsanitize=address,undefined -fno-sanitize=vptr,null,nonnull-attribute,returns-nonnull-attribute \
-fdelete-null-pointer-checks -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1" \
        "$python" - "$folder" <<'END'
import sys
from pathlib import Path

from tfcorr.ops import build

build.build("compiler", output_dir=Path(sys.argv[1]), progress=print)
END
fi
# The sanitizer looks for C++'s functions when it starts, and Python loads them later. A report goes past pytest's
# capture, as the process ends with it.
preload="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libstdc++.so.6)"
TFCORR_OPS_LIBRARY=$folder/_tfcorr_ops.so LD_PRELOAD=$preload \
    exec "$python" -m pytest --capture=sys -m "not slow" "${@:-tests/ops}"
