"""One operation of a traced network as the rules read it, and what a rule is.

A rule ties the factors of an operation's maps, says what the twin has in its place, and builds that.
An operation without a rule keeps its place, between maps in their ordinary form.
"""

import copy
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from stridenet.graph.factors import Factors
from stridenet.graph.nodes import (
    axes,
    channel,
    is_loose,
    of_model,
    operation_of,
    place,
    plain,
    shape,
    size_of,
    tensors,
)
from stridenet.layers import Operation, Slot
from stridenet.options import Options
from stridenet.plan import LayerPlan


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
        """Return what errors call it."""
        sizes = " and ".join(size_of(n) for n in self.maps)
        return f"{place(self.traced, self.node)} on a map {sizes}"

    @cached_property
    def operands(self) -> list[fx.Node]:
        """Everything it reads, in the order in which a module in its place would be given it."""
        return self.node.all_input_nodes

    @cached_property
    def maps(self) -> list[fx.Node]:
        """The maps and vectors among its operands."""
        return [n for n in self.operands if not of_model(n) and tensors(n.meta["value"])]

    @cached_property
    def constants(self) -> list[fx.Node]:
        """The tensors among its operands that are made of the model's own alone."""
        return [n for n in self.operands if of_model(n) and tensors(n.meta["value"])]

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


class Rule:
    """Treats each position of one map by itself: any arrangement will do."""

    several_channel_axes = False  # whether maps may have plain dimensions beside that of channels
    no_channel_axis = False  # whether maps may be without channels
    without_maps = False  # whether there may be none
    moves_channels = False  # whether it must be known where channels are, to say where they go
    puts_channels_first = False  # whether they are in dimension 1 afterwards, by what it computes

    def takes(self, call: Call) -> bool:
        """Whether it can deal with dimensions such as its maps have, and `applies`."""
        if not call.maps and not self.without_maps:
            return False
        if self.moves_channels and any(map(is_loose, call.maps)):
            return False
        return not self._has_other_dimensions(call) and self.applies(call)

    def leaves_loose(self, call: Call) -> bool:
        """Whether nothing says where its result has the channels."""
        return not self.puts_channels_first and bool(call.maps) and all(map(is_loose, call.maps))

    def _has_other_dimensions(self, call: Call) -> bool:
        several = any(plain(n) for n in call.maps)
        without = any(channel(n) == 0 for n in call.maps)
        return (several and not self.several_channel_axes) or (without and not self.no_channel_axis)

    def why_not_taken(self, call: Call) -> str:
        """Why it does not take a call, where one can say so in a few words."""
        if self._has_other_dimensions(call):
            return "the channels of its map are in several dimensions there, or in none"
        if self.moves_channels and any(map(is_loose, call.maps)):
            return "an operation without a rule comes before it"
        return self.why_not(call)

    def applies(self, call: Call) -> bool:
        """Whether the rule holds for this call; else it counts as one without a rule."""
        return len(call.maps) == 1 and len(shape(call.maps[0])) == len(shape(call.node))

    def why_not(self, call: Call) -> str:
        """Why it does not apply, where one can say so in a few words."""
        return ""

    def channel(self, call: Call) -> int:
        """Where its result has the channels; 0 for nowhere."""
        return channel(call.maps[0]) if call.maps else 1

    def plain(self, call: Call) -> tuple[int, ...]:
        """Which dimensions of its result hold neither channels nor positions."""
        return plain(call.maps[0]) if self.several_channel_axes and call.maps else ()

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

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        """Whether the twin has another module in its place: whether `build` gives one."""
        return True

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        """What stands in its place in the twin; None: the operation itself."""
        return None


class Pinned(Rule):
    """Without a rule: a copy, between maps in their ordinary form."""

    def applies(self, call: Call) -> bool:
        return True

    def channel(self, call: Call) -> int:
        return 1

    def plain(self, call: Call) -> tuple[int, ...]:
        return ()

    def leaves_loose(self, call: Call) -> bool:
        return True

    def tie(self, call: Call, factors: Factors) -> None:
        why = call.node.meta.get("why_not")
        reason = f" ({why})" if why else ""
        for node in (*call.maps, call.node):
            for axis in axes(node):
                factors.pin(axis, f"{call.named} needs its maps in their ordinary form{reason}")

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        return False


class OfModel(Pinned):
    """Made of the model's own tensors alone: kept as it is, without any factor."""

    def leaves_loose(self, call: Call) -> bool:
        return False

    def tie(self, call: Call, factors: Factors) -> None:
        pass


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
