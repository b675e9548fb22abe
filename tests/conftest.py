"""What many tests share: golden numbers (tests/goldens, see its README) and small models."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

GOLDENS = Path(__file__).parent / "goldens"

# The cases of goldens/deform_conv.npz.
DEFORM_CASES = (
    "basic",
    "zero_offset",
    "far",
    "integer",
    "border",
    "stride2_pad0",
    "dil2_pad2",
    "k5_pad2",
    "k1",
    "real64",
)

# Sizes of a restorer that is built and trained in seconds.
TINY = {
    "features": 8,
    "content_blocks": 1,
    "blocks": [1, 1, 1],
    "reference_levels": ["medium", "large"],
    "offset_widths": [8, 8, 8],
    "aggregated_widths": [8, 8, 8],
    "deform_groups": 2,
}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Each test draws the same numbers, whatever ran before it; Keras seeds its initializers from `random`.

    Matching takes the best of many scores: with weights that differ from run to run, two of them are once in
    a while so close that two runtimes disagree.
    """
    random.seed(item.nodeid)


@pytest.fixture(autouse=True)
def float32_policy():
    """What a test trains in bfloat16, which `auto` means on some processors, does not reach the next test."""
    yield
    keras = sys.modules.get("keras")
    if keras is not None:
        keras.config.set_dtype_policy("float32")


def load_golden(name: str, prefix: str | None = None) -> dict[str, np.ndarray]:
    """Arrays of ``goldens/<name>.npz``; with ``prefix``, those under ``<prefix>/``, named without it."""
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as archive:
        if prefix is None:
            return {key: archive[key] for key in archive.files}
        start = prefix + "/"
        return {key.removeprefix(start): archive[key] for key in archive.files if key.startswith(start)}


def logged_pictures(run: Path) -> dict[str, list[tuple[int, list[np.ndarray]]]]:
    """The pictures in a run's event files: name -> (step, the images as (H, W, 3) uint8) of each writing."""
    pytest.importorskip("tensorboard")
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag.removeprefix("pictures/"): [
            # Behind width and height.
            (event.step, [tf.io.decode_png(png).numpy() for png in event.tensor_proto.string_val[2:]])
            for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
        if tag.startswith("pictures/")
    }


@pytest.fixture
def compiler():
    """A C++ compiler; without one the test is skipped."""
    from tfcorr.toolchain import BuildError, find_compiler

    try:
        return find_compiler()
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def golden():
    """``golden(file, prefix=None)`` -> dict of arrays."""
    return load_golden


def nhwc(array: np.ndarray) -> np.ndarray:
    """(B, C, H, W) -> (B, H, W, C)."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def hwio(kernel: np.ndarray) -> np.ndarray:
    """(O, I, kh, kw) -> (kh, kw, I, O)."""
    return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory) -> Path:
    """A model folder as `tfcorr train` writes it, of a small random model that uses its reference strongly.

    Both extractors have the same weights, so that a patch matches its own copy with a score of 1; the
    restorer's kernels are large enough for the reference to move the result by several percent.
    """
    import hashlib
    import json

    import keras

    from tfcorr.refsr.model import C2Matching

    architecture = {
        "restorer": {**TINY, "deform_groups": 4},
        "reference_features": "matcher",
    }
    model = C2Matching.from_architecture(architecture)
    random = np.random.default_rng(7)
    for weight in model.restorer.weights:
        fan_in = float(np.prod(weight.shape[:-1]))
        gain = 0.3 if "conv_offset_mask" in weight.path else 1.0
        weight.assign(gain * random.normal(0, max(fan_in, 1.0) ** -0.5, weight.shape))
    extractors = model.correspondence
    extractors.input_extractor.set_weights(extractors.reference_extractor.get_weights())
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    model.save_weights(folder / "model.weights.h5")
    card = {
        "name": "tiny",
        "job": "super-resolution",
        "architecture": architecture,
        "licence": "Apache-2.0",
        "checksums": {
            "model.weights.h5": hashlib.sha256((folder / "model.weights.h5").read_bytes()).hexdigest()
        },
        "metrics": {"validation": {"psnr_y": 12.345}},
        "confidence_threshold": 0.9,
    }
    keras.utils.clear_session()
    (folder / "card.json").write_text(json.dumps(card))
    return folder
