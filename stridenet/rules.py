"""What the elimination knows of each operation: one rule for each kind, and a table of them.

A rule ties the factors of an operation's maps, says what the twin has in its place, and builds that.
An operation without a rule keeps its place and its maps their ordinary form.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from math import prod
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stridenet.factors import Factors
from stridenet.layers import (
    Broadcast,
    DepthToSpace,
    Operation,
    OverPixels,
    Padding,
    PhantomMask,
    PhaseBatchNorm,
    Pixels,
    RepeatPhases,
    SharedBatchNorm,
    Slot,
    SpaceToDepth,
    WindowAverage,
    WindowMaximum,
)
from stridenet.phases import (
    FeatureMap,
    TapMap,
    Taps,
    TransposedTapMap,
    expand_bias,
    expand_filter,
    phase_size,
)
from stridenet.tracing import (
    BATCH,
    CONVOLUTIONS,
    Size,
    StrideEliminationError,
    operation_of,
    place,
    size_of,
    tensors,
    written,
)


@dataclass(frozen=True)
class LayerPlan:
    """One operation of the network, and what the twin makes of it."""

    name: str  # the module's path, or the node's name for a function
    operation: str  # "Conv2d", "relu", …
    inputs: tuple[FeatureMap, ...]  # those that are maps or vectors
    output: FeatureMap
    weight_size: Size = ()  # of the strided filter; () if there is none
    maps: tuple[Taps, ...] = ()  # one an axis; () unless it is a window over positions
    masked: bool = False  # the input's phantoms are filled first
    padding: Padding | None = None  # at scope="layer": put around the map, which is rearranged here
    parameters: tuple[int, int] = (0, 0)  # strided, unit-stride
    strided: bool = False  # had a stride above one, and lost it

    @property
    def input(self) -> FeatureMap:
        """The first of `inputs`."""
        return self.inputs[0]

    @property
    def unit_stride_weight_size(self) -> Size:
        """Size of the twin's filter."""
        if not self.maps or not self.weight_size:
            return self.weight_size
        return (
            self.weight_size[0] * prod(tap_map.output_factor for tap_map in self.maps),
            self.weight_size[1] * prod(tap_map.input_factor for tap_map in self.maps),
            *(tap_map.twin_kernel for tap_map in self.maps),
        )

    @property
    def structural_zeros(self) -> int:
        """Entries of the twin's filter that no strided weight stands behind."""
        if not self.maps or not self.weight_size:
            return 0
        taps = prod(int((tap_map.taps >= 0).sum()) for tap_map in self.maps)
        return prod(self.unit_stride_weight_size) - prod(self.weight_size[:2]) * taps

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Of one image's forward pass, strided and unit-stride."""
        if not self.weight_size:
            return 0, 0
        if not self.maps:
            positions = prod(self.output.size) // self.weight_size[0]
            return (prod(self.weight_size) * positions,) * 2
        positions = prod(
            tap_map.size if isinstance(tap_map, TransposedTapMap) else tap_map.output_size
            for tap_map in self.maps
        )
        blocks = (phase_size([m.output_size], [m.output_factor]) for m in self.maps)
        return (
            prod(self.weight_size) * positions,
            prod(self.unit_stride_weight_size) * prod(chain(*blocks)),
        )


@dataclass(frozen=True)
class Options:
    """How a network is to be converted."""

    scope: str = "network"
    only: tuple[str, ...] | None = None
    pooling: bool = False
    output_factor: int | tuple[int, ...] = 1
    batch_norm: str = "shared"


# Calls ----------------------------------------------------------------------------------------------

Axis = tuple[fx.Node, int]  # of a node's result: one of its spatial axes


@dataclass(frozen=True)
class Call:
    """One operation of a traced network, as the rules read it."""

    traced: fx.GraphModule
    node: fx.Node
    how: Options

    @cached_property
    def operation(self) -> Any:
        """A module's type, a function, or a method's name."""
        return operation_of(self.traced, self.node)

    @cached_property
    def module(self) -> Any:
        """The module; None if it is a function or a method."""
        call_module = self.node.op == "call_module"
        return self.traced.get_submodule(str(self.node.target)) if call_module else None

    @property
    def named(self) -> str:
        """As errors name it."""
        sizes = " and ".join(size_of(n) for n in self.maps)
        return f"{place(self.traced, self.node)} on a map {sizes}"

    @cached_property
    def operands(self) -> list[fx.Node]:
        """Everything it reads, in the order in which a module in its place would be given it."""
        return self.node.all_input_nodes

    @cached_property
    def maps(self) -> list[fx.Node]:
        """The maps and vectors among its operands."""
        return [n for n in self.operands if n.op != "get_attr" and tensors(n.meta["value"])]

    @cached_property
    def constants(self) -> list[fx.Node]:
        """The tensors of the model among its operands."""
        return [n for n in self.operands if n.op == "get_attr"]

    def options(self, *names: str) -> dict[str, Any]:
        """A module's attributes, or a function's arguments after the first, by their names."""
        if self.module is not None:
            return {
                name: getattr(self.module, name) for name in names if hasattr(self.module, name)
            }
        return dict(zip(names, self.node.args[1:], strict=False)) | dict(self.node.kwargs)

    def slots(self) -> tuple[tuple, dict]:
        """Its arguments, with slots where nodes stand."""
        position = {node: index for index, node in enumerate(self.operands)}
        given: Any = (self.node.args, dict(self.node.kwargs))
        filled: Any = fx.node.map_arg(given, cast(Any, lambda node: Slot(position[node])))
        return filled

    def as_module(self) -> nn.Module:
        """The operation by itself: a copy of the module, or the function with its arguments."""
        if self.module is not None:
            return copy.deepcopy(self.module)
        arguments, options = self.slots()
        return Operation(self.node.target, tuple(arguments), dict(options))


def shape(node: fx.Node) -> Size:
    """Of what a node gives, with the batch; the first of several."""
    return tuple(tensors(node.meta["value"])[0].shape)


def channel(node: fx.Node) -> int:
    """Which dimension holds the channels."""
    return int(node.meta.get("channel", 1))


def spatial(node: fx.Node) -> list[int]:
    """Which dimensions are spatial: all but batch and channels."""
    return (
        [d for d in range(1, len(shape(node))) if d != channel(node)]
        if len(shape(node)) > 2
        else []
    )


def axes(node: fx.Node) -> list[Axis]:
    """The spatial axes of a node's result."""
    return [(node, axis) for axis in range(len(spatial(node)))]


def extents(node: fx.Node) -> list[int]:
    """The sizes of its spatial axes."""
    return [shape(node)[d] for d in spatial(node)]


# Rules ----------------------------------------------------------------------------------------------


class Rule:
    """Treats each position of one map by itself: any arrangement will do."""

    def applies(self, call: Call) -> bool:
        """Whether the rule holds for this call; else it counts as one without a rule."""
        return len(call.maps) == 1 and len(shape(call.maps[0])) == len(shape(call.node))

    def channel(self, call: Call) -> int:
        """Where its result has the channels."""
        return channel(call.maps[0]) if call.maps else 1

    def tie(self, call: Call, factors: Factors) -> None:
        """Demand of the factors of its maps what the rule needs."""
        for source in call.maps:
            for a, b in zip(axes(source), axes(call.node), strict=True):
                factors.tie(a, b, 1, call.named)

    def is_strided(self, call: Call) -> bool:
        """Whether it has a stride above one to lose."""
        return False

    def describe(self, call: Call, layer: LayerPlan) -> LayerPlan:
        """The layer with its strided filter, if it has one."""
        return layer

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        """The layer between phase forms (Theorem 2)."""
        return layer

    def plan_alone(self, call: Call, layer: LayerPlan) -> LayerPlan:
        """The layer with its own rearrangement, its maps left in ordinary form (Theorem 1)."""
        raise NotImplementedError

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        """What stands in its place in the twin; None: the operation itself."""
        return None


class Pinned(Rule):
    """Without a rule: a copy, between maps in their ordinary form."""

    def applies(self, call: Call) -> bool:
        return True

    def channel(self, call: Call) -> int:
        return 1

    def tie(self, call: Call, factors: Factors) -> None:
        for node in (*call.maps, call.node):
            for axis in axes(node):
                factors.pin(axis, f"{call.named} needs its maps in their ordinary form")


class Elementwise(Rule):
    """Combines numbers at the same position of one or more maps, with broadcasting."""

    def __init__(self, fill: float | None = None) -> None:
        self.fill = (
            fill  # what phantoms must be for a finite result; None: any finite number will do
        )

    def applies(self, call: Call) -> bool:
        rank = len(shape(call.node))
        where = {channel(n) for n in call.maps}
        return bool(call.maps) and len(where) == 1 and all(len(shape(n)) == rank for n in call.maps)

    def tie(self, call: Call, factors: Factors) -> None:
        for source in call.maps:
            for a, b, size, out in zip(
                axes(source), axes(call.node), extents(source), extents(call.node), strict=True
            ):
                if size == out:
                    factors.tie(a, b, 1, call.named)
                else:  # of size one, and broadcast
                    factors.pin(a, f"{call.named} broadcasts an axis of size one")
        for constant in call.constants:
            for axis, dimension in zip(axes(call.node), spatial(call.node), strict=True):
                sizes = (1,) * len(shape(call.node)) + shape(constant)
                if sizes[dimension - len(shape(call.node))] > 1:
                    factors.pin(axis, f"{call.named} has a number for each position")

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        alike = len(set(layer.inputs)) == 1 and not call.constants
        if alike and not (self.fill is not None and layer.input.ragged):
            return None
        known = dict(zip(call.maps, layer.inputs, strict=True))
        maps = [known.get(n, self._constant(n, layer.output)) for n in call.operands]
        masks = [self._mask(call, known.get(n)) for n in call.operands]
        return Broadcast(call.as_module(), maps, layer.output, masks)

    def _mask(self, call: Call, operand: FeatureMap | None) -> nn.Module:
        if self.fill is None or operand is None or not operand.ragged:
            return nn.Identity()
        return PhantomMask(operand, _device(call), self.fill)

    @staticmethod
    def _constant(node: fx.Node, output: FeatureMap) -> FeatureMap | None:
        """A tensor of the model as a map of one position; None if it is a number or has no channels."""
        if not tensors(node.meta["value"]):
            return None
        from_right = output.channel - len(output.size)
        size = shape(node)
        if len(size) < -from_right:
            return None
        return FeatureMap((size[from_right], *[1] * len(output.factor)), (1,) * len(output.factor))


class Concatenation(Rule):
    """Maps side by side, over channels in any form, over positions in ordinary form."""

    def applies(self, call: Call) -> bool:
        rank = {len(shape(n)) for n in (*call.maps, call.node)}
        where = {channel(n) for n in call.maps}
        return len(rank) == len(where) == 1 and not call.constants and self._dimension(call) > 0

    @staticmethod
    def _dimension(call: Call) -> int:
        options = call.options("dim")
        return options.get("dim", options.get("axis", 0)) % len(shape(call.node))

    def tie(self, call: Call, factors: Factors) -> None:
        super().tie(call, factors)
        for axis, dimension in zip(axes(call.node), spatial(call.node), strict=True):
            if dimension == self._dimension(call):
                factors.pin(axis, f"{call.named} puts positions side by side")


class Split(Rule):
    """Channels into parts: each part has its phases with it."""

    def applies(self, call: Call) -> bool:
        named = call.options("size", "dim")
        return len(call.maps) == 1 and named.get("dim", 0) % len(shape(call.maps[0])) == channel(
            call.maps[0]
        )

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        where = channel(call.node)
        sizes = [
            part.shape[where] * layer.input.phases for part in tensors(call.node.meta["value"])
        ]
        return Operation(torch.split, (Slot(0), sizes, where), {})


class Permutation(Rule):
    """Another order of the dimensions; the phases go where the channels go."""

    def _order(self, call: Call) -> list[int]:
        rank = len(shape(call.node))
        if call.operation in (torch.permute, "permute"):
            given: Any = (call.node.kwargs.get("dims"),) if call.node.kwargs else call.node.args[1:]
            given = given[0] if isinstance(given[0], (tuple, list)) else given
            return [d % rank for d in given]
        order = list(range(rank))
        one, two = call.options("dim0", "dim1").values()
        order[one], order[two] = order[two], order[one]
        return order

    def applies(self, call: Call) -> bool:
        return len(call.maps) == 1 and len(shape(call.node)) > 2 and self._order(call)[0] == 0

    def channel(self, call: Call) -> int:
        return self._order(call).index(channel(call.maps[0]))

    def tie(self, call: Call, factors: Factors) -> None:
        source = call.maps[0]
        before = dict(zip(spatial(source), axes(source), strict=True))
        for axis, dimension in zip(axes(call.node), spatial(call.node), strict=True):
            factors.tie(before[self._order(call)[dimension]], axis, 1, call.named)


class Flatten(Rule):
    """A map to a vector, in the strided network's order."""

    def applies(self, call: Call) -> bool:
        before, after = shape(call.maps[0]), shape(call.node)
        return len(call.maps) == 1 and before[0] == BATCH and after == (BATCH, prod(before[1:]))

    def channel(self, call: Call) -> int:
        return 1

    def tie(self, call: Call, factors: Factors) -> None:
        pass

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        return _sequence(restore=DepthToSpace(layer.input), flatten=nn.Flatten())


class ByPixel(Rule):
    """Treats all positions of a map alike, whatever their order: runs on its pixels."""

    def __init__(self, holds: Any = None) -> None:
        self.holds = holds  # of a call: whether it does; None: always

    def applies(self, call: Call) -> bool:
        return (
            len(call.maps) == 1
            and len(shape(call.maps[0])) > 2
            and (self.holds is None or self.holds(call))
        )

    def channel(self, call: Call) -> int:
        return channel(call.maps[0])

    @staticmethod
    def _keeps_positions(call: Call) -> bool:
        same_rank = len(shape(call.node)) == len(shape(call.maps[0]))
        return same_rank and extents(call.node) == extents(call.maps[0])

    def tie(self, call: Call, factors: Factors) -> None:
        if self._keeps_positions(call):
            super().tie(call, factors)
        else:
            _pin_result(call, factors)

    def operation(self, call: Call) -> nn.Module:
        """What runs on the pixels."""
        return call.as_module()

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if layer.input.phases == 1:
            return None
        keeps = self._keeps_positions(call)
        return OverPixels(self.operation(call), layer.input, keeps, _device(call))


class PerChannel(Rule):
    """A parameter for each channel (PReLU): one for each of its phases."""

    def applies(self, call: Call) -> bool:
        return super().applies(call) and channel(call.node) == 1

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        own, many = layer.parameters[0], call.module.weight.numel() > 1
        return replace(layer, parameters=(own, own * layer.output.phases if many else own))

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if call.module.weight.numel() == 1:
            return None
        twin = copy.deepcopy(call.module)
        twin.num_parameters *= layer.output.phases
        twin.weight = _repeated(call.module.weight, layer.output.phases)
        return twin


class BatchNormalisation(Rule):
    """Statistics over all phases of a channel, as in the strided network, or of each phase."""

    def applies(self, call: Call) -> bool:
        return super().applies(call) and channel(call.node) == 1

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        own, phases = layer.parameters[0], layer.output.phases
        return replace(
            layer, parameters=(own, own if call.how.batch_norm == "shared" else own * phases)
        )

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        module, phases = call.module, layer.output.phases
        shared = call.how.batch_norm == "shared"
        kind = (
            SharedBatchNorm if shared else PhaseBatchNorm if layer.output.ragged else type(module)
        )
        features = module.num_features * (1 if shared else phases)
        with torch.device("meta"):
            twin = kind(
                features, module.eps, module.momentum, module.affine, module.track_running_stats
            )
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            many = phases if tensor.ndim and not shared else 1
            setattr(twin, name, _repeated(tensor, many))
        if shared:
            twin.pixels = Pixels(layer.output, _device(call))
        elif layer.output.ragged:
            twin.mask = PhantomMask(layer.output, _device(call))
        return twin.train(module.training)


# Windows over positions -----------------------------------------------------------------------------


class Window(NamedTuple):
    """One axis of a convolution or pooling, as torch's layers say it."""

    kernel: int
    stride: int
    dilation: int
    padding: tuple[int, int]


class Windowed(Rule):
    """Reads a window around each of its positions, and steps by its stride: f(in) = s·f(out)."""

    fill = 0.0  # what lies outside the map

    def windows(self, call: Call) -> list[Window]:
        """One for each spatial axis."""
        raise NotImplementedError

    def body(self, call: Call, layer: LayerPlan) -> nn.Module:
        """What computes, between unmasked and padded phase forms."""
        raise NotImplementedError

    def applies(self, call: Call) -> bool:
        return super().applies(call) and channel(call.maps[0]) == 1

    def _effective(self, call: Call) -> list[Window]:
        """A stride that is never taken counts as one, and there is no room for it."""
        effective = []
        for window, size, length in zip(
            self.windows(call), extents(call.maps[0]), extents(call.node), strict=True
        ):
            if length == 1:
                before = window.padding[0]
                reach = window.dilation * (window.kernel - 1) + 1
                window = window._replace(stride=1, padding=(before, reach - size - before))
            effective.append(window)
        return effective

    def tie(self, call: Call, factors: Factors) -> None:
        lengths = extents(call.node)
        for a, b, window, length in zip(
            axes(call.maps[0]), axes(call.node), self.windows(call), lengths, strict=True
        ):
            if length > 1:  # a single output is where it is in any form
                factors.tie(a, b, window.stride, call.named)

    def is_strided(self, call: Call) -> bool:
        return any(window.stride > 1 for window in self.windows(call))

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        maps = tuple(
            TapMap(*window, size, output, source if length == 1 else None)
            for window, size, length, source, output in zip(
                self._effective(call),
                extents(call.maps[0]),
                extents(call.node),
                layer.input.factor,
                layer.output.factor,
                strict=True,
            )
        )
        return replace(layer, maps=maps, masked=any(tap_map.reads_phantoms for tap_map in maps))

    def plan_alone(self, call: Call, layer: LayerPlan) -> LayerPlan:
        maps, padding = [], []
        for window, size, length in zip(
            self._effective(call), extents(call.maps[0]), extents(call.node), strict=True
        ):
            alone = TapMap(window.kernel, window.stride, window.dilation, (0, 0), size, 1)
            read = window.stride * (length - 1 + alone.twin_kernel)  # all that the twin reads
            padding.append((window.padding[0], read - size - window.padding[0]))
            maps.append(replace(alone, size=read))
        source = FeatureMap(
            (layer.input.channels, *(m.size for m in maps)), tuple(m.stride for m in maps)
        )
        return replace(layer, inputs=(source,), maps=tuple(maps), padding=tuple(padding))

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        parts: dict[str, nn.Module] = {}
        if layer.padding is not None:
            size = shape(call.maps[0])[1:]
            parts["rearrange"] = SpaceToDepth(size, layer.padding, layer.input.factor, self.fill)
        if layer.masked:
            parts["mask"] = PhantomMask(layer.input, _device(call), self.fill)
        return _sequence(**parts, **self.parts(call, layer))

    def parts(self, call: Call, layer: LayerPlan) -> dict[str, nn.Module]:
        """What follows mask and rearrangement, by name."""
        return {"operation": self.body(call, layer)}


class Convolution(Windowed):
    """Conv1d, Conv2d, Conv3d."""

    def applies(self, call: Call) -> bool:
        rank = len(call.module.kernel_size) + 2
        return super().applies(call) and len(shape(call.maps[0])) == rank and self._ordinary(call)

    @staticmethod
    def _ordinary(call: Call) -> bool:
        conv, named = call.module, place(call.traced, call.node)
        first, second = conv.out_channels, conv.in_channels
        if conv.transposed:
            first, second = second, first
        made_with = (first, second // conv.groups, *conv.kernel_size)
        numbers = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
        if tuple(conv.weight.shape) != made_with or any(isinstance(n, int) for n in numbers):
            raise StrideEliminationError(
                f"{named} was changed after it was made: its weight {written(conv.weight.shape)} and "
                f"its kernel, stride, dilation and padding {numbers} do not go together"
            )
        return conv.padding_mode == "zeros"

    def windows(self, call: Call) -> list[Window]:
        conv = call.module
        numbers = zip(conv.kernel_size, conv.stride, conv.dilation, _padding(conv), strict=True)
        return [Window(*axis) for axis in numbers]

    def describe(self, call: Call, layer: LayerPlan) -> LayerPlan:
        conv = call.module
        size = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
        return replace(layer, weight_size=size)

    @staticmethod
    def _counted(call: Call, layer: LayerPlan) -> LayerPlan:
        filters = prod(layer.unit_stride_weight_size)
        phases = prod(tap_map.output_factor for tap_map in layer.maps)
        bias = 0 if call.module.bias is None else phases * layer.weight_size[0]
        return replace(layer, parameters=(layer.parameters[0], filters + bias))

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        return self._counted(call, super().plan(call, layer))

    def plan_alone(self, call: Call, layer: LayerPlan) -> LayerPlan:
        return self._counted(call, super().plan_alone(call, layer))

    def strided_filter(self, call: Call) -> Tensor:
        """(out, in / groups, *kernel)."""
        return call.module.weight.detach()

    def parts(self, call: Call, layer: LayerPlan) -> dict[str, nn.Module]:
        padding = [tap_map.twin_padding for tap_map in layer.maps]
        inside = all(before == after >= 0 for before, after in padding)
        parts: dict[str, nn.Module] = {}
        if not inside:
            zero_pad: Any = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}[len(padding)]
            parts["padding"] = zero_pad(tuple(chain.from_iterable(reversed(padding))))
        own = [before for before, _ in padding] if inside else [0] * len(padding)
        parts["convolution"] = self._convolution(call, layer, own)
        return parts

    def _convolution(self, call: Call, layer: LayerPlan, padding: list[int]) -> nn.Module:
        module = call.module
        out_channels, in_channels, *kernel = layer.unit_stride_weight_size
        kind: Any = CONVOLUTIONS[len(kernel) - 1]
        with torch.device("meta"):  # no memory, and no draw from the global random generator
            twin = kind(
                in_channels * module.groups,
                out_channels,
                tuple(kernel),
                padding=tuple(padding),
                groups=module.groups,
                bias=module.bias is not None,
            )
        weight = expand_filter(self.strided_filter(call), layer.maps).contiguous()
        twin.weight = nn.Parameter(weight, _requires_grad(module, "weight"))
        if module.bias is not None:
            bias = expand_bias(module.bias.detach(), layer.maps).clone()
            twin.bias = nn.Parameter(bias, _requires_grad(module, "bias"))
        return cast(nn.Module, twin.train(module.training))


class TransposedConvolution(Convolution):
    """ConvTranspose1d, 2d, 3d: f(out) = s·f(in), and a plain convolution between phase forms."""

    def tie(self, call: Call, factors: Factors) -> None:
        for a, b, stride in zip(
            axes(call.maps[0]), axes(call.node), call.module.stride, strict=True
        ):
            factors.tie(b, a, stride, call.named)

    def _maps(self, call: Call, factors: Sequence[int]) -> tuple[Taps, ...]:
        conv = call.module
        numbers = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
        sizes = (extents(call.maps[0]), extents(call.node), factors)
        return tuple(TransposedTapMap(*axis) for axis in zip(*numbers, *sizes, strict=True))

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        maps = self._maps(call, layer.input.factor)
        masked = any(tap_map.reads_phantoms for tap_map in maps)
        return self._counted(call, replace(layer, maps=maps, masked=masked))

    def plan_alone(self, call: Call, layer: LayerPlan) -> LayerPlan:
        maps = self._maps(call, layer.input.factor)
        return self._counted(call, replace(layer, maps=maps, padding=((0, 0),) * len(maps)))

    def strided_filter(self, call: Call) -> Tensor:
        weight, groups = call.module.weight.detach(), call.module.groups
        return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if layer.padding is None:
            return super().build(call, layer)
        factor = tuple(tap_map.output_factor for tap_map in layer.maps)
        restore = DepthToSpace(replace(layer.output, factor=factor))
        return _sequence(**self.parts(call, layer), restore=restore)


class Pooling(Windowed):
    """Maximum or average over windows; over a whole map, it is one of the pixels."""

    def __init__(self, average: bool, adaptive: bool) -> None:
        self.average, self.adaptive = average, adaptive
        self.fill = 0.0 if average else -torch.inf

    def _numbers(self, call: Call) -> dict[str, Any]:
        if self.adaptive:
            return call.options("output_size")
        if self.average:
            names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
            return call.options(*names, "divisor_override")
        return call.options("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def applies(self, call: Call) -> bool:
        if not super().applies(call) or getattr(call.module, "return_indices", False):
            return False
        pairs = zip(extents(call.maps[0]), extents(call.node), strict=True)
        return not self.adaptive or all(size % length == 0 for size, length in pairs)

    def windows(self, call: Call) -> list[Window]:
        sizes, lengths = extents(call.maps[0]), extents(call.node)
        if self.adaptive:
            steps = [size // length for size, length in zip(sizes, lengths, strict=True)]
            return [Window(step, step, 1, (0, 0)) for step in steps]
        given = self._numbers(call)

        def each(name: str, default: Any) -> Sequence[int]:
            value = given.get(name, default)
            value = default if value in (None, (), []) else value
            value = (value,) if isinstance(value, int) else tuple(value)
            return value * (len(sizes) // len(value))

        kernel = each("kernel_size", 1)
        numbers = zip(
            kernel, each("stride", kernel), each("dilation", 1), each("padding", 0), strict=True
        )
        return [
            Window(k, s, d, (p, s * (length - 1) + d * (k - 1) + 1 - size - p))
            for (k, s, d, p), size, length in zip(numbers, sizes, lengths, strict=True)
        ]

    def is_strided(self, call: Call) -> bool:
        """Adaptive pooling of a whole map has no stride."""
        return super().is_strided(call) and not (self.adaptive and self.is_global(call))

    def is_global(self, call: Call) -> bool:
        """Whether its one window is the whole map."""
        if self._numbers(call).get("divisor_override"):
            return False
        return all(
            window.kernel == size and window.padding == (0, 0) and window.dilation == 1
            for window, size in zip(self.windows(call), extents(call.maps[0]), strict=True)
        ) and set(extents(call.node)) == {1}

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        simple = self.is_global(call) and layer.output.phases == 1
        return layer if simple else super().plan(call, layer)

    def plan_alone(self, call: Call, layer: LayerPlan) -> LayerPlan:
        if self.is_global(call):
            return replace(layer, padding=())
        return super().plan_alone(call, layer)

    def describe(self, call: Call, layer: LayerPlan) -> LayerPlan:
        """Averages are convolutions in the twin."""
        kernel = (window.kernel for window in self.windows(call))
        return (
            replace(layer, weight_size=(layer.output.channels, 1, *kernel))
            if self.average
            else layer
        )

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if layer.maps:
            return super().build(call, layer)
        whole = getattr(
            nn, f"Adaptive{'Avg' if self.average else 'Max'}Pool{len(layer.output.factor)}d"
        )(1)
        if layer.input.phases == 1:
            return whole
        return OverPixels(whole, layer.input, False, _device(call))

    def parts(self, call: Call, layer: LayerPlan) -> dict[str, nn.Module]:
        if not self.average:
            parts: dict[str, nn.Module] = {"maximum": WindowMaximum(layer.maps, self.fill)}
            if layer.output.ragged:  # phantoms must stay finite
                parts["tail"] = PhantomMask(layer.output, _device(call))
            return parts
        ones = torch.ones(1, 1, *extents(call.maps[0]), dtype=torch.float64)
        count = ones.new_ones(())
        for window, size in zip(self._effective(call), extents(call.maps[0]), strict=True):
            inside = TapMap(*window, size, 1).taps_inside
            count = count.unsqueeze(-1) * torch.from_numpy(inside).clamp(min=1)
        if call.module is not None:
            averages = call.module(ones)
        else:
            arguments, options = call.slots()
            averages = call.node.target(ones, *arguments[1:], **options)  # type: ignore[operator]
        scale = (averages[0, 0] / count).to(_device(call), _dtype(call))
        return {"average": WindowAverage(layer.output.channels, layer.maps, layer.output, scale)}


class ConstantPadding(Windowed):
    """Constant padding: over channels, each with its phases; over positions, windows of one tap."""

    def _pairs(self, call: Call) -> list[tuple[int, int]] | None:
        """Before and after each dimension but the batch; None if it is not constant."""
        given = (
            call.options("padding", "value")
            if call.module
            else call.options("pad", "mode", "value")
        )
        if given.get("mode", "constant") != "constant":
            return None
        flat = list(given["padding" if call.module else "pad"])
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        pairs += [(0, 0)] * (len(shape(call.node)) - len(pairs))
        return None if any(pairs[-1]) else pairs[-2::-1]

    def _value(self, call: Call) -> float:
        return float(call.options("pad", "mode", "value").get("value") or 0)

    def applies(self, call: Call) -> bool:
        pairs = self._pairs(call) if super().applies(call) else None
        return (
            pairs is not None
            and len(pairs) > 1
            and not (any(pairs[0]) and any(map(any, pairs[1:])))
        )

    def windows(self, call: Call) -> list[Window]:
        pairs = self._pairs(call) or []
        return [Window(1, 1, 1, pair) for pair in pairs[1:]]

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        filled = copy.copy(self)
        filled.fill = self._value(call)
        before, after = (self._pairs(call) or [])[0]
        if before or after:
            phases = layer.output.phases
            pads = [*[0, 0] * len(layer.maps), before * phases, after * phases]
            return Operation(F.pad, (Slot(0), pads, "constant", filled.fill), {})
        return super(ConstantPadding, filled).build(call, layer)

    def parts(self, call: Call, layer: LayerPlan) -> dict[str, nn.Module]:
        return {"maximum": WindowMaximum(layer.maps, self.fill)}


class Indexing(Windowed):
    """An element of a tuple; a slice of positions, a window of one tap; a slice of channels."""

    def _slices(self, call: Call) -> list[slice] | None:
        """Of each dimension but the batch; None if the index is more than slices."""
        given = call.node.args[1]
        index: list[Any] = list(given) if isinstance(given, (tuple, list)) else [given]
        rank = len(shape(call.maps[0]))
        if any(i is Ellipsis for i in index):
            at = next(n for n, i in enumerate(index) if i is Ellipsis)
            index[at : at + 1] = [slice(None)] * (rank - len(index) + 1)
        index += [slice(None)] * (rank - len(index))
        plain = all(
            isinstance(i, slice)
            and all(e is None or isinstance(e, int) for e in (i.start, i.stop, i.step))
            for i in index
        )
        return index[1:] if plain and len(index) == rank and index[0] == slice(None) else None

    @staticmethod
    def _of_tuple(call: Call) -> bool:
        return not isinstance(call.maps[0].meta["value"], Tensor)

    def _of_channels(self, call: Call) -> bool:
        slices = self._slices(call)
        return slices is not None and all(s == slice(None) for s in slices[1:])

    def applies(self, call: Call) -> bool:
        if not call.maps or self._of_tuple(call):
            return bool(call.maps)
        if len(call.maps) != 1 or not Windowed.applies(self, call) or len(shape(call.node)) < 3:
            return False
        slices = self._slices(call)
        return slices is not None and (slices[0] == slice(None) or self._of_channels(call))

    def channel(self, call: Call) -> int:
        return channel(call.maps[0])

    def windows(self, call: Call) -> list[Window]:
        windows = []
        pairs = zip(extents(call.maps[0]), extents(call.node), strict=True)
        for part, (size, length) in zip((self._slices(call) or [])[1:], pairs, strict=True):
            start, _, step = part.indices(size)
            windows.append(Window(1, step, 1, (-start, step * (length - 1) + 1 - size + start)))
        return windows

    def tie(self, call: Call, factors: Factors) -> None:
        if self._of_tuple(call) or self._of_channels(call):
            Rule.tie(self, call, factors)
        else:
            super().tie(call, factors)

    def is_strided(self, call: Call) -> bool:
        return False  # no layer; between phase forms its step is gone all the same

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        if self._of_tuple(call) or self._of_channels(call):
            return layer
        return super().plan(call, layer)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        if self._of_tuple(call):
            return None
        if self._of_channels(call):
            return OverPixels(call.as_module(), layer.input, True, _device(call))
        return super().build(call, layer)

    def parts(self, call: Call, layer: LayerPlan) -> dict[str, nn.Module]:
        return {"maximum": WindowMaximum(layer.maps, 0)}


class NearestUpsampling(Rule):
    """Each position repeated: f(out) = r·f(in)."""

    def _scale(self, call: Call) -> list[int]:
        sizes = zip(extents(call.maps[0]), extents(call.node), strict=True)
        return [length // size for size, length in sizes if length % size == 0]

    def applies(self, call: Call) -> bool:
        given = call.options("size", "scale_factor", "mode")
        nearest = given.get("mode", "nearest") in ("nearest", "nearest-exact")
        if not (nearest and super().applies(call) and channel(call.node) == 1):
            return False
        whole = len(self._scale(call)) == len(axes(call.node))
        factor = given.get("scale_factor")
        factors = factor if isinstance(factor, (tuple, list)) else [factor]
        return whole and all(f is None or f == int(f) for f in factors)

    def tie(self, call: Call, factors: Factors) -> None:
        for a, b, scale in zip(axes(call.maps[0]), axes(call.node), self._scale(call), strict=True):
            factors.tie(b, a, scale, call.named)

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        return RepeatPhases(layer.input.factor, self._scale(call))


class Dense(ByPixel):
    """Linear: on vectors as it is, on the channels of a channels-last map for each pixel."""

    def applies(self, call: Call) -> bool:
        source = call.maps[0]
        return len(shape(source)) == 2 or channel(source) == len(shape(source)) - 1

    def describe(self, call: Call, layer: LayerPlan) -> LayerPlan:
        return replace(layer, weight_size=tuple(call.module.weight.shape))


def _pin_result(call: Call, factors: Factors) -> None:
    for axis in axes(call.node):
        factors.pin(axis, f"{call.named} leaves one position")


def _sequence(**parts: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(parts)) if len(parts) > 1 else next(iter(parts.values()))


def _requires_grad(module: nn.Module, name: str) -> bool:
    """Of a parameter, or of what a parametrization makes it from."""
    return bool(getattr(module, name).requires_grad)


def _repeated(tensor: Tensor, times: int) -> Tensor:
    repeated = tensor.detach().repeat_interleave(times) if times > 1 else tensor.detach().clone()
    if not isinstance(tensor, nn.Parameter):
        return repeated
    return nn.Parameter(repeated, tensor.requires_grad)


def _model_tensor(call: Call) -> Tensor:
    """Any of the model's numbers, to be alike in type and place."""
    state = chain(call.traced.parameters(), call.traced.buffers())
    return next((t for t in state if t.is_floating_point()), torch.empty(0))


def _device(call: Call) -> torch.device:
    return _model_tensor(call).device


def _dtype(call: Call) -> torch.dtype:
    return _model_tensor(call).dtype


def _padding(conv: Any) -> list[tuple[int, int]]:
    """Zeros before and after each axis."""
    if conv.padding == "valid":
        return [(0, 0) for _ in conv.kernel_size]
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(zeros), int(zeros)) for zeros in conv.padding]
