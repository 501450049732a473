"""Phases and taps: the theorem itself, in tensors and integers only.

The *phase form* of a feature map with factor F holds, for each channel, the F_h·F_w sub-sampled maps
T_{p,q}(X) of the paper (Definition 3) as channels of their own. A convolution of any stride, seen
between phase forms, is a convolution of stride one. Which strided weight stands where in its filter
is what a TapMap says, for one axis; everything else about the twin is read from it.

Axes are independent, so that the same code serves 1-D, 2-D and 3-D. `//` and `%` are floor division
and its remainder throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor


def phase_size(size: Sequence[int], factor: Sequence[int]) -> tuple[int, ...]:
    """Spatial size of a phase form: ceil(size / factor) on each axis."""
    return tuple(-(-n // f) for n, f in zip(size, factor, strict=True))


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
    """The inverse of space_to_depth: phase form to maps of spatial `size`, the filled tail cut off.

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
    """A map of the strided network, and the factor by which the twin's is rearranged.

    The phases stand in the channel axis, wherever that is: maps may be channels-last.
    """

    size: tuple[int, ...]  # (channels, height, width), or (features,)
    factor: tuple[int, ...]  # of each spatial axis; () for a vector
    channel: int = 0  # which axis of `size` holds the channels

    @property
    def channels(self) -> int:
        """Of the strided map."""
        return self.size[self.channel]

    @property
    def spatial(self) -> tuple[int, ...]:
        """The spatial sizes, in order."""
        return self.size[: self.channel] + self.size[self.channel + 1 :]

    @property
    def blocks(self) -> tuple[int, ...]:
        """The spatial sizes of the phase form."""
        return phase_size(self.spatial, self.factor)

    @property
    def phases(self) -> int:
        """How many channels of the twin each channel becomes."""
        return prod(self.factor)

    @property
    def ragged(self) -> bool:
        """Whether the phase form has phantoms: positions that the strided map does not have."""
        return any(n % f for n, f in zip(self.spatial, self.factor, strict=True))

    @property
    def unit_stride_size(self) -> tuple[int, ...]:
        """Size of the map in the twin: (channels·f_h·f_w, ceil(h/f_h), ceil(w/f_w))."""
        if not self.factor:
            return self.size
        size = list(self.blocks)
        size.insert(self.channel, self.channels * self.phases)
        return tuple(size)

    def to_phases(self, maps: Tensor) -> Tensor:
        """Ordinary maps (n, *size) to their phase form, filled up with zeros."""
        return space_to_depth(maps.movedim(1 + self.channel, 1), self.factor).movedim(
            1, 1 + self.channel
        )

    def to_maps(self, phases: Tensor) -> Tensor:
        """Phase form to ordinary maps (n, *size)."""
        maps = depth_to_space(phases.movedim(1 + self.channel, 1), self.factor, self.spatial)
        return maps.movedim(1, 1 + self.channel)


@dataclass(frozen=True)
class TapMap:
    """One axis of a strided convolution, and of its twin between phase forms.

    Output u of the strided convolution reads the positions stride·u + dilation·k − padding[0] of a
    map of `size`, one for each tap k. The twin's output is wanted in phase form with factor S, so its
    input comes with factor F = stride·S (Eq. 26).
    """

    kernel: int
    stride: int
    dilation: int
    padding: tuple[int, int]  # zeros before and after
    size: int  # N, of the strided input
    output_factor: int  # S
    single: int | None = None  # F where there is one output only, so that no stride is ever taken

    @property
    def input_factor(self) -> int:
        """F = stride·S."""
        return self.single or self.stride * self.output_factor

    @property
    def output_size(self) -> int:
        """M, of the strided output; below one if the kernel is larger than the padded map."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (self.size + sum(self.padding) - reach) // self.stride + 1

    @cached_property
    def taps(self) -> np.ndarray:
        """Integers (S, F, K̃): the strided tap behind each tap of the twin's filter, or −1.

        Row (m, p) is the filter from input phase p to output phase m: T_p(O_m(H)) of Lemma 1 and
        Eq. 29. −1 marks a structural zero. Lemma 1, Theorem 1 (S = 1) and the induction step of
        Theorem 2 are all in this array.
        """
        outputs = np.arange(self.output_factor)[:, None]
        block, phase = np.divmod(self._positions_read(outputs), self.input_factor)
        taps = np.full((self.output_factor, self.input_factor, np.ptp(block) + 1), -1)
        taps[outputs, phase, block - block.min()] = np.arange(self.kernel)
        return taps

    @property
    def twin_kernel(self) -> int:
        """K̃."""
        return int(self.taps.shape[2])

    @property
    def twin_padding(self) -> tuple[int, int]:
        """Blocks before and after the twin's input that give ceil(M / S) outputs; negative: crop."""
        before = -(-self.padding[0] // self.input_factor)
        return _blocks_around(self, before)

    @property
    def taps_inside(self) -> np.ndarray:
        """For each of the M outputs, how many of its taps lie on the map and not on its padding."""
        position = self._positions_read(np.arange(self.output_size)[:, None])
        return ((position >= 0) & (position < self.size)).sum(1)

    @property
    def reads_phantoms(self) -> bool:
        """Whether an output that the strided network has reads a phantom of the twin's input.

        Phantoms are the positions from N to the next multiple of F: the strided network has padding
        there, or nothing; in the twin they hold whatever the layer before put there.
        """
        (blocks,) = phase_size([self.size], [self.input_factor])
        position = self._positions_read(np.arange(self.output_size)[:, None])
        return bool(((position >= self.size) & (position < blocks * self.input_factor)).any())

    def _positions_read(self, outputs: np.ndarray) -> np.ndarray:
        """The input position behind each tap (columns) of each of `outputs` (rows)."""
        return self.stride * outputs + self.dilation * np.arange(self.kernel) - self.padding[0]


@dataclass(frozen=True)
class TransposedTapMap:
    """One axis of a transposed convolution, which a plain one replaces between phase forms.

    Input i of the strided layer adds to the outputs u = stride·i + dilation·k − padding, one for each
    tap k. With factor F at its input, the output comes with factor S = stride·F.
    """

    kernel: int
    stride: int
    dilation: int
    padding: int
    size: int  # N, of the input
    output_size: int  # M
    input_factor: int  # F

    @property
    def output_factor(self) -> int:
        """S = stride·F."""
        return self.stride * self.input_factor

    @cached_property
    def _meetings(self) -> tuple[np.ndarray, ...]:
        """Output phase q, input phase p, tap k and block a wherever k = q + padding − S·a − stride·p
        (times the dilation)."""
        q, p, k = np.ogrid[: self.output_factor, : self.input_factor, : self.kernel]
        position = q + self.padding - self.stride * p - self.dilation * k
        where = np.nonzero(position % self.output_factor == 0)
        return (*where, position[where] // self.output_factor)

    @cached_property
    def taps(self) -> np.ndarray:
        """Integers (S, F, K̃) as in TapMap: the tap from input phase p to output phase q, or −1."""
        q, p, k, block = self._meetings
        taps = np.full((self.output_factor, self.input_factor, np.ptp(block) + 1), -1)
        taps[q, p, block - block.min()] = k
        return taps

    @property
    def twin_kernel(self) -> int:
        """K̃."""
        return int(self.taps.shape[2])

    @property
    def twin_padding(self) -> tuple[int, int]:
        """Blocks before and after the twin's input that give ceil(M / S) outputs; negative: crop."""
        before = -int(self._meetings[3].min())
        return _blocks_around(self, before)

    @property
    def reads_phantoms(self) -> bool:
        """Whether an output that the strided network has reads a phantom of the twin's input."""
        (blocks,) = phase_size([self.size], [self.input_factor])
        phantoms = np.arange(self.size, blocks * self.input_factor)[:, None]
        reached = self.stride * phantoms + self.dilation * np.arange(self.kernel) - self.padding
        return bool(((reached >= 0) & (reached < self.output_size)).any())


Taps = TapMap | TransposedTapMap


def _blocks_around(axis: Taps, before: int) -> tuple[int, int]:
    (blocks_in,) = phase_size([axis.size], [axis.input_factor])
    (blocks_out,) = phase_size([axis.output_size], [axis.output_factor])
    return before, blocks_out - 1 + axis.twin_kernel - blocks_in - before


def expand_filter(weight: Tensor, maps: Sequence[Taps]) -> Tensor:
    """The twin's filter from the strided one (Eq. 29): a gather along each axis, then a rearrangement.

    weight: (out, in / groups, k_h, k_w). Returns (out·S_h·S_w, in / groups·F_h·F_w, K̃_h, K̃_w).
    """
    axes = range(len(maps))
    weight = F.pad(weight, [0, 1] * len(maps))  # one zero behind the last tap: tap −1
    for axis, tap_map in zip(axes, maps, strict=True):
        taps = torch.from_numpy(tap_map.taps.ravel() % (tap_map.kernel + 1)).to(weight.device)
        weight = weight.index_select(2 + axis, taps)
    shapes = {
        f"{letter}{axis}": extent
        for axis, tap_map in enumerate(maps)
        for letter, extent in zip("sfk", tap_map.taps.shape, strict=True)
    }
    return rearrange(
        weight,
        f"o i {_each('(s{0} f{0} k{0})', axes)}"
        f" -> (o {_each('s{0}', axes)}) (i {_each('f{0}', axes)}) {_each('k{0}', axes)}",
        **shapes,
    )


def filter_entries(size: Sequence[int], maps: Sequence[Taps]) -> Tensor:
    """For each entry of the twin's filter, which entry of the strided filter it is.

    size: of the strided filter, (out, in / groups, k_h, k_w). Returns int64 of the twin's size: the
    place in the flattened strided filter, or −1 for a structural zero.

    >>> filter_entries((1, 1, 3), [TapMap(3, 2, 1, (0, 0), 5, 1)])
    tensor([[[ 0,  2],
             [ 1, -1]]])
    """
    return expand_filter(torch.arange(1, 1 + prod(size)).reshape(tuple(size)), maps) - 1


def expand_bias(bias: Tensor, maps: Sequence[Taps]) -> Tensor:
    """The twin's bias (out·S_h·S_w): each of the strided ones once for each output phase."""
    return repeat(bias, "o -> (o s)", s=prod(tap_map.output_factor for tap_map in maps))


def _each(pattern: str, axes: Sequence[int]) -> str:
    """An einops pattern, once for each axis."""
    return " ".join(pattern.format(axis) for axis in axes)
