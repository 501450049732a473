"""The check of a twin that was just made: is it equal to its model, on random images?

Two things are compared: the traced network with the model, since tracing may have missed something;
and the twin with the traced network, operation by operation.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from stridenet.checking.comparison import SideBySide, TwinStopped, compared_outputs
from stridenet.checking.noise import add_noise
from stridenet.checking.reports import LayerReport, failed, worst
from stridenet.checking.running import (
    GraphRunner,
    cloned,
    finite,
    one_line,
    runnable_layers,
    seed,
    undisturbed,
    without_dropout,
)
from stridenet.copies import copied
from stridenet.errors import NotEqualError, StrideEliminationError
from stridenet.graph.nodes import nodes_with_op
from stridenet.graph.preparing import traced_network
from stridenet.planner import PlannedNetwork
from stridenet.twin import UnitStrideNetwork

# Numbers of images: two, as one that was traced as a constant fits only one; the second pair is for a
# forward that does not take a single image, as statistics of a batch need more.
BATCHES = ((1, 2), (2, 3))


def check_conversion(model: nn.Module, planned: PlannedNetwork, twin: UnitStrideNetwork) -> None:
    """See that a twin just made is equal to its model, at two numbers of images.

    The traced network is run beside the model, with noise on a copy of the strided parameters; and
    the twin beside the traced network, operation by operation. In float32 and float64 on the processor
    that is done in the network's own arithmetic, elsewhere each operation is cast to float64. Nothing
    of model or twin changes. Raises StrideEliminationError where they are not equal.
    """
    with undisturbed(), without_dropout():
        report, counts = _check_traced(model, planned)
        if not report.passed:
            raise StrideEliminationError(
                f"the forward of {report.operation} gives something else when it is traced than when "
                f"it runs ({_how_far(report)}): let it compute the same for every kind of tensor and "
                "at every call, or convert it without tracing, by convert_layers(model)"
            )
        chosen = _different_by_choice(planned)
        for count in counts:
            # Copies for each, as a forward may write into its buffers.
            layers = runnable_layers(twin.network).eval(), runnable_layers(planned.traced).eval()
            reports = _compare(planned, twin, layers, count)
            wrong = next((r for r in reports if not r.passed and r.layer not in chosen), None)
            if wrong is not None:
                raise NotEqualError(
                    f"{wrong.layer} ({wrong.operation}) is not equal in the twin for {count} images "
                    f"({_how_far(wrong)}): please report this network; convert_layers(model) converts "
                    "layers one by one, and check=False gives this twin as it is"
                )


def _different_by_choice(planned: PlannedNetwork) -> set[str]:
    """Return the BatchNorm layers whose phases have statistics of their own, even in evaluation."""
    if planned.plan.options.batch_norm == "shared":
        return set()
    without = ("running_mean", None)
    return {
        step.layer.name
        for step in planned.steps
        if step.call.module is not None and without in step.call.module._buffers.items()
    }


def _how_far(report: LayerReport) -> str:
    return (
        f"by {report.largest_error:.2g} at values up to {report.largest_value:.2g}, "
        f"{report.share_of_bound:.2g} times the bound on rounding"
    )


def random_inputs(planned: PlannedNetwork, count: int, start: int = 1) -> list[Tensor]:
    """Return normally distributed images for each input, in the traced type, on the processor."""
    generator = torch.Generator().manual_seed(start)
    sizes = [(count, *given.size) for given in planned.plan.inputs]
    return [
        torch.randn(size, generator=generator, dtype=torch.float32, device="cpu").to(dtype)
        for size, dtype in zip(sizes, input_types(planned), strict=True)
    ]


def input_types(planned: PlannedNetwork) -> list[torch.dtype]:
    """Return the type that each input was traced with; without parameters, that of the buffers."""
    inputs = nodes_with_op(planned.traced, "placeholder")
    traced = [node.meta["value"].dtype for node in inputs]
    if next(planned.traced.parameters(), None) is None:
        floats = (b.dtype for b in planned.traced.buffers() if b.is_floating_point())
        traced = [next(floats, traced[0])] * len(traced) if traced else []
    return traced


def _device(network: nn.Module) -> torch.device:
    tensor = next(chain(network.parameters(), network.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def traced_report(
    model: nn.Module, planned: PlannedNetwork, batches: Sequence[Sequence[Tensor]]
) -> LayerReport:
    """Compare the traced network with the model, with noise on both if that leaves finite numbers.

    Neither of them is changed. An error that the model raises on these batches goes on.
    """
    kinds: tuple[Any, ...] = ("full", "gentle", "parameters", None)
    for kind in kinds:
        noisy = copied(model)
        if kind is not None:
            add_noise(noisy, kind)
        layers, graph = with_numbers_of(noisy, planned.traced), planned.traced.graph
        for network in (noisy, layers):
            evaluate_layers(network, planned.traced)
        report = compare_traced(noisy, layers, graph, batches, only_finite=kind is not None)
        if report is None or (not report.passed and _branches_apart(planned, noisy, kind)):
            continue
        return report
    raise AssertionError("without noise, there is always something to compare")


def _branches_apart(planned: PlannedNetwork, noisy: nn.Module, kind: Any) -> bool:
    """Tell whether a forward is traced otherwise where buffers have noise, as it branches on them."""
    if kind in ("parameters", None):
        return False
    sizes = tuple(given.size for given in planned.plan.inputs)
    both = (planned.traced, traced_network(noisy, sizes))
    first, second = ([(n.name, str(n.args)) for n in each.graph.nodes] for each in both)
    return first != second


def _check_traced(model: nn.Module, planned: PlannedNetwork) -> tuple[LayerReport, tuple[int, ...]]:
    """Compare the traced network with the model.

    Returns the report, and numbers of images that the model takes.
    """
    device, errors = _device(model), []
    for counts in BATCHES:
        batches = [[x.to(device) for x in random_inputs(planned, count)] for count in counts]
        try:
            report = traced_report(model, planned, batches)
            if not report.passed:  # by requires_grad, perhaps, which was traced as with gradients
                with torch.enable_grad():
                    report = traced_report(model, planned, batches)
            return report, counts
        except Exception as error:  # the user's forward may raise anything
            errors.append(error)
    raise StrideEliminationError(
        f"the twin could not be checked, as {type(model).__name__} raises on random images "
        f"({one_line(errors[-1])}): check=False converts without it"
    ) from errors[-1]


def _compare(
    planned: PlannedNetwork,
    twin: UnitStrideNetwork,
    layers: tuple[nn.Module, nn.Module],
    count: int,
) -> list[LayerReport]:
    """Compare the twin with the traced network on `count` images, operation by operation.

    layers: copies of the twin's and of the strided network's, in evaluation mode.
    """
    device = _device(twin)
    inputs = [x.to(device) for x in random_inputs(planned, count)]
    own = device.type == "cpu" and all(
        x.dtype in (torch.float32, torch.float64) or x.is_complex() for x in inputs
    )
    dtype = None if own else torch.float64
    if not own:
        inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    comparison = SideBySide(layers[0], twin.network.graph, planned, layers[1], inputs, dtype)
    rearranged = twin.rearrange(*(x.clone() for x in inputs))
    rearranged = [rearranged] if isinstance(rearranged, Tensor) else list(rearranged)
    try:
        outputs = comparison.run(*rearranged)
    except TwinStopped:
        return comparison.reports
    returned = compared_outputs("(outputs)", "restored", comparison.outputs, outputs)
    return [*comparison.reports, returned]


# The traced network beside the model ---------------------------------------------------------------


def evaluate_layers(network: nn.Module, traced: fx.GraphModule) -> None:
    """Set layers that are called whole to evaluation; modules that call them keep the traced mode."""
    modules = dict(network.named_modules())
    for node in traced.graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
            module = modules.get(name, modules.get(name.removeprefix("0.").removeprefix("0")))
            if module is not None:
                module.eval()


def with_numbers_of(model: nn.Module, traced: fx.GraphModule) -> nn.Module:
    """Return copies of the traced network's layers, with parameters and copied buffers of the model.

    Tensors that the forward makes are no part of the model: they stay as they are.
    """
    layers = runnable_layers(traced)
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state |= {name: buffer.clone() for name, buffer in _buffers(model)}
    for name, tensor in chain(layers.named_parameters(remove_duplicate=False), _buffers(layers)):
        source = state.get(name, state.get(name.removeprefix("0.")))
        if source is not None:
            tensor.data = source.data
    return layers


def _buffers(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return network.named_buffers(remove_duplicate=False)


def compare_traced(
    model: nn.Module,
    layers: nn.Module,
    graph: fx.Graph,
    batches: Sequence[Sequence[Tensor]],
    only_finite: bool = False,
) -> LayerReport | None:
    """Compare the traced network, a graph of its layers, with the model on one batch after the other.

    Both are copies that belong to the comparison: their forward may change them, and must do so
    alike. An error that the model raises goes on. only_finite: None where the model gives a number
    that is not, since such numbers show nothing.
    """
    reports, kind = [], type(model).__name__
    for inputs in batches:
        seed()
        expected = model(*map(cloned, inputs))
        if only_finite and not finite(expected):
            return None
        try:
            seed()
            obtained = GraphRunner(layers, graph).run(*map(cloned, inputs))
        except Exception as error:  # other operations than the model's may raise anything
            return failed("(traced)", f"{kind} raises {one_line(error)}")
        reports.append(compared_outputs("(traced)", kind, expected, obtained))
    return worst(reports)
