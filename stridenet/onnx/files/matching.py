"""Compares two files node by node: which nodes are the original's, and which stand for strided ones."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from stridenet import host
from stridenet.errors import NotEqualError
from stridenet.onnx.files.conversion import PlannedNode, strided_with_rule
from stridenet.onnx.files.filters import Weight, constant_weight
from stridenet.onnx.files.grafting import graph_pairs
from stridenet.onnx.files.options import FileOptions
from stridenet.onnx.files.proof import (
    IsolatedNode,
    NodeProof,
    Versions,
    prove_isolated,
    strided_model,
    unit_stride_model,
)
from stridenet.onnx.files.reading import OnnxFile, subgraphs
from stridenet.onnx.files.scopes import Scope, scopes_of
from stridenet.onnx.layout import layout_path

CONSTANTS = ("Constant", "ConstantOfShape", "Identity")
# How many hashes of the weights are tried, as each gives a sixth of all pairs of numbers one integer.
HASHES = 3


@dataclass
class Match:
    """Says what the other file has of the original."""

    proofs: list[NodeProof] = field(default_factory=list)  # of nodes that stand for strided ones
    unequal: list[str] = field(default_factory=list)  # nodes, and what is wrong with them
    unmatched: list[str] = field(default_factory=list)  # nodes that have not been found


def match_files(original: OnnxFile, other: Any, path: Path) -> Match:
    """Look for each node of the original in the other file.

    other: the other file as protobuf has it; path: where it lies.
    """
    match = Match()
    layouts = layouts_of(path)
    ours, theirs = scopes_of(original.proto, original.folder), scopes_of(other, path.parent)
    planned_nodes = _planned_nodes(original)
    for where, scope in ours.items():
        if where not in theirs:
            match.unmatched += [_name(node) for node in scope.nodes]
            continue
        pair = _ScopePair(scope, theirs[where], layouts, other.ir_version)
        for node in scope.nodes:
            _match(node, pair, planned_nodes.get(_key(node, scope)), match)
    if [each.name for each in original.proto.graph.output] != [e.name for e in other.graph.output]:
        match.unmatched.append("the graph's outputs")
    return match


def layouts_of(path: Path) -> dict[str, dict[str, Any]]:
    """Return how the host rearranges inputs, by their names; {} where there is no layout file."""
    file = layout_path(path)
    if not file.is_file():
        return {}
    return {entry["name"]: entry for entry in host.read_layout(file)["inputs"]}


@dataclass(frozen=True)
class _ScopePair:
    """Pairs one graph of both files."""

    ours: Scope
    theirs: Scope
    layouts: Mapping[str, dict[str, Any]]
    ir_version: int

    @property
    def producers(self) -> dict[str, Any]:
        """Return the other file's nodes by their outputs."""
        return self.theirs.producers


def _name(node: Any) -> str:
    return str(node.name or next((name for name in node.output if name), node.op_type))


def _key(node: Any, scope: Scope) -> tuple[int, str]:
    return id(scope.proto), str(node.output[0])


def _planned_nodes(original: OnnxFile) -> dict[Any, PlannedNode]:
    """Return the strided nodes that have a rule, by graph and output."""
    found = {}
    nodes = {
        id(planned.site.node): planned
        for planned in strided_with_rule(original, FileOptions(pooling=True))
    }
    for pair in graph_pairs(original):
        for node in pair.nodes:
            if id(node) in nodes:
                found[id(pair.proto), str(node.outputs[0].name)] = nodes[id(node)]
    return found


def _match(node: Any, pair: _ScopePair, planned: PlannedNode | None, match: Match) -> None:
    outputs = [name for name in node.output if name]
    other = pair.producers.get(outputs[0]) if outputs else None
    if other is None:
        if node.op_type not in CONSTANTS or pair.theirs.reads(outputs):
            match.unmatched.append(_name(node))
    elif _skeleton(node) == _skeleton(other):
        # The nodes read values of the same names, which may be other constants, or none any more.
        known = [pair.ours.constant(n) is not None for n in node.input]
        if known != [pair.theirs.constant(n) is not None for n in node.input]:
            match.unmatched.append(_name(node))
        changed = [name for name in node.input if not _same_constant(name, pair)]
        match.unequal += [f"{_name(node)} reads another {name}" for name in changed]
    elif planned is None or planned.rule.declines(planned.site) is not None:
        match.unmatched.append(_name(node))
    else:
        _compare(node, planned, pair, match)


def _skeleton(node: Any) -> bytes:
    """Return the node without its subgraphs, which are compared by themselves."""
    if not any(list(subgraphs(attribute)) for attribute in node.attribute):
        return bytes(node.SerializeToString(deterministic=True))
    bare = type(node)()
    bare.CopyFrom(node)
    for attribute in bare.attribute:
        for graph in subgraphs(attribute):
            graph.Clear()
    return bytes(bare.SerializeToString(deterministic=True))


def _same_constant(name: str, pair: _ScopePair) -> bool:
    """Tell whether an input of both is the same tensor, where it is a constant in both."""
    ours, theirs = pair.ours.constant(name), pair.theirs.constant(name)
    if ours is None or theirs is None:
        return True
    if (ours.data_type, list(ours.dims)) != (theirs.data_type, list(theirs.dims)):
        return False
    if ours.data_type == int(ir.DataType.STRING):
        return list(ours.string_data) == list(theirs.string_data)
    return pair.ours.numbers(ours).tobytes() == pair.theirs.numbers(theirs).tobytes()


# What stands for a strided node


def _compare(node: Any, planned: PlannedNode, pair: _ScopePair, match: Match) -> None:
    x, y = str(node.input[0]), str(node.output[0])
    nodes = _nodes_between(x, y, node.input[2:], pair)
    if nodes is None:
        match.unmatched.append(_name(node))
        return
    try:
        proofs = [
            prove_isolated(_isolate(node, nodes, planned, pair, turn)) for turn in range(HASHES)
        ]
    except NotEqualError as error:
        match.unequal.append(str(error))
    else:
        match.proofs.append(proofs[0])


def _nodes_between(x: str, y: str, given: Iterable[str], pair: _ScopePair) -> list[Any] | None:
    """Return the other file's nodes that compute y from x, from what is given, and from constants.

    Return None if y depends on anything else, for then these nodes do not stand for a node of x alone.
    """
    wanted, found = [y], set[str]()
    while wanted:
        name = wanted.pop()
        if name in (x, "", *given) or name in found:
            continue
        if pair.theirs.constant(name) is not None and name != y:
            continue
        if name not in pair.producers:
            return None
        node = pair.producers[name]
        found |= set(node.output)
        wanted += node.input
    return [node for node in pair.theirs.nodes if set(node.output) & found]


def _isolate(
    node: Any, nodes: list[Any], planned: PlannedNode, pair: _ScopePair, turn: int
) -> IsolatedNode:
    """Return both as models of float32, with a small integer instead of each weight.

    The integer is a hash of the weight's bits, so that a filter with the strided one's numbers in
    other places has its integers there, too, and sums of them are exact. Zero stays zero.
    """
    site, windows = planned.site, planned.rule.windows(planned.site)
    sizes = tuple(site.known_size(axis) for axis in range(len(windows)))
    versions = Versions(site.opset, pair.ir_version)
    weight = constant_weight(site.node.inputs[1], site.folder) if node.op_type == "Conv" else None
    before: dict[str, np.ndarray] = {}
    after: dict[str, np.ndarray] = {}
    channels = site.known_channels or 2
    if isinstance(weight, Weight):
        channels = weight.shape[1] * site.attributes.get("group", 1)
        before[str(node.input[1])] = _hash_numbers(weight.numbers(), turn)
        for name in filter(None, node.input[2:]):  # a bias, which may come from other nodes
            bias = pair.ours.constant(name)
            array = np.arange(weight.shape[0]) if bias is None else pair.ours.numbers(bias)
            before[name] = after[name] = _hash_numbers(array, turn)
        after.update((name, _hash_numbers(array, turn)) for name, array in _filters(nodes, pair))
    x, y = str(node.input[0]), str(node.output[0])
    return IsolatedNode(
        _name(node),
        str(node.op_type),
        windows,
        sizes,
        channels,
        x,
        strided_model(node, x, len(windows), before, versions),
        unit_stride_model(nodes, (x, y), len(windows), after, pair.theirs, versions),
        pair.layouts.get(x),
    )


def _filters(nodes: list[Any], pair: _ScopePair) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the constant weights and biases of the convolutions among these nodes."""
    for node in nodes:
        for name in filter(None, node.input[1:] if node.op_type == "Conv" else ()):
            tensor = pair.theirs.constant(name)
            if tensor is not None:
                yield name, pair.theirs.numbers(tensor)


def _hash_numbers(array: np.ndarray, turn: int) -> np.ndarray:
    """Return an integer from −3 to 3 for each number, by its bits in float32; 0 for zero alone.

    turn: which of the hashes is taken. The bits are multiplied by Knuth's number, as in multiplicative
        hashing, and high bits of the product are kept, which depend on all lower ones.
    """
    single = np.ascontiguousarray(array, np.float32)
    bits = single.view(np.uint32).astype(np.uint64) * np.uint64(2654435761 + 2 * turn)
    hashes = (bits >> np.uint64(13 + turn)) % np.uint64(6)
    integers = np.array([-3, -2, -1, 1, 2, 3], np.float32)[hashes.astype(np.int64)]
    return np.where(single == 0, 0, integers).astype(np.float32)
