"""What a wheel carries, without building one, and that a built one works (slow)."""

import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import tfcorr
from tfcorr import resources
from tfcorr.ops import build, library

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not resources.in_checkout(), reason="needs the source tree")


def setup_literals() -> dict:
    """The constants of setup.py, read without running it."""
    return {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(statement, ast.Assign) and statement.targets[0].id == "DATA"
    }


def tracked(folder: str) -> list[str]:
    listing = subprocess.run(["git", "ls-files", folder], cwd=ROOT, text=True, capture_output=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [name.removeprefix(f"{folder}/") for name in listing.stdout.split()]


@pytest.mark.parametrize("folder", ["custom_ops", "configs", "saved_models"])
def test_every_tracked_data_file_is_packed(folder):
    patterns = setup_literals()["DATA"][folder]
    for name in tracked(folder):
        if "/saved_model/" in name:
            continue  # for servers, which take it from a checkout; `tfcorr export` makes it again
        # fnmatch's * matches slashes as well, so ** needs no care here.
        assert any(fnmatch(name, pattern.replace("**/", "")) for pattern in patterns), name


def test_weights_cards_and_configurations_are_small():
    paths = [ROOT / folder / name for folder in ("configs", "saved_models") for name in tracked(folder)]
    assert sum(path.stat().st_size for path in paths if "saved_model" not in path.parent.parts[-2:]) < 40e6


def test_version_stands_in_one_place():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: tfcorr.__version__"
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {tfcorr.__version__}\n" in citation
    assert tfcorr.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_every_package_has_an_init():
    """setuptools leaves out a folder without one, and nobody notices in a checkout."""
    for path in (ROOT / "tfcorr").rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), path


def test_importing_the_package_is_cheap():
    code = "import sys, tfcorr, tfcorr.cli; tfcorr.cli.build_parser(); print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.slow
def test_installed_wheel_finds_its_files(tmp_path):
    """Installed elsewhere, the package finds configurations, models, sources and its library."""
    source = tmp_path / "source"  # a copy: what an earlier build left in build/ would get into the wheel
    leave_out = shutil.ignore_patterns(".*_cache", ".git", ".venv", "build", "dist", "runs", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=leave_out)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)],
        check=True,
    )
    (wheel,) = tmp_path.glob("tfcorr-*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    code = (
        "from tfcorr import resources; from tfcorr.ops import build, library; import json;"
        "print(json.dumps([resources.in_checkout(), len(build.sources()), build.sources_digest(),"
        " [str(p) for p in resources.models_dirs()], resources.configs_dir().is_dir(),"
        " library.status().loaded, library.status().reason]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        text=True,
        capture_output=True,
        check=True,
    )
    in_checkout, count, digest, models, configs, loaded, reason = json.loads(done.stdout.splitlines()[-1])
    assert not in_checkout and configs
    assert count == len(build.sources()) and digest == build.sources_digest()
    assert all(Path(path).is_relative_to(site) for path in models)
    tag = "py3-none-any" if library.status().path is None else "py3-none-linux"
    assert tag in wheel.name
    assert loaded == library.status().loaded, reason
