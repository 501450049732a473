"""The twin of a chain is an ordinary module, and the model is left as it was."""

import copy
import itertools
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from stridenet import StrideEliminationError, UnitStrideNetwork, eliminate_stride, plan_elimination
from stridenet.layers import PhantomMask
from tests.library.chains import Nested, close, convolution_in, images
from tests.networks import Forward, randomise
from tests.state import fingerprint, random_states

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


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


def storages(network: nn.Module) -> set[int]:
    state = itertools.chain(network.parameters(), network.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in state}


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
