"""Does the twin equal the original, layer by layer?

Each layer of the twin is compared on the very maps that it received: their real positions go through
the strided layer, whose result must equal the twin's up to the rounding of this one layer. By
induction over the layers the two networks are then equal, and no error is carried forward. Before
that, the layers as traced must give what the model gives, so that the model itself is what is compared.

Zeros and ones hide errors: a residual branch whose last scale starts at zero could be anything. So the
same random numbers are added to both networks' parameters and statistics first, to the twin's by way
of a second twin: each of its numbers is a strided one, a copy of one, or a structural zero.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from stridenet.errors import StrideEliminationError
from stridenet.graph.nodes import tensors
from stridenet.plan import InputPlan
from stridenet.planner import Conversion
from stridenet.rules.rounding import UNIT_ROUNDOFF, rounding_bound
from stridenet.sharing import make_plain
from stridenet.sizes import checked_sizes
from stridenet.tables import aligned, data_frame
from stridenet.twin import UnitStrideNetwork, build

if TYPE_CHECKING:
    import pandas as pd


ANetwork = TypeVar("ANetwork", bound=nn.Module)


@dataclass(frozen=True)
class LayerReport:
    """One layer of the twin beside the strided one, over all real positions."""

    layer: str
    operation: str
    largest_value: float  # of the strided layer's result: zero would show nothing
    largest_error: float
    share_of_bound: float  # largest error over its rounding bound, taken position by position
    passed: bool


@dataclass(frozen=True)
class VerificationReport:
    """What verify found."""

    layers: tuple[LayerReport, ...]
    output_difference: float  # largest, between the two networks' outputs

    @property
    def passed(self) -> bool:
        """Whether every layer is within its rounding bound."""
        return all(layer.passed for layer in self.layers)

    @property
    def first_failure(self) -> str | None:
        """Name of the first layer that differs by more than rounding."""
        return next((layer.layer for layer in self.layers if not layer.passed), None)

    def to_frame(self) -> "pd.DataFrame":
        """One row a layer."""
        return data_frame(vars(layer) for layer in self.layers)

    def __str__(self) -> str:
        verdict = (
            "equal up to rounding" if self.passed else f"NOT equal, from {self.first_failure} on"
        )
        rows = [
            [f"{v:.2g}" if isinstance(v, float) else str(v) for v in vars(layer).values()]
            for layer in self.layers
        ]
        return (
            f"{aligned([field.name for field in fields(LayerReport)], rows)}\n"
            f"{verdict}; largest difference of an output {self.output_difference:.2g}"
        )


@torch.no_grad()
def verify(
    model: nn.Module,
    twin: UnitStrideNetwork,
    images: Tensor | Sequence[Tensor] | None = None,
    *,
    raise_on_failure: bool = False,
) -> VerificationReport:
    """Compare the twin with the model that it was made from, in float64, on the CPU.

    images: (n, c, h, w), or a tensor for each input; two random ones unless given. A layer passes
    where its error is at most a bound on its rounding: for convolutions, Linear and averages
    2γ_n·(|H|∗|X| + |b|), n the number of terms of a sum, the bound on two sums of the same terms in
    different orders. Works on copies in evaluation mode, to whose parameters random numbers are added.
    Raises StrideEliminationError if the twin was made from another network, and, if so asked, if a
    layer differs.
    """
    sizes, options = checked_sizes(twin.plan.input_size), twin.plan.options
    as_given = Conversion(copy.deepcopy(model).eval(), sizes, options).plan
    if replace(as_given, bytes_each=twin.plan.bytes_each) != twin.plan:
        raise StrideEliminationError(
            "the twin was made from a network of other sizes than this model, or in another mode "
            "(training or evaluation) that changes its forward"
        )
    model, twin = _copied(model, torch.float64), _copied(twin, torch.float64)
    conversion = Conversion(model, sizes, options)
    _add_noise(model, twin, conversion)
    inputs = _inputs(images, conversion)
    report = VerificationReport(tuple(_reports(model, twin, conversion, inputs)), 0.0)
    expected = tree_leaves(model(*(x.clone() for x in inputs)))
    obtained = tree_leaves(twin(*(x.clone() for x in inputs)))
    difference = max(float((a - b).abs().max()) for a, b in zip(expected, obtained, strict=True))
    report = replace(report, output_difference=difference)
    if raise_on_failure and not report.passed:
        raise StrideEliminationError(f"the twin is not equal to the model:\n{report}")
    return report


def _add_noise(model: nn.Module, twin: UnitStrideNetwork, conversion: Conversion) -> None:
    """The same random numbers to the parameters and statistics of both, in place."""
    generator = torch.Generator().manual_seed(0)
    noise = copy.deepcopy(model)
    for name, tensor in noise.state_dict().items():
        if tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.normal_(std=fan_in**-0.5, generator=generator)
            if name.endswith("running_var"):
                tensor.abs_()
    sizes = checked_sizes(conversion.plan.input_size)
    noise_of_twin = build(Conversion(noise, sizes, conversion.options)).state_dict()
    for network, added in ((model, noise.state_dict()), (twin.network, noise_of_twin)):
        state = network.state_dict()
        if state.keys() != added.keys():
            changed = sorted(state.keys() ^ added.keys())
            raise StrideEliminationError(
                f"the twin's parameters {changed} are not as it was made with"
            )
        for name, tensor in state.items():
            if tensor.is_floating_point():
                tensor += added[name]


def _inputs(images: Any, conversion: Conversion) -> list[Tensor]:
    if images is None:
        generator = torch.Generator().manual_seed(1)
        sizes = checked_sizes(conversion.plan.input_size)
        given = [torch.randn(2, *size, generator=generator, device="cpu") for size in sizes]
    else:
        given = [images] if isinstance(images, Tensor) else list(images)
    return [x.detach().to("cpu", torch.float64, copy=True) for x in given]


def _reports(
    model: nn.Module, twin: UnitStrideNetwork, conversion: Conversion, inputs: list[Tensor]
) -> Iterator[LayerReport]:
    expected = tree_leaves(model(*(x.clone() for x in inputs)))
    traced = tree_leaves(conversion.traced(*(x.clone() for x in inputs)))
    yield _worst(
        _report("(traced)", type(model).__name__, a, b, 4 * UNIT_ROUNDOFF * a.abs())
        for a, b in zip(expected, traced, strict=True)
    )
    rearranged = twin.rearrange(*(x.clone() for x in inputs))
    rearranged = [rearranged] if isinstance(rearranged, Tensor) else list(rearranged)
    yield _worst(map(_compare_input, inputs, rearranged, conversion.plan.inputs))
    comparison = _Comparison(twin.network, conversion, inputs)
    outputs = tree_leaves(comparison.run(*rearranged))
    yield from comparison.reports
    yield _worst(
        _report("(outputs)", "restored", a, b, torch.zeros_like(a))
        for a, b in zip(comparison.outputs, outputs, strict=True)
    )


class _Comparison(fx.Interpreter):
    """Runs the twin, and beside each of its operations the strided one on the same maps."""

    def __init__(
        self, network: fx.GraphModule, conversion: Conversion, inputs: list[Tensor]
    ) -> None:
        super().__init__(network)
        self.extra_traceback = False
        self.conversion = conversion
        self.strided = fx.Interpreter(conversion.traced)
        self.strided.extra_traceback = False
        nodes = conversion.traced.graph.nodes
        self.nodes = {node.name: node for node in nodes}
        self.twins = {node.name: node for node in network.graph.nodes}
        self.steps = {
            call.node.name: (call, rule, layer)
            for call, rule, layer in zip(
                conversion.calls, conversion.rules, conversion.plan.layers, strict=True
            )
        }
        placeholders = (node for node in nodes if node.op == "placeholder")
        self.images = dict(zip(placeholders, inputs, strict=True))
        self.reports: list[LayerReport] = []
        self.returned = self.nodes["output"].all_input_nodes
        self.reals: dict[fx.Node, Any] = {}  # of those that are returned

    @property
    def outputs(self) -> list[Tensor]:
        """What the twin has to return."""
        return tree_leaves(fx.node.map_arg(self.nodes["output"].args[0], self.reals.get))

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n) if n.name not in self.steps else self._run_both(n)
        if self.nodes.get(n.name) in self.returned:
            self.reals[self.nodes[n.name]] = self._real(self.nodes[n.name], result)
        return result

    def _run_both(self, n: fx.Node) -> Any:
        call, rule, layer = self.steps[n.name]
        self.strided.env = {node: self._received(node) for node in call.operands}
        given = [v.clone() for node in call.maps for v in tensors(self.strided.env[node])]
        expected = tensors(self.strided.run_node(call.node))
        result = super().run_node(n)
        obtained = tensors(self._real(call.node, result))
        self.reports.append(
            _worst(
                _report(layer.name, layer.operation, a, b, rounding_bound(call, rule, given, a))
                for a, b in zip(expected, obtained, strict=True)
            )
        )
        return result

    def _received(self, node: fx.Node) -> Any:
        """What the strided operation is given for a node: a copy, as it may work in place."""
        if node.op == "get_attr":
            return self.strided.fetch_attr(str(node.target)).clone()
        if node in self.images and self.conversion.map_of(node).phases > 1:
            return self.images[node].clone()
        return self._real(node, self.env[self.twins[node.name]])

    def _real(self, node: fx.Node, value: Any) -> Any:
        """The positions of a twin's map that the strided network has too."""
        if isinstance(value, Tensor):
            feature_map = self.conversion.map_of(node)
            return (feature_map.to_maps(value) if feature_map.phases > 1 else value).clone()
        if not tensors(value):
            return value
        feature_map = self.conversion.map_of(node)
        parts = []
        for part, traced in zip(value, node.meta["value"], strict=True):
            if isinstance(part, Tensor):
                whole = replace(feature_map, size=tuple(traced.shape[1:]))
                part = (whole.to_maps(part) if whole.phases > 1 else part).clone()
            parts.append(part)
        return parts


@torch.no_grad()
def compare_scores(
    model: nn.Module, twin: UnitStrideNetwork, images: Tensor, dtype: str
) -> dict[str, float]:
    """On how many images (n, c, h, w) the two networks predict the same class, and the largest
    difference of a score, both computed in `dtype` ("float32" or "float64") on the CPU."""
    number = getattr(torch, dtype)
    model, twin = _copied(model, number), _copied(twin, number)
    agreeing, largest = 0, 0.0
    for batch in tqdm(images.split(500), f"comparing scores in {dtype}", disable=None, leave=False):
        strided, unit_stride = (
            network(batch.to("cpu", number, copy=True)) for network in (model, twin)
        )
        agreeing += int((strided.argmax(1) == unit_stride.argmax(1)).sum())
        largest = max(largest, float((strided - unit_stride).abs().max()))
    return {"agreeing": agreeing, "images": len(images), "largest_difference": largest}


def _copied(network: ANetwork, dtype: torch.dtype) -> ANetwork:
    """In evaluation mode on the CPU, parametrized weights as they were computed before the cast."""
    copied = copy.deepcopy(network)
    make_plain(copied)
    return copied.to("cpu", dtype).eval()


def _compare_input(images: Tensor, rearranged: Tensor, plan: InputPlan) -> LayerReport:
    """The phases of the padded image, cut out by slices, against what the twin's input holds."""
    padded = F.pad(images, [extent for pair in reversed(plan.padding) for extent in pair])
    expected = torch.zeros_like(rearranged)
    for offset, phase in enumerate(itertools.product(*map(range, plan.map.factor))):
        steps = zip(phase, plan.map.factor, strict=True)
        where: tuple[Any, ...] = (..., *(slice(start, None, step) for start, step in steps))
        sampled = padded[where]
        channels = slice(offset, None, prod(plan.map.factor))
        where = (slice(None), channels, *map(slice, sampled.shape[2:]))
        expected[where] = sampled
    return _report("rearrange", "SpaceToDepth", expected, rearranged, torch.zeros_like(expected))


def _report(
    layer: str, operation: str, expected: Tensor, obtained: Tensor, bound: Tensor
) -> LayerReport:
    expected = expected.to(bound.dtype)
    error = (obtained.to(bound.dtype) - expected).abs()
    share = torch.where(error == 0, 0, error / bound)
    value, difference, worst = (float(t.max()) for t in (expected.abs(), error, share))
    passed = bool((error <= bound).all())
    return LayerReport(layer, operation, value, difference, worst, passed)


def _worst(reports: Iterator[LayerReport] | Any) -> LayerReport:
    """Of several tensors of one layer, the one that differs most."""
    return max(reports, key=lambda report: (not report.passed, report.share_of_bound))
