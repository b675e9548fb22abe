"""Batches that TensorFlow's threads make in Python."""

import time

import numpy as np

from tfcorr.training.samples import Samples, wait_for_readers


class Slow(Samples):
    """Takes its time, and tells of each sample when it began and ended."""

    def __init__(self, items):
        super().__init__(items, batch=1, seed=0)
        self.began, self.ended = [], []

    def sample(self, item, rng):
        self.began.append(time.monotonic())
        time.sleep(0.3)
        self.ended.append(time.monotonic())
        return {"value": np.float32([item])}


def test_no_batch_is_in_the_making_after_the_wait():
    samples = Slow(range(8))
    batches = iter(samples.dataset(0, 100))
    next(batches)
    del batches
    wait_for_readers(seconds=30)
    begun = len(samples.began)
    assert len(samples.ended) == begun
    time.sleep(0.7)
    assert len(samples.began) == begun


def test_the_wait_has_an_end():
    samples = Slow(range(8))
    batches = iter(samples.dataset(0, 100))
    next(batches)
    start = time.monotonic()
    wait_for_readers(seconds=0.01)
    assert time.monotonic() - start < 5
    del batches
    wait_for_readers(seconds=30)
