"""Train any stage of C2-Matching with `model.fit`, as a starting point for experiments of your own.

    python scripts/fit_refsr.py refsr/teacher_cpu teacher.weights.h5 data_root=/data
    python scripts/fit_refsr.py refsr/student_cpu student.weights.h5 data_root=/data teacher=FOLDER
    python scripts/fit_refsr.py refsr/restorer_gan_cpu restorer.weights.h5 data_root=/data train.steps=500

Data, model, trainer and optimiser are those of `tfcorr train` with the same words. What this script leaves
out is what surrounds them: checkpoints, resuming, the checks for divergence, several workers, and the model's
card.
"""

import argparse
from pathlib import Path

from tfcorr.config import check_command, load_config
from tfcorr.refsr.stages import build
from tfcorr.training.callbacks import Clock, Phases, RunState
from tfcorr.training.distribution import make_strategy
from tfcorr.training.loop import compile_trainer, prepare


def main() -> None:
    """Trains and writes the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a YAML file, or the name of one that ships")
    parser.add_argument("weights", type=Path, help="a file *.weights.h5 to write")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values to replace")
    args = parser.parse_args()

    config = load_config(args.config, args.overrides)
    check_command(config, "train")
    settings = config.train
    prepare(settings)
    with make_strategy(settings).scope():
        stage = build(config)
    compile_trainer(stage.trainer, settings)

    state = RunState(seed=settings.seed, config="")
    callbacks = [Clock(state)]
    if hasattr(stage.trainer, "phase"):
        callbacks.append(Phases(state))  # the warm-up of the adversarial trainer
    stage.trainer.fit(
        stage.samples.dataset(0, settings.steps, settings.workers),
        validation_data=stage.held_out(),
        callbacks=callbacks,
        shuffle=False,
    )
    stage.model.save_weights(args.weights)


if __name__ == "__main__":
    main()
