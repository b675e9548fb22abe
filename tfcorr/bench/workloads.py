"""What the ops are measured on: the cases, their data, and tfcorr's own functions on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

KERNEL_SIZE = 3
DEFORM_GROUPS = 8
PATCH_SIZE = 3


@dataclass(frozen=True)
class DeformCase:
    """A modulated deformable convolution, 3 x 3, stride 1, 8 groups, as many channels out as in.

    Attributes:
        height, width, channels: of the input and of the output; batch 1.
        offsets: `"local"`, a normal distribution with a deviation of 2 pixels; or `"far"`, where each block
            of 4 x 4 pixels points to a place of its own, anywhere, as the matcher's pre-offsets do.
        part: `"forward"`; `"backward"`, the gradients of all five inputs alone, for a given gradient of the
            output; or `"both"`.
        dtype: `"float32"` or `"bfloat16"`, of all but the offsets.
    """

    height: int
    width: int
    channels: int
    offsets: str = "local"
    part: str = "forward"
    dtype: str = "float32"

    op = "deform_conv2d"

    @property
    def title(self) -> str:
        """What the table calls the case."""
        dtype = "" if self.dtype == "float32" else f", {self.dtype}"
        return f"1x{self.height}x{self.width}x{self.channels}, {self.offsets} offsets{dtype}"

    @property
    def task(self) -> str:
        """What is computed, in words."""
        return {"backward": "all gradients alone", "both": "forward and all gradients"}.get(
            self.part, "forward"
        )

    @property
    def flops(self) -> int | None:
        """Floating-point operations of the convolution itself; None with gradients."""
        taps = KERNEL_SIZE**2
        if self.part != "forward":
            return None
        return 2 * self.pixels * taps * self.channels**2

    @property
    def pixels(self) -> int:
        """Positions of the output: the size by which costs are compared."""
        return self.height * self.width

    @property
    def output_bytes(self) -> int:
        """Size of what the function returns."""
        samples = DEFORM_GROUPS * KERNEL_SIZE**2
        width = 4 if self.dtype == "float32" else 2
        forward = width * self.pixels * self.channels
        gradients = width * (
            self.pixels * (self.channels + samples) + KERNEL_SIZE**2 * self.channels**2 + self.channels
        )
        gradients += 4 * self.pixels * 2 * samples  # offsets are float32 whatever the rest is
        return forward * (self.part != "backward") + gradients * (self.part != "forward")

    def small(self) -> DeformCase:
        """The same case, just large enough to start all threads."""
        return replace(self, height=16, width=16)

    def data(self) -> dict[str, np.ndarray]:
        """Random inputs as `tfcorr.ops.deform_conv2d` takes them, float32, always the same."""
        rng = np.random.default_rng(0)
        size, taps = (1, self.height, self.width), KERNEL_SIZE**2
        # First, so that they are the same for maps of any size: a session of a peer holds them as constants.
        kernel = rng.normal(scale=0.05, size=(KERNEL_SIZE, KERNEL_SIZE, self.channels, self.channels))
        bias = rng.normal(size=self.channels)
        x = rng.normal(size=(*size, self.channels))
        offset = rng.normal(scale=2.0, size=(*size, DEFORM_GROUPS * taps, 2))
        if self.offsets == "far":
            y, x_position = np.indices((self.height, self.width))
            blocks = tuple(-(-n // 4) for n in (self.height, self.width))
            for axis, (position, extent) in enumerate(((y, self.height), (x_position, self.width))):
                target = rng.integers(0, extent, size=blocks).repeat(4, 0).repeat(4, 1)
                jump = target[: self.height, : self.width] - position
                offset[..., axis] = offset[..., axis] / 2 + jump[None, :, :, None]
        data = {
            "x": x,
            "kernel": kernel,
            "offset": offset.reshape(*size, -1),
            "mask": rng.uniform(size=(*size, DEFORM_GROUPS * taps)),
            "bias": bias,
        }
        return {name: array.astype("float32") for name, array in data.items()}


@dataclass(frozen=True)
class MatchCase:
    """Matching of all 3 x 3 patches of two maps of one size.

    Attributes:
        height, width, channels: of both maps; batch 1.
    """

    height: int
    width: int
    channels: int

    op = "match_patches"
    task = "forward"
    part = "forward"
    dtype = "float32"

    @property
    def title(self) -> str:
        """What the table calls the case."""
        size = f"{self.height}x{self.width}"
        return f"{size} against {size}, {self.channels} channels"

    @property
    def flops(self) -> int:
        """Floating-point operations of the pointwise correlations, from which all patches' are summed."""
        return 2 * self.pixels**2 * self.channels

    @property
    def pixels(self) -> int:
        """Cells of each map: the size by which costs are compared."""
        return self.height * self.width

    @property
    def output_bytes(self) -> int:
        """Size of index and score."""
        return 8 * (self.height - PATCH_SIZE + 1) * (self.width - PATCH_SIZE + 1)

    def small(self) -> MatchCase:
        """The same case, just large enough to start all threads."""
        return MatchCase(12, 12, self.channels)

    def data(self) -> dict[str, np.ndarray]:
        """Random features (batch, height, width, channels), float32, always the same."""
        rng = np.random.default_rng(0)
        shape = (1, self.height, self.width, self.channels)
        return {name: rng.normal(size=shape).astype("float32") for name in ("query", "reference")}


Case = DeformCase | MatchCase


def to_record(case: Case) -> dict[str, Any]:
    """A case as plain data, for another process."""
    return {"op": case.op, **asdict(case)}


def from_record(record: dict[str, Any]) -> Case:
    """The inverse of `to_record`."""
    arguments = dict(record)
    return {case.op: case for case in (DeformCase, MatchCase)}[arguments.pop("op")](**arguments)


def prepare(case: Case, implementation: str, data: dict[str, np.ndarray]) -> Callable[[], list[np.ndarray]]:
    """Puts the data into TensorFlow's memory and returns the call to measure.

    Args:
        case: the case.
        implementation: `"custom"` or `"reference"`.
        data: of `case.data()`.

    Returns:
        A function without arguments that computes, waits, and returns the outputs as arrays.

    Raises:
        tfcorr.ops.library.OpsUnavailableError: the compiled op is not there.
    """
    import tensorflow as tf

    from tfcorr.ops import library

    library.resolve(case.op, implementation)
    function = _graph(case.op, implementation, case.channels, case.part, case.dtype)
    dtypes = {name: tf.float32 if name == "offset" else tf.as_dtype(case.dtype) for name in data}
    tensors = {name: tf.cast(tf.constant(array), dtypes[name]) for name, array in data.items()}
    return lambda: [_array(output) for output in function(**tensors)]


def _array(output: Any) -> np.ndarray:
    # As for peers, whose outputs are arrays already: without the copy that `numpy()` makes.
    return output.numpy() if output.dtype.name == "bfloat16" else np.asarray(memoryview(output))


@cache
def _graph(op: str, implementation: str, channels: int, part: str, dtype: str):
    """One of tfcorr's functions as a graph for maps of any size: the small call that warms up traces it.

    Of the backward pass alone, the output's gradient is `x`, which is as large; a graph drops the forward
    operation when nothing asks for its output.
    """
    import tensorflow as tf

    import tfcorr.ops

    def maps(depth, kind=dtype):
        return tf.TensorSpec((1, None, None, depth), kind)

    samples = DEFORM_GROUPS * KERNEL_SIZE**2
    kernel = tf.TensorSpec((KERNEL_SIZE, KERNEL_SIZE, channels, channels), dtype)
    bias = tf.TensorSpec((channels,), dtype)

    @tf.function(input_signature=[maps(channels)] * 2)
    def match(query, reference):
        matches = tfcorr.ops.match_patches(
            query, reference, patch_size=PATCH_SIZE, implementation=implementation
        )
        return tuple(matches)

    @tf.function(input_signature=[maps(channels), kernel, maps(2 * samples, "float32"), maps(samples), bias])
    def deform(x, kernel, offset, mask, bias):
        inputs = (x, kernel, offset, mask, bias)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            if part != "forward":
                tape.watch(inputs)
            output = tfcorr.ops.deform_conv2d(
                *inputs, deform_groups=DEFORM_GROUPS, implementation=implementation
            )
        if part == "forward":
            return (output,)
        gradients = tape.gradient(output, inputs, output_gradients=x)
        return gradients if part == "backward" else (output, *gradients)

    return match if op == "match_patches" else deform
