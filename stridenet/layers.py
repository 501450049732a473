"""The modules that a unit-stride network is made of, beside torch's own.

All take phase forms (n, c·f_h·f_w, h', w'). What runs on the pixels of a channel, in whatever order, is
in pixels.py; what moves whole positions, in index_maps.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stridenet.errors import StrideEliminationError
from stridenet.phases import FeatureMap, expand_filter, space_to_depth
from stridenet.sizes import format_size
from stridenet.taps import Taps

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
Padding = tuple[tuple[int, int], ...]


# Rearrangements -------------------------------------------------------------------------------------


class SpaceToDepth(nn.Module):
    """Rearranges maps (n, c, h, w) of one size into phase form, with zeros put around them first."""

    def __init__(self, input_size: Sequence[int], padding: Padding, factor: Sequence[int]) -> None:
        super().__init__()
        self.input_size = tuple(input_size)
        self.padding, self.factor = padding, tuple(factor)

    def forward(self, images: Tensor) -> Tensor:
        """Rearrange images; raises StrideEliminationError for another size than the twin's."""
        return _to_phases(images, self.input_size, self.padding, self.factor)

    def extra_repr(self) -> str:
        """Return what print shows."""
        return f"input_size={self.input_size}, padding={self.padding}, factor={self.factor}"


@fx.wrap  # torch.fx cannot look into it: it depends on the size
def _to_phases(
    images: Tensor, size: tuple[int, ...], padding: Padding, factor: tuple[int, ...]
) -> Tensor:
    if tuple(images.shape[1:]) != size:
        raise StrideEliminationError(
            f"images are {format_size(images.shape[1:])}, but this twin was made for "
            f"{format_size(size)}; call eliminate_stride with that input_size"
        )
    images = _pad(images, padding)
    return space_to_depth(images, factor) if max(factor, default=1) > 1 else images


class EachInput(nn.Module):
    """Rearranges several inputs, each into its phase form."""

    def __init__(self, rearrangements: Sequence[SpaceToDepth]) -> None:
        super().__init__()
        self.rearrangements = nn.ModuleList(rearrangements)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return a phase form for each input."""
        return tuple(rearrange(x) for rearrange, x in zip(self.rearrangements, inputs, strict=True))


class DepthToSpace(nn.Module):
    """Rearranges a phase form back into ordinary maps, without phantoms."""

    def __init__(self, feature_map: FeatureMap) -> None:
        super().__init__()
        self.feature_map = feature_map

    def forward(self, phases: Tensor) -> Tensor:
        """Return ordinary maps, from their phase form."""
        return _to_maps(phases, self.feature_map)


@fx.wrap
def _to_maps(phases: Tensor, feature_map: FeatureMap) -> Tensor:
    return feature_map.to_maps(phases)


class EachToSpace(nn.Module):
    """Rearranges several phase forms, as one operation gives them, back into ordinary maps."""

    def __init__(self, maps: Sequence[FeatureMap]) -> None:
        super().__init__()
        self.restore = nn.ModuleList(map(DepthToSpace, maps))

    def forward(self, parts: Any) -> Any:
        """Return ordinary maps, in a tuple of the same type."""
        return type(parts)([restore(x) for restore, x in zip(self.restore, parts, strict=True)])


class PhantomMask(nn.Module):
    """Sets the positions that the strided network does not have to `fill`."""

    real: Tensor  # (channels, height, width), of the phase form

    def __init__(self, feature_map: FeatureMap, device: torch.device, fill: float = 0) -> None:
        super().__init__()
        self.fill = fill
        ones = torch.ones(1, *feature_map.size, dtype=torch.bool, device=device)
        # Rank 3 and selection: a mask of rank 4 or a product would lose channels_last, or spread NaN.
        self.register_buffer("real", feature_map.to_phases(ones)[0], persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps, filled where they are not real."""
        return torch.where(self.real, maps, self.fill)


def _pad(maps: Tensor, padding: Padding, fill: float = 0) -> Tensor:
    if not any(map(any, padding)):
        return maps
    return F.pad(maps, [extent for pair in reversed(padding) for extent in pair], value=fill)


# Windows --------------------------------------------------------------------------------------------


class WindowMaximum(nn.Module):
    """Takes the largest number that each tap map reads, axis by axis; `fill` where it reads outside.

    With one tap it only moves positions, as a slice does, and padding.
    """

    def __init__(self, maps: Sequence[Taps], fill: float) -> None:
        super().__init__()
        self.fill = fill
        self.factor = tuple(tap_map.input_factor for tap_map in maps)
        self.padding = tuple(tap_map.twin_padding for tap_map in maps)
        # For each axis and output phase: the (input phase, shift) of every tap.
        self.reads = [[np.argwhere(row >= 0).tolist() for row in tap_map.taps] for tap_map in maps]
        self.kernel = tuple(tap_map.twin_kernel for tap_map in maps)

    def forward(self, maps: Tensor) -> Tensor:
        """Take a phase form, and return one. Equal numbers share the gradient."""
        maps = _pad(maps, self.padding, self.fill).unflatten(1, (-1, *self.factor))
        axes = len(self.factor)
        for axis in reversed(range(axes)):
            phase, block = 2 + axis, 1 + axes + axis  # dimensions; the latter once a phase is taken
            length = maps.shape[block + 1] - self.kernel[axis] + 1
            phases = []
            for reads in self.reads[axis]:
                largest = None
                for p, shift in reads:
                    read = maps.select(phase, p).narrow(block, shift, length)
                    largest = read if largest is None else torch.maximum(largest, read)
                phases.append(cast(Tensor, largest))
            maps = torch.stack(phases, phase)
        return maps.flatten(1, 1 + axes)


class WindowAverage(nn.Module):
    """Averages windows: it sums each by a depthwise convolution, and divides by its right divisor."""

    weight: Tensor
    scale: Tensor | None  # (channels, height, width): 1 / divisor, where it is not one number

    def __init__(
        self, channels: int, maps: Sequence[Taps], output: FeatureMap, scale: Tensor
    ) -> None:
        """scale: the factor of the sum at each output of the strided pooling, (height, width)."""
        super().__init__()
        self.channels = channels
        self.padding = tuple(tap_map.twin_padding for tap_map in maps)
        uniform = bool((scale == scale.flatten()[0]).all())
        ones = scale.new_ones(channels, 1, *(tap_map.kernel for tap_map in maps))
        weight = expand_filter(ones * scale.flatten()[0] if uniform else ones, maps)
        self.register_buffer("weight", weight.contiguous(), persistent=False)
        spread = output.to_phases(scale.expand(1, channels, *scale.shape))[0]
        self.register_buffer("scale", None if uniform else spread.contiguous(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Take a phase form, and return one."""
        convolve = CONVOLVE[len(self.padding)]
        weight = self.weight.to(maps.dtype)  # which a network without parameters leaves open
        sums = convolve(_pad(maps, self.padding), weight, groups=self.channels)
        return sums if self.scale is None else sums * self.scale.to(maps.dtype)


class RepeatPhases(nn.Module):
    """Does nearest upsampling by whole numbers: phases are repeated, and no position moves."""

    def __init__(self, factor: Sequence[int], scale: Sequence[int]) -> None:
        super().__init__()
        self.factor, self.scale = tuple(factor), tuple(scale)

    def forward(self, maps: Tensor) -> Tensor:
        """Take a phase form, and return one with prod(scale) times as many phases."""
        maps = maps.unflatten(1, (-1, *self.factor))
        for axis, scale in enumerate(self.scale):
            maps = maps.repeat_interleave(scale, 2 + axis)
        return maps.flatten(1, 1 + len(self.factor))


# Operations and channels ----------------------------------------------------------------------------


@dataclass
class Slot:
    """Stands among an operation's arguments for one of the values that it is given."""

    index: int


class Operation(nn.Module):
    """Calls a function, a method (by its name) or a module, with its other arguments fixed."""

    def __init__(self, target: Any, arguments: tuple, options: dict[str, Any]) -> None:
        super().__init__()
        self.target = target
        self.arguments, self.options = arguments, options

    def forward(self, *given: Any) -> Any:
        """Return the result, with `given` in the slots."""
        filled = [_filled(argument, given) for argument in self.arguments]
        options = {key: _filled(option, given) for key, option in self.options.items()}
        if isinstance(self.target, str):
            return getattr(filled[0], self.target)(*filled[1:], **options)
        return self.target(*filled, **options)

    def extra_repr(self) -> str:
        """Return what print shows."""
        return str(getattr(self.target, "__name__", self.target))


def _filled(argument: Any, given: tuple) -> Any:
    """Return an argument with values in its slots, which may lie in tuples, lists and slices."""
    if isinstance(argument, Slot):
        return given[argument.index]
    if isinstance(argument, (tuple, list)):
        return type(argument)([_filled(each, given) for each in argument])
    if isinstance(argument, slice):
        return slice(*(_filled(e, given) for e in (argument.start, argument.stop, argument.step)))
    return argument


class ReshapedChannels(nn.Module):
    """Puts other dimensions in place of those from `which[0]` to before `which[1]`; positions stay.

    channel: which dimension has the channels with their phases before, and new_channel afterwards; 0 if
    there is none, and the phases have a dimension of their own. Where channels are among what changes,
    their phases stay the innermost.
    """

    def __init__(
        self,
        which: tuple[int, int],
        between: Sequence[int],
        channel: int,
        new_channel: int,
        phases: int,
    ) -> None:
        super().__init__()
        self.first, self.end = which
        self.between = list(between)
        self.channel, self.new_channel, self.phases = channel, new_channel, phases
        self.stays = channel > 0 and not self.first <= channel < self.end

    def forward(self, maps: Tensor, *sizes_of_images: Any) -> Tensor:
        """Take a phase form, and return one."""
        sizes = list(maps.shape)
        if self.stays:
            return maps.reshape([*sizes[: self.first], *self.between, *sizes[self.end :]])
        if self.channel:
            maps = maps.unflatten(self.channel, (-1, self.phases))
        maps = maps.movedim(self.channel + 1, self.end)
        sizes = list(maps.shape)
        maps = maps.reshape([*sizes[: self.first], *self.between, *sizes[self.end :]])
        after = self.first + len(self.between)  # where the phases are
        return maps.flatten(after - 1, after) if self.new_channel else maps.movedim(after, 1)

    def extra_repr(self) -> str:
        """Return what print shows."""
        return f"{self.first}..{self.end} -> {self.between}, phases={self.phases}"


class MovedPhases(nn.Module):
    """Moves the phases from one dimension of channels to another: the two of `between`."""

    def __init__(self, between: tuple[int, int], phases: int) -> None:
        super().__init__()
        self.between, self.phases = between, phases

    def forward(self, maps: Tensor) -> Tensor:
        """Take a phase form, and return one."""
        old, new = self.between
        apart = maps.unflatten(old, (-1, self.phases)).movedim(old + 1, new + 1)
        return apart.flatten(new, new + 1)


class RepeatedOverPhases(nn.Module):
    """Calls a function of a map and of vectors that have a number for each channel.

    The numbers are repeated for each of a channel's phases.
    """

    def __init__(self, operation: nn.Module, feature_map: FeatureMap) -> None:
        super().__init__()
        self.operation = operation
        self.channels, self.phases = feature_map.channels, feature_map.phases

    def forward(self, maps: Tensor, *vectors: Any) -> Tensor:
        """Take a phase form, and return one."""
        repeated = [
            v.repeat_interleave(self.phases) if v.numel() == self.channels else v for v in vectors
        ]
        return self.operation(maps, *repeated)


# Several maps at once -------------------------------------------------------------------------------


class Broadcast(nn.Module):
    """Calls an operation on each position of several maps, of which some have axes of size one.

    maps: for each operand, its map in the strided network; None for one that is no map.
    """

    def __init__(
        self,
        operation: nn.Module,
        maps: Sequence[FeatureMap | None],
        output: FeatureMap,
        masks: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.operation = operation
        self.masks = nn.ModuleList(masks)  # of each operand
        self.from_right = cast(int, output.channel) - len(output.size)  # where channels stand
        self.axes = len(output.factor)
        self.splits = [None if m is None else (m.channels, *m.factor) for m in maps]

    def forward(self, *operands: Any) -> Tensor:
        """Take a phase form, and return one."""
        split = [
            mask(operand) if sizes is None else mask(operand).unflatten(self.from_right, sizes)
            for operand, sizes, mask in zip(operands, self.splits, self.masks, strict=True)
        ]
        first = self.from_right - self.axes
        return self.operation(*split).flatten(first, first + self.axes)
