"""From a traced network to the plan of its twin, as one list of steps.

The plan decides the factor of each feature map, and with it every filter, mask and padding, from the
sizes of a traced network alone. `planned_network` shows its stages in order.
"""

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import fx, nn

from stridenet.errors import StrideEliminationError
from stridenet.graph.aliasing import let_late_readers_follow
from stridenet.graph.factors import FactorConflict, Factors
from stridenet.graph.nodes import axes, channel, nodes_with_op, of_model, operations, plain, shape
from stridenet.graph.preparing import traced_network
from stridenet.layers import Padding
from stridenet.options import Options
from stridenet.phases import FeatureMap
from stridenet.plan import EliminationPlan, InputPlan, LayerPlan, changes
from stridenet.rules.base import Call, Rule
from stridenet.rules.registry import CURES, PINNED, rule_of
from stridenet.sizes import Counts, Size

AxisFactors = dict[Any, int]  # for each axis (a node and its number) that has one


@dataclass(frozen=True)
class Step:
    """Holds one operation of the network: the call, its rule, and the layer of the twin."""

    call: Call
    rule: Rule
    layer: LayerPlan

    @property
    def is_replaced(self) -> bool:
        """Tell whether the twin may have a module of its own in the operation's place."""
        return changes(self.layer) and self.rule.replaces(self.call, self.layer)


@dataclass(frozen=True)
class PlannedNetwork:
    """Holds a traced network, its steps in order, and the plan of its twin. Nothing is built yet."""

    traced: fx.GraphModule
    steps: tuple[Step, ...]
    factors: AxisFactors
    plan: EliminationPlan

    def map_of(self, node: fx.Node) -> FeatureMap:
        """Return the map that a node gives, with its factor."""
        return _map_of(node, self.factors)


def planned_network(model: nn.Module, sizes: tuple[Size, ...], options: Options) -> PlannedNetwork:
    """Trace a model and plan its twin.

    sizes: of each input, without batch. Raises StrideEliminationError if the model cannot be traced,
    or has no twin.
    """
    traced = traced_network(model, sizes)
    let_late_readers_follow(traced)
    ruled = _choose_rules(traced, options)
    _refuse_what_stays_strided(ruled)
    factors = _solve_factors(traced, ruled, options)
    steps = _plan_steps(traced, ruled, factors)
    inputs, steps = _plan_inputs(traced, steps, sizes, factors)
    _refuse_read_weights(traced, steps)
    element_size = next((p.element_size() for p in traced.parameters()), 4)
    layers = tuple(step.layer for step in steps)
    plan = EliminationPlan(inputs, layers, options, _count(traced, steps), element_size)
    return PlannedNetwork(traced, tuple(steps), factors, plan)


# The rule of each operation -------------------------------------------------------------------------


def _choose_rules(traced: fx.GraphModule, options: Options) -> list[tuple[Call, Rule]]:
    """Return each operation with its rule, and leave in its node what the next one's rule asks for."""
    ruled = []
    for node in operations(traced):
        call = Call(traced, node, options)
        rule = rule_of(call)
        node.meta["channel"] = rule.channel(call)
        node.meta["plain"] = rule.plain(call)
        node.meta["loose"] = rule.leaves_loose(call)
        ruled.append((call, rule))
    return ruled


def _refuse_what_stays_strided(ruled: list[tuple[Call, Rule]]) -> None:
    for call, rule in ruled:
        inside = call.node.meta["strides"]
        if inside and rule is PINNED:
            cure = CURES.get(call.operation, _cure(call))
            why = call.node.meta.get("why_not")
            raise StrideEliminationError(
                f"{call.label} has inside it a {inside[0]}, for which there is no rule"
                f"{f' ({why})' if why else ''}; {cure}"
            )


def _cure(call: Call) -> str:
    mode = getattr(call.module, "padding_mode", "zeros")
    if mode != "zeros":
        return (
            f"there is none for padding_mode={mode!r}, only for 'zeros'; convert_layers(model) "
            "converts it all the same"
        )
    return (
        "convert_layers(model) converts the model's convolutions all the same; or write it with "
        "torch's own layers (nn.Conv2d, nn.MaxPool2d, …)"
    )


# The factor of each map -----------------------------------------------------------------------------


def _solve_factors(
    traced: fx.GraphModule, ruled: list[tuple[Call, Rule]], options: Options
) -> AxisFactors:
    """Return the factor of each spatial axis of each map (Eq. 26)."""
    factors = Factors()
    inputs = nodes_with_op(traced, "placeholder")
    try:
        for node in chain(inputs, (call.node for call, _ in ruled)):
            for axis in () if of_model(node) else axes(node):
                factors.mention(axis)
        for call, rule in ruled:
            rule.tie(call, factors)
        return factors.solve(
            {axis: _multiple(options, axis[1]) for node in inputs for axis in axes(node)}
        )
    except FactorConflict as conflict:
        raise StrideEliminationError(
            f"{conflict}; there is no twin of the whole network: convert_layers(model) converts "
            "its layers one by one, at any size"
        ) from conflict


def _multiple(options: Options, axis: int) -> int:
    wanted = options.output_factor
    if isinstance(wanted, int):
        return wanted
    if axis >= len(wanted):
        raise StrideEliminationError(f"output_factor={wanted} has no number for axis {axis}")
    return wanted[axis]


def _map_of(node: fx.Node, factors: AxisFactors) -> FeatureMap:
    size = shape(node)[1:]
    factor = tuple(factors.get(axis, 1) for axis in axes(node))
    if not factor:
        return FeatureMap(size, ())
    where = channel(node) - 1 if channel(node) else None
    return FeatureMap(size, factor, where, tuple(d - 1 for d in plain(node)))


# The plan of each layer and input -------------------------------------------------------------------


def _plan_steps(
    traced: fx.GraphModule, ruled: list[tuple[Call, Rule]], factors: AxisFactors
) -> list[Step]:
    """Return each operation as a step, its layer between the phase forms that the factors give.

    A function, and a module that is called again, get a name that no module has.
    """
    taken = {name for name, _ in traced.named_modules()}
    called: Counter[str] = Counter()
    steps = []
    for call, rule in ruled:
        module = name = _name(call)
        called[name] += 1
        if called[name] > 1 or call.module is None:
            name = _unused(name, taken)
            taken.add(name)
        own = sum(p.numel() for p in call.module.parameters()) if call.module else 0
        layer = LayerPlan(
            name=name,
            module=module,
            operation=getattr(call.operation, "__name__", str(call.operation)),
            inputs=tuple(_map_of(source, factors) for source in call.maps),
            output=_map_of(call.node, factors),
            parameters=Counts(own, own),
            strided=rule.is_strided(call),
        )
        layer = rule.describe(call, layer)
        steps.append(Step(call, rule, rule.plan(call, layer) if changes(layer) else layer))
    return steps


def _name(call: Call) -> str:
    return str(call.node.target) if call.node.op == "call_module" else call.node.name


def _unused(name: str, taken: set[str]) -> str:
    names = chain([name], (f"{name}_{count}" for count in itertools.count(1)))
    return next(name for name in names if name not in taken)


def _plan_inputs(
    traced: fx.GraphModule, steps: list[Step], sizes: tuple[Size, ...], factors: AxisFactors
) -> tuple[tuple[InputPlan, ...], list[Step]]:
    """Return the plan of each input, and the steps: those that read an input may have changed.

    An input's phantoms are zeros: what reads zeros outside its map needs no mask. An input that one
    layer alone reads is padded before it is rearranged where that makes the layer smaller.
    """
    steps, inputs = list(steps), []
    for node, size in zip(nodes_with_op(traced, "placeholder"), sizes, strict=True):
        padding: Padding = ((0, 0),) * len(axes(node))
        feature_map = _map_of(node, factors)
        for index, (call, rule, layer) in enumerate((s.call, s.rule, s.layer) for s in steps):
            if call.maps[:1] != [node] or not rule.reads_zeros_outside(call):
                continue
            layer = replace(layer, masked=False)
            if len(node.users) == 1:
                layer, padding = rule.pad_first(call, layer)
                feature_map = layer.input
            steps[index] = replace(steps[index], layer=layer)
        name = str(node.target).lstrip("*")  # node.name avoids those of Python's own functions
        inputs.append(InputPlan(name, size, padding, feature_map))
    return tuple(inputs), steps


def _refuse_read_weights(traced: fx.GraphModule, steps: list[Step]) -> None:
    """Refuse a forward that reads a layer's weight, where the twin's layer has it in another form."""
    reading = nodes_with_op(traced, "get_attr")
    for call, rule, layer in ((step.call, step.rule, step.layer) for step in steps):
        if call.module is None or not changes(layer) or not rule.changes_weights(call, layer):
            continue
        for node in reading:
            if str(node.target).startswith(f"{call.node.target}."):
                raise StrideEliminationError(
                    f"{call.label}: the forward reads {node.target}, which this layer's twin has "
                    "in another form; convert_layers(model) keeps forwards as they are"
                )


def _count(traced: fx.GraphModule, steps: list[Step]) -> Counts:
    """Count the parameters of both networks.

    A module that is called twice counts once, unless it becomes two. Parameters that the forward reads
    by itself count, too.
    """
    called = {str(step.call.node.target) for step in steps if step.call.module is not None}
    state = dict(traced.named_parameters())
    read = {str(node.target) for node in nodes_with_op(traced, "get_attr")}
    alone = [n for n in read if n in state and not any(n.startswith(f"{m}.") for m in called)]
    strided = unit_stride = sum(state[name].numel() for name in alone)
    several = {step.call.node.target for step in steps if step.is_replaced}
    seen: set[Any] = set()
    for step in steps:
        target, own = step.call.node.target, step.layer.parameters
        strided += 0 if target in seen else own.strided
        unit_stride += 0 if target in seen and target not in several else own.unit_stride
        seen.add(target)
    return Counts(strided, unit_stride)
