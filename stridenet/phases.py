"""Phase forms and filters: the theorem on tensors.

The *phase form* of a feature map with factor F holds, for each channel, the F_h·F_w sub-sampled maps
T_{p,q}(X) of the paper (Definition 3) as channels of their own. A convolution of any stride, seen
between phase forms, is a convolution of stride one. Which strided weight stands where in its filter
is what a TapMap says (stridenet.taps).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from stridenet.taps import Taps, phase_size

Function = TypeVar("Function", bound=Callable[..., object])


def space_to_depth(images: Tensor, factor: Sequence[int]) -> Tensor:
    """Rearrange maps (n, c, h, w) into their phase form: the paper's reshaped X̃ (Eq. 20 and 30).

    Returns (n, c·f_h·f_w, ceil(h/f_h), ceil(w/f_w)), where channel (c·f_h + p)·f_w + q holds rows p,
    p + f_h, … and columns q, q + f_w, …: the order of torch.nn.functional.pixel_unshuffle. Sizes
    that the factor does not divide are filled up with zeros at the end.

    Raises ValueError unless the factor has a positive number for each spatial axis.

    >>> space_to_depth(torch.arange(5.0).reshape(1, 1, 5), [2])
    tensor([[[0., 2., 4.],
             [1., 3., 0.]]])
    """
    size = images.shape[2:]
    _require_factor(factor, size)
    blocks = phase_size(size, factor)
    tail = [b * f - n for n, f, b in zip(size, factor, blocks, strict=True)]
    if any(tail):
        images = F.pad(images, [extent for t in reversed(tail) for extent in (0, t)])
    axes = range(len(size))
    return rearrange(
        images,
        f"n c {_each('(i{0} f{0})', axes)} -> n (c {_each('f{0}', axes)}) {_each('i{0}', axes)}",
        **{f"f{axis}": f for axis, f in enumerate(factor)},
    )


def depth_to_space(maps: Tensor, factor: Sequence[int], size: Sequence[int]) -> Tensor:
    """Rearrange a phase form into maps of spatial `size`: the inverse of space_to_depth.

    Raises ValueError if maps of this size and factor have another phase form.
    """
    _require_factor(factor, size)
    if phase_size(size, factor) != tuple(maps.shape[2:]):
        raise ValueError(
            f"a phase form {tuple(maps.shape)} is not one of size {size}, factor {factor}"
        )
    axes = range(len(size))
    images = rearrange(
        maps,
        f"n (c {_each('f{0}', axes)}) {_each('i{0}', axes)} -> n c {_each('(i{0} f{0})', axes)}",
        **{f"f{axis}": f for axis, f in enumerate(factor)},
    )
    for axis, extent in enumerate(size):
        images = images.narrow(2 + axis, 0, extent)
    return images


def _require_factor(factor: Sequence[int], size: Sequence[int]) -> None:
    if not isinstance(factor, Sequence) or len(factor) != len(size) or min(factor, default=1) < 1:
        raise ValueError(
            f"factor {factor} must have a positive number for each of {len(size)} axes"
        )


@dataclass(frozen=True)
class FeatureMap:
    """Describes a map of the strided network, and the factor by which the twin's is rearranged.

    The phases stand in the channel axis, wherever that is: maps may be channels-last. Of a map without
    channels, the phase form has an axis of phases in front, if there is more than one.
    """

    size: tuple[int, ...]  # (channels, height, width), or (features,)
    factor: tuple[int, ...]  # of each spatial axis; () for a vector
    channel: int | None = 0  # which axis of `size` holds the channels; None: none does
    plain: tuple[int, ...] = ()  # axes of `size` that are neither channels nor positions

    @property
    def channels(self) -> int:
        """Return how many channels the strided map has."""
        return 1 if self.channel is None else self.size[self.channel]

    @property
    def _axes(self) -> list[int]:
        """Return which axes of `size` are spatial."""
        return [a for a in range(len(self.size)) if a != self.channel and a not in self.plain]

    @property
    def spatial(self) -> tuple[int, ...]:
        """Return the spatial sizes, in order."""
        return tuple(self.size[axis] for axis in self._axes)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Return the spatial sizes of the phase form."""
        return phase_size(self.spatial, self.factor)

    @property
    def phases(self) -> int:
        """Return how many channels of the twin each channel becomes."""
        return prod(self.factor)

    @property
    def ragged(self) -> bool:
        """Tell whether the phase form has phantoms: positions that the strided map does not have."""
        return any(n % f for n, f in zip(self.spatial, self.factor, strict=True))

    @property
    def unit_stride_size(self) -> tuple[int, ...]:
        """Return the size in the twin: (channels·f_h·f_w, ceil(h/f_h), ceil(w/f_w))."""
        if not self.factor:
            return self.size
        size = list(self.size)
        for axis, blocks in zip(self._axes, self.blocks, strict=True):
            size[axis] = blocks
        if self.channel is None:
            return (self.phases, *size) if self.phases > 1 else self.size
        size[self.channel] *= self.phases
        return tuple(size)

    def to_phases(self, maps: Tensor) -> Tensor:
        """Rearrange ordinary maps (n, *size) into their phase form, filled up with zeros."""
        if self.channel is None:
            return self._with_channel.to_phases(maps.unsqueeze(1)) if self.phases > 1 else maps
        return self._apart(maps, lambda m: space_to_depth(m, self.factor))

    def to_maps(self, phases: Tensor) -> Tensor:
        """Rearrange a phase form into ordinary maps (n, *size).

        Where channels are not first, the maps are contiguous, as their readers may ask for a view.
        """
        if self.channel is None:
            return self._with_channel.to_maps(phases).squeeze(1) if self.phases > 1 else phases
        maps = self._apart(phases, lambda m: depth_to_space(m, self.factor, self.spatial))
        return maps if (self.channel, self.plain) == (0, ()) else maps.contiguous()

    @property
    def _with_channel(self) -> "FeatureMap":
        return FeatureMap((1, *self.size), self.factor, 0, tuple(axis + 1 for axis in self.plain))

    def _apart(self, maps: Tensor, rearrange: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply `rearrange`, which takes maps (n, c, h, w), to maps with axes in any order."""
        if not self.plain:
            where = 1 + cast(int, self.channel)
            return rearrange(maps.movedim(where, 1)).movedim(1, where)
        order = [0, *(1 + axis for axis in (*self.plain, cast(int, self.channel), *self._axes))]
        maps = maps.permute(order)
        many = maps.shape[: 1 + len(self.plain)]
        done = rearrange(maps.flatten(0, len(self.plain))).unflatten(0, many)
        return done.permute(sorted(range(len(order)), key=order.__getitem__))


def expand_filter(weight: Tensor, maps: Sequence[Taps]) -> Tensor:
    """Return the twin's filter from the strided one (Eq. 29).

    weight: (out, in / groups, k_h, k_w). Returns (out·S_h·S_w, in / groups·F_h·F_w, K̃_h, K̃_w).
    """
    return gather_taps(weight, [places_of(tap_map) for tap_map in maps])


Places = tuple[tuple[int, ...], tuple[int, ...], int]


def places_of(tap_map: Taps) -> Places:
    """Return the tap, or −1, at each place of one axis of the twin's filter, with two sizes.

    These are the shape (S, F, K̃) of that table, and the size of the strided kernel.
    """
    return tuple(tap_map.taps.ravel().tolist()), tap_map.taps.shape, tap_map.kernel


def gather_taps(weight: Tensor, axes: Sequence[Places]) -> Tensor:
    """Expand a filter as expand_filter does, from integers: which tap stands where on each axis."""
    places, steps, phases, kernel = _flat_places(tuple(axes))
    taps = F.pad(weight.flatten(2), [0, 1])  # one zero behind the last tap
    taps = taps.index_select(2, torch.tensor(places, device=weight.device))
    taps = rearrange(taps, "o i (s f k) -> (o s) (i f) k", s=steps, f=phases)
    return torch.unflatten(taps, 2, kernel)


def constant_when_compiled(function: Function) -> Function:
    """Tell torch.compile to call the function once and to keep what it returns.

    It is what torch.compiler.assume_constant_result does. That imports the compiler and sympy, though,
    for which those who compile nothing waited as long as for the rest of torch.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def _flat_places(axes: tuple[Places, ...]) -> tuple[list[int], int, int, tuple[int, ...]]:
    """Return the tap of the flattened filter at each place, output phases first, then the input's.

    One gather of flat places reads a large filter once; a gather along each axis reads it once for
    each, and then moves it. Returns the places, how many phases of outputs and of inputs there are,
    and the size of the twin's kernel.
    """
    taps = np.zeros((1, 1, 1), dtype=np.int64)
    for places, shape, kernel in axes:
        before = taps[:, None, :, None, :, None]
        here = np.reshape(places, shape)[None, :, None, :, None, :]
        both = np.where((before < 0) | (here < 0), -1, before * kernel + here)
        taps = both.reshape([a * b for a, b in zip(taps.shape, shape, strict=True)])
    flat = np.where(taps < 0, prod(kernel for *_, kernel in axes), taps).ravel().tolist()
    return flat, taps.shape[0], taps.shape[1], tuple(shape[2] for _, shape, _ in axes)


def filter_entries(size: Sequence[int], maps: Sequence[Taps]) -> Tensor:
    """Return, for each entry of the twin's filter, the entry of the strided filter that it is.

    size: of the strided filter, (out, in / groups, k_h, k_w). Returns int64 of the twin's size: the
    place in the flattened strided filter, or −1 for a structural zero.

    >>> from stridenet.taps import TapMap
    >>> filter_entries((1, 1, 3), [TapMap(3, 2, 1, (0, 0), 5, 1)])
    tensor([[[ 0,  2],
             [ 1, -1]]])
    """
    return expand_filter(torch.arange(1, 1 + prod(size)).reshape(tuple(size)), maps) - 1


def expand_bias(bias: Tensor, maps: Sequence[Taps]) -> Tensor:
    """Return the twin's bias (out·S_h·S_w): each of the strided ones once for each output phase."""
    return repeat(bias, "o -> (o s)", s=prod(tap_map.output_factor for tap_map in maps))


def _each(pattern: str, axes: Sequence[int]) -> str:
    """Return an einops pattern, once for each axis."""
    return " ".join(pattern.format(axis) for axis in axes)
