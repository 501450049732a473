"""Which rule an operation has. To support another one, give it a line here.

Operations are named as a traced network names them: a class of torch.nn, a function, or the name of a
method of tensors. What is not in the table is kept as it is, between maps in their ordinary form.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stridenet.graph.nodes import CONVOLUTIONS, TRANSPOSED, channel, of_model, shape, spatial
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
from stridenet.rules.pooling import Pooling
from stridenet.rules.resampling import (
    PADDINGS,
    Expansion,
    LinearUpsampling,
    NearestUpsampling,
    PaddingByPositions,
    PixelShuffle,
    PixelUnshuffle,
)
from stridenet.rules.shapes import Concatenation, Flatten, Permutation, Split, Stack
from stridenet.rules.slices import ConstantPadding, Indexing

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
    torch.abs, torch.neg, torch.square, torch.erf, torch.sin, torch.cos, operator.neg, operator.abs,
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "clamp_", "clamp_min",
    "clamp_max", "abs", "neg", "square", "erf", "clip", torch.clip,
})  # fmt: skip
# The same numbers, in another place or type; or fewer of them in training, as the mode was when traced.
COPIES: frozenset[Any] = frozenset({
    "contiguous", "clone", "detach", "float", "double", "half", "bfloat16", "bool", "int", "long",
    torch.clone, torch.zeros_like, torch.ones_like, torch.full_like, F.dropout, F.alpha_dropout,
})  # fmt: skip
# Of two maps or numbers, at each position.
ARITHMETIC: frozenset[Any] = frozenset({
    operator.add, operator.sub, operator.mul, operator.iadd, operator.isub, operator.imul,
    torch.add, torch.sub, torch.subtract, torch.mul, torch.multiply, torch.maximum, torch.minimum,
    "add", "add_", "sub", "sub_", "mul", "mul_", "multiply", "maximum", "minimum",
})  # fmt: skip
# Not finite everywhere: the positions that the strided network does not have must hold a one.
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
    """Softmax and its like, over the channels of each position."""
    dim = call.options("dim").get("dim")
    return isinstance(dim, int) and dim % len(shape(call.maps[0])) == channel(call.maps[0])


def _of_channels(call: Call) -> bool:
    """LayerNorm and its like, over the channels of a channels-last map."""
    source = call.maps[0]
    given = call.options("normalized_shape")["normalized_shape"]
    return tuple(given) == shape(source)[-1:] and channel(source) == len(shape(source)) - 1


def _over_all_positions(call: Call) -> bool:
    """A mean or its like over all positions, or over the channels of each."""
    source, given = call.maps[0], call.options("dim", "keepdim")
    dims = given.get("dim")
    dims = (dims,) if isinstance(dims, int) else dims
    if not isinstance(dims, (tuple, list)):
        return False
    reduced = {dim % len(shape(source)) for dim in dims}
    if reduced == {channel(source)}:
        return bool(given.get("keepdim"))  # else it is one of OfChannels
    return 0 not in reduced and set(spatial(source)) <= reduced


def _of_each_position(call: Call) -> bool:
    """One number or more from the channels of each position, by a reduction without keepdim."""
    source, given = call.maps[0], call.options("dim", "keepdim")
    dim = given.get("dim")
    (dim,) = dim if isinstance(dim, (tuple, list)) and len(dim) == 1 else (dim,)
    over = isinstance(dim, int) and dim % len(shape(source)) == channel(source)
    return bool(over and spatial(source) and not given.get("keepdim"))


def _keeps_one_channel(call: Call) -> bool:
    """A reduction with keepdim: one channel is left."""
    return _over_channels(call) and bool(call.options("dim", "keepdim").get("keepdim"))


def _of_two(call: Call) -> bool:
    """torch.maximum by its other name."""
    return len(call.maps) + len(call.constants) == 2


def _channels_first(call: Call) -> bool:
    return channel(call.maps[0]) == 1


_POOLS = {
    (False, False): (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
                     torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
                     F.max_pool1d, F.max_pool2d, F.max_pool3d),
    (True, False): (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
                    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    (True, True): (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
                   F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
                   torch.adaptive_avg_pool1d),
    (False, True): (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
                    F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}  # fmt: skip
PINNED, OF_MODEL = Pinned(), OfModel()
_EXTREMA = (torch.max, torch.min, torch.argmax, torch.argmin, "max", "min", "argmax", "argmin")
_REDUCTIONS = (
    torch.mean,
    torch.sum,
    torch.amax,
    torch.amin,
    torch.logsumexp,
    "mean",
    "sum",
    "amax",
    "amin",
    "logsumexp",
)
_SOFTMAXES = (
    nn.Softmax,
    nn.LogSoftmax,
    F.softmax,
    F.log_softmax,
    torch.softmax,
    torch.log_softmax,
    "softmax",
    "log_softmax",
)
_RESHAPES = (nn.Flatten, torch.flatten, torch.reshape, "flatten", "view", "reshape", torch.squeeze,
             "squeeze")  # fmt: skip
# The first that takes a call is its rule.
_TABLE: list[tuple[Rule, Any]] = [
    (Elementwise(), ELEMENTWISE | ARITHMETIC | COPIES),
    (Elementwise(fill=1), PARTIAL),
    (Convolution(), CONVOLUTIONS),
    (TransposedConvolution(), TRANSPOSED),
    *[(Pooling(*kind), operations) for kind, operations in _POOLS.items()],
    (BatchNormalisation(), (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
                             nn.SyncBatchNorm)),
    (ByChannelFunction(), (F.batch_norm, F.prelu)),
    (PerChannel(), (nn.PReLU,)),
    (Concatenation(), (torch.cat, torch.concat, torch.concatenate)),
    (Stack(), (torch.stack,)),
    (Split(), (torch.split, torch.chunk, "split", "chunk")),
    (Permutation(), (torch.permute, torch.transpose, torch.swapaxes, torch.swapdims, torch.movedim,
                     "permute", "transpose", "swapaxes", "swapdims", "movedim")),
    (Flatten(), _RESHAPES),
    (Reshape(), (*_RESHAPES, nn.Unflatten, torch.unflatten, "unflatten", torch.unsqueeze,
                 "unsqueeze")),
    (ConstantPadding(), (F.pad, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d,
                               nn.ConstantPad2d, nn.ConstantPad3d)),
    (PaddingByPositions(), (F.pad, *PADDINGS)),
    (Indexing(), (operator.getitem,)),
    *[(rule, (operator.getitem,))
      for rule in (PlainIndex(), ChannelIndex(), OneChannel(), NewChannel())],
    (NearestUpsampling(), (nn.Upsample, nn.UpsamplingNearest2d, F.interpolate)),
    (LinearUpsampling(), (nn.Upsample, nn.UpsamplingBilinear2d, F.interpolate)),
    (PixelShuffle(), (nn.PixelShuffle, F.pixel_shuffle)),
    (PixelUnshuffle(), (nn.PixelUnshuffle, F.pixel_unshuffle)),
    (Expansion(), ("expand", "expand_as", "broadcast_to", torch.broadcast_to)),
    (Cast(), ("to", "type", "type_as")),
    (Elementwise(holds=_of_two), (torch.max, torch.min, "max", "min")),
    *[(rule, (*_REDUCTIONS, *_EXTREMA, *_SOFTMAXES, torch.unbind, "unbind"))
      for rule in (AlongPlain(), AlongChannels())],
    (OfChannels(_of_each_position), (*_REDUCTIONS, *_EXTREMA)),
    (ByPixel(_keeps_one_channel), _EXTREMA),
    (Dense(), (nn.Linear, F.linear)),
    (ByPixel(_channels_first), (
        nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm,
        nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout, nn.Softmax2d,
        nn.ChannelShuffle, torch.channel_shuffle, F.channel_shuffle, F.group_norm, F.instance_norm,
        F.dropout1d, F.dropout2d, F.dropout3d, F.local_response_norm)),
    (ByPixel(_over_channels, "it is over positions, not over channels"), _SOFTMAXES),
    (ByPixel(_of_channels, "it is over positions, too, or over channels that are not last"), (
        nn.LayerNorm, nn.RMSNorm, F.layer_norm, F.rms_norm)),
    (ByPixel(_over_all_positions, "it is over some of the positions"), _REDUCTIONS),
]  # fmt: skip
_RULES: dict[Any, list[Rule]] = {}
for _rule, _operations in _TABLE:
    for _operation in _operations:
        _RULES.setdefault(_operation, []).append(_rule)
_BY_NAME = {
    "torchvision.ops.stochastic_depth.StochasticDepth": _RULES[nn.Dropout],
    "torchvision.ops.stochastic_depth.stochastic_depth": _RULES[nn.Dropout],
    "torchvision.models.shufflenetv2.channel_shuffle": _RULES[nn.ChannelShuffle],
}


def rule_of(call: Call) -> Rule:
    """The rule that holds for a call; PINNED, with the reason in the node's meta, if none does."""
    if of_model(call.node):
        return OF_MODEL
    rules = _RULES.get(call.operation, [])
    if not rules and hasattr(call.operation, "__qualname__"):
        named = f"{call.operation.__module__}.{call.operation.__qualname__}"
        rules = _BY_NAME.get(named, [])
    for rule in rules:
        if rule.takes(call):
            return rule
    reasons = (rule.why_not_taken(call) for rule in rules if call.maps)
    call.node.meta["why_not"] = next(filter(None, reasons), "")
    return PINNED
