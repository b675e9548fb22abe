"""Stands in for the rules_java repository: what Bazel 4's own toolchains load, though nothing here is Java."""

java_binary = native.java_binary
java_import = native.java_import
java_library = native.java_library
java_runtime = native.java_runtime
java_toolchain = native.java_toolchain
