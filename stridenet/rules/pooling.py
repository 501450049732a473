"""The rule of average and maximum pooling, adaptive pooling among them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stridenet.graph.nodes import extents
from stridenet.layers import OverPixels, PhantomMask, WindowAverage, WindowMaximum
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, device_of, dtype_of
from stridenet.rules.windows import Window, Windowed
from stridenet.taps import TapMap


class Pooling(Windowed):
    """Maximum or average over windows; over a whole map, it is one of the pixels."""

    def __init__(self, average: bool, adaptive: bool) -> None:
        self.average, self.adaptive = average, adaptive

    def outside(self, call: Call) -> float:
        return 0.0 if self.average else -torch.inf

    def _numbers(self, call: Call) -> dict[str, Any]:
        if self.adaptive:
            return call.options("output_size")
        if self.average:
            names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
            return call.options(*names, "divisor_override")
        return call.options("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def applies(self, call: Call) -> bool:
        if not super().applies(call) or getattr(call.module, "return_indices", False):
            return False
        pairs = zip(extents(call.maps[0]), extents(call.node), strict=True)
        return not self.adaptive or all(size % length == 0 for size, length in pairs)

    def why_not(self, call: Call) -> str:
        if getattr(call.module, "return_indices", False):
            return "it returns the places of the maxima, too"
        return "its windows differ in size" if self.adaptive else ""

    def windows(self, call: Call) -> list[Window]:
        pairs = zip(self._given(call), extents(call.maps[0]), extents(call.node), strict=True)
        return [_trimmed(*axis) for axis in pairs]

    def _given(self, call: Call) -> list[Window]:
        """The windows as the layer has them, parts that lie outside for all positions included."""
        sizes, lengths = extents(call.maps[0]), extents(call.node)
        if self.adaptive:
            steps = [size // length for size, length in zip(sizes, lengths, strict=True)]
            return [Window(step, step, 1, (0, 0)) for step in steps]
        given = self._numbers(call)

        def each(name: str, default: Any) -> Sequence[int]:
            value = given.get(name, default)
            value = default if value in (None, (), []) else value
            value = (value,) if isinstance(value, int) else tuple(value)
            return value * (len(sizes) // len(value))

        kernel = each("kernel_size", 1)
        numbers = zip(
            kernel, each("stride", kernel), each("dilation", 1), each("padding", 0), strict=True
        )
        return [
            Window(k, s, d, (p, s * (length - 1) + d * (k - 1) + 1 - size - p))
            for (k, s, d, p), size, length in zip(numbers, sizes, lengths, strict=True)
        ]

    def is_strided(self, call: Call) -> bool:
        """Adaptive pooling of a whole map has no stride."""
        return super().is_strided(call) and not (self.adaptive and self.is_global(call))

    def is_global(self, call: Call) -> bool:
        """Whether its one window is the whole map."""
        if self._numbers(call).get("divisor_override"):
            return False
        return all(
            window.kernel == size and window.padding == (0, 0) and window.dilation == 1
            for window, size in zip(self._given(call), extents(call.maps[0]), strict=True)
        ) and set(extents(call.node)) == {1}

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        simple = self.is_global(call) and layer.output.phases == 1
        return layer if simple else super().plan(call, layer)

    def describe(self, call: Call, layer: LayerPlan) -> LayerPlan:
        """Averages are convolutions in the twin."""
        kernel = (window.kernel for window in self.windows(call))
        return (
            replace(layer, weight_size=(layer.output.channels, 1, *kernel))
            if self.average
            else layer
        )

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if layer.maps:
            return super().build(call, layer)
        whole = getattr(
            nn, f"Adaptive{'Avg' if self.average else 'Max'}Pool{len(layer.output.factor)}d"
        )(1)
        if layer.input.phases == 1:
            return whole
        return OverPixels(whole, layer.input, False, device_of(call))

    def parts(self, call: Call, layer: LayerPlan) -> dict[str, nn.Module]:
        if not self.average:
            parts: dict[str, nn.Module] = {"maximum": WindowMaximum(layer.maps, self.outside(call))}
            if layer.output.ragged:  # phantoms must stay finite
                parts["tail"] = PhantomMask(layer.output, device_of(call))
            return parts
        ones = torch.ones(1, 1, *extents(call.maps[0]), dtype=torch.float64)
        count = ones.new_ones(())
        for window, size in zip(self._effective(call), extents(call.maps[0]), strict=True):
            inside = TapMap(*window, size, 1).taps_inside
            count = count.unsqueeze(-1) * torch.from_numpy(inside).clamp(min=1)
        if call.module is not None:
            averages = call.module(ones)
        else:
            arguments, options = call.slots()
            averages = call.node.target(ones, *arguments[1:], **options)  # type: ignore[operator]
        scale = (averages[0, 0] / count).to(device_of(call), dtype_of(call))
        return {"average": WindowAverage(layer.output.channels, layer.maps, layer.output, scale)}


def _trimmed(window: Window, size: int, length: int) -> Window:
    """Without the taps that lie on the map for none of `length` positions: a window may be larger than
    the map, and all that is made for it would be, too. One stays, if none ever lies there."""
    kernel, stride, dilation, (before, after) = window
    first = max(0, -(-(before - stride * (length - 1)) // dilation))
    first = min(first, kernel - 1)
    last = max(first, min(kernel - 1, (size - 1 + before) // dilation))
    cut = dilation * first, dilation * (kernel - 1 - last)
    return Window(last - first + 1, stride, dilation, (before - cut[0], after - cut[1]))
