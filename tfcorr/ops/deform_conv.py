"""Modulated deformable convolution: every tap of the kernel reads its input at a place of its own.

One public function, :func:`deform_conv2d`, over two implementations: the compiled op (`custom_ops/`) and the
portable one of :mod:`tfcorr.ops.deform_conv_portable`.

Convention: positions and offsets are (y, x) in pixels of the input, pixel centres at whole numbers, (0, 0)
the first pixel; stride, dilation and padding pairs are (y, x) too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import keras
from keras import ops

from tfcorr.ops import library
from tfcorr.ops.deform_conv_portable import portable_deform_conv2d

_DTYPES = ("float32", "bfloat16")


def deform_conv2d(
    x,
    kernel,
    offset,
    mask=None,
    bias=None,
    *,
    strides=1,
    padding="same",
    dilation_rate=1,
    deform_groups: int = 1,
    output_size=None,
    implementation: str | None = None,
):
    """Computes a modulated deformable convolution (DCNv2; C2-Matching, section 3.3, eq. 9).

    For the output pixel p = (oy, ox) and the kernel's points k = (ky, kx),

        output[p] = bias + sum_k kernel[k] . (mask_k[p] * x(position_k[p]))
        position_k[p] = p * strides - (top, left) + k * dilation_rate + offset_k[p]

    where x(y, x) is the bilinear sample, and the channels of x fall into `deform_groups` groups of
    neighbours with their own offset and mask. A sample counts only if -1 < y < H and -1 < x < W, and each
    corner outside of x reads as 0. Elsewhere (NaN and infinite offsets are elsewhere) its value and all of
    its gradients are 0. At whole numbers the gradient for the offset is that of the cell below and to the
    right.

    Differentiable once for x, kernel, offset, mask and bias. The compiled op has no second derivative, and
    XLA cannot compile it.

    Args:
        x: (B, H, W, C), float32 or bfloat16.
        kernel: (kh, kw, C, O), dtype of x.
        offset: (B, Ho, Wo, deform_groups * kh * kw * 2), float32 whatever the dtype of x, because bfloat16
            cannot hold pixel 257.5. Last axis (group, ky, kx, [dy, dx]), in pixels of x.
        mask: (B, Ho, Wo, deform_groups * kh * kw), dtype of x: a factor for each sample. None: all 1.
        bias: (O,), dtype of x. None: zeros.
        strides: a whole number or a pair (y, x), at least 1.
        padding: `"same"` and `"valid"` as TensorFlow understands them, or `((top, bottom), (left, right))`
            pixels.
        dilation_rate: a whole number or a pair (y, x), at least 1.
        deform_groups: groups of channels with their own offsets; divides C.
        output_size: None: Ho and Wo follow from x, strides and padding, as for an ordinary convolution.
            (Ho, Wo): the grid is free, and x may have any size. `padding="same"` then means that of an
            input of (Ho, Wo) * strides: half of the kernel's extent for stride 1.
        implementation: `"custom"` (compiled), `"reference"` (`keras.ops`, any backend, converts to TFLite
            with built-in operators), or None for the default, see :func:`tfcorr.ops.implementations`.

    Returns:
        (B, Ho, Wo, O), dtype of x. Sums are float32.

    Raises:
        ValueError: for shapes that do not fit together, for other dtypes, and for strides, padding,
            dilation_rate or deform_groups outside of their ranges; the message tells the shapes.
        tfcorr.errors.TfcorrError: where `"custom"` is asked for and is not there.
    """
    operation = DeformConv2DOperation(
        strides=strides,
        padding=padding,
        dilation_rate=dilation_rate,
        deform_groups=deform_groups,
        output_size=output_size,
        implementation=implementation,
    )
    arguments = (x, kernel, offset, mask, bias)
    if any(keras.backend.is_keras_tensor(argument) for argument in arguments):
        return operation(*arguments)
    # Without Keras' wrapping, which would bury what an error says under the arguments' values.
    return operation.call(*arguments)


@dataclass(frozen=True)
class Geometry:
    """How the output's grid lies on the input. Pairs are (y, x).

    Attributes:
        strides: pixels of the input from one output pixel to the next.
        padding: `"same"`, `"valid"`, or ((top, bottom), (left, right)).
        dilation_rate: pixels of the input from one tap of the kernel to the next.
        deform_groups: groups of channels with their own offsets.
        free_grid: whether the output has the size of the offsets, whatever the input's size.
    """

    strides: tuple[int, int]
    padding: str | tuple[tuple[int, int], tuple[int, int]]
    dilation_rate: tuple[int, int]
    deform_groups: int
    free_grid: bool

    def pad(self, axis: int, size, taps: int):
        """Zeros before and behind along an axis (0: y, 1: x) of an input of `size`, which may be a tensor."""
        if self.padding == "valid":
            return 0, 0
        if self.padding != "same":
            return self.padding[axis]
        stride = self.strides[axis]
        extent = (taps - 1) * self.dilation_rate[axis] + 1
        if self.free_grid:
            both = max(extent - stride, 0)
        else:
            both = (-(-size // stride) - 1) * stride + extent - size
            both = max(both, 0) if isinstance(both, int) else ops.maximum(both, 0)
        return both // 2, both - both // 2

    def output_size(self, axis: int, size: int, taps: int) -> int:
        """Output size along an axis for an input of `size`; 0 if the kernel does not fit. Not for a free
        grid."""
        room = size + sum(self.pad(axis, size, taps)) - ((taps - 1) * self.dilation_rate[axis] + 1)
        return 0 if room < 0 else room // self.strides[axis] + 1


@keras.saving.register_keras_serializable(package="tfcorr")
class DeformConv2DOperation(keras.Operation):
    """:func:`deform_conv2d` as a Keras operation, so that it also takes the inputs of a functional model."""

    def __init__(
        self,
        *,
        strides=1,
        padding="same",
        dilation_rate=1,
        deform_groups: int = 1,
        output_size=None,
        implementation: str | None = None,
    ):
        super().__init__()
        if output_size is not None and not _is_pair(output_size):
            raise ValueError(f"output_size must be None or a pair (height, width), got {output_size!r}.")
        if isinstance(deform_groups, bool) or not isinstance(deform_groups, int) or deform_groups < 1:
            raise ValueError(f"deform_groups must be a whole number of at least 1, got {deform_groups!r}.")
        self.geometry = Geometry(
            strides=standardize_pair(strides, "strides"),
            padding=standardize_padding(padding),
            dilation_rate=standardize_pair(dilation_rate, "dilation_rate"),
            deform_groups=deform_groups,
            free_grid=output_size is not None,
        )
        self.output_size = output_size
        self.implementation = implementation

    def call(self, x, kernel, offset, mask=None, bias=None):
        tensors = [None if t is None else ops.convert_to_tensor(t) for t in (x, kernel, offset, mask, bias)]
        self._check(*tensors)
        if library.resolve("deform_conv2d", self.implementation) == "custom":
            return _custom(*tensors, self.geometry)
        return portable_deform_conv2d(*tensors, self.geometry)

    def compute_output_spec(self, x, kernel, offset, mask=None, bias=None):
        self._check(x, kernel, offset, mask, bias)
        batch = x.shape[0] if x.shape[0] is not None else offset.shape[0]
        grid = [known_size(size) for size in self.output_size or (None, None)]
        for axis in (0, 1):
            size, taps = x.shape[axis + 1], kernel.shape[axis]
            if grid[axis] is None:
                grid[axis] = offset.shape[axis + 1]
            if grid[axis] is None and not self.geometry.free_grid and None not in (size, taps):
                grid[axis] = self.geometry.output_size(axis, size, taps)
        return keras.KerasTensor((batch, *grid, kernel.shape[3]), dtype=x.dtype)

    def _check(self, x, kernel, offset, mask, bias) -> None:
        """Raises ValueError for what the static shapes and dtypes already show to be wrong."""
        geometry = self.geometry
        groups = geometry.deform_groups
        shapes = ", ".join(
            f"{name} {'none' if tensor is None else tuple(tensor.shape)}"
            for name, tensor in zip(
                ("x", "kernel", "offset", "mask", "bias"), (x, kernel, offset, mask, bias), strict=True
            )
        )

        def refuse(expected: str):
            raise ValueError(f"deform_conv2d expects {expected}; got {shapes}, deform_groups {groups}.")

        def differ(a, b) -> bool:
            return a is not None and b is not None and a != b

        if len(x.shape) != 4:
            refuse("x (batch, height, width, channels)")
        if len(kernel.shape) != 4 or None in tuple(kernel.shape):
            refuse("a kernel of known shape (kh, kw, channels, outputs)")
        if len(offset.shape) != 4:
            refuse("offset (batch, out height, out width, deform_groups * kh * kw * 2)")
        kh, kw, channels, outputs = kernel.shape
        if min(kh, kw, channels) < 1:
            refuse("a kernel with at least one tap and one channel")
        if differ(x.shape[3], channels):
            refuse("a kernel for the channels of x")
        if channels % groups:
            refuse("channels divisible by deform_groups")
        samples = groups * kh * kw
        if differ(offset.shape[3], 2 * samples):
            refuse(f"deform_groups * kh * kw * 2 = {2 * samples} offset channels")
        if differ(x.shape[0], offset.shape[0]):
            refuse("the same batch in x and offset")
        if mask is not None:
            wanted = (offset.shape[0], offset.shape[1], offset.shape[2], samples)
            if len(mask.shape) != 4 or any(differ(a, b) for a, b in zip(mask.shape, wanted, strict=True)):
                refuse(f"a mask of deform_groups * kh * kw = {samples} channels on the grid of offset")
        if bias is not None and (len(bias.shape) != 1 or differ(bias.shape[0], outputs)):
            refuse("a bias for the outputs of the kernel")
        for axis in (0, 1):
            seen = offset.shape[axis + 1]
            side = "height" if axis == 0 else "width"
            if geometry.free_grid:
                if differ(known_size(self.output_size[axis]), seen):
                    refuse(f"offset on the grid of output_size {tuple(self.output_size)}")
            elif x.shape[axis + 1] is not None:
                wanted = geometry.output_size(axis, x.shape[axis + 1], kernel.shape[axis])
                if differ(seen, wanted):
                    refuse(f"offset of {side} {wanted}, the output's (or a free grid, by output_size)")

        dtype = keras.backend.standardize_dtype(x.dtype)
        if dtype not in _DTYPES:
            raise ValueError(f"deform_conv2d expects x of dtype {' or '.join(_DTYPES)}, got {dtype}.")
        for name, tensor, wanted in (
            ("kernel", kernel, dtype),
            ("offset", offset, "float32"),
            ("mask", mask, dtype),
            ("bias", bias, dtype),
        ):
            if tensor is not None and (seen := keras.backend.standardize_dtype(tensor.dtype)) != wanted:
                raise ValueError(
                    f"deform_conv2d expects {name} of dtype {wanted} with x of {dtype}, got {seen}."
                )


def standardize_pair(value, name: str) -> tuple[int, int]:
    """Returns (y, x) for a whole number or a pair of them.

    Args:
        value: one or two whole numbers of at least 1.
        name: the argument's name, for the message.

    Raises:
        ValueError: for anything else.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in pair):
        raise ValueError(f"{name} must be one or two whole numbers of at least 1, got {value!r}.")
    return pair


def standardize_padding(padding) -> str | tuple[tuple[int, int], tuple[int, int]]:
    """Returns `"same"`, `"valid"` or ((top, bottom), (left, right)) as nested tuples.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(padding, str) and padding.lower() in ("same", "valid"):
        return padding.lower()
    if _is_pair(padding) and all(_is_pair(side) for side in padding):
        values = [v for side in padding for v in side]
        if all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            return tuple(padding[0]), tuple(padding[1])
    raise ValueError(f'padding must be "same", "valid" or ((top, bottom), (left, right)), got {padding!r}.')


def _is_pair(value) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def known_size(size) -> int | None:
    """A size as a Python integer, or None where it is only known when the graph runs."""
    return size if isinstance(size, int) else None


def _custom(x, kernel, offset, mask, bias, geometry: Geometry):
    """Calls the compiled op."""
    explicit = not isinstance(geometry.padding, str)
    nothing = ops.zeros((0,), dtype=x.dtype)
    return library.load().tfcorr_deform_conv2d(
        x=x,
        kernel=kernel,
        offset=offset,
        mask=nothing if mask is None else mask,
        bias=nothing if bias is None else bias,
        strides=geometry.strides,
        dilations=geometry.dilation_rate,
        padding="EXPLICIT" if explicit else geometry.padding.upper(),
        explicit_padding=[v for side in geometry.padding for v in side] if explicit else [],
        deform_groups=geometry.deform_groups,
        free_grid=geometry.free_grid,
        has_mask=mask is not None,
        has_bias=bias is not None,
    )


def _register_gradient() -> None:
    """Tells TensorFlow the op's gradient, also for graphs that come out of a SavedModel."""
    import tensorflow as tf

    @tf.RegisterGradient("Tfcorr>DeformConv2D")
    def gradient(op, output_gradient):
        attributes = {
            name: op.get_attr(name)
            for name in ("strides", "dilations", "explicit_padding", "deform_groups", "free_grid")
        }
        attributes["padding"] = tf.compat.as_str(op.get_attr("padding"))
        has_mask, has_bias = op.get_attr("has_mask"), op.get_attr("has_bias")
        gradients = library.load().tfcorr_deform_conv2d_grad(
            *op.inputs, output_gradient, **attributes, has_mask=has_mask, has_bias=has_bias
        )
        return [
            *gradients[:3],
            gradients[3] if has_mask else None,
            gradients[4] if has_bias else None,
        ]


# As for the library itself (see tfcorr/ops/__init__.py): TensorFlow is not imported for another backend.
if keras.backend.backend() == "tensorflow" or "tensorflow" in sys.modules:
    _register_gradient()
