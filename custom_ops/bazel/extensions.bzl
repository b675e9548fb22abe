"""The same repository for MODULE.bazel. A file of its own: Bazel 4 does not know `module_extension`."""

load("//bazel:cuda.bzl", "installed_cuda")
load("//bazel:tensorflow.bzl", "installed_tensorflow")

def _tensorflow_impl(_module_ctx):
    installed_cuda(name = "installed_cuda")
    installed_tensorflow(name = "installed_tensorflow")

tensorflow = module_extension(implementation = _tensorflow_impl)
