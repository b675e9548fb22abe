"""Writing ONNX graphs by hand: a small builder, and the operations on images that tfcorr's graphs share.

Values are named by strings, as in ONNX itself. Sizes are never assumed: whatever depends on one is computed
from the shapes while the graph runs.

Convention: images and features are (batch, channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 22
"""The operator set in which DeformConv knows what it needs to; ONNX Runtime executes it."""

# The oldest file format that has this operator set: older runtimes can read it.
_IR_VERSION = 10

TYPES = {np.float32: TensorProto.FLOAT, np.int64: TensorProto.INT64, np.bool_: TensorProto.BOOL}


class Graph:
    """Nodes and constants of one graph, in the order of their making.

    Args:
        parent: the graph around this one, when it is the body of a loop: its values may be used here, and
            constants are kept there.
    """

    def __init__(self, parent: Graph | None = None):
        self._parent = parent
        self._root = parent._root if parent else self
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._known: dict[tuple, str] = {}
        self._count = 0

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes):
        """Adds a node; returns the name of its output, or a tuple of names if there are several."""
        names = tuple(self._name(kind) for _ in range(outputs))
        self._nodes.append(helper.make_node(kind, list(inputs), list(names), **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value, dtype=np.float32) -> str:
        """A constant tensor; equal small ones are kept once."""
        array = np.array(value, dtype, order="C")
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 16 else None
        root = self._root
        if key is not None and key in root._known:
            return root._known[key]
        name = root._name("constant")
        root._initializers.append(numpy_helper.from_array(array, name))
        if key is not None:
            root._known[key] = name
        return name

    def integer(self, value) -> str:
        """An int64 constant."""
        return self.constant(value, np.int64)

    def loop(
        self,
        count: str,
        body: Callable[[Graph, str, Sequence[str]], tuple[Sequence[str], Sequence[str]]],
        state: Sequence[str],
        state_ranks: Sequence[int],
        collected: Sequence[tuple[type, int]],
    ) -> tuple[str, ...]:
        """Repeats a body with running state.

        Args:
            count: int64 scalar, how often.
            body: from (graph of the body, number of the turn, state) to (new state, values to collect).
            state: float32 values of the first turn; their shapes may change.
            state_ranks: number of axes of each.
            collected: NumPy type and number of axes of each value that is collected.

        Returns:
            The last state, then the collected values, stacked along a new first axis.
        """
        inner = Graph(self)
        turn, go_on = inner._name("turn"), inner._name("go_on")
        inputs = [inner._name("state") for _ in state]
        new_state, values = body(inner, turn, inputs)
        still = inner.op("Identity", go_on)
        graph = helper.make_graph(
            inner._nodes,
            "body",
            [
                helper.make_tensor_value_info(turn, TensorProto.INT64, []),
                helper.make_tensor_value_info(go_on, TensorProto.BOOL, []),
                *(
                    helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
                    for name, rank in zip(inputs, state_ranks, strict=True)
                ),
            ],
            [
                helper.make_tensor_value_info(still, TensorProto.BOOL, []),
                *(
                    helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
                    for name, rank in zip(new_state, state_ranks, strict=True)
                ),
                *(
                    helper.make_tensor_value_info(name, TYPES[dtype], [None] * rank)
                    for name, (dtype, rank) in zip(values, collected, strict=True)
                ),
            ],
        )
        true = self.constant(True, np.bool_)
        results = self.op("Loop", count, true, *state, outputs=len(state) + len(values), body=graph)
        return results if isinstance(results, tuple) else (results,)

    def model(
        self, inputs: dict[str, list], outputs: dict[str, tuple[str, list]], **properties
    ) -> onnx.ModelProto:
        """Finishes the graph.

        Args:
            inputs: name -> shape of each float32 input; names or None stand for sizes that are not fixed.
            outputs: name -> value and shape of each float32 output.
            properties: texts that are kept with the model.
        """
        for name, (value, _) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        graph = helper.make_graph(
            self._nodes,
            "tfcorr",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, (_, shape) in outputs.items()
            ],
            self._initializers,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="tfcorr",
        )
        helper.set_model_props(model, properties)
        onnx.checker.check_model(model)
        return model

    def _name(self, kind: str) -> str:
        self._root._count += 1
        return f"{kind.lower()}_{self._root._count}"

    # Arithmetic that reads better with a short name.

    def add(self, a: str, b: str) -> str:
        """a + b."""
        return self.op("Add", a, b)

    def sub(self, a: str, b: str) -> str:
        """a - b."""
        return self.op("Sub", a, b)

    def mul(self, a: str, b: str) -> str:
        """a * b."""
        return self.op("Mul", a, b)

    def div(self, a: str, b: str) -> str:
        """a / b; of integers, which are not negative here, rounded down."""
        return self.op("Div", a, b)

    # Shapes.

    def size(self, x: str, axis: int) -> str:
        """Length of an axis, int64 (1,)."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def vector(self, *parts: int | str) -> str:
        """An int64 vector of numbers and of values of shape (1,)."""
        return self.op("Concat", *(self.integer([p]) if isinstance(p, int) else p for p in parts), axis=0)

    def reshape(self, x: str, *shape: int | str) -> str:
        """x in another shape."""
        return self.op("Reshape", x, self.vector(*shape))

    def range(self, stop: str, start: str | None = None) -> str:
        """The integers from `start` (0) up to before `stop`; both (1,)."""
        begin = self.integer(0) if start is None else self.op("Squeeze", start)
        return self.op("Range", begin, self.op("Squeeze", stop), self.integer(1))

    def slice(self, x: str, axis: int, start: int | str, stop: int | str, step: int = 1) -> str:
        """x[..., start:stop:step, ...] along an axis; bounds are numbers or int64 (1,)."""
        bounds = [self.integer([b]) if isinstance(b, int) else b for b in (start, stop)]
        return self.op("Slice", x, *bounds, self.integer([axis]), self.integer([step]))

    def window(self, x: str, axis: int, start: int, size: str) -> str:
        """`size` (1,) entries of an axis from `start` on."""
        return self.slice(x, axis, start, self.add(size, self.integer([start])))

    def take(self, x: str, index: str, axis: int) -> str:
        """Entries of an axis by number."""
        return self.op("Gather", x, index, axis=axis)

    def pad(self, x: str, axes: Sequence[int], pads: Sequence[int | str], mode: str = "constant") -> str:
        """x with entries added before all of `axes`, then behind all of them; numbers or int64 (1,)."""
        zero = self.constant(0.0) if mode == "constant" else ""
        return self.op("Pad", x, self.vector(*pads), zero, self.integer(list(axes)), mode=mode)

    def total(self, terms: Sequence[str]) -> str:
        """Sum from the first term to the last, in that order."""
        result = terms[0]
        for term in terms[1:]:
            result = self.add(result, term)
        return result

    # Images.

    def conv(
        self, x: str, kernel: np.ndarray, bias: np.ndarray | None, dilation: int = 1, group: int = 1
    ) -> str:
        """Convolution with zeros around, of the input's size. `kernel` (kh, kw, C, O), as Keras has it."""
        inputs = [x, self.constant(np.transpose(kernel, (3, 2, 0, 1)))]
        if bias is not None:
            inputs.append(self.constant(bias))
        y, x_ = (dilation * (side // 2) for side in kernel.shape[:2])
        return self.op("Conv", *inputs, pads=[y, x_, y, x_], dilations=[dilation] * 2, group=group)

    def relu(self, x: str) -> str:
        """max(x, 0)."""
        return self.op("Relu", x)

    def leaky_relu(self, x: str, slope: float) -> str:
        """x where it is positive, slope * x elsewhere."""
        return self.op("LeakyRelu", x, alpha=slope)

    def clip(self, x: str, low: float, high: float) -> str:
        """x within [low, high]."""
        return self.op("Clip", x, self.constant(low), self.constant(high))

    def continued(self, x: str, axis: int, smallest: int) -> str:
        """x continued by its last entry until an axis has `smallest`."""
        size = self.size(x, axis)
        index = self.range(self.op("Max", size, self.integer([smallest])))
        return self.take(x, self.op("Min", index, self.sub(size, self.integer([1]))), axis)

    def repeat(self, x: str, scale: int) -> str:
        """Each pixel `scale` times both ways."""
        if scale == 1:
            return x
        for axis in (2, 3):
            index = self.range(self.mul(self.size(x, axis), self.integer([scale])))
            x = self.take(x, self.div(index, self.integer([scale])), axis)
        return x

    def on_grid(self, x: str, height: str, width: str) -> str:
        """x cropped, or filled up with zeros, at bottom and right; the sizes (1,)."""
        for axis, size in ((2, height), (3, width)):
            x = self.slice(x, axis, 0, size)
            x = self.pad(x, [axis], [0, self.sub(size, self.size(x, axis))])
        return x

    def mirrored(self, x: str, axis: int, reach: int) -> str:
        """x continued by its mirror image at both ends of an axis, the border repeated; it may be short."""
        size = self.size(x, axis)
        both = self.mul(size, self.integer([2]))
        place = self.range(self.add(size, self.integer([reach])), self.integer([-reach]))
        place = self.op("Mod", place, both)
        last = self.sub(both, self.integer([1]))
        return self.take(x, self.op("Min", place, self.sub(last, place)), axis)

    def upsample(self, x: str, axis: int, weights: np.ndarray) -> str:
        """One pass of :class:`tfcorr.refsr.upsampling.Upsampling`; `weights` (scale, taps)."""
        size = self.size(x, axis)
        ones = self._ones(axis, size)
        y = self.div(self._phases(x, axis, size, weights), self._phases(ones, axis, size, weights))
        sides = [self.size(x, 0), self.size(x, 1), self.size(x, 2), self.size(x, 3)]
        sides[axis] = self.mul(size, self.integer([len(weights)]))
        return self.reshape(y, *sides)

    def _phases(self, x: str, axis: int, size: str, weights: np.ndarray) -> str:
        support = weights.shape[1] // 2
        padded = self.pad(x, [axis], [support, support])
        phases = []
        for taps in weights:
            terms = [
                self.mul(self.window(padded, axis, start, size), self.constant(tap))
                for start, tap in enumerate(taps)
                if tap != 0.0
            ]
            phases.append(self.op("Unsqueeze", self.total(terms), self.integer([axis + 1])))
        return self.op("Concat", *phases, axis=axis + 1)

    def reduce(self, x: str, axis: int, taps: Sequence[float], factor: int) -> str:
        """Weighted means of pixels around each cell of `factor` pixels, without taps beyond the border."""
        size = self.size(x, axis)
        cells = self.div(size, self.integer([factor]))
        ones = self._ones(axis, size)
        return self.div(
            self._cells(x, axis, cells, taps, factor), self._cells(ones, axis, cells, taps, factor)
        )

    def _cells(self, x: str, axis: int, cells: str, taps: Sequence[float], factor: int) -> str:
        reach = (len(taps) - factor) // 2
        padded = self.pad(x, [axis], [reach, reach])
        last = self.mul(self.sub(cells, self.integer([1])), self.integer([factor]))
        terms = [
            self.mul(
                self.slice(padded, axis, start, self.add(last, self.integer([start + 1])), factor),
                self.constant(tap),
            )
            for start, tap in enumerate(taps)
        ]
        return self.total(terms)

    def _ones(self, axis: int, size: str) -> str:
        shape = self.vector(1, 1, *((size, 1) if axis == 2 else (1, size)))
        one = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
        return self.op("ConstantOfShape", shape, value=one)
