"""A network to be verified, and how a twin's layers are reached."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stridenet import UnitStrideNetwork

SIZE = (2, 21, 18)
Damage = Callable[[UnitStrideNetwork], None]


def network(seed: int = 0, **changes: nn.Module) -> nn.Sequential:
    """A chain with a stride in every layer; the twin pads its images first, and `b` has a mask."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = OrderedDict(
            a=nn.Conv2d(2, 4, 5, stride=2, padding=2),
            a_act=nn.Sigmoid(),
            b=nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
            b_act=nn.ReLU(inplace=True),
            c=nn.Conv2d(6, 4, 2, stride=(1, 2), bias=False),
            c_act=nn.Tanh(),
            flatten=nn.Flatten(),
            fc=nn.Linear(4 * 5 * 2, 5),
        )
    return nn.Sequential(OrderedDict(layers | changes))


def random_images(count: int = 3, size: tuple[int, ...] = SIZE) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))


def layer_of(twin: UnitStrideNetwork, name: str) -> Any:
    """The layer itself, where padding or a mask stands before it."""
    layer = twin.network.get_submodule(name)
    return layer[-1] if isinstance(layer, nn.Sequential) else layer
