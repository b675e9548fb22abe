"""The losses of teacher and student (paper, eq. 2, 4 and 7).

The published student loss is not public and the paper leaves the reductions open but for eq. 4: sum over the
two components of the flow, mean over the cells. Here a loss is the mean over the batch, the hypotheses and
the (valid) cells; ``components`` chooses between the sum and the mean over what a cell has.
"""

from __future__ import annotations

from keras import ops

from tfcorr.semantic.matching import smoothness

_COMPONENTS = ("sum", "mean")


def cell_mean(values, valid=None, components: str = "sum"):
    """Mean over batch, hypotheses and cells of what stands in the cells.

    Args:
        values: (B, h, w, c) or (B, m, h, w, c).
        valid: (B, h, w), bool or float weights: which cells count; None for all.
        components: ``"sum"`` or ``"mean"`` over the last axis.

    Returns:
        Scalar; 0 where no cell counts.

    Raises:
        ValueError: ``components`` is neither.
    """
    if components not in _COMPONENTS:
        raise ValueError(f"components must be 'sum' or 'mean', got {components!r}")
    values = (ops.sum if components == "sum" else ops.mean)(values, axis=-1)
    if valid is None:
        return ops.mean(values)
    valid = ops.cast(valid, values.dtype)
    if len(values.shape) == len(valid.shape) + 1:
        values = ops.mean(values, axis=1)
    return ops.sum(values * valid) / ops.maximum(ops.sum(valid), 1.0)


def flow_loss(prediction, target, *, weights=None, confidence=None, valid=None, components: str = "sum"):
    """Squared error of a flow: L_mse of eq. 2 and 4, and with ``confidence`` L_cal of eq. 7.

    Args:
        prediction: (B, h, w, 2), or (B, m, h, w, 2).
        target: (B, h, w, 2), or (B, m, h, w, 2): the same prediction is compared with each hypothesis, or the
            same truth with each prediction.
        weights: of eq. 3, (B, m, h, w, 2), or None.
        confidence: C of eq. 7, (B, m, h, w, 1), or None.
        valid, components: see :func:`cell_mean`.

    Returns:
        Scalar.
    """
    rank = max(len(prediction.shape), len(target.shape))
    prediction, target = (v if len(v.shape) == rank else ops.expand_dims(v, 1) for v in (prediction, target))
    error = ops.square(prediction - target)
    for factor in (weights, confidence):
        if factor is not None:
            error = error * ops.cast(factor, error.dtype)
    return cell_mean(error, valid, components)


def smoothness_loss(flow, *, form: str = "published", components: str = "sum"):
    """L_smooth of eq. 2 and 4 (SFNet's).

    Args:
        flow: (B, h, w, 2) or (B, m, h, w, 2).
        form: see :func:`tfcorr.semantic.matching.smoothness`.
        components: see :func:`cell_mean`; ``"sum"`` adds the two directions of the derivative.

    Returns:
        Scalar.
    """
    flow = ops.reshape(flow, (-1, *ops.shape(flow)[-3:]))
    return cell_mean(smoothness(flow, form), None, components)


def teacher_loss(
    prediction,
    truth,
    divergence=None,
    *,
    valid=None,
    smooth_weight: float = 0.05,
    divergence_weight: float = 0.01,
    smooth_form: str = "published",
    components: str = "sum",
) -> dict:
    """The teacher's loss (eq. 2).

    Args:
        prediction: F(l), (B, h, w, 2) or (B, m, h, w, 2).
        truth: (B, h, w, 2).
        divergence: D_KL of each pair, (B,), see `tfcorr.semantic.teacher.divergence_from_prior`; None for a
            static teacher.
        valid: (B, h, w), where the truth is known; the smoothness counts everywhere.
        smooth_weight: alpha.
        divergence_weight: beta; the divergence is summed over the channels, mean over the batch.
        smooth_form, components: see :func:`smoothness_loss`.

    Returns:
        dict of scalars: ``loss``, and its parts without weights: ``flow``, ``smoothness`` and, if given,
        ``divergence``.
    """
    terms = {
        "flow": flow_loss(prediction, truth, valid=valid, components=components),
        "smoothness": smoothness_loss(prediction, form=smooth_form, components=components),
    }
    loss = terms["flow"] + smooth_weight * terms["smoothness"]
    if divergence is not None:
        terms["divergence"] = ops.mean(divergence)
        loss = loss + divergence_weight * terms["divergence"]
    return {"loss": loss, **terms}


def distillation_loss(
    prediction,
    hypotheses,
    divergence=None,
    *,
    weights=None,
    confidence=None,
    valid=None,
    smooth_weight: float = 0.05,
    divergence_weight: float = 0.01,
    smooth_form: str = "published",
    components: str = "sum",
) -> dict:
    """The student's loss (eq. 4, with eq. 7 in the place of the squared error).

    Args:
        prediction: (B, h, w, 2).
        hypotheses: (B, m, h, w, 2).
        divergence: of eq. 5, (B, h, w, 2), see `tfcorr.semantic.reweighting.error_divergence`; None to leave
            it out.
        weights: of eq. 3, (B, m, h, w, 2); None for 1, plain averaging.
        confidence: (B, m, h, w, 1); None for 1, without eq. 7.
        valid: (B, h, w), which cells count.
        smooth_weight: alpha.
        divergence_weight: lambda; mean over cells, components and batch.
        smooth_form, components: see :func:`smoothness_loss`.

    Returns:
        dict of scalars: ``loss``, and its parts without weights: ``flow``, ``smoothness`` and, if given,
        ``divergence``.
    """
    terms = {
        "flow": flow_loss(
            prediction,
            hypotheses,
            weights=weights,
            confidence=confidence,
            valid=valid,
            components=components,
        ),
        "smoothness": smoothness_loss(prediction, form=smooth_form, components=components),
    }
    loss = terms["flow"] + smooth_weight * terms["smoothness"]
    if divergence is not None:
        terms["divergence"] = cell_mean(divergence, valid, "mean")
        loss = loss + divergence_weight * terms["divergence"]
    return {"loss": loss, **terms}
