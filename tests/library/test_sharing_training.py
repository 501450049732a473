"""What training makes of tied, masked and free twins; folding a twin back into a strided network."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from experiments.runs.examples import Examples
from experiments.runs.training import TwinTraining, train
from experiments.settings.schema import RecipeConfig
from stridenet import (
    StrideEliminationError,
    UnitStrideNetwork,
    degrees_of_freedom,
    distance_from_tied,
    eliminate_stride,
    fold_back,
    share,
)
from stridenet.sharing import Origin, origins, plain_name
from stridenet.sharing_measures import gradient_ratios, number_of_copies
from tests import graphs, networks
from tests.examples import examples
from tests.library.shared_twins import (
    COPIES,
    MODELS,
    effective,
    every_model,
    groups_of,
    spread_out,
    twin_of,
    twins,
)

RATE, MOMENTUM, DECAY = (0.01, 0.9, 0.01)


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


# Training ---------------------------------------------------------------------------------------------


@pytest.mark.sample(2)
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


@pytest.mark.sample(4)
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


@pytest.mark.sample(5)
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
        other = networks.randomise(MODELS[name][0](), seed=5).to(dtype).eval()
        other.load_state_dict(state)
        images = networks.images(MODELS[name][1])[0].to(dtype)
        assert torch.equal(other(images), model(images))
        assert torch.equal(fold_back(twin)(images), model(images))


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@examples(30)
@given(graphs.networks())
def test_folding_the_twin_of_a_random_network_gives_the_original(example: tuple) -> None:
    network, size = example
    networks.randomise(network)
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
