"""The proof of a written file: node by node, to the bit, without a tolerance.

Of each converted node: its filter, folded back, is the original's; and the node alone, with small
integers for weights, biases and maps, computes what the strided one computes, in every phase. Sums of
small integers are exact in float32 in any order, so that equal means equal.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from stridenet import host
from stridenet.onnx.files.conversion import Conversion, Done
from stridenet.onnx.files.errors import NotEqualError
from stridenet.onnx.files.reading import external_place, is_external, subgraphs
from stridenet.onnx.files.running import Runner, small_model
from stridenet.onnx.files.windows import Window
from stridenet.onnx.layout import layout_of
from stridenet.sizes import format_size

FLOATS = (
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)
LARGEST = 3  # of the integers


@dataclass(frozen=True)
class NodeProof:
    """One converted node beside the strided one."""

    name: str
    operator: str
    sizes: tuple[tuple[int, ...], ...]  # of the maps that both were run on
    impulses: int  # in how many phases one was set


class Scope:
    """A graph of the written file, with what it can see: its own constants and those around it."""

    def __init__(self, proto: Any, outer: "Scope | None", folder: Path) -> None:
        self.nodes = list(proto.node)
        self.constants = {t.name: t for t in getattr(proto, "initializer", ())}
        for node in self.nodes:
            if node.op_type == "Constant":
                found = [a.t for a in node.attribute if a.name == "value"]
                self.constants.update({node.output[0]: t for t in found})
        self._outer, self.folder = outer, folder

    def constant(self, name: str) -> Any:
        """The TensorProto of this name; None if it is none."""
        found = self.constants.get(name)
        return self._outer.constant(name) if found is None and self._outer else found

    def numbers(self, tensor: Any) -> np.ndarray:
        """Of a TensorProto, from wherever they lie."""
        if not is_external(tensor):
            return ir.from_proto(tensor).numpy()
        place, offset, length = external_place(self.folder, tensor)
        dtype = ir.DataType(tensor.data_type).numpy()
        count = -1 if length < 0 else length // dtype.itemsize
        array = np.fromfile(place, dtype, count, offset=offset)
        return array.reshape(tuple(tensor.dims))


def scopes_of(proto: Any, folder: Path) -> Iterator[Scope]:
    """Every graph and function of a file."""
    for graph in (proto.graph, *proto.functions):
        yield from _scopes(graph, None, folder)


def _scopes(proto: Any, outer: Scope | None, folder: Path) -> Iterator[Scope]:
    scope = Scope(proto, outer, folder)
    yield scope
    for node in proto.node:
        for attribute in node.attribute:
            for graph in subgraphs(attribute):
                yield from _scopes(graph, scope, folder)


def prove(conversion: Conversion, written: Any, folder: Path) -> tuple[NodeProof, ...]:
    """Prove each converted node of a written file, as its protobuf has it.

    folder: where its external data lies. Raises NotEqualError, which names the first node that is not
    the strided one.
    """
    scopes = list(scopes_of(written, folder))
    where = {name: scope for scope in scopes for node in scope.nodes for name in node.output}
    return tuple(_prove(done, where, written) for done in conversion.done)


def _prove(done: Done, where: Mapping[str, Scope], written: Any) -> NodeProof:
    scope = _scope_of(done, where)
    nodes = [node for node in scope.nodes if set(node.output) & set(done.nodes)]
    if done.converted.filter is not None:
        _check_folding(done, scope)
    parts = _Parts(done, scope, nodes, written.ir_version)
    sizes = _sizes(done)
    for size in sizes:
        _compare(done, parts, size)
    phases = prod(window.stride for window in done.windows)
    return NodeProof(done.step.name, done.original.op_type, tuple(sizes), phases)


def _scope_of(done: Done, where: Mapping[str, Scope]) -> Scope:
    """The graph that has the new nodes: of their names one at least is new in the whole file."""
    fresh = [name for name in done.nodes if name != done.y]
    found = [where[name] for name in fresh if name in where]
    if len(found) < len(fresh) or not found:
        raise NotEqualError(f"{done.step.name}: not all of its nodes have been written")
    return found[0]


# The filter


def _check_folding(done: Done, scope: Scope) -> None:
    """The written filter, folded back, is the strided one to the bit, and zero elsewhere."""
    assert done.converted.filter is not None
    weight, expansion, wide = done.converted.filter
    tensor = scope.constant(str(wide.name))
    if tensor is None:
        raise NotEqualError(f"{done.step.name}: its filter {wide.name} has not been written")
    folded, clean = expansion.fold(scope.numbers(tensor))
    strided = weight.numbers()
    same = folded.dtype == strided.dtype and folded.tobytes() == strided.tobytes()
    if not (same and clean):
        raise NotEqualError(f"{done.step.name}: its filter, folded back, is not the original's")


# The node alone


class _Parts:
    """The strided node and what stands for it, as two models of float32 with the same integers."""

    def __init__(self, done: Done, scope: Scope, nodes: Sequence[Any], ir_version: int) -> None:
        draw = np.random.default_rng(0)
        operands = list(done.original.input[1:])
        integers: dict[str, np.ndarray] = {}
        swapped: dict[str, np.ndarray] = {}
        if done.converted.filter is not None:
            weight, expansion, wide = done.converted.filter
            filter_ = _integers(draw, weight.shape)
            integers[operands[0]] = filter_
            swapped[str(wide.name)] = expansion.expand(filter_)
            if len(operands) > 1 and operands[1]:
                integers[operands[1]] = swapped[operands[1]] = _integers(draw, weight.shape[:1])
        made = {name for node in nodes for name in node.output}
        read = {name for node in nodes for name in node.input if name} - made - {done.x}
        constants = [_tensor(name, array) for name, array in swapped.items() if name in read]
        for name in sorted(read - set(swapped)):
            constants.append(_as_float32(name, scope.constant(name), done, scope))
        own = [_constant_as_float32(node) for node in nodes if node.output[0] not in swapped]
        first = [_tensor(name, array) for name, array in integers.items()]
        x, versions = {done.x: 2 + len(done.windows)}, (done.step.site.opset, ir_version)
        self.strided = Runner(small_model([done.original], x, [done.y], first, *versions))
        self.unit_stride = Runner(small_model(own, x, [done.y], constants, *versions))


def _integers(draw: np.random.Generator, size: Sequence[int]) -> np.ndarray:
    return draw.integers(-LARGEST, LARGEST, size, endpoint=True).astype(np.float32)


def _tensor(name: str, array: np.ndarray) -> Any:
    return onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)


def _as_float32(name: str, tensor: Any, done: Done, scope: Scope) -> Any:
    if tensor is None:
        raise NotEqualError(f"{done.step.name}: reads {name}, which is none of its own values")
    array = scope.numbers(tensor)
    if tensor.data_type in FLOATS:
        array = array.astype(np.float32)
    return _tensor(name, array)


def _constant_as_float32(node: Any) -> Any:
    """The node, its own numbers in float32 where it is a Constant."""
    found = [a.t for a in node.attribute if a.name == "value"] if node.op_type == "Constant" else []
    if not found or found[0].data_type not in FLOATS:
        return node
    array = ir.from_proto(found[0]).numpy().astype(np.float32)
    return onnx.helper.make_node("Constant", [], list(node.output), value=_tensor("", array))


def _sizes(done: Done) -> list[tuple[int, ...]]:
    """Two sizes of the map, which differ in their remainders; those that the file fixes are kept."""
    sizes = []
    for more in (0, 1):
        size = [
            window.reach + (3 + more) * window.stride + more if fixed is None else fixed
            for window, fixed in zip(done.windows, done.sizes, strict=True)
        ]
        sizes.append(tuple(size))
    return sizes[:1] if sizes[0] == sizes[1] else sizes


def _channels(done: Done) -> int:
    if done.converted.filter is not None:
        group = done.step.site.attributes.get("group", 1)
        return int(done.converted.filter[0].shape[1] * group)
    return done.channels or 2


def _compare(done: Done, parts: _Parts, size: tuple[int, ...]) -> None:
    """Run both on integers, and on an impulse in each phase."""
    draw = np.random.default_rng(1)
    channels = _channels(done)
    integers = _integers(draw, (2, channels, *size))
    for x in (integers, *_impulses(done.windows, channels, size)):
        strided = parts.strided({done.x: x})[0]
        unit_stride = parts.unit_stride({done.x: _fed(done, x)})[0]
        if strided.shape != unit_stride.shape or not np.array_equal(strided, unit_stride):
            raise NotEqualError(
                f"{done.step.name}: the strided {done.original.op_type} gives other numbers than what "
                f"stands for it, on small integers in a map of {format_size(size)}; this is an error of "
                "stridenet: leave the node out with only=[…], and report it"
            )


def _fed(done: Done, x: np.ndarray) -> np.ndarray:
    """What the converted node reads: the phase form, if the host makes it."""
    if done.converted.layout is None:
        return x
    return host.rearrange(layout_of([done.converted.layout]), x)


def _impulses(
    windows: Sequence[Window], channels: int, size: Sequence[int]
) -> Iterable[np.ndarray]:
    """Maps of zeros with impulses that no window sees two of: one in each phase of some block.

    An impulse is another number in each channel. A constant map would not show phases that are swapped.
    """
    cell = [
        min(n, -(-(w.reach + w.stride) // w.stride) * w.stride)
        for w, n in zip(windows, size, strict=True)
    ]
    cells = list(np.ndindex(*(max(1, n // c) for n, c in zip(size, cell, strict=True))))
    phases = list(np.ndindex(*(window.stride for window in windows)))
    values = 1 + np.arange(channels, dtype=np.float32) % 7
    for start in range(0, len(phases), len(cells)):
        x = np.zeros((1, channels, *size), np.float32)
        for corner, phase in zip(cells, phases[start : start + len(cells)], strict=False):
            where = [k * c + p for k, c, p in zip(corner, cell, phase, strict=True)]
            if all(position < n for position, n in zip(where, size, strict=True)):
                x[(0, slice(None), *where)] = values
        yield x
