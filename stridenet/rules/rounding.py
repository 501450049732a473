"""How far two right answers of one operation may lie apart: bounds on rounding in float64."""

import copy
import operator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stridenet.graph.nodes import CONVOLUTIONS, TRANSPOSED
from stridenet.rules.base import Call, Rule
from stridenet.rules.pooling import Pooling

UNIT_ROUNDOFF = torch.finfo(torch.float64).eps / 2


NORMALISATIONS = {
    "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "LayerNorm", "RMSNorm",
    "LocalResponseNorm", "group_norm", "instance_norm", "layer_norm", "rms_norm",
    "local_response_norm", "Softmax", "LogSoftmax", "softmax", "log_softmax", "Softmax2d", "logsumexp",
}  # fmt: skip


# Rounding -------------------------------------------------------------------------------------------


def _gamma(terms: int) -> float:
    return terms * UNIT_ROUNDOFF / (1 - terms * UNIT_ROUNDOFF)


def rounding_bound(call: Call, rule: Rule, given: list[Tensor], result: Tensor) -> Tensor:
    """How far two correct evaluations of one operation may lie apart, position by position."""
    if not given:  # made from the model's own tensors
        return 4 * UNIT_ROUNDOFF * result.abs()
    x = given[0]
    if isinstance(call.module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
        magnitudes = copy.deepcopy(call.module)
        for parameter in magnitudes.parameters():
            parameter.abs_()
        weight = call.module.weight
        terms = weight.numel() // min(weight.shape[:2]) + 1  # of one sum at most, with the bias
        return 2 * _gamma(terms) * cast(Tensor, magnitudes(x.abs()))
    if call.operation is F.linear and all(node.op == "get_attr" for node in call.constants):
        numbers = [operator.attrgetter(str(n.target))(call.traced).abs() for n in call.constants]
        return 2 * _gamma(numbers[0].shape[1] + 1) * F.linear(x.abs(), *numbers)
    if _is_linear(call, rule):
        alone = fx.Interpreter(call.traced)
        alone.env = dict(zip(call.operands, [x.abs()], strict=True))
        terms = max(x[0].numel() // x.shape[1], x.numel() // result.numel()) + 4
        return 2 * _gamma(terms) * cast(Tensor, alone.run_node(call.node))
    if call.operation is F.batch_norm:
        return _affine_bound(x, result)
    if isinstance(call.module, nn.modules.batchnorm._BatchNorm):
        return _batch_norm_bound(call.module, x)
    if getattr(call.operation, "__name__", "") in NORMALISATIONS:
        return _normalisation_bound(call, x, result)
    largest = max(float(operand.abs().max()) for operand in given)
    return 4 * UNIT_ROUNDOFF * (result.abs() + largest)


def _is_linear(call: Call, rule: Rule) -> bool:
    """Averages and sums: of |x|, they bound their own rounding."""
    if isinstance(rule, Pooling):
        return rule.average
    return call.operation in (torch.mean, torch.sum, "mean", "sum") and len(call.operands) == 1


def _batch_norm_bound(module: Any, x: Tensor) -> Tensor:
    shape = [1, -1, *[1] * (x.ndim - 2)]
    mean, variance = module.running_mean, module.running_var
    if mean is None:
        return 8 * _gamma(x.numel()) * (x.abs().amax() / module.eps**0.5).square().expand_as(x)
    scale = (variance + module.eps).rsqrt() * (1 if module.weight is None else module.weight.abs())
    bias = torch.zeros_like(mean) if module.bias is None else module.bias.abs()
    sizes = (x.abs() + mean.abs().view(shape)) * scale.view(shape) + bias.view(shape)
    return 8 * UNIT_ROUNDOFF * sizes


def _affine_bound(x: Tensor, result: Tensor) -> Tensor:
    """Of numbers times one of each channel, and another added: the first is seen in their ranges."""
    dims = [d for d in range(x.ndim) if d != 1]
    before, after = (t.amax(dims, True) - t.amin(dims, True) for t in (x, result))
    scale = torch.where(before > 0, after / before, 0)
    return 8 * UNIT_ROUNDOFF * (result.abs() + 2 * scale * x.abs().amax(dims, True))


def _normalisation_bound(call: Call, x: Tensor, result: Tensor) -> Tensor:
    """Means and deviations over at most one image, each a sum of n terms: an error of γ_n in them
    changes (x − μ)/σ by that times t·(1 + t), t = max|x|/σ."""
    deviation = (x.flatten(1).var(1, correction=0).amin() + 1e-8).sqrt()
    spread = 1 + x.abs().max() / deviation
    parameters = [float(p.abs().max()) for p in (call.module.parameters() if call.module else ())]
    sizes = max([1.0, *parameters]) * spread * (1 + spread) + result.abs()
    return 8 * _gamma(x[0].numel()) * sizes
