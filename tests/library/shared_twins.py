"""Twins to share the weights of, their data, and what their strided weights are."""

import contextlib
import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet import StrideEliminationError, UnitStrideNetwork, convert_layers, eliminate_stride
from stridenet.by_layer.converted import is_converted
from stridenet.sharing import plain_state
from stridenet.zoo import lenet
from tests import networks

COPIES = {
    "conv1": 16,
    "conv2": 4,
    "conv3": 4,
    "conv4": 1,
}  # of each weight of the paper's network


class Residual(nn.Module):
    """A branch of stride 2 beside another, BatchNorm, PReLU, groups, and a convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.prelu = nn.PReLU(4)
        self.down = nn.Conv2d(4, 6, 3, 2, 1)
        self.short = nn.Conv2d(4, 6, 1, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.prelu(self.again(self.again(x)))
        x = F.relu(self.down(x) + self.short(x))
        return self.head(x.mean((2, 3)))


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1)
    )


def of_one_axis() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 3, 5, 3, 2, dilation=2), nn.Tanh(), nn.Conv1d(3, 2, 3, 2))


def of_three_axes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 2, 3, (1, 2, 3), padding=1), nn.ReLU(), nn.Conv3d(2, 2, 2, 2))


def up_again() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3, 2, groups=2)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple, dict]] = {
    "lenet": (lenet, (1, 28, 28), {}),
    "ragged": (chain, (1, 20, 23), {}),
    "residual": (Residual, (1, 11, 14), {}),
    "residual per phase": (Residual, (1, 12, 12), {"batch_norm": "per_phase"}),
    "1-D": (of_one_axis, (2, 41), {}),
    "3-D": (of_three_axes, (1, 7, 9, 11), {}),
    "transposed": (up_again, (2, 9, 12), {}),
    "wide output": (of_one_axis, (2, 41), {"output_factor": 3}),
}


every_model = pytest.mark.parametrize("name", MODELS)


def numbered(make: Callable[[], nn.Module]) -> nn.Module:
    """The model with all its parameters and statistics different whole numbers, from 1 on."""
    model, first = make().double(), 1
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            last = first + tensor.numel()
            tensor.data = torch.arange(first, last, dtype=torch.float64).reshape(tensor.shape)
            first = last
    return model


def twin_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, UnitStrideNetwork]:
    make, size, options = MODELS[name]
    model = networks.randomise(make()).to(dtype).eval()
    return model, eliminate_stride(model, size, **options)


def groups_of(name: str) -> dict[str, np.ndarray]:
    """Return an array for each parameter: copies have equal numbers, and zeros have 0."""
    make, size, options = MODELS[name]
    twin = eliminate_stride(numbered(make), size, **options)
    return {name: p.detach().numpy() for name, p in twin.network.named_parameters()}


def spread_out(twin: UnitStrideNetwork, scale: float = 0.1, seed: int = 0) -> UnitStrideNetwork:
    """A copy in which all parameters have moved a little, each by itself."""
    moved, draw = copy.deepcopy(twin), torch.Generator().manual_seed(seed)
    for parameter in moved.parameters():
        noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        parameter.data += scale * noise.to(parameter.dtype)
    return moved


def effective(twin: UnitStrideNetwork) -> dict[str, Tensor]:
    """What the layers compute with, by the names of the free twin."""
    state = {name.removeprefix("network."): t for name, t in plain_state(twin).items()}
    return {name: t for name, t in state.items() if t.is_floating_point()}


def twins(network: nn.Module, size: tuple) -> Iterator[nn.Module]:
    """Both kinds: layer by layer, and as a whole unless the strides do not agree."""
    same = convert_layers(network, pooling=True, check=False)
    if is_converted(same):  # there is a stride at all
        yield same
    with contextlib.suppress(StrideEliminationError):
        yield eliminate_stride(network, size, check=False)
