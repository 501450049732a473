"""The converted graph in the file that it came from: whatever was not converted stays, byte by byte."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from stridenet.onnx.files.conversion import Conversion, graphs_of
from stridenet.onnx.files.reading import OnnxFile, subgraphs
from stridenet.onnx.layout import layout_of


@dataclass(frozen=True)
class Pair:
    """A graph or function of onnx-ir as it was read, and the same of protobuf."""

    graph: Any
    proto: Any  # GraphProto or FunctionProto
    nodes: tuple[ir.Node, ...]
    names: frozenset[str]  # of what it computes or holds


def pairs_of(file: OnnxFile) -> list[Pair]:
    """Each graph with its protobuf. To be asked before the conversion: it goes by the nodes' order."""
    pairs = list(_pairs(file.model.graph, file.proto.graph))
    for function, proto in zip(file.model.functions.values(), file.proto.functions, strict=True):
        pairs += _pairs(function, proto)
    return pairs


def _pairs(graph: Any, proto: Any) -> Iterable[Pair]:
    nodes = tuple(graph)
    yield Pair(graph, proto, nodes, frozenset(_values(proto)))
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


def graft(conversion: Conversion, pairs: list[Pair]) -> None:
    """Put the new nodes and constants into the file's own protobuf, in place.

    This leaves out the main graph's filters that are made only when the file is written.
    """
    proto = conversion.file.proto
    for pair in reversed(
        pairs
    ):  # subgraphs first: so far, their places are the ones that were noted
        _graft_nodes(pair)
        if isinstance(pair.graph, ir.Graph):
            later = conversion.expanded.lazy if pair.proto is pairs[0].proto else ()
            _graft_initializers(pair.graph, pair.proto, later)
        gone = pair.names - frozenset(_values(pair.proto)) - frozenset(conversion.expanded.lazy)
        _drop(pair.proto.value_info, gone)
    layouts = [d.converted.layout for d in conversion.done if d.converted.layout is not None]
    for layout in layouts:
        _resize_input(proto.graph, layout)
    if layouts:
        proto.metadata_props.add(key="stridenet.layout", value=json.dumps(layout_of(layouts)))


def _graft_nodes(pair: Pair) -> None:
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
    """Drop what has one of these names."""
    gone = set(names)
    for index in reversed(range(len(repeated))) if gone else ():
        if repeated[index].name in gone:
            del repeated[index]


def _resize_input(proto: Any, layout: dict[str, Any]) -> None:
    """An input that the host rearranges has the size of its phase form."""
    for each in proto.input:
        if each.name == layout["name"]:
            sizes = layout["phase_form_size"]
            for dim, size in zip(each.type.tensor_type.shape.dim[1:], sizes, strict=True):
                dim.Clear()
                dim.dim_value = size
