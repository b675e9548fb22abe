"""Train a correspondence network with `fit`, as a starting point for experiments of your own.

    python scripts/fit_matcher.py --images PHOTOS --steps 1000 --output matcher.weights.h5

`tfcorr train refsr/matcher_cpu` does the same with checkpoints, validation and a model card.
"""

import argparse
from pathlib import Path

import keras

from tfcorr.config import HomographySampling, Photometric
from tfcorr.refsr.data import MatcherSamples
from tfcorr.refsr.extractor import CorrespondenceNetwork
from tfcorr.refsr.photos import PhotoCache, find_images
from tfcorr.refsr.training import MatcherTrainer


def main() -> None:
    """Trains and writes the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--output", type=Path, required=True, help="a file *.weights.h5")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=96, help="side of the training images, a multiple of 4")
    parser.add_argument("--seed", type=int, default=10)
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    samples = MatcherSamples(
        find_images([str(args.images.resolve())], None),
        PhotoCache(),
        crop=args.crop,
        homography=HomographySampling(),
        photometric=Photometric(probability=0.5),
        border=10.0,
        batch=args.batch,
        seed=args.seed,
    )
    network = CorrespondenceNetwork()
    network.build()
    # From random weights, the triplet loss of the paper needs a companion; see `tfcorr.refsr.contrastive`.
    trainer = MatcherTrainer(
        network, margin=1.0, safe_radius=4.0, triplet_weight=0.5, contrastive_weight=1.0, minimum_positions=1
    )
    schedule = keras.optimizers.schedules.CosineDecay(0.0, args.steps, warmup_target=1e-3, warmup_steps=100)
    trainer.compile(optimizer=keras.optimizers.Adam(schedule, global_clipnorm=1.0), jit_compile=False)
    trainer.fit(samples.dataset(0, args.steps), steps_per_epoch=args.steps, shuffle=False)
    network.save_weights(args.output)


if __name__ == "__main__":
    main()
