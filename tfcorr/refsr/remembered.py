"""Results of a function that are asked for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from tfcorr.refsr.pixels import digest


class Remembered:
    """A function of one array that keeps its latest results.

    Args:
        function: takes an array and returns a tensor or array; the same for the same values.
        memory: bytes that the results may take; the one used longest ago goes first, and one that is larger
            by itself is not kept.
    """

    def __init__(self, function: Callable[[np.ndarray], Any], memory: int):
        self.function = function
        self.memory = memory
        self._results: OrderedDict[bytes, Any] = OrderedDict()
        self._bytes = 0

    def __call__(self, array: np.ndarray) -> Any:
        key = digest([array])
        if key in self._results:
            self._results.move_to_end(key)
            return self._results[key]
        result = self.function(array)
        self._results[key] = result
        self._bytes += _size(result)
        while self._bytes > self.memory:
            _, oldest = self._results.popitem(last=False)
            self._bytes -= _size(oldest)
        return result


def _size(result: Any) -> int:
    return int(np.prod(result.shape)) * np.dtype(str(getattr(result.dtype, "name", result.dtype))).itemsize
