"""A twin's parameters tied, masked or free: what is one weight, and what training makes of it.

The oracle of what belongs together is the twin of a network whose weights are all different numbers:
equal numbers in it are copies of one weight, and its zeros are structural.
"""

import contextlib
import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from experiments.runs.training import Examples, TwinTraining, train
from experiments.settings.schema import RecipeConfig
from stridenet import (
    StrideEliminationError,
    UnitStrideNetwork,
    convert_layers,
    degrees_of_freedom,
    distance_from_tied,
    eliminate_stride,
    export_onnx,
    fold_back,
    plan_elimination,
    share,
    verify,
)
from stridenet.by_layer.modules import is_converted
from stridenet.phases import filter_entries
from stridenet.sharing import (
    Origin,
    gradient_ratios,
    number_of_copies,
    origins,
    plain_name,
    plain_state,
)
from stridenet.zoo import lenet, resnet20

COPIES = {
    "conv1": 16,
    "conv2": 4,
    "conv3": 4,
    "conv4": 1,
}  # of each weight of the paper's network
RATE, MOMENTUM, DECAY = 0.01, 0.9, 0.01


class Residual(nn.Module):
    """A branch of stride 2 beside another, BatchNorm, PReLU, groups, and a convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.prelu = nn.PReLU(4)
        self.down = nn.Conv2d(4, 6, 3, 2, 1)
        self.short = nn.Conv2d(4, 6, 1, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.prelu(self.again(self.again(x)))
        x = F.relu(self.down(x) + self.short(x))
        return self.head(x.mean((2, 3)))


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1)
    )


def of_one_axis() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 3, 5, 3, 2, dilation=2), nn.Tanh(), nn.Conv1d(3, 2, 3, 2))


def of_three_axes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 2, 3, (1, 2, 3), padding=1), nn.ReLU(), nn.Conv3d(2, 2, 2, 2))


def up_again() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3, 2, groups=2)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple, dict]] = {
    "lenet": (lenet, (1, 28, 28), {}),
    "ragged": (chain, (1, 20, 23), {}),
    "residual": (Residual, (1, 11, 14), {}),
    "residual per phase": (Residual, (1, 12, 12), {"batch_norm": "per_phase"}),
    "1-D": (of_one_axis, (2, 41), {}),
    "3-D": (of_three_axes, (1, 7, 9, 11), {}),
    "transposed": (up_again, (2, 9, 12), {}),
    "wide output": (of_one_axis, (2, 41), {"output_factor": 3}),
}
every_model = pytest.mark.parametrize("name", MODELS)


def numbered(make: Callable[[], nn.Module]) -> nn.Module:
    """The model with all its parameters and statistics different whole numbers, from 1 on."""
    model, first = make().double(), 1
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            last = first + tensor.numel()
            tensor.data = torch.arange(first, last, dtype=torch.float64).reshape(tensor.shape)
            first = last
    return model


def twin_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, UnitStrideNetwork]:
    make, size, options = MODELS[name]
    model = graphs.randomise(make()).to(dtype).eval()
    return model, eliminate_stride(model, size, **options)


def groups_of(name: str) -> dict[str, np.ndarray]:
    """Of each parameter of the twin: an array of its shape, equal numbers for copies, 0 for zeros."""
    make, size, options = MODELS[name]
    twin = eliminate_stride(numbered(make), size, **options)
    return {name: p.detach().numpy() for name, p in twin.network.named_parameters()}


def spread_out(twin: UnitStrideNetwork, scale: float = 0.1, seed: int = 0) -> UnitStrideNetwork:
    """A copy in which all parameters have moved a little, each by itself."""
    moved, draw = copy.deepcopy(twin), torch.Generator().manual_seed(seed)
    for parameter in moved.parameters():
        noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        parameter.data += scale * noise.to(parameter.dtype)
    return moved


def effective(twin: UnitStrideNetwork) -> dict[str, Tensor]:
    """What the layers compute with, by the names of the free twin."""
    state = {name.removeprefix("network."): t for name, t in plain_state(twin).items()}
    return {name: t for name, t in state.items() if t.is_floating_point()}


def batches(size: tuple, count: int, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield (
            torch.randn(8, *size, generator=draw, dtype=torch.float64),
            torch.randn(1, generator=draw, dtype=torch.float64),
        )


def learn(network: nn.Module, size: tuple, steps: int, optimizer: torch.optim.Optimizer) -> None:
    """Steps towards random numbers: any loss will do."""
    for images, target in batches(size, steps):

        def loss(images: Tensor = images, target: Tensor = target) -> Tensor:
            optimizer.zero_grad()
            value = (network(images) - target).square().mean()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)


# Which weights are one --------------------------------------------------------------------------------


@every_model
def test_the_origins_say_which_numbers_of_a_twin_are_copies_and_which_are_zeros(name: str) -> None:
    make, size, options = MODELS[name]
    expected = groups_of(name)
    source = {n: t.detach().numpy().ravel() for n, t in numbered(make).named_parameters()}
    found = origins(eliminate_stride(make(), size, **options))
    assert {n for n in found if n in expected} == expected.keys()
    for tensor, numbers in expected.items():
        places = found[tensor].entries.numpy()
        assert places.shape == numbers.shape
        assert ((places < 0) == (numbers == 0)).all()
        behind = source[found[tensor].source][places]
        assert (behind[places >= 0] == numbers[places >= 0]).all()


def test_of_a_convolution_the_origins_are_those_of_its_tap_maps() -> None:
    twin = eliminate_stride(lenet(), (1, 28, 28))
    found = origins(twin)
    for layer in twin.plan.layers:
        if layer.maps:
            entries = filter_entries(layer.weight_size, layer.maps)
            assert torch.equal(found[f"{layer.name}.weight"].entries, entries)
            assert found[f"{layer.name}.weight"].copies == COPIES[layer.name]
            assert found[f"{layer.name}.bias"].copies == COPIES[layer.name]


def test_degrees_of_freedom_of_the_papers_network() -> None:
    table = degrees_of_freedom(plan_elimination(lenet(), (1, 28, 28))).set_index("layer")
    assert table.sum().to_dict() == {
        "tied": 37_100,
        "masked": 124_400,
        "free": 200_080,
        "equalities": 87_300,
        "zeros": 75_680,
        "paper": 124_400,
    }
    assert table.loc["conv1"].to_dict() == {
        "tied": 500,
        "masked": 8_000,
        "free": 20_480,
        "equalities": 7_500,
        "zeros": 12_480,
        "paper": 4 * 4 * 1 * 20 * 5 * 5,
    }


@every_model
def test_degrees_of_freedom_are_what_there_is_to_count_in_the_twin(name: str) -> None:
    make, size, options = MODELS[name]
    twin = eliminate_stride(make(), size, **options)
    numbers = groups_of(name)
    table = degrees_of_freedom(twin.plan).set_index("layer")
    convolutions = [
        layer for layer, module in twin.network.named_modules() if type(module) in
        (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    ]  # fmt: skip
    assert [layer.removesuffix(".convolution") for layer in convolutions] == [*table.index]
    for layer in convolutions:
        filters, row = numbers[f"{layer}.weight"], table.loc[layer.removesuffix(".convolution")]
        assert row.free == filters.size
        assert row.masked == (filters != 0).sum()
        known = {n for other in convolutions[: convolutions.index(layer)]
                 for n in numbers[f"{other}.weight"].flat}  # fmt: skip
        assert row.tied == len({*filters.flat} - {0} - known)
        assert row.zeros == row.free - row.masked
        assert row.equalities == row.masked - row.tied


def test_the_papers_formula_counts_masked_filters_of_convolutions_alone() -> None:
    table = degrees_of_freedom(plan_elimination(resnet20(), (3, 32, 32)))
    assert (table.paper == table.masked).all()
    assert (table.free > table.masked).any()
    transposed = degrees_of_freedom(plan_elimination(up_again(), (2, 9, 12)))
    assert transposed.paper.isna().tolist() == [False, True]


# Tied ⊂ masked ⊂ free ---------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("sharing", ["tied", "masked", "free"])
def test_at_copied_weights_a_twin_is_the_same_function_however_it_is_shared(
    name: str, sharing: str
) -> None:
    model, twin = twin_of(name)
    shared = share(twin, sharing)
    images = graphs.images(MODELS[name][1])[0].double()
    assert torch.equal(shared(images), twin(images))
    assert verify(model, shared).passed


@every_model
def test_a_tied_twin_has_the_strided_networks_parameters(name: str) -> None:
    model, twin = twin_of(name)
    tied = share(twin, "tied")
    assert sorted(p.shape for p in tied.parameters()) == sorted(p.shape for p in model.parameters())
    for parameter in tied.parameters():  # each of them works: it reaches all its copies
        parameter.data += 0.01
    expected = copy.deepcopy(model)
    for parameter in expected.parameters():
        parameter.data += 0.01
    images = graphs.images(MODELS[name][1])[0].double()
    torch.testing.assert_close(tied(images), expected(images), rtol=1e-11, atol=1e-11)


@every_model
def test_what_is_tied_can_be_masked_and_what_is_masked_can_be_free_but_not_the_other_way(
    name: str,
) -> None:
    _, twin = twin_of(name)
    numbers = groups_of(name).values()
    has_zeros = any((tensor == 0).any() for tensor in numbers)
    has_copies = any(len(np.unique(t[t != 0])) < (t != 0).sum() for t in numbers)
    assert has_copies or name in ("residual by layer", "transposed")
    free = spread_out(twin)
    masked = share(free, "masked", project=True)
    tied = share(masked, "tied", project=True)
    images = graphs.images(MODELS[name][1])[0].double()
    for narrow, wide in ((tied, "masked"), (tied, "free"), (masked, "free"), (tied, "tied")):
        wider = share(narrow, wide)
        assert torch.equal(wider(images), narrow(images))
        assert effective(wider).keys() == effective(narrow).keys()
        assert all(torch.equal(t, effective(narrow)[n]) for n, t in effective(wider).items())
    if has_copies:
        with pytest.raises(StrideEliminationError, match=r"is not tied: .* project=True takes"):
            share(masked, "tied")
    if has_zeros:
        with pytest.raises(StrideEliminationError, match=r"is not masked: .* project=True takes"):
            share(free, "masked")


def twins(network: nn.Module, size: tuple) -> Iterator[nn.Module]:
    """Both kinds: layer by layer, and as a whole unless the strides do not agree."""
    same = convert_layers(network, pooling=True, check=False)
    if is_converted(same):  # there is a stride at all
        yield same
    with contextlib.suppress(StrideEliminationError):
        yield eliminate_stride(network, size, check=False)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@settings(max_examples=30)
@given(graphs.networks())
def test_the_twin_of_a_random_network_is_the_same_however_it_is_shared(example: tuple) -> None:
    network, size = example
    images = graphs.images(size)
    for twin in twins(network, size):
        expected = tree_leaves(twin(*(x.clone() for x in images)))
        for sharing in ("tied", "masked"):
            obtained = tree_leaves(share(twin, sharing)(*(x.clone() for x in images)))
            assert all(torch.equal(a, b) for a, b in zip(obtained, expected, strict=True))
        parameters = (p.numel() for p in fold_back(twin).parameters())
        assert sum(p.numel() for p in share(twin, "tied").parameters()) == sum(parameters)


def test_a_layer_that_is_called_twice_is_tied_as_one() -> None:
    _, twin = twin_of("residual")
    tied = share(spread_out(twin), "tied", project=True)
    named = dict(tied.network.named_parameters(remove_duplicate=False))
    first, second = (
        named[n] for n in named if n.startswith("again") and n.endswith("weight.original")
    )
    assert first is second
    means = dict(fold_back(spread_out(twin)).named_parameters())  # over the copies of both
    torch.testing.assert_close(first, means["again.weight"])
    apart = copy.deepcopy(twin)
    for name, parameter in apart.network.named_parameters():
        parameter.data += name.startswith("again_1") and name.endswith("bias")
    with pytest.raises(StrideEliminationError, match=r"again.*bias is not tied"):
        share(apart, "tied")


def test_layers_can_be_shared_each_in_its_own_way() -> None:
    _, twin = twin_of("lenet")
    shared = share(twin, {"conv1": "tied", "conv3": "masked"})
    sizes = {n: p.numel() for n, p in shared.network.named_parameters()}
    assert sizes["conv1.parametrizations.weight.original"] == 500
    assert sizes["conv1.parametrizations.bias.original"] == 20
    assert sizes["conv3.parametrizations.weight.original"] == 144_000
    assert sizes["conv2.weight"] == 25_600
    assert isinstance(shared.network.conv1, nn.Conv2d)


def test_of_no_layer_named_all_are_free() -> None:
    _, twin = twin_of("lenet")
    assert list(share(twin, {}).state_dict()) == list(twin.state_dict())


def test_whole_numbers_are_kept_as_they_are() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, 2)
            self.places = nn.Parameter(torch.tensor([3, 1]), requires_grad=False)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(images).flatten(1)[:, self.places]

    tied = share(eliminate_stride(Chosen(), (1, 9, 9)), "tied")
    assert {*number_of_copies(tied).values()} == {1}
    assert torch.equal(fold_back(tied).places, torch.tensor([3, 1]))  # type: ignore[arg-type]


def test_sharing_leaves_the_twin_alone_and_keeps_what_it_is_not_about() -> None:
    model, _ = twin_of("lenet", torch.float32)
    model.conv1.weight.requires_grad_(False)  # type: ignore[union-attr]
    twin = eliminate_stride(model.train(), (1, 28, 28))
    before = copy.deepcopy(twin.state_dict())
    for sharing in ("tied", "masked"):
        shared = share(twin, sharing)
        frozen = [n for n, p in shared.network.named_parameters() if not p.requires_grad]
        assert frozen == ["conv1.parametrizations.weight.original"]
        assert {p.dtype for p in shared.parameters()} == {torch.float32}
        assert shared.training
        assert [n for n, p in share(shared, "free").network.named_parameters()
                if not p.requires_grad] == ["conv1.weight"]  # fmt: skip
    assert all(torch.equal(t, twin.state_dict()[n]) for n, t in before.items())


def test_a_shared_twin_can_be_copied_saved_and_exported(tmp_path: Path) -> None:
    _, twin = twin_of("residual", torch.float32)
    images = graphs.images((1, 11, 14))[0].float()
    for sharing in ("tied", "masked"):
        shared = share(spread_out(twin), sharing, project=True).eval()
        other = share(twin, sharing).eval()
        other.load_state_dict(shared.state_dict())
        assert torch.equal(other(images), shared(images))
        assert torch.equal(copy.deepcopy(shared)(images), shared(images))
        refolded = fold_back(pickle.loads(pickle.dumps(share(shared, "free"))))
        assert all(
            torch.equal(t, fold_back(shared).state_dict()[n])
            for n, t in refolded.state_dict().items()
        )
        plain = eliminate_stride(graphs.randomise(Residual(), 3).float(), (1, 11, 14)).eval()
        plain.load_state_dict(plain_state(shared))
        assert torch.equal(plain(images), shared(images))
        export_onnx(shared, tmp_path / f"{sharing}.onnx")


# Training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet", "residual", "transposed", "3-D"])
def test_a_tied_twin_trains_step_for_step_like_the_strided_network(name: str) -> None:
    model, twin = twin_of(name)
    tied = share(twin, "tied")
    begun = {n: p.detach().clone() for n, p in model.named_parameters()}
    for network in (model, tied):
        network.train()
        sgd = torch.optim.SGD(network.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
        learn(network, MODELS[name][1], 50, sgd)
    folded = dict(fold_back(tied).named_parameters())
    for parameter, expected in model.named_parameters():
        assert (expected - begun[parameter]).abs().max() > 1e-3
        torch.testing.assert_close(folded[parameter], expected, rtol=0, atol=1e-10)


def optimizers() -> list[type[torch.optim.Optimizer]]:
    """All of torch.optim but those that take no dense tensors of four dimensions."""
    kinds = [kind for kind in vars(torch.optim).values() if isinstance(kind, type)]
    return [
        kind
        for kind in kinds
        if issubclass(kind, torch.optim.Optimizer)
        and kind.__name__ not in ("Optimizer", "SparseAdam", "Muon")
    ]


def test_sparse_adam_and_muon_take_no_dense_filters() -> None:
    weight = nn.Parameter(torch.ones(2, 2, 2, 2))
    if hasattr(torch.optim, "Muon"):  # not before torch 2.9
        with pytest.raises(ValueError, match="2D"):
            torch.optim.Muon([weight])
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RuntimeError, match="does not support dense"):
        torch.optim.SparseAdam([weight]).step()


@pytest.mark.parametrize("kind", optimizers(), ids=lambda kind: kind.__name__)
def test_masked_keeps_its_zeros_under_every_optimizer(kind: type[torch.optim.Optimizer]) -> None:
    _, twin = twin_of("residual")
    masked = share(twin, "masked").train()
    makes: Any = kind
    options = {} if kind.__name__ in ("LBFGS", "Rprop") else {"weight_decay": DECAY}
    if kind.__name__ == "SGD":
        options |= {"momentum": MOMENTUM, "nesterov": True}
    before = effective(masked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn(masked, (1, 11, 14), 5, makes(masked.parameters(), lr=0.01, **options))
    after, zeros = effective(masked), 0
    for name, numbers in groups_of("residual").items():
        structural = torch.from_numpy(numbers == 0)
        assert (after[name][structural] == 0).all()
        moved = (after[name] != before[name])[~structural]
        assert moved.double().mean() > 0.5  # it does learn
        zeros += int(structural.sum())
    assert zeros > 100


def first_steps(
    rate_of_twin: Callable[[str], float],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """How far LeNet's parameters go in one step of plain SGD: strided, and the free twin's, of which
    copies are averaged: the projection on the tied subspace."""
    model, twin = twin_of("lenet")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    learn(model, (1, 28, 28), 1, torch.optim.SGD(model.parameters(), RATE))
    strided = {n: p.detach() - before[n] for n, p in model.named_parameters()}
    groups = [
        {"params": [p], "lr": rate_of_twin(n.partition(".")[0])}
        for n, p in twin.network.named_parameters()
    ]
    start = {n: p.detach().clone() for n, p in twin.network.named_parameters()}
    learn(twin, (1, 28, 28), 1, torch.optim.SGD(groups, RATE))
    numbers, projected = groups_of("lenet"), {}
    for name, parameter in twin.network.named_parameters():
        step = (parameter.detach() - start[name]).numpy()
        number = numbers[name].astype(int).ravel()
        total, many = np.bincount(number, step.ravel()), np.bincount(number)
        there = (many > 0) & (np.arange(len(many)) > 0)
        projected[name] = torch.from_numpy(total[there] / many[there]).reshape(before[name].shape)
    return strided, projected


def test_the_free_twins_first_step_is_the_strided_one_over_the_number_of_copies() -> None:
    strided, projected = first_steps(lambda layer: RATE)
    for name, step in strided.items():
        number = COPIES.get(name.partition(".")[0], 1)
        assert step.abs().max() > 1e-6
        torch.testing.assert_close(projected[name], step / number, rtol=1e-9, atol=1e-15)


def test_with_rates_by_copies_the_free_twins_first_step_is_the_strided_one() -> None:
    strided, projected = first_steps(lambda layer: RATE * COPIES.get(layer, 1))
    for name, step in strided.items():
        torch.testing.assert_close(projected[name], step, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("sharing", ["masked", "free"])
def test_rate_by_copies_takes_the_strided_step_with_weight_decay_too(sharing: str) -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(8, 1, 28, 28, generator=draw, dtype=torch.float64)
    labels = torch.randint(10, (8,), generator=draw)
    recipe = RecipeConfig("one step", steps=1, batch_size=8, learning_rate=RATE, weight_decay=0.3)
    model, twin = twin_of("lenet")
    shared = share(twin, sharing)
    for network, inputs, many in (
        (model, images, None),
        (shared.network, shared.rearrange(images), number_of_copies(shared)),
    ):
        examples = {"training": Examples(inputs, labels, torch.device("cpu"))}
        train(
            network, examples, recipe, 0, torch.device("cpu"), None, twin=TwinTraining(many or {})
        )
    folded = dict(fold_back(shared).named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(folded[name], parameter, rtol=1e-9, atol=1e-13)


# Gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["masked", "free"])
@pytest.mark.parametrize("name", ["lenet", "transposed", "3-D"])
def test_rho_is_the_gradient_of_a_twins_filter_over_that_of_the_strided_one(
    name: str, sharing: str
) -> None:
    model, twin = twin_of(name)
    shared = share(twin, sharing)
    ((images, target),) = batches(MODELS[name][1], 1)
    for network in (model, shared):
        (network(images) - target).square().mean().backward()
    found = origins(twin)
    own = {plain_name(n): p.grad for n, p in shared.network.named_parameters()}
    ratios = gradient_ratios(shared)
    filters = {n for n, origin in found.items() if len(origin.size) > 1 and not origin.copied}
    assert ratios.keys() == filters
    for name_of, ratio in ratios.items():
        strided = model.get_parameter(found[name_of].source).grad
        assert strided is not None
        expected = own[name_of].square().sum() / strided.square().sum()
        assert ratio == pytest.approx(float(expected), rel=1e-9)
        if name == "lenet":
            assert ratio > (1 - 1e-9) / COPIES.get(name_of.partition(".")[0], 1)


def test_rho_is_one_over_the_copies_where_all_copies_have_one_gradient() -> None:
    model, twin = twin_of("lenet")
    found = origins(twin)
    for name, parameter in twin.network.named_parameters():
        parameter.grad = found[name].expand(torch.randn_like(model.get_parameter(name)))
    ratios = gradient_ratios(twin)
    for layer, copies in COPIES.items():
        assert ratios[f"{layer}.weight"] == pytest.approx(1 / copies, rel=1e-12)


def test_rho_leaves_out_what_has_no_finite_gradient_of_copies() -> None:
    _, twin = twin_of("lenet")
    assert gradient_ratios(twin) == {}
    tied = share(twin, "tied")
    ((images, _),) = batches((1, 28, 28), 1)
    tied(images).sum().backward()
    assert not any(name.startswith("conv") for name in gradient_ratios(tied))
    weights = {n: p for n, p in twin.network.named_parameters() if n.startswith("conv")}
    for parameter, value in zip(
        weights.values(), (math.inf, 1, math.nan, 1, 0, 1, 1, 1), strict=True
    ):
        parameter.grad = torch.full_like(parameter, value)
    assert gradient_ratios(twin).keys() == {"conv4.weight"}


# Folding ----------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_folding_an_unchanged_twin_gives_the_original_bit_for_bit(
    name: str, dtype: torch.dtype
) -> None:
    model, twin = twin_of(name, dtype)
    for sharing in ("free", "masked", "tied"):
        state = fold_back(share(twin, sharing)).state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
        other = graphs.randomise(MODELS[name][0](), seed=5).to(dtype).eval()
        other.load_state_dict(state)
        images = graphs.images(MODELS[name][1])[0].to(dtype)
        assert torch.equal(other(images), model(images))
        assert torch.equal(fold_back(twin)(images), model(images))


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@settings(max_examples=30)
@given(graphs.networks())
def test_folding_the_twin_of_a_random_network_gives_the_original(example: tuple) -> None:
    network, size = example
    graphs.randomise(network)
    for twin in twins(network, size):
        state, expected = fold_back(twin).state_dict(), network.state_dict()
        assert all(torch.equal(t, expected[n]) for n, t in state.items())
        assert {n for n, _ in network.named_parameters()} == {n for n in state if n in expected and
                isinstance(getattr_path(network, n), nn.Parameter)}  # fmt: skip


def getattr_path(network: nn.Module, path: str) -> Any:
    found: Any = network
    for part in path.split("."):
        found = getattr(found, part)
    return found


def test_a_folded_network_has_the_dtype_and_the_training_modes_of_its_twin() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 2, 2))
    model[1].eval()
    twin = eliminate_stride(model, (1, 10, 10)).double()
    with torch.no_grad():
        twin.network.get_submodule("0").weight.add_(1e-12)  # type: ignore[operator, union-attr]
    folded = fold_back(twin)
    assert torch.equal(folded.get_submodule("0").weight, model[0].weight.double() + 1e-12)  # type: ignore[arg-type]
    assert [folded.get_submodule(name).training for name in "012"] == [True, False, True]
    assert folded.training
    assert not any(module.training for module in fold_back(twin.eval()).modules())


def test_folding_is_least_squares_and_the_distance_its_residual_in_two_parts() -> None:
    """numpy's least squares, on the matrix whose columns are the twins of unit vectors."""
    conv = nn.Conv2d(2, 3, (3, 2), (2, 1), padding=(1, 0)).double()
    model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(3, 2, 2, 2).double())
    twin = spread_out(eliminate_stride(model, (2, 9, 8)), 0.3)

    def twin_filter(flat: np.ndarray) -> np.ndarray:
        unit = copy.deepcopy(model)
        unit[0].weight.data = torch.from_numpy(flat).reshape(conv.weight.shape)
        changed = eliminate_stride(unit, (2, 9, 8)).network.get_submodule("0.convolution")
        return np.asarray(changed.weight.detach()).ravel()

    columns = np.stack([twin_filter(unit) for unit in np.eye(conv.weight.numel())], 1)
    wanted = twin.network.get_submodule("0.convolution").weight.detach().numpy().ravel()
    solution, residual, rank, _ = np.linalg.lstsq(columns, wanted)
    assert rank == conv.weight.numel()
    folded = fold_back(twin).get_submodule("0").weight.detach().numpy().ravel()  # type: ignore[union-attr, operator]
    np.testing.assert_allclose(folded, solution, rtol=1e-12, atol=1e-12)

    distance = distance_from_tied(twin)["0.convolution.weight"]
    zeros = wanted[(columns == 0).all(1)]
    assert distance["zeros"] == pytest.approx(math.sqrt((zeros**2).sum()))
    assert distance["zeros"] ** 2 + distance["copies"] ** 2 == pytest.approx(residual.item())
    assert distance["norm"] == pytest.approx(np.linalg.norm(wanted))


def test_each_part_of_the_distance_is_of_its_own_entries() -> None:
    _, twin = twin_of("lenet")
    assert distance_from_tied(twin)["conv1.weight"]["zeros"] == 0
    assert distance_from_tied(twin)["conv1.weight"]["copies"] == 0
    numbers = torch.from_numpy(groups_of("lenet")["conv1.weight"])
    weight: Tensor = twin.network.conv1.weight  # type: ignore[union-attr, assignment]
    before = weight.detach().clone()

    weight.data = before + 2.0 * (numbers == 0)
    found = distance_from_tied(twin)
    assert found["conv1.weight"]["zeros"] == pytest.approx(2 * math.sqrt(12_480))
    assert found["conv1.weight"]["copies"] == 0
    assert found["conv3.weight"] == {**found["conv3.weight"], "zeros": 0, "copies": 0}

    weight.data = before + 2.0 * (numbers == 7)  # all copies of one weight: still a strided network
    assert distance_from_tied(twin)["conv1.weight"]["copies"] == pytest.approx(0, abs=1e-12)

    one = (numbers == 7).nonzero()[0]
    weight.data = before.clone()
    weight.data[tuple(one)] += 4.0  # one of 16 copies: 4 − 4/16 off the mean, the others 4/16
    found = distance_from_tied(twin)
    assert found["conv1.weight"]["zeros"] == 0
    assert found["conv1.weight"]["copies"] == pytest.approx(math.sqrt(3.75**2 + 15 * 0.25**2))
    folded = fold_back(twin).conv1.weight.detach().flatten()  # type: ignore[union-attr, operator]
    change = folded - twin_of("lenet")[0].state_dict()["conv1.weight"].flatten()
    assert float(change[6]) == pytest.approx(0.25)
    assert (change[torch.arange(500) != 6] == 0).all()


# What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [fold_back, origins, lambda twin: share(twin, "tied")])
def test_what_is_no_whole_twin_is_refused(act: Callable[[Any], Any]) -> None:
    _, twin = twin_of("lenet")
    with pytest.raises(
        StrideEliminationError, match="Sequential is not a twin: expected what conv"
    ):
        act(nn.Sequential(nn.Conv2d(1, 2, 3, 2)))
    with pytest.raises(
        StrideEliminationError, match=r"UnitStrideLayers is not a twin: .*\.network"
    ):
        act(twin.network)
    foreign = UnitStrideNetwork(twin.network, twin.plan)
    with pytest.raises(StrideEliminationError, match="does not know its strided network"):
        act(foreign)
    twin.rearrange = nn.Identity()
    with pytest.raises(StrideEliminationError, match="rearrangement was replaced by a Identity"):
        act(twin)
    del twin.rearrange
    with pytest.raises(StrideEliminationError, match="rearrangement was replaced by a NoneType"):
        act(twin)


def test_a_twin_whose_layers_were_exchanged_is_refused() -> None:
    _, twin = twin_of("lenet")
    twin.network.conv1 = nn.Conv2d(16, 320, 3, padding=1)
    with pytest.raises(StrideEliminationError, match=r"conv1.weight is 320x16x3x3 .* 320x16x2x2"):
        fold_back(twin)
    del twin.network.conv1
    with pytest.raises(StrideEliminationError, match=r"conv1\.weight is missing"):
        fold_back(twin)


@pytest.mark.parametrize(
    ("sharing", "message"),
    [
        ("half", r"sharing='half': it is one of \('tied', 'masked', 'free'\)"),
        (None, "sharing=None: it is one of"),
        ({"conv1": "half"}, "sharing='half' of conv1: it is one of"),
        ({"fc1": "tied"}, r"'fc1' has nothing to share: expected .*'conv1', 'conv2', 'conv3'"),
        ({"conv9": "tied"}, "'conv9' has nothing to share"),
    ],
)
def test_a_sharing_that_means_nothing_is_refused(sharing: Any, message: str) -> None:
    _, twin = twin_of("lenet")
    with pytest.raises(StrideEliminationError, match=message):
        share(twin, sharing)


def test_a_network_of_parametrized_weights_is_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3, 2)))
    twin = eliminate_stride(model, (1, 9, 9))
    with pytest.raises(StrideEliminationError, match=r"0 has parametrized weights.*remove_param"):
        fold_back(twin)


def test_without_strides_there_is_nothing_to_share() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).double()
    twin = eliminate_stride(model, (1, 9, 9))
    assert len(list(share(twin, "tied").parameters())) == 2
    assert distance_from_tied(twin) == {}
    assert degrees_of_freedom(twin.plan)[["tied", "masked", "free"]].iloc[0].tolist() == [18] * 3
    assert torch.equal(fold_back(twin).get_submodule("0").weight, model[0].weight)  # type: ignore[arg-type]


def test_an_origin_folds_nothing_where_nothing_is() -> None:
    origin = Origin("weight", torch.Size([2]), torch.tensor([0, 0, -1]))
    assert origin.fold(torch.tensor([1.0, 3.0, 5.0])).tolist() == [2.0, 0.0]
