"""Rules of operations that treat all positions of a map alike: on numbers, channels, or pixels."""

import copy
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from stridenet.graph.factors import Factors
from stridenet.graph.nodes import axes, channel, extents, shape, spatial, tensors
from stridenet.layers import Broadcast, OverPixels, PhantomMask
from stridenet.phases import FeatureMap
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, Rule, device_of


class Elementwise(Rule):
    """Combines numbers at the same position of one or more maps, with broadcasting."""

    def __init__(self, fill: float | None = None) -> None:
        # What phantoms must be for a finite result; None: any finite number will do.
        self.fill = fill

    def applies(self, call: Call) -> bool:
        rank = len(shape(call.node))
        where = {channel(n) for n in call.maps}
        return bool(call.maps) and len(where) == 1 and all(len(shape(n)) == rank for n in call.maps)

    def tie(self, call: Call, factors: Factors) -> None:
        for source in call.maps:
            for a, b, size, out in zip(
                axes(source), axes(call.node), extents(source), extents(call.node), strict=True
            ):
                if size == out:
                    factors.tie(a, b, 1, call.named)
                else:  # of size one, and broadcast
                    factors.pin(a, f"{call.named} broadcasts an axis of size one")
        for constant in call.constants:
            for axis, dimension in zip(axes(call.node), spatial(call.node), strict=True):
                sizes = (1,) * len(shape(call.node)) + shape(constant)
                if sizes[dimension - len(shape(call.node))] > 1:
                    factors.pin(axis, f"{call.named} has a number for each position")

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        alike = len(set(layer.inputs)) == 1 and not call.constants
        if alike and not (self.fill is not None and layer.input.ragged):
            return None
        known = dict(zip(call.maps, layer.inputs, strict=True))
        maps = [known.get(n, self._constant(n, layer.output)) for n in call.operands]
        masks = [self._mask(call, known.get(n)) for n in call.operands]
        return Broadcast(call.as_module(), maps, layer.output, masks)

    def _mask(self, call: Call, operand: FeatureMap | None) -> nn.Module:
        if self.fill is None or operand is None or not operand.ragged:
            return nn.Identity()
        return PhantomMask(operand, device_of(call), self.fill)

    @staticmethod
    def _constant(node: fx.Node, output: FeatureMap) -> FeatureMap | None:
        """A tensor of the model as a map of one position; None if it is a number or has no channels."""
        if not tensors(node.meta["value"]):
            return None
        from_right = output.channel - len(output.size)
        size = shape(node)
        if len(size) < -from_right:
            return None
        return FeatureMap((size[from_right], *[1] * len(output.factor)), (1,) * len(output.factor))


class PerChannel(Rule):
    """A parameter for each channel (PReLU): one for each of its phases."""

    def applies(self, call: Call) -> bool:
        return super().applies(call) and channel(call.node) == 1

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        own, many = layer.parameters[0], call.module.weight.numel() > 1
        return replace(layer, parameters=(own, own * layer.output.phases if many else own))

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if call.module.weight.numel() == 1:
            return None
        twin = copy.deepcopy(call.module)
        twin.num_parameters *= layer.output.phases
        twin.weight = repeated(call.module.weight, layer.output.phases)
        return twin


class ByPixel(Rule):
    """Treats all positions of a map alike, whatever their order: runs on its pixels."""

    def __init__(self, holds: Any = None) -> None:
        self.holds = holds  # of a call: whether it does; None: always

    def applies(self, call: Call) -> bool:
        return (
            len(call.maps) == 1
            and len(shape(call.maps[0])) > 2
            and (self.holds is None or self.holds(call))
        )

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

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if layer.input.phases == 1:
            return None
        keeps = self._keeps_positions(call)
        return OverPixels(call.as_module(), layer.input, keeps, device_of(call))


class Dense(ByPixel):
    """Linear: on vectors as it is, on the channels of a channels-last map for each pixel."""

    def applies(self, call: Call) -> bool:
        source = call.maps[0]
        return len(shape(source)) == 2 or channel(source) == len(shape(source)) - 1

    def describe(self, call: Call, layer: LayerPlan) -> LayerPlan:
        return replace(layer, weight_size=tuple(call.module.weight.shape))


def pin_result(call: Call, factors: Factors) -> None:
    """Its result has one position, whatever the form of the map before."""
    for axis in axes(call.node):
        factors.pin(axis, f"{call.named} leaves one position")


def repeated(tensor: Tensor, times: int) -> Tensor:
    """A number for each channel, so many times in a row; a parameter stays one."""
    many = tensor.detach().repeat_interleave(times) if times > 1 else tensor.detach().clone()
    return nn.Parameter(many, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else many
