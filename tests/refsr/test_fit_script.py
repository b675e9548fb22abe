"""`scripts/fit_refsr.py` trains what `tfcorr train` trains."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

from tfcorr.config import load_config
from tfcorr.pretrained import WEIGHTS_FILE
from tfcorr.refsr.stages import train

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fit_refsr.py"


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    content = {
        "stage": "matcher",
        "name": "m",
        "output": str(tmp_path / "m"),
        "run": str(tmp_path / "run"),
        "licence": "test",
        "data_root": str(tmp_path),
        "data": {"images": ["photos"], "crop": 32},
        "loss": {"margin": 1.0, "safe_radius": 2.0, "minimum_positions": 1, "contrastive_weight": 1.0},
        "train": {
            "steps": 3,
            "batch": 2,
            "learning_rate": {"initial": 1e-3},
            "precision": "float32",
            "clip_norm": 1.0,
        },
    }
    path = tmp_path / "matcher.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def arrays(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return found


def train_to(config: Path, folder: Path, steps: int) -> dict[str, np.ndarray]:
    overrides = [f"output={folder}", f"run={folder}-run", f"train.steps={steps}"]
    train(load_config(str(config), overrides), ["tfcorr", "train", "matcher.yaml"], report=lambda line: None)
    return arrays(folder / WEIGHTS_FILE)


def test_the_script_ends_with_the_weights_of_the_command(config, tmp_path):
    weights = tmp_path / "fit.weights.h5"
    command = [sys.executable, str(SCRIPT), str(config), str(weights)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = arrays(weights)
    expected = train_to(config, tmp_path / "m", 3)
    assert expected.keys() == found.keys() and len(expected) == 20
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=2e-5, err_msg=name)
    # What was trained is what was compared: a step earlier the weights are elsewhere.
    earlier = train_to(config, tmp_path / "earlier", 2)
    assert max(np.abs(earlier[name] - values).max() for name, values in expected.items()) > 2e-4
