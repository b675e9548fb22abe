"""What a reference shows beyond the reach of a single-image network, to the pixel; not in the paper.

The base restores the reference from its own reduced version; what it gets wrong there is detail that a single
image does not tell. Where the reference shows the same as the input, that *residual* is just what the base's
result of the input lacks too. It has to be put into place to the pixel, but matches are of 4x4 pixels: around
each match, the place is sought where the two results of the base agree best, that of the input and that of
the reduced reference, which are images of one kind.

Convention: positions and flows are (y, x), in pixels of the output and of the reference.
"""

from __future__ import annotations

import numpy as np
from keras import ops

from tfcorr.ops import deform_conv2d
from tfcorr.refsr import SCALE
from tfcorr.refsr.upsampling import bicubic_reduction

#: Channels of a reference's detail: its residual, and the luma of the base's result.
DETAIL_WIDTH = 4

_LUMA = (0.299, 0.587, 0.114)
# A cell is compared by the 16x16 pixels around it, as 8x8 means of 2x2.
_SAMPLES = 8
_FIRST = -6
# Cells around one that its flow is smoothed with; the power of their correlation that they count by; and how
# far from their median, in pixels, they count no more.
_AROUND = (-2, -1, 0, 1, 2)
_TRUST = 8
_APART = 2.0
# Shifts that are tried: first 5x5 with a step of two pixels, then 5x5 with a step of one around the best.
_SHIFTS = 5


def reference_detail(base, reference):
    """The detail of references.

    Args:
        base: a `tfcorr.refsr.single_image.SingleImageNetwork`.
        reference: (B, H, W, 3) float in [0, 1], at least 12x12; what is beyond multiples of 4 is cut off.

    Returns:
        float32 (B, H, W, 4): the residual of the base's result, RGB, and that result's luma.
    """
    reference = ops.cast(reference, "float32")
    height, width = (ops.shape(reference)[axis] // SCALE * SCALE for axis in (1, 2))
    reference = reference[:, :height, :width]
    restored = base(bicubic_reduction(reference))
    return ops.concatenate([reference - restored, luma(restored)], axis=-1)


def luma(image):
    """(B, H, W, 3) -> (B, H, W, 1), the weighted sum of red, green and blue."""
    return ops.sum(image * ops.convert_to_tensor([[[_LUMA]]], image.dtype), axis=-1, keepdims=True)


def alignment_values() -> int:
    """How many values of 4 bytes the alignment of one cell takes at its peak."""
    window = (2 * _SAMPLES + _SHIFTS - 2) ** 2
    # The larger window with its places, the template, and a product with it.
    return 2 * window + 3 * _SAMPLES**2 + 2 * _SHIFTS**2


def align(query, reference, flow):
    """Moves the match of each cell to the pixel, and fractions of it.

    The measure is the correlation coefficient of the 16x16 pixels around the cell with those around the
    match, reduced to 8x8; shifts of up to 6 pixels are tried. The fraction is the vertex of parabolas through
    the neighbours of the best. What single cells say is noisy: each takes the mean of the 5x5 around it that
    lie within 2 pixels of their median, those with a high correlation most.

    Args:
        query: float32 (B, 4 h, 4 w, 1).
        reference: float32 (B, H, W, 1).
        flow: float32 (B, h, w, 2), whole numbers: from each cell to its match.

    Returns:
        ``(flow, correlation)``: float32 (B, h, w, 2), and (B, h, w, 1) in [-1, 1].
    """
    query, reference = _means_of_2x2(query), _means_of_2x2(reference)
    height, width = ops.shape(flow)[1], ops.shape(flow)[2]
    y = ops.reshape(SCALE * ops.arange(height, dtype="int32"), (1, -1, 1))
    x = ops.reshape(SCALE * ops.arange(width, dtype="int32"), (1, 1, -1))
    cells = (y + ops.zeros_like(flow[..., 0], "int32"), x + ops.zeros_like(flow[..., 1], "int32"))
    template = _windows(query, cells, [_FIRST + 2 * i for i in range(_SAMPLES)])
    template = template - ops.mean(template, axis=(3, 4), keepdims=True)
    scale = ops.sqrt(ops.sum(ops.square(template), axis=(3, 4), keepdims=True))
    template = template / ops.maximum(scale, 1e-6)

    whole = ops.cast(flow, "int32")
    reach = _SHIFTS // 2
    window = _windows(
        reference,
        (cells[0] + whole[..., 0], cells[1] + whole[..., 1]),
        [_FIRST + 2 * (i - reach) for i in range(_SAMPLES + _SHIFTS - 1)],
    )
    best = _best(_correlations(template, window, 1))
    whole = whole + 2 * _shift(best)
    window = _windows(
        reference,
        (cells[0] + whole[..., 0], cells[1] + whole[..., 1]),
        [_FIRST - reach + i for i in range(2 * _SAMPLES + _SHIFTS - 2)],
    )
    values = _correlations(template, window, 2)
    # Those on the rim only serve as neighbours.
    inner = [_SHIFTS * i + j for i in range(1, _SHIFTS - 1) for j in range(1, _SHIFTS - 1)]
    rim = [0.0 if k in inner else 4.0 for k in range(_SHIFTS**2)]
    best = _best(values - ops.convert_to_tensor(rim, "float32"))
    here = _taken(values, best)
    vertical = _vertex(_taken(values, best - _SHIFTS), here, _taken(values, best + _SHIFTS))
    horizontal = _vertex(_taken(values, best - 1), here, _taken(values, best + 1))
    fraction = ops.stack([vertical, horizontal], axis=-1)
    found = ops.cast(whole + _shift(best), "float32") + fraction
    correlation = ops.expand_dims(here, -1)
    return _smoothed(found, correlation), correlation


def _smoothed(flow, correlation):
    """The flow (B, h, w, 2) with less noise, by the correlations (B, h, w, 1), see :func:`align`."""
    around = _neighbours(flow)  # (B, h, w, 25, 2)
    ordered = ops.top_k(ops.transpose(around, (0, 1, 2, 4, 3)), len(_AROUND) ** 2 // 2 + 1)[0]
    median = ordered[..., -1]
    distance = ops.max(ops.abs(around - ops.expand_dims(median, 3)), axis=-1, keepdims=True)
    weight = ops.power(ops.maximum(_neighbours(correlation), 1e-3), _TRUST)
    nearness = np.exp([-(y**2 + x**2) / 2.0 for y in _AROUND for x in _AROUND])
    weight = weight * ops.convert_to_tensor(nearness.reshape(-1, 1), "float32")
    weight = ops.where(distance < _APART, weight, ops.zeros_like(weight))
    total = ops.sum(weight, axis=3)
    # Where nothing counts, the median.
    return (ops.sum(weight * around, axis=3) + 1e-12 * median) / (total + 1e-12)


def _neighbours(field):
    """The values of a map (B, h, w, C) around each cell: (B, h, w, 25, C); at the border the last ones."""
    height, width = ops.shape(field)[1], ops.shape(field)[2]
    rows, columns = ops.arange(height, dtype="int32"), ops.arange(width, dtype="int32")
    found = []
    for dy in _AROUND:
        moved = ops.take(field, ops.clip(rows + dy, 0, height - 1), axis=1)
        found += [ops.take(moved, ops.clip(columns + dx, 0, width - 1), axis=2) for dx in _AROUND]
    return ops.stack(found, axis=3)


def sample(image, flow):
    """The values of a map at the places that cells of 4x4 pixels flow to, bilinear; 0 outside.

    Args:
        image: (B, H, W, C).
        flow: float32 (B, h, w, 2), one for each cell.

    Returns:
        (B, 4 h, 4 w, C), the dtype of ``image``.
    """
    offset = ops.repeat(ops.repeat(flow, SCALE, axis=1), SCALE, axis=2)
    channels = image.shape[-1]
    kernel = ops.reshape(ops.eye(channels, dtype=image.dtype), (1, 1, channels, channels))
    size = (ops.shape(offset)[1], ops.shape(offset)[2])
    return deform_conv2d(image, kernel, offset, padding="valid", output_size=size)


def _means_of_2x2(image):
    """(B, H, W, 1) -> (B, H, W), each pixel with its right and lower neighbours; the last ones repeated."""
    image = ops.cast(image[..., 0], "float32")
    image = ops.concatenate([image, image[:, -1:]], axis=1)
    image = ops.concatenate([image, image[:, :, -1:]], axis=2)
    return (image[:, :-1, :-1] + image[:, 1:, :-1] + image[:, :-1, 1:] + image[:, 1:, 1:]) / 4.0


def _windows(image, at, steps: list[int]):
    """Values of (B, H, W) around places (two int32 (B, h, w)): (B, h, w, n, n) for n steps both ways.

    Places outside read the nearest pixel.
    """
    batch, height, width = (ops.shape(image)[i] for i in range(3))
    steps = ops.convert_to_tensor(steps, "int32")
    rows = ops.clip(ops.expand_dims(at[0], -1) + steps, 0, height - 1)
    columns = ops.clip(ops.expand_dims(at[1], -1) + steps, 0, width - 1)
    rows = rows + ops.reshape(ops.arange(batch, dtype="int32"), (-1, 1, 1, 1)) * height
    index = ops.expand_dims(rows * width, -1) + ops.expand_dims(columns, -2)
    return ops.take(ops.reshape(image, (-1,)), index)


def _correlations(template, window, step: int):
    """Correlation coefficients of windows with a template, for all shifts: (B, h, w, shifts * shifts).

    ``template`` (B, h, w, n, n) has mean 0 and length 1; samples in ``window`` are ``step`` entries apart.
    """
    found = []
    reach = step * (_SAMPLES - 1) + 1
    for i in range(_SHIFTS):
        for j in range(_SHIFTS):
            part = window[..., i : i + reach : step, j : j + reach : step]
            total = ops.sum(part, axis=(3, 4))
            variance = ops.sum(ops.square(part), axis=(3, 4)) - ops.square(total) / _SAMPLES**2
            product = ops.sum(part * template, axis=(3, 4))
            found.append(product / ops.sqrt(ops.maximum(variance, 1e-6)))
    return ops.stack(found, axis=-1)


def _best(values):
    """Index of the first greatest of (..., n), int32; Keras' own takes operators that TFLite has not."""
    count = _SHIFTS**2
    numbers = ops.arange(count, dtype="int32")
    greatest = ops.max(values, axis=-1, keepdims=True)
    return ops.minimum(ops.min(ops.where(values >= greatest, numbers, count), axis=-1), count - 1)


def _shift(best):
    """Index among the shifts -> int32 (..., 2), (y, x) in steps."""
    row = ops.floor_divide(best, _SHIFTS)
    return ops.stack([row, best - row * _SHIFTS], axis=-1) - _SHIFTS // 2


def _taken(values, index):
    """values (..., n) at index (...)."""
    return ops.sum(values * ops.one_hot(index, _SHIFTS**2, dtype=values.dtype), axis=-1)


def _vertex(before, here, behind):
    """Where the parabola through three values at -1, 0, 1 is highest, cut to half a step; 0 if it is flat."""
    curvature = before - 2.0 * here + behind
    vertex = 0.5 * (before - behind) / ops.minimum(curvature, -1e-6)
    return ops.clip(vertex, -0.5, 0.5)
