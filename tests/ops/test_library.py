"""Finding, refusing and choosing the compiled ops; no test needs them to be built."""

import os
import subprocess
import types

import keras
import pytest

from tfcorr.ops import library
from tfcorr.ops.library import OpsUnavailableError
from tfcorr.toolchain import BuildError, find_compiler

INSTALLED = library.installed_tensorflow()
OTHER_MINOR = "1.15.5"


def marker(version: str) -> bytes:
    return f"\x7fELF....tfcorr-built-for-tensorflow={version};....".encode()


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """As in a new process whose library folders are empty."""
    folder = tmp_path / f"tf{library.minor(INSTALLED)}"
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setattr(library, "library_dirs", lambda version: [folder])
    monkeypatch.delenv("TFCORR_OPS", raising=False)
    monkeypatch.delenv("TFCORR_OPS_LIBRARY", raising=False)
    return folder


@pytest.fixture
def put(fresh):
    """Writes a library with the given content where it is looked for."""

    def write(content: bytes, folder=fresh):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / library.LIBRARY_NAME
        path.write_bytes(content)
        return path

    return write


def test_version_is_read_from_the_file(put):
    assert library.built_for(put(marker("2.21.0-rc1"))) == "2.21.0-rc1"
    assert library.built_for(put(b"something else")) is None
    assert library.built_for(put(b"")) is None


def test_missing_library_leaves_the_portable_implementation():
    assert library.load() is None
    state = library.status()
    assert not state.loaded and state.path is None and state.tensorflow_installed == INSTALLED
    assert "tfcorr doctor --build" in state.reason and INSTALLED in state.reason
    assert library.resolve("deform_conv2d") == "reference"
    assert library.instruction_set() is None


def test_library_of_another_minor_is_refused(put):
    path = put(marker(OTHER_MINOR))
    state = library.status()
    assert not state.loaded and state.path == path and state.tensorflow_built == OTHER_MINOR
    assert state.reason == (
        f"{path} was built for TensorFlow {OTHER_MINOR}, but {INSTALLED} is installed: "
        "run `tfcorr doctor --build`"
    )
    assert library.resolve("match_patches") == "reference"


def test_library_of_another_minor_runs_no_code(fresh, tmp_path):
    """Its static initialisers would abort this process if it were loaded, as the op registrations may."""
    try:
        compiler = find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    source = tmp_path / "hostile.cc"
    source.write_text(
        "#include <cstdlib>\n"
        f'extern "C" const char mark[] = "tfcorr-built-for-tensorflow={OTHER_MINOR};";\n'
        "__attribute__((constructor)) static void initialise() { std::abort(); }\n"
    )
    fresh.mkdir()
    target = fresh / library.LIBRARY_NAME
    subprocess.run([*compiler, "-shared", "-fPIC", "-o", str(target), str(source)], check=True)
    assert "was built for TensorFlow" in library.status().reason


def test_libraries_of_other_minors_are_named(put, tmp_path):
    put(marker(OTHER_MINOR), folder=tmp_path / "tf1.15")
    assert "there is one for TensorFlow 1.15" in library.status().reason


@pytest.mark.parametrize("content", [b"", b"\x7fELF but not ours", marker(INSTALLED)])
def test_damaged_library_is_refused(put, content):
    path = put(content)
    state = library.status()
    assert not state.loaded and state.path == path and str(path) in state.reason
    assert "\n" not in state.reason


def test_unreadable_library_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TFCORR_OPS_LIBRARY", str(tmp_path / "nowhere.so"))
    assert "nowhere.so cannot be read" in library.status().reason
    monkeypatch.setenv("TFCORR_OPS_LIBRARY", str(tmp_path))
    assert "cannot be read" in library.retry().reason


def test_retry_finds_what_was_put_there_since(put):
    assert library.status().path is None
    path = put(marker(OTHER_MINOR))
    assert library.status().path is None
    assert library.retry().path == path


def test_asking_for_the_compiled_op_that_is_not_there(monkeypatch):
    with pytest.raises(OpsUnavailableError, match=r"implementation asks .* not built yet"):
        library.resolve("deform_conv2d", "custom")
    monkeypatch.setenv("TFCORR_OPS", "custom")
    with pytest.raises(OpsUnavailableError, match="TFCORR_OPS asks"):
        library.resolve("deform_conv2d")
    report = library.implementations()["deform_conv2d"]
    assert report["implementation"] is None and "TFCORR_OPS" in report["reason"]


def test_environment_sets_the_default_and_the_argument_wins(monkeypatch, loaded_module):
    assert library.resolve("deform_conv2d") == "custom"
    monkeypatch.setenv("TFCORR_OPS", "reference")
    assert library.resolve("deform_conv2d") == "reference"
    assert library.implementations()["deform_conv2d"]["reason"] == "asked for by TFCORR_OPS"
    assert library.resolve("deform_conv2d", "custom") == "custom"
    monkeypatch.setenv("TFCORR_OPS", "fastest")
    with pytest.raises(ValueError, match="TFCORR_OPS is 'fastest'"):
        library.resolve("deform_conv2d")
    monkeypatch.setenv("TFCORR_OPS", "")
    assert library.resolve("deform_conv2d") == "custom"


def test_library_without_one_of_the_ops(loaded_module):
    del loaded_module.tfcorr_match_patches
    assert library.resolve("deform_conv2d") == "custom"
    assert library.resolve("match_patches") == "reference"
    with pytest.raises(OpsUnavailableError, match="does not contain"):
        library.resolve("match_patches", "custom")


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="unknown op 'conv2d'"):
        library.resolve("conv2d")
    with pytest.raises(ValueError, match="implementation is 'cuda'"):
        library.resolve("deform_conv2d", "cuda")


def test_another_keras_backend_gets_the_portable_implementation(monkeypatch, loaded_module):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert library.resolve("deform_conv2d") == "reference"
    with pytest.raises(OpsUnavailableError, match="backend is jax"):
        library.resolve("deform_conv2d", "custom")


def test_cache_folder_serves_where_the_package_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package, cache = library.library_dirs("2.21.0")
    assert package.parts[-3:] == ("ops", "_lib", "tf2.21")
    assert cache == tmp_path / "tfcorr" / "ops" / "tf2.21"


@pytest.fixture
def loaded_module(monkeypatch, tmp_path):
    """A module with both generated functions, as if the library had been loaded."""

    module = types.SimpleNamespace(**dict.fromkeys(library.GENERATED_NAMES.values()))
    state = library.LibraryStatus(tmp_path / "x.so", True, "built", INSTALLED, INSTALLED)
    monkeypatch.setattr(library, "_loaded", (module, state))
    return module


@pytest.mark.skipif(os.environ.get("TFCORR_OPS") == "reference", reason="the portable ops were asked for")
def test_both_ops_are_in_the_library_that_was_built(monkeypatch):
    monkeypatch.undo()
    if not library.status().loaded:
        pytest.skip(library.status().reason)
    assert {op["implementation"] for op in library.implementations().values()} == {"custom"}
    assert library.load() is library.load()
