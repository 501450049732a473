"""Twins of forwards of many kinds: inputs, repeated calls, sizes, options, the model left as it was."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from stridenet import (
    StrideEliminationError,
    UnitStrideNetwork,
    eliminate_stride,
    plan_elimination,
    plan_layers,
)
from stridenet.graph.nodes import operation_type
from tests.library.small_networks import (
    SHAPES,
    WAYS,
    Small,
    TwoInputs,
    close,
    converted,
    every_way,
    images,
)
from tests.networks import Forward, randomise
from tests.state import fingerprint

# Forwards of many kinds


def test_several_inputs_and_outputs() -> None:
    model = randomise(TwoInputs())
    twin = eliminate_stride(model, TwoInputs.input_size)
    given = [images(size, 3, seed) for seed, size in enumerate(TwoInputs.input_size)]
    expected, obtained = model(*given), twin(*given)
    assert list(obtained) == ["maps", "scores"]
    assert type(obtained["maps"]) is tuple
    for one, other in zip(
        (*obtained["maps"], obtained["scores"]),
        (*expected["maps"], expected["scores"]),
        strict=True,
    ):
        assert close(one, other)
    assert [i.name for i in twin.plan.inputs] == ["x", "y"]
    with pytest.raises(StrideEliminationError, match=r"3x5x7, but .* for 3x5x6"):
        twin(given[0], images((3, 5, 7), 3))


@pytest.mark.parametrize("size", [(2, 9, 11), ((2, 9, 11),) * 3])
def test_a_size_is_wanted_for_each_input(size: tuple) -> None:
    with pytest.raises(
        StrideEliminationError, match=r"inputs \['x', 'y'\], but input_size gives [13] size"
    ):
        eliminate_stride(TwoInputs(), size)


def test_a_module_that_is_called_at_several_places_becomes_one_for_each() -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model.conv(F.relu(model.conv(F.relu(model.conv(x)))))

    model = randomise(Forward(forward, conv=nn.Conv2d(2, 2, 3, 2, 1)))
    twin, x = eliminate_stride(model, (2, 23, 17)), images((2, 23, 17))
    assert close(twin(x), model(x))
    names = [layer.name for layer in twin.plan.layers if layer.operation == "Conv2d"]
    assert names == ["conv", "conv_1", "conv_2"]
    modules = [twin.network.get_submodule(name) for name in names]
    assert len({id(module) for module in modules}) == 3
    strided, unit_stride = twin.plan.parameters
    assert strided == sum(p.numel() for p in model.parameters())
    assert unit_stride == sum(p.numel() for p in twin.parameters())


def test_a_parametrized_weight_is_taken_as_it_is_now() -> None:
    conv = parametrizations.weight_norm(nn.Conv2d(2, 3, 3, 2, 1))
    model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(3, 2, 2, 2)).double()
    twin, x = eliminate_stride(model, (2, 11, 11)), images((2, 11, 11))
    before = model(x)
    assert close(twin(x), before)
    assert not any("parametrizations" in name for name, _ in twin.named_parameters())
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(2)
    assert not close(model(x), before, 1e-3)
    assert close(twin(x), before)


class Optional(nn.Module):
    """A forward with arguments that have defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, 2, 1)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, flat: bool = True
    ) -> Tensor:
        x = self.conv(x) * scale
        if mask is not None:
            x = x * mask
        return x.flatten(1) if flat else x


def test_optional_arguments_have_their_defaults() -> None:
    model = randomise(Optional())
    twin, x = eliminate_stride(model, (2, 9, 7)), images((2, 9, 7))
    assert close(twin(x), model(x))


@pytest.mark.parametrize("name", SHAPES)
def test_arithmetic_with_sizes(name: str) -> None:
    model = randomise(Forward(SHAPES[name], conv=nn.Conv2d(2, 3, 3, 2, 1)))
    twin = eliminate_stride(model, (2, 9, 8))
    for number in (1, 3):
        x = images((2, 9, 8), number)
        assert close(twin(x), model(x))


def test_tensors_that_forward_makes_are_not_left_in_the_model() -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        mean = torch.tensor([0.4, 0.5], dtype=torch.float64).view(1, 2, 1, 1)
        return model.conv((x - mean) / torch.full((2, 1, 1), 0.25, dtype=torch.float64))

    model = randomise(Forward(forward, conv=nn.Conv2d(2, 3, 3, 2, 1)))
    before = fingerprint(model)
    twin, x = eliminate_stride(model, (2, 9, 7)), images((2, 9, 7))
    assert fingerprint(model) == before
    assert close(twin(x), model(x))


@every_way
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(options: dict, training: bool) -> None:
    model = randomise(Small()).train(training)
    model.gate.train(not training)
    before, state = fingerprint(model), torch.get_rng_state()
    twin = eliminate_stride(model, Small.input_size, **options)
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    twin(images(Small.input_size))
    assert fingerprint(model) == before
    pointers = [
        {t.untyped_storage().data_ptr() for t in itertools.chain(n.parameters(), n.buffers())}
        for n in (model, twin)
    ]
    assert pointers[0].isdisjoint(pointers[1])


@pytest.mark.parametrize("layer", [nn.GroupNorm(1, 2), nn.PReLU(2), nn.PReLU()])
def test_layers_over_pixels_are_copies_too(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), layer, nn.Conv2d(2, 2, 2, 2), layer).double()
    twin, x = eliminate_stride(model, (1, 5, 6)), images((1, 5, 6))
    expected = twin(x)
    assert close(expected, model(x))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), expected)


# Options


def converted_layers(twin: UnitStrideNetwork) -> list[str]:
    return [layer.name for layer in twin.plan.layers if layer.strided]


def test_pooling_loses_its_stride_too() -> None:
    assert converted_layers(eliminate_stride(Small(), Small.input_size)) == list(Small.strided)


def test_the_error_of_a_twin_too_large_has_its_size() -> None:
    plan = plan_elimination(Small(), Small.input_size)
    twin = eliminate_stride(Small(), Small.input_size, max_parameters=plan.parameters[1])
    total = sum(p.numel() for p in twin.parameters())
    assert plan.parameters == (sum(p.numel() for p in Small().parameters()), total)
    message = (
        rf"{total:,} parameters, {plan.parameters[0]:,} before.*max_parameters={total - 1:,}; "
        r"convert_layers\(model\) needs far fewer"
    )
    with pytest.raises(StrideEliminationError, match=message):
        eliminate_stride(Small(), Small.input_size, max_parameters=total - 1)
    assert eliminate_stride(Small(), Small.input_size, max_parameters=None).plan == plan
    assert plan_layers(Small()).parameters[1] < total / 4


@pytest.mark.parametrize(("given", "factor"), [(1, (8, 8)), (2, (16, 16)), ((3, 1), (24, 8))])
def test_factors_of_each_axis(given: Any, factor: tuple) -> None:
    model, twin, x = converted({"output_factor": given})
    assert twin.plan.input.factor == factor
    assert close(twin(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_norm": "none"}, r"batch_norm='none': it is one of \('shared', 'per_phase'\)"),
        ({"output_factor": 0}, "output_factor=0: give a positive number"),
        ({"output_factor": (2, 1.5)}, r"output_factor=\(2, 1.5\): give a positive number"),
        ({"output_factor": ()}, r"output_factor=\(\): give a positive number"),
        ({"output_factor": (2,)}, r"output_factor=\(2,\) has no number for axis 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    model = Small()
    before = fingerprint(model)
    for convert in (plan_elimination, eliminate_stride):
        with pytest.raises(StrideEliminationError, match=message):
            convert(model, Small.input_size, **options)
    assert fingerprint(model) == before


@pytest.mark.parametrize("size", [(3, 21, 17), (3, 22, 18), (2, 21, 18)])
@every_way
def test_images_of_another_size_are_refused(options: dict, size: tuple) -> None:
    _, twin, _ = converted(options)
    with pytest.raises(StrideEliminationError, match=rf"{size[0]}x{size[1]}x{size[2]}, .*3x21x18"):
        twin(images(size))


def test_the_model_is_left_as_it_was_also_by_a_refusal() -> None:
    model = nn.Sequential(randomise(Small()), nn.Conv1d(5, 2, 3))
    before = fingerprint(model)
    for options in WAYS.values():
        with pytest.raises(StrideEliminationError, match=r"1 \(Conv1d\)"):
            eliminate_stride(model, Small.input_size, **options)
    assert fingerprint(model) == before


# Training


def test_a_pass_in_training_is_the_model_s() -> None:
    """Results, gradients of the images and of what both have, and statistics, for two batches."""
    model = randomise(Small()).train()
    model.drop.eval()
    twin = eliminate_stride(model, Small.input_size)
    for seed in (1, 2):
        gradients = []
        for network in (model, twin):
            x = images(Small.input_size, 4, seed).requires_grad_()
            network.zero_grad()
            result = network(x)
            (
                result * torch.arange(1.0, result.numel() + 1).view(result.shape).cos()
            ).sum().backward()
            gradients.append((result, x.grad))
        for one, other in zip(*gradients, strict=True):
            assert close(one, other, 1e-10)
        for key, buffer in model.named_buffers():
            assert close(twin.network.get_buffer(key), buffer)
        for key in ("bn1.weight", "bn2.bias", "bn3.weight", "fc.weight"):
            found = twin.network.get_parameter(key).grad
            assert close(found, model.get_parameter(key).grad, 1e-10)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in twin.parameters())
    assert close(twin.eval()(x), model.eval()(x))


def test_a_twin_learns() -> None:
    """A few steps of gradient descent from the model's own function."""
    _, twin, x = converted({})
    twin.train()
    for module in twin.modules():
        if isinstance(module, nn.Dropout):
            module.eval()  # its draws move the loss more than a step does
    optimiser = torch.optim.SGD(twin.parameters(), 0.01)
    labels = torch.tensor([1, 4])
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        losses.append(F.cross_entropy(twin(x), labels))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]


def test_layers_are_torch_s_own_or_say_what_they_do() -> None:
    _, twin, _ = converted({})
    for name in ("conv1", "conv2", "conv3", "gate.down", "fc"):
        module = twin.network.get_submodule(name)
        found = module[-1] if isinstance(module, nn.Sequential) else module
        assert operation_type(found) is type(Small().get_submodule(name))
        assert getattr(found, "stride", (1, 1)) == (1, 1)
    assert "SpaceToDepth(input_size=(3, 21, 18)" in repr(twin)
