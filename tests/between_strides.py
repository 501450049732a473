"""What stands between strides: networks with a block between a convolution and a strided one.

Maps come to the block rearranged, and ragged unless the size fits; what follows reads all numbers.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from stridenet import UnitStrideNetwork, eliminate_stride, verify
from tests.networks import CONVOLUTIONS, Forward, randomise

SIZES = ((11, 7), (12, 8), (5, 9))  # of which a factor of 6 leaves ragged: both axes, one, both


class Between(nn.Module):
    """`block` between a convolution to its `channels` and one of stride three, after one of two."""

    def __init__(self, block: nn.Module, channels: int, after: int | None = None, axes: int = 2):
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.first = conv(2, channels, 3, 1, 1)
        self.block = block
        self.middle = conv(after or channels, 4, 3, 2, 1)
        self.last = conv(4, 3, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.block(self.first(x))))


def between(block: nn.Module | Callable, channels: int, **options: Any) -> nn.Module:
    """Return it in float64 and evaluation mode, with random weights."""
    module = block if isinstance(block, nn.Module) else Forward(lambda _, x: block(x))
    return randomise(Between(module, channels, **options))


def images(size: Sequence[int], batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *size, generator=generator, dtype=torch.float64)


def assert_close(obtained: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Up to rounding, far below the effect of a wrong number."""
    pairs = zip(pytree.tree_leaves(obtained), pytree.tree_leaves(expected), strict=True)
    for z, y in pairs:
        assert z.shape == y.shape
        largest = max(float(y.detach().abs().max()), 1e-3)
        assert float((z - y).detach().abs().max()) <= tolerance * largest


@torch.no_grad()
def check(
    model: nn.Module, size: tuple[int, ...], verified: bool = True, **options: Any
) -> UnitStrideNetwork:
    """The twin computes the same for one image and for three, and verify finds each layer equal."""
    twin = eliminate_stride(model, size, **options)
    for batch in (1, 3):
        x = images(size, batch)
        assert_close(twin(x.clone()), model(x.clone()))
    if verified:
        report = verify(model, twin)
        assert report.passed, str(report)
    strides = [m.stride for m in twin.network.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    assert all(set(stride) == {1} for stride in strides)
    assert twin.plan.parameters[1] == sum(p.numel() for p in twin.parameters())
    return twin


def check_training(model: nn.Module, size: tuple[int, ...], **options: Any) -> UnitStrideNetwork:
    """Equal results, gradients of images and of unchanged parameters, and buffers, for two steps."""
    model = copy.deepcopy(model).train()
    twin = eliminate_stride(model, size, **options)
    for step in range(2):
        given = [images(size, 3, step).requires_grad_() for _ in range(2)]
        results = [network(x) for network, x in zip((model, twin), given, strict=True)]
        assert_close(results[1], results[0], 1e-9)
        for result in results:
            (
                result * torch.arange(1.0, result.numel() + 1).view(result.shape).cos()
            ).sum().backward()
        assert_close(given[1].grad, given[0].grad, 1e-8)
    theirs = dict(twin.network.named_parameters())
    for name, parameter in model.named_parameters():
        if name in theirs and theirs[name].shape == parameter.shape:
            assert_close(theirs[name].grad, parameter.grad, 1e-8)
    theirs = dict(twin.network.named_buffers())
    for name, buffer in model.named_buffers():
        if name in theirs:  # a counter, for one, that no forward reads is not there
            assert_close(theirs[name].double(), buffer.double())
    return twin
