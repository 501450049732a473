"""Does the twin equal the original, layer by layer?

Each layer of the twin is compared on the very map that it received: that map's real positions go
through the strided layer, whose result must equal the twin's up to the rounding of this one layer.
By induction over the layers the two networks are then equal, and no error is carried forward. Before
that, the layers as traced must give what the model gives, so that the model itself is what is compared.
"""

import copy
import itertools
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from tqdm import tqdm

from stridenet.elimination import (
    EliminationPlan,
    FeatureMap,
    UnitStrideNetwork,
    plan_elimination,
)
from stridenet.phases import depth_to_space
from stridenet.tracing import CONVOLUTIONS, StrideEliminationError, operations, trace

if TYPE_CHECKING:
    import pandas as pd

ANetwork = TypeVar("ANetwork", bound=nn.Module)
UNIT_ROUNDOFF = torch.finfo(torch.float64).eps / 2


@dataclass(frozen=True)
class LayerReport:
    """One layer of the twin beside the strided one, over all real positions."""

    layer: str
    operation: str
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
        import pandas as pd  # slow to import, and needed for the table only

        return pd.DataFrame([vars(layer) for layer in self.layers])

    def __str__(self) -> str:
        verdict = (
            "equal up to rounding" if self.passed else f"NOT equal, from {self.first_failure} on"
        )
        return (
            f"{self.to_frame().to_string(index=False, float_format='{:.2g}'.format)}\n"
            f"{verdict}; largest difference of an output {self.output_difference:.2g}"
        )


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class _Recorder(fx.Interpreter):
    """Keeps every result, also where an operation works in place."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network, garbage_collect_values=False)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple, dict]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return fx.node.map_aggregate((args, kwargs), _own)


@torch.no_grad()
def verify(
    model: nn.Module, twin: UnitStrideNetwork, images: Tensor | None = None
) -> VerificationReport:
    """Compare the twin with the model that it was made from, in float64, on the CPU.

    images: (n, c, h, w); four random ones unless given. A convolution or Linear passes where its error
    is at most 2γ_n·(|H|∗|X| + |b|), n the number of terms of a sum: the bound on two sums of the same
    terms in different orders. Works on copies in evaluation mode. Raises StrideEliminationError if the
    twin was made from a network of other sizes.
    """
    model, twin = _copied(model, torch.float64), _copied(twin, torch.float64)
    plan = plan_elimination(model, twin.plan.input_size)
    if plan != twin.plan:
        raise StrideEliminationError(
            "the twin was made from a network of other sizes than this model"
        )
    if images is None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, *plan.input_size, generator=generator, device="cpu")
    images = images.detach().to("cpu", torch.float64, copy=True)

    traced = trace(model, plan.input_size)
    strided = _Recorder(traced)
    rearranged = twin.rearrange(images)
    received = _run(twin.network, rearranged)
    expected = model(images.clone())
    bound = 4 * UNIT_ROUNDOFF * expected.abs()
    reports = [
        _report("(traced)", type(model).__name__, strided.run(images) - expected, bound),
        _compare_input(images, rearranged, plan),
    ]
    for layer, node in zip(plan.layers, operations(traced), strict=True):
        source = node.all_input_nodes[0]
        given = images if source.op == "placeholder" else _real(received[source.name], layer.input)
        strided.env[source] = given
        correct = strided.run_node(node)
        bound = _rounding_bound(traced, node, given, correct)
        obtained = _real(received[node.name], layer.output)
        reports.append(_report(layer.name, layer.operation, obtained - correct, bound))
    difference = (expected - twin(images.clone())).abs().max()
    return VerificationReport(tuple(reports), float(difference))


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
    return copy.deepcopy(network).to("cpu", dtype).eval()


def _run(network: fx.GraphModule, rearranged: Tensor) -> dict[str, Tensor]:
    """Every result of the twin by the name of its node."""
    recorder = _Recorder(network)
    recorder.run(rearranged)
    return {node.name: value for node, value in recorder.env.items()}


def _real(result: Tensor, feature_map: FeatureMap) -> Tensor:
    """The positions of a twin's map that the strided network has too."""
    return depth_to_space(result, feature_map.factor, feature_map.size[1:])


def _compare_input(images: Tensor, rearranged: Tensor, plan: EliminationPlan) -> LayerReport:
    """The phases of the padded image, cut out by slices, against what the twin's input holds."""
    padding = [extent for pair in reversed(plan.input_padding) for extent in pair]
    padded = F.pad(images, padding)
    expected = torch.zeros_like(rearranged)
    phases = itertools.product(*map(range, plan.input.factor))
    for offset, phase in enumerate(phases):
        steps = zip(phase, plan.input.factor, strict=True)
        where: tuple[Any, ...] = (..., *(slice(start, None, step) for start, step in steps))
        sampled = padded[where]
        channels = slice(offset, None, prod(plan.input.factor))
        where = (slice(None), channels, *map(slice, sampled.shape[2:]))
        expected[where] = sampled
    return _report("rearrange", "SpaceToDepth", rearranged - expected, torch.zeros_like(rearranged))


def _rounding_bound(traced: fx.GraphModule, node: fx.Node, given: Tensor, result: Tensor) -> Tensor:
    """How far two correct evaluations of one layer may lie apart, position by position."""
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        return 4 * UNIT_ROUNDOFF * (result.abs() + given.abs().max())
    magnitudes = copy.deepcopy(module)
    for parameter in magnitudes.parameters():
        parameter.abs_()
    terms = module.weight[0].numel() + 1  # of one sum, with the bias
    gamma = terms * UNIT_ROUNDOFF / (1 - terms * UNIT_ROUNDOFF)
    return 2 * gamma * cast(Tensor, magnitudes(given.abs()))


def _report(layer: str, operation: str, error: Tensor, bound: Tensor) -> LayerReport:
    error = error.abs()
    share = torch.where(error == 0, 0, error / bound)
    return LayerReport(
        layer, operation, float(error.max()), float(share.max()), bool((error <= bound).all())
    )
