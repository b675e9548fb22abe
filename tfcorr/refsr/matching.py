"""Correspondences and the offsets made of them (paper, eq. 4 and 8, and the published rule of nine votes).

Convention: indices and offsets are ``(y, x)`` in feature cells; offsets handed to the deformable convolution
are ``(dy, dx)`` in cells of the feature that is sampled.
"""

from __future__ import annotations

from keras import ops

from tfcorr.ops import Matches, match_patches

PATCH_SIZE = 3


def l2_normalize(features, epsilon: float = 1e-12):
    """Scales each descriptor to unit length; (..., C) float -> same shape, float32."""
    features = ops.cast(features, "float32")
    norm = ops.sqrt(ops.sum(ops.square(features), axis=-1, keepdims=True))
    return features / ops.maximum(norm, epsilon)


def correspondences(query, reference, *, implementation: str | None = None) -> Matches:
    """For each 3x3 patch of the query, the most similar patch of the reference (eq. 8).

    The paper's correlation is pointwise; the published code matches 3x3 patches of normalised descriptors,
    which is what this does.

    Args:
        query: (B, Hq, Wq, C) descriptors, not normalised; at least 3x3.
        reference: (B, Hr, Wr, C) descriptors, any size of at least 3x3.
        implementation: As in :func:`tfcorr.ops.match_patches`.

    Returns:
        :class:`tfcorr.ops.Matches`: ``index`` int32 (B, Hq - 2, Wq - 2), row-major into the reference's
        (Hr - 2, Wr - 2) patches by their top-left cells; ``score`` float32, the cosine of the two patches.
    """
    return match_patches(
        l2_normalize(query), l2_normalize(reference), patch_size=PATCH_SIZE, implementation=implementation
    )


def flow_from_index(index, reference_width):
    """Displacement from each query patch to its match.

    Args:
        index: int32 (B, h - 2, w - 2) from :func:`correspondences`.
        reference_width: Width Wr of the reference's feature map, in cells.

    Returns:
        float32 (B, h - 2, w - 2, 2): (dy, dx) in cells, match minus position.
    """
    columns = ops.cast(reference_width, "int32") - (PATCH_SIZE - 1)
    height, width = ops.shape(index)[1], ops.shape(index)[2]
    row = ops.floor_divide(index, columns)
    column = index - row * columns
    dy = row - ops.reshape(ops.arange(height, dtype="int32"), (1, height, 1))
    dx = column - ops.reshape(ops.arange(width, dtype="int32"), (1, 1, width))
    return ops.cast(ops.stack([dy, dx], axis=-1), "float32")


def pre_offsets(index, reference_width):
    """The pre-offset p0 of each of the nine kernel points (eq. 9 as published).

    Equation 9 has one p0 a position. The published code lets each of the nine patches that cover a pixel vote
    once: kernel point (i, j) takes the flow of the patch whose top-left cell lies (i, j) up and left of the
    position. Where no patch exists the flow is zero.

    Args:
        index: int32 (B, h - 2, w - 2) from :func:`correspondences`.
        reference_width: Width of the reference's conv3_1 map, in cells.

    Returns:
        float32 (B, h, w, 18): (dy, dx) of the kernel points in row-major order, in cells of conv3_1.
    """
    flow = flow_from_index(index, reference_width)
    votes = [
        ops.pad(flow, [[0, 0], [i, PATCH_SIZE - 1 - i], [j, PATCH_SIZE - 1 - j], [0, 0]])
        for i in range(PATCH_SIZE)
        for j in range(PATCH_SIZE)
    ]
    return ops.concatenate(votes, axis=-1)


def refine_offsets(offsets, scale: int):
    """Pre-offsets of a finer level: values repeated ``scale`` times both ways and multiplied by ``scale``.

    (B, h, w, 18) -> (B, scale * h, scale * w, 18), in cells of a map ``scale`` times finer.
    """
    if scale == 1:
        return offsets
    return ops.repeat(ops.repeat(offsets * float(scale), scale, axis=1), scale, axis=2)


def matched_cells(feature, offsets):
    """The cell of a reference's map at the matched place of each position.

    Args:
        feature: (B, Hr, Wr, C), of any float dtype.
        offsets: float32 (B, H, W, 18), :func:`pre_offsets` in cells of ``feature``; that of the middle kernel
            point counts, rounded to whole cells.

    Returns:
        (B, H, W, C), the dtype of ``feature``; zero where a match lies outside.
    """
    batch, rows, columns, channels = (ops.shape(feature)[i] for i in range(4))
    height, width = ops.shape(offsets)[1], ops.shape(offsets)[2]
    middle = PATCH_SIZE * PATCH_SIZE // 2
    flow = ops.cast(ops.round(offsets[..., 2 * middle : 2 * middle + 2]), "int32")
    y = flow[..., 0] + ops.reshape(ops.arange(height, dtype="int32"), (1, -1, 1))
    x = flow[..., 1] + ops.reshape(ops.arange(width, dtype="int32"), (1, 1, -1))
    inside = ops.logical_and(ops.logical_and(y >= 0, y < rows), ops.logical_and(x >= 0, x < columns))
    index = ops.clip(y, 0, rows - 1) * columns + ops.clip(x, 0, columns - 1)
    index = index + ops.reshape(ops.arange(batch, dtype="int32"), (-1, 1, 1)) * (rows * columns)
    cells = ops.take(ops.reshape(feature, (-1, channels)), index, axis=0)
    return cells * ops.cast(ops.expand_dims(inside, -1), feature.dtype)
