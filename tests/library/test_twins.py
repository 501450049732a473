"""What comes out is ordinary: the twin of a network with branches is a module like any other."""

import copy
import io
import itertools
import pickle
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import nn

from stridenet import eliminate_stride
from tests.library.small_networks import Small, close, converted, every_way, images
from tests.networks import randomise


@every_way
def test_the_twin_equals_the_model(options: dict) -> None:
    model, twin, x = converted(options)
    assert close(twin(x), model(x))
    assert model(x).abs().max() > 0.1


# Saved, copied, cast


@every_way
def test_a_state_dict_makes_another_twin_the_same(options: dict) -> None:
    (_, one, x), (_, other, _) = converted(options), converted(options, seed=1)
    assert not close(one(x), other(x), 1e-3)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(one(x), other(x))


def test_a_state_dict_has_only_what_the_model_has() -> None:
    """Masks, divisors and orders of pixels follow from the sizes; they are not saved."""
    _, twin, _ = converted({})
    kinds = {key.rsplit(".", 1)[1] for key in twin.state_dict()}
    assert kinds == {key.rsplit(".", 1)[1] for key in Small().state_dict()}
    assert len(twin.state_dict()) == len(Small().state_dict())


@every_way
@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda twin: pickle.loads(pickle.dumps(twin)), id="pickle"),
    ],
)
def test_a_copy_is_equal_and_independent(copied: Callable, options: dict) -> None:
    _, twin, x = converted(options)
    expected, other = twin(x), copied(twin)
    assert torch.equal(other(x), expected)
    assert other.plan == twin.plan
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), expected)


@every_way
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_a_twin_can_be_cast(options: dict, dtype: torch.dtype, error: float) -> None:
    model, twin, x = converted(options)
    expected = model(x)
    obtained = twin.to(dtype)(x.to(dtype))
    assert obtained.dtype == dtype
    assert close(obtained.double(), expected, error)
    state = itertools.chain(twin.parameters(), twin.buffers())
    assert {t.dtype for t in state if t.is_floating_point()} == {dtype}


def owner(model: nn.Module, name: str) -> str:
    """The longest part of a twin's name that names a module of the model."""
    known = dict(model.named_modules())
    while name not in known:
        name = name.rpartition(".")[0]
    return name


@every_way
def test_flags_carry_over_module_by_module(options: dict) -> None:
    model = randomise(Small())
    for name in ("bn1", "gate.down", "drop", "conv3"):
        model.get_submodule(name).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(("conv1", "gate.down", "bn2", "fc"))
    twin = eliminate_stride(model, Small.input_size, **options).network
    seen = set()
    for name, module in twin.named_modules():
        path = owner(model, name)
        if path:
            seen.add(path)
            assert module.training == model.get_submodule(path).training, name
    assert {name for name, module in model.named_modules() if module.training} <= seen
    for name, parameter in twin.named_parameters():
        path, kind = owner(model, name.rpartition(".")[0]), name.rpartition(".")[2]
        assert parameter.requires_grad == getattr(model.get_submodule(path), kind).requires_grad, (
            name
        )
        assert parameter.is_leaf


# Compiled, exported, traced


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's own parts about each other
@every_way
def test_a_compiled_twin_computes_the_same(options: dict) -> None:
    _, twin, x = converted(options)
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), twin(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [False, True])
def test_a_twin_is_compiled_into_one_graph_also_in_training(training: bool) -> None:
    _, twin, x = converted({})
    twin.train(training).network.get_submodule("drop").eval()
    other = copy.deepcopy(twin)
    torch._dynamo.reset()
    assert close(torch.compile(other, backend="eager", fullgraph=True)(x), twin(x))
    for one, two in zip(twin.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_twin_can_be_compiled_to_machine_code() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.Conv2d(2, 1, 2, 2)
    )
    twin, x = eliminate_stride(randomise(model), (1, 9, 9)), images((1, 9, 9))
    torch._dynamo.reset()
    assert close(torch.compile(twin)(x), twin(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@every_way
def test_an_exported_twin_takes_any_number_of_images(options: dict) -> None:
    _, twin, x = converted(options)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(twin, (x,), dynamic_shapes=({0: batch},)).module()
    for number in (2, 5):
        given = images(Small.input_size, number)
        assert close(exported(given), twin(given))


@every_way
def test_a_twin_can_be_traced_like_any_network(options: dict) -> None:
    _, twin, x = converted(options)
    traced = torch.fx.symbolic_trace(twin)
    assert torch.equal(traced(x), twin(x))
    assert torch.equal(traced(x[:1]), twin(x[:1]))
