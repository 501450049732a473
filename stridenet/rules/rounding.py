"""How far two right answers of one operation may lie apart: bounds on rounding.

They are in the arithmetic that was used: the coarsest type among what an operation read and gave.
"""

import operator
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stridenet.graph.nodes import CONVOLUTIONS, TRANSPOSED, operation_type, tensors
from stridenet.rules.base import Call, Rule
from stridenet.rules.pooling import Pooling
from stridenet.rules.resampling import LinearUpsampling

NORMALISATIONS = {
    "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "LayerNorm", "RMSNorm",
    "LocalResponseNorm", "group_norm", "instance_norm", "layer_norm", "rms_norm",
    "local_response_norm", "Softmax", "LogSoftmax", "softmax", "log_softmax", "Softmax2d", "logsumexp",
}  # fmt: skip


def unit_roundoff(values: Sequence[Any]) -> float:
    """Return that of the coarsest floating-point type among some tensors, or float64's."""
    found = [t.dtype for t in values if isinstance(t, Tensor) and t.is_floating_point()]
    return max((torch.finfo(dtype).eps for dtype in found), default=2.0**-52) / 2


def gamma(terms: int, roundoff: float) -> float:
    """γ_n: by how much a sum of n terms may be wrong, as a share of the sum of their magnitudes.

    Narrow types are summed in float32, and rounded at the end.
    """
    summed = min(roundoff, torch.finfo(torch.float32).eps / 2)
    share = min(terms * summed, 0.5)
    return share / (1 - share) + (2 * roundoff if roundoff > summed else 0)


def rounding_bound(call: Call, rule: Rule, given: list[Tensor], result: Tensor) -> Tensor:
    """How far two correct evaluations of one operation may lie apart, position by position.

    given: the maps that it read, in the order of call.maps; result: what the strided one gave.
    """
    roundoff = unit_roundoff([*given, result])
    if not result.is_floating_point():
        result = result.abs() if result.is_complex() else result.double()
    if not given:  # made from the model's own tensors
        return 4 * roundoff * result.abs()
    x = given[0]
    if call.module is not None and _has_bound(call.module):
        return module_bound(call.module, x, result)
    if isinstance(rule, LinearUpsampling):  # its weights come from positions, as large as the map
        longest = max(x.shape[2:])
        return 8 * (longest + 1) * roundoff * x.abs().amax() * torch.ones_like(result)
    if _is_linear(call, rule):
        alone = fx.Interpreter(call.traced)
        alone.env = dict(zip(call.operands, [x.abs()], strict=True))
        terms = max(x[0].numel() // x.shape[1], x.numel() // max(result.numel(), 1)) + 4
        return 2 * gamma(terms, roundoff) * tensors(alone.run_node(call.node))[0]
    own = all(node.op == "get_attr" for node in call.constants)
    if call.operation is F.linear and own:
        numbers = [operator.attrgetter(str(n.target))(call.traced) for n in call.constants]
        numbers = [tensor.detach().abs().to(x) for tensor in numbers]
        return 2 * gamma(numbers[0].shape[1] + 1, roundoff) * F.linear(x.abs(), *numbers)
    if call.operation is F.batch_norm:
        if own:
            return _functional_batch_norm_bound(call, given, roundoff)
        return _affine_bound(x, result, roundoff)
    if getattr(call.operation, "__name__", "") in NORMALISATIONS:
        return normalisation_bound(call.module, x, result)
    return elementwise_bound(given, result)


# Of modules, whoever calls them ---------------------------------------------------------------------


def module_bound(module: nn.Module, x: Tensor, result: Tensor) -> Tensor:
    """The bound of one of torch's own modules that read the map x and gave `result`."""
    roundoff = unit_roundoff([x, result])
    kind = operation_type(module)
    if kind in CONVOLUTIONS or kind in TRANSPOSED or kind is nn.Linear:
        return _convolution_bound(module, x, result, roundoff)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        numbers = (module.running_mean, module.running_var, module.weight, module.bias)
        if module.running_mean is None or module.training:
            numbers = (None, None, *numbers[2:])
        return _batch_norm_bound(x, numbers, module.eps, roundoff)
    if kind.__name__ in NORMALISATIONS:
        return normalisation_bound(module, x, result)
    return elementwise_bound([x], result)


def _has_bound(module: nn.Module) -> bool:
    kind = operation_type(module)
    weighted = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
    return kind in weighted or isinstance(module, nn.modules.batchnorm._BatchNorm)


def elementwise_bound(given: Sequence[Tensor], result: Tensor) -> Tensor:
    """Four roundings of its largest number."""
    finite = (torch.where(t.isfinite(), t, 0).abs() for t in given if t.numel())
    largest = max((float(t.max()) for t in finite), default=0.0)
    return 4 * unit_roundoff([*given, result]) * (result.abs() + largest)


def _convolution_bound(module: Any, x: Tensor, result: Tensor, roundoff: float) -> Tensor:
    """2γ_n·(|H|∗|X| + |b|)."""
    x = x.abs()
    weight = module.weight.detach().abs().to(x)
    bias = None if module.bias is None else module.bias.detach().abs().to(x)
    terms = weight.numel() // min(weight.shape[:2]) + 1  # of one sum at most, with the bias
    if isinstance(module, nn.Linear):
        sizes = F.linear(x, weight, bias)
    elif isinstance(module, TRANSPOSED):
        sizes = _transposed(module, x, weight, bias, result)
    else:
        sizes = module._conv_forward(x, weight, bias)
    return 2 * gamma(terms, roundoff) * sizes


def _transposed(module: Any, x: Tensor, weight: Tensor, bias: Any, result: Tensor) -> Tensor:
    """The transposed convolution whose output has the size that it was called with."""
    axes = len(module.kernel_size)
    numbers = zip(module.stride, module.padding, module.dilation, module.kernel_size, strict=True)
    sizes = zip(x.shape[-axes:], result.shape[-axes:], numbers, strict=True)
    extra = [out - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for n, out, (s, p, d, k) in sizes]
    convolve: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    options = (module.stride, module.padding, extra, module.groups, module.dilation)
    return convolve(x, weight, bias, *options)


def _batch_norm_bound(x: Tensor, numbers: Sequence[Any], eps: float, roundoff: float) -> Tensor:
    """numbers: mean, variance, weight and bias, each of them None or one a channel."""
    mean, variance, weight, bias = (
        None if t is None else t.detach().to(x).view(1, -1, *[1] * (x.ndim - 2)) for t in numbers
    )
    if mean is None or variance is None:  # its own: a mean and deviation over the whole batch
        scale = 1.0 if weight is None else weight.abs().amax()
        spread = (x.abs().amax() / eps**0.5).square()
        return 8 * gamma(x.numel(), roundoff) * (spread * scale).expand_as(x)
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight.abs())
    return 8 * roundoff * ((x.abs() + mean.abs()) * scale + (0 if bias is None else bias.abs()))


def _functional_batch_norm_bound(call: Call, given: list[Tensor], roundoff: float) -> Tensor:
    """Bound the rounding of F.batch_norm, whose statistics are made of the model's tensors."""
    known = dict(zip(call.maps, given, strict=True))

    def value(node: fx.Node) -> Any:
        return known[node] if node in known else fx.Interpreter(call.traced).run_node(node)

    arguments, options = fx.node.map_arg((call.node.args, call.node.kwargs), value)
    bound = signature(F.batch_norm).bind(*arguments, **options)
    bound.apply_defaults()
    named = bound.arguments
    numbers = [named[name] for name in ("running_mean", "running_var", "weight", "bias")]
    if named["training"]:
        numbers[:2] = None, None
    return _batch_norm_bound(given[0], numbers, named["eps"], roundoff)


def normalisation_bound(module: nn.Module | None, x: Tensor, result: Tensor) -> Tensor:
    """Means and deviations over at most one image, each a sum of n terms: an error of γ_n in them
    changes (x − μ)/σ by that times t·(1 + t), t = max|x|/σ."""
    deviation = (x.flatten(1).var(1, correction=0).amin() + 1e-8).sqrt()
    spread = 1 + x.abs().max() / deviation
    own = module.parameters() if module is not None else ()
    parameters = [float(p.detach().abs().max()) for p in own]
    sizes = max([1.0, *parameters]) * spread * (1 + spread) + result.abs()
    return 8 * gamma(x[0].numel(), unit_roundoff([x, result])) * sizes


def _is_linear(call: Call, rule: Rule) -> bool:
    """Averages and sums: of |x|, they bound their own rounding."""
    if isinstance(rule, Pooling):
        return rule.average
    return call.operation in (torch.mean, torch.sum, "mean", "sum") and len(call.operands) == 1


def _affine_bound(x: Tensor, result: Tensor, roundoff: float) -> Tensor:
    """Bound numbers times one of each channel, plus another; the first is seen in their ranges."""
    dims = [d for d in range(x.ndim) if d != 1]
    before, after = (t.amax(dims, True) - t.amin(dims, True) for t in (x, result))
    scale = torch.where(before > 0, after / before, 0)
    return 8 * roundoff * (result.abs() + 2 * scale * x.abs().amax(dims, True))
