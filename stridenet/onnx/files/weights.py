"""Where a convolution's filter comes from, and the unit-stride filter that takes its place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from stridenet.onnx.files.building import Names
from stridenet.onnx.files.expansion import Expansion

Refused = str  # why


@dataclass(frozen=True)
class Weight:
    """A constant filter."""

    value: ir.Value  # that holds it: behind Identity nodes
    chain: tuple[ir.Node, ...]  # these nodes, the nearest to the convolution first
    shape: tuple[int, ...]
    dtype: ir.DataType
    numbers: Callable[[], np.ndarray]  # read when they are needed


def constant_weight(
    value: ir.Value | None, folder: Path, initializers: Any = None
) -> Weight | Refused:
    """The filter behind a value, or why it is none that is known before the file runs."""
    chain: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None:
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx"):
            break
        chain.append(node)
        value = node.inputs[0]
    if value is None:
        return "has no weights"
    node = value.producer()
    if node is None:
        if value.const_value is None or not value.is_initializer():
            return f"reads weights that are an input, {value.name}"
        tensor = value.const_value
        return _weight(value, chain, tensor, folder)
    if node.domain in ("", "ai.onnx") and node.op_type == "Constant":
        return _constant(value, node, chain, folder)
    if node.domain in ("", "ai.onnx") and node.op_type == "ConstantOfShape":
        return _constant_of_shape(value, node, chain, folder)
    return f"computes its weights when it runs, by {node.op_type} ({value.name})"


def _weight(value: ir.Value, chain: list[ir.Node], tensor: Any, folder: Path) -> Weight:
    if isinstance(tensor, ir.ExternalTensor):
        tensor.base_dir = str(folder)
    shape = tuple(int(size) for size in tensor.shape)
    return Weight(value, tuple(chain), shape, tensor.dtype, tensor.numpy)


def _constant(
    value: ir.Value, node: ir.Node, chain: list[ir.Node], folder: Path
) -> Weight | Refused:
    """Return a Constant's tensor; numbers in other attributes have too few axes for a filter."""
    attribute = node.attributes.get("value")
    if attribute is None or attribute.is_ref():
        kinds = ", ".join(node.attributes) or "nothing"
        return f"has its weights as {kinds} of a Constant ({value.name}), and not as its value"
    return _weight(value, chain, attribute.as_tensor(), folder)


def _constant_of_shape(
    value: ir.Value, node: ir.Node, chain: list[ir.Node], folder: Path
) -> Weight | Refused:
    shape_of = constant_weight(node.inputs[0], folder)
    if isinstance(shape_of, str):
        return f"computes its weights' shape when it runs ({value.name})"
    shape = tuple(int(size) for size in shape_of.numbers())
    given = node.attributes.get("value")
    fill = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy()
    dtype = ir.DataType.FLOAT if given is None else given.as_tensor().dtype
    return Weight(value, tuple(chain), shape, dtype, lambda: np.full(shape, fill.reshape(())))


@dataclass
class Expanded:
    """The unit-stride filters that a file gets, each made when it is written."""

    names: Names
    made: dict[tuple[ir.Value, Expansion], ir.Value] = field(default_factory=dict)
    lazy: dict[str, tuple[Weight, Expansion]] = field(default_factory=dict)  # by their names

    def filter(self, weight: Weight, expansion: Expansion, initializers: bool) -> ir.Value:
        """Put where the strided one is, so that what reads that reaches it; one for equal strides."""
        key = (weight.value, expansion)
        if key not in self.made:
            self.made[key] = self._made(weight, expansion, initializers)
        return self.made[key]

    def _made(self, weight: Weight, expansion: Expansion, initializers: bool) -> ir.Value:
        name = self.names.fresh(f"{weight.value.name}/unit_stride")
        graph: Any = weight.value.graph
        shape = expansion.size(weight.shape)
        if initializers and isinstance(graph, ir.Graph):
            tensor = ir.LazyTensor(
                lambda: ir.Tensor(expansion.expand(weight.numbers()), dtype=weight.dtype),
                dtype=weight.dtype,
                shape=ir.Shape(shape),
                name=name,
            )
            self.lazy[name] = (weight, expansion)
            value = ir.Value(
                name=name,
                const_value=tensor,
                type=ir.TensorType(weight.dtype),
                shape=ir.Shape(shape),
            )
            graph.register_initializer(value)
            return value
        array = ir.Tensor(expansion.expand(weight.numbers()), dtype=weight.dtype)
        value = ir.Value(name=name)
        node = ir.node("Constant", [], {"value": array}, outputs=[value], name=name)
        behind = weight.value.producer()
        if behind is None:  # an initializer
            graph.insert_before(graph[0], node)
        else:
            graph.insert_after(behind, node)
        return value
