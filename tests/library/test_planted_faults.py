"""verify finds each planted fault of a twin, and names the layer."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet import StrideEliminationError, UnitStrideNetwork, eliminate_stride, verify
from stridenet.layers import Operation
from tests.library.verified import Damage, layer_of


class Scaled(nn.Module):
    """Residual, with a layer scale, a BatchNorm, an activation, a fixed table, and two results."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.branch = nn.Conv2d(4, 4, 3, 1, 1)
        self.gamma = nn.Parameter(torch.full((4, 1, 1), 1e-6))
        self.register_buffer("table", torch.rand(4, 1, 1))
        self.down = nn.Conv2d(4, 6, 3, 2, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.act(self.norm(self.stem(x)))
        x = x + self.branch(x) * self.gamma + self.table
        x = self.down(x)
        return self.fc(x.mean((2, 3))), x.amax((2, 3))[:, :3]


def chain(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def plain() -> nn.Module:
    return chain(
        stem=nn.Conv2d(2, 4, 5, 2, 2),
        norm=nn.BatchNorm2d(4),
        act=nn.ReLU(inplace=True),
        down=nn.Conv2d(4, 6, 3, 2, 1),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(6, 3),
    )


def one_dimension() -> nn.Module:
    return chain(
        stem=nn.Conv1d(2, 4, 5, 2, 2),
        norm=nn.BatchNorm1d(4),
        act=nn.LeakyReLU(0.1),
        down=nn.Conv1d(4, 6, 4, 3),
        pool=nn.AdaptiveMaxPool1d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(6, 3),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple, dict]] = {
    "residual": (Scaled, (2, 17, 14), {}),
    "chain": (plain, (2, 17, 14), {}),
    "per phase": (plain, (2, 17, 14), {"batch_norm": "per_phase"}),
    "in one dimension": (one_dimension, (2, 31), {}),
}


def copied_weight(twin: UnitStrideNetwork) -> None:
    weight = layer_of(twin, "down").weight
    weight[tuple(weight.nonzero()[-1])] += 1e-3


def structural_zero(twin: UnitStrideNetwork) -> None:
    weight = layer_of(twin, "down").weight
    weight[tuple((weight == 0).nonzero()[0])] = 1e-3


def bias_of_a_phase(twin: UnitStrideNetwork) -> None:
    layer_of(twin, "stem").bias[1] += 1e-3


def swapped_phases(twin: UnitStrideNetwork) -> None:
    weight = layer_of(twin, "stem").weight
    weight[[0, 1]] = weight[[1, 0]].clone()


def linear(twin: UnitStrideNetwork) -> None:
    layer_of(twin, "fc").weight[1, 2] += 1e-3


def eps(twin: UnitStrideNetwork) -> None:
    layer_of(twin, "norm").eps *= 2


def momentum(twin: UnitStrideNetwork) -> None:
    layer_of(twin, "norm").momentum = 0.2


def identity(twin: UnitStrideNetwork) -> None:
    twin.network.act = nn.Identity()


def another_slope(twin: UnitStrideNetwork) -> None:
    twin.network.act = nn.ReLU6()


def variance(twin: UnitStrideNetwork) -> None:
    layer_of(twin, "norm").running_var[0] += 1e-3


def padding(twin: UnitStrideNetwork) -> None:
    (low, high), *rest = twin.rearrange.padding
    twin.rearrange.padding = ((low + 1, high - 1), *rest)


def factor(twin: UnitStrideNetwork) -> None:
    twin.rearrange.factor = tuple(2 * f for f in twin.rearrange.factor)


def gamma(twin: UnitStrideNetwork) -> None:
    twin.network.gamma[2] *= 1 + 1e-3


def table(twin: UnitStrideNetwork) -> None:
    twin.network.table[2] += 1e-3


def order_of_outputs(twin: UnitStrideNetwork) -> None:
    output = next(n for n in twin.network.graph.nodes if n.op == "output")
    output.args = (output.args[0][::-1],)
    twin.network.recompile()


def residual_edge(twin: UnitStrideNetwork) -> None:
    node = next(n for n in twin.network.graph.nodes if n.name == "add")
    node.replace_all_uses_with(node.args[0])
    twin.network.graph.erase_node(node)
    twin.network.recompile()


def other_way(twin: UnitStrideNetwork) -> None:
    """The layer reads another map of the same size."""
    nodes = {node.name: node for node in twin.network.graph.nodes}
    nodes["branch"].args = (nodes["norm"],)
    twin.network.recompile()


def function_of_the_graph(twin: UnitStrideNetwork) -> None:
    added = twin.network.get_submodule("add_1")
    operation = next(m for m in added.modules() if isinstance(m, Operation))
    operation.target = torch.sub


class Doubling(UnitStrideNetwork):
    def forward(self, images: Tensor) -> Any:
        return tuple(2 * y for y in super().forward(images))


def another_forward(twin: UnitStrideNetwork) -> None:
    twin.__class__ = Doubling


FAULTS = [
    (copied_weight, "down"), (structural_zero, "down"), (bias_of_a_phase, "stem"),
    (swapped_phases, "stem"), (linear, "fc"), (eps, "norm"), (momentum, "norm"), (identity, "act"),
    (another_slope, "act"), (variance, "norm"), (padding, "rearrange"), (factor, "rearrange"),
]  # fmt: skip
OF_A_GRAPH = [
    (gamma, "mul"), (table, "add_1"), (order_of_outputs, "(outputs)"), (residual_edge, "add"),
    (other_way, "branch"), (another_forward, "(outputs)"),
]  # fmt: skip
CASES = [(name, *fault) for fault in FAULTS for name in MODELS]
CASES += [("residual", *fault) for fault in [*OF_A_GRAPH, (function_of_the_graph, "add_1")]]


@functools.cache
def right(name: str) -> tuple[nn.Module, UnitStrideNetwork]:
    """A model and its twin, which passes."""
    make, size, options = MODELS[name]
    torch.manual_seed(3)
    model = make().eval()
    twin = eliminate_stride(model, size, **options)
    assert verify(model, twin).passed
    return model, twin


@pytest.mark.sample(100)
@pytest.mark.parametrize(("name", "damage", "layer"), CASES)
def test_a_planted_fault_is_found_and_named(name: str, damage: Damage, layer: str) -> None:
    model, twin = right(name)
    twin = copy.deepcopy(twin)
    with torch.no_grad():
        damage(twin)
    report = verify(model, twin)
    assert report.first_failure == layer, report
    assert f"NOT equal, from {layer} on" in str(report)


def test_what_shows_in_training_only_is_said() -> None:
    model = plain()
    twin = eliminate_stride(model, (2, 17, 14))
    momentum(twin)
    assert "BatchNorm has momentum=0.2, not 0.1" in str(verify(model, twin))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"down": nn.Conv2d(4, 6, 3, 2, 1, groups=2)}, "down is Conv2d 6x2x3x3 .*6x4x3x3"),
        ({"act": nn.Tanh()}, "act is Tanh .*here, and ReLU"),
        ({"more": nn.Tanh()}, r"more \(Tanh\) is only here"),
    ],
)
def test_the_first_layer_that_is_another_is_named(changes: dict, told: str) -> None:
    model = plain()
    twin = eliminate_stride(model, (2, 17, 14))
    other = chain(**(dict(copy.deepcopy(model).named_children()) | changes))
    with pytest.raises(StrideEliminationError, match=told):
        verify(other, twin)


@pytest.mark.slow
def test_a_report_of_many_layers_fits_a_terminal() -> None:
    layers = {
        f"a_block_with_a_long_name_{i}_and_its_layer": nn.Conv2d(2, 2, 3, padding=1)
        for i in range(60)
    }
    layers = {
        name: layer if i % 9 == 0 else nn.Tanh() for i, (name, layer) in enumerate(layers.items())
    }
    model = nn.Sequential(OrderedDict(**layers, last=nn.Conv2d(2, 2, 2, 2)))
    twin = eliminate_stride(model, (2, 6, 6), check=False)
    lines = str(verify(model, twin)).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 45
    with torch.no_grad():
        layer_of(twin, "last").bias += 1
    assert any(line.split()[0] == "last" for line in str(verify(model, twin)).splitlines())


def test_zeros_before_a_filter_hide_nothing() -> None:
    """After noise, too, a ReLU may leave channels that are zero but at the edge."""

    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 2, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x) - 1e3))

    model = Dead()
    twin = eliminate_stride(model, (1, 13, 13))
    assert verify(model, twin).passed
    with torch.no_grad():
        copied_weight_of(twin, "b")
    assert verify(model, twin).first_failure == "b"


def copied_weight_of(twin: UnitStrideNetwork, name: str) -> None:
    weight = layer_of(twin, name).weight
    weight[tuple(weight.nonzero()[0])] += 1e-3
