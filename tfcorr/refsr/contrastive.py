"""A softmax contrastive loss for matchers that start from random weights. Not in the paper.

The paper's loss (eq. 1 to 3) compares with the hardest negative alone and starts from ImageNet weights.
From random weights that gradient first pulls all descriptors together. The cross-entropy below has a
gradient from every negative.
"""

from __future__ import annotations

from keras import ops

from tfcorr.refsr.matching import l2_normalize


def contrastive_loss(query, reference, target, valid, *, temperature: float):
    """Cross-entropy of finding each query descriptor's match among all descriptors of the reference.

    Args:
        query: float (B, h, w, C) descriptors of the input, not normalised.
        reference: float (B, H, W, C) descriptors of the reference.
        target: int32 (B, h * w, 2), the reference's cell (y, x) that each query cell matches, row-major.
        valid: bool (B, h * w), which positions have a match.
        temperature: of the softmax over cosines.

    Returns:
        float32 scalar, nats, mean over all valid positions of the batch; 0 if there is none.
    """
    batch, width, channels = ops.shape(query)[0], ops.shape(reference)[2], ops.shape(query)[3]
    q = ops.reshape(l2_normalize(query), (batch, -1, channels))
    r = ops.reshape(l2_normalize(reference), (batch, -1, channels))
    logits = ops.matmul(q, ops.transpose(r, (0, 2, 1))) / temperature
    matched = ops.expand_dims(target[..., 0] * width + target[..., 1], -1)
    found = ops.take_along_axis(logits, matched, axis=-1)[..., 0]
    kept = ops.cast(valid, "float32")
    surprise = (ops.logsumexp(logits, axis=-1) - found) * kept
    return ops.sum(surprise) / ops.maximum(ops.sum(kept), 1.0)
