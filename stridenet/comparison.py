"""Runs a twin, and beside each of its operations the strided one on the very maps that it received.

What each converted operation gives must be the strided one's result, up to the rounding of this one
operation; by induction over the operations the two networks are then equal, and no error is carried
forward. A channel that shows nothing, because three quarters of it are one number, gets random ones
before it goes on: behind a scale that starts at zero, an operation could be anything.
"""

import copy
import inspect
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from stridenet.copies import copied, same_random_states
from stridenet.errors import NotEqualError, StrideEliminationError
from stridenet.graph.nodes import tensors
from stridenet.graph.preparing import traced_network
from stridenet.noise import add_noise
from stridenet.plan import LayerPlan
from stridenet.planner import Conversion
from stridenet.reports import LayerReport, compared, equal_to_the_bit, failed, worst
from stridenet.rules.pointwise import Elementwise
from stridenet.rules.rounding import rounding_bound, unit_roundoff
from stridenet.twin import UnitStrideNetwork

# Of images, twice, as a number of images that was baked in fits only one; the others for a forward
# that does not take a single image, as statistics of a batch need more.
BATCHES = ((1, 2), (2, 3))
# What they give has a size, and whatever numbers the memory held.
WITHOUT_NUMBERS = frozenset({torch.empty, torch.empty_like, torch.empty_strided, "new_empty"})


# Copies and quiet -----------------------------------------------------------------------------------


def layers_of(traced: fx.GraphModule) -> nn.Module:
    """A copy of all that a graph calls, without the graph; the parameters' numbers are shared."""
    holder = nn.Module()
    for name, value in vars(traced).items():
        if name in ("_modules", "_parameters", "_buffers"):
            setattr(holder, name, value)
        elif name[:1] != "_" and name != "training":  # what is neither, but read by the graph
            object.__setattr__(holder, name, value)
    return copied(holder, share_tensors=True)


class without_dropout(TorchFunctionMode):  # noqa: N801  (it is used as a context)
    """Functions that drop numbers at random drop none: two forms of one map would lose others."""

    FUNCTIONS = frozenset({
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
        F.rrelu,
    })  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self.FUNCTIONS:
            return func(*args, **(kwargs or {}))
        bound = inspect.signature(func).bind(*args, **(kwargs or {}))
        bound.arguments["training"] = False
        return func(*bound.args, **bound.kwargs)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Runs networks without a trace: random states are put back, nothing is recorded or cast."""
    with (
        same_random_states(),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def seed() -> None:
    """Start all random numbers that a forward may draw anew."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


def cloned(tensor: Tensor) -> Tensor:
    """A copy in the same layout, gaps between rows too: kernels sum in an order that depends on it."""
    if tensor.is_sparse or tensor.is_complex() or not tensor.numel():
        return tensor.clone()
    once = tensor
    for axis, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        once = once.narrow(axis, 0, 1) if step == 0 and size > 1 else once
    copied = torch.empty_strided(
        once.size(), once.stride(), dtype=tensor.dtype, device=tensor.device
    )
    try:
        return copied.copy_(once).expand(tensor.shape)
    except RuntimeError:  # its rows overlap
        return tensor.clone()


# Operation by operation -----------------------------------------------------------------------------


class Runner(fx.Interpreter):
    """Runs a graph of its network; with a dtype, each operation in that, whatever the network's.

    Layers are cast one at a time, so that a network in half precision is never held twice.
    """

    def __init__(
        self, network: nn.Module, graph: fx.Graph | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(network, graph=graph)
        self.extra_traceback = False
        self.dtype = dtype

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module: Any = self.fetch_attr(target)
        if self.dtype is not None:
            module = copy.deepcopy(module).to(self.dtype)
            args, kwargs = tree_map(self._cast, (args, kwargs))
        return module(*args, **kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._cast(super().get_attr(target, args, kwargs))

    def _cast(self, value: Any) -> Any:
        known = self.dtype is not None and isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self.dtype) if known else value


class TwinStopped(Exception):  # noqa: N818  (its report says what it is)
    """An operation of the twin that raised; what came before is compared."""


class Comparison(Runner):
    """Runs the twin, and beside each of its operations the strided one on the same maps.

    network: the twin's layers, in evaluation mode, and its graph; strided: the layers of
    `conversion.traced`, in evaluation mode. After `run`, `reports` has one for each operation that ran.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: fx.Graph,
        conversion: Conversion,
        strided: nn.Module,
        inputs: Sequence[Tensor],
        dtype: torch.dtype | None = None,
        again: bool = False,
    ) -> None:
        """again: layers with weights and functions of single numbers meet random maps, too."""
        super().__init__(network, graph, dtype)
        self.again = again
        self.conversion = conversion
        self.strided = Runner(strided, conversion.traced.graph, dtype)
        self.nodes = {node.name: node for node in conversion.traced.graph.nodes}
        self.twins = {node.name: node for node in graph.nodes}
        plans = zip(conversion.calls, conversion.rules, conversion.plan.layers, strict=True)
        self.steps = {call.node.name: (call, rule, layer) for call, rule, layer in plans}
        placeholders = (node for node in self.nodes.values() if node.op == "placeholder")
        self.images = dict(zip(placeholders, inputs, strict=True))
        self.reports: list[LayerReport] = []
        self.returned = self.nodes["output"].all_input_nodes
        self.reals: dict[fx.Node, Any] = {}  # of those that are returned
        self.generator = torch.Generator().manual_seed(0)

    @property
    def outputs(self) -> Any:
        """What the twin has to return."""
        return fx.node.map_arg(self.nodes["output"].args[0], self.reals.get)

    def run_node(self, n: fx.Node) -> Any:
        result = self._run_both(n) if n.name in self.steps else super().run_node(n)
        node = self.nodes.get(n.name)
        if node is not None and node in self.returned:
            self.reals[node] = self._real(node, result)
        return result

    def _run_both(self, n: fx.Node) -> Any:
        call, rule, _ = self.steps[n.name]
        reports = []
        weighted = call.module is not None and next(call.module.parameters(), None) is not None
        if self.again and len(call.maps) == 1 and (weighted or isinstance(rule, Elementwise)):
            reports.append(self._on_random_maps(n, weighted))
        result, report = self._compared(n)
        reports.append(report)
        if not all(report.passed for report in reports):
            self.reports.append(next(report for report in reports if not report.passed))
        else:
            self.reports.append(report)
        return self._lively(call.node, result)

    def _on_random_maps(self, n: fx.Node, weighted: bool) -> LayerReport:
        """Zeros before a filter hide its weights; far from zero, a ReLU6 is no ReLU."""
        source = self.steps[n.name][0].maps[0]
        twin = self.twins[source.name]
        before, image = self.env[twin], self.images.get(source)
        random_already = image is not None and weighted  # and padded, perhaps
        if random_already or not isinstance(before, Tensor) or not before.is_floating_point():
            return self._compared(n)[1]
        numbers = torch.randn(before.shape, generator=self.generator, device="cpu")
        self.env[twin] = (numbers if weighted else 8 * numbers).to(before)
        if image is not None:
            self.images[source] = self._real(source, self.env[twin])
        try:
            return self._compared(n)[1]
        finally:
            self.env[twin] = before
            if image is not None:
                self.images[source] = image

    def _compared(self, n: fx.Node) -> tuple[Any, LayerReport]:
        """What the twin's operation gives, and how it compares."""
        call, rule, layer = self.steps[n.name]
        self.strided.env = {node: self._received(node) for node in call.operands}
        given = [cloned(v) for node in call.maps for v in tensors(self.strided.env[node])]
        seed()
        expected = tensors(self.strided.run_node(call.node))
        try:
            seed()
            result = super().run_node(n)
            obtained = tensors(self._real(call.node, result))
        except Exception as error:  # a layer that does not fit any more may raise anything
            raise self._stopped(layer, f"raises {told(error)}") from error
        if len(expected) != len(obtained):
            raise self._stopped(layer, f"gives {len(obtained)} tensors, not {len(expected)}")
        name, operation = layer.name, layer.operation
        if call.operation in WITHOUT_NUMBERS:
            expected, obtained = ([torch.zeros_like(t) for t in ts] for ts in (expected, obtained))
        return result, worst(
            equal_to_the_bit(name, operation, a, b)
            or compared(name, operation, a, b, rounding_bound(call, rule, given, a))
            for a, b in zip(expected, obtained, strict=True)
        )

    def _stopped(self, layer: LayerPlan, what: str) -> "TwinStopped":
        self.reports.append(failed(layer.name, f"{layer.operation} {what}"))
        return TwinStopped(what)

    def _received(self, node: fx.Node) -> Any:
        """What the strided operation is given for a node: a copy, as it may work in place."""
        if node.op == "get_attr":
            return _cloned(self.strided.get_attr(node.target, (), {}))
        if node in self.images and self.conversion.map_of(node).phases > 1:
            return self.images[node].clone()
        return self._real(node, self.env[self.twins[node.name]])

    def _real(self, node: fx.Node, value: Any) -> Any:
        """The positions of a twin's map that the strided network has too."""
        if not tensors(value) or self.conversion.map_of(node).phases == 1:
            return _cloned(value)
        feature_map = self.conversion.map_of(node)
        if isinstance(value, Tensor):
            return feature_map.to_maps(value).clone()
        parts = []
        for part, traced in zip(value, node.meta["value"], strict=True):
            if isinstance(part, Tensor):
                whole = replace(feature_map, size=tuple(traced.shape[1:]))
                part = whole.to_maps(part).clone()
            parts.append(part)
        return parts

    def _lively(self, node: fx.Node, value: Any) -> Any:
        """Return the map; where a channel is still, random numbers from 0.1 to 0.9, which suit all."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
            return value
        at = self.conversion.map_of(node).channel
        if at is None:
            return value
        channel = 1 + at
        others = [axis for axis in range(value.ndim) if axis != channel]
        if channel >= value.ndim or not others:
            return value
        numbers = value.numel() // value.shape[channel]  # of each channel
        lowest = value.amin(others, keepdim=True) if numbers > 3 else value.new_zeros(())
        still = (value == lowest).sum(others, keepdim=True) > 0.75 * numbers
        if not bool(still.any()):
            return value
        lively = torch.rand(value.shape, generator=self.generator, device="cpu") * 0.8 + 0.1
        return torch.where(still, lively.to(value), value)


def told(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _cloned(value: Any) -> Any:
    return tree_map(lambda v: cloned(v) if isinstance(v, Tensor) else v, value)


# The traced network beside the model ----------------------------------------------------------------


def leaves(value: Any) -> list[Any]:
    """All that an output consists of: of dataclasses and objects of torch's containers, their parts."""
    found = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor) or not (is_dataclass(leaf) or isinstance(leaf, dict)):
            found.append(leaf)
        else:
            found += leaves(list(leaf.values() if isinstance(leaf, dict) else vars(leaf).values()))
    return found


def compared_outputs(layer: str, what: str, expected: Any, obtained: Any) -> LayerReport:
    """Two outputs that come from the same operations: equal up to four roundings, part by part."""
    first, second = leaves(expected), leaves(obtained)
    if len(first) != len(second):
        return failed(layer, f"{what}: {len(second)} parts, not {len(first)}")
    reports = []
    for a, b in zip(first, second, strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            plain = a.abs() if a.is_complex() or a.is_floating_point() else a.double().abs()
            reports.append(compared(layer, what, a, b, _spare(a) * plain))
        elif isinstance(a, Tensor) or isinstance(b, Tensor) or not _alike(a, b):
            return failed(layer, f"{what}: {_shown(b)}, not {_shown(a)}")
    return worst(reports or [LayerReport(layer, what, 0.0, 0.0, 0.0, True)])


def _spare(tensor: Tensor) -> float:
    """Devices other than a processor may take another algorithm at each call."""
    return (4 if tensor.device.type == "cpu" else 2**10) * unit_roundoff([tensor])


def _alike(a: Any, b: Any) -> bool:
    """Numbers and names are compared; of other objects, the kind."""
    if isinstance(a, (int, float, str, bytes, torch.dtype, torch.device)):
        return bool(a == b) or (a != a and b != b)
    return type(a) is type(b)


def _shown(value: Any) -> str:
    return type(value).__name__ if isinstance(value, Tensor) else repr(value)[:40]


def stilled(network: nn.Module, traced: fx.GraphModule) -> None:
    """Layers that are called whole act as in evaluation; what calls them keeps the traced mode."""
    modules = dict(network.named_modules())
    for node in traced.graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
            module = modules.get(name, modules.get(name.removeprefix("0.").removeprefix("0")))
            if module is not None:
                module.eval()


def with_numbers_of(model: nn.Module, traced: fx.GraphModule) -> nn.Module:
    """A copy of the traced network's layers with the model's parameters and a copy of its buffers.

    Tensors that the forward makes are no part of the model: they stay as they are.
    """
    layers = layers_of(traced)
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
    """The traced network, a graph of its layers, beside the model on batches, one after the other.

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
            obtained = Runner(layers, graph).run(*map(cloned, inputs))
        except Exception as error:  # other operations than the model's may raise anything
            return failed("(traced)", f"{kind} raises {told(error)}")
        reports.append(compared_outputs("(traced)", kind, expected, obtained))
    return worst(reports)


def finite(value: Any) -> bool:
    """Whether all numbers of an output are finite."""
    return all(bool(t.isfinite().all()) for t in leaves(value) if isinstance(t, Tensor))


# The check at conversion ----------------------------------------------------------------------------


def check_conversion(model: nn.Module, conversion: Conversion, twin: UnitStrideNetwork) -> None:
    """See that a twin just made is equal to its model, at two numbers of images.

    The traced network is run beside the model, with noise on a copy of the strided parameters; and
    the twin beside the traced network, operation by operation. In float32 and float64 on the processor
    that is done in the network's own arithmetic, elsewhere each operation is cast to float64. Nothing
    of model or twin changes. Raises StrideEliminationError where they are not equal.
    """
    with undisturbed(), without_dropout():
        report, counts = _check_traced(model, conversion)
        if not report.passed:
            raise StrideEliminationError(
                f"the forward of {report.operation} gives something else when it is traced than when "
                f"it runs ({_how_far(report)}): let it compute the same for every kind of tensor and "
                "at every call, or convert it without tracing, by convert_layers(model)"
            )
        chosen = _different_by_choice(conversion)
        for count in counts:
            # Copies for each, as a forward may write into its buffers.
            layers = layers_of(twin.network).eval(), layers_of(conversion.traced).eval()
            reports = _compare(conversion, twin, layers, count)
            wrong = next((r for r in reports if not r.passed and r.layer not in chosen), None)
            if wrong is not None:
                raise NotEqualError(
                    f"{wrong.layer} ({wrong.operation}) is not equal in the twin for {count} images "
                    f"({_how_far(wrong)}): please report this network; convert_layers(model) converts "
                    "layers one by one, and check=False gives this twin as it is"
                )


def _different_by_choice(conversion: Conversion) -> set[str]:
    """BatchNorm layers that give each phase statistics of its own, even in evaluation."""
    if conversion.options.batch_norm == "shared":
        return set()
    pairs = zip(conversion.calls, conversion.plan.layers, strict=True)
    without = ("running_mean", None)
    return {
        layer.name
        for call, layer in pairs
        if call.module is not None and without in call.module._buffers.items()
    }


def _how_far(report: LayerReport) -> str:
    return (
        f"by {report.largest_error:.2g} at values up to {report.largest_value:.2g}, "
        f"{report.share_of_bound:.2g} times the bound on rounding"
    )


def random_inputs(conversion: Conversion, count: int, start: int = 1) -> list[Tensor]:
    """Normally distributed images for each input, in the type that was traced, on the processor."""
    generator = torch.Generator().manual_seed(start)
    sizes = [(count, *given.size) for given in conversion.plan.inputs]
    return [
        torch.randn(size, generator=generator, dtype=torch.float32, device="cpu").to(dtype)
        for size, dtype in zip(sizes, input_types(conversion), strict=True)
    ]


def input_types(conversion: Conversion) -> list[torch.dtype]:
    """What each input was traced with; of a network without parameters, the type of its buffers."""
    placeholders = [n for n in conversion.traced.graph.nodes if n.op == "placeholder"]
    traced = [node.meta["value"].dtype for node in placeholders]
    if next(conversion.traced.parameters(), None) is None:
        floats = (b.dtype for b in conversion.traced.buffers() if b.is_floating_point())
        traced = [next(floats, traced[0])] * len(traced) if traced else []
    return traced


def _device(network: nn.Module) -> torch.device:
    tensor = next(chain(network.parameters(), network.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def traced_report(
    model: nn.Module, conversion: Conversion, batches: Sequence[Sequence[Tensor]]
) -> LayerReport:
    """The traced network beside the model, both with noise, unless that leaves no finite numbers.

    Neither of them is changed. An error that the model raises on these batches goes on.
    """
    kinds: tuple[Any, ...] = ("full", "gentle", "parameters", None)
    for kind in kinds:
        noisy = copied(model)
        if kind is not None:
            add_noise(noisy, kind)
        layers, graph = with_numbers_of(noisy, conversion.traced), conversion.traced.graph
        for network in (noisy, layers):
            stilled(network, conversion.traced)
        report = compare_traced(noisy, layers, graph, batches, only_finite=kind is not None)
        if report is None or (not report.passed and _branches_apart(conversion, noisy, kind)):
            continue
        return report
    raise AssertionError("without noise, there is always something to compare")


def _branches_apart(conversion: Conversion, noisy: nn.Module, kind: Any) -> bool:
    """Whether a forward does something else where buffers have noise: it is traced otherwise."""
    if kind in ("parameters", None):
        return False
    sizes = tuple(given.size for given in conversion.plan.inputs)
    both = (conversion.traced, traced_network(noisy, sizes))
    first, second = ([(n.name, str(n.args)) for n in each.graph.nodes] for each in both)
    return first != second


def _check_traced(model: nn.Module, conversion: Conversion) -> tuple[LayerReport, tuple[int, ...]]:
    """The report, and the numbers of images that the model takes."""
    device, errors = _device(model), []
    for counts in BATCHES:
        batches = [[x.to(device) for x in random_inputs(conversion, count)] for count in counts]
        try:
            report = traced_report(model, conversion, batches)
            if not report.passed:  # by requires_grad, perhaps, which was traced as with gradients
                with torch.enable_grad():
                    report = traced_report(model, conversion, batches)
            return report, counts
        except Exception as error:  # the user's forward may raise anything
            errors.append(error)
    raise StrideEliminationError(
        f"the twin could not be checked, as {type(model).__name__} raises on random images "
        f"({told(errors[-1])}): check=False converts without it"
    ) from errors[-1]


def _compare(
    conversion: Conversion,
    twin: UnitStrideNetwork,
    layers: tuple[nn.Module, nn.Module],
    count: int,
) -> list[LayerReport]:
    """layers: copies of the twin's and of the strided network's, in evaluation mode."""
    device = _device(twin)
    inputs = [x.to(device) for x in random_inputs(conversion, count)]
    own = device.type == "cpu" and all(
        x.dtype in (torch.float32, torch.float64) or x.is_complex() for x in inputs
    )
    dtype = None if own else torch.float64
    if not own:
        inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    comparison = Comparison(layers[0], twin.network.graph, conversion, layers[1], inputs, dtype)
    rearranged = twin.rearrange(*(x.clone() for x in inputs))
    rearranged = [rearranged] if isinstance(rearranged, Tensor) else list(rearranged)
    try:
        outputs = comparison.run(*rearranged)
    except TwinStopped:
        return comparison.reports
    returned = compared_outputs("(outputs)", "restored", comparison.outputs, outputs)
    return [*comparison.reports, returned]
