"""From settings to networks and their weights: the strided LeNet, its twin, and variants of both."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet import StrideEliminationError, eliminate_stride
from stridenet.config import ACTIVATIONS, InputError, Layer, Model
from stridenet.networks import build_network, build_strided, initialise

Composed = Callable[..., Any]
LENET = (1, 28, 28)

# Overrides, the size of the images, and the twin's first input and filters worked out by hand.
VARIANTS: dict[str, tuple[list[str], tuple[int, int, int], tuple[int, ...], dict[str, tuple]]] = {
    "the paper's": (
        [],
        LENET,
        (16, 7, 7),
        {"conv1": (320, 16, 2, 2), "conv2": (80, 320, 1, 1),
         "conv3": (200, 80, 3, 3), "conv4": (50, 200, 1, 1), "fc1": (500, 800)},
    ),
    "another kernel": (
        ["model.layers.conv1.kernel=3"],
        LENET,
        (16, 7, 7),
        {"conv1": (320, 16, 2, 2), "conv3": (200, 80, 3, 3), "fc1": (500, 800)},
    ),
    "stride 3": (
        ["model.layers.conv2.stride=3"],
        LENET,
        (36, 5, 5),
        {"conv1": (720, 36, 2, 2), "conv2": (80, 720, 1, 1), "conv4": (50, 200, 1, 1)},
    ),
    "a rectangular kernel and stride": (
        ["model.layers.conv1.kernel=[3,6]", "model.layers.conv2.stride=[1,2]"],
        LENET,
        (8, 14, 7),
        {"conv1": (160, 8, 2, 3), "conv2": (80, 160, 2, 1)},
    ),
    "a layer more": (
        ["+model.layers.conv5={kernel: 2, stride: 2, channels: 40}"],
        LENET,
        (64, 4, 4),
        {"conv1": (1280, 64, 2, 2), "conv4": (200, 800, 1, 1), "conv5": (40, 200, 1, 1),
         "fc1": (500, 160)},
    ),
    "a layer less": (
        ["~model.layers.conv4"],
        LENET,
        (4, 14, 14),
        {"conv1": (80, 4, 3, 3), "conv2": (20, 80, 1, 1), "conv3": (50, 20, 5, 5),
         "fc1": (500, 3200)},
    ),
    "other channels": (
        ["model.layers.conv2.channels=7", "model.layers.fc1.channels=33"],
        LENET,
        (16, 7, 7),
        {"conv2": (28, 320, 1, 1), "conv3": (200, 28, 3, 3), "fc1": (33, 800)},
    ),
    "colour images of 32x20": ([], (3, 32, 20), (48, 8, 5), {"conv1": (320, 48, 2, 2)}),
    "groups": (
        ["model.layers.conv3.groups=10", "model.layers.conv2.groups=20"],
        LENET,
        (16, 7, 7),
        {"conv2": (80, 16, 1, 1), "conv3": (200, 8, 3, 3)},
    ),
    "dilation": (
        ["model.layers.conv3.dilation=[2,1]"],
        LENET,
        (16, 7, 7),
        {"conv3": (200, 80, 5, 3)},
    ),
    "padding": (
        ["model.layers.conv1.padding=2", "model.layers.conv3.padding=[1,0]"],
        LENET,
        (16, 8, 8),
        {"conv3": (200, 80, 4, 3)},
    ),
    "no biases, another activation": (
        ["model.activation=tanh",
         *(f"model.layers.{name}.bias=false" for name in ("conv1", "conv4", "fc1"))],
        LENET,
        (16, 7, 7),
        {},
    ),
    "convolutions only": (
        ["~model.layers.fc1", "~model.layers.fc2",
         "+model.layers.conv5={kernel: 4, channels: 10}"],
        LENET,
        (16, 7, 7),
        {"conv5": (10, 50, 4, 4)},
    ),
    "sizes that no factor divides": (
        ["model.layers.conv1.padding=1", "model.layers.conv2.kernel=3",
         "model.layers.conv2.padding=1"],
        (1, 27, 29),
        (16, 8, 8),  # padded to 29x31 first
        {},
    ),
}  # fmt: skip


def float64(network: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, with weights whose layers neither die nor grow."""
    network.double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        bound = math.sqrt(3 / parameter[0].numel())
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return network


def images(size: tuple[int, int, int]) -> Tensor:
    return torch.randn(3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(model: Model, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the settings mean, with nothing but torch's functions."""
    last = list(model.layers)[-1]
    for name, layer in model.layers.items():
        weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        assert (bias is not None) == layer.bias
        if layer.kind == "fc":
            x = F.linear(x.flatten(1), weight, bias)
        else:
            x = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        x = x if name == last else getattr(torch, model.activation)(x)
    return x.flatten(1)


def test_the_strided_lenet_has_the_papers_layers(composed: Composed) -> None:
    network = build_strided(composed().model, LENET)
    described = {
        name: (tuple(module.weight.shape), getattr(module, "stride", None))
        for name, module in network.named_children()
        if hasattr(module, "weight")
    }
    assert described == {
        "conv1": ((20, 1, 5, 5), (1, 1)),
        "conv2": ((20, 20, 2, 2), (2, 2)),
        "conv3": ((50, 20, 5, 5), (1, 1)),
        "conv4": ((50, 50, 2, 2), (2, 2)),
        "fc1": ((500, 800), None),
        "fc2": ((10, 500), None),
    }
    order = [type(module).__name__ for module in network]
    assert order == [*["Conv2d", "ReLU"] * 4, "Flatten", "Linear", "ReLU", "Linear"]
    assert sum(parameter.numel() for parameter in network.parameters()) == 442_750


def test_the_twin_of_lenet_has_as_many_parameters_as_the_design_says(composed: Composed) -> None:
    twin = build_network(composed("model=unit_stride").model, LENET)
    assert sum(parameter.numel() for parameter in twin.parameters()) == 606_240


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_strided_network_computes_what_its_settings_say(composed: Composed, variant: str) -> None:
    overrides, size, _, _ = VARIANTS[variant]
    model = composed(*overrides).model
    network = float64(build_strided(model, size))
    scores = network(images(size))
    torch.testing.assert_close(scores, by_hand(model, network.state_dict(), images(size)))
    assert scores.shape[0] == 3
    assert scores.ndim == 2
    assert scores.std() > 1e-3  # not all the same, so the comparison tells something


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_twin_follows_its_settings_and_equals_the_strided_network(
    composed: Composed, variant: str
) -> None:
    overrides, size, input_size, filters = VARIANTS[variant]
    model = composed("model=unit_stride", *overrides).model
    strided = float64(build_strided(model, size))
    twin = build_network(model, size).double()
    twin.load_state_dict(eliminate_stride(strided, size).state_dict())

    convolutions = [module for module in twin.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == sum(layer.kind == "conv" for layer in model.layers.values())
    assert all(module.stride == module.dilation == (1, 1) for module in convolutions)
    assert twin.rearrange(images(size)).shape[1:] == input_size
    # A layer that needs a mask or padding is a small Sequential with the convolution inside.
    weights = {n.split(".")[1]: p for n, p in twin.named_parameters() if n.endswith("weight")}
    assert {name: tuple(weights[name].shape) for name in filters} == filters
    torch.testing.assert_close(twin(images(size)), strided(images(size)), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_has_an_equal_twin(activation: str) -> None:
    layers = {
        "a": Layer("conv", 3, [3, 3], [1, 1], [1, 1], [0, 0]),
        "b": Layer("conv", 4, [2, 2], [2, 2], [1, 1], [1, 1]),
        "c": Layer("fc", 10, [1, 1], [1, 1], [1, 1], [0, 0]),
    }
    model = Model(eliminate_stride=True, activation=activation, layers=layers)
    strided = float64(build_strided(model, (1, 8, 9)))
    twin = build_network(model, (1, 8, 9)).double()
    twin.load_state_dict(eliminate_stride(strided, (1, 8, 9)).state_dict())
    x = images((1, 8, 9))
    scores = twin(x)
    torch.testing.assert_close(scores, strided(x), rtol=1e-11, atol=1e-12)
    linear = by_hand(replace(model, activation="clone"), strided.state_dict(), x)
    assert not torch.allclose(scores, linear)  # the activation is there


def test_without_the_flag_the_network_stays_strided(composed: Composed) -> None:
    network = build_network(composed().model, LENET)
    strides = {m.stride for m in network.modules() if isinstance(m, nn.Conv2d)}
    assert strides == {(1, 1), (2, 2)}


# Mistakes in layers


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.layers.conv1.kernel=29"], "conv1"),
        (["model.layers.conv3.kernel=13"], "conv3"),
        (["model.layers.conv3.dilation=3"], "conv3"),
        (["model.layers.conv2.stride=30", "model.layers.conv3.kernel=2"], "conv3"),
        (["+model.layers.conv5={kernel: 5, channels: 50}"], "conv5"),
        (["model.layers.conv1.groups=2"], "model.layers.conv1.groups=2"),
        (["model.layers.conv3.groups=20"], "model.layers.conv3.groups=20"),
        (["model.layers.conv4.channels=51", "model.layers.conv4.groups=50"], "conv4.groups=50"),
    ],
)
def test_layers_that_do_not_fit_are_named(
    composed: Composed, overrides: list[str], told: str
) -> None:
    with pytest.raises((InputError, StrideEliminationError)) as caught:
        build_strided(composed(*overrides).model, LENET)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_activation_is_an_error_that_lists_the_known_ones(composed: Composed) -> None:
    with pytest.raises(InputError, match=r"model\.activation=swosh .*relu.*tanh"):
        build_strided(composed("model.activation=swosh").model, LENET)


@pytest.mark.parametrize("name", ["flatten", "conv4_relu", "pop", "forward"])
def test_any_permitted_name_of_a_layer_works_or_is_an_error_that_names_it(
    composed: Composed, name: str
) -> None:
    error = None
    try:
        model = composed(f"+model.layers.{name}={{channels: 50}}").model
        network = float64(build_strided(model, LENET))
    except InputError as caught:
        error = caught
    if error is None:
        expected = by_hand(model, network.state_dict(), images(LENET))
        torch.testing.assert_close(network(images(LENET)), expected)
    else:
        assert f"the name {name} is taken" in str(error)


# Weights


def lenets(composed: Composed) -> dict[str, nn.Module]:
    return {
        name: build_network(composed(f"model={name}").model, LENET)
        for name in ("strided", "unit_stride")
    }


def drawn(network: nn.Module, scheme: str, seed: int = 0) -> dict[str, Tensor]:
    initialise(network, scheme, torch.Generator().manual_seed(seed))
    return {name: p.detach().clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("name", ["strided", "unit_stride"])
@pytest.mark.parametrize(("scheme", "scale"), [("pytorch", 1), ("xavier", 3)])
def test_weights_are_uniform_up_to_the_bound_by_fan_in(
    composed: Composed, name: str, scheme: str, scale: int
) -> None:
    network = lenets(composed)[name]
    for parameter in network.parameters():
        nn.init.constant_(parameter, math.nan)  # whatever is not drawn stays so
    weights = drawn(network, scheme)
    large = 0
    for key, values in weights.items():
        fan_in = weights[key.replace("bias", "weight")][0].numel()
        bound = math.sqrt(scale / fan_in)
        if key.endswith("bias") and scheme == "xavier":
            assert (values == 0).all()
            continue
        assert (values.abs() <= bound).all()
        assert values.unique().numel() > 0.9 * values.numel()
        if (n := values.numel()) >= 2000:
            large += 1
            assert values.max() > 0.99 * bound
            assert values.min() < -0.99 * bound
            standard = bound / math.sqrt(3)
            assert abs(values.mean()) < 5 * standard / math.sqrt(n)
            # The deviation of a uniform sample's deviation is standard·sqrt(0.2 / n).
            assert abs(values.std() - standard) < 5 * standard * math.sqrt(0.2 / n)
    assert large >= 4


@pytest.mark.parametrize("scheme", ["pytorch", "xavier"])
def test_weights_depend_on_their_generator_alone(composed: Composed, scheme: str) -> None:
    torch.manual_seed(1)
    one = build_network(composed().model, LENET)
    torch.manual_seed(2)
    other = build_network(composed().model, LENET)
    assert not torch.equal(one[0].weight, other[0].weight)
    state = torch.get_rng_state()
    first, second = drawn(one, scheme), drawn(other, scheme)
    assert torch.equal(torch.get_rng_state(), state)  # and take nothing from torch's own
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = drawn(other, scheme, seed=1)
    weights = [name for name in first if name.endswith("weight")]
    assert not any(torch.equal(first[name], third[name]) for name in weights)


def test_layers_draw_different_weights(composed: Composed) -> None:
    weights = drawn(build_network(composed().model, LENET), "pytorch")
    scaled = [w.flatten()[:20] / w.abs().max() for n, w in weights.items() if "weight" in n]
    for index, one in enumerate(scaled):
        assert not any(torch.allclose(one, other, atol=1e-2) for other in scaled[:index])
