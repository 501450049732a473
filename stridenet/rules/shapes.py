"""Rules of operations that put maps together, take them apart, or change their shape."""

from math import prod

import torch
from torch import nn

from stridenet.graph.factors import Factors
from stridenet.graph.nodes import BATCH, axes, channel, layout, plain, shape, spatial, tensors
from stridenet.layers import DepthToSpace, Operation, Slot
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, Rule, sequence


class Concatenation(Rule):
    """Puts maps side by side: over channels in any form, over positions in ordinary form."""

    several_channel_axes = True

    def applies(self, call: Call) -> bool:
        rank = {len(shape(n)) for n in (*call.maps, call.node)}
        where = {layout(n) for n in call.maps}
        return len(rank) == len(where) == 1 and not call.constants and self._dimension(call) > 0

    @staticmethod
    def _dimension(call: Call) -> int:
        options = call.arguments("dim")
        return options.get("dim", options.get("axis", 0)) % len(shape(call.node))

    def tie(self, call: Call, factors: Factors) -> None:
        super().tie(call, factors)
        for axis, dimension in zip(axes(call.node), spatial(call.node), strict=True):
            if dimension == self._dimension(call):
                factors.pin(axis, f"{call.label} puts positions side by side")


class Stack(Rule):
    """Stacks maps along a new dimension."""

    moves_channels = True

    several_channel_axes = True

    @staticmethod
    def _dimension(call: Call) -> int:
        return int(call.arguments("dim").get("dim", 0)) % len(shape(call.node))

    def applies(self, call: Call) -> bool:
        alike = {(layout(n), shape(n)) for n in call.maps}
        return len(alike) == 1 and not call.constants and self._dimension(call) > 0

    def channel(self, call: Call) -> int:
        where = channel(call.maps[0])
        return where + (where >= self._dimension(call))

    def plain(self, call: Call) -> tuple[int, ...]:
        new = self._dimension(call)
        return (new, *(d + (d >= new) for d in plain(call.maps[0])))


class Split(Rule):
    """Splits channels into parts: each part has its phases with it."""

    several_channel_axes = True

    @staticmethod
    def _dimension(call: Call) -> int:
        return int(call.arguments("size", "dim").get("dim", 0)) % len(shape(call.maps[0]))

    def applies(self, call: Call) -> bool:
        source = call.maps[0]
        where = (channel(source), *plain(source))
        return len(call.maps) == 1 and self._dimension(call) in where and channel(source) > 0

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        return self._dimension(call) == channel(call.maps[0])

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        where = channel(call.node)
        sizes = [
            part.shape[where] * layer.input.phases for part in tensors(call.node.meta["value"])
        ]
        return Operation(torch.split, (Slot(0), sizes, where), {})


class Gate(Rule):
    """Multiplies half of the channels by the other half (GLU): halves of phase forms are halves."""

    def applies(self, call: Call) -> bool:
        rank = len(shape(call.node))
        dimension = call.arguments("dim")["dim"] % rank
        return super().applies(call) and dimension == channel(call.maps[0])

    def why_not(self, call: Call) -> str:
        return "its halves are of positions, not of channels"

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        return False


class Permutation(Rule):
    """Orders the dimensions anew; the phases go where the channels go."""

    moves_channels = True

    several_channel_axes = True

    @staticmethod
    def _order(call: Call) -> list[int]:
        """Return the map's dimension at each place of the result, found on a map of distinct sizes."""
        rank = len(shape(call.maps[0]))
        moved = call.as_module()(torch.empty(tuple(range(1, rank + 1)), device="meta"))
        return [size - 1 for size in moved.shape]

    def applies(self, call: Call) -> bool:
        return (
            len(call.operands) == len(call.maps) == 1
            and len(shape(call.node)) > 2
            and self._order(call)[0] == 0
        )

    def channel(self, call: Call) -> int:
        return self._order(call).index(channel(call.maps[0]))

    def plain(self, call: Call) -> tuple[int, ...]:
        return tuple(map(self._order(call).index, plain(call.maps[0])))

    def tie(self, call: Call, factors: Factors) -> None:
        source, order = call.maps[0], self._order(call)
        before = dict(zip(spatial(source), axes(source), strict=True))
        for axis, dimension in zip(axes(call.node), spatial(call.node), strict=True):
            factors.tie(before[order[dimension]], axis, 1, call.label)


class Flatten(Rule):
    """Flattens a map to a vector, in the strided network's order."""

    several_channel_axes = no_channel_axis = True

    def applies(self, call: Call) -> bool:
        before, after = shape(call.maps[0]), shape(call.node)
        vector = (
            len(call.maps) == 1 and before[:1] == (BATCH,) and after == (BATCH, prod(before[1:]))
        )
        if call.operation in (torch.squeeze, "squeeze") and not call.arguments("dim"):
            return False  # it would take a single image away, too
        return vector

    def channel(self, call: Call) -> int:
        return 1

    def plain(self, call: Call) -> tuple[int, ...]:
        return ()

    def tie(self, call: Call, factors: Factors) -> None:
        pass

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        return sequence(restore=DepthToSpace(layer.input), flatten=nn.Flatten())
