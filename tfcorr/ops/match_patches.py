"""Best-matching patches between two feature maps, by normalised correlation.

One public function, :func:`match_patches`, over two implementations: the compiled op (`custom_ops/`) and a
portable one in `keras.ops`. Both use that the correlation of two p x p patches is the sum of p * p shifted
pointwise correlations, so that one matrix product over C channels and a short shifted sum replace a product
over p * p * C; and both keep a running maximum over tiles, so that the correlation volume never exists.

Convention: maps are (batch, y, x, channels); a patch is named by its top-left cell, row-major in the grid of
the whole patches of its map.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from tfcorr.ops import library

# Added to every patch norm, as the published matching does, so that an all-zero patch scores 0.
NORM_EPSILON = 1e-5

# Largest side of the portable implementation's tiles, in patches. Two tiles of 32 x 32 patches correlate in
# 34**4 floats, 5 MB: small enough for a cache, with the halo that is computed twice below a third.
_PORTABLE_TILE = 32


class Matches(NamedTuple):
    """What :func:`match_patches` returns.

    Attributes:
        index: (B, Hq - p + 1, Wq - p + 1) int32, the best reference patch, row-major in the reference's grid
            of (Hr - p + 1) x (Wr - p + 1) whole patches.
        score: the same shape, float32, its normalised correlation: in [-1, 1] up to rounding.
    """

    index: Any
    score: Any


def match_patches(query, reference, *, patch_size: int = 3, implementation: str | None = None) -> Matches:
    """Finds for every patch of `query` the patch of `reference` with the highest normalised correlation.

    The matching step of C2-Matching (section 3.3, eq. 8), with the published patches of 3 x 3 descriptors:
    over the p * p * C numbers q of a query patch and r of a reference patch,

        index = argmax_r  q . r / (|r| + 1e-5)            ties go to the lowest index
        score = max_r     q . r / (|r| + 1e-5) / (|q| + 1e-5)

    The query's norm is divided out after the maximum, so that it never changes the choice. Features are used
    as they are given: normalise them first where the method asks for it. The function is not differentiable:
    it may stand in a training graph, and lets no gradient through.

    Args:
        query: (B, Hq, Wq, C), any floating dtype; computed in float32.
        reference: (B, Hr, Wr, C), of any height and width.
        patch_size: p >= 1, the side of the square patches, in feature cells.
        implementation: `"custom"` (compiled), `"reference"` (`keras.ops`, any backend, converts to TFLite
            with built-in operators), or `None` for the default, see :func:`tfcorr.ops.implementations`.

    Returns:
        `Matches(index, score)`: int32 and float32, both (B, Hq - p + 1, Wq - p + 1). An index counts the
        reference's whole patches in rows of Wr - p + 1. Where features are NaN the index is still in range,
        and the score means nothing.

    Raises:
        ValueError: for inputs that are not 4-D and floating, of different batch or channels, without
            channels, or smaller than a patch; for `patch_size` < 1; for an unknown `implementation`.
        tfcorr.errors.TfcorrError: where `"custom"` is asked for and is not there.
    """
    operation = MatchPatches(patch_size=patch_size, implementation=implementation)
    if keras.backend.is_keras_tensor(query) or keras.backend.is_keras_tensor(reference):
        return Matches(*operation(query, reference))
    # Without Keras' wrapping, which would bury what an error says under the arguments' values.
    return Matches(*operation.call(query, reference))


@keras.saving.register_keras_serializable(package="tfcorr")
class MatchPatches(keras.Operation):
    """:func:`match_patches` as a Keras operation, so that it also takes the inputs of a functional model."""

    def __init__(self, *, patch_size: int = 3, implementation: str | None = None):
        super().__init__()
        if isinstance(patch_size, bool) or not isinstance(patch_size, int) or patch_size < 1:
            raise ValueError(f"patch_size must be a whole number of at least 1, got {patch_size!r}.")
        self.patch_size = patch_size
        self.implementation = implementation

    def call(self, query, reference):
        query = ops.convert_to_tensor(query)
        reference = ops.convert_to_tensor(reference)
        _check(query, reference, self.patch_size)
        # Stopped on both sides: no gradient is asked of the loops, and none of the integer index.
        query = ops.stop_gradient(ops.cast(query, "float32"))
        reference = ops.stop_gradient(ops.cast(reference, "float32"))
        if library.resolve("match_patches", self.implementation) == "custom":
            index, score = library.load().tfcorr_match_patches(
                query=query, reference=reference, patch_size=self.patch_size
            )
        else:
            index, score = _portable(query, reference, self.patch_size)
        return index, ops.stop_gradient(score)

    def compute_output_spec(self, query, reference):
        _check(query, reference, self.patch_size)
        shape = (
            query.shape[0] if query.shape[0] is not None else reference.shape[0],
            *(None if size is None else size - self.patch_size + 1 for size in query.shape[1:3]),
        )
        return keras.KerasTensor(shape, dtype="int32"), keras.KerasTensor(shape, dtype="float32")


def _check(query, reference, patch_size: int) -> None:
    """Raises ValueError for what the static shapes and dtypes already show to be wrong."""
    seen = f"query {tuple(query.shape)} and reference {tuple(reference.shape)}, patch_size {patch_size}"
    if len(query.shape) != 4 or len(reference.shape) != 4:
        raise ValueError(f"match_patches expects two maps (batch, height, width, channels), got {seen}.")
    for name, tensor in (("query", query), ("reference", reference)):
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(f"match_patches expects floating {name} features, got {dtype}.")
        if any(size is not None and size < patch_size for size in tensor.shape[1:3]):
            raise ValueError(f"match_patches expects maps of at least patch_size on each side, got {seen}.")
    for axis, name in ((0, "batch"), (3, "channels")):
        sizes = query.shape[axis], reference.shape[axis]
        if None not in sizes and sizes[0] != sizes[1]:
            raise ValueError(f"match_patches expects the same {name} in both maps, got {seen}.")
    if query.shape[3] is None and reference.shape[3] is None:
        raise ValueError(f"match_patches expects a known number of channels, got {seen}.")
    if 0 in (query.shape[3], reference.shape[3]):
        raise ValueError(f"match_patches expects at least one channel, got {seen}.")


def _portable(query, reference, patch_size: int):
    """The function in `keras.ops`: for each tile of query patches a running maximum over reference tiles.

    Args:
        query: (B, Hq, Wq, C) float32; reference: (B, Hr, Wr, C) float32. Sizes may be unknown.
        patch_size: p >= 1.

    Returns:
        index, score: as :func:`match_patches`.
    """
    halo = patch_size - 1
    batch, query_height, query_width, _ = ops.shape(query)
    _, reference_height, reference_width, _ = ops.shape(reference)
    rows, cols = query_height - halo, query_width - halo
    reference_cols = reference_width - halo
    query_tiles = _TileGrid(rows, cols)
    reference_tiles = _TileGrid(reference_height - halo, reference_cols)

    def search(b, query_tile):
        """Best reference patch of each position of one query tile, over all reference tiles."""

        def visit(k, best, best_index):
            reference_y, reference_x = reference_tiles.origin(k)
            reference_tile = _tile(reference, b, reference_y, reference_x, reference_tiles, halo)
            similarity = _similarity(query_tile, reference_tile, query_tiles, reference_tiles, halo)
            value, local = _first_maximum(similarity)
            wide = reference_tiles.cols + halo
            index = (reference_y + local // wide) * reference_cols + reference_x + local % wide
            # Tiles are not visited in the order of the indices, so ties are settled here.
            better = ops.logical_or(
                value > best, ops.logical_and(ops.equal(value, best), ops.less(index, best_index))
            )
            return k + 1, ops.where(better, value, best), ops.where(better, index, best_index)

        length = query_tiles.extent(halo)
        state = (
            0,
            ops.full((length,), float("-inf"), dtype="float32"),
            ops.zeros((length,), dtype="int32"),
        )
        return ops.while_loop(lambda k, *_: k < reference_tiles.count, visit, state)[1:]

    # For each output, which batch entry and position it is: a tile's results reach the outputs by a gather,
    # since no operator that writes into a part of a tensor exists everywhere.
    total = batch * rows * cols
    position = ops.arange(total, dtype="int32")
    x = position % cols
    y = position // cols % rows
    entry = position // (rows * cols)

    def match_tile(t, index, score):
        b = t // query_tiles.count
        tile_y, tile_x = query_tiles.origin(t % query_tiles.count)
        query_tile = _tile(query, b, tile_y, tile_x, query_tiles, halo)
        best, best_index = search(b, query_tile)
        norm = _patch_norms(query_tile, query_tiles, halo)
        best = best / (norm + NORM_EPSILON)
        local_y, local_x = y - tile_y, x - tile_x
        inside = ops.equal(entry, b)
        for local, size in ((local_y, query_tiles.rows), (local_x, query_tiles.cols)):
            inside = ops.logical_and(inside, ops.logical_and(local >= 0, local < size))
        flat = ops.where(inside, local_y * (query_tiles.cols + halo) + local_x, 0)
        index = ops.where(inside, ops.take(best_index, flat, axis=0), index)
        score = ops.where(inside, ops.take(best, flat, axis=0), score)
        return t + 1, index, score

    state = (0, ops.zeros((total,), dtype="int32"), ops.zeros((total,), dtype="float32"))
    tiles = batch * query_tiles.count
    _, index, score = ops.while_loop(lambda t, *_: t < tiles, match_tile, state)
    shape = (batch, rows, cols)
    return ops.reshape(index, shape), ops.reshape(score, shape)


class _TileGrid:
    """Tiles of one size that cover a grid of patches; neighbours overlap where the size does not divide it.

    Sizes are Python integers where they are known, and scalar tensors elsewhere.
    """

    def __init__(self, rows, cols):
        self._grid_rows, self._grid_cols = rows, cols
        tiles_y, self._tiles_x = -(-rows // _PORTABLE_TILE), -(-cols // _PORTABLE_TILE)
        # Equal shares: two tiles of 19 for 38 patches, not 32 and an overlapping 32.
        self.rows, self.cols = -(-rows // tiles_y), -(-cols // self._tiles_x)
        self.count = tiles_y * self._tiles_x

    def origin(self, number):
        """(y, x) of the first patch of a tile. The last ones move back to stay inside the grid."""
        y = ops.minimum(number // self._tiles_x * self.rows, self._grid_rows - self.rows)
        x = ops.minimum(number % self._tiles_x * self.cols, self._grid_cols - self.cols)
        return y, x

    def extent(self, halo: int):
        """Length of a tile's flat rows, halo included, from its first patch to its last."""
        return (self.rows - 1) * (self.cols + halo) + self.cols


def _tile(features, b, y, x, grid: _TileGrid, halo: int):
    """The cells under one tile of patches: ((rows + halo) * (cols + halo), C)."""
    channels = features.shape[3]
    size = (1, grid.rows + halo, grid.cols + halo, channels)
    return ops.reshape(ops.slice(features, (b, y, x, 0), size), (-1, channels))


def _similarity(query_tile, reference_tile, query_grid: _TileGrid, reference_grid: _TileGrid, halo: int):
    """q . r / (|r| + 1e-5) for all pairs of patches of two tiles, -inf where no reference patch is.

    Both tiles are flat rows of cells, so that one step right is one step along an axis of their correlation
    and one step down is the tile's width. Between two rows lie `halo` positions that are no patches.
    """
    correlation = ops.matmul(query_tile, ops.transpose(reference_tile))
    query_wide, reference_wide = query_grid.cols + halo, reference_grid.cols + halo
    query_length = query_wide * (query_grid.rows + halo) - halo
    reference_length = reference_wide * (reference_grid.rows + halo) - halo
    rows = _sum(correlation[j : j + query_length, j : j + reference_length] for j in range(halo + 1))
    query_length, reference_length = query_grid.extent(halo), reference_grid.extent(halo)
    patches = _sum(
        rows[
            i * query_wide : i * query_wide + query_length,
            i * reference_wide : i * reference_wide + reference_length,
        ]
        for i in range(halo + 1)
    )
    norm = _patch_norms(reference_tile, reference_grid, halo)
    is_patch = ops.arange(reference_length, dtype="int32") % reference_wide < reference_grid.cols
    # The norm of a patch with a NaN or an infinity is not below infinity: such a patch is never chosen.
    usable = ops.logical_and(is_patch, norm < float("inf"))
    similarity = patches / ops.expand_dims(norm + NORM_EPSILON, 0)
    return ops.where(ops.expand_dims(usable, 0), similarity, float("-inf"))


def _first_maximum(similarity):
    """The greatest value of each row and its lowest column; of a row of NaN the last column.

    Not `ops.argmax`: TensorFlow promises no order of ties, Keras tells -0.0 from 0.0 there, and does so with
    operators that TFLite has not.
    """
    value = ops.max(similarity, axis=1)
    last = ops.shape(similarity)[1] - 1
    column = ops.expand_dims(ops.arange(last + 1, dtype="int32"), 0)
    is_best = ops.equal(similarity, ops.expand_dims(value, 1))
    return value, ops.min(ops.where(is_best, column, last), axis=1)


def _patch_norms(tile, grid: _TileGrid, halo: int):
    """Euclidean norm of each patch of a tile, by flat position."""
    wide = grid.cols + halo
    energy = ops.sum(ops.square(tile), axis=1)
    length = wide * (grid.rows + halo) - halo
    rows = _sum(energy[j : j + length] for j in range(halo + 1))
    length = grid.extent(halo)
    return ops.sqrt(_sum(rows[i * wide : i * wide + length] for i in range(halo + 1)))


def _sum(terms):
    """Sum from the first term to the last: `sum` would add them to an integer 0."""
    total = None
    for term in terms:
        total = term if total is None else total + term
    return total
