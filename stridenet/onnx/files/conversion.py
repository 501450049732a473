"""Converts the graph of an ONNX file: which nodes, by which rules, and what takes their places."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from stridenet.errors import InputError, StrideEliminationError
from stridenet.onnx.files.building import Builder, prefix_of
from stridenet.onnx.files.filters import NewFilters
from stridenet.onnx.files.options import FileOptions, did_you_mean
from stridenet.onnx.files.reading import DEFAULT_DOMAINS, OnnxFile
from stridenet.onnx.files.rules.base import NodeRule, Replacement, Site
from stridenet.onnx.files.rules.table import rule_for
from stridenet.onnx.files.windows import Window

FIRST_IR_WITH_PLAIN_INITIALIZERS = 4  # before it, each initializer is an input, too


@dataclass(frozen=True)
class PlannedNode:
    """Describes a node that is to be converted."""

    name: str  # the node's name, or its output's
    site: Site
    rule: NodeRule


@dataclass(frozen=True)
class ConvertedNode:
    """Describes a node that has been converted."""

    planned: PlannedNode
    original: Any  # the NodeProto
    x: str  # the map that it reads
    y: str  # the map that it gives
    windows: tuple[Window, ...]
    sizes: tuple[int | None, ...]  # of x, along its spatial axes; None: known when the file runs
    channels: int | None  # of x; None: known when the file runs
    nodes: tuple[str, ...]  # the first outputs of the nodes that took its place, in their order
    replacement: Replacement


@dataclass(frozen=True)
class ConvertedFile:
    """Holds a file whose graph has been converted."""

    file: OnnxFile
    done: tuple[ConvertedNode, ...]
    new_filters: NewFilters

    @property
    def layouts(self) -> dict[str, dict[str, Any]]:
        """Return how the host rearranges inputs, by their names."""
        layouts = [done.replacement.layout for done in self.done if done.replacement.layout]
        return {layout["name"]: layout for layout in layouts}


def nodes_to_convert(file: OnnxFile, options: FileOptions) -> list[PlannedNode]:
    """Return the nodes that are to be converted, in the order of the graph.

    Raises InputError for names in `only` that are no strided nodes, and StrideEliminationError where
    there is nothing to convert, or a rule declines a node.
    """
    found = list(strided_with_rule(file, options))
    if options.only is not None:
        found = _select(file, found, options.only)
    else:
        found = [planned for planned in found if options.pooling or not planned.rule.pooling]
        if not found:
            raise StrideEliminationError(
                f"{file.path} has no {'Conv or pooling' if options.pooling else 'Conv'} with a stride "
                "above one: there is nothing to convert"
                + ("" if options.pooling else "; pooling=True takes MaxPool and AveragePool, too")
            )
    if options.rearrange == "host":
        found = [_left_to_host(file, planned) for planned in found]
        _require_host(file, found)
    refused = [
        f"{planned.name} ({planned.site.node.op_type}) {why}"
        for planned in found
        if (why := planned.rule.declines(planned.site))
    ]
    if refused:
        others = f"; {len(refused) - 1} more cannot be converted either" if refused[1:] else ""
        raise StrideEliminationError(refused[0] + others)
    return found


def strided_with_rule(file: OnnxFile, options: FileOptions) -> Iterator[PlannedNode]:
    """Yield every node that has a rule and a stride above one."""
    for scope, opset, trusted, in_function in _scopes(file.model, file.opset):
        for node in scope:
            rule = rule_for(node)
            if rule is None:
                continue
            site = Site(
                node, file.folder, opset, trusted, in_function, options.rearrange, options.kernel
            )
            if max(site.strides, default=1) > 1 or "strides" in site.from_caller:
                yield PlannedNode(node.name or node.outputs[0].name or node.op_type, site, rule)


def _scopes(model: ir.Model, opset: int) -> Iterator[tuple[Any, int, bool, bool]]:
    """Yield each graph, its opset, whether to trust its sizes, and whether it is in a function."""
    for graph, trusted in _graphs(model.graph, True):
        yield graph, opset, trusted, False
    for function in model.functions.values():
        own = [v for d, v in function.opset_imports.items() if d in DEFAULT_DOMAINS]
        for graph, trusted in _graphs(function, False):
            yield graph, max(own, default=opset), trusted, True


def _graphs(scope: Any, trusted: bool) -> Iterator[tuple[Any, bool]]:
    """Yield each graph in a graph or function, and whether its sizes can be trusted.

    The body of a Loop or Scan may meet other sizes each time it runs; a branch of an If has the sizes
    of the graph around it.
    """
    yield scope, trusted
    for node in scope:
        for attribute in node.attributes.values():
            for graph in graphs_of(attribute):
                yield from _graphs(graph, trusted and node.op_type == "If")


def graphs_of(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """Return the graphs in an attribute of a node."""
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()


def _names_of(planned: PlannedNode) -> set[str]:
    node = planned.site.node
    return {name for name in (node.name, *(value.name for value in node.outputs)) if name}


def _select(file: OnnxFile, found: list[PlannedNode], only: Sequence[str]) -> list[PlannedNode]:
    """Return the nodes with these names, which are their own or their outputs'."""
    known = {name for planned in found for name in _names_of(planned)}
    for name in only:
        if name not in known:
            these = ", ".join(planned.name for planned in found[:5]) + (", …" if found[5:] else "")
            raise InputError(
                f"only: {name!r} is no node or output of {file.path.name} with a stride above one"
                f"{did_you_mean(name, known)}; there are: {these or 'none'}"
            )
    return [planned for planned in found if _names_of(planned) & set(only)]


# What is left to the host


def _left_to_host(file: OnnxFile, planned: PlannedNode) -> PlannedNode:
    """Return a Conv that reads an input as it is; any other node, to be rearranged in the graph."""
    site = planned.site
    at_input = any(site.x is value for value in file.model.graph.inputs)
    if at_input and site.node.op_type == "Conv":
        return planned
    return replace(planned, site=replace(site, rearrange="reshape"))


def _require_host(file: OnnxFile, found: list[PlannedNode]) -> None:
    """Raise StrideEliminationError unless the host can rearrange the input of a convolution."""
    hosted = [planned for planned in found if planned.site.rearrange == "host"]
    if not hosted:
        raise StrideEliminationError(
            f"rearrange='host': no strided Conv of {file.path.name} reads an input of it; "
            "rearrange='reshape' rearranges in the graph"
        )
    for planned in hosted:
        x = planned.site.x
        if len(x.uses()) > 1 or x.is_graph_output():
            raise StrideEliminationError(
                f"rearrange='host': input {x.name} is read by others than {planned.name}, too; "
                "rearrange='reshape' rearranges in the graph"
            )
        axes = range(len(planned.site.strides))
        if any(planned.site.known_size(axis) is None for axis in axes):
            raise StrideEliminationError(
                f"rearrange='host': input {x.name} has sizes that are free, and the layout is of one "
                "size: python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name "
                f"{x.name} --input_shape 1,3,224,224 in.onnx out.onnx"
            )


# The conversion


def convert_graph(file: OnnxFile, options: FileOptions) -> ConvertedFile:
    """Convert the file's graph in memory. No weights are read yet."""
    planned_nodes = nodes_to_convert(file, options)
    initializers = file.model.ir_version >= FIRST_IR_WITH_PLAIN_INITIALIZERS
    new_filters = NewFilters(file.names)
    done = [_convert_node(file, planned, new_filters, initializers) for planned in planned_nodes]
    return ConvertedFile(file, tuple(done), new_filters)


def _convert_node(
    file: OnnxFile, planned: PlannedNode, new_filters: NewFilters, initializers: bool
) -> ConvertedNode:
    """Put what the rule builds in the node's place, and give its output the node's output's name."""
    site, node = planned.site, planned.site.node
    graph: Any = node.graph
    original = ir.to_proto(node)
    builder = Builder(
        graph, file.names, prefix_of(node), site.opset, initializers and not site.in_function
    )
    windows = planned.rule.windows(site)
    sizes = tuple(site.known_size(axis) for axis in range(len(windows)))
    channels = site.known_channels
    replacement = planned.rule.convert(site, builder, new_filters)
    old = node.outputs[0]
    x, y = site.x.name, old.name
    weights = node.inputs[1] if replacement.filter is not None else None
    _keep_name_and_notes(builder.nodes, node, replacement.output)
    # The new output takes the old one's name, by which the file's readers know it. For a moment both
    # are in the graph, where no two values may have one name.
    old.name, replacement.output.name = f"{y}/strided", y
    replacement.output.type, replacement.output.shape = old.type, old.shape
    old.replace_all_uses_with(replacement.output, replace_graph_outputs=True)
    graph.insert_before(node, builder.nodes)
    graph.remove(node, safe=True)
    if replacement.filter is not None:
        _drop_unread(weights)
    return ConvertedNode(
        planned,
        original,
        x=str(x),
        y=str(y),
        windows=windows,
        sizes=sizes,
        channels=channels,
        nodes=tuple(str(each.outputs[0].name) for each in builder.nodes),
        replacement=replacement,
    )


def _keep_name_and_notes(nodes: list[ir.Node], strided: ir.Node, output: ir.Value) -> None:
    """Give the strided node's name, text and notes to the new node of the same operator.

    Where none is of that operator, as in place of an AveragePool, the last of the new nodes has them.
    """
    same_operator = [node for node in nodes if node.op_type == strided.op_type]
    last = same_operator[-1] if same_operator else output.producer()
    assert last is not None
    last.name, last.doc_string = strided.name, strided.doc_string
    last.metadata_props.update(strided.metadata_props)


def _drop_unread(value: ir.Value | None) -> None:
    """Remove a constant that nothing reads any more, and the nodes that only it was made of."""
    if value is None or value.uses() or value.is_graph_output():
        return
    graph: Any = value.graph
    if (node := value.producer()) is not None:
        inputs = tuple(node.inputs)
        graph.remove(node, safe=True)
        for each in inputs:
            _drop_unread(each)
    elif value.is_initializer():
        del graph.initializers[value.name]
        if value in graph.inputs:  # an input whose default it was
            graph.inputs.remove(value)
