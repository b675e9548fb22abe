"""Train PMD with `model.fit`, as a starting point for experiments of your own: teacher, hypotheses, student.

    python scripts/fit_semantic.py semantic/birds_cpu data_root=/data run=runs/mine output=runs/mine/model
    python scripts/fit_semantic.py semantic/weak_pfpascal data_root=/data student.train.steps=500

Data, models, trainers and optimisers are those of `tfcorr train` with the same words, and so are the model
folders. What this script leaves out is what surrounds them: resuming, the checks for divergence, TensorBoard
and the evaluation. Give it a `run` of its own.
"""

import argparse
import sys

from tfcorr.config import ConfigError, SemanticConfig, load_config
from tfcorr.errors import TfcorrError
from tfcorr.semantic.stages import Part, Regime
from tfcorr.training.callbacks import Clock, RunState
from tfcorr.training.loop import compile_trainer, prepare


def fit(regime: Regime, part: Part) -> None:
    """Trains the teacher or the student, and writes its model folder."""
    settings = part.stage.train
    compile_trainer(part.trainer, settings)
    state = RunState(seed=settings.seed, config="")
    callbacks = [Clock(state)]
    if part.callbacks:
        callbacks += part.callbacks(state)  # the E-step, which ends each round of algorithm 1
    part.trainer.fit(
        part.samples.dataset(0, settings.steps, settings.workers),
        validation_data=regime.held_out(part),
        callbacks=callbacks,
        shuffle=False,
    )
    regime.save(part, state)


def main() -> None:
    """Trains a regime from photographs to a student."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a YAML file, or the name of one that ships")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values to replace")
    args = parser.parse_args()

    try:
        config = load_config(args.config, args.overrides)
        if not isinstance(config, SemanticConfig):
            raise ConfigError(f"{args.config}: stage {config.stage} does not train semantic matching")
        regime = Regime(config, ["python", "scripts/fit_semantic.py", args.config, *args.overrides])
        prepare(config.student.train)
        if config.teacher_model is None:
            fit(regime, regime.teacher_part())  # section 3.2, 1
        regime.hypotheses()  # section 3.2, 2
        fit(regime, regime.student_part())  # section 3.3
    except TfcorrError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
