"""Trains each kind of `test_trainers` whole, and interrupted and resumed; what its test of resuming starts.

    python resume.py FOLDER

writes FOLDER/KIND.npz: ``whole/N`` and ``resumed/N``, all variables of either run, and ``moved``. A process
of its own, as sums have a fixed order with one thread alone, which has to be set before TensorFlow starts.
"""

import functools
import sys
from pathlib import Path

import keras
import numpy as np
from test_trainers import INTERRUPTED, KINDS, batches_of, run, values_of

from tfcorr.config import LearningRate, Training
from tfcorr.training.loop import prepare


def main() -> None:
    """Runs all kinds."""
    folder = Path(sys.argv[1])
    prepare(Training(steps=1, batch=1, learning_rate=LearningRate(1.0), threads=1, precision="float32"))
    for kind, (make, batch) in KINDS.items():
        batches = batches_of(batch)
        keras.utils.set_random_seed(0)
        whole = make()
        before = [np.array(v) for v in whole.trainable_variables]
        run(whole, batches, folder / kind / "whole")
        keras.utils.set_random_seed(0)
        run(make(), lambda start, stop, batches=batches: batches(start, INTERRUPTED), folder / kind / "two")
        # Another seed: everything that counts comes from the checkpoint.
        keras.utils.set_random_seed(1)
        resumed = make()
        # The pictures that it draws change nothing either.
        pictures = functools.partial(resumed.pictures, batch(0))
        run(resumed, batches, folder / kind / "two", pictures)
        arrays = {f"whole/{i:03d}": value for i, value in enumerate(values_of(whole))}
        arrays.update({f"resumed/{i:03d}": value for i, value in enumerate(values_of(resumed))})
        moved = [
            np.abs(a - np.array(v)).max() for a, v in zip(before, whole.trainable_variables, strict=True)
        ]
        np.savez(folder / f"{kind}.npz", moved=max(moved), **arrays)


if __name__ == "__main__":
    main()
