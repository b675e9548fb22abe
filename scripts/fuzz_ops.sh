#!/usr/bin/env bash
# Feeds the ops' CPU kernels random and hostile cases under a sanitizer, without TensorFlow (custom_ops/fuzz/).
# Usage: scripts/fuzz_ops.sh [--sanitizer asan|tsan|none] [--cases N] [--first F] [--seed S] [--threads T]
#                            [--kind deform|match|sizes]
# asan (the default) is AddressSanitizer with UndefinedBehaviorSanitizer. tsan is ThreadSanitizer, with 4 threads
# unless --threads says otherwise. The program is kept in build/fuzz-*/, and built again if the sources have changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sanitizer=asan
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --sanitizer) sanitizer=${2:?--sanitizer needs a value}; shift 2 ;;
        -h | --help) sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) arguments+=("$1"); shift ;;
    esac
done
case $sanitizer in
    asan) flags=(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer) ;;
    tsan) flags=(-fsanitize=thread); arguments=(--threads 4 "${arguments[@]}") ;;
    none) flags=() ;;
    *) printf 'fuzz_ops.sh: expected --sanitizer asan, tsan or none, got %s\n' "$sanitizer" >&2; exit 2 ;;
esac

sources=custom_ops
output=build/fuzz-$sanitizer
compiler=${CXX:-c++}

# The flags of a kernel's file by its suffix, from the file that the real build reads.
flags_of() {
    [ "$(uname -m)" = x86_64 ] || return 0
    python3 - "$1" <<'END'
import ast, sys
text = open("custom_ops/flags.bzl").read()
flags = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(text).body if isinstance(s, ast.Assign)}
print(*flags["X86_FLAGS"][sys.argv[1]])
END
}

build() {
    # One that ends too early must not leave a program behind that looks up to date.
    mkdir -p "$output"
    rm -f "$output/fuzz_ops"
    local source objects=() common=(-O2 -g1 -std=c++17 -Wall "${flags[@]}" -iquote "$sources")
    for source in "$sources"/kernels/*.cc; do
        local name suffix
        name=$(basename "$source" .cc)
        suffix=_${name##*_}
        # shellcheck disable=SC2046  # Several words are meant.
        $compiler "${common[@]}" $(flags_of "$suffix") -c "$source" -o "$output/$name.o"
        objects+=("$output/$name.o")
    done
    $compiler "${common[@]}" "$sources/fuzz/fuzz_ops.cc" "${objects[@]}" -o "$output/new" -lpthread
    mv "$output/new" "$output/fuzz_ops"
}

if [ ! -x "$output/fuzz_ops" ] || [ -n "$(find "$sources" -name '*.[chi]*' -newer "$output/fuzz_ops" | head -n 1)" ]; then
    printf '== building %s/fuzz_ops\n' "$output" >&2
    build
fi
exec "$output/fuzz_ops" "${arguments[@]}"
