"""From a strided network to its unit-stride twin: plan, then build.

The plan decides the factor of each feature map, and with it every filter, mask and padding, from the
sizes of a traced network alone; building obeys the plan.
"""

import copy
import itertools
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from stridenet.calls import Call, LayerPlan, Options, Rule, axes, channel, shape
from stridenet.factors import FactorConflict, Factors
from stridenet.layers import DepthToSpace, EachInput, Padding, SpaceToDepth
from stridenet.operators import CURES, PINNED, rule_of
from stridenet.phases import FeatureMap, TapMap
from stridenet.tracing import (
    Size,
    StrideEliminationError,
    checked_sizes,
    operations,
    place,
    tensors,
    trace,
    written,
)
from stridenet.windows import Convolution, Pooling, Windowed

if TYPE_CHECKING:
    import pandas as pd

MOST_PARAMETERS = 300_000_000


# Plan -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputPlan:
    """One input of the twin."""

    name: str  # of the argument of forward
    size: Size  # (channels, height, width) of the images
    padding: Padding  # zeros put around an image before it is rearranged
    map: FeatureMap  # of the padded image


@dataclass(frozen=True)
class EliminationPlan:
    """Every size of the twin, before any weight exists."""

    inputs: tuple[InputPlan, ...]
    layers: tuple[LayerPlan, ...]
    options: Options
    parameters: tuple[int, int]  # of the strided and of the unit-stride network
    bytes_each: int  # of a parameter

    @property
    def input(self) -> FeatureMap:
        """The map that the first input becomes."""
        return self.inputs[0].map

    @property
    def input_size(self) -> tuple:
        """As eliminate_stride was given it: the size of the image, or of each input."""
        sizes = tuple(given.size for given in self.inputs)
        return sizes[0] if len(sizes) == 1 else sizes

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Of one image's forward pass through either network."""
        both = [layer.multiply_adds for layer in self.layers]
        return sum(strided for strided, _ in both), sum(twin for _, twin in both)

    @property
    def strided_layers(self) -> int:
        """How many layers lose a stride."""
        return sum(layer.strided for layer in self.layers)

    def to_frame(self) -> "pd.DataFrame":
        """One row a layer: maps, filters, weights, structural zeros, multiply-adds of both networks."""
        import pandas as pd  # not needed to convert, and slow to import

        return pd.DataFrame(
            {
                "layer": layer.name,
                "operation": layer.operation,
                "strided_map": written(layer.output.size),
                "unit_stride_map": written(layer.output.unit_stride_size),
                "strided_filter": written(layer.weight_size),
                "unit_stride_filter": written(layer.unit_stride_weight_size),
                "strided_weights": prod(layer.weight_size) if layer.weight_size else 0,
                "unit_stride_weights": prod(layer.unit_stride_weight_size)
                if layer.weight_size
                else 0,
                "structural_zeros": layer.structural_zeros,
                "strided_parameters": layer.parameters[0],
                "unit_stride_parameters": layer.parameters[1],
                "strided_multiply_adds": layer.multiply_adds[0],
                "unit_stride_multiply_adds": layer.multiply_adds[1],
                "masked": layer.masked,
                "stride_eliminated": layer.strided,
            }
            for layer in self.layers
        )

    def __str__(self) -> str:
        frame = self.to_frame()
        filters = frame[frame.strided_filter != ""]
        changed = (filters.strided_filter != filters.unit_stride_filter) | (
            filters.strided_map != filters.unit_stride_map
        )
        rows = filters if len(filters) <= 20 else filters[changed]
        pairs = {
            column: rows[f"strided_{column}"] + " -> " + rows[f"unit_stride_{column}"]
            for column in ("map", "filter")
        }
        table = rows[["layer"]].assign(**pairs).to_string(index=False)
        if len(rows) < len(filters):
            table += f"\n... and {len(filters) - len(rows)} layers with filters as they were"
        inputs = (f"{written(i.size)} -> {written(i.map.unit_stride_size)}" for i in self.inputs)
        before, after = self.parameters
        return (
            f"input {', '.join(inputs)}\n{table}\n"
            f"strides eliminated in {self.strided_layers} layers; parameters {before:,} -> {after:,} "
            f"({frame.structural_zeros.sum():,} structural zeros; "
            f"{before * self.bytes_each / 1e6:,.1f} -> {after * self.bytes_each / 1e6:,.1f} MB), "
            f"multiply-adds {self.multiply_adds[0]:,} -> {self.multiply_adds[1]:,}"
        )


def plan_elimination(
    model: nn.Module,
    input_size: Sequence[Any],
    *,
    scope: str = "network",
    only: Sequence[str] | None = None,
    pooling: bool = False,
    output_factor: int | Sequence[int] = 1,
    batch_norm: str = "shared",
) -> EliminationPlan:
    """Decide the twin of `model`, without its weights; see eliminate_stride for the arguments.

    Raises StrideEliminationError where the model has no twin here.
    """
    options = _checked(scope, only, pooling, output_factor, batch_norm)
    return Conversion(model, checked_sizes(input_size), options).plan


def _checked(scope: Any, only: Any, pooling: Any, factor: Any, batch_norm: Any) -> Options:
    """The options, or StrideEliminationError for one that means nothing."""
    for name, value, allowed in (
        ("scope", scope, ("network", "layer")),
        ("batch_norm", batch_norm, ("shared", "per_phase")),
        ("pooling", pooling, (True, False)),
    ):
        if value not in allowed:
            raise StrideEliminationError(f"{name}={value!r}: it is one of {allowed}")
    if isinstance(only, str) or (only is not None and scope == "network"):
        raise StrideEliminationError(f"only={only!r}: a list of layers' names, with scope='layer'")
    factors = factor if isinstance(factor, Sequence) else (factor,)
    if not all(isinstance(f, int) and f > 0 for f in factors) or not factors:
        raise StrideEliminationError(f"output_factor={factor!r}: a positive number, or one an axis")
    if scope == "layer" and set(factors) != {1}:
        raise StrideEliminationError(
            "output_factor needs scope='network': maps keep their form here"
        )
    factor = tuple(factor) if isinstance(factor, Sequence) else factor
    return Options(scope, None if only is None else tuple(only), pooling, factor, batch_norm)


class Conversion:
    """A traced model, the rule of each of its operations, and the plan that follows."""

    def __init__(self, model: nn.Module, sizes: tuple[Size, ...], options: Options) -> None:
        self.options = options
        self.traced = trace(model, sizes)
        self.calls = [Call(self.traced, node, options) for node in operations(self.traced)]
        self.rules: list[Rule] = []
        for call in self.calls:
            self.rules.append(rule_of(call))
            call.node.meta["channel"] = self.rules[-1].channel(call)
        self.alone = [self._is_alone(*both) for both in zip(self.calls, self.rules, strict=True)]
        self._refuse_what_stays_strided()
        if options.scope == "network":
            _refuse_late_readers(self.traced)
        self.factors = self._solve() if options.scope == "network" else {}
        self.plan = self._plan(sizes)

    def _is_alone(self, call: Call, rule: Rule) -> bool:
        """Whether scope="layer" converts this layer."""
        if self.options.scope == "network" or not rule.is_strided(call):
            return False
        if self.options.only is not None:
            return self._name(call) in self.options.only
        return self.options.pooling or not isinstance(rule, Pooling)

    @staticmethod
    def _name(call: Call) -> str:
        return str(call.node.target) if call.node.op == "call_module" else call.node.name

    def _refuse_what_stays_strided(self) -> None:
        only = self.options.only
        if only is not None:
            strided = [
                self._name(c)
                for c, r in zip(self.calls, self.rules, strict=True)
                if r.is_strided(c)
            ]
            for name in set(only) - set(strided):
                raise StrideEliminationError(
                    f"only: {name!r} is no layer here with a stride above one; these are: {strided}"
                )
            return
        for call, rule, alone in zip(self.calls, self.rules, self.alone, strict=True):
            inside = call.node.meta["strides"]
            if self.options.scope == "layer" and not self.options.pooling:
                inside = [what for what in inside if what.startswith("convolution")]
            if inside and (rule is PINNED or (self.options.scope == "layer" and not alone)):
                cure = CURES.get(call.operation, self._cure(call))
                raise StrideEliminationError(
                    f"{call.named} has inside it a {inside[0]}, for which there is no rule; {cure}"
                )

    @staticmethod
    def _cure(call: Call) -> str:
        mode = getattr(call.module, "padding_mode", "zeros")
        if mode != "zeros":
            return f"its padding_mode={mode!r} has none: only 'zeros' has"
        return (
            "write it with torch's own layers (nn.Conv2d, nn.MaxPool2d, …), or name others in only"
        )

    def _solve(self) -> dict[Any, int]:
        """The factor of each spatial axis of each map (Eq. 26)."""
        factors = Factors()
        try:
            inputs = [n for n in self.traced.graph.nodes if n.op == "placeholder"]
            for node in chain(inputs, (call.node for call in self.calls)):
                for axis in axes(node):
                    factors.mention(axis)
            for call, rule in zip(self.calls, self.rules, strict=True):
                rule.tie(call, factors)
            return factors.solve({axis: self._wanted(axis[1]) for n in inputs for axis in axes(n)})
        except FactorConflict as conflict:
            raise StrideEliminationError(
                f"{conflict}; there is no twin of the whole network: convert its layers one by one, "
                "with scope='layer'"
            ) from conflict

    def _wanted(self, axis: int) -> int:
        wanted = self.options.output_factor
        if isinstance(wanted, int):
            return wanted
        if axis >= len(wanted):
            raise StrideEliminationError(f"output_factor={wanted} has no number for axis {axis}")
        return wanted[axis]

    def map_of(self, node: fx.Node) -> FeatureMap:
        """A node's map, with its factor."""
        size = shape(node)[1:]
        where = channel(node) - 1 if axes(node) else 0
        return FeatureMap(size, tuple(self.factors.get(axis, 1) for axis in axes(node)), where)

    def _plan(self, sizes: tuple[Size, ...]) -> EliminationPlan:
        taken = {name for name, _ in self.traced.named_modules()}
        called: Counter[str] = Counter()
        layers = []
        for call, rule, alone in zip(self.calls, self.rules, self.alone, strict=True):
            name = self._name(call)
            called[name] += 1
            if called[name] > 1 or call.module is None:
                name = _unused(name, taken)
                taken.add(name)
            own = sum(p.numel() for p in call.module.parameters()) if call.module else 0
            layer = LayerPlan(
                name=name,
                module=self._name(call),
                operation=getattr(call.operation, "__name__", str(call.operation)),
                inputs=tuple(map(self.map_of, call.maps)),
                output=self.map_of(call.node),
                parameters=(own, own),
                strided=rule.is_strided(call) and (alone or self.options.scope == "network"),
            )
            layer = rule.describe(call, layer)
            if alone:
                layer = rule.plan_alone(call, layer)
            elif _changes(layer):
                layer = rule.plan(call, layer)
            layers.append(layer)
        inputs = self._plan_inputs(sizes, layers)
        each = next((p.element_size() for p in self.traced.parameters()), 4)
        return EliminationPlan(inputs, tuple(layers), self.options, self._count(layers), each)

    def _plan_inputs(
        self, sizes: tuple[Size, ...], layers: list[LayerPlan]
    ) -> tuple[InputPlan, ...]:
        """Inputs are padded before they are rearranged where that makes the only layer that reads them
        smaller. Their phantoms are zeros already, so that a sum needs no mask."""
        inputs = []
        nodes = [n for n in self.traced.graph.nodes if n.op == "placeholder"]
        for node, size in zip(nodes, sizes, strict=True):
            padding: Padding = ((0, 0),) * len(axes(node))
            feature_map = self.map_of(node)
            for index, (call, rule) in enumerate(zip(self.calls, self.rules, strict=True)):
                if call.maps[:1] != [node] or not isinstance(rule, Windowed) or rule.outside(call):
                    continue
                layers[index] = replace(layers[index], masked=False)
                if (
                    len(node.users) == 1
                    and type(rule) is Convolution
                    and layers[index].padding is None
                ):
                    layers[index], padding = _pad_first(layers[index], padding)
                    feature_map = layers[index].input
            name = str(node.target).lstrip("*")  # node.name avoids those of Python's own functions
            inputs.append(InputPlan(name, size, padding, feature_map))
        return tuple(inputs)

    def _count(self, layers: list[LayerPlan]) -> tuple[int, int]:
        """Parameters of both networks; a module called twice counts once unless it becomes two."""
        state = dict(self.traced.named_parameters())
        constants = {n.target for n in self.traced.graph.nodes if n.op == "get_attr"}
        strided = unit_stride = sum(state[name].numel() for name in constants if name in state)
        seen: set[Any] = set()
        for call, layer in zip(self.calls, layers, strict=True):
            first = call.node.target not in seen
            seen.add(call.node.target)
            strided += layer.parameters[0] if first else 0
            unit_stride += layer.parameters[1] if first or layer.maps else 0
        return strided, unit_stride


def _unused(name: str, taken: set[str]) -> str:
    names = chain([name], (f"{name}_{count}" for count in itertools.count(1)))
    return next(name for name in names if name not in taken)


def _changes(layer: LayerPlan) -> bool:
    """Whether a map of its is rearranged, or its stride is to go."""
    return layer.strided or any(m.phases > 1 for m in (*layer.inputs, layer.output))


def _pad_first(layer: LayerPlan, none: Padding) -> tuple[LayerPlan, Padding]:
    maps, padding = list(layer.maps), list(none)
    for axis, tap_map in enumerate(maps):
        assert isinstance(tap_map, TapMap)
        padded = replace(tap_map, padding=(0, 0), size=tap_map.size + sum(tap_map.padding))
        if padded.twin_kernel < tap_map.twin_kernel:
            maps[axis], padding[axis] = padded, tap_map.padding
    if not maps:
        return layer, none
    source = replace(layer.input, size=(layer.input.size[0], *(tap_map.size for tap_map in maps)))
    return replace(layer, inputs=(source,), maps=tuple(maps)), tuple(padding)


_VIEWS = {
    operator.getitem, torch.flatten, torch.permute, torch.transpose, torch.split, torch.chunk,
    "flatten", "view", "reshape", "permute", "transpose", "contiguous", "split", "chunk", "detach",
    torch.squeeze, torch.unsqueeze, "squeeze", "unsqueeze", "view_as", "expand", "narrow", "unflatten",
}  # fmt: skip


def _refuse_late_readers(traced: fx.GraphModule) -> None:
    """A map that an operation changes in place must not be read later, save by way of its result."""
    nodes = list(traced.graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    memory: dict[fx.Node, fx.Node] = {}  # of each node: the first that has the same memory
    for node in nodes:
        sources = node.all_input_nodes
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        view = node.target in _VIEWS or isinstance(module, (nn.Identity, nn.Flatten, nn.Dropout))
        changes = _is_in_place(node, module)
        memory[node] = memory[sources[0]] if sources and (view or changes) else node
        if not sources or not changes:
            continue
        for other in nodes[: order[node]]:
            late = [user for user in other.users if order[user] > order[node]]
            if late and memory.get(other) is memory[node] and tensors(other.meta["value"]):
                raise StrideEliminationError(
                    f"{place(traced, node)} changes {place(traced, sources[0])} in place, which "
                    f"{place(traced, late[0])} reads later; write it out of place (x = F.relu(x))"
                )


def _is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    if name in ("iadd", "isub", "imul", "itruediv") or (name.endswith("_") and name[-2:] != "__"):
        return True
    try:
        given = signature(cast(Any, node.target)).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return False
    return given.arguments.get("inplace") is True


# Build ----------------------------------------------------------------------------------------------


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


def eliminate_stride(
    model: nn.Module,
    input_size: Sequence[Any],
    *,
    scope: str = "network",
    only: Sequence[str] | None = None,
    pooling: bool = False,
    output_factor: int | Sequence[int] = 1,
    batch_norm: str = "shared",
    max_parameters: int | None = MOST_PARAMETERS,
) -> UnitStrideNetwork:
    """The equivalent of `model` with unit strides only, its weights copied.

    input_size is (channels, height, width), without batch, or one such size for each input; the twin
    takes images of this size only.

    scope: "network" rearranges the input alone (Theorem 2), so that all maps have more channels.
        "layer" rearranges at each strided convolution (Theorem 1), also at the pooling layers if
        `pooling` is true; or at the layers named in `only`. All else stays as it is.
    output_factor: with scope="network", how much larger than needed the factors of all maps are to
        be, of each axis or of all: the network becomes that much narrower in space and wider in
        channels.
    batch_norm: "shared" trains with statistics over all phases of a channel, as the strided network
        does; "per_phase" gives each phase its own. In evaluation both are equal.
    max_parameters: refuse a twin that has more.

    Names, dtype, device, training mode and requires_grad carry over; the model is left untouched.
    Raises StrideEliminationError, naming the layer, for what has no twin. A forward that depends on
    the training mode is converted as it runs in the present one; a layer that is called at several
    places becomes a layer for each, and parametrized weights (weight_norm) are taken as they are now.
    In training mode, dropout draws other numbers than in the model. Equality holds for finite images.

    >>> model = nn.Sequential(nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Conv2d(32, 8, 2, stride=2))
    >>> eliminate_stride(model, (3, 12, 12)).network.get_submodule("0")
    Conv2d(12, 128, kernel_size=(3, 3), stride=(1, 1))
    """
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        raise StrideEliminationError(
            "the model is on the meta device: load its weights first (plan_elimination needs none)"
        )
    options = _checked(scope, only, pooling, output_factor, batch_norm)
    conversion = Conversion(model, checked_sizes(input_size), options)
    plan = conversion.plan
    if max_parameters is not None and plan.parameters[1] > max_parameters:
        raise StrideEliminationError(
            f"the twin has {plan.parameters[1]:,} parameters, {plan.parameters[0]:,} before, which is "
            f"more than max_parameters={max_parameters:,}; scope='layer' needs far fewer, as only "
            "structural zeros are added"
        )
    kind = UnitStrideNetwork if len(plan.inputs) == 1 else UnitStrideNetworkOfSeveral
    twin = kind(build(conversion), plan, _without_weights(conversion.traced))
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in twin.network.named_modules():
        if name in modes and type(module) is nn.Module:
            module.training = modes[name]
    twin.training = twin.rearrange.training = twin.network.training = model.training
    return twin


def _without_weights(traced: fx.GraphModule) -> fx.GraphModule:
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
    return copy.deepcopy(fx.GraphModule(traced, graph), empty)


def build(conversion: Conversion) -> fx.GraphModule:
    """The layers of the twin, in the traced network's graph; its nodes keep their names."""
    traced, graph = conversion.traced, fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(traced.graph, twins)
    steps = list(zip(conversion.calls, conversion.rules, conversion.plan.layers, strict=True))
    modules = [rule.build(call, layer) if _changes(layer) else None for call, rule, layer in steps]
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
    factored = {twins[c.node]: layer.output for c, _, layer in steps if layer.output.phases > 1}
    for call, _, layer in steps:
        if layer.padding is not None:  # it has put its own map back
            factored.pop(twins[call.node], None)
    for node in graph.nodes:
        node.meta = {}
        if node.op in ("call_module", "get_attr") and node.target not in layers:
            layers[node.target] = copy.deepcopy(operator.attrgetter(node.target)(traced))

    def restored(node: fx.Node) -> fx.Node:
        if node not in factored:
            return node
        layers[f"restore_{node.name}"] = DepthToSpace(factored[node])
        return graph.call_module(f"restore_{node.name}", (node,))

    graph.output(fx.node.map_arg(result, restored))
    return fx.GraphModule(layers, graph, class_name="UnitStrideLayers")
