"""Model folders: weights and card."""

import json

import keras
import numpy as np
import pytest

from tfcorr.errors import TfcorrError
from tfcorr.pretrained import WEIGHTS_FILE, sha256_of
from tfcorr.training.model_folder import write_model
from tfcorr.weights import load_weights


def test_weights_may_be_written_as_float16(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.normal(size=weight.shape))
    values = [np.asarray(weight) for weight in model.weights]
    for half in (False, True):
        write_model(tmp_path / str(half), model, {"name": "m"}, half)
    files = [tmp_path / name / WEIGHTS_FILE for name in ("False", "True")]
    card = json.loads((files[1].parent / "card.json").read_text())
    assert card["checksums"] == {WEIGHTS_FILE: sha256_of(files[1])}
    assert sorted(path.name for path in files[1].parent.iterdir()) == ["card.json", WEIGHTS_FILE]
    for file, expected in zip(files, (values, [v.astype(np.float16) for v in values]), strict=True):
        for weight in model.weights:
            weight.assign(np.zeros(weight.shape))
        load_weights(model, file)
        for weight, value in zip(model.weights, expected, strict=True):
            assert weight.dtype == "float32"
            np.testing.assert_array_equal(weight, value)
    model.weights[0].assign(np.full(model.weights[0].shape, 1e5))
    with pytest.raises(TfcorrError, match="too large for float16"):
        write_model(tmp_path / "True", model, {"name": "m"}, True)
    assert json.loads((files[1].parent / "card.json").read_text()) == card
