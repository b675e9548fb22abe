"""Write what the rows of the ablation begin with, see docs/evaluation.md#ablation.

    python scripts/ablation_start.py runs/ablation

`FOLDER/start`: a trained model with the extractor of its textures apart from its matcher, so that all rows
see the same textures, and with offsets and masks that are not learned yet (0 and one half).
`FOLDER/fixed.npz`: random weights for the extractors of a matcher: fixed features where VGG's cannot be had.
"""

import argparse
from pathlib import Path

import keras
import numpy as np

from tfcorr.pretrained import load_super_resolution
from tfcorr.refsr.extractor import CONVOLUTIONS, FeatureExtractor
from tfcorr.refsr.model import C2Matching
from tfcorr.training.model_folder import write_model


def write_start(folder: Path, name: str) -> None:
    """Writes the model that all rows go on from."""
    source, card = load_super_resolution(name)
    architecture = {**card.architecture, "reference_features": "vgg19"}
    model = C2Matching.from_architecture(architecture)
    model.correspondence.set_weights(source.correspondence.get_weights())
    model.vgg.set_weights(source.correspondence.reference_extractor.get_weights())
    model.restorer.set_weights(source.restorer.get_weights())
    for weight in model.restorer.weights:
        if "conv_offset_mask" in weight.path:
            weight.assign(np.zeros(weight.shape, np.float32))
    content = {**card.content, "name": "ablation-start", "architecture": architecture, "default": False}
    write_model(folder, model, content)


def write_fixed(file: Path, seed: int = 0) -> None:
    """Writes random weights (He) in the plain names of `tfcorr.refsr.extractor.load_imagenet_weights`."""
    keras.utils.set_random_seed(seed)  # NumPy's too
    extractor = FeatureExtractor()
    extractor.build()
    arrays = {}
    for name, _ in CONVOLUTIONS:
        kernel, bias = extractor.get_layer(name).get_weights()
        kernel = np.random.randn(*kernel.shape) * np.sqrt(2 / np.prod(kernel.shape[:3]))  # noqa: NPY002
        arrays[f"{name}.weight"] = kernel.transpose(3, 2, 0, 1).astype(np.float32)
        arrays[f"{name}.bias"] = bias
    np.savez(file, **arrays)


def main() -> None:
    """Writes both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--model", default="c2-compact", help="a model for super-resolution (default: %(default)s)"
    )
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    write_start(args.folder / "start", args.model)
    write_fixed(args.folder / "fixed.npz")


if __name__ == "__main__":
    main()
