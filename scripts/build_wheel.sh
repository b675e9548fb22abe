#!/usr/bin/env bash
# Builds a wheel with the compiled ops inside, for this platform and the installed TensorFlow's minor.
# Usage: scripts/build_wheel.sh [OUTPUT_DIR]     (default: dist)
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

set_up ""
ls tfcorr/ops/_lib/*/_tfcorr_ops.so >/dev/null || die "a wheel needs the compiled operations"
output=${1:-dist}
mkdir -p "$output"

# From a copy of the tracked files, so that nothing left over in this folder gets into the wheel.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$copy"
cp -r --parents tfcorr/ops/_lib "$copy"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$output" "$copy"
ls -t "$output"/tfcorr-*.whl | head -n 1
