"""Arrays and tensors of small integers, on which equalities are exact."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def integers(shape: Sequence[int], seed: int = 0, largest: int = 9) -> np.ndarray:
    """Entries from −largest to largest, without 0."""
    random = np.random.default_rng(seed)
    return random.integers(1, largest + 1, shape) * random.choice([-1, 1], shape)


def tensor(array: Sequence | np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array)).double()


def equal(
    obtained: Sequence | np.ndarray | Tensor, expected: Sequence | np.ndarray | Tensor
) -> bool:
    return np.array_equal(np.asarray(obtained), np.asarray(expected))
