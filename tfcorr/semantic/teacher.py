"""The probabilistic teacher (paper, section 3.2, figure 3b): many flows for one pair.

The student's co-channel attention is replaced by a Gaussian over attentions; each draw z_l weighs the
channels of both images and gives one hypothesis. A static teacher is a
`tfcorr.semantic.network.MatchingHead`.
"""

from __future__ import annotations

import keras
from keras import ops

from tfcorr.semantic.attention import DistributionAttention
from tfcorr.semantic.network import Head


def attention_distribution(mean, variance):
    """Z of eq. 1 as a TensorFlow Probability distribution: N(mean, diag(variance)).

    Args:
        mean, variance: float32 (B, C).

    Returns:
        `tfp.distributions.MultivariateNormalDiag` of B events of C values, whose samples are differentiable
        in both.
    """
    from tensorflow_probability import distributions

    return distributions.MultivariateNormalDiag(loc=mean, scale_diag=ops.sqrt(variance))


def divergence_from_prior(mean, variance):
    """D_KL(Z || N(0, I)) of eq. 2: two (B, C) -> (B,), nats, summed over the channels."""
    from tensorflow_probability import distributions

    prior = attention_distribution(ops.zeros_like(mean), ops.ones_like(variance))
    return distributions.kl_divergence(attention_distribution(mean, variance), prior)


@keras.saving.register_keras_serializable(package="tfcorr")
class TeacherHead(Head):
    """The teacher's trainable part.

    Args:
        channels: of the backbone's features at strides 16 and 32.
        variance_branch, map_size, mean_activation, variance_activation, scale: see
            :class:`tfcorr.semantic.attention.DistributionAttention`.
        gate: what multiplies the channels: ``"sigmoid"`` of a draw (published, and what
            squeeze-and-excitation does) or the ``"draw"`` itself (paper).
        **kwargs: as for :class:`tfcorr.semantic.network.Head`.

    Call arguments:
        inputs: as for `tfcorr.semantic.network.MatchingHead`.
        samples: m, how many draws; None for one flow at the mean of the distribution.
        seed: int32 (2,): the same seed draws the same attentions, wherever it stands in a program. Needed
            with ``samples``.

    Returns:
        dict of ``flow_t2s`` and ``flow_s2t``, float32 (B, m, h, w, 2), or (B, h, w, 2) without ``samples``;
        and ``mean`` and ``variance``, float32 (B, C), of the distribution.

    Raises:
        ValueError: ``gate`` is neither, or ``samples`` comes without ``seed``.
    """

    kind = "teacher"

    def __init__(
        self,
        channels: tuple[int, int],
        *,
        variance_branch: str = "pooled",
        map_size: tuple[int, int] | None = None,
        mean_activation: str = "linear",
        variance_activation: str = "softplus",
        scale: str = "variance",
        gate: str = "sigmoid",
        **kwargs,
    ):
        super().__init__(channels, **kwargs)
        if gate not in ("sigmoid", "draw"):
            raise ValueError(f"gate must be 'sigmoid' or 'draw', got {gate!r}")
        self.gate = gate
        self.attention = DistributionAttention(
            variance_branch,
            map_size,
            mean_activation,
            variance_activation,
            scale,
            dtype=self.dtype_policy,
            name="attention",
        )

    def _build_attention(self, shape):
        self.attention.build(shape)

    def call(self, inputs, training=None, samples: int | None = None, seed=None):
        features = self.adapt(inputs, training)
        mean, variance = self.attention(features["source_32"], features["target_32"], training=training)
        fine = self.match_fine(features)
        if samples is None:
            flows = self.hypothesis(features, fine, mean)
        elif seed is None:
            raise ValueError("samples needs a seed, two int32 numbers")
        else:
            draws = attention_distribution(mean, variance).sample(samples, seed=seed)
            each = [self.hypothesis(features, fine, draws[number]) for number in range(samples)]
            flows = {name: ops.stack([one[name] for one in each], axis=1) for name in each[0]}
        return {**flows, "mean": mean, "variance": variance}

    def hypothesis(self, features, fine, z) -> dict:
        """The flows under one draw of attention.

        Args:
            features: from :meth:`adapt`.
            fine: from :meth:`match_fine`.
            z: float32 (B, C), the same for both images (section 3.2).

        Returns:
            dict of ``flow_t2s`` and ``flow_s2t``, float32 (B, h, w, 2).
        """
        factor = ops.sigmoid(z) if self.gate == "sigmoid" else z
        factor = ops.cast(ops.expand_dims(ops.expand_dims(factor, 1), 1), self.compute_dtype)
        return self.flows(fine, features["source_32"] * factor, features["target_32"] * factor)

    def arguments(self):
        size = self.attention.map_size
        names = ("variance_branch", "mean_activation", "variance_activation", "scale")
        return {
            **super().arguments(),
            **{name: getattr(self.attention, name) for name in names},
            "map_size": None if size is None else list(size),
            "gate": self.gate,
        }
