"""Rules of operations that put maps together, take them apart, or change their shape."""

from math import prod
from typing import Any

import torch
from torch import nn

from stridenet.graph.factors import Factors
from stridenet.graph.nodes import BATCH, axes, channel, extents, shape, spatial, tensors
from stridenet.layers import DepthToSpace, Operation, RepeatPhases, Slot
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, Rule, sequence


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
        return len(call.maps) == 1 and before[:1] == (BATCH,) and after == (BATCH, prod(before[1:]))

    def channel(self, call: Call) -> int:
        return 1

    def tie(self, call: Call, factors: Factors) -> None:
        pass

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        return sequence(restore=DepthToSpace(layer.input), flatten=nn.Flatten())


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
