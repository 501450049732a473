"""The twin as a module, and how it is built from its plan."""

import copy
import operator
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import Tensor, fx, nn

from stridenet.graph.nodes import tensors
from stridenet.graph.preparing import leave_unsaved, unsaved_buffers
from stridenet.layers import DepthToSpace, EachInput, EachToSpace, SpaceToDepth
from stridenet.phases import FeatureMap
from stridenet.plan import EliminationPlan
from stridenet.planner import PlannedNetwork


class UnitStrideNetwork(nn.Module):
    """Runs `network`, of unit-stride layers alone, after `rearrange`, which makes phase forms.

    Takes ordinary images (n, c, h, w) of the size that it was made for, and returns what the strided
    network returns, up to rounding. `plan` holds its maps and filters; `strided` is the network that it
    was made from, without weights, which a twin put together by hand does not have.
    """

    def __init__(
        self, network: fx.GraphModule, plan: EliminationPlan, strided: fx.GraphModule | None = None
    ) -> None:
        super().__init__()
        self.plan = plan
        self._strided = (strided,)  # no module of the twin's: in a tuple, torch does not see it
        each = [SpaceToDepth(i.size, i.padding, i.map.factor) for i in plan.inputs]
        self.rearrange: nn.Module = each[0] if len(each) == 1 else EachInput(each)
        self.network = network

    @property
    def strided(self) -> fx.GraphModule | None:
        """Return the strided network on the meta device, without weights; None if it is not known."""
        return self._strided[0]

    def forward(self, images: Tensor) -> Any:
        """Return what the strided network returns for ordinary images."""
        return self.network(self.rearrange(images))


class UnitStrideNetworkOfSeveral(UnitStrideNetwork):
    """Runs the twin of a network with several inputs."""

    def forward(self, *images: Tensor) -> Any:
        """Return what the strided network returns for a batch of images for each input."""
        return self.network(*self.rearrange(*images))


def twin_of(planned: PlannedNetwork) -> UnitStrideNetwork:
    """Return the twin of a planned network, its weights copied."""
    kind = UnitStrideNetwork if len(planned.plan.inputs) == 1 else UnitStrideNetworkOfSeveral
    return kind(build(planned), planned.plan, without_weights(planned.traced))


def build(planned: PlannedNetwork) -> fx.GraphModule:
    """Return the layers of the twin, in the traced network's graph; its nodes keep their names."""
    traced, graph = planned.traced, fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(traced.graph, twins)
    layers = _replacements(planned)
    for step in planned.steps:
        if step.layer.name in layers:
            node = twins[step.call.node]
            node.args, node.kwargs = tuple(twins[operand] for operand in step.call.operands), {}
            node.op, node.target = "call_module", step.layer.name
    for node in graph.nodes:
        node.meta = {}
        if node.op in ("call_module", "get_attr") and node.target not in layers:
            layers[node.target] = copy.deepcopy(operator.attrgetter(node.target)(traced))
    originals = {twin: node for node, twin in twins.items()}

    def restored(node: fx.Node) -> fx.Node:
        original = originals[node]
        feature_map = planned.map_of(original) if tensors(original.meta["value"]) else None
        if feature_map is None or feature_map.phases == 1:
            return node
        layers[f"restore_{node.name}"] = _restoring(original.meta["value"], feature_map)
        return graph.call_module(f"restore_{node.name}", (node,))

    graph.output(fx.node.map_arg(result, restored))
    twin = fx.GraphModule(layers, graph, class_name="UnitStrideLayers")
    leave_unsaved(twin, unsaved_buffers(traced))
    return twin


def _replacements(planned: PlannedNetwork) -> dict[str, Any]:
    """Return the modules that stand in place of operations, by the names of their layers.

    Where a module of the network is called again and has another one in its place at one call, it has
    copies at all others, as they are layers of their own.
    """
    built = [
        step.rule.build(step.call, step.layer) if step.is_replaced else None
        for step in planned.steps
    ]
    pairs = list(zip(planned.steps, built, strict=True))
    changed = {step.call.node.target for step, module in pairs if module is not None}
    layers: dict[str, Any] = {}
    for step, module in pairs:
        call = step.call
        if module is None and (call.module is None or call.node.target not in changed):
            continue
        trained = planned.traced if call.module is None else call.module
        layers[step.layer.name] = (module or call.as_module()).train(trained.training)
    return layers


def _restoring(value: Any, feature_map: FeatureMap) -> nn.Module:
    """Return the module that makes ordinary maps of a phase form, or of a tuple of them."""
    if isinstance(value, Tensor):
        return DepthToSpace(feature_map)
    sizes = [tuple(part.shape[1:]) for part in value]
    return EachToSpace([replace(feature_map, size=size) for size in sizes])


def without_weights(traced: fx.GraphModule) -> fx.GraphModule:
    """Return a copy whose tensors take no memory; it can be pickled, as it holds no tracer."""
    empty: dict[int, Any] = {}
    for tensor in chain(traced.parameters(), traced.buffers()):
        meta = tensor.detach().to("meta")
        parameter = isinstance(tensor, nn.Parameter)
        empty[id(tensor)] = nn.Parameter(meta, tensor.requires_grad) if parameter else meta
    graph = fx.Graph()
    graph.output(graph.graph_copy(traced.graph, {}))
    for node in graph.nodes:
        node.meta = {}
    network = copy.deepcopy(fx.GraphModule(traced, graph), empty)
    leave_unsaved(network, unsaved_buffers(traced))
    return network
