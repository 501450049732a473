"""Arithmetic with the model's own tensors: numbers that are computed from parameters, and buffers.

The oracle is PyTorch's own forward of the model, in float64. All keep their names, and train alike.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet import StrideEliminationError, eliminate_stride, fold_back, plan_elimination, share
from tests.between_strides import SIZES, between, check, check_training, images
from tests.networks import Forward, randomise


def parameter(*size: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(size))


def fusion(m: Forward, x: Tensor) -> Tensor:
    """BiFPN's: weights that are positive and add up to one."""
    weights = F.relu(m.weights)
    weights = weights / (weights.sum() + 1e-4)
    return weights[0] * m.conv(x) + weights[1] * x


def frozen_norm(m: Forward, x: Tensor) -> Tensor:
    """torchvision's FrozenBatchNorm2d."""
    weight, bias, mean, var = (
        t.reshape(1, -1, 1, 1) for t in (m.weight, m.bias, m.running_mean, m.running_var)
    )
    scale = weight * (var + 1e-5).rsqrt()
    return x * scale + (bias - mean * scale)


def positions(m: Forward, x: Tensor) -> Tensor:
    """expand of what has a number for each channel, in several forms."""
    many, _, *size = x.shape
    y = m.row.expand(many, -1, *size) * x + m.row.expand(x.shape)
    return y - m.column.expand_as(x) + torch.broadcast_to(m.column, x.shape)


BLOCKS: dict[str, Callable[[], Forward]] = {
    "one number": lambda: Forward(lambda m, x: m.p * x, p=parameter()),
    "a number by its place": lambda: Forward(lambda m, x: m.p[0] * x - m.p[1], p=parameter(2)),
    "a gate": lambda: Forward(lambda m, x: torch.sigmoid(m.p) * x + x.relu(), p=parameter(1)),
    "softmaxed weights": lambda: Forward(
        lambda m, x: sum(w * y for w, y in zip(F.softmax(m.p, 0), (x, x.relu()), strict=True)),
        p=parameter(2),
    ),
    "fusion": lambda: Forward(fusion, weights=parameter(2), conv=nn.Conv2d(6, 6, 1)),
    "layer scale": lambda: Forward(lambda m, x: m.p.view(1, -1, 1, 1) * x, p=parameter(6)),
    "layer scale by an index": lambda: Forward(
        lambda m, x: x * m.p[None, :, None, None], p=parameter(6)
    ),
    "channels last": lambda: Forward(
        lambda m, x: (x.permute(0, 2, 3, 1) * m.p.exp()).permute(0, 3, 1, 2), p=parameter(6)
    ),
    "used twice": lambda: Forward(lambda m, x: m.p * x + (m.p * 2).relu(), p=parameter(6, 1, 1)),
    "a quotient": lambda: Forward(lambda m, x: x / (1 + m.p.square()), p=parameter(6, 1, 1)),
    "frozen norm": lambda: Forward(
        frozen_norm, weight=torch.rand(6), bias=torch.rand(6), running_mean=torch.rand(6),
        running_var=torch.rand(6),
    ),
    "expanded": lambda: Forward(positions, row=parameter(1, 6, 1, 1), column=parameter(6, 1, 1)),
    "in another type": lambda: Forward(
        lambda m, x: x + m.p.to(x) * m.p.type_as(x) + x.new_ones(1) * m.p.to(x.dtype),
        p=parameter(6, 1, 1),
    ),
    "F.prelu": lambda: Forward(lambda m, x: F.prelu(x, m.p), p=parameter(6)),
    "F.linear": lambda: Forward(
        lambda m, x: F.linear(x.permute(0, 2, 3, 1), m.p, m.q).permute(0, 3, 1, 2),
        p=parameter(6, 6), q=parameter(6),
    ),
    "F.group_norm": lambda: Forward(
        lambda m, x: F.group_norm(x, 2, m.p, m.q), p=parameter(6), q=parameter(6)
    ),
}  # fmt: skip


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", BLOCKS)
def test_numbers_of_the_model_s_own(name: str) -> None:
    model = between(BLOCKS[name](), 6)
    for size in SIZES:
        twin = check(model, (2, *size))
    own = {n for n in model.state_dict() if n.startswith("block.") and ".conv." not in n}
    theirs = {n for n in twin.network.state_dict() if n.startswith("block.") and ".conv." not in n}
    assert own == theirs
    buffers = {n for n, _ in model.named_buffers() if n in own}
    assert buffers == {n for n, _ in twin.network.named_buffers() if n in own}
    check_training(model, (2, *SIZES[0]))


def test_expand_and_expand_as_of_a_map_of_one_position() -> None:
    def forward(x: Tensor) -> Tensor:
        gap = x.mean((2, 3), keepdim=True)
        y = gap.expand(-1, -1, x.shape[2], x.shape[3]) * x + x.mean(1, keepdim=True).expand_as(x)
        rows = x.mean(1, True)[:, :, :1, :1].expand(x.size(0), 6, *x.shape[2:])
        return y - F.adaptive_avg_pool2d(x, 1).expand_as(x) + torch.broadcast_to(rows, x.shape)

    model = between(forward, 6)
    for size in SIZES:
        check(model, (2, *size))
    check_training(model, (2, *SIZES[0]))


def test_a_number_for_each_position_pins_its_map() -> None:
    with pytest.raises(
        StrideEliminationError, match=r"a number for each position.*before a stride"
    ):
        eliminate_stride(
            between(Forward(lambda m, x: x + m.p, p=parameter(1, 6, 8, 8)), 6), (2, 8, 8)
        )
    last = nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1), Forward(lambda m, x: x + m.p.exp(), p=parameter(3, 4, 4))
    )
    check(randomise(last), (2, 8, 8))


def test_a_buffer_that_no_state_dict_holds_is_in_none_of_the_twin() -> None:
    block = Forward(lambda m, x: x * m.scale.view(1, -1, 1, 1))
    block.register_buffer("scale", torch.rand(6), persistent=False)
    model = between(block, 6)
    twin = check(model, (2, 7, 8))
    assert "block.scale" in dict(twin.network.named_buffers())
    assert "block.scale" not in twin.network.state_dict()
    assert "block.scale" not in twin.strided.state_dict()


def test_a_forward_may_ask_for_the_value_of_a_buffer() -> None:
    model = between(Forward(lambda m, x: x * float(m.p) if m.p > 0 else x, p=torch.tensor(3.0)), 6)
    twin, x = eliminate_stride(model, (2, 7, 8)), images((2, 7, 8))
    torch.testing.assert_close(twin(x), model(x))


def test_the_type_of_a_weight_may_be_asked_for() -> None:
    """And nothing of it is in the twin but its layer."""
    block = Forward(lambda m, x: m.c(x.to(m.c.weight.dtype)), c=nn.Conv2d(6, 6, 3, 2, 1))
    check(between(block, 6), (2, 9, 8))


def test_a_weight_that_is_read_beside_its_layer_is_refused() -> None:
    block = Forward(lambda m, x: m.c(x) + m.c.weight.mean(), c=nn.Conv2d(6, 6, 3, 2, 1))
    message = r"block\.c \(Conv2d\).* reads block\.c\.weight.*convert_layers\(model\)"
    with pytest.raises(StrideEliminationError, match=message):
        plan_elimination(between(block, 6), (2, 9, 8))


def test_a_norm_whose_parameters_are_read_too_has_them_once() -> None:
    block = Forward(lambda m, x: m.n(x) + m.n.weight.view(1, -1, 1, 1), n=nn.BatchNorm2d(6))
    model = between(block, 6)
    twin = check(model, (2, 9, 8))
    twin.network.block.n.weight.data.fill_(3)
    model.block.n.weight.data.fill_(3)
    x = images((2, 9, 8))
    torch.testing.assert_close(twin(x), model(x))


# Functional batch normalisation


def batch_norm(m: Forward, x: Tensor) -> Tensor:
    n = m.norm
    return F.batch_norm(
        x, n.running_mean, n.running_var, n.weight, n.bias, m.training, 0.3, eps=n.eps
    )


@pytest.mark.parametrize("size", SIZES)
def test_functional_batch_normalisation(size: tuple) -> None:
    model = between(Forward(batch_norm, norm=nn.BatchNorm2d(6)), 6)
    check(model, (2, *size))
    twin = check_training(model, (2, *size))
    kept = ["running_mean", "running_var", "weight", "bias"]
    assert {n for n in twin.network.state_dict() if "norm" in n} == {
        f"block.norm.{n}" for n in kept
    }


def test_functional_batch_normalisation_without_statistics_or_parameters() -> None:
    model = between(lambda x: F.batch_norm(x, None, None, training=True), 6)
    check(model, (2, 11, 7))
    check_training(model, (2, 11, 7))
    block = Forward(
        lambda m, x: F.batch_norm(x, m.mean, m.mean.exp(), weight=m.mean + 1),
        mean=torch.rand(6),
    )
    check(between(block, 6), (2, 11, 7))


def test_its_statistics_are_of_all_phases_together() -> None:
    model = between(Forward(batch_norm, norm=nn.BatchNorm2d(6)), 6)
    check(model, (2, 7, 8), batch_norm="per_phase")
    message = r"batch_norm \(batch_norm\).*batch_norm='shared', or write nn\.BatchNorm2d"
    with pytest.raises(StrideEliminationError, match=message):
        eliminate_stride(model.train(), (2, 7, 8), batch_norm="per_phase")


@pytest.mark.parametrize("how", ["shared", "per_phase"])
def test_sync_batch_norm_stays_one(how: str) -> None:
    model = between(nn.SyncBatchNorm(6), 6)
    for size in SIZES:
        twin = check(model, (2, *size), batch_norm=how)
    twin = eliminate_stride(model, (2, 12, 12), batch_norm=how)
    assert isinstance(twin.network.block, nn.SyncBatchNorm)
    if how == "shared":
        check_training(model, (2, *SIZES[0]))
        assert twin.network.block.state_dict().keys() == model.block.state_dict().keys()


@pytest.mark.parametrize("name", ["fusion", "frozen norm", "F.linear", "expanded"])
def test_they_fold_back_and_are_shared(name: str) -> None:
    model = between(BLOCKS[name](), 6)
    twin, x = eliminate_stride(model, (2, 9, 8)), images((2, 9, 8))
    folded = fold_back(twin).state_dict()
    assert {n: t.tolist() for n, t in folded.items()} == {
        n: t.tolist() for n, t in model.state_dict().items()
    }
    tied = share(twin, "tied")
    torch.testing.assert_close(tied(x), model(x))
    assert sum(p.numel() for p in tied.parameters()) == sum(p.numel() for p in model.parameters())
