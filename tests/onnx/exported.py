"""Networks that are exported, and the files that come of it."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from stridenet import UnitStrideNetwork, eliminate_stride

with warnings.catch_warnings():  # of their own imports
    warnings.simplefilter("ignore")


def one_axis() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(2, 3, 3, 5, padding=1, dilation=2), nn.Conv1d(3, 2, 2, 3))


def drawn(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def twin_of(make: Callable[[], nn.Module], size: tuple[int, ...]) -> UnitStrideNetwork:
    return eliminate_stride(drawn(make), size)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
