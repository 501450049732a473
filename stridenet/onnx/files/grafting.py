"""Puts new nodes into the file's own protobuf, so that the rest of it stays as it is, byte by byte."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from stridenet.onnx.files.conversion import ConvertedFile, graphs_of
from stridenet.onnx.files.reading import OnnxFile, subgraphs
from stridenet.onnx.layout import layout_of


@dataclass(frozen=True)
class GraphPair:
    """Pairs a graph or function of onnx-ir, as it was read, with the same graph of protobuf."""

    graph: Any
    proto: Any  # GraphProto or FunctionProto
    nodes: tuple[ir.Node, ...]
    names: frozenset[str]  # of the values that it computes or holds


def graph_pairs(file: OnnxFile) -> list[GraphPair]:
    """Return each graph with its protobuf.

    This has to be called before the conversion, since the two are matched by the order of their nodes.
    """
    pairs = list(_pairs(file.model.graph, file.proto.graph))
    for function, proto in zip(file.model.functions.values(), file.proto.functions, strict=True):
        pairs += _pairs(function, proto)
    return pairs


def _pairs(graph: Any, proto: Any) -> Iterable[GraphPair]:
    nodes = tuple(graph)
    yield GraphPair(graph, proto, nodes, frozenset(_values(proto)))
    for node, node_proto in zip(nodes, proto.node, strict=True):
        for attribute in node_proto.attribute:
            protos = list(subgraphs(attribute))
            graphs = graphs_of(node.attributes[attribute.name]) if protos else ()
            for inner, inner_proto in zip(graphs, protos, strict=True):
                yield from _pairs(inner, inner_proto)


def _values(proto: Any) -> Iterable[str]:
    for node in proto.node:
        yield from node.output
    yield from (tensor.name for tensor in getattr(proto, "initializer", ()))


def graft(conversion: ConvertedFile, pairs: list[GraphPair]) -> None:
    """Put the new nodes and constants into the file's own protobuf, in place.

    Writing the graph of onnx-ir instead would lose what it does not know of. The main graph's filters
    that are made only when the file is written are left out.
    """
    proto = conversion.file.proto
    # Subgraphs come before the graphs around them: deleting a node of protobuf moves those behind it,
    # and with them the subgraphs that they have.
    for pair in reversed(pairs):
        _graft_nodes(pair)
        if isinstance(pair.graph, ir.Graph):
            later = conversion.new_filters.pending if pair.proto is pairs[0].proto else ()
            _graft_initializers(pair.graph, pair.proto, later)
        gone = (
            pair.names - frozenset(_values(pair.proto)) - frozenset(conversion.new_filters.pending)
        )
        _drop(pair.proto.value_info, gone)
    layouts = list(conversion.layouts.values())
    for layout in layouts:
        _resize_input(proto.graph, layout)
    if layouts:
        proto.metadata_props.add(key="stridenet.layout", value=json.dumps(layout_of(layouts)))


def _graft_nodes(pair: GraphPair) -> None:
    kept = {id(node) for node in pair.graph}
    known = {id(node) for node in pair.nodes}
    for index in reversed(range(len(pair.nodes))):
        if id(pair.nodes[index]) not in kept:
            del pair.proto.node[index]
    for index, node in enumerate(pair.graph):
        if id(node) not in known:
            pair.proto.node.insert(index, ir.to_proto(node))


def _graft_initializers(graph: ir.Graph, proto: Any, later: Iterable[str]) -> None:
    known = {tensor.name for tensor in proto.initializer}
    for name, value in graph.initializers.items():
        if name not in known and name not in later and value.const_value is not None:
            proto.initializer.append(ir.to_proto(value.const_value))
    _drop(proto.initializer, known - set(graph.initializers))
    _drop(proto.input, {each.name for each in proto.input} - {v.name for v in graph.inputs})


def _drop(repeated: Any, names: Iterable[str | None]) -> None:
    """Delete the entries that have one of these names."""
    gone = set(names)
    for index in reversed(range(len(repeated))) if gone else ():
        if repeated[index].name in gone:
            del repeated[index]


def _resize_input(proto: Any, layout: dict[str, Any]) -> None:
    """Give an input that the host rearranges the size of its phase form."""
    for each in proto.input:
        if each.name == layout["name"]:
            sizes = layout["phase_form_size"]
            for dim, size in zip(each.type.tensor_type.shape.dim[1:], sizes, strict=True):
                dim.Clear()
                dim.dim_value = size
