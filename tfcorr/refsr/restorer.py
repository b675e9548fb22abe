"""The restoration network (paper, section 3.4, supplement A.2: table 3, light: table 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import keras
from keras import ops

from tfcorr.refsr.aggregation import DynamicAggregation
from tfcorr.refsr.blocks import ResidualBlock, convolution, leaky_relu
from tfcorr.refsr.detail import align, luma, reference_detail, sample
from tfcorr.refsr.extractor import FEATURE_STRIDES, FEATURE_WIDTHS
from tfcorr.refsr.gate import ReferenceGate
from tfcorr.refsr.matching import PATCH_SIZE, matched_cells, refine_offsets
from tfcorr.refsr.single_image import SingleImageNetwork, SingleImageSizes
from tfcorr.refsr.upsampling import Upsampling

#: The three levels, coarse to fine, and the feature of the reference that each may aggregate.
LEVELS = ("small", "medium", "large")
LEVEL_FEATURES = {"small": "relu3_1", "medium": "relu2_1", "large": "relu1_1"}
#: A level's cells for one low-resolution pixel.
LEVEL_SCALES = {level: 4 // FEATURE_STRIDES[feature] for level, feature in LEVEL_FEATURES.items()}

#: Channels of what a level is told of the reference's detail: its residual, in tenths of the range, and how
#: well it is aligned.
CUES = 4
# The share of the detail that is added, before training: a logistic of the alignment's correlation.
_DETAIL_SLOPE, _DETAIL_MIDDLE = 6.0, 0.8

#: What the offset branch sees of the reference, see :class:`RestorerSizes`.
CONTEXTS = ("unaligned", "matched")


@dataclass(frozen=True)
class RestorerSizes:
    """Sizes of a restoration network; the defaults are the paper's full one.

    Attributes:
        features: Width of the content path (ngf in the published code).
        content_blocks: Residual blocks of the content extractor (table 3, row 1).
        blocks: Residual blocks of the three levels, coarse to fine (rows 4, 9, 14).
        reference_levels: Levels that aggregate a reference feature.
        offset_widths: Width of the two convolutions in front of each level's offsets, coarse to fine.
        aggregated_widths: Width of the aggregated reference feature of each level, coarse to fine.
        deform_groups: Groups of reference channels with their own offsets.
        context: Which cell of the reference a level's offset branch sees beside the content: ``unaligned``,
            the one at the same place (as published), or ``matched``, the one at the matched place, so that
            the branch can tell how far the match is off and whether it fits at all.
        gate: Whether a :class:`tfcorr.refsr.gate.ReferenceGate` weighs what comes from the reference; the
            published network has none.
        base: Sizes of a single-image network under the restorer, as the dict of its fields; the published
            network has none. Its features take the place of the content extractor's, at all three
            levels, and its image that of the upsampled input, so that what the levels compute is what the
            reference adds. With a gate, which then weighs this sum as well, a reference that is shut out
            leaves the single-image result as it is.
        detail: Whether the large level is given what the base gets wrong in the reference, brought to the
            pixel (`tfcorr.refsr.detail`), and a share of it is added to the result; needs a base. Not in the
            published network.
    """

    features: int = 64
    content_blocks: int = 16
    blocks: tuple[int, int, int] = (16, 16, 16)
    reference_levels: tuple[str, ...] = LEVELS
    offset_widths: tuple[int, int, int] = (256, 128, 64)
    aggregated_widths: tuple[int, int, int] = (256, 128, 64)
    deform_groups: int = 8
    context: str = "unaligned"
    gate: bool = False
    base: SingleImageSizes | None = None
    detail: bool = False

    def __post_init__(self):
        if isinstance(self.base, Mapping):
            object.__setattr__(self, "base", SingleImageSizes(**self.base))
        for name in ("blocks", "offset_widths", "aggregated_widths", "reference_levels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("blocks", "offset_widths", "aggregated_widths"):
            if len(getattr(self, name)) != len(LEVELS):
                raise ValueError(
                    f"`{name}` must have 3 entries (small, medium, large), got {getattr(self, name)}"
                )
        unknown = set(self.reference_levels) - set(LEVELS)
        if unknown:
            raise ValueError(f"`reference_levels` must be among {LEVELS}, got {sorted(unknown)}")
        if self.context not in CONTEXTS:
            raise ValueError(f"`context` must be among {CONTEXTS}, got {self.context!r}")
        if self.detail and self.base is None:
            raise ValueError("`detail` needs a `base`, whose errors it is made of")


PRESETS = {
    # Table 3: 8,865,547 parameters.
    "full": RestorerSizes(),
    # Table 4 and supplement C: 4,825,395 parameters.
    "light": RestorerSizes(blocks=(16, 8, 4), reference_levels=("medium", "large")),
    # Ours: light's plan with 590,863 parameters, which a CPU without bfloat16 units trains in an hour.
    "compact": RestorerSizes(
        features=32,
        content_blocks=8,
        blocks=(4, 4, 1),
        reference_levels=("medium", "large"),
        offset_widths=(32, 32, 16),
        aggregated_widths=(32, 32, 32),
        deform_groups=2,
        context="matched",
    ),
    # Ours: such a reference path over a single-image network, whose result stands where no reference fits.
    "guided": RestorerSizes(
        features=32,
        content_blocks=0,
        blocks=(2, 4, 1),
        reference_levels=("medium", "large"),
        offset_widths=(32, 32, 16),
        aggregated_widths=(32, 32, 32),
        deform_groups=2,
        context="matched",
        gate=True,
        base=SingleImageSizes(),
        detail=True,
    ),
}


def preset(name: str) -> RestorerSizes:
    """The sizes called ``full``, ``light``, ``compact`` or ``guided``; ValueError for another name."""
    if name not in PRESETS:
        raise ValueError(f"unknown restorer {name!r}; there are {sorted(PRESETS)}")
    return PRESETS[name]


class ReferenceLevel(keras.layers.Layer):
    """One level: aggregate, fuse, refine (table 3, rows 2 to 5, 7 to 10, 12 to 15).

    Call arguments:
        x: (B, H, W, F) content feature.
        reference: (B, Hr, Wr, C) reference feature, or None for a level without one.
        pre_offset: float32 (B, H, W, 18), or None.
        origin: int32 (2,), where ``x`` lies in the whole input, in cells of this level, when ``x`` is a tile.
        gate: float (B, H, W, 1) that the aggregated feature is multiplied by, or None.
        cues: (B, H, W, :data:`CUES`) for a level that takes them, or None.
        return_learned: Also return the learned offsets, see
            :class:`tfcorr.refsr.aggregation.DynamicAggregation`.

    Returns:
        (B, H, W, F); with ``return_learned``, a tuple of it and the learned offsets (None without a
        reference).
    """

    def __init__(
        self,
        features: int,
        blocks: int,
        reference_width: int | None,
        offset_width: int,
        aggregated_width: int,
        deform_groups: int,
        context: str = "unaligned",
        cues: bool = False,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.features = features
        self.context = context
        self.reference_width = reference_width
        policy = self.dtype_policy
        self.aggregated_width = 0
        if reference_width is not None:
            self.aggregated_width = aggregated_width
            self.offset_conv1 = convolution(offset_width, "offset_conv1", dtype=policy)
            self.offset_conv2 = convolution(offset_width, "offset_conv2", dtype=policy)
            self.dyn_agg = DynamicAggregation(aggregated_width, deform_groups, name="dyn_agg", dtype=policy)
        self.head = convolution(features, "head", dtype=policy)
        self.cue_head = convolution(features, "cue_head", dtype=policy) if cues else None
        self.body = [ResidualBlock(features, name=f"body_{i}", dtype=policy) for i in range(blocks)]

    def build(
        self,
        x_shape,
        reference_shape=None,
        pre_offset_shape=None,
        origin_shape=None,
        gate_shape=None,
        cues_shape=None,
    ):
        x_shape = (None, None, None, self.features)
        if self.reference_width is not None:
            width = self.offset_conv1.filters
            self.offset_conv1.build((None, None, None, self.features + self.reference_width))
            self.offset_conv2.build((None, None, None, width))
            self.dyn_agg.build((None, None, None, self.reference_width), (None, None, None, width))
        self.head.build((None, None, None, self.features + self.aggregated_width))
        if self.cue_head is not None:
            self.cue_head.build((None, None, None, CUES))
        for block in self.body:
            block.build(x_shape)

    def call(
        self,
        x,
        reference=None,
        pre_offset=None,
        origin=None,
        gate=None,
        cues=None,
        return_learned: bool = False,
    ):
        fused, learned = x, None
        if self.reference_width is not None:
            if self.context == "matched":
                context = matched_cells(reference, pre_offset)
            else:
                context = place_on_grid(reference, ops.shape(x)[1], ops.shape(x)[2], origin)
            hidden = ops.concatenate([x, ops.cast(context, x.dtype)], axis=-1)
            hidden = leaky_relu(self.offset_conv1(hidden))
            hidden = leaky_relu(self.offset_conv2(hidden))
            aggregated = self.dyn_agg(reference, hidden, pre_offset, return_learned=return_learned)
            if return_learned:
                aggregated, learned = aggregated
            aggregated = leaky_relu(aggregated)
            if gate is not None:
                aggregated = aggregated * ops.cast(gate, aggregated.dtype)
            fused = ops.concatenate([x, aggregated], axis=-1)
        hidden = self.head(fused)
        if cues is not None:
            hidden = hidden + self.cue_head(ops.cast(cues, x.dtype))
        hidden = leaky_relu(hidden)
        for block in self.body:
            hidden = block(hidden)
        return (x + hidden, learned) if return_learned else x + hidden


def place_on_grid(feature, height, width, origin=None):
    """Crops or zero-pads ``feature`` at right and bottom to (height, width), read from ``origin`` on.

    (B, Hr, Wr, C) -> (B, height, width, C). The published offset branch sees the reference so, cell beside
    cell. A tile of an input reads it from the tile's own place, so that the result does not depend on the
    tiling.
    """
    for axis, size in ((1, height), (2, width)):
        available = ops.shape(feature)[axis]
        if origin is None:
            start = 0
            stop = ops.minimum(available, size)
        else:
            start = ops.minimum(ops.cast(origin[axis - 1], "int32"), available)
            stop = ops.minimum(available, start + size)
        feature = feature[:, start:stop] if axis == 1 else feature[:, :, start:stop]
        shape = [ops.shape(feature)[i] for i in range(4)]
        shape[axis] = size - shape[axis]
        feature = ops.concatenate([feature, ops.zeros(shape, feature.dtype)], axis=axis)
    return feature


def _enlarged(field, scale: int):
    """(B, h, w, C) -> (B, scale * h, scale * w, C), each cell repeated."""
    return ops.repeat(ops.repeat(field, scale, axis=1), scale, axis=2)


def _joined(x, under):
    return x if under is None else x + under


class RestorationNetwork(keras.Model):
    """Content path with three levels of aggregated reference texture, added to the upsampled input.

    Args:
        config: Sizes; a :class:`RestorerSizes`, or a dict of its fields.

    Call arguments:
        inputs: dict of

            - ``lr``: (B, h, w, 3) float in [0, 1];
            - ``relu3_1``, ``relu2_1``, ``relu1_1`` (those of the levels in use): reference features of a
              common reference of any size, see :class:`tfcorr.refsr.extractor.FeatureExtractor`;
            - ``detail``: with ``config.detail``, (B, H, W, 4) of it from :meth:`detail_of`;
            - ``pre_offset``: float32 (B, h, w, 18) from :func:`tfcorr.refsr.matching.pre_offsets` at scale 1,
              relative to this input's own grid;
            - ``origin``: optional int32 (2,): (y, x) of this input in a larger image, in its pixels, when it
              is a tile;
            - ``gate``: with ``config.gate``, float32 (B, h, w, 1) in [0, 1] from the layer :attr:`gate`.
        return_learned: Also return the learned offsets.

    Returns:
        float32 (B, 4 * h, 4 * w, 3), not clamped. As in the published code, and not in table 3, the last
        convolution gives a residual on the bilinearly upsampled input (on the result of the base, where there
        is one). With ``return_learned``, a tuple of it
        and a dict from the name of each level with a reference to its learned offsets, float32.
    """

    def __init__(self, config: RestorerSizes | dict | None = None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.config = config if isinstance(config, RestorerSizes) else RestorerSizes(**(config or {}))
        policy = self.dtype_policy
        features = self.config.features
        self.base, self.entries = None, {}
        if self.config.base is None:
            self.conv_first = convolution(features, "conv_first", dtype=policy)
        else:
            self.base = SingleImageNetwork(**asdict(self.config.base), name="base", dtype=policy)
            self.entries = {
                level: keras.layers.Conv2D(features, 1, name=f"entry_{level}", dtype=policy)
                for level in LEVELS
            }
        self.content_body = [
            ResidualBlock(features, name=f"content_{i}", dtype=policy)
            for i in range(self.config.content_blocks)
        ]
        self.gate = ReferenceGate(name="gate") if self.config.gate else None
        self.levels = {}
        for number, level in enumerate(LEVELS):
            uses_reference = level in self.config.reference_levels
            self.levels[level] = ReferenceLevel(
                features,
                self.config.blocks[number],
                FEATURE_WIDTHS[LEVEL_FEATURES[level]] if uses_reference else None,
                self.config.offset_widths[number],
                self.config.aggregated_widths[number],
                self.config.deform_groups,
                self.config.context,
                self.config.detail and level == "large",
                name=level,
                dtype=policy,
            )
        self.tail_small = convolution(4 * features, "tail_small", dtype=policy)
        self.tail_medium = convolution(4 * features, "tail_medium", dtype=policy)
        self.tail_large1 = convolution(features // 2, "tail_large1", dtype=policy)
        # Over a base that is good already, training starts from exactly its result.
        last = {} if self.base is None else {"kernel_initializer": "zeros"}
        self.tail_large2 = convolution(3, "tail_large2", dtype="float32", **last)
        self.detail_share = None
        if self.config.detail:
            self.detail_share = convolution(1, "detail_share", kernel_initializer="zeros", dtype="float32")
        self.upsampling = Upsampling(4, "bilinear", dtype="float32", name="upsampling")

    def build(self, input_shape=None):
        features = self.config.features
        if self.base is None:
            self.conv_first.build((None, None, None, 3))
        else:
            self.base.build()
            for entry in self.entries.values():
                entry.build((None, None, None, self.config.base.features))
        for block in self.content_body:
            block.build((None, None, None, features))
        if self.gate is not None:
            self.gate.build()
        for level in self.levels.values():
            level.build(None)
        for tail in (self.tail_small, self.tail_medium, self.tail_large1):
            tail.build((None, None, None, features))
        self.tail_large2.build((None, None, None, features // 2))
        if self.detail_share is not None:
            self.detail_share.build((None, None, None, features + CUES))
        self.built = True

    @property
    def reference_features(self) -> tuple[str, ...]:
        """Names of the reference features that the levels in use need."""
        features = tuple(LEVEL_FEATURES[level] for level in LEVELS if level in self.config.reference_levels)
        return (*features, "detail") if self.config.detail else features

    def detail_of(self, reference):
        """The feature ``detail`` of references (B, H, W, 3) in [0, 1], see :mod:`tfcorr.refsr.detail`."""
        return reference_detail(self.base, reference)

    def call(self, inputs, return_learned: bool = False):
        lr = ops.cast(inputs["lr"], "float32")
        learned = {} if return_learned else None
        gate = self._gate_of(inputs)
        if self.base is None:
            under, image, x = {}, self.upsampling(lr), self.conv_first(ops.cast(lr, self.compute_dtype))
        else:
            features, image = self.base.parts(lr)
            under = {level: self.entries[level](features[level]) for level in LEVELS}
            x = under["small"]
        x = self._level("small", self.content(x), inputs, gate, learned)
        x = leaky_relu(ops.depth_to_space(self.tail_small(x), 2))
        x = self._level("medium", _joined(x, under.get("medium")), inputs, gate, learned)
        x = leaky_relu(ops.depth_to_space(self.tail_medium(x), 2))
        aligned = cues = None
        if self.config.detail:
            aligned, cues = self._aligned_detail(image, inputs)
        x = self._level("large", _joined(x, under.get("large")), inputs, gate, learned, cues)
        residual = self.tail_large2(ops.cast(leaky_relu(self.tail_large1(x)), "float32"))
        if aligned is not None:
            share = self.detail_share(ops.concatenate([ops.cast(x, "float32"), cues], axis=-1))
            prior = _DETAIL_SLOPE * (cues[..., 3:] - _DETAIL_MIDDLE)
            residual = residual + ops.sigmoid(share + prior) * aligned
        if self.base is not None and gate is not None:
            residual = residual * _enlarged(ops.cast(gate, "float32"), 4)
        restored = image + residual
        return (restored, learned) if return_learned else restored

    def content(self, x):
        """Content feature (table 3, row 1) from the first convolution: (B, h, w, features) both."""
        x = leaky_relu(x)
        for block in self.content_body:
            x = block(x)
        return x

    def _aligned_detail(self, image, inputs):
        """The reference's residual in the place of the output, and what the large level is told of it."""
        detail = ops.cast(inputs["detail"], "float32")
        middle = PATCH_SIZE * PATCH_SIZE // 2
        flow = 4.0 * ops.cast(inputs["pre_offset"][..., 2 * middle : 2 * middle + 2], "float32")
        flow, correlation = align(luma(ops.stop_gradient(image)), detail[..., 3:], flow)
        aligned = ops.stop_gradient(sample(detail[..., :3], flow))
        cues = ops.concatenate([10.0 * aligned, ops.stop_gradient(_enlarged(correlation, 4))], axis=-1)
        # Exports have to know the channels.
        return aligned, ops.reshape(cues, (*(ops.shape(aligned)[axis] for axis in range(3)), CUES))

    def _gate_of(self, inputs):
        if self.gate is None:
            return None
        if inputs.get("gate") is None:
            raise ValueError("`gate` is missing from the inputs of a restorer with a gate")
        return inputs["gate"]

    def _level(self, level: str, x, inputs, gate, learned: dict | None, cues=None):
        if level not in self.config.reference_levels:
            return self.levels[level](x)
        name, scale = LEVEL_FEATURES[level], LEVEL_SCALES[level]
        offset = refine_offsets(ops.cast(inputs["pre_offset"], "float32"), scale)
        origin = inputs.get("origin")
        if origin is not None:
            origin = ops.cast(origin, "int32") * scale
        if gate is not None:
            gate = _enlarged(gate, scale)
        if learned is None:
            return self.levels[level](x, inputs[name], offset, origin, gate, cues)
        x, learned[level] = self.levels[level](
            x, inputs[name], offset, origin, gate, cues, return_learned=True
        )
        return x

    def get_config(self):
        return {**super().get_config(), "config": asdict(self.config)}
