"""Is each converted call equal to the strided one, at the very input that it got?

The converted network runs beside the model. Of each converted layer the model's own layer, and of each
converted call of a function the function itself, gets the same input; the results must be equal up to
the rounding of this one operation. What was not converted is the model's own code.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from stridenet.by_layer.calls import POOLING_CALLS, has_stride, numbers
from stridenet.by_layer.converted import converted_layers
from stridenet.by_layer.exchange import mixin_for
from stridenet.by_layer.modules import UnitStrideForward
from stridenet.checking.reports import LayerReport, compared
from stridenet.checking.running import cloned, leaves, one_line, seed, undisturbed
from stridenet.copies import copied
from stridenet.errors import NotEqualError, StrideEliminationError
from stridenet.graph.places import users_line
from stridenet.rules.rounding import convolution_bound, elementwise_bound, gamma, unit_roundoff

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
LARGEST = 2**20  # positions of a map on which a layer is checked by itself
ROUNDED_IN_FLOAT64 = 2.0**-46  # 64 roundings
APART = 1e-3  # the share of the largest output beyond which outputs count as different


class NetworkComparison(NamedTuple):
    """Holds what a comparison of a model and its converted network found."""

    reports: list[LayerReport]  # one for each converted call, in order
    difference: float  # the largest of an output; infinite if outputs are of other types
    largest: float  # number of the model's output

    @property
    def differs(self) -> bool:
        """Tell whether the outputs differ by more than rounding can explain."""
        return not self.difference <= self.allowed_difference(APART)

    def allowed_difference(self, share: float) -> float:
        """Return how far outputs may lie apart: a share of the largest one, or what float64 rounds.

        Where all outputs cancel to almost nothing (the mean of a normalised map), what is left of
        them is the rounding of the maps before, of which the converted layers' stand for all.
        """
        inside = max((report.largest_value for report in self.reports), default=0.0)
        return max(share * self.largest, ROUNDED_IN_FLOAT64 * inside, 1e-33)


def as_inputs(example_inputs: Any) -> Inputs:
    """Return the positional and keyword arguments of a forward, from what a user gives.

    example_inputs: a tensor, a tuple or list of positional arguments, or a mapping of keyword ones.
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def check_layers(model: nn.Module, same: nn.Module) -> None:
    """Check each converted layer by itself, on a small random map.

    Raises NotEqualError, naming the layer, where one is not equal to the strided layer.
    """
    with undisturbed():
        for report in small_reports(model, same):
            _require(report)


def small_reports(model: nn.Module, same: nn.Module) -> list[LayerReport]:
    """Compare each converted layer by itself; those that are converted in the model are left out."""
    originals = dict(model.named_modules())
    already = converted_layers(model)
    layers = [(n, layer) for n, layer in converted_layers(same).items() if n not in already]
    return [report for name, layer in layers for report in _alone(name, originals[name], layer)]


def _alone(name: str, before: nn.Module, after: nn.Module) -> list[LayerReport]:
    """Compare one layer on a small random map, without the user's hooks.

    Returns no report if nothing tells the map's size.
    """
    before, after = (copied(layer, share_tensors=True).eval() for layer in (before, after))
    for layer in (before, after):
        _drop_hooks(layer)
    x = _small_input(before)
    return [] if x is None else [_report(name, before, (x,), {}, after(cloned(x)))]


def check_network(
    model: nn.Module, same: nn.Module, example_inputs: Any, pooling: bool
) -> list[str]:
    """Check the converted network call by call, beside the model, in evaluation mode.

    Returns which strided calls were left, with their lines in the user's code. Raises
    StrideEliminationError where a call or an output is not equal.
    """
    with undisturbed():
        # Whole copies: a forward may write into its parameters (self.weight.data.clamp_()).
        before, after = (copied(network).eval() for network in (model, same))
        inputs = as_inputs(example_inputs)
        with _Watch(model, pooling) as watch:
            found = compare(before, after, inputs, watch)
        for report in found.reports:
            _require(report)
        if found.differs and not _agree_in_float64(model, same, inputs):
            raise NotEqualError(
                f"the converted network differs from the model by {found.difference:.2g} at outputs up "
                f"to {found.largest:.2g}, though each converted call is equal: its forward reads what "
                "a conversion changes (a layer's weight, stride or type); leave that layer out, with "
                "only=[…]"
            )
    return watch.left


def _agree_in_float64(model: nn.Module, same: nn.Module, inputs: Inputs) -> bool:
    """Tell whether two networks whose outputs differ in float32 agree in float64.

    A network that sorts or chooses by its maps (the best boxes, say) may choose otherwise for any
    rounding; in float64 most choices are clear.
    """
    wide = tree_map(
        lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, inputs
    )
    try:
        before, after = (copied(network).eval().double() for network in (model, same))
        found = compare(before, after, wide)
    except (RuntimeError, TypeError, ValueError):  # a forward that takes float32 alone
        return False
    return all(report.passed for report in found.reports) and not found.differs


def strides_left(network: nn.Module, example_inputs: Any = None) -> list[str]:
    """Return what in a converted network still has a stride above one: layers, then calls with lines.

    example_inputs: as of convert_layers; without them, calls are not looked for.
    """
    kinds = {name: mixin_for(module, True) for name, module in network.named_modules()}
    left = [name for name, kind in kinds.items() if kind not in (None, UnitStrideForward)]
    if example_inputs is None:
        return left
    marks: list[int] = []
    with undisturbed():
        copy = copied(network).eval()
        with _WatchAll(network, True) as watch:
            watch.converted = True
            for name in left:  # the calls of these are no news
                layer = copy.get_submodule(name)
                layer.register_forward_pre_hook(lambda *_: marks.append(len(watch.left)))
                layer.register_forward_hook(lambda *_: watch.forget(marks.pop()))
            run(copy, as_inputs(example_inputs))
    return [*left, *dict.fromkeys(watch.left)]


class _Watch(TorchFunctionMode):
    """Watches a comparison of copies of a model.

    It refuses that anything computes with the parameters of the model itself, and notes the strided
    calls that come while `converted` is true.
    """

    def __init__(self, model: nn.Module, pooling: bool) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.pooling = pooling
        self.converted = False  # true while the converted network runs
        self.left: list[str] = []

    def has_stride(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Tell whether a call should have unit strides."""
        return has_stride(func, args, kwargs, self.pooling)

    def forget(self, count: int) -> None:
        """Forget the calls that were left, but for the first `count`."""
        del self.left[count:]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle a call of a function, as torch passes it through a mode."""
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            if id(value) in self.names:
                raise StrideEliminationError(
                    f"a copy of the model still computes with {self.names[id(value)]} of the model "
                    "itself: some function of its keeps it where a copy cannot reach (a global, a "
                    "class); take it from self"
                )
        if self.converted and self.has_stride(func, args, kwargs):
            self.left.append(f"{func.__name__}{users_line()}")
        return func(*args, **kwargs)


class _WatchAll(_Watch):
    """Watches for strided calls of every kind, but for pooling of whole maps."""

    def has_stride(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Tell whether a call has a stride above one."""
        if not super().has_stride(func, args, kwargs):
            return False
        if not func.__name__.startswith("adaptive"):
            return True
        return set(numbers([*args, *kwargs.values()][1], 1)) != {1}


def compare(
    model: nn.Module, same: nn.Module, inputs: Inputs, watch: _Watch | None = None
) -> NetworkComparison:
    """Run two networks, which are copies of ours, and compare each converted call and the outputs."""
    seed()
    expected = run(model, inputs)
    reports: list[LayerReport] = []
    originals = dict(model.named_modules())
    for name, layer in converted_layers(same).items():
        hook = _hook(name, originals[name], reports)
        layer.register_forward_hook(hook, with_kwargs=True)
    for name, module in same.named_modules():
        if isinstance(module, UnitStrideForward):
            module.unit_stride_calls = {
                **module.unit_stride_calls, "observe": _observer(name, reports)
            }  # fmt: skip
    if watch is not None:
        watch.converted = True
    seed()
    try:
        obtained = run(same, inputs)
    except (StrideEliminationError, MemoryError):
        raise
    except Exception as error:  # the user's forward may raise anything
        if "memory" in str(error):  # that ran out, and on another device is no MemoryError
            raise
        raise StrideEliminationError(
            f"the converted network raises where the model does not ({one_line(error)}): its forward "
            "reads what a conversion changes (a layer's weight, stride or type); leave that layer out, "
            "with only=[…]"
        ) from error
    return NetworkComparison(reports, *_apart(expected, obtained))


def run(network: nn.Module, inputs: Inputs) -> Any:
    """Run a forward on copies of the inputs, which it may change."""
    args, kwargs = tree_map(lambda v: cloned(v) if isinstance(v, Tensor) else v, inputs)
    return network(*args, **kwargs)


def _hook(name: str, before: nn.Module, reports: list[LayerReport]) -> Callable[..., None]:
    def compare_call(layer: Any, args: tuple, kwargs: dict[str, Any], result: Tensor) -> None:
        reports.append(_report(name, before, args, kwargs, result))

    return compare_call


def _report(
    name: str, before: Any, args: tuple, kwargs: dict[str, Any], result: Tensor
) -> LayerReport:
    """Compare one call of a converted layer with the strided layer."""
    forward = type(before).forward  # its hooks are the user's, and have been asked once
    operation = type(before).__name__
    with torch._C.DisableTorchFunction():  # no strided call of the network's
        expected = forward(before, *map(cloned, args), **kwargs)
        bound = (
            _pooling_bound(lambda x: forward(before, x), operation, args[0], expected)
            if not hasattr(before, "weight")
            else convolution_bound(before, args[0], expected)
        )
    return compared(name, operation, expected, result, bound)


def _observer(name: str, reports: list[LayerReport]) -> Callable[..., None]:
    def compare_call(
        function: Any, args: tuple, kwargs: dict[str, Any], given: dict[str, Any], result: Tensor
    ) -> None:
        with torch._C.DisableTorchFunction():  # no strided call of the network's
            reports.append(report(function, args, kwargs, given, result))

    def report(
        function: Any, args: tuple, kwargs: dict[str, Any], given: dict[str, Any], result: Tensor
    ) -> LayerReport:
        expected = function(*args, **kwargs)
        x = given["input"]
        if function in POOLING_CALLS:
            options = {key: value for key, value in given.items() if key != "input"}
            bound = _pooling_bound(lambda x: function(x, **options), function.__name__, x, expected)
        else:
            weight, bias = given["weight"], given.get("bias")
            magnitudes = {"input": x.abs(), "weight": weight.abs()}
            magnitudes["bias"] = None if bias is None else bias.abs()
            terms = weight.numel() // min(weight.shape[:2]) + 1
            roundoff = unit_roundoff([x, weight, expected])
            bound = 2 * gamma(terms, roundoff) * function(**{**given, **magnitudes})
        return compared(name, function.__name__, expected, result, bound)

    return compare_call


def _pooling_bound(
    pool: Callable[[Tensor], Tensor], operation: str, x: Tensor, result: Tensor
) -> Tensor:
    """Bound the rounding of a pooling: maxima are exact, averages are bound by those of magnitudes."""
    if "max" in operation.lower():
        return torch.zeros_like(result)
    if "lp" in operation.lower():
        return 64 * elementwise_bound([x], result)
    terms = max(x.numel() // max(result.numel(), 1), 1) + 8
    return 2 * gamma(2 * terms, unit_roundoff([x, result])) * pool(x.abs())


def _small_input(layer: Any) -> Tensor | None:
    """Return two random maps on which a layer has two outputs or three on each axis.

    Returns None if nothing tells how many axes they have.
    """
    kind = type(layer).__name__
    axes = next((n for n in (1, 2, 3) if f"{n}d" in kind or _is_of(layer, n)), None)
    weight = getattr(layer, "weight", None)
    if axes is None or (isinstance(weight, Tensor) and weight.is_meta):
        return None
    channels = getattr(layer, "in_channels", 2)
    sizes = []
    for axis in range(axes):
        if not hasattr(layer, "kernel_size"):
            wanted = numbers(layer.output_size, axes)[axis]
            sizes.append(2 * (wanted or 2))
            continue
        each = [numbers(getattr(layer, n, 1) or 1, axes)[axis] for n in ("kernel_size", "dilation")]
        stride = layer.stride if layer.stride is not None else layer.kernel_size
        sizes.append(each[1] * (each[0] - 1) + 1 + 2 * numbers(stride, axes)[axis] + axis)
    if prod(sizes) > LARGEST:  # a window that is larger than any map
        return None
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, *sizes, generator=drawn, device="cpu")
    return x if weight is None else x.to(weight.device, weight.dtype)


def _is_of(layer: nn.Module, axes: int) -> bool:
    return any(f"{axes}d" in kind.__name__ for kind in type(layer).__mro__)


def _drop_hooks(module: nn.Module) -> None:
    for kind in ("_forward_hooks", "_forward_pre_hooks"):
        hooks = getattr(module, kind)
        for key, hook in list(hooks.items()):
            if not type(hook).__module__.startswith("torch.nn.utils"):
                del hooks[key]


def _apart(expected: Any, obtained: Any) -> tuple[float, float]:
    """Return the largest difference of two outputs, and the largest number of the first.

    The difference is infinite if they are of other types.
    """
    first, second = leaves(expected), leaves(obtained)
    if len(first) != len(second):
        return float("inf"), 1.0
    difference = largest = 0.0
    for a, b in zip(first, second, strict=True):
        if not isinstance(a, Tensor):
            continue
        if not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return float("inf"), 1.0
        if not a.numel():
            continue
        x, y = (torch.nan_to_num(t.detach().to(torch.complex128)) for t in (a, b))
        difference = max(difference, float((x - y).abs().max()))
        largest = max(largest, float(x.abs().max()))
    return difference, largest


def _require(report: LayerReport) -> None:
    if not report.passed:
        raise NotEqualError(
            f"{report.layer} ({report.operation}) is not equal to the strided layer: by "
            f"{report.largest_error:.2g} at values up to {report.largest_value:.2g}, "
            f"{report.share_of_bound:.2g} times the bound on rounding; a hook may change its weight. "
            "Leave it out, with only=[…], or take it as it is, with check=False"
        )
