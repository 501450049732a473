"""Settings of the LeNet and its variants, as networks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Composed = Callable[..., Any]


LENET = (1, 28, 28)


def images(size: tuple[int, int, int]) -> Tensor:
    return torch.randn(3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
