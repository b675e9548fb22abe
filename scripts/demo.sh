#!/usr/bin/env bash
# From a fresh machine to a picture: sets up .venv (scripts/setup.sh), then super-resolves the sample pair.
# Usage: scripts/demo.sh [options of `tfcorr super-resolve`, added at the end]
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

sample=docs/sample
low_res="$sample/low_res.png"
reference="$sample/reference.png"
output=runs/demo

set_up ""
for file in "$low_res" "$reference"; do
    [ -f "$file" ] || die "$file is missing from this copy of tfcorr"
done
mkdir -p "$output"
say "super-resolving $low_res with $reference"
"$python" -m tfcorr super-resolve "$low_res" --reference "$reference" \
    --output "$output/large.png" --figure "$output/figure.png" --overwrite "$@"
printf 'image:  %s\nfigure: %s\n' "$root/$output/large.png" "$root/$output/figure.png"
