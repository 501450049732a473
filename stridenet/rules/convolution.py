"""The rules of convolutions and of transposed convolutions."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from stridenet.errors import StrideEliminationError
from stridenet.graph.factors import Factors
from stridenet.graph.nodes import CONVOLUTIONS, axes, describe_node, extents, shape
from stridenet.index_maps import PositionMap, padded_positions
from stridenet.layers import Padding
from stridenet.phases import expand_bias, expand_filter
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, Rule, device_of
from stridenet.rules.windows import Windowed
from stridenet.sizes import format_size
from stridenet.taps import TapMap, Taps, TransposedTapMap
from stridenet.windows import Window


class Convolution(Windowed):
    """The rule of Conv1d, Conv2d and Conv3d."""

    def applies(self, call: Call) -> bool:
        rank = len(call.module.kernel_size) + 2
        applies = super().applies(call) and len(shape(call.maps[0])) == rank
        if applies:
            self._require_as_made(call)
        return applies

    @staticmethod
    def _require_as_made(call: Call) -> None:
        conv, label = call.module, describe_node(call.traced, call.node)
        first, second = conv.out_channels, conv.in_channels
        if conv.transposed:
            first, second = second, first
        made_with = (first, second // conv.groups, *conv.kernel_size)
        numbers = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
        if tuple(conv.weight.shape) != made_with or any(isinstance(n, int) for n in numbers):
            raise StrideEliminationError(
                f"{label} was changed after it was made: its weight {format_size(conv.weight.shape)} "
                f"and its kernel, stride, dilation and padding {numbers} do not go together"
            )

    def pads_with_zeros(self, call: Call) -> bool:
        """Tell whether it pads with zeros, and not with numbers of the map."""
        return bool(call.module.padding_mode == "zeros")

    def lengths(self, call: Call) -> list[int]:
        sizes = super().lengths(call)
        if self.pads_with_zeros(call):
            return sizes
        return [n + sum(pair) for n, pair in zip(sizes, _padding_pairs(call.module), strict=True)]

    def windows(self, call: Call) -> list[Window]:
        conv = call.module
        padding = (
            _padding_pairs(conv) if self.pads_with_zeros(call) else [(0, 0)] * len(conv.stride)
        )
        numbers = zip(conv.kernel_size, conv.stride, conv.dilation, padding, strict=True)
        return [Window(*axis) for axis in numbers]

    def describe(self, call: Call, layer: LayerPlan) -> LayerPlan:
        conv = call.module
        size = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
        return replace(layer, weight_size=size)

    @staticmethod
    def count_parameters(call: Call, layer: LayerPlan) -> LayerPlan:
        """Return the layer with the number of the twin's parameters."""
        filters = prod(layer.unit_stride_weight_size)
        phases = prod(tap_map.output_factor for tap_map in layer.maps)
        bias = 0 if call.module.bias is None else phases * layer.weight_size[0]
        return replace(layer, parameters=layer.parameters._replace(unit_stride=filters + bias))

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        return self.count_parameters(call, super().plan(call, layer))

    def pad_first(self, call: Call, layer: LayerPlan) -> tuple[LayerPlan, Padding]:
        """Move zeros before the rearrangement on those axes where that makes the filter smaller.

        Padding that is no multiple of the factor shifts the windows against the blocks, so that they
        reach over one block more. Four taps of stride 2 with padding 1 read the positions −1 to 2
        first: three blocks of two, so that the twin's kernel has three taps. If the image is padded
        before it is rearranged, the same window reads the positions 0 to 3: two blocks, two taps.
        Only an input can be padded like that, as all other maps come in phase form, and only where no
        other layer reads it.
        """
        if not layer.maps or not self.pads_with_zeros(call):
            return super().pad_first(call, layer)
        maps, padding = list(layer.maps), [(0, 0)] * len(layer.maps)
        for axis, tap_map in enumerate(maps):
            assert isinstance(tap_map, TapMap)
            padded = replace(tap_map, padding=(0, 0), size=tap_map.size + sum(tap_map.padding))
            if padded.twin_kernel < tap_map.twin_kernel:
                maps[axis], padding[axis] = padded, tap_map.padding
        size = (layer.input.size[0], *(tap_map.size for tap_map in maps))
        layer = replace(layer, inputs=(replace(layer.input, size=size),), maps=tuple(maps))
        return self.count_parameters(call, layer), tuple(padding)

    def strided_filter(self, call: Call) -> Tensor:
        """Return its filter as (out, in / groups, *kernel)."""
        return call.module.weight.detach()

    def parts(self, call: Call, layer: LayerPlan) -> dict[str, nn.Module]:
        padding = [tap_map.twin_padding for tap_map in layer.maps]
        inside = all(before == after >= 0 for before, after in padding)
        parts: dict[str, nn.Module] = {}
        if not self.pads_with_zeros(call) and any(map(any, _padding_pairs(call.module))):
            parts["positions"] = self._positions(call, layer)
        if not inside:
            zero_pad: Any = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}[len(padding)]
            parts["padding"] = zero_pad(tuple(chain.from_iterable(reversed(padding))))
        own = [before for before, _ in padding] if inside else [0] * len(padding)
        parts["convolution"] = self._convolution(call, layer, own)
        return parts

    def _positions(self, call: Call, layer: LayerPlan) -> PositionMap:
        """Return the module that pads with numbers of the map."""
        size, mode = layer.input.spatial, call.module.padding_mode
        pairs = zip(size, _padding_pairs(call.module), strict=True)
        positions = [padded_positions(n, pair, mode) for n, pair in pairs]
        padded = replace(layer.input, size=(layer.input.channels, *self.lengths(call)))
        return PositionMap(layer.input, padded, positions, device_of(call))

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
    """The rule of ConvTranspose1d, 2d and 3d: f(out) = s·f(in).

    Between phase forms it is an ordinary convolution.
    """

    def tie(self, call: Call, factors: Factors) -> None:
        for a, b, stride in zip(
            axes(call.maps[0]), axes(call.node), call.module.stride, strict=True
        ):
            factors.tie(b, a, stride, call.label)

    def _maps(self, call: Call, factors: Sequence[int]) -> tuple[Taps, ...]:
        conv = call.module
        numbers = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
        sizes = (extents(call.maps[0]), extents(call.node), factors)
        return tuple(TransposedTapMap(*axis) for axis in zip(*numbers, *sizes, strict=True))

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        maps = self._maps(call, layer.input.factor)
        masked = any(tap_map.reads_phantoms for tap_map in maps)
        return self.count_parameters(call, replace(layer, maps=maps, masked=masked))

    def pad_first(self, call: Call, layer: LayerPlan) -> tuple[LayerPlan, Padding]:
        return Rule.pad_first(self, call, layer)

    def strided_filter(self, call: Call) -> Tensor:
        weight, groups = call.module.weight.detach(), call.module.groups
        return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _requires_grad(module: nn.Module, name: str) -> bool:
    """Tell whether a parameter, or what a parametrization makes it from, is trained."""
    return bool(getattr(module, name).requires_grad)


def _padding_pairs(conv: Any) -> list[tuple[int, int]]:
    """Return the padding before and after each axis, in numbers."""
    if conv.padding == "valid":
        return [(0, 0) for _ in conv.kernel_size]
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(zeros), int(zeros)) for zeros in conv.padding]
