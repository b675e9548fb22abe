#!/usr/bin/env bash
# Makes .venv, installs tfcorr into it (editable) and builds its ops; sourced by demo.sh and test.sh with the
# extras to install: `. scripts/setup.sh test`. Run again it does only what has changed since the last time.
# It leaves $python behind: the environment's interpreter.
#
# PYTHON=... names the interpreter to make the environment with (3.10 to 3.13).

say() { printf '== %s\n' "$*" >&2; }
die() { printf 'tfcorr: %s\n' "$*" >&2; exit 1; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv="$root/.venv"
python="$venv/bin/python"
# TensorFlow's start-up notices are not for the users of a script.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        supported "$PYTHON" || die "PYTHON is '$PYTHON', which is no Python 3.10 to 3.13"
        printf '%s\n' "$PYTHON"
        return
    fi
    # 3.11 first: it is what tfcorr is tested on.
    for candidate in python3.11 python3.12 python3.13 python3.10 python3 python; do
        if supported "$candidate" && "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python 3.10 to 3.13 with venv found (on Debian or Ubuntu: apt-get install python3 python3-venv); PYTHON=... names one"
}

make_environment() {
    if [ -e "$venv" ] && supported "$python"; then return; fi
    local base
    base=$(find_python)
    say "making the environment .venv with $("$base" --version)"
    "$base" -m venv --clear "$venv" || die "$base could not make $venv"
}

# What an installation depends on, as one line.
installation() {
    printf '%s %s ' "$("$python" --version)" "$root"
    cat setup.cfg setup.py pyproject.toml | sha256sum | cut -d' ' -f1
}

install_package() {
    local extras="$1" state stamp
    state=$(installation)
    # An environment with extras serves without them too, so that the demo and the tests share one.
    for stamp in "$venv"/.tfcorr-installed-*"$extras"; do
        if [ "$(cat "$stamp" 2>/dev/null || true)" = "$state" ]; then return; fi
    done
    say "installing tfcorr and what it needs into .venv (the first time: about 700 MB to download)"
    "$python" -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}" ||
        die "pip could not install tfcorr; its message stands above"
    printf '%s\n' "$state" >"$venv/.tfcorr-installed-$extras"
}

# The ops' sources and the TensorFlow that they are built for, as one line.
ops_state() {
    {
        find custom_ops -type f -not -path 'custom_ops/bazel-*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
        ls -d "$venv"/lib/python3*/site-packages/tensorflow*-*.dist-info
    } | sha256sum | cut -d' ' -f1
}

build_ops() {
    local stamp="tfcorr/ops/_lib/.state" state
    state=$(ops_state)
    if [ "$(cat "$stamp" 2>/dev/null || true)" = "$state" ]; then return; fi
    local compiler=""
    for compiler in ${CXX:+"${CXX%% *}"} c++ g++ clang++ none; do
        if command -v "$compiler" >/dev/null; then break; fi
    done
    if [ "$compiler" = none ]; then
        say "no C++ compiler here (apt-get install g++): the portable operations serve; they are slower"
        return
    fi
    command -v bazel >/dev/null || say "no Bazel here: the compiler ($compiler) is called directly"
    say "building the operations"
    if "$python" -m tfcorr doctor --build >&2; then
        mkdir -p "${stamp%/*}"
        printf '%s\n' "$state" >"$stamp"
    else
        say "there are problems (see above); operations that were not built are served by portable ones, slower"
    fi
}

set_up() {
    make_environment
    install_package "$1"
    build_ops
}
