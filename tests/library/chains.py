"""Chains of layers to eliminate strides from, and how a twin is held against its model."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.examples import examples
from tests.networks import CONVOLUTIONS

some = examples(60)


# None of them increases a difference, which keeps the error bound simple.
ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Hardtanh, nn.Softsign,
    nn.Sigmoid, nn.Hardsigmoid, nn.Softplus,  # not zero at zero
]  # fmt: skip


class Nested(nn.Module):
    """Modules within modules, functions and methods; masked (conv2) and padded inside (conv2)."""

    input_size = (2, 13, 11)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(conv1=nn.Conv2d(2, 3, 3, padding=1), drop=nn.Dropout(0.5))
        )
        self.conv2 = nn.Conv2d(3, 4, (4, 3), stride=2, padding=1, bias=False)
        self.fc = nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.features(x))
        x = F.relu(self.conv2(x)).tanh()
        return self.fc(torch.flatten(x, 1))


def images(input_size: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *input_size, generator=generator, dtype=torch.float64)


@st.composite
def chains(draw: st.DrawFn, activations: list = ACTIVATIONS) -> tuple[nn.Sequential, tuple]:
    """A chain of one to four convolutions with activations between, and its input size."""
    axes = draw(st.sampled_from([1, 2, 2, 3]))
    largest_size, largest_factor = {1: (30, 24), 2: (11, 6), 3: (6, 3)}[axes]
    size = list(draw(st.tuples(*[st.integers(1, largest_size)] * axes)))
    factor = [1] * axes
    channels = draw(st.integers(1, 3))
    input_size = (channels, *size)
    layers: list[nn.Module] = [
        a() for a in draw(st.lists(st.sampled_from(activations), max_size=1))
    ]
    for _ in range(draw(st.integers(1, 4))):
        dilation = draw(st.tuples(*[st.integers(1, 3)] * axes))
        same = draw(st.integers(0, 5)) == 0
        padding = (0,) * axes if same else draw(st.tuples(*[st.integers(0, 3)] * axes))
        room = [n + 2 * p - 1 for n, p in zip(size, padding, strict=True)]
        most = [min(4, 1 + r // d) for r, d in zip(room, dilation, strict=True)]
        kernel = tuple(draw(st.integers(1, taps)) for taps in most)
        most = [1 if same else min(4, largest_factor // f) for f in factor]
        stride = tuple(draw(st.integers(1, steps)) for steps in most)
        groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
        outputs = groups * draw(st.integers(1, 2))
        named = "same" if same else "valid" if not any(padding) else padding
        bias = draw(st.booleans())
        layers += [
            CONVOLUTIONS[axes](
                channels, outputs, kernel, stride, named, dilation, groups, bias=bias
            ),
            draw(st.sampled_from(activations))(),
        ]
        if not same:
            reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            size = [(r - d) // s + 1 for r, d, s in zip(room, reach, stride, strict=True)]
        factor = [f * s for f, s in zip(factor, stride, strict=True)]
        channels = outputs
    if draw(st.booleans()):
        layers += [nn.Dropout(), nn.Flatten(), nn.Linear(channels * math.prod(size), 3)]
    return nn.Sequential(*layers), input_size


def close(obtained: Tensor, expected: Tensor) -> bool:
    """Up to rounding, for the magnitudes of `images` and `randomise`."""
    return obtained.shape == expected.shape and bool((obtained - expected).abs().max() < 1e-13)


# Unit strides only


def is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_meta


class Recorder(TorchDispatchMode):
    """Keeps each operation that torch carries out, its arguments and its result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, result))
        return result

    def convolutions(self) -> list[tuple[list[int], list[int]]]:
        """Stride and dilation of each."""
        convolutions = [
            args for func, args, _ in self.calls if func is torch.ops.aten.convolution.default
        ]
        assert not any(transposed for *_, transposed, _, _ in convolutions)
        return [(args[3], args[5]) for args in convolutions]

    def allocated_bytes(self) -> int:
        """Keep all results outside the meta device that are no views of what was given."""
        new = [
            result
            for _, args, result in self.calls
            if isinstance(result, Tensor)
            and result.device.type != "meta"
            and result.data_ptr() not in {a.data_ptr() for a in args if is_real(a)}
        ]
        return sum(result.nbytes for result in new)


def convolution_in(module: nn.Module) -> nn.Module:
    """A layer's convolution, also where a mask or padding stands before it."""
    return module[-1] if isinstance(module, nn.Sequential) else module
