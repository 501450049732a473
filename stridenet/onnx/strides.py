"""Finds the nodes of an ONNX file that have strides, and lets onnx check it. Imports no torch."""

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stridenet.errors import StrideEliminationError
from stridenet.sizes import Size, format_size

# Operators with an attribute `strides`; all others of ONNX move their window by one, or have none.
POOLING_OPERATORS = frozenset({"MaxPool", "AveragePool", "LpPool", "MaxUnpool"})
STRIDED_OPERATORS = POOLING_OPERATORS | frozenset({
    "Conv", "ConvInteger", "QLinearConv", "DeformConv", "ConvTranspose",
})  # fmt: skip


@dataclass(frozen=True)
class StridedNode:
    """Names a convolution or pooling of an ONNX graph with a stride above 1."""

    name: str  # the path of the module that it comes from, or the node's name, or its output's
    operator: str  # "Conv", "MaxPool", …
    strides: Size

    def __str__(self) -> str:
        return f"{self.name} ({self.operator}, strides {format_size(self.strides)})"


def check_graph(
    path: Path, may_stay: Callable[[StridedNode], bool]
) -> tuple[dict[str, int], tuple[StridedNode, ...]]:
    """Let onnx check the file, and look for strides above 1, in functions and subgraphs too.

    may_stay: tells of a node with a stride whether the network has it on purpose.

    Returns how many nodes of each operator there are, and the nodes with a stride. Raises
    StrideEliminationError where onnx refuses the file, or a node has a stride that may not stay.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of protobuf if the file is damaged, of the checker if it is wrong
        raise StrideEliminationError(f"{path.name} is not valid ONNX ({reason(error)})") from error
    nodes = list(all_nodes(model))
    strided = tuple(strided_nodes(nodes))
    refused = [str(node) for node in strided if not may_stay(node)]
    if refused:
        raise StrideEliminationError(
            f"{path.name} is of a unit-stride network, but has a stride in {'; '.join(refused)}: a "
            "layer was replaced after the conversion, or a forward calls a strided function"
        )
    return dict(Counter(node.op_type for node in nodes).most_common()), strided


def all_nodes(model: Any) -> Iterator[Any]:
    """Yield all nodes of a model, in functions and subgraphs too."""
    for graph in (model.graph, *model.functions):
        yield from _nodes(graph)


def strided_nodes(nodes: Iterable[Any], by_module: bool = True) -> Iterator[StridedNode]:
    """Yield those of these nodes that have a stride above one.

    by_module: under the names of the modules that torch made them from, where the nodes say so.
    """
    for node in nodes:
        strides = _strides(node)
        if max(strides, default=1) > 1:
            name = (by_module and _module_of(node)) or node.name or next(iter(node.output), "")
            yield StridedNode(name, node.op_type, strides)


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield all nodes of a graph or function, and of the branches and loops in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _nodes(subgraph)


def _strides(node: Any) -> Size:
    if node.op_type not in STRIDED_OPERATORS:
        return ()
    return next((tuple(a.ints) for a in node.attribute if a.name == "strides"), ())


def _module_of(node: Any) -> str:
    """Return the path of the module that torch made the node from; "" if the node does not say."""
    weights = [name for name in node.input if name.endswith(".weight")]
    if weights:  # before the scope: a convolution with folded BatchNorm has the BatchNorm's
        return str(weights[0].removesuffix(".weight"))
    notes = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "['', '']"))
    return str(scopes[-2])  # the last is the operator's own


def reason(error: BaseException) -> str:
    """Return the first line of the error that caused all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
