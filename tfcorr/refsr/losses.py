"""Losses of C2-Matching (paper, eq. 1 to 7, 10 and 11); eq. 12 and 13 are in `tfcorr.refsr.adversarial`."""

from __future__ import annotations

from dataclasses import dataclass

from keras import ops

from tfcorr.refsr.matching import l2_normalize

#: Squared distances of unit vectors are at most 4: adding this takes a descriptor out of the search.
_EXCLUDED = 10.0


@dataclass(frozen=True)
class TripletTerms:
    """What :func:`triplet_margin_loss` computes.

    Attributes:
        loss: float32 scalar (eq. 1), mean over the samples that count.
        positive: float32 scalar, mean of Pos(p) (eq. 2).
        negative: float32 scalar, mean of Neg(p) (eq. 3).
        accuracy: float32 scalar, share of kept positions whose nearest reference descriptor lies within one
            cell of the true one: what matching will achieve, pointwise.
    """

    loss: object
    positive: object
    negative: object
    accuracy: object


def triplet_margin_loss(
    query,
    reference,
    target,
    valid,
    *,
    margin: float = 1.0,
    safe_radius: float = 4.0,
    minimum_positions: int = 128,
    negatives: str = "matched",
) -> TripletTerms:
    """Triplet margin ranking loss with the hardest negative on both sides (eq. 1 to 3).

    Distances are squared and between unit descriptors: 2 - 2 cos. Negatives lie farther than ``safe_radius``
    cells (Chebyshev, strictly) from the match. As published, the negatives in the reference are searched
    ``"matched"``, among the cells that are some position's match; ``"all"`` searches all of them, as eq. 3
    says.

    Args:
        query: float (B, h, w, C) descriptors of the input, not normalised.
        reference: float (B, H, W, C) descriptors of the reference.
        target: int32 (B, h * w, 2): the reference's cell (y, x) that each query cell matches, row-major.
        valid: bool (B, h * w): which positions have a match.
        margin: m of eq. 1.
        safe_radius: T of eq. 3, in cells.
        minimum_positions: A sample with fewer valid positions does not count.
        negatives: ``"matched"`` (published) or ``"all"`` (paper).

    Returns:
        :class:`TripletTerms`; all zero where no sample counts.

    Raises:
        ValueError: ``negatives`` is neither.
    """
    if negatives not in ("matched", "all"):
        raise ValueError(f"`negatives` must be 'matched' or 'all', got {negatives!r}")
    q, r = _flatten(l2_normalize(query)), _flatten(l2_normalize(reference))
    width, reference_width = ops.shape(query)[2], ops.shape(reference)[2]
    target = ops.cast(target, "int32")
    target_index = ops.expand_dims(target[..., 0] * reference_width + target[..., 1], -1)
    matched = ops.take_along_axis(r, target_index, axis=1)
    kept = ops.cast(valid, "float32")

    # Pos(p), eq. 2.
    positive = 2.0 - 2.0 * ops.sum(q * matched, axis=-1)

    # Neg(p), eq. 3, second part: the reference's descriptor against all of the input.
    own = _cells(ops.shape(q)[1], width)
    distance = 2.0 - 2.0 * ops.matmul(matched, ops.transpose(q, (0, 2, 1)))
    distance = distance + _EXCLUDED * ops.cast(_chebyshev(own, own) <= safe_radius, "float32")
    negative_in_input = ops.min(distance, axis=-1)

    # First part: the input's descriptor against the reference.
    if negatives == "matched":
        similarity = ops.matmul(q, ops.transpose(matched, (0, 2, 1)))
        near = _chebyshev(target, target) <= safe_radius
        excluded = ops.logical_or(near, ops.expand_dims(ops.logical_not(ops.cast(valid, "bool")), 1))
    else:
        similarity = ops.matmul(q, ops.transpose(r, (0, 2, 1)))
        excluded = _chebyshev(target, _cells(ops.shape(r)[1], reference_width)) <= safe_radius
    distance = 2.0 - 2.0 * similarity + _EXCLUDED * ops.cast(excluded, "float32")
    negative = ops.minimum(ops.min(distance, axis=-1), negative_in_input)

    def mean(values):
        return _mean_of_samples(values, kept, minimum_positions)

    return TripletTerms(
        loss=mean(ops.relu(margin + positive - negative)),
        positive=mean(positive),
        negative=mean(negative),
        accuracy=mean(_within_one_cell(q, r, target, reference_width)),
    )


def correlation_divergence(
    student,
    teacher,
    target,
    valid,
    *,
    temperature: float = 0.15,
    support: str = "matched",
    minimum_positions: int = 128,
):
    """How far the student's correlations are from the teacher's: L_kl (eq. 4 to 6).

    For each position of the input its cosines to cells of the reference, divided by the temperature, make a
    distribution (eq. 4); the divergence is KL(teacher || student) (eq. 5). As published, the distribution is
    over the cells that are some kept position's match, each as often as it is one (``"matched"``);
    ``"all"`` is over the whole reference, as eq. 4 says.

    Args:
        student: ``(query, reference)``, float (B, h, w, C) and (B, H, W, C) descriptors, not normalised.
        teacher: the same of the teacher, of the same sizes; no gradient flows into it.
        target: int32 (B, h * w, 2): the reference's cell (y, x) that each query cell matches, row-major.
        valid: bool (B, h * w): which positions have a match and are kept.
        temperature: tau of eq. 4.
        support: ``"matched"`` (published) or ``"all"`` (paper).
        minimum_positions: A sample with fewer valid positions does not count.

    Returns:
        float32 scalar, nats: mean over the kept positions (eq. 6), then over the samples that count; 0 where
        none does.

    Raises:
        ValueError: ``support`` is neither.
    """
    if support not in ("matched", "all"):
        raise ValueError(f"`support` must be 'matched' or 'all', got {support!r}")
    teacher = [ops.stop_gradient(feature) for feature in teacher]
    taught = _log_correlation(*teacher, target, valid, temperature, support)
    learned = _log_correlation(*student, target, valid, temperature, support)
    divergence = ops.sum(ops.exp(taught) * (taught - learned), axis=-1)
    return _mean_of_samples(divergence, ops.cast(valid, "float32"), minimum_positions)


def reconstruction_loss(high_resolution, restored):
    """Mean absolute error (eq. 10; the published "mse" configuration too): two (B, H, W, C) -> scalar."""
    difference = ops.cast(high_resolution, "float32") - ops.cast(restored, "float32")
    return ops.mean(ops.abs(difference))


def perceptual_loss(high_resolution, restored, *, norm: str = "batch"):
    """Distance of the features of two images under a fixed network (eq. 11), without its weight.

    Args:
        high_resolution: float (B, h, w, C) features of the true image; no gradient flows into them.
        restored: the same of the restored image.
        norm: ``"batch"``, the Frobenius norm of the whole difference (published; it grows with the square
            root of the batch and of the image), or ``"channel"``, the sum over channels of each one's norm,
            divided by h * w * C, mean over the batch (eq. 11).

    Returns:
        float32 scalar. Where features are equal, the gradient is 0.

    Raises:
        ValueError: ``norm`` is neither.
    """
    if norm not in ("batch", "channel"):
        raise ValueError(f"`norm` must be 'batch' or 'channel', got {norm!r}")
    truth = ops.stop_gradient(ops.cast(high_resolution, "float32"))
    squared = ops.square(truth - ops.cast(restored, "float32"))
    if norm == "batch":
        return _root(ops.sum(squared))
    volume = 1.0
    for axis in (1, 2, 3):
        volume = volume * ops.cast(ops.shape(truth)[axis], "float32")
    return ops.mean(ops.sum(_root(ops.sum(squared, axis=(1, 2))), axis=-1) / volume)


def _root(squared):
    """Square root whose gradient at 0 is 0 and not infinite."""
    positive = squared > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, squared, 1.0)), 0.0)


def _log_correlation(query, reference, target, valid, temperature, support):
    """Logarithm of cor_pq (eq. 4): (B, h * w, cells of the support), columns that do not count at -1e9."""
    q, r = _flatten(l2_normalize(query)), _flatten(l2_normalize(reference))
    if support == "matched":
        target = ops.cast(target, "int32")
        index = ops.expand_dims(target[..., 0] * ops.shape(reference)[2] + target[..., 1], -1)
        r = ops.take_along_axis(r, index, axis=1)
    logits = ops.matmul(q, ops.transpose(r, (0, 2, 1))) / temperature
    if support == "matched":
        logits = ops.where(ops.expand_dims(ops.cast(valid, "bool"), 1), logits, -1e9)
    return ops.log_softmax(logits, axis=-1)


def _mean_of_samples(values, kept, minimum_positions):
    """(B, N) values and 0/1 weights -> mean over the kept, then over the samples with enough of them."""
    count = ops.sum(kept, axis=-1)
    counts = ops.cast(count >= minimum_positions, "float32")
    per_sample = ops.sum(values * kept, axis=-1) / ops.maximum(count, 1.0)
    return ops.sum(per_sample * counts) / ops.maximum(ops.sum(counts), 1.0)


def _within_one_cell(q, r, target, reference_width):
    nearest = ops.argmax(ops.stop_gradient(ops.matmul(q, ops.transpose(r, (0, 2, 1)))), axis=-1)
    row = ops.floor_divide(nearest, reference_width)
    found = ops.cast(ops.stack([row, nearest - row * reference_width], axis=-1), "int32")
    return ops.cast(ops.max(ops.abs(found - target), axis=-1) <= 1, "float32")


def _flatten(features):
    batch, height, width, channels = (ops.shape(features)[i] for i in range(4))
    return ops.reshape(features, (batch, height * width, channels))


def _cells(count, width):
    """(1, count, 2): (y, x) of the cells of a map in row-major order."""
    number = ops.arange(count, dtype="int32")
    row = ops.floor_divide(number, width)
    return ops.expand_dims(ops.stack([row, number - row * width], axis=-1), 0)


def _chebyshev(a, b):
    """(B, N, 2) and (B, M, 2) cells -> float32 (B, N, M), the larger of the two coordinate differences."""
    a, b = ops.cast(a, "float32"), ops.cast(b, "float32")
    rows = ops.abs(ops.expand_dims(a[..., 0], 2) - ops.expand_dims(b[..., 0], 1))
    columns = ops.abs(ops.expand_dims(a[..., 1], 2) - ops.expand_dims(b[..., 1], 1))
    return ops.maximum(rows, columns)
