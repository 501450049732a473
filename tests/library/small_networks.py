"""A small network with branches, forwards of many kinds, and how a twin is held against its model."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet import UnitStrideNetwork, eliminate_stride
from tests.networks import randomise

WAYS = {"shared": {}, "per phase": {"batch_norm": "per_phase"}}


every_way = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down = nn.Conv2d(channels, 2, 1)
        self.up = nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(self.pool(x)))))


class Small(nn.Module):
    """Maps 21x18, 11x9, 6x5, 3x3: ragged wherever they are rearranged as a whole."""

    input_size = (3, 21, 18)
    strided = ("conv1", "pool", "conv3", "shortcut")

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.gate = Gate(4)
        self.conv3 = nn.Conv2d(4, 3, 3, 2, 1)
        self.shortcut = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.bn3 = nn.BatchNorm2d(7)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.relu(x + self.gate(self.bn2(self.conv2(x))))
        x = self.bn3(torch.cat([self.conv3(x), self.shortcut(x)], dim=1))
        return self.fc(self.drop(x.mean((2, 3))))


def images(input_size: tuple, number: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, *input_size, generator=generator, dtype=torch.float64)


def close(obtained: Tensor, expected: Tensor, error: float = 1e-12) -> bool:
    return obtained.shape == expected.shape and bool((obtained - expected).abs().max() < error)


def converted(options: dict, seed: int = 0) -> tuple[nn.Module, UnitStrideNetwork, Tensor]:
    model = randomise(Small(), seed)
    return model, eliminate_stride(model, Small.input_size, **options), images(Small.input_size)


class TwoInputs(nn.Module):
    """Two maps in, of one rate once the first is halved; results in a dict with a tuple."""

    input_size = ((2, 9, 11), (3, 5, 6))

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, 2, 1)
        self.second = nn.Conv2d(6, 4, 3, 2, 1)

    def forward(self, x: Tensor, y: Tensor) -> dict:
        x = F.relu(self.first(x))
        z = self.second(torch.cat((x, y), 1))
        return {"maps": (x, z), "scores": z.mean((2, 3))}


SHAPES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "view by the size of the batch": lambda m, x: m.conv(x).view(x.size(0), -1),
    "view by the shape": lambda m, x: m.conv(x).view(x.shape[0], 3 * 5 * 4),
    "flatten by a product": lambda m, x: (
        lambda y: y.reshape(-1, y.shape[1] * y.shape[2] * y.shape[3])
    )(m.conv(x)),
    "half of the map": lambda m, x: m.conv(x)[:, :, : x.shape[2] // 2, 1 : x.size(3) // 2],
    "channels": lambda m, x: m.conv(x)[:, : x.shape[1]],
    "a size unpacked": lambda m, x: (lambda n, c, h, w: m.conv(x) * (h * w) / c)(*x.shape),
    "a branch on the size": lambda m, x: m.conv(x) if x.shape[-1] > 4 else x,
    "interpolated to a size": lambda m, x: F.interpolate(
        m.conv(x), size=[2 * n for n in m.conv(x).shape[2:]]
    ),
    "mean over the number of positions": lambda m, x: (
        m.conv(x).sum((2, 3)) / math.prod(x.shape[2:])
    ),
    "number of dimensions": lambda m, x: m.conv(x).flatten(x.dim() - 3),
}
