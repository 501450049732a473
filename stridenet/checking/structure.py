"""Is a twin one of this network, wired and set up as eliminate_stride makes it? Nothing is computed."""

from dataclasses import replace
from typing import Any

from torch import fx, nn

from stridenet.checking.reports import LayerReport, failed
from stridenet.errors import StrideEliminationError
from stridenet.plan import EliminationPlan, LayerPlan
from stridenet.planner import PlannedNetwork, planned_network
from stridenet.sizes import checked_sizes, format_size
from stridenet.twin import UnitStrideNetwork

# Is it a twin of this network? ----------------------------------------------------------------------


def planned_like(model: nn.Module, twin: UnitStrideNetwork) -> PlannedNetwork:
    """Plan the model in the mode, training or evaluation, in which it has the twin's plan and graph.

    Leaves the model in that mode. Raises StrideEliminationError if there is none.
    """
    sizes, options = checked_sizes(twin.plan.input_size), twin.plan.options
    present = {name: module.training for name, module in model.named_modules()}
    found: list[tuple[dict[str, bool], EliminationPlan, list[str]]] = []
    error: StrideEliminationError | None = None
    for modes in (present, dict.fromkeys(present, False), dict.fromkeys(present, True)):
        _set_modes(model, modes)
        try:
            planned = planned_network(model, sizes, options)
        except StrideEliminationError as refused:  # the other mode may have a twin all the same
            error = error or refused
            continue
        plan = replace(planned.plan, bytes_each=twin.plan.bytes_each)
        found.append((modes, plan, graph_code(planned.traced)))
        if plan == twin.plan and (twin.strided is None or found[-1][2] == graph_code(twin.strided)):
            return planned
    if not found:
        assert error is not None
        raise error
    same = [modes for modes, plan, _ in found if plan == twin.plan]
    if not same:
        raise StrideEliminationError(
            "the twin was made from a network of other sizes than this model, or in another mode "
            f"(training or evaluation) that changes its forward: {_difference(found[0][1], twin.plan)}"
            "; verify it with the network that it was made from, or convert this one"
        )
    _set_modes(model, same[0])
    return planned_network(model, sizes, options)


def _set_modes(model: nn.Module, modes: dict[str, bool]) -> None:
    for name, module in model.named_modules():
        module.training = modes[name]


def graph_code(traced: fx.GraphModule) -> list[str]:
    """Return a graph as text, a line for each node, with functions by name."""
    return [str(node.format_node()) for node in traced.graph.nodes]


def _difference(here: EliminationPlan, there: EliminationPlan) -> str:
    """Describe the first layer, input or number in which two plans differ."""
    for mine, other in zip(here.layers, there.layers, strict=False):
        if mine != other:
            return f"{mine.name} is {_described(mine)} here, and {_described(other, mine)} there"
    few, many = sorted((here.layers, there.layers), key=len)
    if len(few) < len(many):
        whose = "only here" if many is here.layers else "only there"
        return f"{many[len(few)].name} ({many[len(few)].operation}) is {whose}"
    return f"{here.parameters[0]:,} parameters here, {there.parameters[0]:,} there"


def _described(layer: LayerPlan, beside: LayerPlan | None = None) -> str:
    name = "" if beside is None or beside.name == layer.name else f"{layer.name}, "
    size = f" {format_size(layer.weight_size)}" if layer.weight_size else ""
    maps = " and ".join(format_size(given.size) for given in layer.inputs)
    numbers = [f"{m.stride}/{m.padding}" for m in layer.maps]
    window = f" with strides and paddings {', '.join(numbers)}" if numbers else ""
    to = f"from {maps or 'nothing'} to {format_size(layer.output.size)}"
    return f"{name}{layer.operation}{size} {to}{window}"


# Is it as it was made? ------------------------------------------------------------------------------


def differing_settings(
    made: nn.Module, network: nn.Module, plan: EliminationPlan
) -> dict[str, LayerReport]:
    """Report each layer with a setting that eliminate_stride does not make; some show in training only.

    Layers of another type than they were made with have to show what they are by their numbers.
    """
    found: dict[str, LayerReport] = {}
    names = [layer.name for layer in plan.layers]
    modules = dict(network.named_modules())
    for name, module in made.named_modules():
        other = modules.get(name)
        known = type(module).__module__.startswith(("torch.nn.", "stridenet."))
        if other is None or type(other) is not type(module) or not known:
            continue
        layer = max((n for n in names if f"{name}.".startswith(f"{n}.")), key=len, default=name)
        for setting, value in vars(module).items():
            obtained = vars(other).get(setting, value)
            if setting[:1] != "_" and _is_setting(value) and obtained != value:
                what = f"{type(module).__name__} has {setting}={obtained!r}, not {value!r}"
                found.setdefault(layer, failed(layer, what))
    return found


def _is_setting(value: Any) -> bool:
    return isinstance(value, (int, float, str, tuple, type(None)))


def rewired(made: fx.Graph, graph: fx.Graph, planned: PlannedNetwork) -> list[LayerReport]:
    """Report the operations of a twin's graph that are gone, or read something else than when made."""
    names = {step.call.node.name: step.layer.name for step in planned.steps}
    obtained = {node.name: node for node in graph.nodes}
    found = []
    for node in made.nodes:
        name = names.get(node.name, "(outputs)" if node.op == "output" else node.name)
        other = obtained.get(node.name)
        if other is None and (node.users or node.op == "output"):
            found.append(failed(name, "is missing in the twin's graph"))
        elif other is not None and _reads(node) != _reads(other):
            found.append(failed(name, f"reads {_reads(other)}, not {_reads(node)}"))
        elif other is not None and (node.op, str(node.target)) != (other.op, str(other.target)):
            found.append(failed(name, f"calls {other.target}, not {node.target}"))
    return found


def _reads(node: fx.Node) -> str:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: source)
    return ", ".join([*map(str, args), *(f"{key}={value}" for key, value in kwargs.items())])
