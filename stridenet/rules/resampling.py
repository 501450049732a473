"""The rules of upsampling, and of positions that become channels or channels that become positions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet.graph.factors import Factors
from stridenet.graph.nodes import BATCH, axes, channel, extents, shape
from stridenet.index_maps import Mixture, PositionMap, RepeatedAxes, ShufflePhases, padded_positions
from stridenet.layers import RepeatPhases
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, Rule, device_of, dtype_of


class Upsampling(Rule):
    """Upsamples by whole numbers: f(out) = r·f(in)."""

    puts_channels_first = True

    modes: tuple[str, ...] = ()

    def _given(self, call: Call) -> dict[str, Any]:
        names = (
            "size",
            "scale_factor",
            "mode",
            "align_corners",
            "recompute_scale_factor",
            "antialias",
        )
        return call.arguments(*names)

    def _scale(self, call: Call) -> list[int]:
        sizes = zip(extents(call.maps[0]), extents(call.node), strict=True)
        return [length // size for size, length in sizes if length % size == 0]

    def applies(self, call: Call) -> bool:
        given = self._given(call)
        mode = given.get("mode", "nearest") in self.modes and not given.get("antialias")
        if not (mode and super().applies(call) and channel(call.maps[0]) == 1):
            return False
        whole = len(self._scale(call)) == len(axes(call.node))
        factor = given.get("scale_factor")
        factors = factor if isinstance(factor, (tuple, list)) else [factor]
        return whole and all(f is None or f == int(f) for f in factors)

    def why_not(self, call: Call) -> str:
        mode = self._given(call).get("mode", "nearest")
        if mode in ("nearest", "nearest-exact", *LinearUpsampling.modes):
            return "it scales by a number that is not whole"
        return f"mode={mode!r} has no rule"

    def tie(self, call: Call, factors: Factors) -> None:
        for a, b, scale in zip(axes(call.maps[0]), axes(call.node), self._scale(call), strict=True):
            factors.tie(b, a, scale, call.label)


class NearestUpsampling(Upsampling):
    """Repeats each position."""

    modes = ("nearest", "nearest-exact")

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        return RepeatPhases(layer.input.factor, self._scale(call))


class LinearUpsampling(Upsampling):
    """Interpolates between the two nearest positions on each axis: linear, bilinear, trilinear."""

    modes = ("linear", "bilinear", "trilinear")

    def _weights(self, call: Call, size: int, length: int) -> Tensor:
        """Return the weight that each of `length` positions gives to each of `size`.

        They are torch's own numbers, from maps that are one at a single position.
        """
        ones = torch.eye(size, dtype=torch.float64).unsqueeze(1)
        corners = self._given(call).get("align_corners")
        return F.interpolate(ones, length, mode="linear", align_corners=corners)[:, 0].T

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        pairs = zip(layer.input.spatial, layer.output.spatial, strict=True)
        weights = [self._weights(call, *pair) for pair in pairs]
        return Mixture(layer.input, layer.output, weights, device_of(call), dtype_of(call))


class PixelShuffle(Rule):
    """Makes one channel, with r times the positions on each axis, of r²: f(out) = r·f(in)."""

    puts_channels_first = True

    def _scale(self, call: Call) -> int:
        return extents(call.node)[0] // extents(call.maps[0])[0]

    def applies(self, call: Call) -> bool:
        return super().applies(call) and channel(call.maps[0]) == 1 and len(shape(call.node)) == 4

    def tie(self, call: Call, factors: Factors) -> None:
        for a, b in zip(axes(call.maps[0]), axes(call.node), strict=True):
            factors.tie(b, a, self._scale(call), call.label)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        return ShufflePhases(layer.input.factor, self._scale(call), unshuffle=False)


class PixelUnshuffle(PixelShuffle):
    """Makes r² channels of r positions on each axis: f(in) = r·f(out)."""

    def _scale(self, call: Call) -> int:
        return extents(call.maps[0])[0] // extents(call.node)[0]

    def tie(self, call: Call, factors: Factors) -> None:
        for a, b in zip(axes(call.maps[0]), axes(call.node), strict=True):
            factors.tie(a, b, self._scale(call), call.label)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        return ShufflePhases(layer.output.factor, self._scale(call), unshuffle=True)


PADDINGS: dict[Any, str] = {
    nn.ReflectionPad1d: "reflect", nn.ReflectionPad2d: "reflect", nn.ReflectionPad3d: "reflect",
    nn.ReplicationPad1d: "replicate", nn.ReplicationPad2d: "replicate",
    nn.ReplicationPad3d: "replicate", nn.CircularPad1d: "circular", nn.CircularPad2d: "circular",
    nn.CircularPad3d: "circular",
}  # fmt: skip


class PaddingByPositions(Rule):
    """Pads with positions of the map: reflected, repeated, or from the other side."""

    puts_channels_first = True

    def _mode(self, call: Call) -> str:
        if call.module is not None:
            return PADDINGS[call.operation]
        return str(call.arguments("pad", "mode").get("mode", "constant"))

    @staticmethod
    def _pairs(call: Call) -> list[tuple[int, int]]:
        """Return the padding before and after each axis, from the first on."""
        given = call.arguments("padding") if call.module else call.arguments("pad")
        flat = list(given["padding" if call.module else "pad"])
        return list(zip(flat[::2], flat[1::2], strict=True))[::-1]

    def applies(self, call: Call) -> bool:
        if not super().applies(call) or channel(call.maps[0]) != 1:
            return False
        return self._mode(call) in PADDINGS.values() and len(self._pairs(call)) == len(
            axes(call.node)
        )

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        pairs = zip(layer.input.spatial, self._pairs(call), strict=True)
        positions = [padded_positions(size, pair, self._mode(call)) for size, pair in pairs]
        return PositionMap(layer.input, layer.output, positions, device_of(call))


class ExpandedAxes(Rule):
    """Repeats axes of size one to the size of a map: expand, expand_as, broadcast_to."""

    without_maps = True

    def applies(self, call: Call) -> bool:
        source = call.operands[0]
        rank = len(shape(call.node))
        alike = len(shape(source)) == rank or source in call.constants
        return rank > 2 and alike and channel(source) == 1

    def channel(self, call: Call) -> int:
        return 1

    def tie(self, call: Call, factors: Factors) -> None:
        source = call.operands[0]
        if source in call.constants:
            for axis, size in zip(reversed(axes(call.node)), reversed(shape(source)), strict=False):
                if size > 1:
                    factors.pin(axis, f"{call.label} has a number for each position")
            return
        pairs = zip(axes(source), axes(call.node), strict=True)
        for (a, b), size, length in zip(pairs, extents(source), extents(call.node), strict=True):
            if size == length:
                factors.tie(a, b, 1, call.label)
            else:
                factors.pin(a, f"{call.label} repeats an axis of size one")

    @staticmethod
    def _batch(call: Call) -> int | None:
        """Return the number of images of the result, as RepeatedAxes takes it."""
        source = call.operands[0]
        if shape(source)[0] == shape(call.node)[0] and len(shape(source)) == len(shape(call.node)):
            return -1
        return None if shape(call.node)[0] % BATCH == 0 else shape(call.node)[0]

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        many = len(layer.output.factor)
        factor = layer.input.factor if call.operands[0] in call.maps else (1,) * many
        return RepeatedAxes(factor, layer.output, self._batch(call))
