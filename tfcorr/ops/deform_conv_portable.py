"""Modulated deformable convolution in `keras.ops`, for any backend and for TFLite's built-in operators.

The output is computed in tiles of pixels, so that the gathered samples of one tile are all that is ever
held beyond inputs and outputs (in training, TensorFlow keeps those of all tiles for the gradient).
"""

import keras
from keras import ops

# Samples of a tile, in floats: one of four corners takes 4 MB then.
_TILE_SIZE = 1 << 20


def portable_deform_conv2d(x, kernel, offset, mask, bias, geometry):
    """:func:`tfcorr.ops.deform_conv2d` on checked arguments.

    Args:
        x: (B, H, W, C); B, H and W may be unknown.
        kernel: (kh, kw, C, O).
        offset: (B, Ho, Wo, G * kh * kw * 2), float32.
        mask: (B, Ho, Wo, G * kh * kw) or None.
        bias: (O,) or None.
        geometry: :class:`tfcorr.ops.deform_conv.Geometry`.

    Returns:
        (B, Ho, Wo, O), dtype of x.
    """
    dtype = x.dtype
    kh, kw, channels, outputs = kernel.shape
    groups = geometry.deform_groups
    samples = groups * kh * kw
    batch, height, width, _ = ops.shape(x)
    _, out_height, out_width, _ = ops.shape(offset)
    pixels = batch * out_height * out_width
    if isinstance(pixels, int) and pixels == 0:
        return ops.zeros((batch, out_height, out_width, outputs), dtype=dtype)

    table, row_length = _padded_rows(ops.cast(x, "float32"), groups)
    weights = _group_major(ops.cast(kernel, "float32"), groups)
    pad_top, _ = geometry.pad(0, height, kh)
    pad_left, _ = geometry.pad(1, width, kw)
    tap_y, tap_x, group = _sample_places(kh, kw, geometry)
    integer = _index_dtype(batch, height, width, groups)

    def convolve(tile):
        """Output of one tile: number of each pixel (T,), offset (T, samples * 2), mask (T, samples)."""
        number, shift, *factor = tile
        place = ops.reshape(shift, (-1, samples, 2))
        oy = number // out_width % out_height
        ox = number % out_width
        y = _start(oy, geometry.strides[0], pad_top) + tap_y + place[:, :, 0]
        x = _start(ox, geometry.strides[1], pad_left) + tap_x + place[:, :, 1]
        # False for NaN. What is outside is moved to pixel 0, so that its coordinates get no gradient.
        inside = ops.logical_and(
            ops.logical_and(y > -1.0, y < ops.cast(height, "float32")),
            ops.logical_and(x > -1.0, x < ops.cast(width, "float32")),
        )
        y = ops.where(inside, y, 0.0)
        x = ops.where(inside, x, 0.0)
        y0, x0 = ops.stop_gradient(ops.floor(y)), ops.stop_gradient(ops.floor(x))
        ly, lx = y - y0, x - x0
        # The border shifts everything by one; samples outside point at the two rows of zeros below the image.
        row = ops.cast(ops.where(inside, ops.cast(y0, "int32") + 1, height + 1), integer)
        column = ops.cast(ops.where(inside, ops.cast(x0, "int32") + 1, 0), integer)
        entry = ops.cast(ops.expand_dims(number // (out_height * out_width), 1), integer)
        first = ((entry * (height + 3) + row) * row_length + column) * groups + ops.cast(group, integer)

        def corner(index, weight):
            return ops.take(table, index, axis=0) * ops.expand_dims(weight, 2)

        below = row_length * groups
        values = (
            corner(first, (1.0 - ly) * (1.0 - lx))
            + corner(first + groups, (1.0 - ly) * lx)
            + corner(first + below, ly * (1.0 - lx))
            + corner(first + below + groups, ly * lx)
        )
        if factor:
            values = values * ops.expand_dims(ops.where(inside, factor[0], 0.0), 2)
        return ops.matmul(ops.reshape(values, (-1, samples * (channels // groups))), weights)

    inputs = [ops.arange(pixels, dtype="int32"), ops.reshape(offset, (-1, samples * 2))]
    if mask is not None:
        inputs.append(ops.reshape(ops.cast(mask, "float32"), (-1, samples)))
    tile = max(1, _TILE_SIZE // (kh * kw * channels))
    output = _in_tiles(convolve, inputs, pixels, tile, outputs)
    if bias is not None:
        output = output + ops.cast(bias, "float32")
    return ops.cast(ops.reshape(output, (batch, out_height, out_width, outputs)), dtype)


def _index_dtype(batch, height, width, groups: int) -> str:
    """Integers that count the rows of `_padded_rows`: int32, as TFLite wants it, where that suffices.

    Of unknown sizes nothing can be told; there it is int32.
    """
    if not all(isinstance(size, int) for size in (batch, height, width)):
        return "int32"
    return "int32" if batch * (height + 3) * (width + 2) * groups < 1 << 31 else "int64"


def _padded_rows(x, groups: int):
    """x with a border of zeros as a table of rows, one for each place and group, and the places in a line.

    One line and one column of zeros before the first, one column behind the last and two lines below.
    """
    padded = ops.pad(x, ((0, 0), (1, 2), (1, 1), (0, 0)))
    return ops.reshape(padded, (-1, x.shape[3] // groups)), ops.shape(x)[2] + 2


def _group_major(kernel, groups: int):
    """(kh, kw, C, O) to (groups * kh * kw * C / groups, O), in the order of the samples."""
    kh, kw, channels, outputs = kernel.shape
    split = ops.reshape(kernel, (kh * kw, groups, channels // groups, outputs))
    return ops.reshape(ops.transpose(split, (1, 0, 2, 3)), (-1, outputs))


def _sample_places(kh: int, kw: int, geometry):
    """y and x of each sample's tap, float32, and its group, int32, all (1, samples)."""
    places = [
        (ky * geometry.dilation_rate[0], kx * geometry.dilation_rate[1], group)
        for group in range(geometry.deform_groups)
        for ky in range(kh)
        for kx in range(kw)
    ]
    y, x, group = zip(*places, strict=True)
    return (
        ops.convert_to_tensor([y], dtype="float32"),
        ops.convert_to_tensor([x], dtype="float32"),
        ops.convert_to_tensor([group], dtype="int32"),
    )


def _start(position, stride: int, pad):
    """Where the kernel's first tap stands for each output position, float32 (T, 1)."""
    return ops.cast(ops.expand_dims(position * stride - pad, 1), "float32")


def _in_tiles(function, inputs, rows, tile: int, outputs: int):
    """Maps tiles of the rows of `inputs` to (rows, outputs).

    Args:
        function: from a list of (tile, ...) to (tile, outputs).
        inputs: tensors of `rows` rows.
        rows: an integer, or a tensor if it is unknown; at least 1 if it is known.
        tile: rows of a tile.
        outputs: columns of the result.
    """
    if isinstance(rows, int) and rows <= tile:
        return function(inputs)
    tiles = -(-rows // tile)
    missing = tiles * tile - rows

    def cut(tensor):
        # Rows that fill up the last tile are pixel 0 again, and dropped at the end.
        padded = ops.pad(tensor, [(0, missing)] + [(0, 0)] * (len(tensor.shape) - 1))
        return ops.reshape(padded, (tiles, tile, *tensor.shape[1:]))

    tiled = _map(function, [cut(tensor) for tensor in inputs], (tile, outputs))
    return ops.reshape(tiled, (-1, outputs))[:rows]


def _map(function, inputs, shape):
    """`keras.ops.map` for results of a known shape.

    Under TensorFlow without its probe of the first tile, which costs a tile's time and fails where there is
    none.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.map_fn(
            function, inputs, fn_output_signature=tf.TensorSpec(shape, tf.float32), parallel_iterations=1
        )
    return ops.map(function, inputs)
