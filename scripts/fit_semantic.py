"""Train PMD with `fit`, as a starting point for experiments of your own: teacher, hypotheses, student.

    python scripts/fit_semantic.py --photos PHOTOS --pairs KINDS --output student

PHOTOS is any folder of photographs, KINDS has a folder for each kind of thing. `tfcorr train
semantic/birds_cpu` is the same code with cached features, checkpoints, validation and model cards.
"""

import argparse
from pathlib import Path

import keras
import numpy as np

from tfcorr.backbones import backbone
from tfcorr.config.semantic import ColourJitter, ImageSet, PairSet, Warps
from tfcorr.semantic.data import DistillationSamples, PairInputs, WarpedSamples
from tfcorr.semantic.datasets import find_image_set, find_pairs
from tfcorr.semantic.features import Extractor
from tfcorr.semantic.hypotheses import VarianceStore, hypothesis_records, make_hypotheses
from tfcorr.semantic.loading import SEMANTIC_MATCHING, save_network
from tfcorr.semantic.network import MatchingHead, SemanticMatchingNetwork
from tfcorr.semantic.teacher import TeacherHead
from tfcorr.semantic.training import DistillationTrainer, EStep, TeacherTrainer
from tfcorr.training.callbacks import Clock, RunState
from tfcorr.training.photos import PhotoCache


def main() -> None:
    """Trains and writes the student's model folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="photographs for the teacher's warps")
    parser.add_argument("--pairs", type=Path, required=True, help="<kind>/<image> for the student")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the student, and of what it needs"
    )
    parser.add_argument("--backbone", default="resnet101")
    parser.add_argument("--weights", help="imagenet, or a file (default: random)")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--teacher-steps", type=int, default=1000)
    parser.add_argument("--hypotheses", type=int, default=4, help="m of section 3.2")
    parser.add_argument("--rounds", type=int, default=5, help="of algorithm 1")
    parser.add_argument("--rate", type=float, default=3e-5, help="learning rate; the paper's is 3e-5")
    parser.add_argument("--seed", type=int, default=10)
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    photos = PhotoCache(keep=1000)
    frozen = backbone(args.backbone, args.weights)
    extractor = Extractor(frozen, args.size)
    channels = tuple(shape[2] for shape in extractor.shapes.values())

    # Section 3.2, 1: the teacher learns on photographs that were warped, whose flow is known.
    warped = WarpedSamples(
        find_image_set(ImageSet(images=(str(args.photos.resolve()),)), None),
        photos,
        size=args.size,
        grid=extractor.grid,
        warps=Warps(),
        jitter=ColourJitter(),
        batch=args.batch,
        seed=args.seed,
    )
    teacher = TeacherTrainer(SemanticMatchingNetwork(TeacherHead(channels), frozen), seed=args.seed)
    teacher.compile(optimizer=keras.optimizers.Adam(args.rate), jit_compile=False)
    steps = args.teacher_steps
    teacher.fit(warped.dataset(0, steps), steps_per_epoch=steps, shuffle=False)

    # Section 3.2, 2: it looks at each real pair m times.
    pairs = find_pairs(PairSet("folders", str(args.pairs.resolve()), pairing="matched"), None)
    inputs = PairInputs(pairs, photos, args.size)
    records = hypothesis_records(
        args.output / "hypotheses", len(pairs), args.hypotheses, extractor.grid, shard=8, key=str(vars(args))
    )

    def flows(batch, seed):
        return teacher.network(batch, samples=args.hypotheses, seed=seed)

    make_hypotheses(flows, records, inputs.many, seed=args.seed)

    # Section 3.3: the student learns to tell right hypotheses from wrong ones, round by round.
    real = DistillationSamples(inputs, records, batch=args.batch, seed=args.seed)
    store = VarianceStore(args.output / "variance", len(pairs), (1, *extractor.grid, 2))
    head = MatchingHead(channels)
    student = DistillationTrainer(SemanticMatchingNetwork(head, frozen), store)
    student.compile(optimizer=keras.optimizers.Adam(args.rate), jit_compile=False)
    student.optimizer.build(student.trainable_variables)
    state = RunState(seed=args.seed, config="")
    one_round = int(np.ceil(len(pairs) / args.batch))
    steps = args.rounds * one_round
    e_step = EStep(state, args.output, real.every_pair, one_round)
    student.fit(
        real.dataset(0, steps), steps_per_epoch=steps, shuffle=False, callbacks=[Clock(state), e_step]
    )

    card = {"name": args.output.name, "job": SEMANTIC_MATCHING}
    save_network(
        args.output,
        SemanticMatchingNetwork(head, frozen),
        backbone={"name": args.backbone},
        size=args.size,
        card=card,
    )


if __name__ == "__main__":
    main()
