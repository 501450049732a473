"""From a strided network to its unit-stride twin: plan, then build.

The plan decides the factor of each feature map, and with it every filter, mask and padding, from the
sizes of a traced network alone; building obeys the plan.
"""

import copy
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stridenet.phases import TapMap, expand_bias, expand_filter, phase_size, space_to_depth
from stridenet.tracing import (
    CONVOLUTIONS,
    Size,
    StrideEliminationError,
    checked_size,
    operation_of,
    operations,
    place,
    trace,
    written,
)

if TYPE_CHECKING:
    import pandas as pd

# Applied to each number by itself, finite where their input is: they take any arrangement of a map.
ELEMENTWISE: frozenset[Any] = frozenset({
    nn.Identity, nn.Dropout, nn.AlphaDropout,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Tanhshrink, nn.Hardswish,
    nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Threshold,
    F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh,
    F.logsigmoid, F.hardsigmoid, F.hardtanh, F.hardswish, F.softplus, F.softsign, F.tanhshrink,
    F.softshrink, F.hardshrink, F.threshold, F.relu_, F.leaky_relu_, F.elu_, F.celu_, F.selu_,
    torch.relu, torch.relu_, torch.selu, torch.celu, torch.sigmoid, torch.tanh, torch.clamp,
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "clamp_",
})  # fmt: skip
# They mix positions in the order of an ordinary map: neither side may be rearranged.
PINNED: frozenset[Any] = frozenset({nn.Flatten, nn.Linear, torch.flatten, "flatten"})
CURES: dict[Any, str] = {
    "view": "write torch.flatten(x, 1)",
    "reshape": "write torch.flatten(x, 1)",
    F.dropout: "write nn.Dropout, which can be switched off in the twin",
}


# Plan -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureMap:
    """A map of the strided network, and the factor by which the twin's is rearranged."""

    size: Size  # (channels, height, width), or (features,)
    factor: Size  # of each spatial axis; () for a vector

    @property
    def unit_stride_size(self) -> Size:
        """Size of the map in the twin: (channels·f_h·f_w, ceil(h/f_h), ceil(w/f_w))."""
        return (self.size[0] * prod(self.factor), *phase_size(self.size[1:], self.factor))


@dataclass(frozen=True)
class LayerPlan:
    """One operation of the network, and what the twin makes of it."""

    name: str  # the module's path, or the node's name for a function
    operation: str  # "Conv2d", "relu", …
    input: FeatureMap
    output: FeatureMap
    weight_size: Size = ()  # of the strided weight; () if there is none
    maps: tuple[TapMap, ...] = ()  # one an axis; () unless a convolution
    masked: bool = False  # the input's phantoms are set to zero first

    @property
    def unit_stride_weight_size(self) -> Size:
        """Size of the twin's weight."""
        if not self.maps:
            return self.weight_size
        return (
            self.weight_size[0] * prod(self.output.factor),
            self.weight_size[1] * prod(self.input.factor),
            *(tap_map.twin_kernel for tap_map in self.maps),
        )

    @property
    def structural_zeros(self) -> int:
        """Entries of the twin's filter that no strided weight stands behind."""
        taps = prod(int((tap_map.taps >= 0).sum()) for tap_map in self.maps)
        return (
            prod(self.unit_stride_weight_size) - prod(self.weight_size[:2]) * taps
            if self.maps
            else 0
        )

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Of one image's forward pass, strided and unit-stride."""
        if not self.weight_size:
            return 0, 0
        if not self.maps:
            each = prod(self.weight_size) * prod(self.output.size[:-1])
            return each, each
        return (
            prod(self.weight_size) * prod(self.output.size[1:]),
            prod(self.unit_stride_weight_size) * prod(self.output.unit_stride_size[1:]),
        )


@dataclass(frozen=True)
class EliminationPlan:
    """Every size of the twin, before any weight exists."""

    input: FeatureMap  # after the zeros of `input_padding`
    input_size: Size  # (channels, height, width) of the images
    input_padding: tuple[tuple[int, int], ...]  # zeros put around an image before it is rearranged
    layers: tuple[LayerPlan, ...]

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
                "strided_multiply_adds": layer.multiply_adds[0],
                "unit_stride_multiply_adds": layer.multiply_adds[1],
                "masked": layer.masked,
            }
            for layer in self.layers
        )

    def __str__(self) -> str:
        frame = self.to_frame()
        totals = frame.select_dtypes("integer").sum()
        rows = frame[frame.strided_filter != ""]
        pairs = {
            column: rows[f"strided_{column}"] + " -> " + rows[f"unit_stride_{column}"]
            for column in ("map", "filter")
        }
        table = rows[["layer"]].assign(**pairs).to_string(index=False)
        return (
            f"input {written(self.input_size)} -> {written(self.input.unit_stride_size)}\n{table}\n"
            f"weights {totals.strided_weights:,} -> {totals.unit_stride_weights:,} "
            f"({totals.structural_zeros:,} structural zeros), multiply-adds "
            f"{totals.strided_multiply_adds:,} -> {totals.unit_stride_multiply_adds:,}"
        )


def plan_elimination(model: nn.Module, input_size: Sequence[int]) -> EliminationPlan:
    """Decide the twin of `model` for images of `input_size` (channels, height, width), without batch.

    Allocates no weights. Raises StrideEliminationError where the model has no twin here.
    """
    size = checked_size(input_size)
    return _plan(trace(model, size), size)


def _plan(traced: fx.GraphModule, input_size: Size) -> EliminationPlan:
    _require_single_calls(traced)
    maps = _feature_maps(traced)
    layers = [_plan_layer(traced, node, maps) for node in operations(traced)]
    input_map = next(maps[node] for node in traced.graph.nodes if node.op == "placeholder")
    padding: tuple[tuple[int, int], ...] = ((0, 0),) * len(input_map.factor)
    if layers and layers[0].maps:
        layers[0], padding = _pad_first(layers[0])
        input_map = layers[0].input
    return EliminationPlan(input_map, input_size, padding, tuple(layers))


def _require_single_calls(traced: fx.GraphModule) -> None:
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for target, count in calls.items():
        module = traced.get_submodule(str(target))
        if count > 1 and type(module) in CONVOLUTIONS:
            raise StrideEliminationError(
                f"{target} ({type(module).__name__}) is called {count} times; give each call a module "
                "of its own, because each may need another filter"
            )


def _feature_maps(traced: fx.GraphModule) -> dict[fx.Node, FeatureMap]:
    """Each map with its factor, found from the output, where it is 1, back to the input (Eq. 26)."""
    maps: dict[fx.Node, FeatureMap] = {}
    for node in reversed(traced.graph.nodes):
        if node.op == "placeholder":
            break
        (source,) = node.all_input_nodes
        size = source.meta["size"]
        operation = operation_of(traced, node)
        if node.op == "output":
            factor = (1,) * (len(size) - 1)
        elif operation in CONVOLUTIONS:
            stride = _ordinary_convolution(traced, node).stride
            factor = tuple(s * f for s, f in zip(stride, maps[node].factor, strict=True))
        elif operation in ELEMENTWISE:
            factor = maps[node].factor
        elif operation in PINNED:
            if prod(maps[node].factor) != 1:
                raise StrideEliminationError(
                    f"{place(traced, node)} comes before a stride, but it mixes positions: its "
                    f"result {written(node.meta['size'])} cannot come in phase form"
                )
            factor = (1,) * (len(size) - 1)
        else:
            raise StrideEliminationError(
                f"{place(traced, node)} on a map {written(size)} has no rule; "
                + CURES.get(
                    operation,
                    "there are rules for torch's own Conv1d/2d/3d, Linear and "
                    "Dropout, for element-wise activations and flatten (write pooling as a strided "
                    "convolution, and a layer with weight_norm as a plain one)",
                )
            )
        maps[source] = FeatureMap(size, factor)
    return maps


def _ordinary_convolution(traced: fx.GraphModule, node: fx.Node) -> Any:
    """The node's module, if the rules hold for it."""
    conv: Any = traced.get_submodule(str(node.target))
    named, size = place(traced, node), node.all_input_nodes[0].meta["size"]
    made_with = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
    numbers = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
    if tuple(conv.weight.shape) != made_with or any(isinstance(number, int) for number in numbers):
        raise StrideEliminationError(
            f"{named} was changed after it was made: its weight {written(conv.weight.shape)} and its "
            f"kernel, stride, dilation and padding {numbers} do not go together"
        )
    if conv.padding_mode != "zeros":
        raise StrideEliminationError(
            f"{named} has padding_mode={conv.padding_mode!r}; only 'zeros' has a rule"
        )
    if len(conv.stride) != len(size) - 1:
        raise StrideEliminationError(
            f"{named} gets a map {written(size)}; it needs channels and {len(conv.stride)} spatial "
            "axes (input_size is without the batch)"
        )
    return conv


def _plan_layer(
    traced: fx.GraphModule, node: fx.Node, maps: dict[fx.Node, FeatureMap]
) -> LayerPlan:
    operation = operation_of(traced, node)
    (source,) = node.all_input_nodes
    layer = LayerPlan(
        name=str(node.target) if node.op == "call_module" else node.name,
        operation=getattr(operation, "__name__", str(operation)),
        input=maps[source],
        output=maps[node],
    )
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.Linear):
        return replace(layer, weight_size=tuple(module.weight.shape))
    if not isinstance(module, CONVOLUTIONS):
        return layer
    tap_maps = tuple(
        TapMap(*axis)
        for axis in zip(
            module.kernel_size,
            module.stride,
            module.dilation,
            _padding(module),
            layer.input.size[1:],
            layer.output.factor,
            strict=True,
        )
    )
    return replace(
        layer,
        weight_size=tuple(module.weight.shape),
        maps=tap_maps,
        masked=any(tap_map.reads_phantoms for tap_map in tap_maps),
    )


def _padding(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[tuple[int, int]]:
    """Zeros before and after each axis."""
    if conv.padding == "valid":
        return [(0, 0) for _ in conv.kernel_size]
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(zeros), int(zeros)) for zeros in conv.padding]


def _pad_first(layer: LayerPlan) -> tuple[LayerPlan, tuple[tuple[int, int], ...]]:
    """The layer that reads the images: they are padded before they are rearranged where that makes
    its filter smaller. Their phantoms are zeros already, so it needs no mask."""
    maps = list(layer.maps)
    padding = [(0, 0)] * len(maps)
    for axis, tap_map in enumerate(maps):
        padded = replace(tap_map, padding=(0, 0), size=tap_map.size + sum(tap_map.padding))
        if padded.twin_kernel < tap_map.twin_kernel:
            maps[axis], padding[axis] = padded, tap_map.padding
    size = (layer.input.size[0], *(tap_map.size for tap_map in maps))
    layer = replace(layer, input=replace(layer.input, size=size), maps=tuple(maps), masked=False)
    return layer, tuple(padding)


# Build ----------------------------------------------------------------------------------------------


class SpaceToDepth(nn.Module):
    """Images (n, c, h, w) to the twin's input: zeros around them, then their phase form."""

    def __init__(self, plan: EliminationPlan) -> None:
        super().__init__()
        self.input_size = plan.input_size
        self.padding = plan.input_padding
        self.factor = plan.input.factor

    def forward(self, images: Tensor) -> Tensor:
        """Images to phases; raises StrideEliminationError on another size than the twin's."""
        return _to_phases(images, self.input_size, self.padding, self.factor)

    def extra_repr(self) -> str:
        """What print shows."""
        return f"input_size={self.input_size}, padding={self.padding}, factor={self.factor}"


@fx.wrap  # torch.fx cannot look into it: it depends on the size
def _to_phases(
    images: Tensor, size: Size, padding: tuple[tuple[int, int], ...], factor: Size
) -> Tensor:
    if tuple(images.shape[1:]) != size:
        raise StrideEliminationError(
            f"images are {written(images.shape[1:])}, but this twin was made for {written(size)}; "
            "call eliminate_stride with that input_size"
        )
    if any(map(any, padding)):
        images = F.pad(images, [extent for pair in reversed(padding) for extent in pair])
    return space_to_depth(images, factor)


class PhantomMask(nn.Module):
    """Sets the positions that the strided network does not have to zero."""

    real: Tensor  # (channels, height, width), of the phase form

    def __init__(self, feature_map: FeatureMap, device: torch.device) -> None:
        super().__init__()
        ones = torch.ones(1, *feature_map.size, dtype=torch.bool, device=device)
        # Rank 3 and selection: a mask of rank 4 or a product would lose channels_last, or spread NaN.
        self.register_buffer("real", space_to_depth(ones, feature_map.factor)[0], persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """The maps, zero where they are not real."""
        return torch.where(self.real, maps, 0)


class UnitStrideNetwork(nn.Module):
    """The twin: `network` (unit-stride layers only) after `rearrange` (images to their phase form).

    Takes ordinary images (n, c, h, w) of the size that it was made for, and returns what the strided
    network returns, up to rounding. `plan` holds its maps and filters.
    """

    def __init__(self, network: fx.GraphModule, plan: EliminationPlan) -> None:
        super().__init__()
        self.plan = plan
        self.rearrange = SpaceToDepth(plan)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Ordinary images to what the strided network returns."""
        return cast(Tensor, self.network(self.rearrange(images)))


def eliminate_stride(model: nn.Module, input_size: Sequence[int]) -> UnitStrideNetwork:
    """The equivalent of `model` with unit strides only (Theorem 2), its weights copied.

    input_size is (channels, height, width), without batch; the twin takes images of this size only.
    Supported are chains of Conv1d/2d/3d with zero padding, element-wise activations, dropout, flatten
    and Linear. Names, dtype, device, training mode and requires_grad carry over; the model is left
    untouched. Raises StrideEliminationError, naming the layer, for anything else.

    A forward that depends on the training mode is converted as it runs in the present one. In training
    mode, dropout draws other numbers than in the model. Equality holds for finite images: an infinity
    times a structural zero is not a number.

    >>> model = nn.Sequential(nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Conv2d(32, 8, 2, stride=2))
    >>> eliminate_stride(model, (3, 12, 12)).network.get_submodule("0")
    Conv2d(12, 128, kernel_size=(3, 3), stride=(1, 1))
    """
    size = checked_size(input_size)
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        raise StrideEliminationError(
            "the model is on the meta device: load its weights first (plan_elimination needs none)"
        )
    traced = trace(model, size)
    plan = _plan(traced, size)
    layers = {
        layer.name: _build_layer(traced.get_submodule(layer.name), layer)
        for layer, node in zip(plan.layers, operations(traced), strict=True)
        if node.op == "call_module"
    }
    network = fx.GraphModule(layers, traced.graph, class_name="UnitStrideLayers")
    containers = dict(network.named_modules())
    for name, module in model.named_modules():
        if name in containers:
            containers[name].training = module.training
    twin = UnitStrideNetwork(network, plan)
    twin.training = twin.rearrange.training = model.training
    return twin


def _build_layer(module: nn.Module, layer: LayerPlan) -> nn.Module:
    """The module under the same name in the twin."""
    if not isinstance(module, CONVOLUTIONS):
        return copy.deepcopy(module)
    padding = [tap_map.twin_padding for tap_map in layer.maps]
    inside = all(before == after >= 0 for before, after in padding)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if layer.masked:
        parts["mask"] = PhantomMask(layer.input, module.weight.device)
    if not inside:
        zero_pad: Any = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}[len(padding)]
        parts["padding"] = zero_pad(tuple(chain.from_iterable(reversed(padding))))
    parts["convolution"] = _convolution(
        module, layer, [before for before, _ in padding] if inside else [0] * len(padding)
    )
    return nn.Sequential(parts).train(module.training) if len(parts) > 1 else parts["convolution"]


def _convolution(module: Any, layer: LayerPlan, padding: list[int]) -> nn.Module:
    out_channels, in_channels, *kernel = layer.unit_stride_weight_size
    with torch.device("meta"):  # no memory, and no draw from the global random generator
        twin = type(module)(
            in_channels * module.groups,
            out_channels,
            tuple(kernel),
            padding=tuple(padding),
            groups=module.groups,
            bias=module.bias is not None,
        )
    twin.weight = nn.Parameter(
        expand_filter(module.weight.detach(), layer.maps).contiguous(), module.weight.requires_grad
    )
    if module.bias is not None:
        twin.bias = nn.Parameter(
            expand_bias(module.bias.detach(), layer.maps).clone(), module.bias.requires_grad
        )
    return cast(nn.Module, twin.train(module.training))
