"""The compiler's flags for the ops, in one place: Bazel loads this file, tfcorr/ops/build.py parses it.

Only literals may stand on the right-hand sides (Python reads them with ast.literal_eval). What depends on
the installed TensorFlow (its include folder, _GLIBCXX_USE_CXX11_ABI, EIGEN_MAX_ALIGN_BYTES) comes from
tf.sysconfig on both ways. Never -march=native: the library must run on any machine of its kind, so kernels
for one instruction set stand in files of their own, and are chosen at run time.
"""

COMMON_FLAGS = ["-O3", "-DNDEBUG", "-std=c++17", "-fPIC", "-Wall"]

# The GPU's kernels, cuda/*.cu: machine code for two generations, and PTX for those to come.
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-Xcompiler=-fPIC",
    "-lineinfo",
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
]

# By the suffix of the file's name. These files see no header of TensorFlow's: an inline function of theirs,
# compiled for AVX-512, could be the copy that the linker keeps for all.
KERNEL_SUFFIXES = ["_amx", "_avx512bf16", "_avx512", "_avx2", "_generic"]

# Added on x86-64 only; elsewhere these files are empty.
X86_FLAGS = {
    # AMX itself needs none: kernels/tiles.h.
    "_amx": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mavx2",
        "-mfma",
        "-mprefer-vector-width=512",
    ],
    # The products of bfloat16 need none: kernels/gemm_bfloat16.h.
    "_avx512bf16": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mavx2",
        "-mfma",
        "-mprefer-vector-width=512",
    ],
    "_avx512": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mavx2",
        "-mfma",
        "-mprefer-vector-width=512",
    ],
    "_avx2": ["-mavx2", "-mfma"],
    "_generic": [],
}
