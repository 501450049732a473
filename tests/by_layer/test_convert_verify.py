"""verify of what convert_layers made: right ones pass, planted faults are found and named."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stridenet import StrideEliminationError, convert_layers, share, verify
from stridenet.by_layer.converted import network_origins
from tests.by_layer.test_convert_forwards import CALLERS, FORWARDS, Net


class Residual(nn.Module):
    """Has a branch whose scale starts at zero, and a head that starts at zero."""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 8, 3, 2, 1)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU6()
        self.d = nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.e = nn.Conv2d(8, 8, 1, 2)
        self.gamma = nn.Parameter(torch.zeros(8, 1, 1))
        self.head = nn.Linear(8, 3)
        nn.init.zeros_(self.head.weight)
        self.register_buffer("shift", torch.ones(1, 8, 1, 1))

    def forward(self, x):
        y = self.act(self.bn(self.c(x)))
        y = self.d(y) * self.gamma + self.e(y) + self.shift
        return self.head(y.mean((2, 3)))


X = torch.randn(2, 3, 20, 20)


def a_structural_zero(same):
    place = (network_origins(same)["d.weight"].entries.flatten() < 0).nonzero()[0]
    same.d.weight.data.view(-1)[place] = 1e-3


def swapped(layer):
    layer.weight.copy_(layer.weight.unflatten(1, (-1, 4)).flip(2).flatten(1, 2))


def other_padding(layer):
    layer.strided = dataclasses.replace(layer.strided, padding=(0, 2))


FAULTS = {
    "c.weight": lambda m: m.c.weight[0, 0, 0, 0].add_(1e-3),
    "d.weight": a_structural_zero,
    "c.bias": lambda m: m.c.bias[1].add_(1e-3),
    "e.weight": lambda m: swapped(m.e),
    "head.weight": lambda m: m.head.weight[0, 0].add_(1e-3),
    "bn": lambda m: setattr(m.bn, "eps", 1e-2),
    "act": lambda m: setattr(m, "act", nn.ReLU()),
    "bn.running_var": lambda m: m.bn.running_var[0].add_(0.1),
    "c": lambda m: other_padding(m.c),
    "gamma": lambda m: m.gamma[0].add_(1e-3),
    "shift": lambda m: m.shift[0, 0].add_(1e-3),
    "act ": lambda m: setattr(m.act, "max_val", 5.0),
    "bn ": lambda m: setattr(m.bn, "momentum", 0.2),  # which shows in training only
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named(name):
    torch.manual_seed(0)
    model = Residual()
    same = convert_layers(model)
    assert verify(model, same, X).passed
    with torch.no_grad():
        FAULTS[name](same)
    report = verify(model, same, X)
    assert not report.passed
    assert report.first_failure == name.strip()
    with pytest.raises(StrideEliminationError, match=f"NOT equal, from {name.strip()} on"):
        verify(model, same, X, raise_on_failure=True)


class Doubling(Residual):
    def forward(self, x):
        return 2 * super().forward(x)


def test_another_forward_is_found():
    model = Residual()
    same = convert_layers(model)
    same.__class__ = Doubling
    assert verify(model, same, X).first_failure == "(model)"


def test_layers_that_were_left_out_are_compared():
    model = Residual()
    same = convert_layers(model, only=["d"])
    report = verify(model, same, X)
    assert report.passed, report
    with torch.no_grad():
        same.c.weight[0, 0, 0, 0] += 1e-3
    assert verify(model, same, X).first_failure == "c.weight"


def test_a_hook_that_changes_the_output_is_found():
    model = Residual()
    same = convert_layers(model)
    same.act.register_forward_hook(lambda m, i, o: o * 1.001)
    report = verify(model, same, X)
    assert report.first_failure == "(outputs)"


def test_noise_shows_what_a_zero_head_hides():
    report = verify(model := Residual(), convert_layers(model), X)
    values = {layer.layer: layer.largest_value for layer in report.layers}
    assert all(values[name] > 0.01 for name in ("c", "d", "e", "(outputs)"))


RIGHT = {
    **{name: lambda name=name: Net(FORWARDS[name], kept={}) for name in FORWARDS},
    **{f"caller {n}": make for n, make in enumerate(CALLERS)},
    "one module twice": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), *[nn.Conv2d(4, 4, 3, 2, 1)] * 2
    ),
    "half": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)).half(),
    "casts": lambda: Net(lambda m, x: m.c(x.float()).sigmoid().to(x.dtype)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_one_passes(name):
    torch.manual_seed(0)
    model = RIGHT[name]()
    channels = getattr(model, "in_channels", 3)
    parameter = next(model.parameters(), torch.empty(0))
    x = torch.randn(2, channels, 20, 20).to(parameter.dtype)
    report = verify(model, convert_layers(model, pooling=True), x)
    assert report.passed, report
    assert report.layers


@pytest.mark.parametrize("sharing", ["tied", "masked"])
def test_shared_parameters_are_compared_by_their_numbers(sharing):
    model = Residual()
    same = share(convert_layers(model), sharing)
    assert verify(model, same, X).passed
    with torch.no_grad():
        same.c.parametrizations.weight.original.view(-1)[0] += 1e-3
    report = verify(model, same, X)
    assert report.first_failure == "c.weight"


def test_without_inputs_each_layer_is_compared():
    model = Residual()
    report = verify(model, convert_layers(model))
    assert report.passed
    assert [layer.layer for layer in report.layers] == ["c", "d", "e"]


def test_another_model_is_told():
    same = convert_layers(nn.Sequential(nn.Conv2d(3, 4, 3, 2)))
    with pytest.raises(StrideEliminationError, match="no such module"):
        verify(Residual(), same, X)
    with pytest.raises(StrideEliminationError, match="is not a twin"):
        verify(Residual(), Residual(), X)


def test_functional_dropout_in_training_is_no_difference():
    model = Net(lambda m, x: F.dropout(m.c(x), training=m.training)).train()
    assert verify(model, convert_layers(model), X).passed


def test_outputs_that_cancel_to_rounding_are_compared_with_the_maps_before() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Conv2d(2, 3, 3, 2, 1), nn.InstanceNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.layer(x)).mean((2, 3))

    model, images = Mean(), torch.randn(4, 2, 12, 12)
    same = convert_layers(model, example_inputs=images)
    assert verify(model, same, images).passed
    wrong = convert_layers(model, check=False)
    wrong.norm.register_forward_hook(lambda layer, args, result: result + 1e-9)
    report = verify(model, wrong, images)
    assert [layer.layer for layer in report.layers if not layer.passed] == ["(outputs)"]
