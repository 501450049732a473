"""Two files node by node: what is the original's, what stands for a strided node, what is neither."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from stridenet import host
from stridenet.errors import NotEqualError
from stridenet.onnx.files.conversion import Step, every_step
from stridenet.onnx.files.grafting import pairs_of
from stridenet.onnx.files.options import Options
from stridenet.onnx.files.proof import (
    Alone,
    NodeProof,
    compared,
    strided_model,
    unit_stride_model,
)
from stridenet.onnx.files.reading import OnnxFile, subgraphs
from stridenet.onnx.files.scopes import Scope, scopes_of
from stridenet.onnx.files.weights import Weight, constant_weight
from stridenet.onnx.layout import layout_path

CONSTANTS = ("Constant", "ConstantOfShape", "Identity")
HASHES = 3


@dataclass
class Match:
    """What of the original is in the other file."""

    proofs: list[NodeProof] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)


def match_files(original: OnnxFile, other: Any, path: Path) -> Match:
    """Look for each node of the original in the other file, which is as protobuf has it."""
    match = Match()
    layouts = layouts_of(path)
    ours, theirs = scopes_of(original.proto, original.folder), scopes_of(other, path.parent)
    steps = _steps(original)
    for way, scope in ours.items():
        if way not in theirs:
            match.unmatched += [_name(node) for node in scope.nodes]
            continue
        pair = _Scopes(scope, theirs[way], layouts, other.ir_version)
        for node in scope.nodes:
            _match(node, pair, steps.get(_key(node, scope)), match)
    if [each.name for each in original.proto.graph.output] != [e.name for e in other.graph.output]:
        match.unmatched.append("the graph's outputs")
    return match


def layouts_of(path: Path) -> dict[str, dict[str, Any]]:
    """What the host does with inputs, by their names; nothing where there is no layout file."""
    place = layout_path(path)
    if not place.is_file():
        return {}
    return {entry["name"]: entry for entry in host.read_layout(place)["inputs"]}


@dataclass(frozen=True)
class _Scopes:
    """One graph as it is in both files."""

    ours: Scope
    theirs: Scope
    layouts: Mapping[str, dict[str, Any]]
    ir_version: int

    @property
    def producers(self) -> dict[str, Any]:
        """The other file's nodes by their outputs."""
        return self.theirs.producers


def _name(node: Any) -> str:
    return str(node.name or next((name for name in node.output if name), node.op_type))


def _key(node: Any, scope: Scope) -> tuple[int, str]:
    return id(scope.proto), str(node.output[0])


def _steps(original: OnnxFile) -> dict[Any, Step]:
    """The strided nodes that have a rule and weights, by graph and output."""
    found = {}
    nodes = {id(step.site.node): step for step in every_step(original, Options(pooling=True))}
    for pair in pairs_of(original):
        for node in pair.nodes:
            if id(node) in nodes:
                found[id(pair.proto), str(node.outputs[0].name)] = nodes[id(node)]
    return found


def _match(node: Any, pair: _Scopes, step: Step | None, match: Match) -> None:
    outputs = [name for name in node.output if name]
    other = pair.producers.get(outputs[0]) if outputs else None
    if other is None:
        if node.op_type not in CONSTANTS or pair.theirs.reads(outputs):
            match.unmatched.append(_name(node))
    elif _skeleton(node) == _skeleton(other):
        known = [pair.ours.constant(n) is not None for n in node.input]
        if known != [pair.theirs.constant(n) is not None for n in node.input]:
            match.unmatched.append(_name(node))
        changed = [name for name in node.input if not _same_constant(name, pair)]
        match.unequal += [f"{_name(node)} reads another {name}" for name in changed]
    elif step is None or step.rule.declines(step.site) is not None:
        match.unmatched.append(_name(node))
    else:
        _compare(node, step, pair, match)


def _skeleton(node: Any) -> bytes:
    """The node without its subgraphs, which are compared by themselves."""
    if not any(list(subgraphs(attribute)) for attribute in node.attribute):
        return bytes(node.SerializeToString(deterministic=True))
    bare = type(node)()
    bare.CopyFrom(node)
    for attribute in bare.attribute:
        for graph in subgraphs(attribute):
            graph.Clear()
    return bytes(bare.SerializeToString(deterministic=True))


def _same_constant(name: str, pair: _Scopes) -> bool:
    """Whether an input of both is the same tensor, where it is known in both."""
    ours, theirs = pair.ours.constant(name), pair.theirs.constant(name)
    if ours is None or theirs is None:
        return True
    if (ours.data_type, list(ours.dims)) != (theirs.data_type, list(theirs.dims)):
        return False
    if ours.data_type == int(ir.DataType.STRING):
        return list(ours.string_data) == list(theirs.string_data)
    return pair.ours.numbers(ours).tobytes() == pair.theirs.numbers(theirs).tobytes()


# What stands for a strided node


def _compare(node: Any, step: Step, pair: _Scopes, match: Match) -> None:
    x, y = str(node.input[0]), str(node.output[0])
    nodes = _between(x, y, node.input[2:], pair)
    if nodes is None:
        match.unmatched.append(_name(node))
        return
    try:
        proofs = [
            compared(_alone(node, nodes, step, pair, turn), node.op_type) for turn in range(HASHES)
        ]
    except NotEqualError as error:
        match.unequal.append(str(error))
    else:
        match.proofs.append(proofs[0])


def _between(x: str, y: str, given: Iterable[str], pair: _Scopes) -> list[Any] | None:
    """The other file's nodes from x and what else is given to y; None if y is made of more."""
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


def _alone(node: Any, nodes: list[Any], step: Step, pair: _Scopes, turn: int) -> Alone:
    """Both with integers for weights: a hash of each number, so that equal ones stay equal.

    Zero stays zero. A filter that has another one's numbers in other places still has them, and its
    sums are exact.
    """
    site, windows = step.site, step.rule.windows(step.site)
    sizes = tuple(site.known_size(axis) for axis in range(len(windows)))
    versions = (site.opset, pair.ir_version)
    weight = constant_weight(site.node.inputs[1], site.folder) if node.op_type == "Conv" else None
    before: dict[str, np.ndarray] = {}
    after: dict[str, np.ndarray] = {}
    channels = site.known_channels or 2
    if isinstance(weight, Weight):
        channels = weight.shape[1] * site.attributes.get("group", 1)
        before[str(node.input[1])] = _hashed(weight.numbers(), turn)
        for name in filter(None, node.input[2:]):  # a bias, which may come from other nodes
            bias = pair.ours.constant(name)
            array = np.arange(weight.shape[0]) if bias is None else pair.ours.numbers(bias)
            before[name] = after[name] = _hashed(array, turn)
        after.update((name, _hashed(array, turn)) for name, array in _filters(nodes, pair))
    x, y = str(node.input[0]), str(node.output[0])
    return Alone(
        _name(node),
        windows,
        sizes,
        channels,
        x,
        strided_model(node, x, len(windows), before, versions),
        unit_stride_model(nodes, (x, y), len(windows), after, pair.theirs, versions),
        pair.layouts.get(x),
    )


def _filters(nodes: list[Any], pair: _Scopes) -> Iterator[tuple[str, np.ndarray]]:
    """The constant weights and biases of the convolutions among these nodes."""
    for node in nodes:
        for name in filter(None, node.input[1:] if node.op_type == "Conv" else ()):
            tensor = pair.theirs.constant(name)
            if tensor is not None:
                yield name, pair.theirs.numbers(tensor)


def _hashed(array: np.ndarray, turn: int) -> np.ndarray:
    """Each number as an integer from −3 to 3, by its bits in float32; zero as zero, others not."""
    single = np.ascontiguousarray(array, np.float32)
    bits = single.view(np.uint32).astype(np.uint64) * np.uint64(2654435761 + 2 * turn)
    hashes = (bits >> np.uint64(13 + turn)) % np.uint64(6)
    integers = np.array([-3, -2, -1, 1, 2, 3], np.float32)[hashes.astype(np.int64)]
    return np.where(single == 0, 0, integers).astype(np.float32)
