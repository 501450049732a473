"""Which rule an operation has. To support another one, give it a line here.

Operations are named as a traced network names them: a class of torch.nn, a function, or the name of a
method of tensors. What is not in the table is kept as it is, between maps in their ordinary form.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stridenet.graph.nodes import CONVOLUTIONS, TRANSPOSED, channel, shape, spatial
from stridenet.rules.base import Call, Pinned, Rule
from stridenet.rules.convolution import Convolution, TransposedConvolution
from stridenet.rules.normalisation import BatchNormalisation
from stridenet.rules.pointwise import ByPixel, Dense, Elementwise, PerChannel
from stridenet.rules.pooling import Pooling
from stridenet.rules.shapes import Concatenation, Flatten, NearestUpsampling, Permutation, Split
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
    "contiguous", "clone", "detach", "float", "double", "half", F.dropout, F.alpha_dropout,
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
        return bool(given.get("keepdim"))
    return 0 not in reduced and set(spatial(source)) <= reduced


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
PINNED = Pinned()
_TABLE: list[tuple[Rule, Any]] = [
    (Elementwise(), ELEMENTWISE | ARITHMETIC | COPIES),
    (Elementwise(fill=1), PARTIAL),
    (Convolution(), CONVOLUTIONS),
    (TransposedConvolution(), TRANSPOSED),
    *[(Pooling(*kind), operations) for kind, operations in _POOLS.items()],
    (BatchNormalisation(), (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)),
    (PerChannel(), (nn.PReLU,)),
    (Concatenation(), (torch.cat, torch.concat, torch.concatenate)),
    (Split(), (torch.split, torch.chunk, "split", "chunk")),
    (Permutation(), (torch.permute, torch.transpose, "permute", "transpose")),
    (Flatten(), (nn.Flatten, torch.flatten, torch.reshape, "flatten", "view", "reshape")),
    (ConstantPadding(), (F.pad, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d,
                               nn.ConstantPad2d, nn.ConstantPad3d)),
    (Indexing(), (operator.getitem,)),
    (NearestUpsampling(), (nn.Upsample, nn.UpsamplingNearest2d, F.interpolate)),
    (Dense(), (nn.Linear,)),
    (ByPixel(_channels_first), (
        nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm,
        nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout, nn.Softmax2d,
        nn.ChannelShuffle, torch.channel_shuffle, F.channel_shuffle, F.group_norm, F.instance_norm,
        F.dropout1d, F.dropout2d, F.dropout3d, F.local_response_norm)),
    (ByPixel(_over_channels), (nn.Softmax, nn.LogSoftmax, F.softmax, F.log_softmax,
                                     torch.softmax, torch.log_softmax, "softmax", "log_softmax")),
    (ByPixel(_of_channels), (nn.LayerNorm, nn.RMSNorm, F.layer_norm, F.rms_norm)),
    (ByPixel(_over_all_positions), (
        torch.mean, torch.sum, torch.amax, torch.amin, torch.logsumexp,
        "mean", "sum", "amax", "amin", "logsumexp")),
]  # fmt: skip
_RULES = {operation: rule for rule, operations in _TABLE for operation in operations}
_BY_NAME = {
    "torchvision.ops.stochastic_depth.StochasticDepth": _RULES[nn.Dropout],
    "torchvision.ops.stochastic_depth.stochastic_depth": _RULES[nn.Dropout],
    "torchvision.models.shufflenetv2.channel_shuffle": _RULES[nn.ChannelShuffle],
}


def rule_of(call: Call) -> Rule:
    """The rule that holds for a call; PINNED if none does."""
    rule = _RULES.get(call.operation)
    if rule is None and hasattr(call.operation, "__qualname__"):
        named = f"{call.operation.__module__}.{call.operation.__qualname__}"
        rule = _BY_NAME.get(named)
    return rule if rule is not None and call.maps and rule.applies(call) else PINNED
