"""Make a model folder out of the authors' published weights, from your own copy of their files.

    python scripts/convert_weights.py c2 feature_extraction.pth c2_matching_restoration.pth --output c2-paper
    tfcorr super-resolve photo.png --reference sharp.jpg --model ./c2-paper

    python scripts/convert_weights.py pmd pascal_weakly.pt --output pmd-paper
    tfcorr match source.jpg target.jpg --model ./pmd-paper

The files of C2-Matching are linked in its repository (github.com/yumingj/C2-Matching), those of PMD in its
own (github.com/fanyang587/PMD). They are read without PyTorch, and nothing that they say is executed. Names
and shapes are all checked, the sizes are read off them. What the files do not hold comes from ImageNet's
weights: VGG19, the source of C2-Matching's reference features (--vgg), and PMD's backbone
(--backbone-weights); both are downloaded by keras.applications unless a file is named. Its ResNet-101 is not
torchvision's, which PMD's head was trained on: numbers near the paper's need torchvision's weights, brought
into Keras' layers, as a file. The weights stay under their authors' terms.
"""

import argparse
import sys
from pathlib import Path

import tfcorr
from tfcorr.errors import TfcorrError
from tfcorr.pretrained import SUPER_RESOLUTION, sha256_of
from tfcorr.published import state_dict
from tfcorr.torch_checkpoint import read_checkpoint
from tfcorr.training.model_folder import write_model

LICENCE = "as published by the authors; see their repository"


def convert_c2(extractors: Path, restorer: Path, vgg: str, output: Path) -> None:
    """Writes the folder of a model for super-resolution.

    Args:
        extractors: the matcher's checkpoint.
        restorer: the restoration network's.
        vgg: VGG19's weights, as `tfcorr.refsr.extractor.load_imagenet_weights` takes them.
        output: the folder.

    Raises:
        TfcorrError: a file cannot be used.
    """
    from tfcorr.refsr.extractor import load_imagenet_weights
    from tfcorr.refsr.published import published_model

    model = published_model(
        *(state_dict(read_checkpoint(path), path.name) for path in (extractors, restorer))
    )
    try:
        load_imagenet_weights(model.vgg, vgg, "vgg19")
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        raise TfcorrError(f"--vgg: {error}") from error
    card = _card(output, SUPER_RESOLUTION, (extractors, restorer))
    write_model(output, model, {**card, "architecture": model.architecture})


def convert_pmd(checkpoint: Path, weights: str, output: Path) -> None:
    """Writes the folder of a model for semantic matching.

    Args:
        checkpoint: of the student's head.
        weights: the ResNet-101's, as `tfcorr.backbones.backbone` takes them.
        output: the folder.

    Raises:
        TfcorrError: a file cannot be used.
    """
    from tfcorr.backbones import backbone
    from tfcorr.semantic.loading import SEMANTIC_MATCHING, save_network
    from tfcorr.semantic.network import SemanticMatchingNetwork
    from tfcorr.semantic.published import published_head

    head = published_head(read_checkpoint(checkpoint))
    network = SemanticMatchingNetwork(head, backbone("resnet101", weights))
    card = _card(output, SEMANTIC_MATCHING, (checkpoint,))
    # Published: images of 320x320 pixels.
    save_network(output, network, backbone={"name": "resnet101"}, size=320, card=card)


def _card(output: Path, job: str, files: tuple[Path, ...]) -> dict:
    return {
        "name": output.name,
        "job": job,
        "licence": LICENCE,
        "converted": {
            "files": {path.name: sha256_of(path) for path in files},
            "tfcorr": tfcorr.__version__,
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    methods = parser.add_subparsers(dest="method", required=True)
    c2 = methods.add_parser("c2", help="C2-Matching: extractors and restoration network")
    c2.add_argument("extractors", type=Path, help="feature_extraction.pth")
    c2.add_argument("restorer", type=Path, help="c2_matching_restoration.pth, or the one of mse")
    c2.add_argument("--vgg", default="imagenet", help="VGG19: 'imagenet' (downloads), a .npz or a .h5 file")
    pmd = methods.add_parser("pmd", help="PMD: a student")
    pmd.add_argument("checkpoint", type=Path, help="pascal_weakly.pt or another of them")
    pmd.add_argument("--backbone-weights", default="imagenet", help="ResNet-101: 'imagenet' or a file")
    for method in (c2, pmd):
        method.add_argument("--output", type=Path, required=True, help="the model folder to write")
    args = parser.parse_args(arguments)
    try:
        if args.method == "c2":
            convert_c2(args.extractors, args.restorer, args.vgg, args.output)
        else:
            convert_pmd(args.checkpoint, args.backbone_weights, args.output)
    except (TfcorrError, OSError) as error:
        print(f"convert_weights: {error}", file=sys.stderr)
        return 1
    print(f"model written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
