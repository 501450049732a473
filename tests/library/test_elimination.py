"""Theorem 2 for whole networks: the twin computes the same function, with unit strides only."""

import copy
import itertools
import math
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from stridenet import (
    StrideEliminationError,
    UnitStrideNetwork,
    convert_layers,
    eliminate_stride,
    plan_elimination,
)
from stridenet.layers import PhantomMask
from stridenet.rules.registry import ELEMENTWISE
from tests import reference
from tests.examples import examples

many = examples(200)
some = examples(60)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# None of them increases a difference, which keeps the error bound simple.
ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Hardtanh, nn.Softsign,
    nn.Sigmoid, nn.Hardsigmoid, nn.Softplus,  # not zero at zero
]  # fmt: skip
Geometry = tuple[Any, Any, list[tuple[int, int]], int]


# Networks


def lenet() -> nn.Sequential:
    """The strided LeNet of the paper's Table 1."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(20, 20, 2, stride=2),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(20, 50, 5),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(50, 50, 2, stride=2),
            relu4=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(800, 500),
            relu5=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        )
    )


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


class Forward(nn.Module):
    """The given layers, and a forward that is the given function of the model and its input."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and evaluation mode, with weights that have no zeros and keep a map's magnitude."""
    generator = torch.Generator().manual_seed(seed)
    network.double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
            parameter /= math.sqrt(parameter[0].numel())
    return network


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


# The same function


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
        """Of all results outside the meta device that are no views of what was given."""
        new = [
            result
            for _, args, result in self.calls
            if isinstance(result, Tensor)
            and result.device.type != "meta"
            and result.data_ptr() not in {a.data_ptr() for a in args if is_real(a)}
        ]
        return sum(result.nbytes for result in new)


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


# The plan


def sizes_of_results(network: nn.Module, run: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    """Of each submodule, without batch, in the pass that `run` makes."""
    sizes = {}

    def keep(name: str) -> Callable:
        return lambda module, args, result: sizes.update({name: tuple(result.shape[1:])})

    handles = [
        module.register_forward_hook(keep(name)) for name, module in network.named_modules() if name
    ]
    run()
    for handle in handles:
        handle.remove()
    return sizes


@some
@given(chains())
def test_the_plan_s_sizes_are_those_of_a_forward_pass(chain: tuple) -> None:
    model, input_size = chain
    plan = plan_elimination(model.double(), input_size)
    twin, x = eliminate_stride(model, input_size), images(input_size)
    assert plan == twin.plan
    strided = sizes_of_results(model, lambda: model(x))
    unit_stride = sizes_of_results(twin.network, lambda: twin(x))
    assert plan.input.unit_stride_size == twin.rearrange(x).shape[1:]
    assert [layer.name for layer in plan.layers] == list(strided)
    for layer in plan.layers:
        assert layer.output.size == strided[layer.name]
        assert layer.output.unit_stride_size == unit_stride[layer.name]


def convolution_in(module: nn.Module) -> nn.Module:
    """A layer's convolution, also where a mask or padding stands before it."""
    return module[-1] if isinstance(module, nn.Sequential) else module


@some
@given(chains())
def test_the_plan_s_counts_are_those_of_the_networks(chain: tuple) -> None:
    model, input_size = chain
    randomise(model)
    twin = eliminate_stride(model, input_size)
    for layer in twin.plan.layers:
        strided = getattr(model.get_submodule(layer.name), "weight", torch.ones(0))
        unit_stride = convolution_in(twin.network.get_submodule(layer.name))
        unit_stride = getattr(unit_stride, "weight", torch.ones(0))
        assert strided.numel() == (math.prod(layer.weight_size) if layer.weight_size else 0)
        assert layer.weight_size == (strided.shape if strided.numel() else ())
        assert layer.unit_stride_weight_size == (unit_stride.shape if unit_stride.numel() else ())
        assert layer.structural_zeros == int((unit_stride == 0).sum())
    for column, network in (("strided", model), ("unit_stride", twin)):
        with FlopCounterMode(display=False) as counter:
            network(images(input_size)[:1])
        multiply_adds = twin.plan.to_frame()[f"{column}_multiply_adds"].sum()
        assert 2 * multiply_adds == counter.get_total_flops()


def test_the_plan_allocates_no_weights() -> None:
    model = lenet()
    with Recorder() as planning:
        plan_elimination(model, (1, 28, 28))
    with Recorder() as building:
        eliminate_stride(model, (1, 28, 28))
    assert planning.allocated_bytes() < 2048
    assert building.allocated_bytes() > 4 * 200_080


def test_a_network_too_large_to_exist_can_be_planned() -> None:
    million = 10**6
    with torch.device("meta"):
        layers = nn.Conv2d(3, million, 5), nn.ReLU(), nn.Conv2d(million, million, 3, stride=2)
    plan = plan_elimination(nn.Sequential(*layers), (3, 64, 64))
    assert plan.layers[0].unit_stride_weight_size == (4 * million, 12, 3, 3)
    assert plan.layers[2].unit_stride_weight_size == (million, 4 * million, 2, 2)
    assert plan.layers[2].structural_zeros == 7 * million**2
    assert plan.to_frame().unit_stride_weights.tolist() == [432 * million, 0, 16 * million**2]


# What the paper says


def test_table_2() -> None:
    frame = plan_elimination(lenet(), (1, 28, 28)).to_frame().set_index("layer")
    maps = frame.loc[["conv1", "conv2", "conv3", "conv4", "fc1"]]
    plan = plan_elimination(lenet(), (1, 28, 28))
    assert ["x".join(map(str, plan.input.size)), *maps.strided_map] == [
        "1x28x28", "20x24x24", "20x12x12", "50x8x8", "50x4x4", "500"
    ]  # fmt: skip
    assert ["x".join(map(str, plan.input.unit_stride_size)), *maps.unit_stride_map] == [
        "16x7x7", "320x6x6", "80x6x6", "200x4x4", "50x4x4", "500"
    ]  # fmt: skip


def test_table_1_the_twin_s_layers() -> None:
    network = eliminate_stride(lenet(), (1, 28, 28)).network
    layers = [network.get_submodule(f"conv{i}") for i in (1, 2, 3, 4)]
    assert [(layer.kernel_size, layer.out_channels) for layer in layers] == [
        ((2, 2), 320), ((1, 1), 80), ((3, 3), 200), ((1, 1), 50)
    ]  # fmt: skip
    assert [layer.in_channels for layer in layers] == [16, 320, 80, 200]
    assert network.get_submodule("fc1").weight.shape == (500, 800)


def test_figure_4_a_5x5_layer_before_a_stride_of_two() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Conv2d(32, 8, 2, stride=2))
    twin = eliminate_stride(model, (3, 12, 12))
    assert model[0].weight.shape == (32, 3, 5, 5)
    assert twin.network.get_submodule("0").weight.shape == (128, 12, 3, 3)


def test_lenet_s_counts() -> None:
    model = lenet()
    twin = eliminate_stride(model, (1, 28, 28))
    frame = twin.plan.to_frame()
    convolutions = frame[frame.operation == "Conv2d"].sum(numeric_only=True)
    assert convolutions.strided_weights == 37_100
    assert convolutions.unit_stride_weights == 200_080
    assert convolutions.structural_zeros == 75_680
    assert frame.strided_multiply_adds.sum() == 2_683_400
    assert frame.unit_stride_multiply_adds.sum() == 4_527_880
    assert sum(parameter.numel() for parameter in model.parameters()) == 442_750
    assert sum(parameter.numel() for parameter in twin.parameters()) == 606_240


def test_section_6_counts_the_taps_of_the_twin() -> None:
    frame = plan_elimination(lenet(), (1, 28, 28)).to_frame()
    formula = {"conv1": 16 * 20 * 25, "conv2": 4 * 20 * 20 * 4, "conv3": 4 * 20 * 50 * 25}
    formula["conv4"] = 50 * 50 * 4
    taps = (frame.unit_stride_weights - frame.structural_zeros).set_axis(frame.layer)
    assert taps[list(formula)].to_dict() == formula  # s²·C·C·W·H, s the stride after the layer


def test_the_printed_plan_sums_up() -> None:
    text = str(plan_elimination(lenet(), (1, 28, 28)))
    assert text.startswith("input 1x28x28 -> 16x7x7\n")
    assert "20x24x24 -> 320x6x6" in text
    assert "20x1x5x5 -> 320x16x2x2" in text
    assert (
        "strides eliminated in 2 layers; parameters 442,750 -> 606,240 (75,680 structural" in text
    )
    assert text.endswith("1.8 -> 2.4 MB), multiply-adds 2,683,400 -> 4,527,880")


def test_the_printed_plan_has_a_row_for_each_filter_flush_right() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 2, stride=2))
    assert str(plan_elimination(network, (1, 10, 10))).splitlines()[:-1] == [
        "input 1x10x10 -> 4x5x5",
        "layer            map             filter",
        "    0 2x8x8 -> 8x4x4 2x1x3x3 -> 8x4x2x2",
        "    2 3x4x4 -> 3x4x4 3x2x2x2 -> 3x8x1x1",
    ]
    assert len(str(plan_elimination(nn.MaxPool2d(2), (1, 8, 8))).splitlines()) == 2  # no filter


def test_of_more_than_twenty_filters_those_that_change_are_printed() -> None:
    network = nn.Sequential(*(nn.Conv2d(1, 1, 1, stride=1 + (n == 0)) for n in range(21)))
    plan = str(plan_elimination(network, (1, 8, 8))).splitlines()
    assert plan[2:-1] == [
        "    0 1x4x4 -> 1x4x4 1x1x1x1 -> 1x4x1x1",
        "... and 20 layers with filters as they were",
    ]


def test_padding_comes_before_the_rearrangement_where_that_saves_weights() -> None:
    alexnet = nn.Conv2d(3, 96, 11, stride=4, padding=2)
    plan = plan_elimination(alexnet, (3, 224, 224))
    assert plan.inputs[0].padding == ((2, 2), (2, 2))
    assert plan.layers[0].unit_stride_weight_size == (96, 48, 3, 3)
    saves_on_one_axis = nn.Conv2d(3, 4, (11, 1), stride=4, padding=(2, 0))
    assert plan_elimination(saves_on_one_axis, (3, 24, 24)).inputs[0].padding == ((2, 2), (0, 0))
    saves_nothing = nn.Conv2d(3, 4, 3, padding=1)
    assert plan_elimination(saves_nothing, (3, 24, 24)).inputs[0].padding == ((0, 0), (0, 0))


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


def test_layers_keep_their_names_types_and_settings() -> None:
    model = Nested()
    network = eliminate_stride(model, Nested.input_size).network
    for name in ("features.conv1", "features.drop", "conv2", "fc"):
        assert type(convolution_in(network.get_submodule(name))) is type(model.get_submodule(name))
    assert {name for name, _ in network.named_children()} == {"features", "conv2", "fc"}
    assert network.get_submodule("features.drop").p == 0.5
    assert convolution_in(network.get_submodule("conv2")).bias is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_carries_over(dtype: torch.dtype) -> None:
    twin = eliminate_stride(randomise(Nested()).to(dtype), Nested.input_size)
    assert {parameter.dtype for parameter in twin.parameters()} == {dtype}
    assert twin(images(Nested.input_size).to(dtype)).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_device_carries_over() -> None:
    model = randomise(Nested()).to("cuda")
    twin = eliminate_stride(model, Nested.input_size)
    state = itertools.chain(twin.parameters(), twin.buffers())
    assert {tensor.device.type for tensor in state} == {"cuda"}
    assert any(isinstance(module, PhantomMask) for module in twin.modules())
    assert twin(images(Nested.input_size).to("cuda")).device.type == "cuda"


def test_a_model_without_weights_can_be_planned_but_not_converted() -> None:
    with torch.device("meta"):
        model = Nested()
    assert plan_elimination(model, Nested.input_size) == plan_elimination(
        Nested(), Nested.input_size
    )
    with pytest.raises(StrideEliminationError, match="meta device: load its weights first"):
        eliminate_stride(model, Nested.input_size)


def test_a_twin_can_be_traced_like_any_network() -> None:
    twin = eliminate_stride(randomise(Nested()), Nested.input_size)
    x = images(Nested.input_size)
    assert torch.equal(torch.fx.symbolic_trace(twin)(x), twin(x))


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_carries_over_module_by_module(training: bool) -> None:
    model = Nested().train(training)
    for name in ("features.drop", "conv2"):
        model.get_submodule(name).train(not training)
    twin = eliminate_stride(model, Nested.input_size)
    for name, module in twin.network.named_modules():
        path = next(
            path for path in (name, name.rpartition(".")[0]) if path in dict(model.named_modules())
        )
        assert module.training == model.get_submodule(path).training, name
    assert twin.training == twin.rearrange.training == training


@pytest.mark.parametrize("padding", [0, 1])  # a plain twin, and one with its own padding
@pytest.mark.parametrize("training", [True, False])
def test_training_mode_of_a_bare_layer_carries_over(training: bool, padding: int) -> None:
    model = nn.Conv2d(2, 3, 3, stride=2, padding=padding).train(training)
    twin = eliminate_stride(model, (2, 8, 8))
    assert {module.training for module in twin.modules()} == {training}


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_requires_grad_carries_over(frozen: str) -> None:
    model = Nested()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.endswith(frozen)
    twin = eliminate_stride(model, Nested.input_size).network
    for name, parameter in model.named_parameters():
        path, kind = name.rsplit(".", 1)
        obtained = getattr(convolution_in(twin.get_submodule(path)), kind)
        assert isinstance(obtained, nn.Parameter)
        assert obtained.requires_grad == parameter.requires_grad
        assert obtained.grad_fn is None


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda twin: pickle.loads(pickle.dumps(twin)), id="pickle"),
    ],
)
def test_a_copy_of_the_twin_is_equal_and_independent(
    copied: Callable[[UnitStrideNetwork], UnitStrideNetwork],
) -> None:
    twin, x = eliminate_stride(randomise(Nested()), Nested.input_size), images(Nested.input_size)
    expected, other = twin(x), copied(twin)
    assert torch.equal(other(x), expected)
    assert other.plan == twin.plan
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), expected)


def test_a_state_dict_makes_another_twin_the_same() -> None:
    twins = [eliminate_stride(randomise(Nested(), seed), Nested.input_size) for seed in (0, 1)]
    x = images(Nested.input_size)
    assert not close(twins[0](x), twins[1](x))
    twins[1].load_state_dict(twins[0].state_dict())
    assert torch.equal(twins[0](x), twins[1](x))
    assert all("real" not in key for key in twins[0].state_dict())  # masks follow from sizes


@pytest.mark.parametrize("size", [(2, 13, 12), (2, 12, 11), (1, 13, 11), (13, 11)])
def test_images_of_another_size_are_refused(size: tuple[int, ...]) -> None:
    twin = eliminate_stride(randomise(Nested()), Nested.input_size)
    written = "x".join(map(str, size))
    with pytest.raises(StrideEliminationError, match=rf"{written}, .* for 2x13x11;"):
        twin(images(size))


# The model is left alone


def fingerprint(network: nn.Module) -> list:
    """Every tensor's identity, version and bytes, every module's attributes, flags and hooks."""
    state = itertools.chain(network.named_parameters(), network.named_buffers())
    tensors = [
        (name, id(t), t._version, t.requires_grad, t.grad, t.detach().numpy().tobytes())
        for name, t in state
    ]
    modules = [
        (name, id(m), {k: list(v) if isinstance(v, dict) else v for k, v in vars(m).items()})
        for name, m in network.named_modules()
    ]
    return [tensors, modules]


def storages(network: nn.Module) -> set[int]:
    state = itertools.chain(network.parameters(), network.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in state}


def random_states() -> list:
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]  # noqa: NPY002


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = Nested().train(training)
    model.features.train(not training)
    before, random_before = fingerprint(model), random_states()
    twin = eliminate_stride(model, Nested.input_size)
    assert fingerprint(model) == before
    assert random_states() == random_before
    twin(images(Nested.input_size).float())
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Nested(), id="strided"),
        pytest.param(
            nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(297, 2)), id="plain"
        ),
        pytest.param(nn.Conv2d(2, 3, 1), id="1x1"),
    ],
)
def test_the_twin_shares_no_memory_with_the_model(model: nn.Module) -> None:
    twin = eliminate_stride(model, Nested.input_size)
    assert storages(model).isdisjoint(storages(twin))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Forward(lambda m, x: m.a(x) if x.sum() > 0 else x, a=nn.ReLU()), id="tracing"),
        pytest.param(nn.Sequential(nn.Conv2d(2, 3, 9), nn.Conv2d(3, 3, 9)), id="sizes"),
        pytest.param(nn.Sequential(nn.LayerNorm(11), nn.Conv2d(2, 3, 3, stride=2)), id="rules"),
    ],
)
def test_the_model_is_left_as_it_was_also_by_a_refusal(model: nn.Module) -> None:
    before, random_before = fingerprint(model), random_states()
    with pytest.raises(StrideEliminationError):
        eliminate_stride(model, Nested.input_size)
    assert fingerprint(model) == before
    assert random_states() == random_before


# What is refused


class Halved(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class WithParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, stride=2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        return self.attention(x, x, x)[0].unsqueeze(1)


def hooked(register: str) -> nn.Sequential:
    model = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Conv2d(1, 2, 3))))
    getattr(model.body[0], register)(lambda *_: None)
    return model


def before_a_stride(layer: nn.Module) -> nn.Sequential:
    """Between a layer with its 4x14x14 maps and one with a stride of two."""
    last = nn.LazyConv2d(2, 2, stride=2)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), layer, last)
    model(torch.zeros(1, 1, 16, 16))
    return nn.Sequential(OrderedDict(body=model))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        *[
            pytest.param(
                before_a_stride(layer),
                rf"body\.1 \({type(layer).__name__}\) on a map 4x14x14 needs its maps in their "
                r"ordinary form .*, but it comes before a stride; .*convert_layers\(model\)",
                id=type(layer).__name__,
            )
            for layer in (
                nn.AdaptiveAvgPool2d(4), nn.LayerNorm(14), nn.Softmax(2), nn.Linear(14, 14),
                nn.Upsample(scale_factor=1.5), nn.Upsample(scale_factor=2, mode="bicubic"),
            )
        ],
        *[
            pytest.param(hooked(f"register_{kind}_hook"), r"body\.0 \(Conv2d\) has hooks", id=kind)
            for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre")
        ],
        pytest.param(
            Forward(
                lambda m, x: m.a(x)[:, :, :2, :2] + m.b(x)[:, :, :2, :2],
                a=nn.Conv2d(1, 1, 3, stride=2), b=nn.Conv2d(1, 1, 3),
            ),
            r"add \(add\) on a map 1x2x2 and 1x2x2: the strides on the ways to it do not agree.*layer",
            id="a stride of two and one of one that meet",
        ),
        pytest.param(
            nn.Sequential(Attention(), nn.Conv2d(1, 1, 3, stride=2)),
            r"unsqueeze \(unsqueeze\) on a map 16x16 needs its maps in their ordinary form",
            id="attention",
        ),
        pytest.param(
            Forward(lambda m, x: torch.relu(x) if x.sum() > 0 else x),
            r"Forward cannot be traced by torch\.fx: .*numbers of a tensor \(if.*test_elim.*, line",
            id="data-dependent control flow",
        ),
        pytest.param(
            nn.Sequential(OrderedDict(a=nn.ReLU(), b=Forward(lambda m, x: x if x.max() > 0 else -x))),
            r"^b \(Forward\) cannot be traced",
            id="data-dependent control flow inside",
        ),
        pytest.param(
            WithParameter(), r"^conv2d .* a convolution of stride 2x2.*nn\.Conv2d", id="F.conv2d"
        ),
        pytest.param(
            nn.LPPool2d(2, 2), r"0 \(LPPool2d\) .* avg_pool2d of stride 2x2.*no rule", id="LPPool2d"
        ),
        pytest.param(
            nn.Sequential(Halved(1, 1, 3, 2)), r"0 \(Halved\) .*no rule; .* torch's own", id="subclass"
        ),
        pytest.param(
            nn.Sequential(nn.ReLU(), nn.Flatten(2), nn.Conv1d(1, 1, 2, stride=2)),
            r"1 \(Flatten\) on a map 1x16x16 needs .* comes before a stride",
            id="Flatten before a stride",
        ),
        pytest.param(
            nn.Sequential(nn.Linear(16, 9), nn.Conv2d(1, 1, 1, stride=(1, 3))),
            r"0 \(Linear\) .* comes before a stride",
            id="Linear before a stride",
        ),
        pytest.param(
            nn.Sequential(nn.Conv2d(1, 4, 9), nn.ReLU(), nn.Conv2d(4, 4, 9)),
            r"2 \(Conv2d\) on a map 4x8x8: .*[Kk]ernel size",
            id="kernel larger than the map",
        ),
        pytest.param(
            nn.Conv2d(3, 4, 3), r"0 \(Conv2d\) on a map 1x16x16: .*channel", id="channels"
        ),
        pytest.param(nn.Conv1d(1, 4, 3), r"0 \(Conv1d\) on a map 1x16x16: ", id="too many axes"),
    ],
)  # fmt: skip
def test_what_has_no_twin_is_refused_by_name(model: nn.Module, message: str) -> None:
    for convert in (plan_elimination, eliminate_stride):
        with pytest.raises(StrideEliminationError, match=message):
            convert(model, (1, 16, 16))


def changed(conv: nn.Conv2d, **attributes: Any) -> nn.Conv2d:
    """A convolution whose attributes were set after it was made."""
    for name, value in attributes.items():
        setattr(conv, name, value)
    return conv


def two_that_share_a_weight() -> nn.Sequential:
    first, second = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)
    second.weight = first.weight
    return nn.Sequential(first, second)


def fails(message: str) -> Any:
    raise NotImplementedError(message)


def in_place(operation: Callable[[Tensor], Any]) -> Forward:
    """An operation whose result is not used: what it does to its operand is read all the same."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        x = model.conv1(x)
        operation(x)
        return model.conv2(x)

    return Forward(forward, conv1=nn.Conv2d(1, 2, 3), conv2=nn.Conv2d(2, 2, 2, stride=2))


IN_PLACE = {
    "relu_": lambda x: x.relu_(),
    "relu": lambda x: torch.nn.functional.relu(x, inplace=True),
    "mul_": lambda x: x.mul_(3),
    "div_": lambda x: x.div_(1 + x.abs()),  # which the twin does on a copy without phantoms
    "one after the other": lambda x: (x.mul_(3), x.sub_(1), x.relu_()),
}


@pytest.mark.parametrize("operation", IN_PLACE.values(), ids=IN_PLACE)
def test_what_works_in_place_is_what_later_readers_see(operation: Callable) -> None:
    model, x = randomise(in_place(operation)), images((1, 17, 16))
    assert close(eliminate_stride(model, (1, 17, 16))(x), model(x))
    assert close(convert_layers(model)(x), model(x))


def test_a_view_that_is_changed_in_place_and_read_later_by_another_name_is_refused() -> None:
    model = in_place(lambda x: x[:, :, 1:].relu_())
    with pytest.raises(
        StrideEliminationError, match=r"changes getitem .* in place, .* conv1 .*x = F\.relu"
    ):
        eliminate_stride(model, (1, 16, 16))
    randomise(model)
    x = images((1, 16, 16))
    assert close(convert_layers(model)(x), model(x))


def test_a_layer_with_the_name_of_a_view_is_none() -> None:
    """x.expand(...) has the memory of x; a convolution that is called expand has its own."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        x = model.view(x)
        return model.last(x + torch.relu_(model.expand(x)))

    layers = {name: nn.Conv2d(2, 2, 3, padding=1) for name in ("view", "expand")}
    model = randomise(Forward(forward, **layers, last=nn.Conv2d(2, 2, 3, 2)))
    twin, x = eliminate_stride(model, (2, 9, 8)), images((2, 9, 8))
    assert close(twin(x), model(x))


def test_adding_in_place_is_traced_as_such() -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        y = model.conv(x)
        z = torch.relu(y)
        z += y
        return z * z

    model = randomise(Forward(forward, conv=nn.Conv2d(1, 2, 3, stride=2)))
    twin, x = eliminate_stride(model, (1, 16, 16)), images((1, 16, 16))
    assert close(twin(x), model(x))
    assert torch.ops.aten.add_.Tensor in {call[0] for call in recorded(twin, x).calls}


def recorded(network: nn.Module, x: Tensor) -> Recorder:
    with Recorder() as recorder:
        network(x)
    return recorder


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param(
            nn.Sequential(changed(nn.Conv2d(1, 1, 3, 2), forward=lambda x: x)),
            r"forward of 0 \(Conv2d\) was replaced",
            id="forward of one object",
        ),
        pytest.param(
            changed(nn.Conv2d(1, 1, 3, 2), weight=nn.Parameter(torch.ones(1, 1, 5, 5))),
            r"0 \(Conv2d\) was changed .* 1x1x5x5 ",
            id="weight of another size",
        ),
        pytest.param(changed(nn.Conv2d(1, 1, 3), stride=2), "was changed", id="stride as a number"),
        pytest.param(
            two_that_share_a_weight(), r"0 .* and 1 .* share a weight", id="shared weight"
        ),
        pytest.param(
            Forward(lambda m, x: x[:, :0]), r"getitem.* empty map 0x16x16", id="no channel"
        ),
        pytest.param(Forward(lambda m, x: fails("")), "NotImplementedError", id="no message"),
        pytest.param(
            Forward(lambda m, x: x.foo()),
            r"'Tensor' object has no attribute 'foo' \(test_eli",
            id="no such method",
        ),
    ],
)
def test_what_tracing_would_lose_or_get_wrong_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(StrideEliminationError, match=message):
        eliminate_stride(model, (1, 16, 16))


@pytest.mark.parametrize("channels", [(1, 4), (2, 4), (2, 2), (3, 4)])
def test_an_input_without_its_channels_is_refused(channels: tuple[int, int]) -> None:
    with pytest.raises(StrideEliminationError, match=r"0 \(Conv2d\) "):
        eliminate_stride(nn.Conv2d(*channels, 3), (16, 16))


@pytest.mark.parametrize(
    "input_size", [(), (1, 0, 8), (1, -8, 8), (1, 8.0, 8), 8, None, "188", {1, 8}, torch.ones(3)]
)
def test_an_input_size_must_be_positive_integers(input_size: Any) -> None:
    for convert in (plan_elimination, eliminate_stride):
        with pytest.raises(StrideEliminationError, match=r"input_size=.* as in \(1, 28, 28\)"):
            convert(nn.Conv2d(1, 1, 1), input_size)
