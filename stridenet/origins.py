"""Which number of a strided network stands behind each of a twin's numbers, and how to go back."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Origin:
    """Says where the numbers of one tensor of a twin come from."""

    source: str  # name of the strided network's tensor
    size: torch.Size  # of that tensor
    entries: Tensor  # int64, of the twin's tensor: the place in the flattened source; −1: a zero

    @cached_property
    def copied(self) -> bool:
        """Tell whether the twin's tensor is the strided one itself.

        If so, there is nothing to tie or to mask.
        """
        places = torch.arange(self.size.numel()).reshape(self.size)
        return torch.equal(self.entries, places)

    @property
    def copies(self) -> int:
        """Return how often the twin's tensor has each strided number."""
        return int((self.entries >= 0).sum()) // self.size.numel()

    def expand(self, source: Tensor) -> Tensor:
        """Return the twin's tensor from the strided one."""
        return F.pad(source.flatten(), (0, 1))[self.entries.to(source.device)]

    def mask(self, tensor: Tensor) -> Tensor:
        """Return the nearest tensor of the twin with its structural zeros."""
        return torch.where(self.entries.to(tensor.device) >= 0, tensor, 0)

    def fold(self, tensor: Tensor) -> Tensor:
        """Return the strided tensor whose expansion is nearest to a twin's."""
        return mean_of_copies([(self, tensor)])


def mean_of_copies(tensors: list[tuple[Origin, Tensor]]) -> Tensor:
    """Return the strided tensor nearest in least squares to the tensors of a twin that come from it.

    Computed as w₀ + mean(wᵢ − w₀), which is w₀ to the last bit where all copies are equal.
    """
    size = tensors[0][0].size
    place = torch.cat([origin.entries.flatten() for origin, _ in tensors])
    values = torch.cat([tensor.detach().flatten() for _, tensor in tensors])
    place = place.to(values.device)
    values, place = values[place >= 0], place[place >= 0]
    many = size.numel()
    order = torch.arange(len(place), device=place.device)
    first = order.new_full((many,), len(place)).scatter_reduce(0, place, order, "amin")
    start = F.pad(values, (0, 1))[first]  # zero, where the twin has no copy
    if not values.is_floating_point():
        return start.reshape(size)
    change = torch.zeros_like(start).scatter_add(0, place, values - start[place])
    count = torch.bincount(place, minlength=many).clamp(min=1)
    return (start + change / count).reshape(size)
