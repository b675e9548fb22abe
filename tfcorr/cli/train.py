"""`tfcorr train`: any stage of training, resumable."""

from __future__ import annotations

import argparse

from tfcorr.cli.arguments import add_config
from tfcorr.cli.messages import start_tensorflow

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Trains what a configuration describes and writes a model folder. Stopped with Ctrl-C or SIGTERM it saves a
checkpoint; the same command goes on from there, with the same batches, and from the last checkpoint after
anything worse. Follow it with `tensorboard --logdir RUN`.
"""

_EPILOG = """\
examples:
  tfcorr train refsr/matcher_cpu data_root=/data
  tfcorr train refsr/restorer_cpu data_root=/data train.max_minutes=60
  tfcorr train my.yaml train.steps=5000 'data.exclude=[{scene: church}]'

Relative data paths lie below data_root, by default $TFCORR_DATA. train.max_minutes=0 trains nothing and
writes the model folder from the last checkpoint. The exit status is 1 when training failed or was
interrupted.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Registers the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="any stage of training, resumable, with TensorBoard",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Trains; returns 1 when it was interrupted before the last step."""
    from tfcorr.config import check_command, load_config, runner

    config = load_config(args.config, args.overrides)
    check_command(config, "train")
    start_tensorflow()
    train = runner(config)
    command = ["tfcorr", "train", args.config, *args.overrides]
    try:
        state = train(config, command, report=lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, and the same command goes on")
        return 1
    if state.stopped == "max_minutes":
        print(f"stopped after train.max_minutes, at step {state.step}; the same command goes on")
    elif state.stopped:
        print(
            f"interrupted ({state.stopped}) at step {state.step}, checkpoint saved; the same command goes on"
        )
        return 1
    return 0
