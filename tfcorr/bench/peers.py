"""The same work by other packages, where they are installed (extra `bench`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tfcorr.bench.workloads import DEFORM_GROUPS, PATCH_SIZE, Case

# Reference patches that the unfold-and-convolve matcher correlates at a time. The published code takes as
# many as fit into 2 GiB, which is all of them here; with so many filters PyTorch's convolution is several
# times slower than with these.
_FILTERS = 1024


class PeerUnavailableError(Exception):
    """The package is missing or cannot do this; the message says which and why."""


def name(case: Case) -> str | None:
    """What the table calls the peer of a case; None if there is none."""
    if case.op == "match_patches":
        return "PyTorch, unfold and convolve"
    return "ONNX Runtime" if case.part == "forward" and case.dtype == "float32" else None


def prepare(case: Case, data: dict[str, np.ndarray], threads: int) -> Callable[[], list[np.ndarray]]:
    """Hands the data to the peer and returns the call to measure, with outputs laid out as tfcorr's.

    Args:
        case: the case.
        data: of `case.data()`.
        threads: threads that the peer may use.

    Raises:
        PeerUnavailableError: the package is not there, or does not know the operator.
    """
    return (_prepare_torch if case.op == "match_patches" else _prepare_onnxruntime)(data, threads)


def version(case: Case) -> str:
    """The installed version of the peer's package."""
    if case.op == "match_patches":
        return package("torch").__version__
    return package("onnxruntime").__version__


def package(name: str) -> Any:
    """The module of a peer's package; `PeerUnavailableError` where it is not installed."""
    try:
        return __import__(name)
    except ImportError as error:
        raise PeerUnavailableError(f"{name} is not installed ({error}): install the extra `bench`") from error


def _prepare_onnxruntime(data: dict[str, np.ndarray], threads: int) -> Callable[[], list[np.ndarray]]:
    run = onnxruntime_deform_conv(data["kernel"], data["bias"], DEFORM_GROUPS, threads)
    feeds = {
        input_name: np.ascontiguousarray(data[input_name].transpose(0, 3, 1, 2))
        for input_name in ("x", "offset", "mask")
    }

    return lambda: [run(**feeds).transpose(0, 2, 3, 1)]


def onnxruntime_deform_conv(
    kernel: np.ndarray, bias: np.ndarray, groups: int, threads: int
) -> Callable[..., np.ndarray]:
    """ONNX Runtime's DeformConv, stride 1 and padded to the size of its input.

    Args:
        kernel: (3, 3, C, O) float32, and bias (O,): constants of the model.
        groups: of channels of the input with offsets of their own.
        threads: that it may use.

    Returns:
        A function of `x` (1, C, H, W), `offset` (1, groups * 18, H, W) and `mask` (1, groups * 9, H, W),
        float32 arrays of any one height and width, to (1, O, H, W).

    Raises:
        PeerUnavailableError: the package is not there, or does not know the operator.
    """
    # The same session for any size: the small call that warms up is of use to the large one.
    session = _onnxruntime_session(kernel.tobytes(), kernel.shape, bias.tobytes(), groups, threads)
    return lambda x, offset, mask: session.run(None, {"x": x, "offset": offset, "mask": mask})[0]


@cache
def _onnxruntime_session(
    kernel: bytes, shape: tuple[int, int, int, int], bias: bytes, groups: int, threads: int
):
    """A session with one DeformConv for maps of any size."""
    onnx, onnxruntime = package("onnx"), package("onnxruntime")
    height, width, channels, outputs = shape
    taps = groups * height * width
    helper, float_type = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node(
        "DeformConv",
        ["x", "kernel", "offset", "bias", "mask"],
        ["output"],
        kernel_shape=[height, width],
        pads=[height // 2, width // 2] * 2,
        offset_group=groups,
    )
    kernel_array = np.frombuffer(kernel, "float32").reshape(shape)
    graph = helper.make_graph(
        [node],
        "deform_conv2d",
        [
            helper.make_tensor_value_info(input_name, float_type, [1, depth, "height", "width"])
            for input_name, depth in (("x", channels), ("offset", 2 * taps), ("mask", taps))
        ],
        [helper.make_tensor_value_info("output", float_type, [1, outputs, "height", "width"])],
        [
            onnx.numpy_helper.from_array(np.ascontiguousarray(kernel_array.transpose(3, 2, 0, 1)), "kernel"),
            onnx.numpy_helper.from_array(np.frombuffer(bias, "float32"), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except (
        Exception
    ) as error:  # its exceptions have no common base; an old version does not know the operator
        raise PeerUnavailableError(
            f"onnxruntime {onnxruntime.__version__} does not run DeformConv: {str(error).splitlines()[0]}"
        ) from error


def _prepare_torch(data: dict[str, np.ndarray], threads: int) -> Callable[[], list[np.ndarray]]:
    torch = package("torch")
    torch.set_num_threads(threads)
    query, reference = (
        torch.from_numpy(np.ascontiguousarray(data[map_name].transpose(0, 3, 1, 2)))
        for map_name in ("query", "reference")
    )

    def run():
        with torch.inference_mode():
            return [output.numpy() for output in unfold_and_convolve(torch, query, reference)]

    return run


def unfold_and_convolve(torch, query, reference):
    """The usual way to match patches: all reference patches, normalised, as the filters of a convolution.

    Args:
        torch: the module.
        query, reference: (1, C, H, W) float32 tensors.

    Returns:
        index int32 and score float32, (1, Hq - 2, Wq - 2), as `tfcorr.ops.match_patches`.
    """
    unfold = torch.nn.functional.unfold
    filters = unfold(reference, PATCH_SIZE)[0].T
    filters = filters / (filters.norm(dim=1, keepdim=True) + 1e-5)
    filters = filters.reshape(-1, query.shape[1], PATCH_SIZE, PATCH_SIZE)
    best = index = None
    for first in range(0, len(filters), _FILTERS):
        correlation = torch.nn.functional.conv2d(query, filters[first : first + _FILTERS])
        value, position = correlation.max(dim=1)
        position += first
        if best is None:
            best, index = value, position
        else:
            index = torch.where(value > best, position, index)
            best = torch.maximum(value, best)
    norm = unfold(query, PATCH_SIZE).norm(dim=1).reshape(best.shape)
    return index.int(), best / (norm + 1e-5)
