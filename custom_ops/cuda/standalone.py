"""The GPU's kernels from Python without TensorFlow: ctypes over `standalone.cu`, arrays as PyTorch's tensors.

For tests and timings (tests/cuda/, scripts/bench_cuda.py). With TFCORR_CUDA_EMULATION set, the library is one
that runs on the host (tests/cuda/emulation/), and the tensors are the CPU's.

Shapes, layouts and meanings are those of `tfcorr.ops.deform_conv2d` and `tfcorr.ops.match_patches`; padding
is (top, left), and the output has the grid of `offset`.
"""

import ctypes
import functools
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMULATION = bool(os.environ.get("TFCORR_CUDA_EMULATION"))
DEVICE = "cpu" if EMULATION else "cuda"


@functools.cache
def load() -> ctypes.CDLL:
    """Returns the library, building it first; TFCORR_CUDA_LIBRARY names one that is built already."""
    path = os.environ.get("TFCORR_CUDA_LIBRARY")
    if not path:
        subprocess.run(["bash", str(ROOT / "scripts" / "build_cuda.sh")], check=True)
        path = str(ROOT / "build" / "cuda" / "libtfcorr_cuda.so")
    library = ctypes.CDLL(path)
    for name in ("deform_forward_workspace", "deform_backward_workspace", "match_workspace"):
        getattr(library, f"tfcorr_{name}").restype = ctypes.c_int64
    library.tfcorr_error_name.restype = ctypes.c_char_p
    return library


def _call(name: str, *arguments) -> None:
    import torch

    def convert(argument):
        if isinstance(argument, torch.Tensor):
            if argument.device.type != DEVICE or not argument.is_contiguous():
                raise ValueError(f"{name} expects contiguous tensors on {DEVICE}")
            return ctypes.c_void_p(argument.data_ptr())
        return argument

    stream = None if EMULATION else ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    error = getattr(load(), f"tfcorr_{name}")(*map(convert, arguments), stream)
    if error:
        raise RuntimeError(f"{name}: {load().tfcorr_error_name(error).decode()}")


def _deform_sizes(x, kernel, offset, strides, dilations, padding, groups):
    sizes = (
        *x.shape,
        *offset.shape[1:3],
        kernel.shape[3],
        *kernel.shape[:2],
        *strides,
        *dilations,
        *padding,
        groups,
    )
    return (ctypes.c_int64 * 16)(*sizes)


def _type(x) -> int:
    import torch

    return {torch.float32: 0, torch.bfloat16: 1}[x.dtype]


def _workspace(name: str, device, *arguments):
    import torch

    size = getattr(load(), f"tfcorr_{name}_workspace")(*arguments)
    return torch.empty(max(size, 1), dtype=torch.int8, device=device)


def deform_forward(
    x, kernel, offset, mask=None, bias=None, *, strides=(1, 1), dilations=(1, 1), padding=(0, 0), groups=1
):
    """Returns the output (B, Ho, Wo, O)."""
    sizes = _deform_sizes(x, kernel, offset, strides, dilations, padding, groups)
    output = x.new_empty((*offset.shape[:3], kernel.shape[3]))
    workspace = _workspace("deform_forward", x.device, sizes, _type(x))
    _call("deform_forward", sizes, _type(x), x, kernel, offset, mask, bias, output, workspace)
    return output


def deform_backward(
    x, kernel, offset, mask, output_gradient, *, strides=(1, 1), dilations=(1, 1), padding=(0, 0), groups=1
):
    """Returns the gradients of x, kernel, offset, mask (None without one) and bias."""
    sizes = _deform_sizes(x, kernel, offset, strides, dilations, padding, groups)
    # NaN, to see that everything is written.
    gradients = [
        None if tensor is None else tensor.new_full(tensor.shape, float("nan"))
        for tensor in (x, kernel, offset, mask)
    ]
    bias = x.new_full((kernel.shape[3],), float("nan"))
    workspace = _workspace("deform_backward", x.device, sizes, _type(x))
    inputs = (x, kernel, offset, mask, output_gradient)
    _call("deform_backward", sizes, _type(x), *inputs, *gradients, bias, workspace)
    return [*gradients, bias]


def match(query, reference, patch_size=3):
    """Returns index (int32) and score (float32) of one query map (H, W, C) against one reference map."""
    import torch

    sizes = (ctypes.c_int64 * 6)(*query.shape[:2], *reference.shape[:2], query.shape[2], patch_size)
    shape = [size - patch_size + 1 for size in query.shape[:2]]
    index = torch.full(shape, -1, dtype=torch.int32, device=query.device)
    score = torch.full(shape, float("nan"), device=query.device)
    _call("match", sizes, query, reference, index, score, _workspace("match", query.device, sizes))
    return index, score
