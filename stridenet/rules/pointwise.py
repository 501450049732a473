"""Rules of operations that treat all positions of a map alike: on numbers, channels, or pixels."""

import copy
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import cast

import torch.nn.functional as F
from torch import Tensor, fx, nn

from stridenet.errors import StrideEliminationError
from stridenet.graph.factors import Factors
from stridenet.graph.nodes import (
    axes,
    channel,
    extents,
    layout,
    of_model,
    plain,
    shape,
    spatial,
    tensors,
)
from stridenet.layers import Broadcast, PhantomMask, RepeatedOverPhases
from stridenet.phases import FeatureMap
from stridenet.pixels import OverPixels
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, Rule, device_of
from stridenet.sizes import Counts

Condition = Callable[[Call], bool] | None  # tells whether a rule takes a call; None: it takes all


class Elementwise(Rule):
    """Combines numbers at the same position of one or more maps, with broadcasting."""

    several_channel_axes = no_channel_axis = True

    def __init__(self, fill: float | None = None, condition: Condition = None) -> None:
        # What phantoms must be for a finite result; None: any finite number will do.
        self.fill = fill
        self.condition = condition

    @staticmethod
    def _leading(call: Call) -> fx.Node:
        """Return the map with the most positions, which says where channels and positions are."""
        return max(call.maps, key=lambda n: prod(extents(n)))

    def _is_laid_out(self, call: Call, node: fx.Node) -> bool:
        """Tell whether a map has its dimensions where the leading one has them."""
        return layout(node) == layout(self._leading(call))

    def applies(self, call: Call) -> bool:
        rank = len(shape(call.node))
        if not call.maps or any(len(shape(n)) != rank for n in call.maps):
            return False
        if self.condition is not None and not self.condition(call):
            return False
        leading = self._leading(call)
        if channel(leading) == 0:
            constants = all(not shape(n) for n in call.constants)
            return constants and {(layout(n), shape(n)) for n in call.maps} == {
                (layout(leading), shape(leading))
            }
        return all(
            self._is_laid_out(call, n) or {shape(n)[d] for d in spatial(leading)} <= {1}
            for n in call.maps
        )

    def channel(self, call: Call) -> int:
        return channel(self._leading(call))

    def plain(self, call: Call) -> tuple[int, ...]:
        return plain(self._leading(call))

    def tie(self, call: Call, factors: Factors) -> None:
        for source in call.maps:
            if not self._is_laid_out(call, source):  # one position: of no form but the ordinary
                for axis in axes(source):
                    factors.pin(axis, f"{call.label} broadcasts what has one position")
                continue
            for a, b, size, out in zip(
                axes(source), axes(call.node), extents(source), extents(call.node), strict=True
            ):
                if size == out:
                    factors.tie(a, b, 1, call.label)
                else:  # of size one, and broadcast
                    factors.pin(a, f"{call.label} broadcasts an axis of size one")
        for constant in call.constants:
            for axis, dimension in zip(axes(call.node), spatial(call.node), strict=True):
                sizes = (1,) * len(shape(call.node)) + shape(constant)
                if sizes[dimension - len(shape(call.node))] > 1:
                    factors.pin(axis, f"{call.label} has a number for each position")

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        alike = len(set(layer.inputs)) == 1 and not call.constants
        return not alike or (self.fill is not None and layer.input.ragged)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        known = dict(zip(call.maps, layer.inputs, strict=True))
        masks = [self._mask(call, known.get(n)) for n in call.operands]
        if layer.output.channel is None:  # all alike: nothing to broadcast
            nothing = FeatureMap((1,), ())
            return Broadcast(call.as_module(), [None] * len(masks), nothing, masks)
        placed = {n: known[n] for n in call.maps if self._is_laid_out(call, n)}
        maps = [placed.get(n, self._constant(n, layer.output)) for n in call.operands]
        return Broadcast(call.as_module(), maps, layer.output, masks)

    def _mask(self, call: Call, operand: FeatureMap | None) -> nn.Module:
        if self.fill is None or operand is None or not operand.ragged:
            return nn.Identity()
        return PhantomMask(operand, device_of(call), self.fill)

    @staticmethod
    def _constant(node: fx.Node, output: FeatureMap) -> FeatureMap | None:
        """Return an operand of one position as a map; None if it is a number or has no channels."""
        if not tensors(node.meta["value"]):
            return None
        from_right = cast(int, output.channel) - len(output.size)
        size = shape(node)
        if len(size) < -from_right:
            return None
        return FeatureMap((size[from_right], *[1] * len(output.factor)), (1,) * len(output.factor))


class Cast(Rule):
    """Gives numbers another type, which may be that of a second tensor."""

    several_channel_axes = no_channel_axis = True

    def applies(self, call: Call) -> bool:
        return not of_model(call.operands[0])

    def tie(self, call: Call, factors: Factors) -> None:
        for a, b in zip(axes(call.maps[0]), axes(call.node), strict=True):
            factors.tie(a, b, 1, call.label)


class ByChannelFunction(Rule):
    """Calls a function with vectors that have a number for each channel: F.batch_norm, F.prelu."""

    def applies(self, call: Call) -> bool:
        if not super().applies(call) or call.operands[:1] != call.maps:
            return False
        numbers = {prod(shape(n)) for n in call.constants if len(shape(n)) == 1}
        vectors = all(len(shape(n)) == 1 for n in call.constants)
        if channel(call.maps[0]) != 1:  # a single slope is for all channels, wherever they are
            return vectors and call.operation is F.prelu and numbers == {1}
        return vectors and numbers <= {1, shape(call.node)[1]}

    @staticmethod
    def _has_statistics(call: Call) -> bool:
        """Tell whether it computes statistics of the maps, as F.batch_norm in training does."""
        if call.operation is not F.batch_norm:
            return False
        names = ("running_mean", "running_var", "weight", "bias", "training")
        given = call.arguments(*names)
        return bool(given.get("training", False)) or given.get("running_mean") is None

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        if self._has_statistics(call) and call.options.batch_norm == "per_phase":
            raise StrideEliminationError(
                f"{call.label} computes statistics of all phases of a channel together: give "
                "batch_norm='shared', or write nn.BatchNorm2d"
            )
        return layer

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if self._has_statistics(call):
            return OverPixels(call.as_module(), layer.input, True, device_of(call))
        return RepeatedOverPhases(call.as_module(), layer.input)


class PerChannel(Rule):
    """Repeats a parameter of each channel (PReLU) for each of its phases."""

    def applies(self, call: Call) -> bool:
        one = call.module.weight.numel() == 1  # for all channels, wherever they are
        return super().applies(call) and (one or channel(call.maps[0]) == 1)

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        own, many = layer.parameters.strided, call.module.weight.numel() > 1
        return replace(layer, parameters=Counts(own, own * layer.output.phases if many else own))

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        return bool(call.module.weight.numel() > 1)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        twin = copy.deepcopy(call.module)
        twin.num_parameters *= layer.output.phases
        twin.weight = repeated(call.module.weight, layer.output.phases)
        return twin


class ByPixel(Rule):
    """Treats all positions of a map alike, whatever their order: runs on its pixels."""

    def __init__(self, condition: Condition = None, why_not: str = "") -> None:
        self.condition = condition
        self.reason = why_not  # said where a call does not meet the condition

    def applies(self, call: Call) -> bool:
        return (
            len(call.maps) == 1
            and call.operands[0] is call.maps[0]
            and len(shape(call.maps[0])) > 2
            and (self.condition is None or self.condition(call))
        )

    def why_not(self, call: Call) -> str:
        return self.reason

    def channel(self, call: Call) -> int:
        return channel(call.maps[0])

    @staticmethod
    def _keeps_positions(call: Call) -> bool:
        same_rank = len(shape(call.node)) == len(shape(call.maps[0]))
        return same_rank and extents(call.node) == extents(call.maps[0])

    def tie(self, call: Call, factors: Factors) -> None:
        if self._keeps_positions(call):
            super().tie(call, factors)
        else:
            pin_result(call, factors)

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        return layer.input.phases > 1

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        keeps = self._keeps_positions(call)
        return OverPixels(call.as_module(), layer.input, keeps, device_of(call))


class OfChannels(ByPixel):
    """Reduces the channels of each position, which have no dimension afterwards."""

    moves_channels = True

    def channel(self, call: Call) -> int:
        return 0

    def tie(self, call: Call, factors: Factors) -> None:
        Rule.tie(self, call, factors)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        return OverPixels(call.as_module(), layer.input, True, device_of(call), drops_channels=True)


class Dense(ByPixel):
    """Runs Linear on vectors as it is, and on the channels of each pixel of a channels-last map."""

    def applies(self, call: Call) -> bool:
        source = call.maps[0]
        last = channel(source) == len(shape(source)) - 1
        stored = all(node.op == "get_attr" for node in call.constants)  # as they are, in F.linear
        return len(call.maps) == 1 and stored and (len(shape(source)) == 2 or last)

    def why_not(self, call: Call) -> str:
        return "it mixes positions along the last axis, not channels"

    def describe(self, call: Call, layer: LayerPlan) -> LayerPlan:
        return replace(layer, weight_size=tuple(shape_of_weight(call)))


def shape_of_weight(call: Call) -> tuple[int, ...]:
    """Return the size (out, in) of the weight of a Linear layer or of F.linear."""
    return tuple(call.module.weight.shape) if call.module is not None else shape(call.constants[0])


def pin_result(call: Call, factors: Factors) -> None:
    """Pin the factors of a call's result, which has one position whatever the map's form."""
    for axis in axes(call.node):
        factors.pin(axis, f"{call.label} leaves one position")


def repeated(tensor: Tensor, times: int) -> Tensor:
    """Return a vector with each number repeated so many times; of a parameter, a parameter."""
    many = tensor.detach().repeat_interleave(times) if times > 1 else tensor.detach().clone()
    return nn.Parameter(many, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else many
