"""convert_layers on whole networks: a module like any other, of a model that is left as it was.

On the small residual network and the forwards of test_twins.py, which has the same of eliminate_stride.
"""

import io
import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet import StrideEliminationError, convert_layers, converted_layers
from tests.library.small_networks import SHAPES, Small, TwoInputs, close, images
from tests.networks import Forward, randomise
from tests.state import fingerprint

every_way = pytest.mark.parametrize("pooling", [False, True], ids=["convolutions", "pooling too"])


def converted(pooling: bool, seed: int = 0) -> tuple[nn.Module, nn.Module, Tensor]:
    model = randomise(Small(), seed)
    return model, convert_layers(model, pooling=pooling, check=False), images(Small.input_size)


@every_way
def test_it_equals_the_model_at_sizes_that_are_ragged(pooling: bool) -> None:
    model, same, x = converted(pooling)
    for given in (x, images((3, 22, 37), 3), images((3, 40, 16), 1)):
        assert close(same(given), model(given))
    assert model(x).abs().max() > 0.1


@every_way
def test_a_state_dict_makes_another_the_same(pooling: bool) -> None:
    (model, one, x), (_, other, _) = converted(pooling), converted(pooling, seed=1)
    assert list(one.state_dict()) == list(model.state_dict())
    assert not close(one(x), other(x), 1e-3)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(one(x), other(x))


@every_way
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_it_can_be_cast(pooling: bool, dtype: torch.dtype, error: float) -> None:
    model, same, x = converted(pooling)
    expected, obtained = model(x), same.to(dtype)(x.to(dtype))
    assert obtained.dtype == dtype
    assert close(obtained.double(), expected, error)
    state = itertools.chain(same.parameters(), same.buffers())
    assert {t.dtype for t in state if t.is_floating_point()} == {dtype}


@every_way
def test_flags_carry_over_module_by_module(pooling: bool) -> None:
    model = randomise(Small())
    for name in ("bn1", "gate.down", "drop", "conv3"):
        model.get_submodule(name).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(("conv1", "gate.down", "bn2", "fc"))
    same = convert_layers(model, pooling=pooling)
    for name, module in model.named_modules():
        assert same.get_submodule(name).training == module.training, name
    for name, parameter in model.named_parameters():
        assert same.get_parameter(name).requires_grad == parameter.requires_grad, name
        assert same.get_parameter(name).is_leaf


def test_several_inputs_and_outputs() -> None:
    model = randomise(TwoInputs())
    same = convert_layers(model)
    given = [images(size, 3, seed) for seed, size in enumerate(TwoInputs.input_size)]
    expected, obtained = model(*given), same(*given)
    assert list(obtained) == ["maps", "scores"]
    assert type(obtained["maps"]) is tuple
    for one, other in zip(
        (*obtained["maps"], obtained["scores"]),
        (*expected["maps"], expected["scores"]),
        strict=True,
    ):
        assert close(one, other)


def test_a_module_that_is_called_at_several_places_stays_one() -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model.conv(F.relu(model.conv(F.relu(model.conv(x)))))

    model = randomise(Forward(forward, conv=nn.Conv2d(2, 2, 3, 2, 1)))
    same, x = convert_layers(model), images((2, 23, 17))
    assert close(same(x), model(x))
    assert list(converted_layers(same)) == ["conv"]


@pytest.mark.parametrize("name", SHAPES)
def test_arithmetic_with_sizes(name: str) -> None:
    model = randomise(Forward(SHAPES[name], conv=nn.Conv2d(2, 3, 3, 2, 1)))
    same = convert_layers(model)
    for number in (1, 3):
        x = images((2, 9, 8), number)
        assert close(same(x), model(x))


# The model


@every_way
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(pooling: bool, training: bool) -> None:
    model = randomise(Small()).train(training)
    model.gate.train(not training)
    x = images(Small.input_size)
    before, state = fingerprint(model), torch.get_rng_state()
    for given in (None, x):
        same = convert_layers(model, pooling=pooling, example_inputs=given)
        assert fingerprint(model) == before
        assert torch.equal(torch.get_rng_state(), state)
    same(x)
    assert fingerprint(model) == before
    pointers = [
        {t.untyped_storage().data_ptr() for t in itertools.chain(n.parameters(), n.buffers())}
        for n in (model, same)
    ]
    assert pointers[0].isdisjoint(pointers[1])


def test_the_model_is_left_as_it_was_also_by_a_refusal() -> None:
    model = nn.Sequential(randomise(Small()), nn.LazyConv1d(2, 3, 2))
    before = fingerprint(model[0])
    with pytest.raises(StrideEliminationError, match=r"1 \(LazyConv1d\)"):
        convert_layers(model)
    assert fingerprint(model[0]) == before
    assert type(model[1]) is nn.LazyConv1d


# Which layers


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (1, 2), (2, 1)])
def test_no_two_numbers_of_a_parameter_are_in_one_place(
    kind: type, inputs: int, outputs: int
) -> None:
    """An expanded view of a single number could not be trained."""
    for kernel in (1, 2, 3):
        for parameter in convert_layers(kind(inputs, outputs, kernel, 2)).parameters():
            parameter.data.add_(1)


@pytest.mark.parametrize(
    "only", [["conv1"], ["pool"], ["shortcut", "conv3"], list(Small.strided), []]
)
def test_only_these_layers_are_converted(only: list[str]) -> None:
    model = randomise(Small())
    same, x = convert_layers(model, only=only), images(Small.input_size)
    assert close(same(x), model(x))
    assert sorted(converted_layers(same)) == sorted(only)
    for name in Small.strided:
        kept = type(same.get_submodule(name)) is type(model.get_submodule(name))
        assert kept == (name not in only)


@pytest.mark.parametrize("name", ["conv", "conv2", "fc", "Conv1", ""])
def test_only_wants_names_of_strided_layers(name: str) -> None:
    candidates = re.escape(str(sorted(Small.strided)))[:-2]
    with pytest.raises(StrideEliminationError, match=rf"only: '{name}' is no layer.*{candidates}"):
        convert_layers(Small(), only=["conv1", name])


def test_pooling_says_whether_pooling_loses_its_stride() -> None:
    layers = [list(converted_layers(convert_layers(Small(), pooling=p))) for p in (False, True)]
    assert layers == [["conv1", "conv3"], list(Small.strided)]


# Training


@every_way
def test_a_pass_in_training_is_the_model_s(pooling: bool) -> None:
    """Results, gradients of the images and of what both have, and statistics, for two batches."""
    model = randomise(Small()).train()
    model.drop.eval()
    same = convert_layers(model, pooling=pooling)
    unchanged = [n for n, p in model.named_parameters() if p.shape == same.get_parameter(n).shape]
    assert len(unchanged) > 10
    for seed in (1, 2):
        gradients = []
        for network in (model, same):
            x = images(Small.input_size, 4, seed).requires_grad_()
            network.zero_grad()
            result = network(x)
            wave = torch.arange(1.0, result.numel() + 1).view(result.shape).cos()
            (result * wave).sum().backward()
            gradients.append((result, x.grad))
        for one, other in zip(*gradients, strict=True):
            assert close(one, other, 1e-10)
        for key, buffer in model.named_buffers():
            assert close(same.get_buffer(key), buffer)
        for key in unchanged:
            assert close(same.get_parameter(key).grad, model.get_parameter(key).grad, 1e-10)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in same.parameters())
    assert close(same.eval()(x), model.eval()(x))
