"""The CUDA toolkit under $CUDA_HOME, by default /usr/local/cuda, as a repository: headers and static runtime."""

_BUILD = """
load("@rules_cc//cc:defs.bzl", "cc_import", "cc_library")

cc_import(
    name = "static_runtime",
    static_library = "libcudart_static.a",
)

cc_library(
    name = "runtime",
    hdrs = glob(["include/**"]),
    includes = ["include"],
    visibility = ["//visibility:public"],
    deps = [":static_runtime"],
)
"""

def _installed_cuda_impl(repository_ctx):
    home = repository_ctx.os.environ.get("CUDA_HOME", "/usr/local/cuda")
    library = None
    for folder in ["lib64", "lib"]:
        path = repository_ctx.path(home + "/" + folder + "/libcudart_static.a")
        if library == None and path.exists:
            library = path
    if library == None:
        fail("%s is no CUDA toolkit with lib64/libcudart_static.a: name one in CUDA_HOME" % home)
    repository_ctx.symlink(home + "/include", "include")
    repository_ctx.symlink(library, "libcudart_static.a")
    repository_ctx.file("BUILD", _BUILD)

installed_cuda = repository_rule(
    implementation = _installed_cuda_impl,
    doc = "Looked at only with --config=cuda.",
    environ = ["CUDA_HOME"],
    local = True,
)
