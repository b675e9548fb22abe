import numpy as np
import pytest
import tensorflow as tf
from conftest import nhwc

from tfcorr.refsr.losses import reconstruction_loss, triplet_margin_loss


def _positions(arrays, sample, width, count):
    """Kept positions of the published code -> (target, valid) for all cells of one sample."""
    target, valid = np.zeros((count, 2), np.int32), np.zeros(count, bool)
    kept = arrays[f"ids_sample{sample}"].astype(int)
    places = arrays[f"fmap_pos2_yx_sample{sample}"]
    places = places if places.shape[-1] == 2 else places.T
    valid[kept] = True
    target[kept] = places
    return target, valid


@pytest.fixture
def contrastive(golden):
    arrays = golden("losses", "contrastive")
    query, reference = nhwc(arrays["features1"]), nhwc(arrays["features2"])
    count = query.shape[1] * query.shape[2]
    pairs = [_positions(arrays, sample, query.shape[2], count) for sample in range(3)]
    target, valid = (np.stack(part) for part in zip(*pairs, strict=True))
    return query, reference, target, valid


def test_golden_teacher_loss_and_gradients(golden, contrastive):
    expected = golden("losses", "teacher")
    query, reference, target, valid = contrastive
    query, reference = tf.constant(query), tf.constant(reference)
    with tf.GradientTape() as tape:
        tape.watch([query, reference])
        terms = triplet_margin_loss(query, reference, target, valid)
    np.testing.assert_allclose(terms.loss, expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(terms.positive, expected["pos_dist"], rtol=1e-5)
    np.testing.assert_allclose(terms.negative, expected["neg_dist"], rtol=1e-5)
    d_query, d_reference = tape.gradient(terms.loss, [query, reference])
    np.testing.assert_allclose(d_query, nhwc(expected["d_features1"]), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(d_reference, nhwc(expected["d_features2"]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("negatives", ["matched", "all"])
def test_equals_a_loop_over_positions(negatives):
    rng = np.random.default_rng(3)
    height, width, radius, margin = 7, 8, 1.0, 1.0
    query, reference = (rng.normal(size=(1, height, width, 4)).astype("float32") for _ in range(2))
    target = np.stack([rng.integers(0, height, 56), rng.integers(0, width, 56)], -1)[None].astype("int32")
    valid = rng.random((1, 56)) < 0.7
    q, r = ((f / np.linalg.norm(f, axis=-1, keepdims=True)).astype("float64")[0] for f in (query, reference))
    cells = [(y, x) for y in range(height) for x in range(width)]

    def far(a, b):
        return max(abs(a[0] - b[0]), abs(a[1] - b[1])) > radius

    matches = [tuple(target[0, i]) for i in range(56) if valid[0, i]]
    terms = []
    for number, p in enumerate(cells):
        if not valid[0, number]:
            continue
        match = tuple(target[0, number])
        candidates = matches if negatives == "matched" else cells
        in_reference = [np.sum((q[p] - r[k]) ** 2) for k in candidates if far(k, match)]
        in_input = [np.sum((r[match] - q[k]) ** 2) for k in cells if far(k, p)]
        negative = min(in_reference + in_input)
        terms.append(max(0.0, margin + np.sum((q[p] - r[match]) ** 2) - negative))
    ours = triplet_margin_loss(
        query, reference, target, valid, safe_radius=radius, minimum_positions=1, negatives=negatives
    )
    np.testing.assert_allclose(ours.loss, np.mean(terms), rtol=1e-5)


def test_a_batch_without_enough_positions_has_no_loss(contrastive):
    query, reference, target, valid = contrastive
    terms = triplet_margin_loss(query, reference, target, np.zeros_like(valid))
    assert float(terms.loss) == 0.0


def test_accuracy_counts_what_lies_within_one_cell():
    descriptors = np.eye(36, dtype="float32").reshape(1, 6, 6, 36)
    cells = np.stack(np.divmod(np.arange(36), 6), -1)[None].astype("int32")
    right = triplet_margin_loss(descriptors, descriptors, cells, np.ones((1, 36), bool), minimum_positions=1)
    assert float(right.accuracy) == 1.0
    wrong = triplet_margin_loss(
        descriptors, descriptors, (cells + 3) % 6, np.ones((1, 36), bool), minimum_positions=1
    )
    assert float(wrong.accuracy) == 0.0


def test_reconstruction_is_the_mean_absolute_error(golden):
    real, fake = golden("losses", "gan")["real"], golden("losses", "gan")["fake"]
    np.testing.assert_allclose(reconstruction_loss(real, fake), golden("losses", "l1")["loss"], rtol=1e-5)


def test_unknown_negatives_are_refused(contrastive):
    with pytest.raises(ValueError, match="hardest"):
        triplet_margin_loss(*contrastive, negatives="hardest")
