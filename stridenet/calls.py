"""One operation of a traced network, as the rules read it; and what a rule is.

A rule ties the factors of an operation's maps, says what the twin has in its place, and builds that.
An operation without a rule keeps its place, between maps in their ordinary form.
"""

import copy
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from stridenet.factors import Factors
from stridenet.layers import Operation, Padding, Slot
from stridenet.phases import FeatureMap, Taps, TransposedTapMap, phase_size
from stridenet.tracing import Size, operation_of, place, size_of, tensors


@dataclass(frozen=True)
class LayerPlan:
    """One operation of the network, and what the twin makes of it."""

    name: str  # the module's path, or the node's name for a function
    operation: str  # "Conv2d", "relu", …
    inputs: tuple[FeatureMap, ...]  # those that are maps or vectors
    output: FeatureMap
    weight_size: Size = ()  # of the strided filter; () if there is none
    maps: tuple[Taps, ...] = ()  # one an axis; () unless it is a window over positions
    masked: bool = False  # the input's phantoms are filled first
    padding: Padding | None = None  # at scope="layer": put around the map, which is rearranged here
    parameters: tuple[int, int] = (0, 0)  # strided, unit-stride
    strided: bool = False  # had a stride above one, and lost it
    module: str = ""  # its path in the strided network, where several layers may have one

    @property
    def input(self) -> FeatureMap:
        """The first of `inputs`."""
        return self.inputs[0]

    @property
    def unit_stride_weight_size(self) -> Size:
        """Size of the twin's filter."""
        if not self.maps or not self.weight_size:
            return self.weight_size
        return (
            self.weight_size[0] * prod(tap_map.output_factor for tap_map in self.maps),
            self.weight_size[1] * prod(tap_map.input_factor for tap_map in self.maps),
            *(tap_map.twin_kernel for tap_map in self.maps),
        )

    @property
    def structural_zeros(self) -> int:
        """Entries of the twin's filter that no strided weight stands behind."""
        if not self.maps or not self.weight_size:
            return 0
        taps = prod(int((tap_map.taps >= 0).sum()) for tap_map in self.maps)
        return prod(self.unit_stride_weight_size) - prod(self.weight_size[:2]) * taps

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Of one image's forward pass, strided and unit-stride."""
        if not self.weight_size:
            return 0, 0
        if not self.maps:
            positions = prod(self.output.size) // self.weight_size[0]
            return (prod(self.weight_size) * positions,) * 2
        positions = prod(
            tap_map.size if isinstance(tap_map, TransposedTapMap) else tap_map.output_size
            for tap_map in self.maps
        )
        blocks = (phase_size([m.output_size], [m.output_factor]) for m in self.maps)
        return (
            prod(self.weight_size) * positions,
            prod(self.unit_stride_weight_size) * prod(chain(*blocks)),
        )


@dataclass(frozen=True)
class Options:
    """How a network is to be converted."""

    scope: str = "network"
    only: tuple[str, ...] | None = None
    pooling: bool = False
    output_factor: int | tuple[int, ...] = 1
    batch_norm: str = "shared"


# Calls ----------------------------------------------------------------------------------------------

Axis = tuple[fx.Node, int]  # of a node's result: one of its spatial axes


@dataclass(frozen=True)
class Call:
    """One operation of a traced network, as the rules read it."""

    traced: fx.GraphModule
    node: fx.Node
    how: Options

    @cached_property
    def operation(self) -> Any:
        """A module's type, a function, or a method's name."""
        return operation_of(self.traced, self.node)

    @cached_property
    def module(self) -> Any:
        """The module; None if it is a function or a method."""
        call_module = self.node.op == "call_module"
        return self.traced.get_submodule(str(self.node.target)) if call_module else None

    @property
    def named(self) -> str:
        """As errors name it."""
        sizes = " and ".join(size_of(n) for n in self.maps)
        return f"{place(self.traced, self.node)} on a map {sizes}"

    @cached_property
    def operands(self) -> list[fx.Node]:
        """Everything it reads, in the order in which a module in its place would be given it."""
        return self.node.all_input_nodes

    @cached_property
    def maps(self) -> list[fx.Node]:
        """The maps and vectors among its operands."""
        return [n for n in self.operands if n.op != "get_attr" and tensors(n.meta["value"])]

    @cached_property
    def constants(self) -> list[fx.Node]:
        """The tensors of the model among its operands."""
        return [n for n in self.operands if n.op == "get_attr"]

    def options(self, *names: str) -> dict[str, Any]:
        """A module's attributes, or a function's arguments after the first, by their names."""
        if self.module is not None:
            return {
                name: getattr(self.module, name) for name in names if hasattr(self.module, name)
            }
        return dict(zip(names, self.node.args[1:], strict=False)) | dict(self.node.kwargs)

    def slots(self) -> tuple[tuple, dict]:
        """Its arguments, with slots where nodes stand."""
        position = {node: index for index, node in enumerate(self.operands)}
        given: Any = (self.node.args, dict(self.node.kwargs))
        filled: Any = fx.node.map_arg(given, cast(Any, lambda node: Slot(position[node])))
        return filled

    def as_module(self) -> nn.Module:
        """The operation by itself: a copy of the module, or the function with its arguments."""
        if self.module is not None:
            return copy.deepcopy(self.module)
        arguments, options = self.slots()
        return Operation(self.node.target, tuple(arguments), dict(options))


def shape(node: fx.Node) -> Size:
    """Of what a node gives, with the batch; the first of several."""
    return tuple(tensors(node.meta["value"])[0].shape)


def channel(node: fx.Node) -> int:
    """Which dimension holds the channels."""
    return int(node.meta.get("channel", 1))


def spatial(node: fx.Node) -> list[int]:
    """Which dimensions are spatial: all but batch and channels."""
    return (
        [d for d in range(1, len(shape(node))) if d != channel(node)]
        if len(shape(node)) > 2
        else []
    )


def axes(node: fx.Node) -> list[Axis]:
    """The spatial axes of a node's result."""
    return [(node, axis) for axis in range(len(spatial(node)))]


def extents(node: fx.Node) -> list[int]:
    """The sizes of its spatial axes."""
    return [shape(node)[d] for d in spatial(node)]


# Rules ----------------------------------------------------------------------------------------------


class Rule:
    """Treats each position of one map by itself: any arrangement will do."""

    def applies(self, call: Call) -> bool:
        """Whether the rule holds for this call; else it counts as one without a rule."""
        return len(call.maps) == 1 and len(shape(call.maps[0])) == len(shape(call.node))

    def channel(self, call: Call) -> int:
        """Where its result has the channels."""
        return channel(call.maps[0]) if call.maps else 1

    def tie(self, call: Call, factors: Factors) -> None:
        """Demand of the factors of its maps what the rule needs."""
        for source in call.maps:
            for a, b in zip(axes(source), axes(call.node), strict=True):
                factors.tie(a, b, 1, call.named)

    def is_strided(self, call: Call) -> bool:
        """Whether it has a stride above one to lose."""
        return False

    def describe(self, call: Call, layer: LayerPlan) -> LayerPlan:
        """The layer with its strided filter, if it has one."""
        return layer

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        """The layer between phase forms (Theorem 2)."""
        return layer

    def plan_alone(self, call: Call, layer: LayerPlan) -> LayerPlan:
        """The layer with its own rearrangement, its maps left in ordinary form (Theorem 1)."""
        raise NotImplementedError

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        """What stands in its place in the twin; None: the operation itself."""
        return None


class Pinned(Rule):
    """Without a rule: a copy, between maps in their ordinary form."""

    def applies(self, call: Call) -> bool:
        return True

    def channel(self, call: Call) -> int:
        return 1

    def tie(self, call: Call, factors: Factors) -> None:
        for node in (*call.maps, call.node):
            for axis in axes(node):
                factors.pin(axis, f"{call.named} needs its maps in their ordinary form")


def sequence(**parts: nn.Module) -> nn.Module:
    """The parts one after the other, by name; the part itself if it is one."""
    return nn.Sequential(OrderedDict(parts)) if len(parts) > 1 else next(iter(parts.values()))


def _model_tensor(call: Call) -> Tensor:
    """Any of the model's numbers, to be alike in type and place."""
    state = chain(call.traced.parameters(), call.traced.buffers())
    return next((t for t in state if t.is_floating_point()), torch.empty(0).double())


def device_of(call: Call) -> torch.device:
    """Where the model is."""
    return _model_tensor(call).device


def dtype_of(call: Call) -> torch.dtype:
    """What the model computes in."""
    return _model_tensor(call).dtype
