"""What a rule is, and one operation of a traced network as the rules read it.

A rule ties the factors of an operation's maps, says what the twin has in its place, and builds that.
An operation without a rule keeps its place, between maps in their ordinary form. How to write a rule
is shown in README.md, in this folder.
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
    describe_node,
    describe_size,
    is_loose,
    of_model,
    operation_of,
    plain,
    shape,
    tensors,
)
from stridenet.layers import Operation, Padding, Slot
from stridenet.options import Options
from stridenet.plan import LayerPlan


@dataclass(frozen=True)
class Call:
    """Gives the rules what they read of one operation of a traced network."""

    traced: fx.GraphModule
    node: fx.Node
    options: Options  # what eliminate_stride was given

    @cached_property
    def operation(self) -> Any:
        """Return what is called: a module's type, a function, or a method's name."""
        return operation_of(self.traced, self.node)

    @cached_property
    def module(self) -> Any:
        """Return the module that is called; None for a function or a method."""
        call_module = self.node.op == "call_module"
        return self.traced.get_submodule(str(self.node.target)) if call_module else None

    @property
    def label(self) -> str:
        """Return the operation and the sizes of its maps, as errors name them."""
        sizes = " and ".join(describe_size(n) for n in self.maps)
        return f"{describe_node(self.traced, self.node)} on a map {sizes}"

    @cached_property
    def operands(self) -> list[fx.Node]:
        """Return the nodes that it reads, in the order in which a module in its place is given them."""
        return self.node.all_input_nodes

    @cached_property
    def maps(self) -> list[fx.Node]:
        """Return those operands that depend on the input: maps and vectors."""
        return [n for n in self.operands if not of_model(n) and tensors(n.meta["value"])]

    @cached_property
    def constants(self) -> list[fx.Node]:
        """Return those operands that are tensors made of the model's own tensors alone."""
        return [n for n in self.operands if of_model(n) and tensors(n.meta["value"])]

    def arguments(self, *names: str) -> dict[str, Any]:
        """Return what is given beside the first operand, by name.

        names: of a module, the attributes to read, where it has them; of a function, what its
            arguments after the first are called, in order.
        """
        if self.module is not None:
            return {
                name: getattr(self.module, name) for name in names if hasattr(self.module, name)
            }
        return dict(zip(names, self.node.args[1:], strict=False)) | dict(self.node.kwargs)

    def slots(self) -> tuple[tuple, dict]:
        """Return its positional and keyword arguments, with a Slot in place of each node."""
        position = {node: index for index, node in enumerate(self.operands)}
        given: Any = (self.node.args, dict(self.node.kwargs))
        filled: Any = fx.node.map_arg(given, cast(Any, lambda node: Slot(position[node])))
        return filled

    def as_module(self) -> nn.Module:
        """Return the operation by itself: a copy of the module, or the function with its arguments."""
        if self.module is not None:
            return copy.deepcopy(self.module)
        arguments, options = self.slots()
        return Operation(self.node.target, tuple(arguments), dict(options))


class Rule:
    """The base class of all rules, and what a rule does unless it says otherwise.

    As it stands it is the rule of an operation on each number by itself: the map before it and the one
    behind it have the same factor, whichever, and the operation stays as it is. A rule overrides
    `applies`, `tie` and `build`, most of all, and sets the flags.
    """

    several_channel_axes = False  # maps may have dimensions that are neither channels nor positions
    no_channel_axis = False  # maps may be without channels
    without_maps = False  # the operation may read constants alone
    moves_channels = False  # it must be known where channels are, to say where they go
    puts_channels_first = False  # by what it computes, channels are in dimension 1 afterwards

    # Which calls it takes

    def takes(self, call: Call) -> bool:
        """Tell whether it applies to a call, and its flags allow the dimensions of the maps."""
        if not call.maps and not self.without_maps:
            return False
        if self.moves_channels and any(map(is_loose, call.maps)):
            return False
        return not self._has_other_dimensions(call) and self.applies(call)

    def _has_other_dimensions(self, call: Call) -> bool:
        several = any(plain(n) for n in call.maps)
        without = any(channel(n) == 0 for n in call.maps)
        return (several and not self.several_channel_axes) or (without and not self.no_channel_axis)

    def why_not_taken(self, call: Call) -> str:
        """Say in a few words why it does not take a call; empty where there is nothing to say."""
        if self._has_other_dimensions(call):
            return "the channels of its map are in several dimensions there, or in none"
        if self.moves_channels and any(map(is_loose, call.maps)):
            return "an operation without a rule comes before it"
        return self.why_not(call)

    def applies(self, call: Call) -> bool:
        """Tell whether the rule holds for this call; the next rule of the operation is asked if not."""
        return len(call.maps) == 1 and len(shape(call.maps[0])) == len(shape(call.node))

    def why_not(self, call: Call) -> str:
        """Say in a few words why it does not apply; empty where there is nothing to say."""
        return ""

    # Where the channels of its result are

    def leaves_loose(self, call: Call) -> bool:
        """Tell whether nothing says in which dimension of its result the channels are."""
        return not self.puts_channels_first and bool(call.maps) and all(map(is_loose, call.maps))

    def channel(self, call: Call) -> int:
        """Return the dimension of its result that holds the channels; 0 if none does."""
        return channel(call.maps[0]) if call.maps else 1

    def plain(self, call: Call) -> tuple[int, ...]:
        """Return the dimensions of its result that hold neither channels nor positions."""
        return plain(call.maps[0]) if self.several_channel_axes and call.maps else ()

    # Its factors, its plan, and what is built from that

    def tie(self, call: Call, factors: Factors) -> None:
        """Demand of the factors of its maps what the rule needs."""
        for source in call.maps:
            for a, b in zip(axes(source), axes(call.node), strict=True):
                factors.tie(a, b, 1, call.label)

    def is_strided(self, call: Call) -> bool:
        """Tell whether the operation has a stride above one to lose."""
        return False

    def describe(self, call: Call, layer: LayerPlan) -> LayerPlan:
        """Return the layer with the size of its strided filter, if it has one."""
        return layer

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        """Return the layer as it is between phase forms (Theorem 2)."""
        return layer

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        """Tell whether the twin may have another module in its place: whether `build` is asked."""
        return True

    def changes_weights(self, call: Call, layer: LayerPlan) -> bool:
        """Tell whether the module in its place has the strided one's tensors in another form."""
        return self.replaces(call, layer)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        """Return what stands in its place in the twin; None for the operation itself."""
        return None

    # Its first map is an input of the network

    def reads_zeros_outside(self, call: Call) -> bool:
        """Tell whether it reads zeros beside its map: an input's phantoms, zeros too, need no mask."""
        return False

    def pad_first(self, call: Call, layer: LayerPlan) -> tuple[LayerPlan, Padding]:
        """Move padding before the rearrangement of an input that it alone reads.

        Returns the layer without that padding, and the zeros to put around the input, for each axis.
        """
        return layer, ((0, 0),) * len(layer.input.factor)


class Pinned(Rule):
    """Keeps an operation that has no other rule as it is, between maps in their ordinary form."""

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
                factors.pin(axis, f"{call.label} needs its maps in their ordinary form{reason}")

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        return False


class OfModel(Pinned):
    """Keeps an operation on the model's own tensors alone as it is, without any factor."""

    def leaves_loose(self, call: Call) -> bool:
        return False

    def tie(self, call: Call, factors: Factors) -> None:
        pass


def sequence(**parts: nn.Module) -> nn.Module:
    """Return the parts one after the other, by name; a single part as it is."""
    return nn.Sequential(OrderedDict(parts)) if len(parts) > 1 else next(iter(parts.values()))


def _model_tensor(call: Call) -> Tensor:
    """Return a tensor of the model: what a rule makes has the same type, on the same device."""
    state = chain(call.traced.parameters(), call.traced.buffers())
    return next((t for t in state if t.is_floating_point()), torch.empty(0).double())


def device_of(call: Call) -> torch.device:
    """Return the device that the model is on."""
    return _model_tensor(call).device


def dtype_of(call: Call) -> torch.dtype:
    """Return the type that the model computes in."""
    return _model_tensor(call).dtype
