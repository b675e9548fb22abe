"""Numbered batches of samples as tf.data.

Every batch is a pure function of the seed and its number: sample j of batch k has a random generator of its
own, made of (seed, k, j), and items are visited in a permutation made of (seed, epoch). A run that goes on
at step k therefore sees the batches that it would have seen, and the number of parallel workers changes
nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfcorr.training.photos import DataError


class _Calls:
    """Counts the batches that threads of TensorFlow are making right now."""

    def __init__(self):
        self._count = 0
        self._changed = threading.Condition()

    def __enter__(self):
        with self._changed:
            self._count += 1

    def __exit__(self, *_):
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._count, seconds)


_calls = _Calls()


def wait_for_readers(seconds: float = 60.0) -> None:
    """Returns when no batch is being made any more for a dataset that is not asked for more.

    An interpreter that ends while one of TensorFlow's threads is in Python aborts ("exception not rethrown").
    """
    # A batch that is done may be followed by the next of a short queue.
    while _calls.wait(seconds):
        time.sleep(0.1)
        if _calls.wait(0):
            return


class Samples:
    """Numbered batches of named arrays; subclasses make one sample.

    Args:
        items: what a sample is made from; each is visited once an epoch.
        batch: samples a batch.
        seed: of all randomness.
        augment: without it, items come in their order, unflipped and from their centre.
    """

    def __init__(self, items: Sequence, batch: int, seed: int, augment: bool = True):
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.items = items
        self.batch_size = batch
        self.seed = seed
        self.augment = augment
        self._order = functools.lru_cache(maxsize=2)(self._make_order)

    def sample(self, item, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        """One sample of ``item``; None if one of its files cannot be read."""
        raise NotImplementedError

    @functools.cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits that change with the names of the files in `items`, and their order."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(repr(_named(item)).encode())
        return digest.hexdigest()[:16]

    def _make_order(self, epoch: int) -> np.ndarray:
        if not self.augment:
            return np.arange(len(self.items))
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.items))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Batch number ``step`` (from 0): each array of `sample`, stacked along a new first axis.

        Raises:
            DataError: no item can be read.
        """
        samples = [self._numbered(step, slot) for slot in range(self.batch_size)]
        return {name: np.stack([s[name] for s in samples]) for name in samples[0]}

    def _numbered(self, step: int, slot: int) -> dict[str, np.ndarray]:
        count = len(self.items)
        epoch, place = divmod(step * self.batch_size + slot, count)
        rng = np.random.default_rng((self.seed, step, slot))
        for attempt in range(count):
            # The next item stands in for one that cannot be read.
            item = self.items[self._order(epoch)[(place + attempt) % count]]
            sample = self.sample(item, rng)
            if sample is not None:
                return sample
        raise DataError(f"none of the {count} items can be read; the log names each file")

    def dataset(self, start: int, stop: int, workers: int = 2):
        """Batches ``start`` to ``stop`` - 1 as a `tf.data.Dataset` of dictionaries of tensors.

        Args:
            start, stop: numbers of the first batch and of the one behind the last.
            workers: batches made at the same time; changes the speed alone.
        """
        import tensorflow as tf

        signature = {name: tf.TensorSpec(a.shape, a.dtype) for name, a in self.batch(start).items()}
        names = list(signature)

        def make(step):
            with _calls:
                batch = self.batch(int(step))
            return [batch[name] for name in names]

        def load(step):
            arrays = tf.numpy_function(
                make,
                [step],
                [signature[n].dtype for n in names],
            )
            return {n: tf.ensure_shape(a, signature[n].shape) for n, a in zip(names, arrays, strict=True)}

        steps = tf.data.Dataset.range(start, stop)
        return steps.map(load, num_parallel_calls=workers, deterministic=True).prefetch(2)


def _named(item: Any) -> Any:
    """An item with the last two parts of its paths, as data may be moved."""
    if isinstance(item, Path):
        return item.parent.name, item.name
    if dataclasses.is_dataclass(item):
        return [_named(getattr(item, field.name)) for field in dataclasses.fields(item)]
    if isinstance(item, (list, tuple)):
        return [_named(part) for part in item]
    return item
