"""Finds the constant filter of a convolution, expands it to unit stride, and folds it back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from stridenet.onnx.files.building import FreshNames
from stridenet.onnx.files.windows import FilterAxis

Refused = str  # says why there is no constant filter


@dataclass(frozen=True)
class Weight:
    """Describes a constant filter."""

    value: ir.Value  # that holds it, before any Identity nodes
    chain: tuple[ir.Node, ...]  # the Identity nodes, the nearest to the convolution first
    shape: tuple[int, ...]
    dtype: ir.DataType
    numbers: Callable[[], np.ndarray]  # reads the numbers when they are needed


def constant_weight(value: ir.Value | None, folder: Path) -> Weight | Refused:
    """Return the filter that a value holds, or why it is not known before the file runs."""
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
    attribute = node.attributes.get("value")
    zero = ir.Tensor(np.zeros(1, np.float32))  # what ONNX defines for nodes without the attribute
    tensor = zero if attribute is None else attribute.as_tensor()
    fill, dtype = tensor.numpy(), tensor.dtype
    return Weight(value, tuple(chain), shape, dtype, lambda: np.full(shape, fill.reshape(())))


@dataclass(frozen=True)
class FilterExpansion:
    """Says how a filter (out, in / groups, *kernel) becomes one of unit stride.

    Its channels are those of the rearranged map: phases behind each channel (CRD, as pixel_unshuffle),
    or channels behind each phase (DCR, as ONNX's SpaceToDepth).
    """

    axes: tuple[FilterAxis, ...]
    depth_first: bool = False  # DCR

    def size(self, strided: Sequence[int]) -> tuple[int, ...]:
        """Return the size of the unit-stride filter."""
        phases = prod(axis.stride for axis in self.axes)
        return (strided[0], strided[1] * phases, *(axis.kernel for axis in self.axes))

    def expand(self, weight: np.ndarray) -> np.ndarray:
        """Return the unit-stride filter, of the same type."""
        strides, kernels = self._sizes
        if self.depth_first:
            wide = np.zeros((len(weight), *strides, weight.shape[1], *kernels), weight.dtype)
        else:
            wide = np.zeros((*weight.shape[:2], *strides, *kernels), weight.dtype)
        view: Any = self._channels_first(wide)
        # A tap's phases and places are an outer product over the axes, as np.ix_ makes it.
        phases, places = zip(*(np.nonzero(axis.places >= 0) for axis in self.axes), strict=True)
        taps = [axis.places[axis.places >= 0] for axis in self.axes]
        source: Any = weight
        view[:, :, *np.ix_(*phases), *np.ix_(*places)] = source[:, :, *np.ix_(*taps)]
        return wide.reshape(self.size(weight.shape))

    def fold(self, wide: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return the strided filter in a unit-stride one, and whether all other entries are zero.

        The taps are found by division with remainder, and not as `expand` finds them, so that an
        error of one of the two shows.
        """
        strides, kernels = self._sizes
        channels = wide.shape[1] // prod(strides)
        order = (*strides, channels) if self.depth_first else (channels, *strides)
        view: Any = self._channels_first(wide.reshape(len(wide), *order, *kernels))
        positions = [axis.dilation * np.arange(axis.taps) + axis.shift for axis in self.axes]
        phases = np.ix_(*(p % a.stride for p, a in zip(positions, self.axes, strict=True)))
        blocks = np.ix_(*(p // a.stride for p, a in zip(positions, self.axes, strict=True)))
        folded = view[:, :, *phases, *blocks]
        taken = np.zeros(view.shape[2:], bool)
        taken[(*phases, *blocks)] = True
        return folded, not view[:, :, ~taken].any()

    @property
    def _sizes(self) -> tuple[list[int], list[int]]:
        return [axis.stride for axis in self.axes], [axis.kernel for axis in self.axes]

    def _channels_first(self, wide: np.ndarray) -> np.ndarray:
        """Return a view (out, in, *strides, *kernels)."""
        return np.moveaxis(wide, 1 + len(self.axes), 1) if self.depth_first else wide


class PendingFilter(NamedTuple):
    """Makes a unit-stride filter when it is written, so that memory holds one at a time."""

    weight: Weight
    expansion: FilterExpansion

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the size of the unit-stride filter."""
        return self.expansion.size(self.weight.shape)

    def tensor(self) -> ir.Tensor:
        """Make the unit-stride filter."""
        return ir.Tensor(self.expansion.expand(self.weight.numbers()), dtype=self.weight.dtype)


@dataclass
class NewFilters:
    """Holds the unit-stride filters that a file gets."""

    names: FreshNames
    values: dict[tuple[ir.Value, FilterExpansion], ir.Value] = field(default_factory=dict)
    pending: dict[str, PendingFilter] = field(default_factory=dict)  # by their names

    def filter(self, weight: Weight, expansion: FilterExpansion, initializers: bool) -> ir.Value:
        """Return the value of an expanded filter, in the graph that has the strided one.

        Nodes that share a strided filter share the expanded one, too, if they expand it alike.
        initializers: whether constants may be initializers of the graph; else they are nodes.
        """
        key = (weight.value, expansion)
        if key not in self.values:
            self.values[key] = self._make(PendingFilter(weight, expansion), initializers)
        return self.values[key]

    def _make(self, filter_: PendingFilter, initializers: bool) -> ir.Value:
        strided = filter_.weight.value
        name = self.names.fresh(f"{strided.name}/unit_stride")
        graph: Any = strided.graph
        if initializers and isinstance(graph, ir.Graph):
            self.pending[name] = filter_
            dtype, shape = filter_.weight.dtype, ir.Shape(filter_.shape)
            tensor = ir.LazyTensor(filter_.tensor, dtype=dtype, shape=shape, name=name)
            value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=shape)
            graph.register_initializer(value)
            return value
        value = ir.Value(name=name)
        node = ir.node("Constant", [], {"value": filter_.tensor()}, outputs=[value], name=name)
        producer = strided.producer()
        if producer is None:  # the strided filter is an initializer
            graph.insert_before(graph[0], node)
        else:
            graph.insert_after(producer, node)
        return value
