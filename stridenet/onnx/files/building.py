"""Builds new nodes in front of one node, with sizes that are known now or only when the file runs."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

GraphSize = int | ir.Value  # a number, or a value of int64 and shape (1) that the graph computes
TO_THE_END = 2**63 - 1


class FreshNames:
    """Gives values and nodes names that are new in the whole file, subgraphs and functions too."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    def fresh(self, wanted: str) -> str:
        """Return the wanted name, or one with a number behind it."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name


class Builder:
    """Builds the nodes that stand for one node: operators of its opset, and arithmetic on sizes.

    prefix: of the names of all that is made.
    initializers: whether constants are initializers of the graph; else they are nodes, as in functions,
        which have none, and before IR 4, where each initializer is an input.
    """

    def __init__(
        self, graph: Any, names: FreshNames, prefix: str, opset: int, initializers: bool
    ) -> None:
        self.graph, self.opset = graph, opset
        self._all_names, self._prefix, self.initializers = names, prefix, initializers
        self.nodes: list[ir.Node] = []
        self._known: dict[tuple[Any, ...], ir.Value] = {}

    def operator(
        self,
        kind: str,
        *inputs: ir.Value | None,
        count: int = 1,
        label: str = "",
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Add a node, and return its outputs."""
        name = self._fresh(label or kind)
        outputs = [
            ir.Value(name=name if i == 0 else self._fresh(label or kind)) for i in range(count)
        ]
        node = ir.node(kind, inputs, attributes, outputs=outputs, name=name)
        self.nodes.append(node)
        return tuple(outputs)

    def one(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node, and return its only output."""
        return self.operator(kind, *inputs, **attributes)[0]

    def constant(self, array: np.ndarray) -> ir.Value:
        """Return a constant tensor; equal ones are one."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self._made(array)
        return self._known[key]

    def vector(self, sizes: Sequence[GraphSize]) -> ir.Value:
        """Return sizes as one vector of int64."""
        parts: list[ir.Value] = []
        run: list[int] = []
        for size in [*sizes, None]:
            if isinstance(size, int):
                run.append(size)
                continue
            if run:
                parts.append(self.constant(np.array(run, np.int64)))
            run = []
            if size is not None:
                parts.append(size)
        return parts[0] if len(parts) == 1 else self.one("Concat", *parts, axis=0)

    # Arithmetic: gives a number where all is known, else adds nodes

    def add(self, a: GraphSize, b: GraphSize) -> GraphSize:
        """Return a + b."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return a if b == 0 else b if a == 0 else self._computed("Add", a, b)

    def subtract(self, a: GraphSize, b: GraphSize) -> GraphSize:
        """Return a − b."""
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if b == 0 else self._computed("Sub", a, b)

    def times(self, a: GraphSize, b: int) -> GraphSize:
        """Return a · b."""
        return a * b if isinstance(a, int) else a if b == 1 else self._computed("Mul", a, b)

    def divide(self, a: GraphSize, b: int) -> GraphSize:
        """Return a // b for an `a` that is not negative."""
        return a // b if isinstance(a, int) else a if b == 1 else self._computed("Div", a, b)

    def at_least_zero(self, a: GraphSize) -> GraphSize:
        """Return max(a, 0), computed as (a + |a|) // 2, since Max takes no integers before opset 12."""
        if isinstance(a, int):
            return max(a, 0)
        return self._computed("Div", self._computed("Add", a, self.one("Abs", a)), 2)

    def size_of(self, value: ir.Value, axis: int) -> ir.Value:
        """Return the size of an axis that is known when the file runs."""
        shape, size = ("shape", value), ("size", value, axis)
        if shape not in self._known:
            self._known[shape] = self.one("Shape", value)
        if size not in self._known:
            index = self.constant(np.array([axis], np.int64))
            self._known[size] = self.one("Gather", self._known[shape], index, axis=0)
        return self._known[size]

    # What a rearrangement is made of

    def pad(
        self, x: ir.Value, before: Sequence[GraphSize], after: Sequence[GraphSize], fill: Any
    ) -> ir.Value:
        """Pad the spatial axes with `fill`, a number of x's type; add nothing without padding."""
        if not any(isinstance(size, ir.Value) or size for size in (*before, *after)):
            return x
        extents = self.vector([0, 0, *before, 0, 0, *after])
        return self.one("Pad", x, extents, self.constant(fill))

    def crop(self, x: ir.Value, sizes: Sequence[GraphSize | None]) -> ir.Value:
        """Keep the first so many positions of each spatial axis; None: the whole axis."""
        axes = [axis for axis, size in enumerate(sizes) if size is not None]
        if not axes:
            return x
        ends = [size for size in sizes if size is not None]
        return self.cut(x, [2 + axis for axis in axes], [0] * len(axes), ends)

    def cut(
        self, x: ir.Value, axes: Sequence[int], starts: Sequence[int], ends: Sequence[GraphSize]
    ) -> ir.Value:
        """Slice some axes of x; negative ends count from the end."""
        vectors = (self.vector(sizes) for sizes in (starts, ends, axes))
        return self.one("Slice", x, *vectors)

    def reshape(self, x: ir.Value, sizes: Sequence[GraphSize]) -> ir.Value:
        """Reshape x. The size 0 stands for the one that x has there, −1 for what is left."""
        return self.one("Reshape", x, self.vector(sizes))

    def split(self, x: ir.Value, count: int) -> tuple[ir.Value, ...]:
        """Split the channels into equal parts."""
        if count == 1:
            return (x,)
        number: dict[str, Any] = {"num_outputs": count} if self.opset >= 18 else {}
        return self.operator("Split", x, count=count, axis=1, **number)

    def _computed(self, kind: str, *sizes: GraphSize) -> ir.Value:
        key = (kind, *sizes)
        if key not in self._known:
            values = (self.vector([size]) for size in sizes)
            self._known[key] = self.one(kind, *values)
        return self._known[key]

    def _made(self, array: np.ndarray) -> ir.Value:
        tensor = ir.Tensor(array)
        if not self.initializers:
            return self.one("Constant", value=tensor)
        tensor.name = self._fresh("constant")
        value = ir.Value(
            name=tensor.name,
            const_value=tensor,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
        )
        self.graph.register_initializer(value)
        return value

    def _fresh(self, label: str) -> str:
        return self._all_names.fresh(f"{self._prefix}{label}")


def prefix_of(node: ir.Node) -> str:
    """Return how names of what stands for a node begin: with its own name, or its output's."""
    name = (
        node.name or next((value.name for value in node.outputs if value.name), "") or node.op_type
    )
    return f"{re.sub(r'[^0-9A-Za-z_./:-]', '_', name)}/unit_stride/"
