"""The rules of average and maximum pooling, adaptive pooling among them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stridenet.graph.nodes import extents
from stridenet.layers import PhantomMask, WindowAverage
from stridenet.pixels import OverPixels
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, device_of, dtype_of
from stridenet.rules.windows import Windowed
from stridenet.windows import Window


class Pooling(Windowed):
    """The base class of the rules of pooling; a global one runs on the pixels.

    A global pooling has one window, the whole map. If its result is in ordinary form, it does not
    matter in which order it reads the positions, so that its map may have any factor.
    """

    names: tuple[str, ...]  # of a function's arguments, in order
    over_whole_map: tuple[type[nn.Module], ...]  # of one, two and three axes

    def given_windows(self, call: Call) -> list[Window]:
        """Return the windows as torch's layer says them, with parts that no position has on the map."""
        sizes, lengths = extents(call.maps[0]), extents(call.node)
        given = call.arguments(*self.names)

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

    def windows(self, call: Call) -> list[Window]:
        pairs = zip(
            self.given_windows(call), extents(call.maps[0]), extents(call.node), strict=True
        )
        return [_trimmed(*axis) for axis in pairs]

    def is_global(self, call: Call) -> bool:
        """Tell whether its one window is the whole map."""
        if call.arguments(*self.names).get("divisor_override"):
            return False
        return all(
            window.kernel == size and window.padding == (0, 0) and window.dilation == 1
            for window, size in zip(self.given_windows(call), extents(call.maps[0]), strict=True)
        ) and set(extents(call.node)) == {1}

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        simple = self.is_global(call) and layer.output.phases == 1
        return layer if simple else super().plan(call, layer)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if layer.maps:
            return super().build(call, layer)
        whole: Any = self.over_whole_map[len(layer.output.factor) - 1]
        if layer.input.phases == 1:
            return whole(1)
        return OverPixels(whole(1), layer.input, False, device_of(call))


class MaximumPooling(Pooling):
    """The rule of maximum pooling: the largest of the taps of each window."""

    names: tuple[str, ...] = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    over_whole_map = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)

    def outside(self, call: Call) -> float:
        return -torch.inf

    def applies(self, call: Call) -> bool:
        return super().applies(call) and not getattr(call.module, "return_indices", False)

    def why_not(self, call: Call) -> str:
        indices = getattr(call.module, "return_indices", False)
        return "it returns the places of the maxima, too" if indices else super().why_not(call)

    def parts(self, call: Call, layer: LayerPlan) -> dict[str, nn.Module]:
        parts = super().parts(call, layer)
        if layer.output.ragged:  # the maximum of nothing is infinite, and phantoms must stay finite
            parts["tail"] = PhantomMask(layer.output, device_of(call))
        return parts


class AveragePooling(Pooling):
    """The rule of average pooling: a depthwise convolution, and the right divisor of each window."""

    names: tuple[str, ...] = (
        "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
    )  # fmt: skip
    over_whole_map = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)

    def describe(self, call: Call, layer: LayerPlan) -> LayerPlan:
        kernel = (window.kernel for window in self.windows(call))
        return replace(layer, weight_size=(layer.output.channels, 1, *kernel))

    def parts(self, call: Call, layer: LayerPlan) -> dict[str, nn.Module]:
        """Return the average, with torch's divisor of each window.

        What torch divides by depends on ceil_mode, count_include_pad and divisor_override. So its own
        pooling is asked for the averages of ones: divided by the number of ones that a window reads,
        they are the factor to give its sum.
        """
        ones = torch.ones(1, 1, *extents(call.maps[0]), dtype=torch.float64)
        count = ones.new_ones(())
        for window, size in zip(self._effective(call), extents(call.maps[0]), strict=True):
            inside = torch.from_numpy(window.on(size).taps_inside)
            count = count.unsqueeze(-1) * inside.clamp(min=1)
        if call.module is not None:
            averages = call.module(ones)
        else:
            arguments, options = call.slots()
            averages = call.node.target(ones, *arguments[1:], **options)  # type: ignore[operator]
        scale = (averages[0, 0] / count).to(device_of(call), dtype_of(call))
        return {"average": WindowAverage(layer.output.channels, layer.maps, layer.output, scale)}


class _Adaptive(Pooling):
    """Makes a rule of pooling adaptive: its windows follow from the number of outputs."""

    names: tuple[str, ...] = ("output_size",)

    def applies(self, call: Call) -> bool:
        if not super().applies(call):
            return False
        pairs = zip(extents(call.maps[0]), extents(call.node), strict=True)
        return all(size % length == 0 for size, length in pairs)

    def why_not(self, call: Call) -> str:
        return super().why_not(call) or "its windows differ in size"

    def given_windows(self, call: Call) -> list[Window]:
        pairs = zip(extents(call.maps[0]), extents(call.node), strict=True)
        return [Window(size // length, size // length) for size, length in pairs]

    def is_strided(self, call: Call) -> bool:
        return super().is_strided(call) and not self.is_global(call)


class AdaptiveMaximumPooling(_Adaptive, MaximumPooling):
    """The rule of adaptive maximum pooling whose windows are all of one size."""


class AdaptiveAveragePooling(_Adaptive, AveragePooling):
    """The rule of adaptive average pooling whose windows are all of one size."""


def _trimmed(window: Window, size: int, length: int) -> Window:
    """Return the window without the taps that no one of `length` positions has on the map.

    A window may be larger than the map, and the twin's filter would be, too. One tap stays, even if
    none ever lies on the map.
    """
    before, after = window.padding
    first = max(0, -(-(before - window.stride * (length - 1)) // window.dilation))
    first = min(first, window.kernel - 1)
    last = max(first, min(window.kernel - 1, (size - 1 + before) // window.dilation))
    cut = window.dilation * first, window.dilation * (window.kernel - 1 - last)
    return replace(window, kernel=last - first + 1, padding=(before - cut[0], after - cut[1]))
