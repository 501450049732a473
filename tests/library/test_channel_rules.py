"""Rules of channels, masks and arithmetic, between phase forms of any factor: as plain loops do."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stridenet.layers import Broadcast, PhantomMask
from stridenet.phases import FeatureMap
from stridenet.pixels import OverPixels
from tests import reference
from tests.examples import examples
from tests.library.between_phases import (
    Function,
    check,
    close,
    equal,
    integers,
    many,
    maps_and_factors,
    parts,
    some,
    tensor,
)

# Positions in any order


@some
@given(maps_and_factors(channels=6), st.sampled_from([1, 2, 3, 6]))
def test_channel_shuffle(case: tuple, groups: int) -> None:
    twin = check(nn.ChannelShuffle(groups), case, lambda x: reference.shuffle_channels(x, groups))
    assert bool(parts(twin, OverPixels)) == (math.prod(case[1]) > 1)


def group_norm(x: np.ndarray, groups: int) -> np.ndarray:
    """Each group of channels of each image, as one channel of one image."""
    together = x.reshape(1, len(x) * groups, -1)
    mean, variance, _ = reference.statistics(together)
    return reference.normalise(together, mean, variance, 1e-5).reshape(x.shape)


def mean_of_channels(x: np.ndarray) -> np.ndarray:
    return reference.statistics(x.reshape(1, x.shape[0] * x.shape[1], -1))[0].reshape(x.shape[:2])


ANY_ORDER: dict[str, tuple[Callable, Callable]] = {
    "GroupNorm": (lambda axes: nn.GroupNorm(2, 4), lambda x: group_norm(x, 2)),
    "InstanceNorm": (
        lambda axes: {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[axes](4),
        lambda x: group_norm(x, 4),
    ),
    "softmax over channels": (
        lambda axes: nn.Softmax(1),
        lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum(1, keepdims=True),
    ),
    "global mean": (lambda axes: Function(lambda x: x.mean(spatial(axes))), mean_of_channels),
    "global mean that keeps axes": (
        lambda axes: Function(lambda x: torch.mean(x, spatial(axes), keepdim=True)),
        lambda x: mean_of_channels(x).reshape(*x.shape[:2], *[1] * (x.ndim - 2)),
    ),
    "global maximum": (
        lambda axes: Function(lambda x: x.amax(spatial(axes))),
        lambda x: x.reshape(*x.shape[:2], -1).max(2),
    ),
    "mean of all channels and positions": (
        lambda axes: Function(lambda x: x.mean((1, *spatial(axes)))),
        lambda x: mean_of_channels(x).mean(1),
    ),
    "mean over channels": (
        lambda axes: Function(lambda x: x.mean(1, keepdim=True)),
        lambda x: x.mean(1, keepdims=True),
    ),
}


def spatial(axes: int) -> tuple[int, ...]:
    return tuple(range(2, 2 + axes))


@pytest.mark.parametrize("name", ANY_ORDER)
@examples(20)
@given(maps_and_factors(channels=4))
def test_what_treats_all_positions_alike(name: str, case: tuple) -> None:
    layer, oracle = ANY_ORDER[name]
    if math.prod(case[0].shape[2:]) == 1:
        return  # torch refuses to normalise a single number
    check(layer(case[0].ndim - 2), case, oracle, close)


@some
@given(maps_and_factors(channels=3))
def test_layers_of_channels_last(case: tuple) -> None:
    axes = case[0].ndim - 2
    last, first = (0, *spatial(axes), 1), (0, axes + 1, *range(1, axes + 1))
    linear = nn.Linear(3, 4)
    weight, bias = integers((4, 3)), integers((4,), 1)
    with torch.no_grad():
        linear.weight.copy_(tensor(weight))
        linear.bias.copy_(tensor(bias))
    check(
        Function(lambda x, layer: layer(x.permute(last)).permute(*first), linear),
        case,
        lambda x: (x.transpose(last) @ weight.T + bias).transpose(first),
    )

    def normalised(x: np.ndarray) -> np.ndarray:
        rows = x.transpose(last)
        numbers = rows.reshape(1, -1, 3)
        mean, variance, _ = reference.statistics(numbers)
        return reference.normalise(numbers, mean, variance, 1e-5).reshape(rows.shape)

    check(
        Function(lambda x, layer: layer(x.permute(last)), nn.LayerNorm(3)), case, normalised, close
    )


@many
@given(maps_and_factors(channels=3), st.sampled_from([0, 1, -math.inf]))
def test_a_mask_fills_phantoms_and_nothing_else(case: tuple, fill: float) -> None:
    x, factor, _ = case
    feature_map = FeatureMap(x.shape[1:], factor)
    real = reference.phase_form(np.ones(x.shape), factor)
    garbage = np.where(real, reference.phase_form(x, factor), math.nan)
    mask = PhantomMask(feature_map, torch.device("cpu"), fill)
    assert equal(mask(tensor(garbage)), np.where(real, reference.phase_form(x, factor), fill))


# Several maps


OPERATIONS: dict[str, tuple[Callable, Callable]] = {
    "gate": (lambda x, corner: x * corner(x), lambda x, corner: x * corner(x)),
    "gate first": (lambda x, corner: corner(x) - x, lambda x, corner: corner(x) - x),
    "one channel for all": (lambda x, corner: x[:, :1] * x, lambda x, corner: x[:, :1] * x),
    "quotient": (lambda x, corner: x / x[:, 1:2], lambda x, corner: x / x[:, 1:2]),
    "quotient by a gate": (lambda x, corner: x / corner(x), lambda x, corner: x / corner(x)),
    "itself": (lambda x, corner: torch.div(x, x), lambda x, corner: x / x),
    "maximum": (
        lambda x, corner: torch.maximum(x, corner(x)),
        lambda x, corner: np.maximum(x, corner(x)),
    ),
    "number": (lambda x, corner: 3 - x, lambda x, corner: 3 - x),
    "number's quotient": (lambda x, corner: 3 / x, lambda x, corner: 3 / x),
    "logarithm": (lambda x, corner: torch.log(x.abs()), lambda x, corner: np.log(abs(x))),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", OPERATIONS)
@examples(20)
@given(maps_and_factors(channels=3))
def test_arithmetic_with_broadcasting(name: str, case: tuple) -> None:
    corner = (slice(None), slice(None), *[slice(0, 1)] * (case[0].ndim - 2))
    operation, oracle = OPERATIONS[name]
    twin = check(
        Function(lambda x: operation(x, lambda x: x[corner])),
        case,
        lambda x: oracle(x, lambda x: x[corner]),
        close if name in ("logarithm", "number's quotient") else equal,
    )
    if name.startswith(("gate", "one", "quotient")):
        assert parts(twin, Broadcast) or 1 in (math.prod(case[1]), math.prod(case[0].shape[2:]))


class WithParameters(nn.Module):
    """A number for each channel: those of the model broadcast over positions."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        shape = (3, *[1] * axes)
        self.scale = nn.Parameter(tensor(integers(shape)))
        self.register_buffer("shift", tensor(integers((1, *shape), 1)))
        self.register_buffer("number", torch.tensor(7.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.shift - x * self.scale) + self.number


@some
@given(maps_and_factors(channels=3))
def test_the_model_s_own_tensors_broadcast(case: tuple) -> None:
    layer = WithParameters(case[0].ndim - 2)
    scale, shift = layer.scale.detach().numpy(), layer.shift.numpy()
    check(layer, case, lambda x: shift - x * scale + 7)


@some
@given(maps_and_factors(channels=4))
def test_channels_side_by_side_and_in_parts(case: tuple) -> None:
    def forward(x: Tensor) -> Tensor:
        a, b = torch.split(x, [1, 3], 1)
        c, d = b.chunk(2, dim=1)
        return torch.cat((d, a, x, c), dim=1)

    order = [3, 0, 0, 1, 2, 3, 1, 2]
    check(Function(forward), case, lambda x: x[:, order])


@pytest.mark.parametrize("form", ["module", "function", "channels last"])
@some
@given(maps_and_factors(channels=6))
def test_half_of_the_channels_gates_the_other(form: str, case: tuple) -> None:
    axes = case[0].ndim - 2
    last, first = (0, *spatial(axes), 1), (0, axes + 1, *range(1, axes + 1))
    layer = {
        "module": nn.GLU(1),
        "function": Function(lambda x: F.glu(x, dim=1)),
        "channels last": Function(lambda x: F.glu(x.permute(last)).permute(first)),
    }[form]
    twin = check(layer, case, reference.gate, close)
    (gate,) = (layer for layer in twin.plan.layers if layer.operation.lower() == "glu")
    assert gate.input.factor == gate.output.factor == case[1]


@some
@given(maps_and_factors(channels=3))
def test_a_map_is_flattened_in_its_own_order(case: tuple) -> None:
    check(nn.Flatten(), case, lambda x: x.reshape(len(x), -1))


@some
@given(maps_and_factors(channels=3), st.booleans())
def test_a_slope_for_each_channel(case: tuple, one: bool) -> None:
    layer = nn.PReLU(1 if one else 3)
    slopes = integers((1 if one else 3,))
    with torch.no_grad():
        layer.weight.copy_(tensor(slopes))
    by_channel = slopes.reshape(1, -1, *[1] * (case[0].ndim - 2))
    check(layer, case, lambda x: np.where(x > 0, x, x * by_channel))
