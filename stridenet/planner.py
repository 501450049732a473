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
from stridenet.graph.aliasing import refuse_late_readers
from stridenet.graph.factors import FactorConflict, Factors
from stridenet.graph.nodes import axes, channel, operations, shape
from stridenet.graph.tracing import trace
from stridenet.layers import Padding
from stridenet.options import Options
from stridenet.phases import FeatureMap
from stridenet.plan import EliminationPlan, InputPlan, LayerPlan, changes
from stridenet.rules.base import Call, Rule
from stridenet.rules.convolution import Convolution
from stridenet.rules.registry import CURES, PINNED, rule_of
from stridenet.rules.windows import Windowed
from stridenet.sizes import Size
from stridenet.taps import TapMap


class Conversion:
    """A traced model, the rule of each of its operations, and the plan that follows."""

    def __init__(self, model: nn.Module, sizes: tuple[Size, ...], options: Options) -> None:
        self.options = options
        self.traced = trace(model, sizes)
        self.calls = [Call(self.traced, node, options) for node in operations(self.traced)]
        self.rules: list[Rule] = []
        for call in self.calls:
            self.rules.append(rule_of(call))
            call.node.meta["channel"] = self.rules[-1].channel(call)
        self._refuse_what_stays_strided()
        refuse_late_readers(self.traced)
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
                raise StrideEliminationError(
                    f"{call.named} has inside it a {inside[0]}, for which there is no rule; {cure}"
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
                for axis in axes(node):
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
        where = channel(node) - 1 if axes(node) else 0
        return FeatureMap(size, tuple(self.factors.get(axis, 1) for axis in axes(node)), where)

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
                if len(node.users) == 1 and type(rule) is Convolution:
                    layers[index], padding = _pad_first(layers[index], padding)
                    feature_map = layers[index].input
            name = str(node.target).lstrip("*")  # node.name avoids those of Python's own functions
            inputs.append(InputPlan(name, size, padding, feature_map))
        return tuple(inputs)

    def _count(self, layers: list[LayerPlan]) -> tuple[int, int]:
        """Parameters of both networks; a module called twice counts once unless it becomes two."""
        state = dict(self.traced.named_parameters())
        constants = {n.target for n in self.traced.graph.nodes if n.op == "get_attr"}
        strided = unit_stride = sum(state[name].numel() for name in constants if name in state)
        seen: set[Any] = set()
        for call, layer in zip(self.calls, layers, strict=True):
            first = call.node.target not in seen
            seen.add(call.node.target)
            strided += layer.parameters[0] if first else 0
            unit_stride += layer.parameters[1] if first or layer.maps else 0
        return strided, unit_stride


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
