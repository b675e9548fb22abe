"""What the ops are measured on: the cases, their data, and tfcorr's own functions on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
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
        gradients: measure forward and the gradients of all five inputs, not forward alone.
    """

    height: int
    width: int
    channels: int
    offsets: str = "local"
    gradients: bool = False

    op = "deform_conv2d"

    @property
    def title(self) -> str:
        """What the table calls the case."""
        return f"1x{self.height}x{self.width}x{self.channels}, {self.offsets} offsets"

    @property
    def task(self) -> str:
        """Forward, or forward and gradients."""
        return "forward and all gradients" if self.gradients else "forward"

    @property
    def flops(self) -> int | None:
        """Floating-point operations of the convolution itself; None with gradients."""
        taps = KERNEL_SIZE**2
        return None if self.gradients else 2 * self.height * self.width * taps * self.channels**2

    @property
    def output_bytes(self) -> int:
        """Size of what the function returns."""
        pixels, samples = self.height * self.width, DEFORM_GROUPS * KERNEL_SIZE**2
        forward = pixels * self.channels
        kernel = KERNEL_SIZE**2 * self.channels**2
        gradients = pixels * (self.channels + 3 * samples) + kernel + self.channels
        return 4 * (forward + (gradients if self.gradients else 0))

    def small(self) -> DeformCase:
        """The same case, just large enough to start all threads."""
        return DeformCase(16, 16, self.channels, self.offsets, self.gradients)

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

    @property
    def title(self) -> str:
        """What the table calls the case."""
        size = f"{self.height}x{self.width}"
        return f"{size} against {size}, {self.channels} channels"

    @property
    def flops(self) -> int:
        """Floating-point operations of the pointwise correlations, from which all patches' are summed."""
        return 2 * (self.height * self.width) ** 2 * self.channels

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
    function = _graph(case.op, implementation, case.channels, getattr(case, "gradients", False))
    tensors = {name: tf.constant(array) for name, array in data.items()}
    return lambda: [output.numpy() for output in function(**tensors)]


@cache
def _graph(op: str, implementation: str, channels: int, gradients: bool):
    """One of tfcorr's functions as a graph for maps of any size: the small call that warms up traces it."""
    import tensorflow as tf

    import tfcorr.ops

    def maps(depth):
        return tf.TensorSpec((1, None, None, depth), tf.float32)

    samples = DEFORM_GROUPS * KERNEL_SIZE**2
    kernel = tf.TensorSpec((KERNEL_SIZE, KERNEL_SIZE, channels, channels), tf.float32)
    bias = tf.TensorSpec((channels,), tf.float32)

    @tf.function(input_signature=[maps(channels)] * 2)
    def match(query, reference):
        matches = tfcorr.ops.match_patches(
            query, reference, patch_size=PATCH_SIZE, implementation=implementation
        )
        return tuple(matches)

    @tf.function(input_signature=[maps(channels), kernel, maps(2 * samples), maps(samples), bias])
    def deform(x, kernel, offset, mask, bias):
        inputs = (x, kernel, offset, mask, bias)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            if gradients:
                tape.watch(inputs)
            output = tfcorr.ops.deform_conv2d(
                *inputs, deform_groups=DEFORM_GROUPS, implementation=implementation
            )
        return (output, *tape.gradient(output, inputs)) if gradients else (output,)

    return match if op == "match_patches" else deform
