"""The rules of slices and of constant padding: over positions, they are windows of one tap."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stridenet.graph.nodes import channel, extents, shape
from stridenet.layers import Operation, Slot
from stridenet.pixels import OverPixels
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, Rule, device_of
from stridenet.rules.channels import parts_of
from stridenet.rules.windows import Windowed
from stridenet.windows import Window

Pair = tuple[int, int]  # before and after one dimension


def _constant_padding(call: Call) -> list[Pair] | None:
    """Return the padding of each dimension but the batch; None if it is not constant."""
    module = call.module is not None
    names = ("padding", "value") if module else ("pad", "mode", "value")
    given = call.arguments(*names)
    if given.get("mode", "constant") != "constant":
        return None
    flat = list(given[names[0]])
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    pairs += [(0, 0)] * (len(shape(call.node)) - len(pairs))
    return None if any(pairs[-1]) else pairs[-2::-1]


def _fill(call: Call) -> float:
    """Return the number that constant padding puts around a map."""
    return float(call.arguments("pad", "mode", "value").get("value") or 0)


class PositionPadding(Windowed):
    """Pads positions with a constant: a window of one tap reads `outside` beside the map."""

    def outside(self, call: Call) -> float:
        return _fill(call)

    def applies(self, call: Call) -> bool:
        pairs = _constant_padding(call) if super().applies(call) else None
        return pairs is not None and len(pairs) > 1 and not any(pairs[0])

    def windows(self, call: Call) -> list[Window]:
        pairs = _constant_padding(call) or []
        return [Window(1, 1, 1, pair) for pair in pairs[1:]]


class ChannelPadding(Rule):
    """Pads channels with a constant: each new one comes with its phases."""

    puts_channels_first = True

    def applies(self, call: Call) -> bool:
        if not super().applies(call) or channel(call.maps[0]) != 1:
            return False
        pairs = _constant_padding(call)
        return pairs is not None and len(pairs) > 1 and not any(map(any, pairs[1:]))

    def why_not(self, call: Call) -> str:
        pairs = _constant_padding(call) or [(0, 0)]
        both = any(pairs[0]) and any(map(any, pairs[1:]))
        return "it pads channels and positions at once" if both else ""

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        before, after = (_constant_padding(call) or [])[0]
        phases = layer.output.phases
        pads = [*[0, 0] * len(layer.output.factor), before * phases, after * phases]
        return Operation(F.pad, (Slot(0), pads, "constant", _fill(call)), {})


def _slices(call: Call) -> list[Any]:
    """Return a slice for each dimension but the batch; [] if the index is more than slices."""
    parts = parts_of(call.node.args[1], len(shape(call.maps[0])))
    whole = bool(parts) and all(isinstance(part, slice) for part in parts)
    return parts[1:] if whole and parts[0] == slice(None) else []


def _is_sliced_map(call: Call) -> bool:
    """Tell whether an index leaves the dimensions of a channels-first map."""
    if len(call.maps) != 1 or not isinstance(call.maps[0].meta["value"], Tensor):
        return False
    rank = len(shape(call.node))
    same_rank = rank > 2 and rank == len(shape(call.maps[0]))
    return same_rank and channel(call.maps[0]) == 1 and bool(_slices(call))


class TupleElement(Rule):
    """Takes an element of a tuple, as torch.split and torch.max give them."""

    several_channel_axes = no_channel_axis = True

    def applies(self, call: Call) -> bool:
        return not isinstance(call.maps[0].meta["value"], Tensor)

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        return False


class ChannelSlice(Rule):
    """Slices channels: it takes the same channels of each pixel."""

    def applies(self, call: Call) -> bool:
        return _is_sliced_map(call) and all(s == slice(None) for s in _slices(call)[1:])

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        return OverPixels(call.as_module(), layer.input, True, device_of(call))


class PositionSlice(Windowed):
    """Slices positions: a window of one tap, whose stride is the slice's step."""

    puts_channels_first = False

    def applies(self, call: Call) -> bool:
        return _is_sliced_map(call) and _slices(call)[0] == slice(None)

    def windows(self, call: Call) -> list[Window]:
        windows = []
        pairs = zip(extents(call.maps[0]), extents(call.node), strict=True)
        for part, (size, length) in zip(_slices(call)[1:], pairs, strict=True):
            start, _, step = part.indices(size)
            windows.append(Window(1, step, 1, (-start, step * (length - 1) + 1 - size + start)))
        return windows

    def is_strided(self, call: Call) -> bool:
        return False  # it is no layer; between phase forms its step is gone all the same
