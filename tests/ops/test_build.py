"""The ops' build: flags, commands, and what is said when something is missing."""

import platform
import re
import shutil
from pathlib import Path

import pytest

from tfcorr import resources
from tfcorr.ops import build, library
from tfcorr.toolchain import BuildError

FLAGS = build.Flags.read(resources.custom_ops_dir() / "flags.bzl")


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """A folder like custom_ops/ that compiles in a second: no file of it includes TensorFlow."""
    folder = tmp_path / "custom_ops"
    (folder / "kernels").mkdir(parents=True)
    for name in ("version.cc", "flags.bzl"):
        shutil.copy(resources.custom_ops_dir() / name, folder)
    (folder / "kernels" / "twice_generic.cc").write_text("int twice(int x) { return 2 * x; }\n")
    monkeypatch.setattr(resources, "custom_ops_dir", lambda: folder)
    monkeypatch.delenv("CXX", raising=False)
    return folder


def test_one_set_of_flags_for_both_ways():
    """Bazel's BUILD file takes every flag from the file that build.py parses."""
    text = (resources.custom_ops_dir() / "BUILD").read_text()
    loaded = re.search(r'load\("//:flags\.bzl", (.*)\)', text)[1]
    assert {'"COMMON_FLAGS"', '"KERNEL_SUFFIXES"', '"X86_FLAGS"'} <= set(loaded.split(", "))
    assert set(re.findall(r"copts = (.*),", text)) == {
        "COMMON_FLAGS",
        "COMMON_FLAGS + (X86_FLAGS[suffix] if IS_X86_64 else [])",
    }
    assert not re.search(r'"-[mOfW]', text)
    assert set(FLAGS.x86) == set(FLAGS.kernel_suffixes)


def test_no_flag_binds_the_library_to_this_machine():
    flags = [*FLAGS.common, *(flag for flags in FLAGS.x86.values() for flag in flags)]
    assert not [flag for flag in flags if "native" in flag]
    assert not [flag for flag in FLAGS.common if flag.startswith("-m")]
    assert FLAGS.x86["_generic"] == []


def command(name: str) -> list[str]:
    tensorflow = build._TensorFlow("2.21.0", "/tf/include", ["-DEIGEN_MAX_ALIGN_BYTES=64"], [])
    return build.compile_command(["c++"], Path(name), Path("x.o"), Path("/ops"), FLAGS, tensorflow)


def test_command_of_an_op():
    found = command("/ops/deform_conv2d_ops.cc")
    assert found[found.index("-isystem") + 1] == "/tf/include"
    assert "-DEIGEN_MAX_ALIGN_BYTES=64" in found and "-DTFCORR_TF_VERSION=2.21.0" in found
    assert "-mavx2" not in found


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_command_of_a_kernel(monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    found = command("/ops/kernels/match_patches_avx512.cc")
    assert "/tf/include" not in found
    assert ("-mavx512f" in found) == (machine == "x86_64")


def test_kernels_include_no_templates_that_the_linker_could_share():
    """An inline function of theirs, compiled for AVX-512, could become the copy that all files use."""
    folder = resources.custom_ops_dir() / "kernels"
    allowed = {"immintrin.h", *(f"{name}.h" for name in ("float", "limits", "stddef", "stdint", "string"))}
    for path in sorted([*folder.glob("*.cc"), *folder.glob("*.inc"), *folder.glob("*.h")]):
        for name in re.findall(r"^\s*#\s*include\s*<([^>]+)>", path.read_text(), flags=re.MULTILINE):
            assert name in allowed, f"{path.name} includes <{name}>"


def test_flags_that_are_no_literals_are_refused(tmp_path):
    path = tmp_path / "flags.bzl"
    path.write_text("COMMON_FLAGS = list(range(3))\n")
    with pytest.raises(BuildError, match=r"flags\.bzl: cannot read"):
        build.Flags.read(path)


def test_build_and_rebuild(sources, compiler, tmp_path):
    said = []
    first = build.build("compiler", output_dir=tmp_path / "out", progress=said.append)
    assert first.path == tmp_path / "out" / library.LIBRARY_NAME and first.tool == "compiler"
    assert library.built_for(first.path) == library.installed_tensorflow()
    assert len(said) == 1 and "2 files" in said[0]
    assert not list((tmp_path / "out").glob(".new-*"))

    stamp = first.path.stat().st_mtime_ns
    again = build.build("compiler", output_dir=tmp_path / "out")
    assert again.seconds == 0 and first.path.stat().st_mtime_ns == stamp

    (sources / "kernels" / "twice_generic.cc").write_text("int twice(int x) { return x + y; }\n")
    with pytest.raises(BuildError, match=r"twice_generic\.cc failed: .*error.*build\.log") as caught:
        build.build("compiler", output_dir=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert first.path.stat().st_mtime_ns == stamp, "a failed build must leave the library that was there"


def test_library_that_does_not_load_is_not_put_in_place(sources, compiler, tmp_path):
    (sources / "kernels" / "twice_generic.cc").write_text(
        "int missing(int);\nint (*table[])(int) = {missing};\n"
    )
    with pytest.raises(BuildError, match=r"does not load it: .*missing"):
        build.build("compiler", output_dir=tmp_path / "out")
    assert not (tmp_path / "out" / library.LIBRARY_NAME).exists()


def test_no_compiler(sources, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"no C\+\+ compiler: neither c\+\+, g\+\+ nor clang\+\+"):
        build.build(output_dir=tmp_path / "out")
    monkeypatch.setenv("CXX", "g++-99 -m64")
    with pytest.raises(BuildError, match=r"CXX is 'g\+\+-99 -m64'"):
        build.build(output_dir=tmp_path / "out")
    with pytest.raises(BuildError, match="Bazel is not on the PATH"):
        build.build("bazel", output_dir=tmp_path / "out")


def test_bazel_that_fails_gives_way_to_the_compiler(sources, compiler, monkeypatch, tmp_path):
    shutil.copy(resources.data_dir("custom_ops") / "WORKSPACE", sources)
    bazel = tmp_path / "bazel"
    bazel.write_text("#!/bin/sh\necho 'ERROR: no such version'\nexit 1\n")
    bazel.chmod(0o755)
    monkeypatch.setattr(build, "find_bazel", lambda: str(bazel))
    result = build.build(output_dir=tmp_path / "out")
    assert result.tool == "compiler" and "no such version" in result.note
    with pytest.raises(BuildError, match="bazel build failed: ERROR: no such version"):
        build.build("bazel", output_dir=tmp_path / "out")


def test_nowhere_to_put_it(sources, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="none of these folders can be written"):
        build.build("compiler", output_dir=tmp_path / "file" / "out")
