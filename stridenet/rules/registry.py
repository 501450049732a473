"""The table of operations and their rules. To support another operation, give it a line here.

Operations are named as a traced network names them: a class of torch.nn, a function, or the name of a
method of tensors. What is not in the table is kept as it is, between maps in their ordinary form.
How far two right results of an operation may lie apart is the other table, in rounding.py.
"""

import operator
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stridenet.graph.nodes import CONVOLUTIONS, TRANSPOSED, channel, of_model, shape, spatial
from stridenet.graph.preparing import EXPANSIONS
from stridenet.rules.base import Call, OfModel, Pinned, Rule
from stridenet.rules.channels import (
    AlongChannels,
    AlongPlain,
    ChannelIndex,
    NewChannel,
    OneChannel,
    PlainIndex,
    Reshape,
)
from stridenet.rules.convolution import Convolution, TransposedConvolution
from stridenet.rules.normalisation import BatchNormalisation
from stridenet.rules.pointwise import (
    ByChannelFunction,
    ByPixel,
    Cast,
    Dense,
    Elementwise,
    OfChannels,
    PerChannel,
)
from stridenet.rules.pooling import (
    AdaptiveAveragePooling,
    AdaptiveMaximumPooling,
    AveragePooling,
    MaximumPooling,
)
from stridenet.rules.resampling import (
    PADDINGS,
    ExpandedAxes,
    LinearUpsampling,
    NearestUpsampling,
    PaddingByPositions,
    PixelShuffle,
    PixelUnshuffle,
)
from stridenet.rules.shapes import Concatenation, Flatten, Gate, Permutation, Split, Stack
from stridenet.rules.slices import (
    ChannelPadding,
    ChannelSlice,
    PositionPadding,
    PositionSlice,
    TupleElement,
)

# Functions of single numbers that are finite where their input is: they take any arrangement of a map.
ELEMENTWISE: frozenset[Any] = frozenset({
    nn.Identity, nn.Dropout, nn.AlphaDropout,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Tanhshrink, nn.Hardswish,
    nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Threshold,
    F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh,
    F.logsigmoid, F.hardsigmoid, F.hardtanh, F.hardswish, F.softplus, F.softsign, F.tanhshrink,
    F.softshrink, F.hardshrink, F.threshold, F.relu_, F.leaky_relu_, F.elu_, F.celu_, F.selu_,
    torch.relu, torch.relu_, torch.selu, torch.celu, torch.sigmoid, torch.tanh, torch.clamp,
    torch.abs, torch.neg, torch.square, torch.erf, torch.sin, torch.cos, operator.neg, operator.abs,
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "clamp_", "clamp_min",
    "clamp_max", "abs", "neg", "square", "erf", "clip", torch.clip,
})  # fmt: skip
# These give the same numbers, in another place or type; or fewer of them, as dropout does in training.
COPIES: frozenset[Any] = frozenset({
    "contiguous", "clone", "detach", "float", "double", "half", "bfloat16", "bool", "int", "long",
    torch.clone, torch.zeros_like, torch.ones_like, torch.full_like, F.dropout, F.alpha_dropout,
})  # fmt: skip
# These combine two maps or numbers at each position.
ARITHMETIC: frozenset[Any] = frozenset({
    operator.add, operator.sub, operator.mul, operator.iadd, operator.isub, operator.imul,
    torch.add, torch.sub, torch.subtract, torch.mul, torch.multiply, torch.maximum, torch.minimum,
    "add", "add_", "sub", "sub_", "mul", "mul_", "multiply", "maximum", "minimum",
})  # fmt: skip
# These are not finite everywhere: positions that the strided network does not have must hold a one.
PARTIAL: frozenset[Any] = frozenset({
    operator.truediv, operator.itruediv, operator.pow, torch.div, torch.true_divide, torch.pow,
    torch.log, torch.log2, torch.log10, torch.log1p, torch.sqrt, torch.rsqrt, torch.reciprocal,
    torch.exp, "div", "div_", "pow", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal",
    "exp",
})  # fmt: skip
CURES: dict[Any, str] = {
    F.conv1d: "write nn.Conv1d, or take convert_layers(model), which converts it as it is",
    F.conv2d: "write nn.Conv2d, or take convert_layers(model), which converts it as it is",
    F.conv3d: "write nn.Conv3d, or take convert_layers(model), which converts it as it is",
}


def _over_channels(call: Call) -> bool:
    """Tell whether a softmax, or an operation like it, is over the channels of each position."""
    dim = call.arguments("dim").get("dim")
    return isinstance(dim, int) and dim % len(shape(call.maps[0])) == channel(call.maps[0])


def _of_channels(call: Call) -> bool:
    """Tell whether a LayerNorm, or its like, is over the channels of a channels-last map."""
    source = call.maps[0]
    given = call.arguments("normalized_shape")["normalized_shape"]
    return tuple(given) == shape(source)[-1:] and channel(source) == len(shape(source)) - 1


def _over_all_positions(call: Call) -> bool:
    """Tell whether a reduction is over all positions, or leaves one channel of each."""
    source, given = call.maps[0], call.arguments("dim", "keepdim")
    dims = given.get("dim")
    dims = (dims,) if isinstance(dims, int) else dims
    if not isinstance(dims, (tuple, list)):
        return False
    reduced = {dim % len(shape(source)) for dim in dims}
    if reduced == {channel(source)}:
        return bool(given.get("keepdim"))  # else it is one of OfChannels
    return 0 not in reduced and set(spatial(source)) <= reduced


def _of_each_position(call: Call) -> bool:
    """Tell whether a reduction over channels leaves no dimension for them."""
    source, given = call.maps[0], call.arguments("dim", "keepdim")
    dim = given.get("dim")
    (dim,) = dim if isinstance(dim, (tuple, list)) and len(dim) == 1 else (dim,)
    over = isinstance(dim, int) and dim % len(shape(source)) == channel(source)
    return bool(over and spatial(source) and not given.get("keepdim"))


def _keeps_one_channel(call: Call) -> bool:
    """Tell whether a reduction over channels leaves one channel (keepdim)."""
    return _over_channels(call) and bool(call.arguments("dim", "keepdim").get("keepdim"))


def _of_two(call: Call) -> bool:
    """Tell whether torch.max or torch.min has two tensors: it is torch.maximum or minimum then."""
    return len(call.maps) + len(call.constants) == 2


def _channels_first(call: Call) -> bool:
    return channel(call.maps[0]) == 1


MAXIMUM_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
    F.max_pool1d, F.max_pool2d, F.max_pool3d,
)  # fmt: skip
AVERAGE_POOLS = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
)  # fmt: skip
ADAPTIVE_MAXIMUM_POOLS = (
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
)  # fmt: skip
ADAPTIVE_AVERAGE_POOLS = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.adaptive_avg_pool1d,
)  # fmt: skip
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Statistics of each image, over its positions or over all of it.
NORMALISATIONS = (
    nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm,
    F.group_norm, F.instance_norm, F.local_response_norm,
)  # fmt: skip
LAYER_NORMS = (nn.LayerNorm, nn.RMSNorm, F.layer_norm, F.rms_norm)
SOFTMAXES = (
    nn.Softmax, nn.LogSoftmax, F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax",
    "log_softmax",
)  # fmt: skip
SUMS = (torch.mean, torch.sum, "mean", "sum")
EXTREMA = (torch.max, torch.min, torch.argmax, torch.argmin, "max", "min", "argmax", "argmin")
REDUCTIONS = (*SUMS, torch.amax, torch.amin, torch.logsumexp, "amax", "amin", "logsumexp")
GATES = (nn.GLU, F.glu)
JOINS = (torch.cat, torch.concat, torch.concatenate)
SPLITS = (torch.split, torch.chunk, "split", "chunk")
PERMUTATIONS = (
    torch.permute, torch.transpose, torch.swapaxes, torch.swapdims, torch.movedim,
    "permute", "transpose", "swapaxes", "swapdims", "movedim",
)  # fmt: skip
RESHAPES = (
    nn.Flatten, torch.flatten, torch.reshape, "flatten", "view", "reshape", torch.squeeze, "squeeze",
)  # fmt: skip
NEW_DIMENSIONS = (nn.Unflatten, torch.unflatten, "unflatten", torch.unsqueeze, "unsqueeze")
CONSTANT_PADDINGS = (
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
)  # fmt: skip
CASTS = ("to", "type", "type_as")
DROPPED_CHANNELS = (
    nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout,
    F.dropout1d, F.dropout2d, F.dropout3d,
)  # fmt: skip
SHUFFLES = (nn.ChannelShuffle, torch.channel_shuffle, F.channel_shuffle)
PINNED, OF_MODEL = Pinned(), OfModel()
# An operation may stand in several lines: the first rule that takes a call is its rule.
_TABLE: list[tuple[Rule, Iterable[Any]]] = [
    (Elementwise(), ELEMENTWISE | ARITHMETIC | COPIES),
    (Elementwise(fill=1), PARTIAL),
    (Convolution(), CONVOLUTIONS),
    (TransposedConvolution(), TRANSPOSED),
    (MaximumPooling(), MAXIMUM_POOLS),
    (AveragePooling(), AVERAGE_POOLS),
    (AdaptiveMaximumPooling(), ADAPTIVE_MAXIMUM_POOLS),
    (AdaptiveAveragePooling(), ADAPTIVE_AVERAGE_POOLS),
    (BatchNormalisation(), BATCH_NORMS),
    (ByChannelFunction(), (F.batch_norm, F.prelu)),
    (PerChannel(), (nn.PReLU,)),
    (Concatenation(), JOINS),
    (Stack(), (torch.stack,)),
    (Split(), SPLITS),
    (Gate(), GATES),
    (Permutation(), PERMUTATIONS),
    (Flatten(), RESHAPES),
    (Reshape(), (*RESHAPES, *NEW_DIMENSIONS)),
    (PositionPadding(), (F.pad, *CONSTANT_PADDINGS)),
    (ChannelPadding(), (F.pad, *CONSTANT_PADDINGS)),
    (PaddingByPositions(), (F.pad, *PADDINGS)),
    (TupleElement(), (operator.getitem,)),
    (ChannelSlice(), (operator.getitem,)),
    (PositionSlice(), (operator.getitem,)),
    (PlainIndex(), (operator.getitem,)),
    (ChannelIndex(), (operator.getitem,)),
    (OneChannel(), (operator.getitem,)),
    (NewChannel(), (operator.getitem,)),
    (NearestUpsampling(), (nn.Upsample, nn.UpsamplingNearest2d, F.interpolate)),
    (LinearUpsampling(), (nn.Upsample, nn.UpsamplingBilinear2d, F.interpolate)),
    (PixelShuffle(), (nn.PixelShuffle, F.pixel_shuffle)),
    (PixelUnshuffle(), (nn.PixelUnshuffle, F.pixel_unshuffle)),
    (ExpandedAxes(), EXPANSIONS),
    (Cast(), CASTS),
    (Elementwise(condition=_of_two), (torch.max, torch.min, "max", "min")),
    (AlongPlain(), (*REDUCTIONS, *EXTREMA, *SOFTMAXES, torch.unbind, "unbind")),
    (AlongChannels(), (*REDUCTIONS, *EXTREMA, *SOFTMAXES, torch.unbind, "unbind")),
    (OfChannels(_of_each_position), (*REDUCTIONS, *EXTREMA)),
    (ByPixel(_keeps_one_channel), EXTREMA),
    (Dense(), (nn.Linear, F.linear)),
    (ByPixel(_channels_first), (*NORMALISATIONS, *DROPPED_CHANNELS, *SHUFFLES, nn.Softmax2d)),
    (ByPixel(_over_channels, "it is over positions, not over channels"), SOFTMAXES),
    (ByPixel(_of_channels, "it is over positions, too, or over channels that are not last"),
     LAYER_NORMS),
    (ByPixel(_over_all_positions, "it is over some of the positions"), REDUCTIONS),
]  # fmt: skip
RULES: dict[Any, list[Rule]] = {}
for _rule, _operations in _TABLE:
    for _operation in _operations:
        RULES.setdefault(_operation, []).append(_rule)
# Not torch's own; each is treated as an operation of torch that does the same.
_STAND_FOR: dict[str, Any] = {
    "torchvision.ops.stochastic_depth.StochasticDepth": nn.Dropout,
    "torchvision.ops.stochastic_depth.stochastic_depth": nn.Dropout,
    "torchvision.models.shufflenetv2.channel_shuffle": nn.ChannelShuffle,
}


def known_operation(operation: Any) -> Any:
    """Return the operation under which the tables know it: itself, or the one that it stands for."""
    if operation in RULES or not hasattr(operation, "__qualname__"):
        return operation
    return _STAND_FOR.get(f"{operation.__module__}.{operation.__qualname__}", operation)


def rule_of(call: Call) -> Rule:
    """Return the first rule that takes a call; PINNED, with the reason in the node's meta, if none."""
    if of_model(call.node):
        return OF_MODEL
    rules = RULES.get(known_operation(call.operation), [])
    for rule in rules:
        if rule.takes(call):
            return rule
    reasons = (rule.why_not_taken(call) for rule in rules if call.maps)
    call.node.meta["why_not"] = next(filter(None, reasons), "")
    return PINNED
