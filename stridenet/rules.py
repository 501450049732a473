"""Rules of operations that move no position: on numbers, channels, or all of a map's pixels alike."""

import copy
from dataclasses import replace
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from stridenet.calls import (
    Call,
    LayerPlan,
    Rule,
    axes,
    channel,
    device_of,
    extents,
    sequence,
    shape,
    spatial,
)
from stridenet.factors import Factors
from stridenet.layers import (
    Broadcast,
    DepthToSpace,
    Operation,
    OverPixels,
    PhantomMask,
    PhaseBatchNorm,
    Pixels,
    RepeatPhases,
    SharedBatchNorm,
    Slot,
)
from stridenet.phases import FeatureMap
from stridenet.tracing import BATCH, tensors


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


class Concatenation(Rule):
    """Maps side by side, over channels in any form, over positions in ordinary form."""

    def applies(self, call: Call) -> bool:
        rank = {len(shape(n)) for n in (*call.maps, call.node)}
        where = {channel(n) for n in call.maps}
        return len(rank) == len(where) == 1 and not call.constants and self._dimension(call) > 0

    @staticmethod
    def _dimension(call: Call) -> int:
        options = call.options("dim")
        return options.get("dim", options.get("axis", 0)) % len(shape(call.node))

    def tie(self, call: Call, factors: Factors) -> None:
        super().tie(call, factors)
        for axis, dimension in zip(axes(call.node), spatial(call.node), strict=True):
            if dimension == self._dimension(call):
                factors.pin(axis, f"{call.named} puts positions side by side")


class Split(Rule):
    """Channels into parts: each part has its phases with it."""

    def applies(self, call: Call) -> bool:
        named = call.options("size", "dim")
        return len(call.maps) == 1 and named.get("dim", 0) % len(shape(call.maps[0])) == channel(
            call.maps[0]
        )

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        where = channel(call.node)
        sizes = [
            part.shape[where] * layer.input.phases for part in tensors(call.node.meta["value"])
        ]
        return Operation(torch.split, (Slot(0), sizes, where), {})


class Permutation(Rule):
    """Another order of the dimensions; the phases go where the channels go."""

    def _order(self, call: Call) -> list[int]:
        rank = len(shape(call.node))
        if call.operation in (torch.permute, "permute"):
            given: Any = (call.node.kwargs.get("dims"),) if call.node.kwargs else call.node.args[1:]
            given = given[0] if isinstance(given[0], (tuple, list)) else given
            return [d % rank for d in given]
        order = list(range(rank))
        one, two = call.options("dim0", "dim1").values()
        order[one], order[two] = order[two], order[one]
        return order

    def applies(self, call: Call) -> bool:
        return len(call.maps) == 1 and len(shape(call.node)) > 2 and self._order(call)[0] == 0

    def channel(self, call: Call) -> int:
        return self._order(call).index(channel(call.maps[0]))

    def tie(self, call: Call, factors: Factors) -> None:
        source = call.maps[0]
        before = dict(zip(spatial(source), axes(source), strict=True))
        for axis, dimension in zip(axes(call.node), spatial(call.node), strict=True):
            factors.tie(before[self._order(call)[dimension]], axis, 1, call.named)


class Flatten(Rule):
    """A map to a vector, in the strided network's order."""

    def applies(self, call: Call) -> bool:
        before, after = shape(call.maps[0]), shape(call.node)
        return len(call.maps) == 1 and before[0] == BATCH and after == (BATCH, prod(before[1:]))

    def channel(self, call: Call) -> int:
        return 1

    def tie(self, call: Call, factors: Factors) -> None:
        pass

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        return sequence(restore=DepthToSpace(layer.input), flatten=nn.Flatten())


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
        twin.weight = _repeated(call.module.weight, layer.output.phases)
        return twin


class BatchNormalisation(Rule):
    """Statistics over all phases of a channel, as in the strided network, or of each phase."""

    def applies(self, call: Call) -> bool:
        return super().applies(call) and channel(call.node) == 1

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        own, phases = layer.parameters[0], layer.output.phases
        return replace(
            layer, parameters=(own, own if call.how.batch_norm == "shared" else own * phases)
        )

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        module, phases = call.module, layer.output.phases
        shared = call.how.batch_norm == "shared"
        kind = (
            SharedBatchNorm if shared else PhaseBatchNorm if layer.output.ragged else type(module)
        )
        features = module.num_features * (1 if shared else phases)
        with torch.device("meta"):
            twin = kind(
                features, module.eps, module.momentum, module.affine, module.track_running_stats
            )
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            many = phases if tensor.ndim and not shared else 1
            setattr(twin, name, _repeated(tensor, many))
        if shared:
            twin.pixels = Pixels(layer.output, device_of(call))
        elif layer.output.ragged:
            twin.mask = PhantomMask(layer.output, device_of(call))
        return twin.train(module.training)


class NearestUpsampling(Rule):
    """Each position repeated: f(out) = r·f(in)."""

    def _scale(self, call: Call) -> list[int]:
        sizes = zip(extents(call.maps[0]), extents(call.node), strict=True)
        return [length // size for size, length in sizes if length % size == 0]

    def applies(self, call: Call) -> bool:
        given = call.options("size", "scale_factor", "mode")
        nearest = given.get("mode", "nearest") in ("nearest", "nearest-exact")
        if not (nearest and super().applies(call) and channel(call.node) == 1):
            return False
        whole = len(self._scale(call)) == len(axes(call.node))
        factor = given.get("scale_factor")
        factors = factor if isinstance(factor, (tuple, list)) else [factor]
        return whole and all(f is None or f == int(f) for f in factors)

    def tie(self, call: Call, factors: Factors) -> None:
        for a, b, scale in zip(axes(call.maps[0]), axes(call.node), self._scale(call), strict=True):
            factors.tie(b, a, scale, call.named)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        return RepeatPhases(layer.input.factor, self._scale(call))


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


def _repeated(tensor: Tensor, times: int) -> Tensor:
    repeated = tensor.detach().repeat_interleave(times) if times > 1 else tensor.detach().clone()
    if not isinstance(tensor, nn.Parameter):
        return repeated
    return nn.Parameter(repeated, tensor.requires_grad)
