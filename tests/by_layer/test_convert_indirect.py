"""Strided calls that a forward reaches in roundabout ways: none of them is left by convert_layers."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.surveying.observation import StridedCalls
from stridenet import convert_layers

OPERATIONS: dict[str, Callable[..., Tensor]] = {"down": lambda x, w: F.conv2d(x, w, stride=2)}
NESTED = {"by name": [(F.conv2d,)]}


def halved(x: Tensor) -> Tensor:
    return {"pool": lambda x: nn.AvgPool2d(1, 2)(x)}["pool"](x)


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, 3, 3))


class ADictionaryOfFunctions(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return OPERATIONS["down"](x, self.w)


class AListWithinADictionary(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return NESTED["by name"][0][0](x, self.w, stride=2)


class AListInAnAttribute(Weighted):
    def __init__(self) -> None:
        super().__init__()
        self.operations = [F.relu, F.conv2d]

    def forward(self, x: Tensor) -> Tensor:
        return self.operations[1](x, self.w, None, 2)


class AnArgumentOfAPartialFunction(Weighted):
    def __init__(self) -> None:
        super().__init__()
        self.down = functools.partial(lambda f, x, w: f(x, w, stride=2), F.conv2d)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(x, self.w)


class Block(nn.Module):
    """Calls what it is given."""

    def __init__(self, down: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        return self.down(x)


class AMethodOfTheModelAbove(Weighted):
    """Networks have it whose blocks are given the shortcut of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(self._down)

    def _down(self, x: Tensor) -> Tensor:
        return self._deeper(x)

    def _deeper(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class APartialMethodOfTheModelAbove(AMethodOfTheModelAbove):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block(functools.partial(self._scaled, scale=2))

    def _scaled(self, x: Tensor, scale: int) -> Tensor:
        return self._deeper(x * scale)


class AFactoryOfPooling(AMethodOfTheModelAbove):
    def _deeper(self, x: Tensor) -> Tensor:
        return halved(x)


class CalledInPlaceOfAForward(Weighted):
    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, stride=2)


class HasOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = CalledInPlaceOfAForward()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


KINDS: list[type[nn.Module]] = [
    CalledInPlaceOfAForward, HasOne,
    ADictionaryOfFunctions, AListWithinADictionary, AListInAnAttribute, AnArgumentOfAPartialFunction,
    AMethodOfTheModelAbove, APartialMethodOfTheModelAbove, AFactoryOfPooling,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_strided_call_is_converted_however_the_forward_reaches_it(kind: type[nn.Module]) -> None:
    model: Any = kind().eval()
    x = torch.randn(2, 3, 9, 9)
    with StridedCalls() as calls:
        expected = model(x)
    assert calls.convolutions or calls.poolings
    same = convert_layers(model, pooling=True, example_inputs=x)
    with StridedCalls() as calls:
        torch.testing.assert_close(same(x), expected)
    assert (calls.convolutions, calls.poolings) == ([], [])
