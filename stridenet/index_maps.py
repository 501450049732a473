"""Modules between phase forms that move, repeat or mix whole positions, without any filter.

In a phase form, position u of an axis stands in phase u mod F, block u // F. Where a position of the
result takes what stands at another of the map, it is an index map between the two.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet.phases import FeatureMap


class _ByAxes(nn.Module):
    """The base class of modules that treat each axis by itself, as one row of its phases' blocks."""

    def __init__(self, source: FeatureMap, result: FeatureMap) -> None:
        super().__init__()
        self.factor, self.new_factor = source.factor, result.factor
        self.axes = len(source.factor)
        self.blocks, self.new_blocks = source.blocks, result.blocks

    def along(self, axis: int, maps: Tensor) -> Tensor:
        """Return maps (n, c, row, row), with one of the axes treated."""
        raise NotImplementedError

    def forward(self, maps: Tensor) -> Tensor:
        """Take a phase form, and return one."""
        axes = range(self.axes)
        maps = maps.unflatten(1, (-1, *self.factor))
        rows = [d for axis in axes for d in (2 + axis, 2 + self.axes + axis)]
        maps = maps.permute([0, 1, *rows])
        for axis in axes:
            maps = self.along(axis, maps.flatten(2 + axis, 3 + axis))
        for axis in reversed(axes):
            shape = (self.new_factor[axis], self.new_blocks[axis])
            maps = maps.unflatten(2 + axis, shape)
        phases, blocks = (range(2 + first, 2 + 2 * self.axes, 2) for first in (0, 1))
        return maps.permute([0, 1, *phases, *blocks]).flatten(1, 1 + self.axes)


def _row(numbers: Tensor, axis: int, result: FeatureMap) -> Tensor:
    """Return the number of each position of an axis, at its place in the row.

    Phantoms have that of the last position.
    """
    factor, blocks = result.factor[axis], result.blocks[axis]
    phase, block = torch.meshgrid(torch.arange(factor), torch.arange(blocks), indexing="ij")
    return numbers[(block * factor + phase).flatten().clamp(max=len(numbers) - 1)]


def _places(positions: Tensor, axis: int, source: FeatureMap, result: FeatureMap) -> Tensor:
    """Return, for each place in a row of the result's phase form, its place in the source's.

    positions: for each position of the result, that of the source.
    """
    taken = _row(positions, axis, result)
    inside, outside = source.factor[axis], source.blocks[axis]
    return taken % inside * outside + taken // inside


def padded_positions(size: int, pair: tuple[int, int], mode: str) -> Tensor:
    """Return the position of an axis that stands at each position of the padded one."""
    ramp = torch.arange(float(size), dtype=torch.float64).view(1, 1, size)
    return F.pad(ramp, pair, mode=mode).view(-1).long()


class PositionMap(_ByAxes):
    """Makes each position of the result one of the map, as padding with numbers of the map does."""

    def __init__(
        self, source: FeatureMap, result: FeatureMap, positions: Sequence[Tensor], device: Any
    ) -> None:
        """positions: for each axis, the position of the map for each position of the result."""
        super().__init__(source, result)
        for axis, taken in enumerate(positions):
            places = _places(taken, axis, source, result).to(device)
            self.register_buffer(f"places_{axis}", places, persistent=False)

    def along(self, axis: int, maps: Tensor) -> Tensor:
        """Return the positions that one axis takes."""
        return maps.index_select(2 + axis, self.get_buffer(f"places_{axis}"))


class Mixture(_ByAxes):
    """Makes each position of the result a weighted sum of a few of the map, axis by axis."""

    def __init__(
        self,
        source: FeatureMap,
        result: FeatureMap,
        weights: Sequence[Tensor],
        device: Any,
        dtype: torch.dtype,
    ) -> None:
        """weights: for each axis, a matrix (positions of the result, positions of the map)."""
        super().__init__(source, result)
        self.terms = []  # of each axis, how many positions a sum is of
        for axis, weight in enumerate(weights):
            many = max(1, int((weight != 0).sum(1).max()))
            order = (weight != 0).byte().argsort(dim=1, descending=True, stable=True)[:, :many]
            self.terms.append(many)
            for term in range(many):
                places = _places(order[:, term], axis, source, result).to(device)
                share = _row(weight.gather(1, order)[:, term], axis, result).to(device, dtype)
                self.register_buffer(f"places_{axis}_{term}", places, persistent=False)
                self.register_buffer(f"share_{axis}_{term}", share, persistent=False)

    def along(self, axis: int, maps: Tensor) -> Tensor:
        """Return the sums along one axis; later axes still have phases and blocks apart."""
        total = None
        for term in range(self.terms[axis]):
            read = maps.index_select(2 + axis, self.get_buffer(f"places_{axis}_{term}"))
            share = self.get_buffer(f"share_{axis}_{term}").to(maps.dtype)
            share = share.view(-1, *[1] * (maps.ndim - 3 - axis))
            total = read * share if total is None else total + read * share
        return cast(Tensor, total)


class ShufflePhases(nn.Module):
    """Does PixelShuffle and PixelUnshuffle between phase forms: it orders channels anew, no more.

    factor: of the map with fewer positions, two numbers; the other has `scale` times as much.
    """

    def __init__(self, factor: Sequence[int], scale: int, unshuffle: bool) -> None:
        super().__init__()
        self.factor, self.scale, self.unshuffle = tuple(factor), scale, unshuffle

    def forward(self, maps: Tensor) -> Tensor:
        """Take a phase form, and return one."""
        (high, wide), scale = self.factor, self.scale
        if self.unshuffle:
            parts = maps.unflatten(1, (-1, high, scale, wide, scale))
            return parts.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(1, 5)
        parts = maps.unflatten(1, (-1, scale, scale, high, wide))
        return parts.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(1, 5)

    def extra_repr(self) -> str:
        """Return what print shows."""
        return f"factor={self.factor}, scale={self.scale}, unshuffle={self.unshuffle}"


class RepeatedAxes(nn.Module):
    """Repeats axes of size one, which have no phases, over all phases and blocks of a map.

    batch: how many images it has: a number, -1 for as many as before, or None for that of a further
    operand, which is a number or has that many.
    """

    def __init__(self, factor: Sequence[int], result: FeatureMap, batch: int | None) -> None:
        super().__init__()
        self.factor, self.batch = tuple(factor), batch
        self.size = (result.channels, *result.factor, *result.blocks)

    def forward(self, source: Tensor, *others: Any) -> Tensor:
        """Repeat the source over a phase form; others: what else the operation was given."""
        axes = len(self.factor)
        while source.ndim < 2 + axes:
            source = source.unsqueeze(0)
        batch = self.batch
        if batch is None:
            (batch, *_) = (o.shape[0] if isinstance(o, Tensor) else o for o in others)
        apart = source.unflatten(1, (-1, *self.factor))
        return apart.expand(batch, *self.size).flatten(1, 1 + axes)
