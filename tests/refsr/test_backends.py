"""The restorer and the matcher without TensorFlow: the same goldens under Keras' NumPy backend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:]
import keras
import numpy as np
from conftest import load_golden, nhwc
from test_restorer import build_network, network_inputs

assert keras.backend.backend() == "numpy"
arrays = load_golden("restoration", "ngf16_b2")
out = build_network(arrays)(network_inputs(arrays))
np.testing.assert_allclose(out, nhwc(arrays["out"]), rtol=1e-4, atol=5e-5)

from tfcorr.refsr.matching import correspondences
case = load_golden("feature_match", "rand16")
index, score = correspondences(nhwc(case["feat_in"]), nhwc(case["feat_ref"]))
np.testing.assert_array_equal(index, case["max_idx"])
np.testing.assert_allclose(score, case["max_val"], atol=1e-5)

from tfcorr.refsr.model import C2Matching
model = C2Matching.from_architecture({"restorer": "compact"})
image = np.random.default_rng(0).random((1, 16, 20, 3), dtype=np.float32)
assert model({"lr": image[:, :4, :5], "reference": image}).shape == (1, 16, 20, 3)
assert "tensorflow" not in sys.modules
"""


@pytest.mark.parametrize("backend", ["numpy"])
def test_goldens_hold_without_tensorflow(backend):
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "refsr")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *paths],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
