"""The weights that a network starts with: uniform, by fan-in, by their generator alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.runs.networks import build_network, draw_network, initialise
from experiments.settings.schema import LayerConfig, ModelConfig, RecipeConfig
from stridenet.sharing import fold_back, origins, plain_state
from tests.experiments.lenets import LENET, Composed, images

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


@pytest.mark.parametrize("name", ["network", "plan"])
def test_every_layer_is_drawn_whatever_its_name(name: str) -> None:
    layers = {
        "conv1": LayerConfig("conv", 3, [3, 3], [1, 1], [1, 1], [0, 0]),
        name: LayerConfig("conv", 10, [4, 4], [1, 1], [1, 1], [0, 0]),
    }
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(draw(ModelConfig(layers=layers), "free", size=(1, 6, 6)).state_dict())
    assert {f"{layer}.weight" for layer in layers} <= states[0].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# Weights of twins that share

SMALL = (1, 13, 14)


SCHEMES = {"pytorch": 1, "xavier": 3}


def small(**changes: Any) -> ModelConfig:
    """Its twin has, for SMALL images, 48 filters of 4x3x3 with 25 inputs and 16 of 48x2x2 with 108."""
    layers = {
        "conv1": LayerConfig("conv", 12, [5, 5], [1, 1], [1, 1], [0, 0]),
        "conv2": LayerConfig("conv", 16, [3, 3], [2, 2], [1, 1], [0, 0]),
        "fc1": LayerConfig("fc", 10, [1, 1], [1, 1], [1, 1], [0, 0]),
    }
    return ModelConfig(layers=layers, **changes)


def draw(
    model: ModelConfig,
    sharing: str,
    scheme: str = "pytorch",
    fan_in: str = "nonzero",
    size: tuple[int, int, int] = SMALL,
) -> nn.Module:
    """Draw it with seed 5."""
    recipe = RecipeConfig(initialisation=scheme, fan_in=fan_in)
    return draw_network(model, size, recipe, sharing, torch.Generator().manual_seed(5))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", [small(), small(eliminate_stride=True)])
def test_a_network_that_shares_nothing_is_drawn_as_ever(model: ModelConfig, scheme: str) -> None:
    before = build_network(model, SMALL)
    expected = drawn(before, scheme, seed=5)
    network = draw(model, "free", scheme)
    assert type(network) is type(before)
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_tied_twin_starts_as_the_strided_network_does(scheme: str) -> None:
    strided = draw(small(), "free", scheme)
    tied = draw(small(eliminate_stride=True), "tied", scheme)
    expected = strided.state_dict()
    folded = fold_back(tied).state_dict()
    assert folded.keys() == expected.keys()
    assert all(torch.equal(folded[name], expected[name]) for name in expected)
    numbers = [sum(p.numel() for p in network.parameters()) for network in (tied, strided)]
    assert numbers[0] == numbers[1]
    x = images(SMALL)
    torch.testing.assert_close(tied.double()(x), strided.double()(x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("fan_in", "inputs"),
    [("nonzero", {"conv1": 25, "conv2": 108}), ("filter", {"conv1": 36, "conv2": 192})],
)
def test_a_masked_twin_is_drawn_by_the_inputs_that_its_filters_have_or_by_all(
    scheme: str, fan_in: str, inputs: dict[str, int]
) -> None:
    model = small(eliminate_stride=True)
    twin = draw(model, "masked", scheme, fan_in)
    weights, free = plain_state(twin), draw(model, "free", scheme).state_dict()
    found = origins(twin)
    assert weights.keys() == free.keys()
    for layer, number in inputs.items():
        bound = math.sqrt(SCHEMES[scheme] / number)
        values, kept = weights[f"network.{layer}.weight"], found[f"{layer}.weight"].entries >= 0
        assert (values[~kept] == 0).all()
        assert (~kept).sum() > 500
        assert 0.99 * bound < values.max() <= bound
        assert -0.99 * bound > values.min() >= -bound
        assert values[kept].unique().numel() > 0.9 * kept.sum()
        biases = weights[f"network.{layer}.bias"]
        if scheme == "xavier":
            assert (biases == 0).all()
        else:
            assert 0.7 * bound < biases.abs().max() <= bound
    for name, value in weights.items():  # the free twin's draw, but for zeros and bounds
        layer = name.split(".")[1]
        all_inputs = free[f"network.{layer}.weight"][0].numel()
        scale = math.sqrt(all_inputs / inputs.get(layer, all_inputs))
        expected = found[name.removeprefix("network.")].mask(scale * free[name])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sharing", ["tied", "masked"])
def test_shared_weights_depend_on_their_generator_alone(sharing: str) -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(plain_state(draw(small(eliminate_stride=True), sharing)))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
