"""Probabilistic supervision reweighting: the error model and its EM (paper, section 3.3, eq. 3, 5, 6).

The errors of the m hypotheses at a cell are zero-mean Gaussians, one variance for each pair, cell and
component of the flow. Hypotheses far from the student's prediction, as measured by that variance, count less.

The published module differs where it contradicts the paper: it squares the stored variance once more, and its
empirical variance is that of the hypotheses among themselves, so that the student's prediction cancels. This
module follows the paper, with two additions that make it work: deviations have a floor, as eq. 3 is undefined
at the paper's initial value of 0, and weights are constants for the gradient.
"""

from __future__ import annotations

from keras import ops

#: Deviations are not taken for smaller, in units of the flow: half a cell on a grid of 20.
FLOOR = 0.05
#: Eq. 5 does not take them for smaller either, where `FLOOR` is set to 0: the published program adds its
#: square to the variances. Without it the divergence of the paper's initial variance, 0, is infinite.
DIVERGENCE_FLOOR = 1e-3
# What a variance of 0 is divided by, so that an error of 0 still weighs 1.
_TINY = 1e-30


def log_weights(
    prediction, hypotheses, variance, *, floor: float = FLOOR, form: str = "paper", detach: bool = True
):
    """Logarithms of the weights of eq. 3: -e^2 / sigma^2.

    Args:
        prediction: (B, h, w, 2) flow of the student, which stands for the correct one.
        hypotheses: (B, m, h, w, 2) flows of the teacher.
        variance: (B, h, w, 2), sigma^2.
        floor: least deviation sigma; 0 takes the paper literally.
        form: ``"paper"`` as above; ``"gaussian"``: -e^2 / (2 sigma^2), the density's own exponent.
        detach: no gradient reaches the prediction through the weights.

    Returns:
        (B, m, h, w, 2), at most 0.

    Raises:
        ValueError: ``form`` is neither.
    """
    if form not in ("paper", "gaussian"):
        raise ValueError(f"form must be 'paper' or 'gaussian', got {form!r}")
    if detach:
        prediction = ops.stop_gradient(prediction)
    error = ops.square(ops.expand_dims(prediction, 1) - hypotheses)
    spread = ops.expand_dims(ops.maximum(variance, max(floor**2, _TINY)), 1)
    return -error / (spread if form == "paper" else 2.0 * spread)


def hypothesis_weights(
    prediction,
    hypotheses,
    variance,
    *,
    floor: float = FLOOR,
    form: str = "paper",
    normalize: bool = False,
    detach: bool = True,
):
    """The weights of eq. 3, one for each hypothesis, cell and component.

    Args:
        prediction, hypotheses, variance, floor, form, detach: see :func:`log_weights`.
        normalize: scale the m weights of a cell to a mean of 1: a cell counts as much as any other even where
            the student is far from all hypotheses. Not in the paper.

    Returns:
        (B, m, h, w, 2) in [0, 1], or in [0, m] with ``normalize``.
    """
    logarithms = log_weights(prediction, hypotheses, variance, floor=floor, form=form, detach=detach)
    if normalize:
        return ops.softmax(logarithms, axis=1) * ops.cast(ops.shape(hypotheses)[1], logarithms.dtype)
    return ops.exp(logarithms)


def empirical_variance(prediction, hypotheses):
    """The variance of the errors, taken as zero-mean: the mean over the hypotheses of e^2 (section 3.3).

    Args:
        prediction: (B, h, w, 2).
        hypotheses: (B, m, h, w, 2).

    Returns:
        (B, h, w, 2).
    """
    return ops.mean(ops.square(ops.expand_dims(prediction, 1) - hypotheses), axis=1)


def error_divergence(variance, empirical, *, floor: float = FLOOR):
    """D_KL of the error model from the errors found, both zero-mean Gaussians (eq. 5), in nats.

    Args:
        variance: (B, h, w, 2), sigma^2 of the model.
        empirical: (B, h, w, 2), from :func:`empirical_variance`.
        floor: least deviation of both; with 0, a variance of 0 gives infinity.

    Returns:
        (B, h, w, 2).
    """
    from tensorflow_probability import distributions

    model, found = (ops.sqrt(ops.maximum(v, floor**2)) for v in (variance, empirical))
    centre = ops.zeros_like(model)
    return distributions.kl_divergence(
        distributions.Normal(centre, model), distributions.Normal(centre, found)
    )


def update_variance(variance, empirical, *, step_size: float = 0.01):
    """The E-step (eq. 6): sigma^2 moves towards the empirical one by the share ``step_size`` (phi)."""
    return variance + step_size * (empirical - variance)
