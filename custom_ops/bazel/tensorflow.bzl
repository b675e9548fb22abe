"""The TensorFlow that a Python interpreter has installed, as a repository: headers and framework library."""

_QUESTION = """
import json, os, platform, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
print("@@" + json.dumps({
    "version": tf.__version__,
    "include": tf.sysconfig.get_include(),
    "library": tf.sysconfig.get_lib(),
    "defines": [f[2:] for f in tf.sysconfig.get_compile_flags() if f.startswith("-D")],
    "soname": [f[3:] for f in tf.sysconfig.get_link_flags() if f.startswith("-l:")][0],
    "x86_64": platform.machine().lower() in ("x86_64", "amd64"),
}))
"""

_BUILD = """
load("@rules_cc//cc:defs.bzl", "cc_import", "cc_library")

package(default_visibility = ["//visibility:public"])

cc_library(
    name = "headers",
    # Three quarters of the files belong to what no op for the CPU includes; Bazel would check each of them.
    hdrs = glob(
        ["include/**"],
        exclude = [
            "include/external/**",
            "include/tensorflow/compiler/**",
            "include/third_party/gpus/**",
        ],
    ),
    defines = {defines},
    includes = ["include"],
)

cc_import(
    name = "framework",
    shared_library = "{soname}",
)
"""

def _installed_tensorflow_impl(repository_ctx):
    python = repository_ctx.os.environ.get("TFCORR_PYTHON")
    if not python:
        python = repository_ctx.which("python3") or repository_ctx.which("python")
    if not python:
        fail("no Python found: put one with TensorFlow on the PATH, or name it in TFCORR_PYTHON")

    answer = repository_ctx.execute([python, "-c", _QUESTION])
    lines = [line for line in answer.stdout.splitlines() if line.startswith("@@")]
    if answer.return_code != 0 or not lines:
        fail("%s cannot import TensorFlow (TFCORR_PYTHON names another Python):\n%s" % (python, answer.stderr))
    found = json.decode(lines[0][2:])

    repository_ctx.symlink(found["include"], "include")
    repository_ctx.symlink(found["library"] + "/" + found["soname"], found["soname"])
    repository_ctx.file("BUILD", _BUILD.format(defines = repr(found["defines"]), soname = found["soname"]))
    repository_ctx.file(
        "config.bzl",
        "TENSORFLOW_VERSION = %r\nIS_X86_64 = %r\n" % (found["version"], found["x86_64"]),
    )

installed_tensorflow = repository_rule(
    implementation = _installed_tensorflow_impl,
    doc = "Asks the Python named in TFCORR_PYTHON, else the one on the PATH, for its TensorFlow.",
    environ = ["TFCORR_PYTHON", "PATH"],
    local = True,
)
