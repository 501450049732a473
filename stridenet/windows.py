"""Rules of operations that read a window at each position: convolution, pooling, slices, padding."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from math import prod
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet.calls import (
    Call,
    LayerPlan,
    Rule,
    axes,
    channel,
    device_of,
    dtype_of,
    extents,
    sequence,
    shape,
)
from stridenet.factors import Factors
from stridenet.layers import (
    DepthToSpace,
    Operation,
    OverPixels,
    PhantomMask,
    Slot,
    SpaceToDepth,
    WindowAverage,
    WindowMaximum,
)
from stridenet.phases import (
    FeatureMap,
    TapMap,
    Taps,
    TransposedTapMap,
    expand_bias,
    expand_filter,
)
from stridenet.tracing import CONVOLUTIONS, StrideEliminationError, place, written


class Window(NamedTuple):
    """One axis of a convolution or pooling, as torch's layers say it."""

    kernel: int
    stride: int
    dilation: int
    padding: tuple[int, int]


class Windowed(Rule):
    """Reads a window around each of its positions, and steps by its stride: f(in) = s·f(out)."""

    def windows(self, call: Call) -> list[Window]:
        """One for each spatial axis."""
        raise NotImplementedError

    def outside(self, call: Call) -> float:
        """What a window reads outside the map."""
        return 0.0

    def applies(self, call: Call) -> bool:
        return super().applies(call) and channel(call.maps[0]) == 1

    def _effective(self, call: Call) -> list[Window]:
        """A stride that is never taken counts as one, and there is no room for it."""
        effective = []
        for window, size, length in zip(
            self.windows(call), extents(call.maps[0]), extents(call.node), strict=True
        ):
            if length == 1:
                before = window.padding[0]
                reach = window.dilation * (window.kernel - 1) + 1
                window = window._replace(stride=1, padding=(before, reach - size - before))
            effective.append(window)
        return effective

    def tie(self, call: Call, factors: Factors) -> None:
        lengths = extents(call.node)
        for a, b, window, length in zip(
            axes(call.maps[0]), axes(call.node), self.windows(call), lengths, strict=True
        ):
            if length > 1:  # a single output is where it is in any form
                factors.tie(a, b, window.stride, call.named)

    def is_strided(self, call: Call) -> bool:
        return any(window.stride > 1 for window in self.windows(call))

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        maps = tuple(
            TapMap(*window, size, output, source if length == 1 else None)
            for window, size, length, source, output in zip(
                self._effective(call),
                extents(call.maps[0]),
                extents(call.node),
                layer.input.factor,
                layer.output.factor,
                strict=True,
            )
        )
        return replace(layer, maps=maps, masked=any(tap_map.reads_phantoms for tap_map in maps))

    def plan_alone(self, call: Call, layer: LayerPlan) -> LayerPlan:
        maps, padding = [], []
        for window, size, length in zip(
            self._effective(call), extents(call.maps[0]), extents(call.node), strict=True
        ):
            alone = TapMap(window.kernel, window.stride, window.dilation, (0, 0), size, 1)
            read = window.stride * (length - 1 + alone.twin_kernel)  # all that the twin reads
            padding.append((window.padding[0], read - size - window.padding[0]))
            maps.append(replace(alone, size=read))
        source = FeatureMap(
            (layer.input.channels, *(m.size for m in maps)), tuple(m.stride for m in maps)
        )
        return replace(layer, inputs=(source,), maps=tuple(maps), padding=tuple(padding))

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        parts: dict[str, nn.Module] = {}
        outside = self.outside(call)
        if layer.padding is not None:
            size = shape(call.maps[0])[1:]
            parts["rearrange"] = SpaceToDepth(size, layer.padding, layer.input.factor, outside)
        if layer.masked:
            parts["mask"] = PhantomMask(layer.input, device_of(call), outside)
        return sequence(**parts, **self.parts(call, layer))

    def parts(self, call: Call, layer: LayerPlan) -> dict[str, nn.Module]:
        """What follows mask and rearrangement, by name."""
        return {"maximum": WindowMaximum(layer.maps, self.outside(call))}


class Convolution(Windowed):
    """Conv1d, Conv2d, Conv3d."""

    def applies(self, call: Call) -> bool:
        rank = len(call.module.kernel_size) + 2
        return super().applies(call) and len(shape(call.maps[0])) == rank and self._ordinary(call)

    @staticmethod
    def _ordinary(call: Call) -> bool:
        conv, named = call.module, place(call.traced, call.node)
        first, second = conv.out_channels, conv.in_channels
        if conv.transposed:
            first, second = second, first
        made_with = (first, second // conv.groups, *conv.kernel_size)
        numbers = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
        if tuple(conv.weight.shape) != made_with or any(isinstance(n, int) for n in numbers):
            raise StrideEliminationError(
                f"{named} was changed after it was made: its weight {written(conv.weight.shape)} and "
                f"its kernel, stride, dilation and padding {numbers} do not go together"
            )
        return conv.padding_mode == "zeros"

    def windows(self, call: Call) -> list[Window]:
        conv = call.module
        numbers = zip(conv.kernel_size, conv.stride, conv.dilation, _padding(conv), strict=True)
        return [Window(*axis) for axis in numbers]

    def describe(self, call: Call, layer: LayerPlan) -> LayerPlan:
        conv = call.module
        size = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
        return replace(layer, weight_size=size)

    @staticmethod
    def _counted(call: Call, layer: LayerPlan) -> LayerPlan:
        filters = prod(layer.unit_stride_weight_size)
        phases = prod(tap_map.output_factor for tap_map in layer.maps)
        bias = 0 if call.module.bias is None else phases * layer.weight_size[0]
        return replace(layer, parameters=(layer.parameters[0], filters + bias))

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        return self._counted(call, super().plan(call, layer))

    def plan_alone(self, call: Call, layer: LayerPlan) -> LayerPlan:
        return self._counted(call, super().plan_alone(call, layer))

    def strided_filter(self, call: Call) -> Tensor:
        """(out, in / groups, *kernel)."""
        return call.module.weight.detach()

    def parts(self, call: Call, layer: LayerPlan) -> dict[str, nn.Module]:
        padding = [tap_map.twin_padding for tap_map in layer.maps]
        inside = all(before == after >= 0 for before, after in padding)
        parts: dict[str, nn.Module] = {}
        if not inside:
            zero_pad: Any = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}[len(padding)]
            parts["padding"] = zero_pad(tuple(chain.from_iterable(reversed(padding))))
        own = [before for before, _ in padding] if inside else [0] * len(padding)
        parts["convolution"] = self._convolution(call, layer, own)
        return parts

    def _convolution(self, call: Call, layer: LayerPlan, padding: list[int]) -> nn.Module:
        module = call.module
        out_channels, in_channels, *kernel = layer.unit_stride_weight_size
        kind: Any = CONVOLUTIONS[len(kernel) - 1]
        with torch.device("meta"):  # no memory, and no draw from the global random generator
            twin = kind(
                in_channels * module.groups,
                out_channels,
                tuple(kernel),
                padding=tuple(padding),
                groups=module.groups,
                bias=module.bias is not None,
            )
        weight = expand_filter(self.strided_filter(call), layer.maps).contiguous()
        twin.weight = nn.Parameter(weight, _requires_grad(module, "weight"))
        if module.bias is not None:
            bias = expand_bias(module.bias.detach(), layer.maps).clone()
            twin.bias = nn.Parameter(bias, _requires_grad(module, "bias"))
        return cast(nn.Module, twin.train(module.training))


class TransposedConvolution(Convolution):
    """ConvTranspose1d, 2d, 3d: f(out) = s·f(in), and a plain convolution between phase forms."""

    def tie(self, call: Call, factors: Factors) -> None:
        for a, b, stride in zip(
            axes(call.maps[0]), axes(call.node), call.module.stride, strict=True
        ):
            factors.tie(b, a, stride, call.named)

    def _maps(self, call: Call, factors: Sequence[int]) -> tuple[Taps, ...]:
        conv = call.module
        numbers = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
        sizes = (extents(call.maps[0]), extents(call.node), factors)
        return tuple(TransposedTapMap(*axis) for axis in zip(*numbers, *sizes, strict=True))

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        maps = self._maps(call, layer.input.factor)
        masked = any(tap_map.reads_phantoms for tap_map in maps)
        return self._counted(call, replace(layer, maps=maps, masked=masked))

    def plan_alone(self, call: Call, layer: LayerPlan) -> LayerPlan:
        maps = self._maps(call, layer.input.factor)
        return self._counted(call, replace(layer, maps=maps, padding=((0, 0),) * len(maps)))

    def strided_filter(self, call: Call) -> Tensor:
        weight, groups = call.module.weight.detach(), call.module.groups
        return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if layer.padding is None:
            return super().build(call, layer)
        factor = tuple(tap_map.output_factor for tap_map in layer.maps)
        restore = DepthToSpace(replace(layer.output, factor=factor))
        return sequence(**self.parts(call, layer), restore=restore)


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

    def windows(self, call: Call) -> list[Window]:
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
            for window, size in zip(self.windows(call), extents(call.maps[0]), strict=True)
        ) and set(extents(call.node)) == {1}

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        simple = self.is_global(call) and layer.output.phases == 1
        return layer if simple else super().plan(call, layer)

    def plan_alone(self, call: Call, layer: LayerPlan) -> LayerPlan:
        if self.is_global(call):
            return replace(layer, padding=())
        return super().plan_alone(call, layer)

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

    def _slices(self, call: Call) -> list[slice] | None:
        """Of each dimension but the batch; None if the index is more than slices."""
        given = call.node.args[1]
        index: list[Any] = list(given) if isinstance(given, (tuple, list)) else [given]
        rank = len(shape(call.maps[0]))
        if any(i is Ellipsis for i in index):
            at = next(n for n, i in enumerate(index) if i is Ellipsis)
            index[at : at + 1] = [slice(None)] * (rank - len(index) + 1)
        index += [slice(None)] * (rank - len(index))
        plain = all(
            isinstance(i, slice)
            and all(e is None or isinstance(e, int) for e in (i.start, i.stop, i.step))
            for i in index
        )
        return index[1:] if plain and len(index) == rank and index[0] == slice(None) else None

    @staticmethod
    def _of_tuple(call: Call) -> bool:
        return not isinstance(call.maps[0].meta["value"], Tensor)

    def _of_channels(self, call: Call) -> bool:
        slices = self._slices(call)
        return slices is not None and all(s == slice(None) for s in slices[1:])

    def applies(self, call: Call) -> bool:
        if not call.maps or self._of_tuple(call):
            return bool(call.maps)
        if len(call.maps) != 1 or not Windowed.applies(self, call) or len(shape(call.node)) < 3:
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

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if self._of_tuple(call):
            return None
        if self._of_channels(call):
            return OverPixels(call.as_module(), layer.input, True, device_of(call))
        return super().build(call, layer)


def _requires_grad(module: nn.Module, name: str) -> bool:
    """Of a parameter, or of what a parametrization makes it from."""
    return bool(getattr(module, name).requires_grad)


def _padding(conv: Any) -> list[tuple[int, int]]:
    """Zeros before and after each axis."""
    if conv.padding == "valid":
        return [(0, 0) for _ in conv.kernel_size]
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(zeros), int(zeros)) for zeros in conv.padding]
