"""The twin as a module, and how it is built from its plan."""

import copy
import operator
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import Tensor, fx, nn

from stridenet.graph.preparing import leave_unsaved, unsaved_buffers
from stridenet.layers import DepthToSpace, EachInput, EachToSpace, SpaceToDepth
from stridenet.phases import FeatureMap
from stridenet.plan import EliminationPlan
from stridenet.planner import Conversion, is_replaced


class UnitStrideNetwork(nn.Module):
    """The twin: `network` (unit-stride layers only) after `rearrange` (images to their phase form).

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
        """The strided network without its weights, on the meta device, if the twin was made here."""
        return self._strided[0]

    def forward(self, images: Tensor) -> Any:
        """Ordinary images to what the strided network returns."""
        return self.network(self.rearrange(images))


class UnitStrideNetworkOfSeveral(UnitStrideNetwork):
    """The twin of a network with several inputs."""

    def forward(self, *images: Tensor) -> Any:
        """A batch for each input to what the strided network returns."""
        return self.network(*self.rearrange(*images))


def build(conversion: Conversion) -> fx.GraphModule:
    """The layers of the twin, in the traced network's graph; its nodes keep their names."""
    traced, graph = conversion.traced, fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(traced.graph, twins)
    steps = list(zip(conversion.calls, conversion.rules, conversion.plan.layers, strict=True))
    modules = [
        rule.build(call, layer) if is_replaced(call, rule, layer) else None
        for call, rule, layer in steps
    ]
    changed = {c.node.target for (c, _, _), module in zip(steps, modules, strict=True) if module}
    layers: dict[str, Any] = {}
    for (call, _, layer), module in zip(steps, modules, strict=True):
        if module is None and (call.module is None or call.node.target not in changed):
            continue
        trained = traced if call.module is None else call.module
        layers[layer.name] = (module or call.as_module()).train(trained.training)
        node = twins[call.node]
        node.args, node.kwargs = tuple(twins[operand] for operand in call.operands), {}
        node.op, node.target = "call_module", layer.name
    nodes = [n for n in traced.graph.nodes if n.op == "placeholder"] + [c.node for c, _, _ in steps]
    maps = {twins[node]: conversion.map_of(node) for node in nodes}
    values = {twins[node]: node.meta["value"] for node in nodes}
    factored = {node: feature_map for node, feature_map in maps.items() if feature_map.phases > 1}
    for node in graph.nodes:
        node.meta = {}
        if node.op in ("call_module", "get_attr") and node.target not in layers:
            layers[node.target] = copy.deepcopy(operator.attrgetter(node.target)(traced))

    def restored(node: fx.Node) -> fx.Node:
        if node not in factored:
            return node
        layers[f"restore_{node.name}"] = _restoring(values[node], factored[node])
        return graph.call_module(f"restore_{node.name}", (node,))

    graph.output(fx.node.map_arg(result, restored))
    twin = fx.GraphModule(layers, graph, class_name="UnitStrideLayers")
    leave_unsaved(twin, unsaved_buffers(traced))
    return twin


def _restoring(value: Any, feature_map: FeatureMap) -> nn.Module:
    """What makes ordinary maps of a phase form, or of each of several that one operation gives."""
    if isinstance(value, Tensor):
        return DepthToSpace(feature_map)
    sizes = [tuple(part.shape[1:]) for part in value]
    return EachToSpace([replace(feature_map, size=size) for size in sizes])


def without_weights(traced: fx.GraphModule) -> fx.GraphModule:
    """A copy whose tensors take no memory, and which can be pickled: it has forgotten our tracer."""
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
