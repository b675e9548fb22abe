"""Stands in for the rules_cc repository under Bazel 4, where the C++ rules are native."""

cc_binary = native.cc_binary
cc_import = native.cc_import
cc_library = native.cc_library
cc_toolchain = native.cc_toolchain
cc_toolchain_suite = native.cc_toolchain_suite
