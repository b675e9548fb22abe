import numpy as np
import pytest
import tensorflow as tf
from conftest import nhwc

from tfcorr.refsr.losses import (
    correlation_divergence,
    perceptual_loss,
    reconstruction_loss,
    triplet_margin_loss,
)


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


def test_golden_student_loss_and_gradients(golden, contrastive):
    expected = golden("losses", "student")
    *teacher, target, valid = contrastive
    student = [tf.constant(nhwc(expected[f"features{i}"])) for i in (1, 2)]
    with tf.GradientTape() as tape:
        tape.watch(student)
        divergence = correlation_divergence(student, teacher, target, valid)
        terms = triplet_margin_loss(*student, target, valid)
        loss = terms.loss + 15.0 * divergence
    np.testing.assert_allclose(divergence, expected["distill_loss"], rtol=1e-5)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)
    gradients = tape.gradient(loss, student)
    for number, gradient in enumerate(gradients, start=1):
        np.testing.assert_allclose(gradient, nhwc(expected[f"d_features{number}"]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("support", ["matched", "all"])
def test_divergence_equals_a_loop_over_positions(support):
    rng = np.random.default_rng(5)
    student, teacher = (
        [rng.normal(size=(2, *size, 4)).astype("float32") for size in ((5, 6), (4, 7))] for _ in range(2)
    )
    target = np.stack([rng.integers(0, 4, (2, 30)), rng.integers(0, 7, (2, 30))], -1).astype("int32")
    valid = rng.random((2, 30)) < 0.6
    expected = []
    for b in range(2):
        cells = [(y, x) for y in range(4) for x in range(7)]
        if support == "matched":
            cells = [tuple(target[b, i]) for i in range(30) if valid[b, i]]
        terms = []
        for i in np.flatnonzero(valid[b]):
            probabilities = []
            for query, reference in (teacher, student):
                q = query[b].reshape(30, 4)[i].astype("float64")
                columns = np.stack([reference[b][cell] for cell in cells]).astype("float64")
                cosine = columns @ q / np.linalg.norm(q) / np.linalg.norm(columns, axis=1)
                exponential = np.exp(cosine / 0.15)
                probabilities.append(exponential / exponential.sum())
            terms.append(np.sum(probabilities[0] * np.log(probabilities[0] / probabilities[1])))
        expected.append(np.mean(terms))
    found = correlation_divergence(student, teacher, target, valid, support=support, minimum_positions=1)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-4)
    least = correlation_divergence(student, teacher, target, valid, minimum_positions=31)
    assert float(least) == 0.0


def test_the_teacher_gets_no_gradient_and_equals_have_no_divergence(contrastive):
    query, reference, target, valid = contrastive
    features = [tf.constant(query), tf.constant(reference)]
    other = [tf.constant(query[:, ::-1].copy()), tf.constant(reference)]
    with tf.GradientTape() as tape:
        tape.watch(features)
        divergence = correlation_divergence(other, features, target, valid)
    assert float(divergence) > 0 and tape.gradient(divergence, features) == [None, None]
    assert abs(float(correlation_divergence(features, features, target, valid))) < 1e-7


def test_golden_perceptual_loss(golden):
    expected = golden("losses", "perceptual")
    truth, restored = nhwc(expected["feat_gt"]), tf.constant(nhwc(expected["feat_sr"]))
    with tf.GradientTape() as tape:
        tape.watch(restored)
        loss = 1e-4 * perceptual_loss(truth, restored)
    np.testing.assert_allclose(loss, expected["loss_weighted"], rtol=1e-5)
    gradient = nhwc(expected["d_feat_sr"])
    np.testing.assert_allclose(tape.gradient(loss, restored), gradient, rtol=1e-4, atol=1e-9)


def test_perceptual_loss_as_printed(golden):
    arrays = golden("losses", "perceptual")
    truth, restored = nhwc(arrays["feat_gt"]), nhwc(arrays["feat_sr"])
    total = 0.0
    for b in range(2):
        for channel in range(32):
            difference = truth[b, ..., channel].astype("float64") - restored[b, ..., channel]
            total += np.sqrt(np.sum(difference**2)) / truth[b].size
    np.testing.assert_allclose(perceptual_loss(truth, restored, norm="channel"), total / 2, rtol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "channel"])
def test_perceptual_loss_of_equal_features_has_a_finite_gradient(norm):
    features = tf.random.stateless_normal((1, 2, 2, 3), (0, 1))
    with tf.GradientTape() as tape:
        tape.watch(features)
        loss = perceptual_loss(tf.identity(features), features, norm=norm)
    assert float(loss) == 0.0
    np.testing.assert_array_equal(tape.gradient(loss, features), 0.0)


def test_unknown_choices_are_refused(contrastive):
    query, reference, target, valid = contrastive
    pair = (query, reference)
    with pytest.raises(ValueError, match="nearest"):
        correlation_divergence(pair, pair, target, valid, support="nearest")
    with pytest.raises(ValueError, match="max"):
        perceptual_loss(query, query, norm="max")
