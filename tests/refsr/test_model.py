import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY

from tfcorr.refsr.matching import correspondences, pre_offsets
from tfcorr.refsr.model import GAP, C2Matching


def _image(height, width, seed=0):
    return np.random.default_rng(seed).random((1, height, width, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return C2Matching.from_architecture({"restorer": TINY})


@pytest.mark.parametrize(("size", "reference"), [((3, 3), (12, 12)), ((7, 9), (33, 50)), ((20, 5), (16, 41))])
def test_any_sizes(model, size, reference):
    out = model({"lr": _image(*size), "reference": _image(*reference, seed=1)})
    assert out.shape == (1, 4 * size[0], 4 * size[1], 3)
    assert np.isfinite(out).all()


def test_one_trace_serves_all_sizes(model):
    traces = []

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3])] * 2)
    def run(lr, reference):
        traces.append(1)
        return model({"lr": lr, "reference": reference})

    for size in ((3, 4), (8, 6)):
        lr, reference = _image(*size), _image(24, 20, 1)
        eager = model({"lr": lr, "reference": reference})
        np.testing.assert_allclose(run(lr, reference), eager, atol=1e-5)
    assert len(traces) == 1


def test_prepared_references_give_the_same_as_a_call(model):
    lr, reference = _image(9, 8), _image(40, 36, 1)
    references = model.prepare([reference])
    found = model.match(model.describe(lr), references)
    out = model.restore(lr, references.features, pre_offsets(found.index, references.columns))
    np.testing.assert_allclose(out, model({"lr": lr, "reference": reference}), atol=1e-6)


def test_each_patch_takes_the_best_of_several_references(model):
    lr = _image(9, 8)
    pictures = [_image(40, 36, 1), _image(24, 60, 2), _image(16, 16, 3)]
    references = model.prepare(pictures)
    found = model.match(model.describe(lr), references)
    scores, indices = [], []
    for picture in pictures:
        index, score = correspondences(
            model.correspondence.query_features(lr), model.extract(picture)["conv3_1"]
        )
        scores.append(np.asarray(score))
        indices.append(np.asarray(index))
    best = np.argmax(scores, axis=0)
    np.testing.assert_array_equal(found.number, best)
    assert len(np.unique(best)) > 1
    np.testing.assert_allclose(found.score, np.max(scores, axis=0), atol=1e-6)
    # The index into the common map leads to the features of the patch that was found.
    columns = references.columns - 2
    for y, x in np.ndindex(best.shape[1:]):
        number = best[0, y, x]
        widths = pictures[number].shape[2] // 4 - 2
        row, column = divmod(int(indices[number][0, y, x]), widths)
        np.testing.assert_array_equal(found.position[0, y, x], (row, column))
        mapped = divmod(int(found.index[0, y, x]), columns)
        assert mapped == (row + references.placements[number].row, column)
        own = model.extract(pictures[number])["relu2_1"][
            0, 2 * row : 2 * row + 6, 2 * column : 2 * column + 6
        ]
        common = references.features["relu2_1"][
            0, 2 * mapped[0] : 2 * mapped[0] + 6, 2 * mapped[1] : 2 * mapped[1] + 6
        ]
        np.testing.assert_array_equal(common, own)


def test_references_are_apart_in_the_common_map(model):
    references = model.prepare([_image(40, 36, 1), _image(24, 60, 2)])
    first, second = references.placements
    assert second.row == first.height + GAP
    gap = references.features["relu1_1"][:, 4 * first.height : 4 * second.row]
    assert gap.shape[1] == 4 * GAP
    np.testing.assert_array_equal(gap, np.zeros(gap.shape))


def test_ties_go_to_the_first_reference(model):
    reference = _image(20, 20, 1)
    found = model.match(model.describe(_image(6, 6)), model.prepare([reference, reference]))
    np.testing.assert_array_equal(found.number, np.zeros(found.number.shape))


def test_a_tile_with_its_origin_equals_the_same_part_of_the_whole(model):
    """Far from the tile's border, where its padding has no influence."""
    lr, reference = _image(40, 40), _image(96, 80, 1)
    references = model.prepare([reference])
    found = model.match(model.describe(lr), references)
    offsets = np.asarray(pre_offsets(found.index, references.columns))
    whole = np.asarray(model.restore(lr, references.features, offsets))
    y, x = 8, 10
    origin = np.array([y, x], np.int32)
    tile_offsets = offsets[:, y : y + 30, x : x + 30] + np.tile(origin, 9).astype("float32")
    tile = np.asarray(model.restore(lr[:, y : y + 30, x : x + 30], references.features, tile_offsets, origin))
    inner = slice(4 * 10, 4 * 20)
    expected = whole[:, 4 * y : 4 * (y + 30), 4 * x : 4 * (x + 30)]
    np.testing.assert_allclose(tile[:, inner, inner], expected[:, inner, inner], atol=1e-5)


def test_weights_and_architecture_round_trip(model, tmp_path):
    path = str(tmp_path / "model.weights.h5")
    model.save_weights(path)
    again = C2Matching.from_architecture(json.loads(json.dumps(model.architecture)))
    again.load_weights(path)
    inputs = {"lr": _image(5, 6), "reference": _image(20, 20, 1)}
    np.testing.assert_array_equal(again(inputs), model(inputs))


def test_vgg_features_are_a_third_extractor():
    model = C2Matching.from_architecture({"restorer": TINY, "reference_features": "vgg19"})
    features = model.extract(_image(16, 16))
    own = model.correspondence.reference_features(_image(16, 16))
    np.testing.assert_allclose(features["conv3_1"], own["conv3_1"])
    assert not np.allclose(features["relu1_1"], own["relu1_1"])


def test_unknown_architecture_keys_are_named():
    with pytest.raises(ValueError, match="restorers"):
        C2Matching.from_architecture({"restorers": "light"})
    with pytest.raises(ValueError, match="widht"):
        C2Matching.from_architecture({"restorer": {"widht": 3}})
