"""From settings to networks: the strided LeNet, its twin, and variants of both."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.runs.networks import build_network, build_strided
from experiments.settings.schema import ACTIVATIONS, LayerConfig, ModelConfig
from stridenet import eliminate_stride
from stridenet.errors import InputError
from tests.experiments.lenets import LENET, Composed, images

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
    "activations by layer": (
        ["+model.layers.conv2.activation=identity", "+model.layers.conv3.activation=tanh",
         "+model.layers.fc2.activation=sigmoid"],
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
    """Return it in float64, with weights whose layers neither die nor grow."""
    network.double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        bound = math.sqrt(3 / parameter[0].numel())
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return network


def by_hand(model: ModelConfig, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the settings mean, with nothing but torch's functions."""
    last = list(model.layers)[-1]
    for name, layer in model.layers.items():
        weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        assert (bias is not None) == layer.bias
        if layer.kind == "fc":
            x = F.linear(x.flatten(1), weight, bias)
        else:
            x = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        activation = layer.activation or ("identity" if name == last else model.activation)
        x = x if activation == "identity" else getattr(torch, activation)(x)
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


@pytest.mark.sample(5)
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


@pytest.mark.sample(5)
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
        "a": LayerConfig("conv", 3, [3, 3], [1, 1], [1, 1], [0, 0]),
        "b": LayerConfig("conv", 4, [2, 2], [2, 2], [1, 1], [1, 1]),
        "c": LayerConfig("fc", 10, [1, 1], [1, 1], [1, 1], [0, 0]),
    }
    model = ModelConfig(eliminate_stride=True, activation=activation, layers=layers)
    strided = float64(build_strided(model, (1, 8, 9)))
    twin = build_network(model, (1, 8, 9)).double()
    twin.load_state_dict(eliminate_stride(strided, (1, 8, 9)).state_dict())
    x = images((1, 8, 9))
    scores = twin(x)
    torch.testing.assert_close(scores, strided(x), rtol=1e-11, atol=1e-12)
    linear = by_hand(replace(model, activation="identity"), strided.state_dict(), x)
    assert torch.allclose(scores, linear) == (activation == "identity")


def test_without_the_flag_the_network_stays_strided(composed: Composed) -> None:
    network = build_network(composed().model, LENET)
    strides = {m.stride for m in network.modules() if isinstance(m, nn.Conv2d)}
    assert strides == {(1, 1), (2, 2)}


# Pooling


def lenet_with_pooling() -> nn.Sequential:
    """LeNet before its pooling layers became strided convolutions."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def test_with_pooling_the_network_is_lenet_as_it_was(composed: Composed) -> None:
    network = float64(build_network(composed("model=pooling").model, LENET))
    assert [name for name, _ in network.named_children()] == [
        "conv1", "conv1_relu", "conv2", "conv3", "conv3_relu", "conv4",
        "flatten", "fc1", "fc1_relu", "fc2",
    ]  # fmt: skip
    expected = lenet_with_pooling().double()
    assert [type(module) for module in network] == [type(module) for module in expected]
    weights = network.state_dict().values()
    expected.load_state_dict(dict(zip(expected.state_dict(), weights, strict=True)))
    x = images(LENET)
    assert torch.equal(network(x), expected(x))
    assert network(x).std() > 1e-3
    sizes = []
    for module in network:
        x = module(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [
        (20, 24, 24), (20, 24, 24), (20, 12, 12), (50, 8, 8), (50, 8, 8), (50, 4, 4),
        (800,), (500,), (500,), (10,),
    ]  # fmt: skip


def test_pooling_has_the_window_stride_padding_and_dilation_of_its_convolution(
    composed: Composed,
) -> None:
    settings = {"kernel": [3, 4], "stride": [1, 3], "padding": [1, 2], "dilation": [2, 1]}
    given = [f"model.layers.conv2.{key}={value}" for key, value in settings.items()]
    network = build_network(composed("model=pooling", *given).model, LENET)
    x = torch.randn(2, 20, 24, 24, generator=torch.Generator().manual_seed(0))
    expected = F.max_pool2d(x, (3, 4), (1, 3), (1, 2), (2, 1))
    assert expected.shape[2:] == (22, 9)
    assert torch.equal(network.conv2(x), expected)


def test_no_activation_follows_pooling_but_one_follows_every_other_layer(
    composed: Composed,
) -> None:
    chosen = ("model=pooling", "model.activation=tanh", "model.layers.conv1.stride=1")
    added = ("model.layers.conv4.stride=1", "+model.layers.conv5={channels: 50, stride: [2, 1]}")
    network = build_network(composed(*chosen, *added).model, LENET)
    order = [type(module).__name__ for module in network]
    assert order == [
        "Conv2d", "Tanh", "MaxPool2d", "Conv2d", "Tanh", "Conv2d", "Tanh", "MaxPool2d",
        "Flatten", "Linear", "Tanh", "Linear",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["model.layers.conv2.channels=21"],
            "model.layers.conv2.channels=21: pooling in its place keeps the 20 channels",
        ),
        (
            ["model.layers.conv2.kernel=3", "model.layers.conv2.padding=[1,2]"],
            "model.layers.conv2.padding=[1, 2]: pooling in its place takes at most half its kernel "
            "[3, 3]",
        ),
        (["model.layers.conv2.kernel=30"], "model.layers.conv2: its window of 30x30"),
        (["model.layers.conv3.kernel=13"], "conv3"),
    ],
)
def test_pooling_that_does_not_fit_is_an_error_that_names_the_layer(
    composed: Composed, overrides: list[str], told: str
) -> None:
    model = composed("model=pooling", *overrides).model
    with pytest.raises(InputError) as caught:
        build_network(model, LENET)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


# Mistakes in layers


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.layers.conv1.kernel=29"], ("conv1", "29x29", "28x28")),
        (["model.layers.conv1.kernel=[3,29]"], ("conv1", "3x29", "28x28")),
        (["model.layers.conv3.kernel=13"], ("conv3", "13x13", "12x12")),
        (["model.layers.conv3.dilation=3"], ("conv3", "13x13", "12x12")),
        (["model.layers.conv2.stride=5"], ("conv4", "2x2", "1x1")),
        (
            ["model.layers.conv2.stride=30", "model.layers.conv3.kernel=2"],
            ("conv3", "2x2", "1x1"),
        ),
        (
            ["model.layers.conv3.kernel=17", "model.layers.conv3.padding=[2,1]"],
            ("conv3", "17x17", "16x14"),
        ),
        (["+model.layers.conv5={kernel: 5, channels: 50}"], ("conv5", "5x5", "4x4")),
        (["model.layers.conv1.groups=2"], "model.layers.conv1.groups=2"),
        (["model.layers.conv3.groups=20"], "model.layers.conv3.groups=20"),
        (["model.layers.conv4.channels=51", "model.layers.conv4.groups=50"], "conv4.groups=50"),
    ],
)
def test_layers_that_do_not_fit_are_named(
    composed: Composed, overrides: list[str], told: str | tuple[str, str, str]
) -> None:
    with pytest.raises(InputError) as caught:
        build_strided(composed(*overrides).model, LENET)
    message = str(caught.value)
    if isinstance(told, tuple):
        layer, window, size = told
        told = f"model.layers.{layer}: its window of {window} (kernel, dilated) is larger than its map "
        assert f"of {size} (with padding)" in message
        assert "data.image_size=[28, 28]" in message
    assert told in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        (["model.layers.conv1.kernel=28"], 1),  # the whole image is seen at once
        (["model.layers.conv4.stride=9"], 1),
        (["model.layers.conv3.padding=4"], 8),
        (["model.layers.conv3.kernel=3", "model.layers.conv3.dilation=3"], 3),
    ],
)
def test_layers_that_just_fit_are_built_and_run(
    composed: Composed, overrides: list[str], size: int
) -> None:
    alone = ["~model.layers.conv2", "~model.layers.conv3", "~model.layers.conv4"]
    model = composed(*overrides, *(alone if "conv1" in overrides[0] else [])).model
    network = build_strided(model, LENET)
    assert network.double()(images(LENET)).shape[1:] == (10,)
    last = list(model.layers.values())[-3].channels
    assert network.fc1.in_features == last * size**2


def test_a_twin_that_is_too_large_is_an_error_in_the_words_of_the_settings(
    composed: Composed,
) -> None:
    strides = [f"model.layers.conv{n}.stride=8" for n in (1, 2, 3)]
    padding = [f"model.layers.conv{n}.padding=8" for n in (2, 3, 4)]
    model = composed("model=unit_stride", *strides, *padding, "data.image_size=[64,64]").model
    with pytest.raises(InputError, match=r"^model\.layers: the unit-stride twin has [\d,]+ param"):
        build_network(model, (1, 64, 64))


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
