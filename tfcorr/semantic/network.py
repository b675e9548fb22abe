"""The semantic matching network, the student (paper, section 3.2, figure 3a).

Frozen backbone -> features at strides 16 and 32 of both images -> :class:`MatchingHead`: adaptation,
co-channel attention, correlation, kernel soft argmax -> flows in both directions on the grid of stride 16.
The head takes the backbone's features, so that training on a CPU can compute them once and keep them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from tfcorr.semantic.attention import KERNEL_INITIALIZER, CoChannelAttention, batch_normalization
from tfcorr.semantic.matching import combine, correlation, identity_grid, kernel_soft_argmax, resize

#: Strides of the backbone's features that are matched, as they appear in names.
LEVELS = ("16", "32")
#: Names of the cached features of a pair.
FEATURES = ("source_16", "source_32", "target_16", "target_32")


@keras.saving.register_keras_serializable(package="tfcorr")
class Adaptation(keras.layers.Layer):
    """The layers that are trained on one level of the backbone: f + ReLU(BN(conv(f))), some times over.

    The paper calls them an additional convolution layer; these are the published ones.

    Args:
        kernel_size: of the convolutions.
        blocks: how many.
        width: channels to work with: a 1x1 convolution that starts as an orthogonal projection goes before.
            None keeps the backbone's.
        residual_scale: what the normalisations' gamma starts from; a small one starts close to the backbone's
            own features, 1 is published.

    Call arguments:
        features: (B, h, w, C) float.

    Returns:
        (B, h, w, width).
    """

    def __init__(
        self,
        kernel_size: int,
        blocks: int = 2,
        width: int | None = None,
        residual_scale: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.blocks = blocks
        self.width = width
        self.residual_scale = residual_scale

    def build(self, input_shape):
        channels = self.width or input_shape[-1]
        self.projection = None
        if self.width is not None:
            self.projection = keras.layers.Conv2D(
                channels,
                1,
                use_bias=False,
                kernel_initializer="orthogonal",
                dtype=self.dtype_policy,
                name="projection",
            )
            self.projection.build((None, None, None, input_shape[-1]))
        self.layers_of_blocks = []
        for number in range(self.blocks):
            conv = keras.layers.Conv2D(
                channels,
                self.kernel_size,
                padding="same",
                kernel_initializer=KERNEL_INITIALIZER,
                dtype=self.dtype_policy,
                name=f"conv{number}",
            )
            conv.build((None, None, None, channels))
            norm = batch_normalization(f"normalization{number}", self.dtype_policy, self.residual_scale)
            norm.build((None, None, None, channels))
            self.layers_of_blocks.append((conv, norm))
        self.built = True

    def call(self, features, training=None):
        if self.projection is not None:
            features = self.projection(features)
        for conv, norm in self.layers_of_blocks:
            features = features + ops.relu(norm(conv(features), training=training))
        return features

    def scale_residuals(self, factor: float) -> None:
        """Multiplies what the layers add to the features by a factor, at least 0."""
        for _, norm in self.layers_of_blocks:
            # ReLU lets a positive factor through.
            norm.gamma.assign(factor * norm.gamma)
            norm.beta.assign(factor * norm.beta)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.width or input_shape[-1])

    def get_config(self):
        names = ("kernel_size", "blocks", "width", "residual_scale")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


class Head(keras.Model):
    """What student and teacher share: adaptation of both levels and matching.

    Args:
        channels: of the backbone's features at strides 16 and 32.
        kernel_sizes: of the adaptation at the two levels.
        blocks, residual_scale: see :class:`Adaptation`.
        widths: of the two levels, see :class:`Adaptation`.
        beta, kernel_sigma: of :func:`tfcorr.semantic.matching.kernel_soft_argmax`.
    """

    #: What ``architecture["kind"]`` calls this head.
    kind = ""

    def __init__(
        self,
        channels: tuple[int, int],
        *,
        kernel_sizes: tuple[int, int] = (5, 3),
        blocks: int = 2,
        widths: tuple[int | None, int | None] = (None, None),
        residual_scale: float = 1.0,
        beta: float | None = 50.0,
        kernel_sigma: float | None = 5.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value in (("channels", channels), ("kernel_sizes", kernel_sizes), ("widths", widths)):
            if len(value) != len(LEVELS):
                raise ValueError(f"{name} must have a value for each of the strides 16 and 32, got {value!r}")
        self.channels = tuple(channels)
        self.kernel_sizes = tuple(kernel_sizes)
        self.blocks = blocks
        self.widths = tuple(widths)
        self.residual_scale = residual_scale
        self.beta = beta
        self.kernel_sigma = kernel_sigma
        self.adaptations = {
            level: Adaptation(
                size, blocks, width, residual_scale, dtype=self.dtype_policy, name=f"adaptation_{level}"
            )
            for level, size, width in zip(LEVELS, self.kernel_sizes, self.widths, strict=True)
        }

    def build(self, input_shape=None):
        for level, channels in zip(LEVELS, self.channels, strict=True):
            self.adaptations[level].build((None, None, None, channels))
        self._build_attention((None, None, None, self.widths[1] or self.channels[1]))
        self.built = True

    def _build_attention(self, shape):
        raise NotImplementedError

    def adapt(self, inputs, training=None) -> dict:
        """The adapted features of both images, named as the inputs; those of stride 32 on their own grid."""
        # One image after the other, as published: batch statistics are those of one role.
        return {
            f"{side}_{level}": self.adaptations[level](
                ops.cast(inputs[f"{side}_{level}"], self.compute_dtype), training=training
            )
            for level in LEVELS
            for side in ("source", "target")
        }

    def flows(self, fine, source_32, target_32) -> dict:
        """Both flows.

        Args:
            fine: of stride 16, from :meth:`match_fine`.
            source_32, target_32: features of stride 32, (B, h', w', C), after attention.

        Returns:
            dict of ``flow_t2s`` on the target's grid of stride 16 and ``flow_s2t`` on the source's: float32
            (B, h, w, 2).
        """
        similarity, source_size, target_size = fine
        s2t = [similarity, correlation(resize(source_32, source_size), resize(target_32, target_size))]
        t2s = [ops.transpose(c, (0, 2, 1)) for c in s2t]
        return {
            "flow_t2s": self._flow(t2s, target_size, source_size),
            "flow_s2t": self._flow(s2t, source_size, target_size),
        }

    def match_fine(self, features):
        """The part of matching that attention does not touch.

        Args:
            features: from :meth:`adapt`.

        Returns:
            ``(correlation, source_size, target_size)`` of stride 16: float32 (B, hs * ws, ht * wt), (h, w),
            (h, w).
        """
        source, target = features["source_16"], features["target_16"]
        return correlation(source, target), tuple(ops.shape(source)[1:3]), tuple(ops.shape(target)[1:3])

    def _flow(self, correlations, query_size, searched_size):
        grid = kernel_soft_argmax(
            combine(correlations), query_size, searched_size, beta=self.beta, sigma=self.kernel_sigma
        )
        return grid - identity_grid(*query_size)

    def arguments(self) -> dict[str, Any]:
        """What the constructor was given, as JSON can hold it."""
        names = ("kernel_sizes", "blocks", "widths", "residual_scale", "beta", "kernel_sigma", "channels")
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def architecture(self) -> dict[str, Any]:
        """What a model's card stores, for :func:`head_from_architecture`."""
        return {"kind": self.kind, **self.arguments()}

    def get_config(self):
        return {**super().get_config(), **self.arguments()}


@keras.saving.register_keras_serializable(package="tfcorr")
class MatchingHead(Head):
    """The student's trainable part, and the static teacher's: see the module's first lines.

    Args:
        channels: of the backbone's features at strides 16 and 32, for example (1024, 2048) of ResNet-101.
        attention: ``"published"``, ``"paper"``, see :class:`tfcorr.semantic.attention.CoChannelAttention`, or
            ``"none"``.
        attention_order: ``"sequential"``, ``"parallel"`` or None, see there.
        **kwargs: as for :class:`Head`.

    Call arguments:
        inputs: dict of ``source_16``, ``target_16`` (B, h, w, C16) and ``source_32``, ``target_32`` (B, h',
            w', C32); more keys do no harm.

    Returns:
        dict of ``flow_t2s`` and ``flow_s2t``, float32 (B, h, w, 2): (dx, dy) in [-1, 1] units.

    Example:

    >>> head = MatchingHead((1024, 2048))
    >>> head.build()
    """

    kind = "student"

    def __init__(
        self,
        channels: tuple[int, int],
        *,
        attention: str = "published",
        attention_order: str | None = None,
        **kwargs,
    ):
        super().__init__(channels, **kwargs)
        self.attention_form = attention
        self.attention_order = attention_order
        self.attention = None
        if attention != "none":
            self.attention = CoChannelAttention(
                attention, attention_order, dtype=self.dtype_policy, name="attention"
            )

    def _build_attention(self, shape):
        if self.attention is not None:
            self.attention.build(shape)

    def call(self, inputs, training=None):
        features = self.adapt(inputs, training)
        coarse = features["source_32"], features["target_32"]
        if self.attention is not None:
            coarse = self.attention(*coarse, training=training)
        return self.flows(self.match_fine(features), *coarse)

    def arguments(self):
        return {
            **super().arguments(),
            "attention": self.attention_form,
            "attention_order": self.attention_order,
        }


class SemanticMatchingNetwork(keras.Model):
    """A head on a frozen backbone.

    Args:
        head: :class:`MatchingHead` or :class:`tfcorr.semantic.teacher.TeacherHead`; built if it was not.
        backbone: from :func:`tfcorr.backbones.backbone`; None where only cached features will be given.
        mirror: whether an image's features are the mean of those of the image and, mirrored back, of its
            mirror image. This is not in the paper; it doubles the cost of the backbone, and matches different
            things better, whatever the head.

    Call arguments:
        inputs: dict of ``source`` and ``target``, (B, H, W, 3) float, RGB in [0, 1], sides a multiple of 32
            (320 in the paper); or of the four maps of :data:`FEATURES`, which :meth:`features` gives.
        samples, seed: for a :class:`tfcorr.semantic.teacher.TeacherHead`.

    Returns:
        The head's.

    Raises:
        ValueError: images are given and there is no backbone, or it has not both strides.
    """

    def __init__(self, head: Head, backbone: keras.Model | None = None, *, mirror: bool = False, **kwargs):
        super().__init__(**kwargs)
        if not head.built:
            head.build()
        self.head = head
        self.mirror = mirror
        self.backbone = backbone
        if backbone is not None:
            backbone.trainable = False

    def build(self, input_shape=None):
        self.built = True

    def features(self, images) -> dict:
        """The backbone's features of one side: (B, H, W, 3) RGB in [0, 1] -> ``{"16": ..., "32": ...}``."""
        if self.backbone is None:
            raise ValueError(f"this network has no backbone; give it the features {', '.join(FEATURES)}")
        maps = self.backbone(images, training=False)
        missing = [level for level in LEVELS if int(level) not in maps]
        if missing:
            raise ValueError(
                f"the backbone has no features of stride {' and '.join(missing)}: {sorted(maps)}"
            )
        if self.mirror:
            others = self.backbone(ops.flip(images, axis=2), training=False)
            maps = {int(level): mirror_mean(maps[int(level)], others[int(level)]) for level in LEVELS}
        return {level: ops.stop_gradient(maps[int(level)]) for level in LEVELS}

    def call(self, inputs, training=None, samples: int | None = None, seed=None):
        if "source_16" not in inputs:
            inputs = {
                f"{side}_{level}": values
                for side in ("source", "target")
                for level, values in self.features(inputs[side]).items()
            }
        # A student's head knows of no samples.
        draws = {} if samples is None else {"samples": samples, "seed": seed}
        return self.head({name: inputs[name] for name in FEATURES}, training=training, **draws)


def mirror_mean(map_, of_mirror_image):
    """The mean of an image's feature map and its mirror image's, mirrored back: two (..., h, w, C) arrays."""
    return (map_ + of_mirror_image[..., ::-1, :]) / 2


def full_resolution(flows: Mapping, source_size: tuple[int, int], target_size: tuple[int, int]) -> dict:
    """A network's flows on the grids of the images, bilinear with aligned corners.

    Args:
        flows: ``flow_t2s`` and ``flow_s2t``, each (B, h, w, 2).
        source_size, target_size: (H, W) in pixels.

    Returns:
        dict of the same, (B, H, W, 2), still in [-1, 1] units (see
        :func:`tfcorr.semantic.matching.flow_in_pixels`).
    """
    return {
        "flow_t2s": resize(flows["flow_t2s"], target_size),
        "flow_s2t": resize(flows["flow_s2t"], source_size),
    }


def head_from_architecture(architecture: Mapping[str, Any]) -> Head:
    """A built head of the kind and sizes in ``architecture`` with random weights.

    Raises:
        ValueError: unknown kind or argument, named.
    """
    # Below, as the teacher is made of this module.
    from tfcorr.semantic.teacher import TeacherHead

    kinds = {kind.kind: kind for kind in (MatchingHead, TeacherHead)}
    arguments = dict(architecture)
    kind = arguments.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"architecture.kind must be one of {sorted(kinds)}, got {kind!r}")
    try:
        head = kinds[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"architecture: {error}") from error
    head.build()
    return head
