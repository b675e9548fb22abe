"""Train a restoration network with `fit`, as a starting point for experiments of your own.

    python scripts/fit_restorer.py --input PAIRS/input --reference PAIRS/ref \
        --matcher runs/matcher_cpu/model --steps 1000 --output model.weights.h5

The two folders hold patches of 160x160 pixels with equal names (the layout of CUFED). `tfcorr train
refsr/restorer_cpu` does the same with checkpoints, validation and a model card.
"""

import argparse
from pathlib import Path

import keras

from tfcorr.config import PairSource, Photometric
from tfcorr.pretrained import WEIGHTS_FILE, find_model, verify
from tfcorr.refsr.data import RestorerSamples
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.photos import PhotoCache, find_pairs
from tfcorr.refsr.training import RestorerTrainer


def main() -> None:
    """Trains and writes the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="a folder of input patches")
    parser.add_argument("--reference", type=Path, required=True, help="a folder of reference patches")
    parser.add_argument("--matcher", type=Path, required=True, help="the folder of a trained matcher")
    parser.add_argument("--output", type=Path, required=True, help="a file *.weights.h5")
    parser.add_argument("--restorer", default="compact", help="full, light or compact")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--patch", type=int, default=160, help="side of the patches, a multiple of 4")
    parser.add_argument("--seed", type=int, default=10)
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    folders = PairSource(input_dir=str(args.input.resolve()), reference_dir=str(args.reference.resolve()))
    samples = RestorerSamples(
        find_pairs([folders], None),
        PhotoCache(),
        patch=args.patch,
        crop=args.patch,
        photometric=Photometric(),
        batch=args.batch,
        seed=args.seed,
    )
    card = find_model(args.matcher, job="correspondence")
    verify(card)
    model = C2Matching.from_architecture({"restorer": args.restorer})
    model.correspondence.load_weights(card.folder / WEIGHTS_FILE)
    trainer = RestorerTrainer(model)
    # The compiled ops cannot go through XLA.
    trainer.compile(optimizer=keras.optimizers.Adam(1e-4), jit_compile=False)
    trainer.fit(samples.dataset(0, args.steps), steps_per_epoch=args.steps, shuffle=False)
    model.save_weights(args.output)


if __name__ == "__main__":
    main()
