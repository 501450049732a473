"""What comes out is ordinary: the twin of a network with branches is a module like any other.

It can be saved, copied, cast, compiled, exported and trained; and the model it was made from is left
alone. On a small residual network with every kind of merge. What convert_layers makes of that network
is in test_convert_networks.py.
"""

import copy
import io
import itertools
import math
import pickle
import shutil
from collections.abc import Callable
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

WAYS = {"shared": {}, "per phase": {"batch_norm": "per_phase"}}
every_way = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down = nn.Conv2d(channels, 2, 1)
        self.up = nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(self.pool(x)))))


class Small(nn.Module):
    """Maps 21x18, 11x9, 6x5, 3x3: ragged wherever they are rearranged as a whole."""

    input_size = (3, 21, 18)
    strided = ("conv1", "pool", "conv3", "shortcut")

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.gate = Gate(4)
        self.conv3 = nn.Conv2d(4, 3, 3, 2, 1)
        self.shortcut = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.bn3 = nn.BatchNorm2d(7)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.relu(x + self.gate(self.bn2(self.conv2(x))))
        x = self.bn3(torch.cat([self.conv3(x), self.shortcut(x)], dim=1))
        return self.fc(self.drop(x.mean((2, 3))))


class Forward(nn.Module):
    """A forward that is the given function of the model and its inputs, with the given layers."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and evaluation mode, with weights and statistics as of a trained network."""
    generator = torch.Generator().manual_seed(seed)
    network.double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
            parameter /= math.sqrt(parameter[0].numel())
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(generator=generator)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return network


def images(input_size: tuple, number: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, *input_size, generator=generator, dtype=torch.float64)


def close(obtained: Tensor, expected: Tensor, error: float = 1e-12) -> bool:
    return obtained.shape == expected.shape and bool((obtained - expected).abs().max() < error)


def converted(options: dict, seed: int = 0) -> tuple[nn.Module, UnitStrideNetwork, Tensor]:
    model = randomise(Small(), seed)
    return model, eliminate_stride(model, Small.input_size, **options), images(Small.input_size)


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


# Forwards of many kinds


class TwoInputs(nn.Module):
    """Two maps in, of one rate once the first is halved; results in a dict with a tuple."""

    input_size = ((2, 9, 11), (3, 5, 6))

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, 2, 1)
        self.second = nn.Conv2d(6, 4, 3, 2, 1)

    def forward(self, x: Tensor, y: Tensor) -> dict:
        x = F.relu(self.first(x))
        z = self.second(torch.cat((x, y), 1))
        return {"maps": (x, z), "scores": z.mean((2, 3))}


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


SHAPES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "view by the size of the batch": lambda m, x: m.conv(x).view(x.size(0), -1),
    "view by the shape": lambda m, x: m.conv(x).view(x.shape[0], 3 * 5 * 4),
    "flatten by a product": lambda m, x: (
        lambda y: y.reshape(-1, y.shape[1] * y.shape[2] * y.shape[3])
    )(m.conv(x)),
    "half of the map": lambda m, x: m.conv(x)[:, :, : x.shape[2] // 2, 1 : x.size(3) // 2],
    "channels": lambda m, x: m.conv(x)[:, : x.shape[1]],
    "a size unpacked": lambda m, x: (lambda n, c, h, w: m.conv(x) * (h * w) / c)(*x.shape),
    "a branch on the size": lambda m, x: m.conv(x) if x.shape[-1] > 4 else x,
    "interpolated to a size": lambda m, x: F.interpolate(
        m.conv(x), size=[2 * n for n in m.conv(x).shape[2:]]
    ),
    "mean over the number of positions": lambda m, x: (
        m.conv(x).sum((2, 3)) / math.prod(x.shape[2:])
    ),
    "number of dimensions": lambda m, x: m.conv(x).flatten(x.dim() - 3),
}


@pytest.mark.parametrize("name", SHAPES)
def test_arithmetic_with_sizes(name: str) -> None:
    model = randomise(Forward(SHAPES[name], conv=nn.Conv2d(2, 3, 3, 2, 1)))
    twin = eliminate_stride(model, (2, 9, 8))
    for number in (1, 3):
        x = images((2, 9, 8), number)
        assert close(twin(x), model(x))


def fingerprint(network: nn.Module) -> list:
    """Every tensor's identity, version and bytes, every module's attributes, flags and hooks."""
    state = itertools.chain(network.named_parameters(), network.named_buffers())
    found: list = [
        (name, id(t), t._version, t.requires_grad, t.detach().numpy().tobytes())
        for name, t in state
    ]
    for name, module in network.named_modules():
        own = {k: list(v) if isinstance(v, dict) else v for k, v in vars(module).items()}
        found.append((name, id(module), own))
    return found


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
        ({"output_factor": 0}, "output_factor=0: a positive number"),
        ({"output_factor": (2, 1.5)}, r"output_factor=\(2, 1.5\): a positive number"),
        ({"output_factor": ()}, r"output_factor=\(\): a positive number"),
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
