"""Proves a written file node by node, to the bit, without a tolerance.

The filter of each converted node, folded back, is the original's; and the node alone, with small
integers for weights, biases and maps, computes what the strided one computes, in every phase. Sums of
small integers are exact in float32 in any order, so that a right node is equal to the bit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from stridenet import host
from stridenet.errors import NotEqualError
from stridenet.onnx.files.conversion import ConvertedFile, ConvertedNode
from stridenet.onnx.files.reading import is_external, subgraphs
from stridenet.onnx.files.running import ModelRunner, small_model
from stridenet.onnx.files.scopes import Scope, scopes_of
from stridenet.onnx.files.windows import Window
from stridenet.onnx.layout import layout_of
from stridenet.onnx.strides import reason
from stridenet.sizes import format_size

# A node alone is run in float32, for which constants of these types are cast.
CAST_TO_FLOAT32 = (
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)
LARGEST_INTEGER = 3  # in size, of the integers that stand for weights and maps


@dataclass(frozen=True)
class NodeProof:
    """Says on what a converted node has been found equal to the strided one."""

    name: str
    operator: str
    sizes: tuple[tuple[int, ...], ...]  # of the maps on which both were run
    impulses: int  # the phases in each of which an impulse was set


def prove(conversion: ConvertedFile, written: Any, folder: Path) -> tuple[NodeProof, ...]:
    """Prove each converted node of a written file, as its protobuf has it.

    folder: where its external data lies. Raises NotEqualError, which names the first node that is not
    equal to the strided one.
    """
    scopes = scopes_of(written, folder)
    scope_by_output = {n: s for s in scopes.values() for node in s.nodes for n in node.output}
    return tuple(
        _prove(done, _scope_of(done, scope_by_output, scopes[()]), written)
        for done in conversion.done
    )


def require_untouched(
    conversion: ConvertedFile, original: Any, source: Path, written: Any, folder: Path
) -> None:
    """Raise NotEqualError unless what was not converted is in the written file as in the original.

    source, folder: where the external data of each lies. Nodes and constants are compared by their
    names; a node with graphs inside it by these graphs.
    """
    before, after = scopes_of(original, source), scopes_of(written, folder)
    new = {name for done in conversion.done for name in (*done.nodes, done.y)}
    for path, scope in before.items():
        other = after.get(path)
        if other is None:
            raise NotEqualError(f"the graph {'/'.join(path)} has not been written")
        for name, tensor in scope.constants.items():
            copy = other.constants.get(name)
            if copy is not None and not _is_same_tensor(scope, tensor, other, copy):
                raise NotEqualError(f"{name}: its numbers are not the original's")
        for name, node in scope.producers.items():
            copy = other.producers.get(name)
            has_graphs = any(graph for each in node.attribute for graph in subgraphs(each))
            changed = copy is not None and copy.SerializeToString() != node.SerializeToString()
            if changed and not has_graphs and name not in new:
                raise NotEqualError(f"{name}: the node that makes it is not the original's")


def _is_same_tensor(scope: Scope, tensor: Any, other: Scope, copy: Any) -> bool:
    """Compare two TensorProtos, by their numbers where these lie in files of external data."""
    if not (is_external(tensor) or is_external(copy)):
        return bool(tensor.SerializeToString() == copy.SerializeToString())
    if (tensor.data_type, *tensor.dims) != (copy.data_type, *copy.dims):
        return False
    return scope.numbers(tensor).tobytes() == other.numbers(copy).tobytes()


def _prove(done: ConvertedNode, scope: Scope, written: Any) -> NodeProof:
    nodes = [node for node in scope.nodes if set(node.output) & set(done.nodes)]
    before, after = _constants_of(done)
    if done.replacement.filter is not None:
        _check_folding(done, scope)
    versions, axes = Versions(done.planned.site.opset, written.ir_version), len(done.windows)
    isolated = IsolatedNode(
        done.planned.name,
        done.original.op_type,
        done.windows,
        done.sizes,
        _channels(done),
        done.x,
        strided_model(done.original, done.x, axes, before, versions),
        unit_stride_model(nodes, (done.x, done.y), axes, after, scope, versions),
        done.replacement.layout,
    )
    return prove_isolated(isolated)


def _scope_of(done: ConvertedNode, scope_by_output: Mapping[str, Scope], main: Scope) -> Scope:
    """Return the graph that has the new nodes.

    Their outputs' names are new in the whole file, but for y, which graphs beside each other may both
    have. Where the host rearranges, the convolution may be the only new node; it is in the main graph.
    """
    fresh = [name for name in done.nodes if name != done.y]
    found = [scope_by_output[name] for name in fresh if name in scope_by_output]
    if len(found) < len(fresh) or not (found or done.replacement.layout):
        raise NotEqualError(f"{done.planned.name}: not all of its nodes have been written")
    return found[0] if found else main


# The filter


def _check_folding(done: ConvertedNode, scope: Scope) -> None:
    """Raise NotEqualError unless the written filter is the strided one, and zero elsewhere."""
    assert done.replacement.filter is not None
    weight, expansion, wide = done.replacement.filter
    tensor = scope.constant(str(wide.name))
    if tensor is None:
        raise NotEqualError(f"{done.planned.name}: its filter {wide.name} has not been written")
    folded, zero_elsewhere = expansion.fold(scope.numbers(tensor))
    strided = weight.numbers()
    same = folded.dtype == strided.dtype and folded.tobytes() == strided.tobytes()
    if not (same and zero_elsewhere):
        raise NotEqualError(f"{done.planned.name}: its filter, folded back, is not the original's")


# The node alone


@dataclass(frozen=True)
class IsolatedNode:
    """Holds a strided node and the nodes that stand for it, as two models of float32."""

    name: str
    operator: str
    windows: tuple[Window, ...]
    sizes: tuple[int | None, ...]  # of the map, where the file fixes them
    channels: int  # of the map
    x: str  # name of the map
    strided: ModelRunner
    unit_stride: ModelRunner
    layout: dict[str, Any] | None = None  # describes the host's rearrangement of the map


def _constants_of(done: ConvertedNode) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return integers for weights and bias, by their names in the original and in the new file."""
    if done.replacement.filter is None:
        return {}, {}
    draw = np.random.default_rng(0)
    weight, expansion, wide = done.replacement.filter
    strided = _integers(draw, weight.shape)
    before = {done.original.input[1]: strided}
    after = {str(wide.name): expansion.expand(strided)}
    for name in filter(None, done.original.input[2:]):
        before[name] = after[name] = _integers(draw, weight.shape[:1])
    return before, after


class Versions(NamedTuple):
    """Says which versions of ONNX a model has."""

    opset: int
    ir: int


def strided_model(
    node: Any, x: str, axes: int, constants: Mapping[str, np.ndarray], versions: Versions
) -> ModelRunner:
    """Return a model of the strided node alone. axes: the map's spatial axes."""
    tensors = [_tensor(name, array) for name, array in constants.items()]
    return ModelRunner(small_model([node], {x: 2 + axes}, [node.output[0]], tensors, *versions))


def unit_stride_model(
    nodes: Sequence[Any],
    ends: tuple[str, str],
    axes: int,
    constants: Mapping[str, np.ndarray],
    scope: Scope,
    versions: Versions,
) -> ModelRunner:
    """Return a model of the nodes that compute `ends[1]` from `ends[0]`.

    constants: numbers that replace the file's own constants of these names.
    """
    made = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in node.input if name} - made - {ends[0]}
    tensors = [_tensor(name, array) for name, array in constants.items() if name in read]
    tensors += [_as_float32(name, scope) for name in sorted(read - set(constants))]
    own = [_constant_as_float32(node) for node in nodes]
    return ModelRunner(small_model(own, {ends[0]: 2 + axes}, [ends[1]], tensors, *versions))


def _integers(draw: np.random.Generator, size: Sequence[int]) -> np.ndarray:
    return draw.integers(-LARGEST_INTEGER, LARGEST_INTEGER, size, endpoint=True).astype(np.float32)


def _tensor(name: str, array: np.ndarray) -> Any:
    return onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)


def _as_float32(name: str, scope: Scope) -> Any:
    tensor = scope.constant(name)
    if tensor is None:
        raise NotEqualError(f"{name} is read where only constants of the file can be")
    array = scope.numbers(tensor)
    if tensor.data_type in CAST_TO_FLOAT32:
        array = array.astype(np.float32)
    return _tensor(name, array)


def _constant_as_float32(node: Any) -> Any:
    """Return the node; if it is a Constant, with its numbers in float32."""
    found = [a.t for a in node.attribute if a.name == "value"] if node.op_type == "Constant" else []
    if not found or found[0].data_type not in CAST_TO_FLOAT32:
        return node
    array = ir.from_proto(found[0]).numpy().astype(np.float32)
    return onnx.helper.make_node("Constant", [], list(node.output), value=_tensor("", array))


def _sizes(isolated: IsolatedNode) -> list[tuple[int, ...]]:
    """Return two sizes of the map with other remainders; one where the file fixes the size."""
    sizes = []
    for more in (0, 1):
        size = [
            window.reach + (3 + more) * window.stride + more if fixed is None else fixed
            for window, fixed in zip(isolated.windows, isolated.sizes, strict=True)
        ]
        sizes.append(tuple(size))
    return sizes[:1] if sizes[0] == sizes[1] else sizes


def _channels(done: ConvertedNode) -> int:
    if done.replacement.filter is not None:
        group = done.planned.site.attributes.get("group", 1)
        return int(done.replacement.filter.weight.shape[1] * group)
    return done.channels or 2


def prove_isolated(isolated: IsolatedNode) -> NodeProof:
    """Run both on integers, and on an impulse in each phase. Raises NotEqualError where they differ."""
    operator = isolated.operator
    sizes = _sizes(isolated)
    for size in sizes:
        draw = np.random.default_rng(1)
        integers = _integers(draw, (2, isolated.channels, *size))
        for x in (integers, *_impulses(isolated.windows, isolated.channels, size)):
            strided = _run(isolated.strided, isolated, x, f"the strided {operator}")
            unit_stride = _run(
                isolated.unit_stride, isolated, _fed(isolated, x), f"what stands for {operator}"
            )
            if strided.shape != unit_stride.shape or not np.array_equal(strided, unit_stride):
                raise NotEqualError(
                    f"{isolated.name}: the strided {operator} gives other numbers than what stands for "
                    f"it, on small integers in a map of {format_size(size)}"
                )
    phases = prod(window.stride for window in isolated.windows)
    return NodeProof(isolated.name, operator, tuple(sizes), phases)


def _run(runner: ModelRunner, isolated: IsolatedNode, x: np.ndarray, what: str) -> np.ndarray:
    try:
        return np.asarray(runner({isolated.x: x})[0])
    except Exception as error:  # of onnxruntime or onnx's reference, which have no common class
        raise NotEqualError(
            f"{isolated.name}: {what} does not run on {format_size(x.shape)} ({reason(error)})"
        ) from error


def _fed(isolated: IsolatedNode, x: np.ndarray) -> np.ndarray:
    """Return what the converted node reads: the phase form, if the host makes it."""
    return x if isolated.layout is None else host.rearrange(layout_of([isolated.layout]), x)


def _impulses(
    windows: Sequence[Window], channels: int, size: Sequence[int]
) -> Iterable[np.ndarray]:
    """Yield maps of zeros with impulses of which no window sees two: over all maps, one in each phase.

    An impulse has another number in each channel. A constant map would not show swapped phases. The
    map is divided into cells of whole strides, each of which has room for a window, its stride and one
    impulse.
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
