"""A twin's parameters tied, masked or free: what is one weight."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stridenet import (
    StrideEliminationError,
    degrees_of_freedom,
    eliminate_stride,
    export_onnx,
    fold_back,
    plan_elimination,
    share,
    verify,
)
from stridenet.phases import filter_entries
from stridenet.sharing import origins, plain_state
from stridenet.sharing_measures import number_of_copies
from stridenet.zoo import lenet, resnet20
from tests import graphs, networks
from tests.examples import examples
from tests.library.shared_twins import (
    COPIES,
    MODELS,
    Residual,
    effective,
    every_model,
    groups_of,
    numbered,
    spread_out,
    twin_of,
    twins,
    up_again,
)

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


@pytest.mark.sample(5)
@every_model
@pytest.mark.parametrize("sharing", ["tied", "masked", "free"])
def test_at_copied_weights_a_twin_is_the_same_function_however_it_is_shared(
    name: str, sharing: str
) -> None:
    model, twin = twin_of(name)
    shared = share(twin, sharing)
    images = networks.images(MODELS[name][1])[0].double()
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
    images = networks.images(MODELS[name][1])[0].double()
    torch.testing.assert_close(tied(images), expected(images), rtol=1e-11, atol=1e-11)


@pytest.mark.sample(1)
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
    images = networks.images(MODELS[name][1])[0].double()
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


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@examples(30)
@given(graphs.networks())
def test_the_twin_of_a_random_network_is_the_same_however_it_is_shared(example: tuple) -> None:
    network, size = example
    images = networks.images(size)
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


@pytest.mark.slow
def test_a_shared_twin_can_be_copied_saved_and_exported(tmp_path: Path) -> None:
    _, twin = twin_of("residual", torch.float32)
    images = networks.images((1, 11, 14))[0].float()
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
        plain = eliminate_stride(networks.randomise(Residual(), 3).float(), (1, 11, 14)).eval()
        plain.load_state_dict(plain_state(shared))
        assert torch.equal(plain(images), shared(images))
        export_onnx(shared, tmp_path / f"{sharing}.onnx")
