"""Modules that rest on one view of a phase form: (n, c, pixels), a channel's positions in any order.

What does not depend on the order of positions (statistics, operations on the channels of each position)
runs on this view as it does in the strided network.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet.layers import PhantomMask
from stridenet.phases import FeatureMap, space_to_depth


class Pixels(nn.Module):
    """Gathers the view (n, c, pixels) of a phase form, without phantoms; and scatters it back."""

    real: Tensor | None  # which of the phase form's positions are pixels
    place: Tensor | None  # for each position, its pixel; one past the last for a phantom

    def __init__(self, feature_map: FeatureMap, device: torch.device) -> None:
        super().__init__()
        self.channel = 1 + (feature_map.channel or 0)
        self.axes, self.phases = len(feature_map.factor), feature_map.phases
        self.blocks = feature_map.blocks
        real = place = None
        if feature_map.ragged:
            ones = torch.ones(1, 1, *feature_map.spatial, dtype=torch.bool, device=device)
            inside = space_to_depth(ones, feature_map.factor).flatten()
            real = inside.nonzero().flatten()
            place = torch.where(inside, inside.cumsum(0) - 1, len(real))
        self.register_buffer("real", real, persistent=False)
        self.register_buffer("place", place, persistent=False)

    def gather(self, maps: Tensor) -> Tensor:
        """Return the pixels (n, c, pixels) of a phase form."""
        maps = maps.movedim(self.channel, 1)
        pixels = maps.unflatten(1, (-1, self.phases)).flatten(2)
        return pixels if self.real is None else pixels.index_select(2, self.real)

    def scatter(self, pixels: Tensor, where: int | None = None) -> Tensor:
        """Return the phase form of pixels (n, c, pixels) of any number of channels; phantoms are zero.

        where: the dimension for the channels, if not that of the map.
        """
        if self.place is not None:
            pixels = F.pad(pixels, (0, 1)).index_select(2, self.place)
        maps = pixels.unflatten(2, (self.phases, *self.blocks)).flatten(1, 2)
        return maps.movedim(1, self.channel if where is None else where)


class OverPixels(nn.Module):
    """Runs an operation that treats all positions alike on the pixels of a phase form.

    It sees (n, c, pixels, 1), or (n, pixels, 1, c) where channels come last: the strided map's axes
    with its positions in a row. Its result, or each of them, is put back into phase form, unless it has
    no positions. drops_channels: it leaves (n, pixels, 1).
    """

    def __init__(
        self,
        operation: nn.Module,
        feature_map: FeatureMap,
        keeps_positions: bool,
        device: Any,
        drops_channels: bool = False,
    ) -> None:
        super().__init__()
        self.operation = operation
        self.pixels = Pixels(feature_map, device)
        self.keeps_positions, self.drops_channels = keeps_positions, drops_channels

    def forward(self, maps: Tensor, *others: Any) -> Any:
        """Take a phase form, and return one, or what is left of a map without positions."""
        if isinstance(self.operation, nn.modules.dropout._DropoutNd) and not self.training:
            return maps
        pixels = self.pixels.gather(maps)
        for _ in range(self.pixels.axes - 1):
            pixels = pixels.unsqueeze(-1)
        result = self.operation(pixels.movedim(1, self.pixels.channel), *others)
        if not self.keeps_positions:
            return result
        if isinstance(result, Tensor):
            return self._to_phases(result)
        parts = [self._to_phases(part) for part in result]
        return type(result)(parts)  # such as torch.max gives: its parts have names, too

    def _to_phases(self, result: Tensor) -> Tensor:
        if self.drops_channels:
            return self.pixels.scatter(result.unsqueeze(1).flatten(2), where=1)
        return self.pixels.scatter(result.movedim(self.pixels.channel, 1).flatten(2))


# Batch normalisation --------------------------------------------------------------------------------


class _OverAllPhases(nn.modules.batchnorm._BatchNorm):
    """Normalises batches with the strided network's own parameters and statistics.

    In training its statistics are over all phases of a channel, phantoms left out: the strided
    network's. In evaluation they are repeated for each phase.
    """

    pixels: Pixels

    def forward(self, input: Tensor) -> Tensor:
        """Take a phase form, and return one."""
        if self.training or self.running_mean is None:
            return self.pixels.scatter(super().forward(self.pixels.gather(input)))
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        phases = self.pixels.phases
        mean, variance, weight, bias = (
            None if t is None else t.repeat_interleave(phases) for t in tensors
        )
        return F.batch_norm(input, mean, variance, weight, bias, eps=self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class SharedBatchNorm(_OverAllPhases):
    """Normalises as BatchNorm1d, 2d and 3d do, over all phases of a channel."""


class SharedSyncBatchNorm(_OverAllPhases, nn.SyncBatchNorm):
    """Normalises as SyncBatchNorm does, over all phases of a channel on all devices."""


class PhaseBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Normalises each phase by itself, on maps that have phantoms: these are left out."""

    mask: PhantomMask

    def forward(self, input: Tensor) -> Tensor:
        """Take a phase form, and return one."""
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        real = self.mask.real.expand_as(input)
        count = real.sum(axes).clamp(min=1)  # on a small map, phases may have no position at all
        mean = self.mask(input).sum(axes) / count
        centred = self.mask(input - mean.view(shape))
        variance = centred.square().sum(axes) / count
        if self.training and self.running_mean is not None:
            self._follow(mean.detach(), variance.detach(), count)
        scale = (variance + self.eps).rsqrt()
        result = centred * (scale if self.weight is None else scale * self.weight).view(shape)
        return result if self.bias is None else result + self.bias.view(shape)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics.

        A phase of one number, which has no variance, keeps its own.
        """
        cast(Tensor, self.num_batches_tracked).add_(1)
        batches = float(cast(Tensor, self.num_batches_tracked))
        step = 1 / batches if self.momentum is None else self.momentum
        steps = (count > 1).to(mean) * step
        cast(Tensor, self.running_mean).lerp_(mean, steps)
        cast(Tensor, self.running_var).lerp_(variance * count / (count - 1).clamp(min=1), steps)

    def _check_input_dim(self, input: Tensor) -> None:
        pass
