"""A gate for references that do not fit; not in the paper.

The published network always adds what it aggregated, right or wrong. The gate weighs it by a confidence in
[0, 1] that comes from the matching alone: how similar the matched patches are, and whether neighbouring
patches were found beside each other again, which chance matches are not. Where it is 0, nothing of the
reference reaches the output.
"""

from __future__ import annotations

import math

import keras
from keras import ops

from tfcorr.refsr.matching import PATCH_SIZE

#: The logistic that an untrained gate is: the score where it is half open, and its slope there. Found patches
#: score 0.4 and more, right or wrong, so that a gate starts open and training has to close it.
INITIAL_THRESHOLD = 0.25
INITIAL_SLOPE = 20.0

#: Two cells apart counts half: a turned or scaled reference moves neighbours by a cell or two.
HALF_AGREEMENT = 4.0
_WIDTH = 16
_DILATIONS = (1, 2, 4)
_SOFTPLUS_OF_ONE = math.log(math.e - 1.0)


def flow_agreement(flow):
    """How well each match agrees with those of its eight neighbours.

    The mean of 1 / (1 + (d / 2)^2) over the neighbours, d the distance of the two displacements in cells. At
    the border of the field, neighbours that are missing are replaced by the nearest ones.

    Args:
        flow: float32 (B, h, w, 2), the displacement of each patch to its match, in cells, from
            :func:`tfcorr.refsr.matching.flow_from_index`; (dy, dx) or (dx, dy) alike. Of one reference: in a
            field put together from several, neighbours may be right in different ones.

    Returns:
        float32 (B, h, w) in (0, 1].
    """
    height, width = ops.shape(flow)[1], ops.shape(flow)[2]
    around = _widened(flow)
    total = 0.0
    for i in range(PATCH_SIZE):
        for j in range(PATCH_SIZE):
            if (i, j) != (1, 1):
                distance = ops.sum(ops.square(around[:, i : i + height, j : j + width] - flow), axis=-1)
                total = total + 1.0 / (1.0 + distance / HALF_AGREEMENT)
    return total / (PATCH_SIZE**2 - 1)


def _widened(field):
    """(B, h, w, C) -> (B, h + 2, w + 2, C): the outermost rows and columns twice."""
    return ops.pad(field, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="symmetric")


class ReferenceGate(keras.layers.Layer):
    """Confidence in the reference at each pixel of the input: ``sigmoid(slope * (score - threshold) + r)``.

    ``score`` is the mean of the nine patches that cover the pixel; slope (kept positive) and threshold are
    learned. The correction r sees score and agreement in a neighbourhood of 15x15 pixels, through three
    dilated 3x3 convolutions of 16 channels; it begins at zero, and the gate nearly open.

    Computed in float32 under every policy.

    Call arguments:
        score: float32 (B, h - 2, w - 2), cosine of each 3x3 patch of the input and its match.
        agreement: float32 (B, h - 2, w - 2) from :func:`flow_agreement`.

    Returns:
        float32 (B, h, w, 1) in (0, 1).
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **{**kwargs, "dtype": "float32"})
        self.convolutions = [
            keras.layers.Conv2D(
                _WIDTH,
                3,
                padding="same",
                dilation_rate=dilation,
                activation="relu",
                kernel_initializer="he_normal",
                dtype="float32",
                name=f"conv_{number}",
            )
            for number, dilation in enumerate(_DILATIONS)
        ]
        self.correction = keras.layers.Conv2D(
            1, 1, kernel_initializer="zeros", dtype="float32", name="correction"
        )

    def build(self, score_shape=None, agreement_shape=None):
        self.threshold = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(INITIAL_THRESHOLD), name="threshold"
        )
        self.raw_slope = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(_SOFTPLUS_OF_ONE), name="raw_slope"
        )
        channels = 2
        for convolution in self.convolutions:
            convolution.build((None, None, None, channels))
            channels = _WIDTH
        self.correction.build((None, None, None, channels))
        self.built = True

    def call(self, score, agreement):
        # A pixel takes the patch that it is the centre of; on the border, the nearest one that exists.
        cues = _widened(ops.stack([ops.cast(score, "float32"), ops.cast(agreement, "float32")], axis=-1))
        covering = ops.average_pool(_widened(cues[..., :1]), PATCH_SIZE, strides=1, padding="valid")
        hidden = cues
        for convolution in self.convolutions:
            hidden = convolution(hidden)
        slope = INITIAL_SLOPE * ops.softplus(self.raw_slope)
        return ops.sigmoid(slope * (covering - self.threshold) + self.correction(hidden))

    def compute_output_shape(self, score_shape, agreement_shape=None):
        batch, height, width = score_shape
        return (batch, height and height + 2, width and width + 2, 1)
