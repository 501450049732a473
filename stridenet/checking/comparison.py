"""Runs a twin, and beside each of its operations the strided one on the very maps that it received.

What each converted operation gives must be the strided one's result, up to the rounding of this one
operation; by induction over the operations the two networks are then equal, and no error is carried
forward. A channel that shows nothing, because three quarters of it are one number, gets random ones
before it goes on: behind a scale that starts at zero, an operation could be anything.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from stridenet.checking.reports import LayerReport, compared, equal_to_the_bit, failed, worst
from stridenet.checking.running import GraphRunner, cloned, leaves, one_line, seed
from stridenet.graph.nodes import nodes_with_op, tensors
from stridenet.plan import LayerPlan
from stridenet.planner import PlannedNetwork
from stridenet.rules.pointwise import Elementwise
from stridenet.rules.rounding import rounding_bound, unit_roundoff

# Their result has a size, and whatever numbers the memory held.
WITHOUT_NUMBERS = frozenset({torch.empty, torch.empty_like, torch.empty_strided, "new_empty"})


class TwinStopped(Exception):  # noqa: N818  (its report says what it is)
    """Raised where an operation of the twin raises; `reports` has what was compared before."""


class SideBySide(GraphRunner):
    """Runs the twin, and beside each of its operations the strided one on the same maps.

    network: the twin's layers, in evaluation mode, and its graph; strided: the layers of
    `planned.traced`, in evaluation mode. After `run`, `reports` has one for each operation that ran.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: fx.Graph,
        planned: PlannedNetwork,
        strided: nn.Module,
        inputs: Sequence[Tensor],
        dtype: torch.dtype | None = None,
        again: bool = False,
    ) -> None:
        """again: run layers with weights and functions of single numbers on random maps, too."""
        super().__init__(network, graph, dtype)
        self.again = again
        self.planned = planned
        self.strided = GraphRunner(strided, planned.traced.graph, dtype)
        self.nodes = {node.name: node for node in planned.traced.graph.nodes}
        self.twins = {node.name: node for node in graph.nodes}
        self.steps = {step.call.node.name: step for step in planned.steps}
        self.images = dict(zip(nodes_with_op(planned.traced, "placeholder"), inputs, strict=True))
        self.reports: list[LayerReport] = []
        self.returned = self.nodes["output"].all_input_nodes
        self.reals: dict[fx.Node, Any] = {}  # of those that are returned
        self.generator = torch.Generator().manual_seed(0)

    @property
    def outputs(self) -> Any:
        """Return what the twin should return."""
        return fx.node.map_arg(self.nodes["output"].args[0], self.reals.get)

    def run_node(self, n: fx.Node) -> Any:
        result = self._run_both(n) if n.name in self.steps else super().run_node(n)
        node = self.nodes.get(n.name)
        if node is not None and node in self.returned:
            self.reals[node] = self._real(node, result)
        return result

    def _run_both(self, n: fx.Node) -> Any:
        call, rule = self.steps[n.name].call, self.steps[n.name].rule
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
        """Compare an operation on random maps.

        Zeros before a filter would hide its weights; only far from zero does a ReLU6 differ from a
        ReLU.
        """
        source = self.steps[n.name].call.maps[0]
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
        """Return what the twin's operation gives, and its report."""
        call, layer = self.steps[n.name].call, self.steps[n.name].layer
        self.strided.env = {node: self._received(node) for node in call.operands}
        given = [cloned(v) for node in call.maps for v in tensors(self.strided.env[node])]
        seed()
        expected = tensors(self.strided.run_node(call.node))
        try:
            seed()
            result = super().run_node(n)
            obtained = tensors(self._real(call.node, result))
        except Exception as error:  # a layer that does not fit any more may raise anything
            raise self._stopped(layer, f"raises {one_line(error)}") from error
        if len(expected) != len(obtained):
            raise self._stopped(layer, f"gives {len(obtained)} tensors, not {len(expected)}")
        name, operation = layer.name, layer.operation
        if call.operation in WITHOUT_NUMBERS:
            expected, obtained = ([torch.zeros_like(t) for t in ts] for ts in (expected, obtained))
        return result, worst(
            equal_to_the_bit(name, operation, a, b)
            or compared(name, operation, a, b, rounding_bound(call, given, a))
            for a, b in zip(expected, obtained, strict=True)
        )

    def _stopped(self, layer: LayerPlan, what: str) -> "TwinStopped":
        self.reports.append(failed(layer.name, f"{layer.operation} {what}"))
        return TwinStopped(what)

    def _received(self, node: fx.Node) -> Any:
        """Return what the strided operation is given for a node: a copy, as it may work in place."""
        if node.op == "get_attr":
            return _clone_all(self.strided.get_attr(node.target, (), {}))
        if node in self.images and self.planned.map_of(node).phases > 1:
            return self.images[node].clone()
        return self._real(node, self.env[self.twins[node.name]])

    def _real(self, node: fx.Node, value: Any) -> Any:
        """Return the positions of a twin's map that the strided network has too."""
        if not tensors(value) or self.planned.map_of(node).phases == 1:
            return _clone_all(value)
        feature_map = self.planned.map_of(node)
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
        """Return the map, with random numbers in channels that are mostly one number.

        Such channels show nothing. The numbers are from 0.1 to 0.9, where every function is defined.
        """
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
            return value
        at = self.planned.map_of(node).channel
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


def _clone_all(value: Any) -> Any:
    return tree_map(lambda v: cloned(v) if isinstance(v, Tensor) else v, value)


# Outputs -------------------------------------------------------------------------------------------


def compared_outputs(layer: str, what: str, expected: Any, obtained: Any) -> LayerReport:
    """Compare two outputs of the same operations, part by part, up to four roundings."""
    first, second = leaves(expected), leaves(obtained)
    if len(first) != len(second):
        return failed(layer, f"{what}: {len(second)} parts, not {len(first)}")
    reports = []
    for a, b in zip(first, second, strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            plain = a.abs() if a.is_complex() or a.is_floating_point() else a.double().abs()
            reports.append(compared(layer, what, a, b, _allowed_share(a) * plain))
        elif isinstance(a, Tensor) or isinstance(b, Tensor) or not _alike(a, b):
            return failed(layer, f"{what}: {_format(b)}, not {_format(a)}")
    return worst(reports or [LayerReport(layer, what, 0.0, 0.0, 0.0, True)])


def _allowed_share(tensor: Tensor) -> float:
    """Return the allowed share of a number; accelerators may take another algorithm at each call."""
    return (4 if tensor.device.type == "cpu" else 2**10) * unit_roundoff([tensor])


def _alike(a: Any, b: Any) -> bool:
    """Compare numbers and names by value, and other objects by their class."""
    if isinstance(a, (int, float, str, bytes, torch.dtype, torch.device)):
        return bool(a == b) or (a != a and b != b)
    return type(a) is type(b)


def _format(value: Any) -> str:
    return type(value).__name__ if isinstance(value, Tensor) else repr(value)[:40]
