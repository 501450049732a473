"""How far two right results of one operation may lie apart: bounds on rounding, by operation.

The twin computes what the strided network computes, but sums the same terms in another order, or by
another kernel: the results are rounded differently. How differently depends on what the operation
does. Numbers that are only moved are equal to the bit. A function of single numbers is off by a few
roundings of its result. A sum of n terms, summed in any order, is off by at most γ_n ≈ n·u times the
sum of the terms' magnitudes, where u is the unit roundoff of the type (Higham, Accuracy and Stability
of Numerical Algorithms, section 4.2): two sums lie at most twice that apart. The magnitudes are got by
the operation itself, applied to |x|. A bound that is too large would hide errors, one that is too small
would refuse right twins. All bounds are in the arithmetic that was used: the coarsest type among what
an operation read and gave.

The table at the end has a bound for each operation of the registry; a test sees that none is missing.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stridenet.graph.nodes import CONVOLUTIONS, TRANSPOSED, tensors
from stridenet.graph.preparing import EXPANSIONS
from stridenet.rules.base import Call
from stridenet.rules.registry import (
    ADAPTIVE_AVERAGE_POOLS,
    ADAPTIVE_MAXIMUM_POOLS,
    ARITHMETIC,
    AVERAGE_POOLS,
    BATCH_NORMS,
    CASTS,
    CONSTANT_PADDINGS,
    COPIES,
    DROPPED_CHANNELS,
    ELEMENTWISE,
    EXTREMA,
    GATES,
    JOINS,
    LAYER_NORMS,
    MAXIMUM_POOLS,
    NEW_DIMENSIONS,
    NORMALISATIONS,
    PARTIAL,
    PERMUTATIONS,
    RESHAPES,
    SHUFFLES,
    SOFTMAXES,
    SPLITS,
    SUMS,
    known_operation,
)
from stridenet.rules.resampling import PADDINGS

# A bound takes an operation, the maps that it read (in the order of call.maps) and the strided result.
Bound = Callable[[Call, Sequence[Tensor], Tensor], Tensor]


def rounding_bound(call: Call, given: Sequence[Tensor], result: Tensor) -> Tensor:
    """Return how far two right results of one operation may lie apart, position by position.

    given: the maps that it read, in the order of call.maps; result: what the strided one gave. What is
    not in the table is allowed four roundings: it runs as it is, on equal maps.
    """
    if not result.is_floating_point():
        result = result.abs() if result.is_complex() else result.double()
    if not given:  # it is made from the model's own tensors
        return 4 * unit_roundoff([result]) * result.abs()
    return BOUNDS.get(known_operation(call.operation), four_roundings)(call, given, result)


def unit_roundoff(values: Sequence[Any]) -> float:
    """Return that of the coarsest floating-point type among some tensors, or float64's."""
    found = [t.dtype for t in values if isinstance(t, Tensor) and t.is_floating_point()]
    return max((torch.finfo(dtype).eps for dtype in found), default=2.0**-52) / 2


def gamma(terms: int, roundoff: float) -> float:
    """Return γ_n: by how much a sum of n terms may be off, as a share of the sum of their magnitudes.

    Narrow types are summed in float32, and rounded at the end.
    """
    summed = min(roundoff, torch.finfo(torch.float32).eps / 2)
    share = min(terms * summed, 0.5)
    return share / (1 - share) + (2 * roundoff if roundoff > summed else 0)


# Bounds of single kinds of operations, whoever calls them -------------------------------------------


def elementwise_bound(given: Sequence[Tensor], result: Tensor) -> Tensor:
    """Return four roundings of the largest number that an operation read, and of its result."""
    finite = (torch.where(t.isfinite(), t, 0).abs() for t in given if t.numel())
    largest = max((float(t.max()) for t in finite), default=0.0)
    return 4 * unit_roundoff([*given, result]) * (result.abs() + largest)


def convolution_bound(module: Any, x: Tensor, result: Tensor) -> Tensor:
    """Return 2γ_n·(|H|∗|X| + |b|) for a convolution, transposed or not, or Linear on x."""
    roundoff = unit_roundoff([x, result])
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
    """Return the transposed convolution, with the output size that it was called with."""
    axes = len(module.kernel_size)
    numbers = zip(module.stride, module.padding, module.dilation, module.kernel_size, strict=True)
    sizes = zip(x.shape[-axes:], result.shape[-axes:], numbers, strict=True)
    extra = [out - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for n, out, (s, p, d, k) in sizes]
    convolve: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    options = (module.stride, module.padding, extra, module.groups, module.dilation)
    return convolve(x, weight, bias, *options)


def _batch_norm_bound(x: Tensor, numbers: Sequence[Any], eps: float, roundoff: float) -> Tensor:
    """Bound (x − mean)·weight/√(variance + eps) + bias.

    numbers: mean, variance, weight and bias, each of them None or a vector of one for each channel.
    Without a mean and a variance, they are those of the batch, which are sums themselves.
    """
    mean, variance, weight, bias = (
        None if t is None else t.detach().to(x).view(1, -1, *[1] * (x.ndim - 2)) for t in numbers
    )
    if mean is None or variance is None:  # its own: a mean and deviation over the whole batch
        scale = 1.0 if weight is None else weight.abs().amax()
        spread = (x.abs().amax() / eps**0.5).square()
        return 8 * gamma(x.numel(), roundoff) * (spread * scale).expand_as(x)
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight.abs())
    return 8 * roundoff * ((x.abs() + mean.abs()) * scale + (0 if bias is None else bias.abs()))


def normalisation_bound(module: nn.Module | None, x: Tensor, result: Tensor) -> Tensor:
    """Return the bound of a normalisation with means and deviations over at most one image.

    Each of these is a sum of n terms: an error of γ_n in them changes (x − μ)/σ by that times
    t·(1 + t), where t = max|x|/σ.
    """
    deviation = (x.flatten(1).var(1, correction=0).amin() + 1e-8).sqrt()
    spread = 1 + x.abs().max() / deviation
    own = module.parameters() if module is not None else ()
    parameters = [float(p.detach().abs().max()) for p in own]
    sizes = max([1.0, *parameters]) * spread * (1 + spread) + result.abs()
    return 8 * gamma(x[0].numel(), unit_roundoff([x, result])) * sizes


def _affine_bound(x: Tensor, result: Tensor) -> Tensor:
    """Bound x·scale + shift, of a number a channel; the scale is seen in the ranges of both maps."""
    roundoff = unit_roundoff([x, result])
    dims = [d for d in range(x.ndim) if d != 1]
    before, after = (t.amax(dims, True) - t.amin(dims, True) for t in (x, result))
    scale = torch.where(before > 0, after / before, 0)
    return 8 * roundoff * (result.abs() + 2 * scale * x.abs().amax(dims, True))


# The table ------------------------------------------------------------------------------------------


def four_roundings(call: Call, given: Sequence[Tensor], result: Tensor) -> Tensor:
    """Return the bound of what moves numbers, chooses among them, or treats each by itself."""
    return elementwise_bound(given, result)


def _convolution(call: Call, given: Sequence[Tensor], result: Tensor) -> Tensor:
    return convolution_bound(call.module, given[0], result)


def _batch_norm(call: Call, given: Sequence[Tensor], result: Tensor) -> Tensor:
    module, x = call.module, given[0]
    numbers = (module.running_mean, module.running_var, module.weight, module.bias)
    if module.running_mean is None or module.training:
        numbers = (None, None, *numbers[2:])
    return _batch_norm_bound(x, numbers, module.eps, unit_roundoff([x, result]))


def _normalisation(call: Call, given: Sequence[Tensor], result: Tensor) -> Tensor:
    return normalisation_bound(call.module, given[0], result)


def _sum(call: Call, given: Sequence[Tensor], result: Tensor) -> Tensor:
    """Return the bound of an average or a sum: applied to |x|, it gives the magnitudes itself."""
    if len(call.operands) != 1:
        return elementwise_bound(given, result)
    x = given[0]
    alone = fx.Interpreter(call.traced)
    alone.env = {call.operands[0]: x.abs()}
    terms = max(x[0].numel() // x.shape[1], x.numel() // max(result.numel(), 1)) + 4
    magnitudes = tensors(alone.run_node(call.node))[0]
    return 2 * gamma(terms, unit_roundoff([x, result])) * magnitudes


def _interpolation(call: Call, given: Sequence[Tensor], result: Tensor) -> Tensor:
    """Return a bound that allows for linear weights computed from positions, as large as the map."""
    x = given[0]
    if "linear" not in call.arguments("size", "scale_factor", "mode").get("mode", "nearest"):
        return elementwise_bound(given, result)
    steps = 8 * (max(x.shape[2:]) + 1) * unit_roundoff([x, result])
    return steps * x.abs().amax() * torch.ones_like(result)


def _has_stored_constants(call: Call) -> bool:
    return all(node.op == "get_attr" for node in call.constants)


def _functional_linear(call: Call, given: Sequence[Tensor], result: Tensor) -> Tensor:
    if not _has_stored_constants(call):
        return elementwise_bound(given, result)
    x = given[0]
    numbers = [operator.attrgetter(str(n.target))(call.traced) for n in call.constants]
    numbers = [tensor.detach().abs().to(x) for tensor in numbers]
    terms = numbers[0].shape[1] + 1
    return 2 * gamma(terms, unit_roundoff([x, result])) * F.linear(x.abs(), *numbers)


def _functional_batch_norm(call: Call, given: Sequence[Tensor], result: Tensor) -> Tensor:
    """Return the bound of F.batch_norm, whose statistics are made of the model's tensors."""
    if not _has_stored_constants(call):
        return _affine_bound(given[0], result)
    known = dict(zip(call.maps, given, strict=True))

    def value(node: fx.Node) -> Any:
        return known[node] if node in known else fx.Interpreter(call.traced).run_node(node)

    arguments, options = fx.node.map_arg((call.node.args, call.node.kwargs), value)
    bound = signature(F.batch_norm).bind(*arguments, **options)
    bound.apply_defaults()
    given_by_name = bound.arguments
    numbers = [given_by_name[name] for name in ("running_mean", "running_var", "weight", "bias")]
    if given_by_name["training"]:
        numbers[:2] = None, None
    return _batch_norm_bound(
        given[0], numbers, given_by_name["eps"], unit_roundoff([*given, result])
    )


_TABLE: list[tuple[Bound, Iterable[Any]]] = [
    (four_roundings, ELEMENTWISE | ARITHMETIC | COPIES | PARTIAL),
    (four_roundings, (nn.PReLU, F.prelu, *GATES)),
    (_convolution, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)),
    (_functional_linear, (F.linear,)),
    (_sum, (*AVERAGE_POOLS, *ADAPTIVE_AVERAGE_POOLS, *SUMS)),
    (_batch_norm, BATCH_NORMS),
    (_functional_batch_norm, (F.batch_norm,)),
    (_normalisation, (*NORMALISATIONS, *LAYER_NORMS, *SOFTMAXES, nn.Softmax2d)),
    (_normalisation, (torch.logsumexp, "logsumexp")),
    (_interpolation, (nn.Upsample, nn.UpsamplingBilinear2d, F.interpolate)),
    # What only moves numbers, or chooses among them: equal to the bit, and compared so first.
    (four_roundings, (*MAXIMUM_POOLS, *ADAPTIVE_MAXIMUM_POOLS, *EXTREMA)),
    (four_roundings, (torch.amax, torch.amin, "amax", "amin")),
    (four_roundings, (*JOINS, *SPLITS, *PERMUTATIONS, *RESHAPES, *NEW_DIMENSIONS, *EXPANSIONS)),
    (four_roundings, (torch.stack, torch.unbind, "unbind", operator.getitem, *CASTS)),
    (four_roundings, (F.pad, *CONSTANT_PADDINGS, *PADDINGS, *SHUFFLES, *DROPPED_CHANNELS)),
    (four_roundings, (nn.UpsamplingNearest2d, nn.PixelShuffle, F.pixel_shuffle)),
    (four_roundings, (nn.PixelUnshuffle, F.pixel_unshuffle)),
]
BOUNDS: dict[Any, Bound] = {
    operation: bound for bound, operations in _TABLE for operation in operations
}
