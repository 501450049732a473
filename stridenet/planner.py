"""From a traced network to the plan of its twin.

The plan decides the factor of each feature map, and with it every filter, mask and padding, from the
sizes of a traced network alone.
"""

import itertools
from collections import Counter
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import fx, nn

from stridenet.errors import StrideEliminationError
from stridenet.graph.aliasing import let_late_readers_follow
from stridenet.graph.factors import FactorConflict, Factors
from stridenet.graph.nodes import axes, channel, of_model, operations, plain, shape
from stridenet.graph.preparing import traced_network
from stridenet.layers import Padding
from stridenet.options import Options
from stridenet.phases import FeatureMap
from stridenet.plan import EliminationPlan, InputPlan, LayerPlan, changes
from stridenet.rules.base import Call, Rule
from stridenet.rules.convolution import Convolution
from stridenet.rules.normalisation import BatchNormalisation
from stridenet.rules.registry import CURES, PINNED, rule_of
from stridenet.rules.windows import Windowed
from stridenet.sizes import Size
from stridenet.taps import TapMap


class Conversion:
    """A traced model, the rule of each of its operations, and the plan that follows."""

    def __init__(self, model: nn.Module, sizes: tuple[Size, ...], options: Options) -> None:
        self.options = options
        self.traced = traced_network(model, sizes)
        let_late_readers_follow(self.traced)
        self.calls = [Call(self.traced, node, options) for node in operations(self.traced)]
        self.rules: list[Rule] = []
        for call in self.calls:
            self.rules.append(rule_of(call))
            call.node.meta["channel"] = self.rules[-1].channel(call)
            call.node.meta["plain"] = self.rules[-1].plain(call)
            call.node.meta["loose"] = self.rules[-1].leaves_loose(call)
        self._refuse_what_stays_strided()
        self.factors = self._solve()
        self.plan = self._plan(sizes)

    @staticmethod
    def _name(call: Call) -> str:
        return str(call.node.target) if call.node.op == "call_module" else call.node.name

    def _refuse_what_stays_strided(self) -> None:
        for call, rule in zip(self.calls, self.rules, strict=True):
            inside = call.node.meta["strides"]
            if inside and rule is PINNED:
                cure = CURES.get(call.operation, self._cure(call))
                why = call.node.meta.get("why_not")
                raise StrideEliminationError(
                    f"{call.named} has inside it a {inside[0]}, for which there is no rule"
                    f"{f' ({why})' if why else ''}; {cure}"
                )

    @staticmethod
    def _cure(call: Call) -> str:
        mode = getattr(call.module, "padding_mode", "zeros")
        if mode != "zeros":
            return (
                f"its padding_mode={mode!r} has none, only 'zeros' has; convert_layers(model) converts "
                "it all the same"
            )
        return (
            "convert_layers(model) converts the model's convolutions all the same; or write it with "
            "torch's own layers (nn.Conv2d, nn.MaxPool2d, …)"
        )

    def _solve(self) -> dict[Any, int]:
        """The factor of each spatial axis of each map (Eq. 26)."""
        factors = Factors()
        try:
            inputs = [n for n in self.traced.graph.nodes if n.op == "placeholder"]
            for node in chain(inputs, (call.node for call in self.calls)):
                for axis in () if of_model(node) else axes(node):
                    factors.mention(axis)
            for call, rule in zip(self.calls, self.rules, strict=True):
                rule.tie(call, factors)
            return factors.solve({axis: self._wanted(axis[1]) for n in inputs for axis in axes(n)})
        except FactorConflict as conflict:
            raise StrideEliminationError(
                f"{conflict}; there is no twin of the whole network: convert_layers(model) converts "
                "its layers one by one, at any size"
            ) from conflict

    def _wanted(self, axis: int) -> int:
        wanted = self.options.output_factor
        if isinstance(wanted, int):
            return wanted
        if axis >= len(wanted):
            raise StrideEliminationError(f"output_factor={wanted} has no number for axis {axis}")
        return wanted[axis]

    def map_of(self, node: fx.Node) -> FeatureMap:
        """A node's map, with its factor."""
        size = shape(node)[1:]
        factor = tuple(self.factors.get(axis, 1) for axis in axes(node))
        if not factor:
            return FeatureMap(size, ())
        where = channel(node) - 1 if channel(node) else None
        return FeatureMap(size, factor, where, tuple(d - 1 for d in plain(node)))

    def _plan(self, sizes: tuple[Size, ...]) -> EliminationPlan:
        taken = {name for name, _ in self.traced.named_modules()}
        called: Counter[str] = Counter()
        layers = []
        for call, rule in zip(self.calls, self.rules, strict=True):
            name = self._name(call)
            called[name] += 1
            if called[name] > 1 or call.module is None:
                name = _unused(name, taken)
                taken.add(name)
            own = sum(p.numel() for p in call.module.parameters()) if call.module else 0
            layer = LayerPlan(
                name=name,
                module=self._name(call),
                operation=getattr(call.operation, "__name__", str(call.operation)),
                inputs=tuple(map(self.map_of, call.maps)),
                output=self.map_of(call.node),
                parameters=(own, own),
                strided=rule.is_strided(call),
            )
            layer = rule.describe(call, layer)
            if changes(layer):
                layer = rule.plan(call, layer)
            layers.append(layer)
        inputs = self._plan_inputs(sizes, layers)
        self._refuse_read_weights(layers)
        each = next((p.element_size() for p in self.traced.parameters()), 4)
        return EliminationPlan(inputs, tuple(layers), self.options, self._count(layers), each)

    def _plan_inputs(
        self, sizes: tuple[Size, ...], layers: list[LayerPlan]
    ) -> tuple[InputPlan, ...]:
        """Inputs are padded before they are rearranged where that makes the only layer that reads them
        smaller. Their phantoms are zeros already, so that a sum needs no mask."""
        inputs = []
        nodes = [n for n in self.traced.graph.nodes if n.op == "placeholder"]
        for node, size in zip(nodes, sizes, strict=True):
            padding: Padding = ((0, 0),) * len(axes(node))
            feature_map = self.map_of(node)
            for index, (call, rule) in enumerate(zip(self.calls, self.rules, strict=True)):
                if call.maps[:1] != [node] or not isinstance(rule, Windowed) or rule.outside(call):
                    continue
                layers[index] = replace(layers[index], masked=False)
                if (
                    len(node.users) == 1
                    and type(rule) is Convolution
                    and rule.pads_with_zeros(call)
                ):
                    layers[index], padding = _pad_first(layers[index], padding)
                    layers[index] = rule.counted(call, layers[index])
                    feature_map = layers[index].input
            name = str(node.target).lstrip("*")  # node.name avoids those of Python's own functions
            inputs.append(InputPlan(name, size, padding, feature_map))
        return tuple(inputs)

    def _refuse_read_weights(self, layers: list[LayerPlan]) -> None:
        """What a forward reads of a layer is the strided network's, which the twin's may not have."""
        reading = [node for node in self.traced.graph.nodes if node.op == "get_attr"]
        for call, rule, layer in zip(self.calls, self.rules, layers, strict=True):
            alike = isinstance(rule, BatchNormalisation) and self.options.batch_norm == "shared"
            if call.module is None or alike or not is_replaced(call, rule, layer):
                continue
            for node in reading:
                if str(node.target).startswith(f"{call.node.target}."):
                    raise StrideEliminationError(
                        f"{call.named}: the forward reads {node.target}, which this layer's twin has "
                        "in another form; convert_layers(model) keeps forwards as they are"
                    )

    def _count(self, layers: list[LayerPlan]) -> tuple[int, int]:
        """Parameters of both networks; a module called twice counts once unless it becomes two."""
        steps = list(zip(self.calls, self.rules, layers, strict=True))
        called = {str(call.node.target) for call in self.calls if call.module is not None}
        state = dict(self.traced.named_parameters())
        read = {str(n.target) for n in self.traced.graph.nodes if n.op == "get_attr"}
        alone = [n for n in read if n in state and not any(n.startswith(f"{m}.") for m in called)]
        strided = unit_stride = sum(state[name].numel() for name in alone)
        several = {c.node.target for c, rule, layer in steps if is_replaced(c, rule, layer)}
        seen: set[Any] = set()
        for call, _, layer in steps:
            first = call.node.target not in seen
            seen.add(call.node.target)
            strided += layer.parameters[0] if first else 0
            unit_stride += layer.parameters[1] if first or call.node.target in several else 0
        return strided, unit_stride


def is_replaced(call: Call, rule: Rule, layer: LayerPlan) -> bool:
    """Whether the twin has a module of its own in the operation's place."""
    return changes(layer) and rule.replaces(call, layer)


def _unused(name: str, taken: set[str]) -> str:
    names = chain([name], (f"{name}_{count}" for count in itertools.count(1)))
    return next(name for name in names if name not in taken)


def _pad_first(layer: LayerPlan, none: Padding) -> tuple[LayerPlan, Padding]:
    maps, padding = list(layer.maps), list(none)
    for axis, tap_map in enumerate(maps):
        assert isinstance(tap_map, TapMap)
        padded = replace(tap_map, padding=(0, 0), size=tap_map.size + sum(tap_map.padding))
        if padded.twin_kernel < tap_map.twin_kernel:
            maps[axis], padding[axis] = padded, tap_map.padding
    if not maps:
        return layer, none
    source = replace(layer.input, size=(layer.input.size[0], *(tap_map.size for tap_map in maps)))
    return replace(layer, inputs=(source,), maps=tuple(maps)), tuple(padding)
