"""The rules of slices and of constant padding: windows of one tap."""

import torch.nn.functional as F
from torch import Tensor, nn

from stridenet.graph.factors import Factors
from stridenet.graph.nodes import channel, extents, plain, shape
from stridenet.layers import Operation, OverPixels, Slot
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, Rule, device_of
from stridenet.rules.channels import parts_of
from stridenet.rules.windows import Window, Windowed


class ConstantPadding(Windowed):
    """Constant padding: over channels, each with its phases; over positions, windows of one tap."""

    def _pairs(self, call: Call) -> list[tuple[int, int]] | None:
        """Before and after each dimension but the batch; None if it is not constant."""
        given = (
            call.options("padding", "value")
            if call.module
            else call.options("pad", "mode", "value")
        )
        if given.get("mode", "constant") != "constant":
            return None
        flat = list(given["padding" if call.module else "pad"])
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        pairs += [(0, 0)] * (len(shape(call.node)) - len(pairs))
        return None if any(pairs[-1]) else pairs[-2::-1]

    def outside(self, call: Call) -> float:
        return float(call.options("pad", "mode", "value").get("value") or 0)

    def applies(self, call: Call) -> bool:
        pairs = self._pairs(call) if super().applies(call) else None
        return (
            pairs is not None
            and len(pairs) > 1
            and not (any(pairs[0]) and any(map(any, pairs[1:])))
        )

    def _of_channels(self, call: Call) -> bool:
        return any((self._pairs(call) or [])[0])

    def windows(self, call: Call) -> list[Window]:
        pairs = self._pairs(call) or []
        return [Window(1, 1, 1, pair) for pair in pairs[1:]]

    def tie(self, call: Call, factors: Factors) -> None:
        if self._of_channels(call):
            Rule.tie(self, call, factors)
        else:
            super().tie(call, factors)

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        return layer if self._of_channels(call) else super().plan(call, layer)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if not self._of_channels(call):
            return super().build(call, layer)
        before, after = (self._pairs(call) or [])[0]
        phases = layer.output.phases
        pads = [*[0, 0] * len(layer.output.factor), before * phases, after * phases]
        return Operation(F.pad, (Slot(0), pads, "constant", self.outside(call)), {})


class Indexing(Windowed):
    """An element of a tuple; a slice of positions, a window of one tap; a slice of channels."""

    several_channel_axes = no_channel_axis = True
    puts_channels_first = False

    def _slices(self, call: Call) -> list[slice] | None:
        """Return a slice for each dimension but the batch; None if the index is more than slices."""
        parts = parts_of(call.node.args[1], len(shape(call.maps[0])))
        whole = bool(parts) and all(isinstance(part, slice) for part in parts)
        return parts[1:] if whole and parts[0] == slice(None) else None

    @staticmethod
    def _of_tuple(call: Call) -> bool:
        return not isinstance(call.maps[0].meta["value"], Tensor)

    def _of_channels(self, call: Call) -> bool:
        slices = self._slices(call)
        return slices is not None and all(s == slice(None) for s in slices[1:])

    def applies(self, call: Call) -> bool:
        if self._of_tuple(call):
            return True
        if len(call.maps) != 1 or not Windowed.applies(self, call) or len(shape(call.node)) < 3:
            return False
        if plain(call.maps[0]):
            return False
        slices = self._slices(call)
        return slices is not None and (slices[0] == slice(None) or self._of_channels(call))

    def channel(self, call: Call) -> int:
        return channel(call.maps[0])

    def windows(self, call: Call) -> list[Window]:
        windows = []
        pairs = zip(extents(call.maps[0]), extents(call.node), strict=True)
        for part, (size, length) in zip((self._slices(call) or [])[1:], pairs, strict=True):
            start, _, step = part.indices(size)
            windows.append(Window(1, step, 1, (-start, step * (length - 1) + 1 - size + start)))
        return windows

    def tie(self, call: Call, factors: Factors) -> None:
        if self._of_tuple(call) or self._of_channels(call):
            Rule.tie(self, call, factors)
        else:
            super().tie(call, factors)

    def is_strided(self, call: Call) -> bool:
        return False  # no layer; between phase forms its step is gone all the same

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        if self._of_tuple(call) or self._of_channels(call):
            return layer
        return super().plan(call, layer)

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        return not self._of_tuple(call)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if self._of_channels(call):
            return OverPixels(call.as_module(), layer.input, True, device_of(call))
        return super().build(call, layer)
