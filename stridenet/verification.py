"""Does the twin equal the original, layer by layer?

Each layer of the twin is compared on the very maps that it received: their real positions go through
the strided layer, whose result must equal the twin's up to the rounding of this one layer. By
induction over the layers the two networks are then equal, and no error is carried forward. Before
that, the layers as traced must give what the model gives, so that the model itself is what is compared.

Zeros and ones hide errors: a residual branch whose last scale starts at zero could be anything. So
noise is put on the strided numbers first. The twin's numbers are those of one that is made of the noisy
ones, and how it differs from one that is made now: not at all, if it is right.
"""

import copy
import itertools
from collections.abc import Iterator
from itertools import chain
from math import inf, prod
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from tqdm import tqdm

from stridenet.by_layer.converted import is_converted
from stridenet.by_layer.verification import verify_layers
from stridenet.checking.comparison import SideBySide, TwinStopped, compared_outputs
from stridenet.checking.elimination import input_types, traced_report
from stridenet.checking.noise import add_noise
from stridenet.checking.reports import LayerReport, VerificationReport, compared, failed, worst
from stridenet.checking.running import (
    GraphRunner,
    cloned,
    finite,
    leaves,
    one_line,
    runnable_layers,
    seed,
    undisturbed,
    without_dropout,
)
from stridenet.checking.structure import differing_settings, graph_code, planned_like, rewired
from stridenet.copies import copied, unwrapped
from stridenet.errors import StrideEliminationError
from stridenet.plan import InputPlan
from stridenet.planner import PlannedNetwork, planned_network
from stridenet.sharing import Masked, Tied, make_plain
from stridenet.sizes import checked_sizes
from stridenet.twin import UnitStrideNetwork, build

__all__ = ["LayerReport", "VerificationReport", "compare_scores", "verify"]

Network = TypeVar("Network", bound=nn.Module)


def verify(
    model: nn.Module,
    twin: nn.Module,
    images: Any = None,
    *,
    raise_on_failure: bool = False,
) -> VerificationReport:
    """Compare the twin with the model that it was made from, in float64, on the CPU.

    twin: what eliminate_stride or convert_layers has made.
    images: (n, c, h, w), or a tensor for each input; two random ones unless given. Of a model that
        convert_layers has converted, a tensor, a tuple of positional or a mapping of keyword arguments;
        without them its layers are compared on small maps, and the networks are not run.

    A layer passes where its error is at most a bound on its rounding. For convolutions, Linear and
    averages this is 2γ_n·(|H|∗|X| + |b|), where n is the number of terms of a sum: the bound on two
    sums of the same terms in different orders. Copies are compared, with noise on their parameters and
    their layers in evaluation mode; the forward is the one that the twin was made of, training or
    evaluation. Networks that fix a type in their forward run in their own type. Settings of a layer
    that show only in training are compared, too. Raises StrideEliminationError if the twin was made
    from another network, and, if so asked, if a layer differs.
    """
    if isinstance(twin, UnitStrideNetwork):
        with undisturbed(), without_dropout():
            report = _Verification(model, twin, images).report()
    elif is_converted(twin):
        plain = copied(twin)
        make_plain(plain, (Tied, Masked))
        report = verify_layers(model, plain, images)
    else:
        raise StrideEliminationError(
            f"{type(twin).__name__} is not a twin: expected what eliminate_stride returns, or a model "
            "in which convert_layers has changed a layer"
        )
    if raise_on_failure and not report.passed:
        raise StrideEliminationError(f"the twin is not equal to the model:\n{report}")
    return report


class _Verification:
    """Compares copies of model and twin, all on the CPU.

    in_float64: whether they compute in that; else in the model's own type, since its forward fixes it.
    """

    def __init__(self, model: nn.Module, twin: UnitStrideNetwork, images: Any) -> None:
        own = copied(unwrapped(model)).cpu()
        planned = planned_like(own, twin)
        self.options, self.sizes = planned.plan.options, checked_sizes(twin.plan.input_size)
        self.dtypes = input_types(planned)
        self.images = self._images(images)
        self.model, self.in_float64, self.traced = self._compare_traced(own, planned)
        if not self.traced.passed:  # nor would the rest say what the model computes
            return
        self.twin = _evaluated(copy.deepcopy(twin).cpu())
        planned.traced.eval()
        made = _evaluated(build(planned))
        self.differing = differing_settings(made, self.twin.network, planned.plan)
        self.rewired = rewired(made.graph, self.twin.network.graph, planned)
        self._cast(made, self.twin)
        _subtract(self.twin.network, made)
        del made
        self.planned = self._add_noise()

    def _images(self, images: Any) -> list[Tensor]:
        if images is None:
            generator = torch.Generator().manual_seed(1)
            given = [
                torch.randn(2, *size, generator=generator, device="cpu") for size in self.sizes
            ]
        else:
            given = [images] if isinstance(images, Tensor) else list(images)
        return [x.detach().to("cpu", torch.float64, copy=True) for x in given]

    @property
    def inputs(self) -> list[Tensor]:
        """Return the images in the type that the networks compute in."""
        if self.in_float64:
            return self.images
        return [x.to(dtype) for x, dtype in zip(self.images, self.dtypes, strict=True)]

    @property
    def dtype(self) -> torch.dtype | None:
        """Return the type that each operation is cast to; None for the type that it has."""
        precise = not self.in_float64 and set(self.dtypes) <= {torch.float32, torch.float64}
        return None if precise else torch.float64

    def _cast(self, *networks: nn.Module) -> None:
        for network in networks if self.in_float64 else ():
            network.double()

    def _compare_traced(
        self, own: nn.Module, planned: PlannedNetwork
    ) -> tuple[nn.Module, bool, LayerReport]:
        """Compare the traced network with the model; return the model in that type, and the report."""
        self.in_float64 = True
        try:
            double = copied(own).double()
            in_double = planned_network(double, self.sizes, self.options)
            if graph_code(in_double.traced) == graph_code(planned.traced):
                return double, True, traced_report(double, in_double, [self.images])
        except Exception:  # a forward that fixes its type may raise anything in another
            pass
        self.in_float64 = False
        return own, False, traced_report(own, planned, [self.inputs])

    def _add_noise(self) -> PlannedNetwork:
        """Add one noise to both networks, as much as leaves the model's outputs finite."""
        for kind in ("full", "gentle", None):
            noisy = copied(self.model)
            if kind is not None:
                add_noise(noisy, kind)
            planned = planned_network(noisy, self.sizes, self.options)
            planned.traced.eval()
            if kind is None or finite(self._run_strided(planned.traced)):
                break
        made = _evaluated(build(planned))
        self._cast(made)
        _add(self.twin.network, made)
        return planned

    def _run_strided(self, traced: fx.GraphModule) -> Any:
        seed()
        return GraphRunner(runnable_layers(traced), traced.graph).run(*map(cloned, self.inputs))

    def report(self) -> VerificationReport:
        """Compare everything, and return the reports in the order in which they were made."""
        if not self.traced.passed:
            return VerificationReport((self.traced,), self.traced.largest_error)
        return VerificationReport(tuple(self._layers()), self._output_difference())

    def _layers(self) -> Iterator[LayerReport]:
        yield self.traced
        images = self.inputs if self.dtype is None else self.images
        try:
            rearranged = self.twin.rearrange(*map(cloned, images))
        except Exception as error:  # a rearrangement that was replaced may raise anything
            yield failed("rearrange", f"raises {one_line(error)}")
            return
        rearranged = [rearranged] if isinstance(rearranged, Tensor) else list(rearranged)
        reports = [*map(_compare_input, images, rearranged, self.planned.plan.inputs)]
        yield worst(reports)
        if self.rewired or inf in [report.largest_error for report in reports]:
            yield from self.rewired
            return
        yield from self._operations(images, rearranged)

    def _operations(self, images: list[Tensor], rearranged: list[Tensor]) -> Iterator[LayerReport]:
        strided, twin = runnable_layers(self.planned.traced), runnable_layers(self.twin.network)
        graph = self.twin.network.graph
        comparison = SideBySide(twin, graph, self.planned, strided, images, self.dtype, again=True)
        try:
            outputs = comparison.run(*map(cloned, rearranged))
        except TwinStopped:
            yield from comparison.reports
            return
        for report in comparison.reports:
            wrong = self.differing.get(report.layer)
            yield wrong if wrong is not None and report.passed else report
        returned = compared_outputs("(outputs)", "restored", comparison.outputs, outputs)
        yield self._forward_report() if returned.passed else returned

    def _forward_report(self) -> LayerReport:
        """Compare the twin as it is called with its graph, whose operations were compared."""
        network = self.twin.network
        seed()
        rearranged = self.twin.rearrange(*map(cloned, self.inputs))
        rearranged = [rearranged] if isinstance(rearranged, Tensor) else list(rearranged)
        try:
            expected = GraphRunner(runnable_layers(network), network.graph).run(*rearranged)
            seed()
            obtained = copy.deepcopy(self.twin)(*map(cloned, self.inputs))
        except Exception as error:  # a forward that was replaced may raise anything
            return failed("(outputs)", f"raises {one_line(error)}")
        return compared_outputs("(outputs)", "restored", expected, obtained)

    def _output_difference(self) -> float:
        try:
            expected = self._run_strided(self.planned.traced)
            seed()
            obtained = self.twin(*map(cloned, self.inputs))
        except Exception:  # a twin that does not run has no outputs to compare
            return inf
        pairs = zip(leaves(expected), leaves(obtained), strict=False)
        zero = torch.zeros((), dtype=torch.float64)
        reports = [
            compared("", "", a, b, zero)
            for a, b in pairs
            if isinstance(a, Tensor) and isinstance(b, Tensor)
        ]
        return max((report.largest_error for report in reports), default=0.0)


# Twins' numbers -------------------------------------------------------------------------------------


def _evaluated(network: Network) -> Network:
    """Return the network in evaluation mode, with parametrized weights as they are, before any cast."""
    network.eval()
    make_plain(network)
    return network


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, including those that no state_dict holds."""
    parameters = network.named_parameters(remove_duplicate=False)
    named = dict(chain(parameters, network.named_buffers(remove_duplicate=False)))
    return {name: tensor for name, tensor in named.items() if tensor.is_floating_point()}


def _subtract(network: nn.Module, made: nn.Module) -> None:
    """Leave in the first network how it differs from the second; zeros, where it is as it was made."""
    own, its = _tensors(network), _tensors(made)
    state, expected = network.state_dict(), made.state_dict()
    changed = sorted(state.keys() ^ expected.keys()) + [
        name for name in state if name in expected and state[name].shape != expected[name].shape
    ]
    if changed:
        raise StrideEliminationError(
            f"the twin's parameters {changed} are not as it was made with: verify the twin as "
            "eliminate_stride made it"
        )
    _each_once(own, its, lambda tensor, other: tensor.sub_(other))


def _add(network: nn.Module, made: nn.Module) -> None:
    """Add the second network's numbers: where there was no difference, these are left exactly."""
    _each_once(_tensors(network), _tensors(made), lambda tensor, other: tensor.add_(other))


def _each_once(own: dict[str, Tensor], its: dict[str, Tensor], change: Any) -> None:
    """Change tensors that both have, each once; those of a layer that was replaced stay."""
    seen: set[int] = set()
    for name, tensor in own.items():
        other = its.get(name)
        if id(tensor) not in seen and other is not None and other.shape == tensor.shape:
            seen.add(id(tensor))
            change(tensor.data, other.data)


# Inputs and scores ----------------------------------------------------------------------------------


def _compare_input(images: Tensor, rearranged: Tensor, plan: InputPlan) -> LayerReport:
    """Compare the twin's input with the phases of the padded image, cut out by slices."""
    padded = F.pad(images, [extent for pair in reversed(plan.padding) for extent in pair])
    expected = images.new_zeros(len(images), *plan.map.unit_stride_size)
    for offset, phase in enumerate(itertools.product(*map(range, plan.map.factor))):
        steps = zip(phase, plan.map.factor, strict=True)
        where: tuple[Any, ...] = (..., *(slice(start, None, step) for start, step in steps))
        sampled = padded[where]
        channels = slice(offset, None, prod(plan.map.factor))
        where = (slice(None), channels, *map(slice, sampled.shape[2:]))
        expected[where] = sampled
    return compared("rearrange", "SpaceToDepth", expected, rearranged, torch.zeros_like(expected))


@torch.no_grad()
def compare_scores(
    model: nn.Module, twin: UnitStrideNetwork, images: Tensor, dtype: str
) -> dict[str, float]:
    """Compare the scores of two networks on images (n, c, h, w).

    Returns on how many images both predict the same class, how many there are, and the largest
    difference of a score; computed in `dtype` ("float32" or "float64") on the CPU.
    """
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


def _copied(network: Network, dtype: torch.dtype) -> Network:
    """Return a copy in evaluation mode on the CPU, with parametrized weights from before the cast."""
    made = copied(network).eval()
    make_plain(made)
    return made.to("cpu", dtype)
