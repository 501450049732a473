"""Theorem 2 for whole networks: the twin computes the same function, with unit strides only."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stridenet import UnitStrideNetwork, eliminate_stride
from stridenet.layers import PhantomMask
from stridenet.rules.registry import ELEMENTWISE
from tests import reference
from tests.examples import examples
from tests.library.chains import Nested, Recorder, chains, close, images, some
from tests.networks import CONVOLUTIONS, Forward, randomise

many = examples(200)


pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


Geometry = tuple[Any, Any, list[tuple[int, int]], int]


# The twin computes the same function


def geometry(layer: nn.Module) -> Geometry:
    """Stride, dilation, (low, high) paddings and groups."""
    if isinstance(layer, nn.Linear):
        return (), (), [], 1
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        padding = [(total // 2, total - total // 2) for total in totals]
    elif layer.padding == "valid":
        padding = [(0, 0)] * len(layer.stride)
    else:
        padding = [(p, p) for p in layer.padding]
    return layer.stride, layer.dilation, padding, layer.groups


def weights(layer: nn.Module) -> tuple[np.ndarray, np.ndarray | None]:
    bias = layer.bias
    return layer.weight.detach().numpy(), None if bias is None else bias.detach().numpy()


@torch.no_grad()
def run_with_error(model: nn.Sequential, x: Tensor) -> tuple[Tensor, np.ndarray]:
    """The model's output, and how far from it another order of the same sums can lie."""
    error = np.zeros(x.shape)
    for layer in model:
        y = layer(x)
        if isinstance(layer, (*CONVOLUTIONS.values(), nn.Linear)):
            error = reference.convolution_error(error, x.numpy(), *weights(layer), *geometry(layer))
        elif isinstance(layer, nn.Flatten):
            error = error.reshape(y.shape)
        elif not isinstance(layer, (nn.Identity, nn.Dropout)):
            error = reference.activation_error(error, x.numpy(), y.numpy())
        x = y
    return x, error


@many
@given(chains(), st.integers(0, 99))
def test_the_twin_equals_the_model_up_to_rounding(chain: tuple, seed: int) -> None:
    model, input_size = chain
    x = images(input_size, seed)
    randomise(model, seed)
    expected, bound = run_with_error(model, x)
    obtained = eliminate_stride(model, input_size)(x).detach()
    assert obtained.shape == expected.shape
    assert ((obtained - expected).abs().numpy() <= bound).all()


@some
@given(chains(activations=[nn.Identity, nn.ReLU]), st.integers(0, 99))
def test_the_twin_equals_plain_loops_exactly_on_integers(chain: tuple, seed: int) -> None:
    model, input_size = chain
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, (2, *input_size), generator=generator).double()
    with torch.no_grad():
        for parameter in model.double().eval().parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape, generator=generator))
        expected = x.numpy()
        for layer in model:
            if isinstance(layer, (*CONVOLUTIONS.values(), nn.Linear)):
                expected = reference.convolve(expected, *weights(layer), *geometry(layer))
            elif isinstance(layer, nn.Flatten):
                expected = expected.reshape(len(expected), -1)
            elif isinstance(layer, nn.ReLU):
                expected = expected.clip(0)
        assert np.array_equal(model(x), expected)
        assert np.array_equal(eliminate_stride(model, input_size)(x), expected)


def instance(operation: Any) -> nn.Module:
    """A module that applies an operation, given as a type, a function or a method's name."""
    name = getattr(operation, "__name__", operation)
    options = {"Threshold": (0.1, 0.5), "_threshold": (0.1, 0.5)}.get(name, ())
    options = (-0.5, 0.5) if name in ("clamp", "clamp_", "clip") else options
    options = (0.1,) if name in ("clamp_min", "clamp_max") else options
    if isinstance(operation, str):
        return Forward(lambda model, x: getattr(x, operation)(*options))
    if not isinstance(operation, type):
        return Forward(lambda model, x: operation(x, *options))
    return operation(*options)


@pytest.mark.parametrize(
    "operation", sorted(ELEMENTWISE, key=str), ids=lambda o: getattr(o, "__name__", o)
)
def test_every_operation_called_element_wise_takes_a_rearranged_map(operation: Any) -> None:
    layers = [nn.Conv2d(2, 3, 2), instance(operation), nn.Conv2d(3, 2, 3, stride=2, padding=1)]
    model = randomise(nn.Sequential(*layers))
    twin, x = eliminate_stride(model, (2, 8, 10)), images((2, 8, 10))
    assert close(twin(x), model(x))


@pytest.mark.parametrize(
    ("model", "input_size"),
    [
        pytest.param(Nested(), Nested.input_size, id="nested modules, functions and methods"),
        pytest.param(nn.Conv2d(3, 4, 5, stride=3, padding=2), (3, 17, 16), id="a bare Conv2d"),
        pytest.param(nn.Conv1d(3, 4, 2, stride=5), (3, 23), id="stride above kernel"),
        pytest.param(
            nn.Conv3d(1, 2, (3, 2, 1), stride=(1, 2, 3)), (1, 5, 6, 7), id="a bare Conv3d"
        ),
        pytest.param(
            nn.Sequential(nn.Conv2d(1, 2, 2, stride=2), nn.Flatten(2), nn.Conv1d(2, 3, 4)),
            (1, 8, 9),
            id="flatten before a convolution of stride one",
        ),
        pytest.param(
            nn.Sequential(nn.Linear(9, 8), nn.Conv1d(2, 3, 3)), (2, 9), id="Linear on an axis"
        ),
        pytest.param(
            nn.Sequential(
                nn.Conv2d(1, 2, 3, 2), relu := nn.ReLU(), nn.Conv2d(2, 2, 3, 2), relu, nn.Flatten()
            ),
            (1, 19, 16),
            id="one activation between several layers",
        ),
        pytest.param(nn.Sequential(nn.ReLU(), nn.Flatten()), (2, 3, 4), id="no convolution"),
        pytest.param(nn.AvgPool2d(3, 2, 1), (2, 9, 12), id="no parameter"),
    ],
)
def test_the_twin_of_these_networks_equals_them(model: nn.Module, input_size: tuple) -> None:
    randomise(model)
    x = images(input_size)
    assert close(eliminate_stride(model, input_size)(x), model(x))
    assert model(x).abs().max() > 0.1


def test_gradients_of_the_images_are_the_same() -> None:
    model = randomise(Nested())
    gradients = []
    for network in (model, eliminate_stride(model, Nested.input_size)):
        x = images(Nested.input_size).requires_grad_()
        network(x).square().sum().backward()
        gradients.append(x.grad)
    assert close(*gradients)
    assert gradients[0].abs().max() > 1e-3


@some
@given(chains())
def test_every_convolution_of_the_twin_has_stride_one_and_no_dilation_where_it_changed(
    chain: tuple,
) -> None:
    model, input_size = chain
    twin = eliminate_stride(model.double(), input_size)
    with Recorder() as strided:
        model(images(input_size))
    with Recorder() as unit_stride:
        twin(images(input_size))
    convolutions = [layer for layer in model if isinstance(layer, tuple(CONVOLUTIONS.values()))]
    ones = [1] * (len(input_size) - 1)
    kept = [not layer.maps for layer in twin.plan.layers if layer.operation.startswith("Conv")]
    assert unit_stride.convolutions() == [
        (ones, list(c.dilation) if same else ones)
        for c, same in zip(convolutions, kept, strict=True)
    ]
    assert strided.convolutions() == [(list(c.stride), list(c.dilation)) for c in convolutions]


# Phantoms


def phantoms(feature_map: Any) -> Tensor:
    """Where a phase form holds positions that the strided network does not have."""
    real = reference.phase_form(np.ones((1, *feature_map.size), bool), feature_map.factor)
    return ~torch.from_numpy(real)


def poison(twin: UnitStrideNetwork, masked: float, unmasked: float) -> int:
    """Overwrite the phantoms that each convolution receives; how many numbers that are in masked
    layers. The twin's own input is left out: its phantoms are zeros for certain."""
    overwritten = 0
    for layer in twin.plan.layers[1:]:
        if layer.maps:
            where, value = phantoms(layer.input), masked if layer.masked else unmasked
            overwritten += int(where.sum()) if layer.masked else 0
            twin.network.get_submodule(layer.name).register_forward_pre_hook(
                lambda _, args, where=where, value=value: args[0].masked_fill(where, value)
            )
    return overwritten


@many
@given(chains())
def test_what_phantoms_hold_never_reaches_an_output(chain: tuple) -> None:
    model, input_size = chain
    twin, x = eliminate_stride(randomise(model), input_size), images(input_size)
    poison(twin, masked=0, unmasked=0)
    expected = twin(x)
    poison(twin, masked=math.nan, unmasked=1e3)
    assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_masks_select_so_that_nothing_non_finite_passes(value: float) -> None:
    twin, x = eliminate_stride(randomise(Nested()), Nested.input_size), images(Nested.input_size)
    assert poison(twin, masked=0, unmasked=0) > 0
    expected = twin(x)
    poison(twin, masked=value, unmasked=0)
    assert torch.equal(twin(x), expected)


# What the twin is


@pytest.mark.parametrize(
    ("second", "size", "parts"),
    [
        pytest.param(nn.Conv2d(2, 3, 2, 2), 10, [], id="plain"),
        pytest.param(nn.Conv2d(2, 3, 3, 1, 1), 10, [], id="padding alike on both sides"),
        pytest.param(nn.Conv2d(2, 3, 3, 2, 1), 10, [nn.ZeroPad2d], id="padding in front"),
        pytest.param(nn.Conv2d(2, 3, 2, 4), 9, [nn.ZeroPad2d], id="a block too many"),
        pytest.param(
            nn.Conv2d(2, 3, 3, 2, 1), 9, [PhantomMask, nn.ZeroPad2d], id="phantoms and padding"
        ),
        pytest.param(nn.Conv2d(2, 3, 3, 2, 2), 11, [PhantomMask], id="phantoms"),
    ],
)
def test_a_layer_is_a_plain_convolution_unless_it_needs_a_mask_or_padding(
    second: nn.Conv2d, size: int, parts: list[type]
) -> None:
    model = randomise(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sigmoid(), second))
    twin, x = eliminate_stride(model, (1, size, size)), images((1, size, size))
    layer = twin.network.get_submodule("2")
    found = list(layer) if type(layer) is nn.Sequential else [layer]
    assert [type(part) for part in found] == [*parts, nn.Conv2d]
    assert type(twin.network.get_submodule("0")) is nn.Conv2d
    assert close(twin(x), model(x))
