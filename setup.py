"""What setup.cfg cannot say: the top-level data folders go into the package, a compiled library into the tag.

`pip install .` never compiles. If the ops have been built in this tree (`tfcorr doctor --build`), their
library is packed too, and the wheel is tagged for this platform; otherwise it is a pure one.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent

# Folder at the top level -> patterns of the files that an installed package carries (tfcorr/resources.py).
DATA = {
    "configs": ["**/*"],
    "custom_ops": [
        "*.cc",
        "*.h",
        "flags.bzl",
        "kernels/*",
        "cuda/*",
        "fuzz/*",
        "BUILD",
        "MODULE.bazel",
        "WORKSPACE",
        ".bazelrc",
        "bazel/**/*",
    ],
    "docs": ["sample/low_res.png", "sample/reference.png"],
    "saved_models": ["*/card.json", "*/*.weights.h5"],
}
LIBRARY = ["_lib/*/_tfcorr_ops.so", "_lib/*/build.json"]


class Wheel(bdist_wheel):
    """Tags a wheel with compiled ops for this platform, but for any Python 3: they know nothing of Python."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = not any((ROOT / "tfcorr" / "ops").glob(LIBRARY[0]))

    def get_tag(self):
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


present = {name: patterns for name, patterns in DATA.items() if (ROOT / name).is_dir()}
setup(
    packages=[*find_packages(include=["tfcorr", "tfcorr.*"]), *(f"tfcorr._data.{name}" for name in present)],
    package_dir={f"tfcorr._data.{name}": name for name in present},
    package_data={"tfcorr.ops": LIBRARY} | {f"tfcorr._data.{name}": p for name, p in present.items()},
    cmdclass={"bdist_wheel": Wheel},
)
