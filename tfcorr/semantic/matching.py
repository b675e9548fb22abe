"""From features to a flow: correlation, kernel soft argmax, smoothness, confidence (sections 3.2 and 3.4).

Convention, here and in the whole package: maps are channels last. A flow is ``(dx, dy)``, a grid ``(x, y)``,
both in units in which -1 and +1 are the CENTRES of the border cells (align corners): one cell is 2 / (W - 1).
``flow = grid - identity_grid``. "T2S" lies on the target's grid and points into the source, "S2T" the other
way round. The row of a correlation is the cell that asks, its columns are the cells that are searched, both
row-major.
"""

from __future__ import annotations

from keras import ops


def identity_grid(height, width):
    """Where the cells of a map are: float32 (height, width, 2), (x, y) in [-1, 1]."""
    x, y = ops.meshgrid(_centres(width), _centres(height), indexing="xy")
    return ops.stack([x, y], axis=-1)


def _centres(count):
    """(count,) from -1 to 1; 0 for one cell alone."""
    cells = ops.cast(ops.arange(count), "float32")
    return (2.0 * cells - ops.cast(count - 1, "float32")) / ops.cast(ops.maximum(count - 1, 1), "float32")


def l2_normalize(values, axis: int = -1, epsilon: float = 1e-6):
    """x / sqrt(sum of x^2 + epsilon) along an axis; zeros stay zeros."""
    return values / ops.sqrt(ops.sum(ops.square(values), axis=axis, keepdims=True) + epsilon)


def correlation(query, searched):
    """Cosines of all pairs of cells, negative ones set to 0 (as published).

    Args:
        query: (B, hq, wq, C) features of the image that asks, any floating dtype.
        searched: (B, hs, ws, C) features of the other.

    Returns:
        float32 (B, hq * wq, hs * ws). The other direction is its transpose.
    """
    q, s = (_rows(l2_normalize(ops.cast(f, "float32"))) for f in (query, searched))
    return ops.relu(ops.matmul(q, ops.transpose(s, (0, 2, 1))))


def combine(correlations):
    """One correlation out of those of several levels: their product, rows scaled to unit length.

    Args:
        correlations: sequence of (B, N, M).

    Returns:
        float32 (B, N, M).
    """
    product = correlations[0]
    for other in correlations[1:]:
        product = product * other
    return l2_normalize(product)


def kernel_soft_argmax(
    correlations, query_size, searched_size, *, beta: float | None = 50.0, sigma: float | None = 5.0
):
    """Where each cell finds its match: a soft argmax around the best cell (SFNet; the paper's section 3.2).

    The correlation is multiplied by a Gaussian around its largest value, whose place gets no gradient; then
    the positions are averaged with the weights softmax(beta * correlation). A row of zeros gives the middle
    of the image.

    Args:
        correlations: (B, hq * wq, hs * ws), rows about 1 long, see :func:`combine`.
        query_size: (hq, wq).
        searched_size: (hs, ws).
        beta: inverse temperature of the softmax; None takes the best cell itself (no gradient).
        sigma: deviation of the Gaussian, in cells; None multiplies nothing.

    Returns:
        float32 (B, hq, wq, 2): grid (x, y) in [-1, 1].
    """
    height, width = searched_size
    places = ops.reshape(identity_grid(height, width), (height * width, 2))
    # The largest of one, not `ops.argmax`: Keras tells -0.0 from 0.0 there, with operators that TFLite lacks.
    _, best = ops.top_k(ops.stop_gradient(correlations), k=1)
    best = ops.squeeze(best, axis=-1)
    if beta is None:
        return ops.reshape(ops.take(places, best, axis=0), (-1, *query_size, 2))
    if sigma is not None:
        correlations = correlations * _gaussian(best, height, width, sigma)
    weights = ops.softmax(beta * correlations, axis=-1)
    return ops.reshape(ops.matmul(weights, places), (-1, *query_size, 2))


def _gaussian(best, height, width, sigma):
    """exp(-d^2 / (2 sigma^2)), d in cells from the cell ``best`` (B, N): (B, N, height * width)."""
    row = ops.floor_divide(best, width)
    column = best - row * width

    def along(centre, count):
        cells = ops.cast(ops.arange(count), "float32")
        distance = ops.expand_dims(ops.cast(centre, "float32"), -1) - cells
        return ops.exp(-ops.square(distance) / (2.0 * sigma**2))

    # Separable: exponentials of h + w values a row instead of h * w.
    product = ops.expand_dims(along(row, height), -1) * ops.expand_dims(along(column, width), -2)
    return ops.reshape(product, (ops.shape(best)[0], -1, height * width))


def sample(values, grid):
    """Bilinear samples of a map, corners aligned, zero outside.

    Args:
        values: (B, H, W, C) float.
        grid: (B, h, w, 2), (x, y) in [-1, 1].

    Returns:
        (B, h, w, C), differentiable in both.
    """
    batch, height, width, channels = (ops.shape(values)[i] for i in range(4))
    rows = ops.reshape(values, (batch * height * width, channels))
    start = ops.reshape(ops.arange(batch) * (height * width), (batch, 1, 1))
    x = (grid[..., 0] + 1.0) * 0.5 * ops.cast(width - 1, grid.dtype)
    y = (grid[..., 1] + 1.0) * 0.5 * ops.cast(height - 1, grid.dtype)
    left, top = ops.stop_gradient(ops.floor(x)), ops.stop_gradient(ops.floor(y))
    total = 0.0
    for row, down in ((top, 1.0 - (y - top)), (top + 1.0, y - top)):
        for column, across in ((left, 1.0 - (x - left)), (left + 1.0, x - left)):
            inside = ops.logical_and(
                ops.logical_and(row >= 0, row <= ops.cast(height - 1, row.dtype)),
                ops.logical_and(column >= 0, column <= ops.cast(width - 1, row.dtype)),
            )
            weight = ops.where(inside, down * across, ops.zeros_like(down))
            # Before the cast, as a place far outside need not fit an integer.
            index = ops.where(inside, row * ops.cast(width, row.dtype) + column, ops.zeros_like(row))
            taken = ops.take(rows, ops.cast(index, "int32") + start, axis=0)
            total = total + ops.expand_dims(ops.cast(weight, values.dtype), -1) * taken
    return total


def warp_flow(flow, grid):
    """The flow of the other direction as seen from here: minus its value at the matched places.

    Args:
        flow: (B, H, W, 2) of the other direction, for example T2S.
        grid: (B, h, w, 2) of this direction, for example S2T: where each cell's match lies.

    Returns:
        (B, h, w, 2); equal to this direction's flow where the two agree.
    """
    return -sample(flow, grid)


def smoothness(flow, form: str = "published"):
    """How fast a flow changes from cell to cell: central differences [-1, 0, 1] / 2, zeros outside.

    Args:
        flow: (B, h, w, 2).
        form: ``"published"`` adds the two components before the absolute value, |dx_x + dy_x| and |dx_y +
            dy_y|, as the published kernel spans both channels; ``"components"`` takes each by itself, the L1
            norm of the gradient in SFNet's paper.

    Returns:
        (B, h, w, 2), along x and along y; (B, h, w, 4) for ``"components"``: dx and dy along x, then along y.

    Raises:
        ValueError: ``form`` is neither.
    """
    if form not in ("published", "components"):
        raise ValueError(f"form must be 'published' or 'components', got {form!r}")
    if form == "published":
        flow = ops.sum(flow, axis=-1, keepdims=True)
    across = ops.pad(flow, [[0, 0], [0, 0], [1, 1], [0, 0]])
    down = ops.pad(flow, [[0, 0], [1, 1], [0, 0], [0, 0]])
    along_x = 0.5 * (across[:, :, 2:] - across[:, :, :-2])
    along_y = 0.5 * (down[:, 2:] - down[:, :-2])
    return ops.abs(ops.concatenate([along_x, along_y], axis=-1))


def confidence(flow, other_flow, *, steepness: float = 50.0, threshold: float = 0.08, minmax: bool = False):
    """How well the two directions agree (section 3.4): 1 - sigmoid(b (|difference| - tau)).

    Args:
        flow: (B, h, w, 2) or, for m hypotheses, (B, m, h, w, 2): of one direction.
        other_flow: of the other direction, on the same size of grid.
        steepness: b.
        threshold: tau, in units of the flow.
        minmax: stretch to [0, 1] over all maps of a pair together, as published; this gives even a pair that
            matches nowhere a confidence of 1 somewhere.

    Returns:
        (B, h, w, 1) or (B, m, h, w, 1) in [0, 1].
    """
    shape = ops.shape(flow)
    height, width = shape[-3], shape[-2]
    one, other = (ops.reshape(f, (-1, height, width, 2)) for f in (flow, other_flow))
    grid = one + ops.cast(identity_grid(height, width), one.dtype)
    difference = warp_flow(other, grid) - one
    distance = ops.sqrt(ops.sum(ops.square(difference), axis=-1, keepdims=True))
    mask = ops.reshape(ops.sigmoid(-steepness * (distance - threshold)), (*shape[:-1], 1))
    if minmax:
        axes = tuple(range(1, len(shape)))
        least = ops.min(mask, axis=axes, keepdims=True)
        mask = (mask - least) / ops.maximum(ops.max(mask, axis=axes, keepdims=True) - least, 1e-12)
    return mask


def resize(values, size):
    """Bilinear resizing with aligned corners: the border cells' centres stay where they are.

    Args:
        values: (B, H, W, C) float.
        size: (height, width) of the result.

    Returns:
        (B, height, width, C). A flow keeps its values, as its unit is the image's side.
    """
    batch, _, width, channels = (ops.shape(values)[i] for i in range(4))
    height, columns = size
    # Two matrix products: small maps are enlarged here, and every backend and TFLite has them.
    rows = ops.cast(_interpolation(ops.shape(values)[1], height), values.dtype)
    down = ops.matmul(rows, ops.reshape(values, (batch, -1, width * channels)))
    across = ops.cast(_interpolation(width, columns), values.dtype)
    return ops.matmul(across, ops.reshape(down, (batch, height, width, channels)))


def _interpolation(count, wanted):
    """(wanted, count): the share that each of ``count`` cells has in each of the ``wanted`` ones."""
    places = (_centres(wanted) + 1.0) * 0.5 * ops.cast(count - 1, "float32")
    distance = ops.expand_dims(places, -1) - ops.cast(ops.arange(count), "float32")
    return ops.relu(1.0 - ops.abs(distance))


def flow_in_pixels(flow, other_size):
    """A flow from [-1, 1] units to pixels.

    Args:
        flow: (B, H, W, 2), (dx, dy), on the grid of H x W pixels of one image.
        other_size: (height, width) of the image that it points into, in pixels.

    Returns:
        (B, H, W, 2), (dx, dy) in pixels: position in the other image = position here + flow.
    """
    height, width = ops.shape(flow)[1], ops.shape(flow)[2]
    own = identity_grid(height, width)
    factor = [0.5 * (other_size[1] - 1), 0.5 * (other_size[0] - 1)]
    own_factor = ops.stack([0.5 * ops.cast(width - 1, "float32"), 0.5 * ops.cast(height - 1, "float32")])
    return (flow + own + 1.0) * ops.convert_to_tensor(factor, flow.dtype) - (own + 1.0) * own_factor


def _rows(features):
    """(B, h, w, C) -> (B, h * w, C)."""
    batch, height, width, channels = (ops.shape(features)[i] for i in range(4))
    return ops.reshape(features, (batch, height * width, channels))
