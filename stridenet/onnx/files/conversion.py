"""convert_file: an ONNX file as one of unit strides, which has passed its proof before it appears."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from stridenet.errors import InputError, StrideEliminationError
from stridenet.onnx.files.building import Builder, prefix_of
from stridenet.onnx.files.options import Options, did_you_mean
from stridenet.onnx.files.reading import DEFAULT_DOMAINS, OnnxFile
from stridenet.onnx.files.rules.base import Converted, Rule, Site
from stridenet.onnx.files.rules.table import rule_for
from stridenet.onnx.files.weights import Expanded
from stridenet.onnx.files.windows import Window

FIRST_IR_WITH_PLAIN_INITIALIZERS = 4  # before, each is an input


@dataclass(frozen=True)
class Step:
    """One node that is to be converted."""

    name: str  # the node's, or its output's
    site: Site
    rule: Rule


@dataclass(frozen=True)
class Done:
    """One node that has been converted."""

    step: Step
    original: Any  # the NodeProto
    x: str  # the map that it reads
    y: str  # the map that it gives
    windows: tuple[Window, ...]
    sizes: tuple[int | None, ...]  # of x, along its spatial axes; None: known when the file runs
    channels: int | None  # of x
    nodes: tuple[str, ...]  # the first outputs of the nodes that stand for it, in their order
    converted: Converted


@dataclass(frozen=True)
class Conversion:
    """A file's graph after its conversion."""

    file: OnnxFile
    done: tuple[Done, ...]
    expanded: Expanded


def planned_steps(file: OnnxFile, options: Options) -> list[Step]:
    """What is to be converted, in the order of the graph. Raises errors for what cannot be."""
    found = list(every_step(file, options))
    if options.only is not None:
        found = _named(file, found, options.only)
    else:
        found = [step for step in found if options.pooling or not step.rule.pooling]
        if not found:
            raise StrideEliminationError(
                f"{file.path} has no {'Conv or pooling' if options.pooling else 'Conv'} with a stride "
                "above one: there is nothing to convert"
                + ("" if options.pooling else "; pooling=True takes MaxPool and AveragePool, too")
            )
    if options.rearrange == "host":
        found = [_on_the_host(file, step) for step in found]
        _require_host(file, found)
    refused = [
        f"{step.name} ({step.site.node.op_type}) {why}"
        for step in found
        if (why := step.rule.declines(step.site))
    ]
    if refused:
        others = f"; {len(refused) - 1} more cannot be converted either" if refused[1:] else ""
        raise StrideEliminationError(refused[0] + others)
    return found


def every_step(file: OnnxFile, options: Options) -> Iterator[Step]:
    """Every node with a rule and a stride above one."""
    for scope, opset, trusted, in_function in _scopes(file.model, file.opset):
        for node in scope:
            rule = rule_for(node)
            if rule is None:
                continue
            site = Site(
                node, file.folder, opset, trusted, in_function, options.rearrange, options.kernel
            )
            if max(site.strides, default=1) > 1 or "strides" in site.borrowed:
                yield Step(node.name or node.outputs[0].name or node.op_type, site, rule)


def _scopes(model: ir.Model, opset: int) -> Iterator[tuple[Any, int, bool, bool]]:
    """Each graph, its opset, whether its sizes can be relied on, and whether it is in a function."""
    for graph, trusted in _graphs(model.graph, True):
        yield graph, opset, trusted, False
    for function in model.functions.values():
        own = [v for d, v in function.opset_imports.items() if d in DEFAULT_DOMAINS]
        for graph, trusted in _graphs(function, False):
            yield graph, max(own, default=opset), trusted, True


def _graphs(scope: Any, trusted: bool) -> Iterator[tuple[Any, bool]]:
    """A body of a Loop or Scan may meet other sizes each time; an If's branch has those around it."""
    yield scope, trusted
    for node in scope:
        for attribute in node.attributes.values():
            for graph in graphs_of(attribute):
                yield from _graphs(graph, trusted and node.op_type == "If")


def graphs_of(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """The graphs in an attribute of a node."""
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()


def _names_of(step: Step) -> set[str]:
    node = step.site.node
    return {name for name in (node.name, *(value.name for value in node.outputs)) if name}


def _named(file: OnnxFile, found: list[Step], only: Sequence[str]) -> list[Step]:
    """The steps with these names, of nodes or of their outputs."""
    known = {name for step in found for name in _names_of(step)}
    for name in only:
        if name not in known:
            these = ", ".join(step.name for step in found[:5]) + (", …" if found[5:] else "")
            raise InputError(
                f"only: {name!r} is no node or output of {file.path.name} with a stride above one"
                f"{did_you_mean(name, known)}; there are: {these or 'none'}"
            )
    return [step for step in found if _names_of(step) & set(only)]


# What is left to the host


def _on_the_host(file: OnnxFile, step: Step) -> Step:
    """The step as it is, if it reads an input of the file; else with the rearrangement in the graph."""
    given = step.site
    at_input = any(given.x is value for value in file.model.graph.inputs)
    if at_input and given.node.op_type == "Conv":
        return step
    return replace(step, site=replace(given, rearrange="reshape"))


def _require_host(file: OnnxFile, found: list[Step]) -> None:
    """Raise StrideEliminationError unless a convolution can be left to the host."""
    hosted = [step for step in found if step.site.rearrange == "host"]
    if not hosted:
        raise StrideEliminationError(
            f"rearrange='host': no strided Conv of {file.path.name} reads an input of it; "
            "rearrange='reshape' rearranges in the graph"
        )
    for step in hosted:
        x = step.site.x
        if len(x.uses()) > 1 or x.is_graph_output():
            raise StrideEliminationError(
                f"rearrange='host': input {x.name} is read by others than {step.name}, too; "
                "rearrange='reshape' rearranges in the graph"
            )
        axes = range(len(step.site.strides))
        if any(step.site.known_size(axis) is None for axis in axes):
            raise StrideEliminationError(
                f"rearrange='host': input {x.name} has sizes that are free, and the layout is of one "
                "size: python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name "
                f"{x.name} --input_shape 1,3,224,224 in.onnx out.onnx"
            )


# The conversion


def converted(file: OnnxFile, options: Options) -> Conversion:
    """Convert the file's graph, in memory: nothing is read of its weights yet."""
    steps = planned_steps(file, options)
    plain = file.model.ir_version >= FIRST_IR_WITH_PLAIN_INITIALIZERS
    expanded = Expanded(file.names)
    done = [_convert(file, step, expanded, plain) for step in steps]
    return Conversion(file, tuple(done), expanded)


def _convert(file: OnnxFile, step: Step, expanded: Expanded, plain: bool) -> Done:
    """Put what the rule builds in the node's place, under its output's name."""
    site, node = step.site, step.site.node
    graph: Any = node.graph
    original = ir.to_proto(node)
    builder = Builder(
        graph, file.names, prefix_of(node), site.opset, plain and not site.in_function
    )
    windows = step.rule.windows(site)
    sizes = tuple(site.known_size(axis) for axis in range(len(windows)))
    channels = site.known_channels
    made = step.rule.convert(site, builder, expanded)
    old = node.outputs[0]
    x, y = site.x.name, old.name
    weights = node.inputs[1] if made.filter is not None else None
    _dress(builder.nodes, node, made.output)
    old.name, made.output.name = f"{y}/strided", y
    made.output.type, made.output.shape = old.type, old.shape
    old.replace_all_uses_with(made.output, replace_graph_outputs=True)
    graph.insert_before(node, builder.nodes)
    graph.remove(node, safe=True)
    if made.filter is not None:
        _drop_unread(weights)
    names = tuple(str(each.outputs[0].name) for each in builder.nodes)
    return Done(step, original, str(x), str(y), windows, sizes, channels, names, made)


def _dress(nodes: list[ir.Node], strided: ir.Node, output: ir.Value) -> None:
    """The operator itself keeps the node's name, text and notes."""
    kinds = [node for node in nodes if node.op_type == strided.op_type]
    last = kinds[-1] if kinds else output.producer()
    assert last is not None
    last.name, last.doc_string = strided.name, strided.doc_string
    last.metadata_props.update(strided.metadata_props)


def _drop_unread(value: ir.Value | None) -> None:
    """Take out a constant that nobody reads any more, and what it alone was made of."""
    if value is None or not _is_free(value):
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


def _is_free(value: ir.Value) -> bool:
    return not value.uses() and not value.is_graph_output()
