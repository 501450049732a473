"""The proof of a written file: node by node, to the bit, without a tolerance.

Of each converted node: its filter, folded back, is the original's; and the node alone, with small
integers for weights, biases and maps, computes what the strided one computes, in every phase. Sums of
small integers are exact in float32 in any order, so that equal means equal.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from stridenet import host
from stridenet.errors import NotEqualError
from stridenet.onnx.files.conversion import Conversion, Done
from stridenet.onnx.files.reading import is_external, subgraphs
from stridenet.onnx.files.running import Runner, small_model
from stridenet.onnx.files.scopes import Scope, scopes_of
from stridenet.onnx.files.windows import Window
from stridenet.onnx.layout import layout_of
from stridenet.onnx.strides import reason
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


def prove(conversion: Conversion, written: Any, folder: Path) -> tuple[NodeProof, ...]:
    """Prove each converted node of a written file, as its protobuf has it.

    folder: where its external data lies. Raises NotEqualError, which names the first node that is not
    the strided one.
    """
    scopes = scopes_of(written, folder)
    where = {n: scope for scope in scopes.values() for node in scope.nodes for n in node.output}
    return tuple(
        _prove(done, _scope_of(done, where, scopes[()]), written) for done in conversion.done
    )


def require_untouched(
    conversion: Conversion, original: Any, source: Path, written: Any, folder: Path
) -> None:
    """Raise NotEqualError unless what was not converted is in the written file as in the original.

    source, folder: where the external data of each lies. Nodes and constants are compared by their
    names; a node with graphs inside it by these.
    """
    before, after = scopes_of(original, source), scopes_of(written, folder)
    new = {name for done in conversion.done for name in (*done.nodes, done.y)}
    for way, scope in before.items():
        other = after.get(way)
        if other is None:
            raise NotEqualError(f"the graph {'/'.join(way)} has not been written")
        for name, tensor in scope.constants.items():
            copy = other.constants.get(name)
            if copy is not None and not _is_same(scope, tensor, other, copy):
                raise NotEqualError(f"{name}: its numbers are not the original's")
        for name, node in scope.producers.items():
            copy = other.producers.get(name)
            plain = not [graph for each in node.attribute for graph in subgraphs(each)]
            changed = copy is not None and copy.SerializeToString() != node.SerializeToString()
            if changed and plain and name not in new:
                raise NotEqualError(f"{name}: the node that makes it is not the original's")


def _is_same(scope: Scope, tensor: Any, other: Scope, copy: Any) -> bool:
    if not (is_external(tensor) or is_external(copy)):
        return bool(tensor.SerializeToString() == copy.SerializeToString())
    if (tensor.data_type, *tensor.dims) != (copy.data_type, *copy.dims):
        return False
    return scope.numbers(tensor).tobytes() == other.numbers(copy).tobytes()


def _prove(done: Done, scope: Scope, written: Any) -> NodeProof:
    nodes = [node for node in scope.nodes if set(node.output) & set(done.nodes)]
    constants = _constants_of(done)
    if done.converted.filter is not None:
        _check_folding(done, scope)
    versions = (done.step.site.opset, written.ir_version)
    alone = Alone(
        done.step.name,
        done.windows,
        done.sizes,
        _channels(done),
        done.x,
        strided_model(done.original, done.x, len(done.windows), constants[0], versions),
        unit_stride_model(
            nodes, (done.x, done.y), len(done.windows), constants[1], scope, versions
        ),
        done.converted.layout,
    )
    return compared(alone, done.original.op_type)


def _scope_of(done: Done, where: Mapping[str, Scope], main: Scope) -> Scope:
    """The graph that has the new nodes, some of whose names are new in the whole file.

    Where the host rearranges, there may be the convolution alone, which is in the main graph.
    """
    fresh = [name for name in done.nodes if name != done.y]
    found = [where[name] for name in fresh if name in where]
    if len(found) < len(fresh) or not (found or done.converted.layout):
        raise NotEqualError(f"{done.step.name}: not all of its nodes have been written")
    return found[0] if found else main


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


@dataclass(frozen=True)
class Alone:
    """A strided node and what stands for it, as two models of float32."""

    name: str
    windows: tuple[Window, ...]
    sizes: tuple[int | None, ...]  # that the file fixes
    channels: int
    x: str
    strided: Runner
    unit_stride: Runner
    layout: dict[str, Any] | None = None  # of what the host does


def _constants_of(done: Done) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Integers for weights and bias, by their names in the original and in the new file."""
    if done.converted.filter is None:
        return {}, {}
    draw = np.random.default_rng(0)
    weight, expansion, wide = done.converted.filter
    strided = _integers(draw, weight.shape)
    before = {done.original.input[1]: strided}
    after = {str(wide.name): expansion.expand(strided)}
    for name in filter(None, done.original.input[2:]):
        before[name] = after[name] = _integers(draw, weight.shape[:1])
    return before, after


Versions = tuple[int, int]  # opset and IR


def strided_model(
    node: Any, x: str, axes: int, constants: Mapping[str, np.ndarray], versions: Versions
) -> Runner:
    """The strided node alone."""
    tensors = [_tensor(name, array) for name, array in constants.items()]
    return Runner(small_model([node], {x: 2 + axes}, [node.output[0]], tensors, *versions))


def unit_stride_model(
    nodes: Sequence[Any],
    ends: tuple[str, str],
    axes: int,
    constants: Mapping[str, np.ndarray],
    scope: Scope,
    versions: Versions,
) -> Runner:
    """The nodes that make `ends[1]` of `ends[0]`, some of their constants replaced."""
    made = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in node.input if name} - made - {ends[0]}
    tensors = [_tensor(name, array) for name, array in constants.items() if name in read]
    tensors += [_as_float32(name, scope) for name in sorted(read - set(constants))]
    own = [_constant_as_float32(node) for node in nodes]
    return Runner(small_model(own, {ends[0]: 2 + axes}, [ends[1]], tensors, *versions))


def _integers(draw: np.random.Generator, size: Sequence[int]) -> np.ndarray:
    return draw.integers(-LARGEST, LARGEST, size, endpoint=True).astype(np.float32)


def _tensor(name: str, array: np.ndarray) -> Any:
    return onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)


def _as_float32(name: str, scope: Scope) -> Any:
    tensor = scope.constant(name)
    if tensor is None:
        raise NotEqualError(f"{name} is read, which is none of the file's constants")
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


def _sizes(alone: Alone) -> list[tuple[int, ...]]:
    """Two sizes of the map, which differ in their remainders; those that the file fixes are kept."""
    sizes = []
    for more in (0, 1):
        size = [
            window.reach + (3 + more) * window.stride + more if fixed is None else fixed
            for window, fixed in zip(alone.windows, alone.sizes, strict=True)
        ]
        sizes.append(tuple(size))
    return sizes[:1] if sizes[0] == sizes[1] else sizes


def _channels(done: Done) -> int:
    if done.converted.filter is not None:
        group = done.step.site.attributes.get("group", 1)
        return int(done.converted.filter[0].shape[1] * group)
    return done.channels or 2


def compared(alone: Alone, operator: str) -> NodeProof:
    """Run both on integers, and on an impulse in each phase. Raises NotEqualError where they differ."""
    sizes = _sizes(alone)
    for size in sizes:
        draw = np.random.default_rng(1)
        integers = _integers(draw, (2, alone.channels, *size))
        for x in (integers, *_impulses(alone.windows, alone.channels, size)):
            strided = _run(alone.strided, alone, x, f"the strided {operator}")
            unit_stride = _run(
                alone.unit_stride, alone, _fed(alone, x), f"what stands for {operator}"
            )
            if strided.shape != unit_stride.shape or not np.array_equal(strided, unit_stride):
                raise NotEqualError(
                    f"{alone.name}: the strided {operator} gives other numbers than what stands for "
                    f"it, on small integers in a map of {format_size(size)}"
                )
    phases = prod(window.stride for window in alone.windows)
    return NodeProof(alone.name, operator, tuple(sizes), phases)


def _run(runner: Runner, alone: Alone, x: np.ndarray, what: str) -> np.ndarray:
    try:
        return np.asarray(runner({alone.x: x})[0])
    except Exception as error:  # of onnxruntime or onnx's reference, which have no common class
        raise NotEqualError(
            f"{alone.name}: {what} does not run on {format_size(x.shape)} ({reason(error)})"
        ) from error


def _fed(alone: Alone, x: np.ndarray) -> np.ndarray:
    """What the converted node reads: the phase form, if the host makes it."""
    return x if alone.layout is None else host.rearrange(layout_of([alone.layout]), x)


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
