"""Strided calls of torch's functions, computed by Theorem 1: what F.conv2d and its like become.

A forward may call F.conv2d itself: with standardised weights, with padding that depends on the size,
with a fixed blur. While UnitStrideCalls is on, such a call with a stride above one is computed with
unit strides; its filter is expanded at each call, so that gradients reach the strided one. (A cache
could not see `weight.data.mul_(2)`, and would be silently wrong.)
"""

import functools
import inspect
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from stridenet.by_layer.arithmetic import (
    adaptive_windows,
    average_pool,
    convolve,
    convolve_transposed,
    expanded,
    expanded_transposed,
    max_pool,
)
from stridenet.copies import is_filled
from stridenet.phases import expand_bias
from stridenet.windows import TransposedWindow, Window, Windows

# Takes the number of axes, how depthwise convolutions are computed, and the arguments by name. Returns
# None for a call without a stride, which stays as it is.
UnitStrideFunction = Callable[[int, str, dict[str, Any]], Tensor | None]


class StridedFunction(NamedTuple):
    """Describes one of torch's functions that may have strides."""

    compute: UnitStrideFunction
    axes: int  # that it works on; 0 for any number
    names: tuple[str, ...]  # of its arguments, in order


def numbers(value: Any, axes: int) -> tuple[int, ...]:
    """Return one number for each axis, from one for all or one for each, as torch takes them."""
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return given * axes if len(given) == 1 else given


def _padding_numbers(padding: Any, axes: int) -> tuple[int, ...]:
    return (0,) * axes if padding == "valid" else numbers(padding, axes)


def _convolution(axes: int, depthwise: str, given: dict[str, Any]) -> Tensor | None:
    stride = numbers(given.get("stride", 1), axes)
    if max(stride) == 1:
        return None
    sizes = map(int, given["weight"].shape[2:])  # torch.jit.trace has tensors there
    dilation = numbers(given.get("dilation", 1), axes)
    padding = [(p, p) for p in _padding_numbers(given.get("padding", 0), axes)]
    windows = tuple(map(Window, sizes, stride, dilation, padding))
    weight = expanded(given["weight"], windows)
    groups = given.get("groups", 1)
    return convolve(given["input"], weight, given.get("bias"), windows, groups, depthwise)


def _transposed(axes: int, depthwise: str, given: dict[str, Any]) -> Tensor | None:
    stride = numbers(given.get("stride", 1), axes)
    if max(stride) == 1:
        return None
    weight, groups, bias = given["weight"], given.get("groups", 1), given.get("bias")
    windows = tuple(
        map(
            TransposedWindow,
            map(int, weight.shape[2:]),
            stride,
            numbers(given.get("dilation", 1), axes),
            numbers(given.get("padding", 0), axes),
        )
    )
    more = numbers(given.get("output_padding", 0), axes)
    if bias is not None:
        bias = expand_bias(bias, [window.tap_map for window in windows])
    weight = expanded_transposed(weight, windows, groups)
    return convolve_transposed(given["input"], weight, bias, windows, more, groups)


def _any_convolution(_: int, depthwise: str, given: dict[str, Any]) -> Tensor | None:
    """Compute torch.convolution, which may be transposed, over any number of axes."""
    axes = given["weight"].ndim - 2
    return (_transposed if given["transposed"] else _convolution)(axes, depthwise, given)


def _windows(axes: int, given: dict[str, Any]) -> Windows | None:
    """Return the windows of a pooling; None if it has no stride above one."""
    kernel = numbers(given["kernel_size"], axes)
    step = given.get("stride")
    stride = kernel if step is None or step == () or step == [] else numbers(step, axes)
    if max(stride) == 1:
        return None
    padding = [(p, p) for p in numbers(given.get("padding", 0), axes)]
    return tuple(map(Window, kernel, stride, numbers(given.get("dilation", 1), axes), padding))


def _maximum(axes: int, _: str, given: dict[str, Any]) -> Tensor | None:
    windows = _windows(axes, given)
    if windows is None or given.get("return_indices"):
        return None
    return max_pool(given["input"], windows, bool(given.get("ceil_mode")))


def _average(axes: int, _: str, given: dict[str, Any]) -> Tensor | None:
    windows = _windows(axes, given)
    if windows is None:
        return None
    return average_pool(
        given["input"],
        windows,
        bool(given.get("ceil_mode")),
        given.get("count_include_pad", True),
        given.get("divisor_override"),
    )


def _power(axes: int, _: str, given: dict[str, Any]) -> Tensor | None:
    """Compute F.lp_pool, a power of the average of powers."""
    windows = _windows(axes, given)
    if windows is None:
        return None
    norm, ceil_mode = float(given["norm_type"]), bool(given.get("ceil_mode"))
    mean = average_pool(given["input"].pow(norm), windows, ceil_mode)
    many = prod([window.kernel for window in windows])
    return (torch.sign(mean) * F.relu(torch.abs(mean))).mul(many).pow(1.0 / norm)


def _adaptive(axes: int, given: dict[str, Any]) -> Windows | None:
    if given.get("return_indices"):
        return None
    outputs: Any = numbers(given["output_size"], axes)
    windows = adaptive_windows(given["input"].shape[-axes:], outputs)
    return None if windows is None or max([w.stride for w in windows]) == 1 else windows


def _adaptive_maximum(axes: int, _: str, given: dict[str, Any]) -> Tensor | None:
    windows = _adaptive(axes, given)
    return None if windows is None else max_pool(given["input"], windows)


def _adaptive_average(axes: int, _: str, given: dict[str, Any]) -> Tensor | None:
    windows = _adaptive(axes, given)
    return None if windows is None else average_pool(given["input"], windows)


# Names of arguments, in order.
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "output_padding",
    "groups",
    "dilation",
)
_ANY = (*_CONVOLUTION[:-1], "transposed", "output_padding", "groups")
_MAXIMUM = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
            "divisor_override")  # fmt: skip
_POWER = ("input", "norm_type", "kernel_size", "stride", "ceil_mode")
_ADAPTIVE = ("input", "output_size", "return_indices")
_CONVOLUTIONS: list[tuple[UnitStrideFunction, tuple[str, ...], tuple[Any, ...]]] = [
    (_convolution, _CONVOLUTION, (F.conv1d, F.conv2d, F.conv3d)),
    (_transposed, _TRANSPOSED, (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)),
]
_POOLINGS: list[tuple[UnitStrideFunction, tuple[str, ...], tuple[Any, ...]]] = [
    (_maximum, _MAXIMUM, (F.max_pool1d, F.max_pool2d, F.max_pool3d)),
    (_maximum, _MAXIMUM, (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)),
    (_average, _AVERAGE, (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)),
    (_power, _POWER, (F.lp_pool1d, F.lp_pool2d, F.lp_pool3d)),
    (_adaptive_maximum, _ADAPTIVE,
     (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)),
    (_adaptive_average, _ADAPTIVE,
     (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)),
]  # fmt: skip


def _by_function(table: list[Any]) -> dict[Any, StridedFunction]:
    return {
        function: StridedFunction(compute, axes, names)
        for compute, names, functions in table
        for axes, function in enumerate(functions, 1)
    }


CONVOLUTION_CALLS = _by_function(_CONVOLUTIONS) | {
    torch.convolution: StridedFunction(_any_convolution, 0, _ANY)
}
POOLING_CALLS = _by_function(_POOLINGS)
CALLS = {False: CONVOLUTION_CALLS, True: CONVOLUTION_CALLS | POOLING_CALLS}


def unit_stride_call(
    function: Any, args: tuple, kwargs: dict[str, Any], pooling: bool, depthwise: str = "phases"
) -> Tensor | None:
    """Compute a strided call with unit strides; return None for a call without a stride above one."""
    known = CALLS[pooling].get(function)
    if known is None:
        return None
    given = dict(zip(known.names, args, strict=False)) | kwargs
    return known.compute(known.axes, depthwise, given)


def has_stride(function: Any, args: tuple, kwargs: dict[str, Any], pooling: bool) -> bool:
    """Tell whether a call has a stride above one that a conversion is to remove, if it can."""
    known = CALLS[pooling].get(function)
    if known is None:
        name = getattr(function, "__name__", "")
        if not (pooling and name.startswith("max_pool") and name.endswith("_with_indices")):
            return False
        known = StridedFunction(_maximum, int(name[len("max_pool")]), _MAXIMUM)
    given = dict(zip(known.names, args, strict=False)) | kwargs
    if known.compute in (_adaptive_maximum, _adaptive_average):
        return _adaptive(known.axes, given) is not None
    if "kernel_size" in given:
        return _windows(known.axes, given) is not None
    return max(numbers(given.get("stride", 1), 1)) > 1


class UnitStrideCalls(TorchFunctionMode):
    """Gives strided calls of torch's functions unit strides, in the thread where it is entered."""

    def __init__(
        self, pooling: bool, depthwise: str, observe: Callable[..., None] | None = None
    ) -> None:
        """observe: called after each converted call, with its function, arguments and result."""
        super().__init__()
        self.pooling, self.depthwise, self.observe = pooling, depthwise, observe

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Handle a call of a function, as torch passes it through a mode."""
        kwargs = kwargs or {}
        if func not in CALLS[self.pooling]:
            return func(*args, **kwargs)
        proxy = next((a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy)), None)
        if proxy is not None:  # torch.fx traces a user's forward: the call is a leaf
            fixed = (func.__name__, self.pooling, self.depthwise)
            return proxy.tracer.create_proxy("call_function", call, (*fixed, *args), kwargs)
        if self.observe is not None:  # before the call, which may change its arguments
            args, kwargs = tree_map(_copy_of, (args, kwargs))
        result = unit_stride_call(func, args, kwargs, self.pooling, self.depthwise)
        if result is None:
            return func(*args, **kwargs)
        if self.observe is not None:
            names = CALLS[self.pooling][func].names
            given = dict(zip(names, args, strict=False)) | kwargs
            self.observe(func, args, kwargs, given, result)
        return result


def _copy_of(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def call(name: str, pooling: bool, depthwise: str, *args: Any, **kwargs: Any) -> Any:
    """Call a function of torch by its name, with unit strides: graphs of torch.fx hold this call."""
    function = next(f for f in CALLS[pooling] if f.__name__ == name)
    result = unit_stride_call(function, args, kwargs, pooling, depthwise)
    return function(*args, **kwargs) if result is None else result


# Which modules make such calls ----------------------------------------------------------------------

_OWN = ("torch.", "builtins", "typing", "abc", "functools", "collections")


def calls_strided_functions(module: torch.nn.Module, pooling: bool, kind: type) -> bool:
    """Tell whether the code of a module's own forward, and what it calls, names a strided function.

    Read from the code, without running it: what only may be called counts. A module of torch's own
    does not, nor do the modules inside this one, which are asked themselves. kind: its class, without
    what a conversion before has put over it.
    """
    entries = [getattr(kind, name, None) for name in ("forward", "__call__")]
    entries = [entry for entry in entries if entry is not None and not _is_torchs(entry)]
    if not entries:
        return False
    names = {function.__name__ for function in CALLS[pooling]} | {"_conv_forward"}
    names |= {f"Conv{n}d" for n in "123"} | {f"ConvTranspose{n}d" for n in "123"}  # made in forward
    if pooling:
        kinds = ("MaxPool", "AvgPool", "LPPool", "AdaptiveMaxPool", "AdaptiveAvgPool")
        names |= {f"{kind}{n}d" for kind in kinds for n in "123"}
    reader = _Reader(names, kind)
    return any(map(reader.reads, entries)) or any(map(reader.reads_value, vars(module).values()))


class _Reader:
    """Looks for names in the code of functions, and of those that they call."""

    def __init__(self, names: set[str], of: type) -> None:
        self.names, self.of = names, of
        self.seen: set[Any] = set()

    def reads(self, function: Any, of: type | None = None) -> bool:
        """Tell whether the code of a function has one of the names.

        of: the class whose methods `self` has there.
        """
        function = inspect.unwrap(function)
        owner = getattr(function, "__self__", None)
        of = type(owner) if isinstance(owner, torch.nn.Module) else of or self.of
        function = getattr(function, "__func__", function)
        code = getattr(function, "__code__", None)
        if code is None or (id(code), of) in self.seen or _is_torchs(function):
            return False
        self.seen.add((id(code), of))
        called, texts = _names_and_texts(code)
        if called & self.names or ("getattr" in called and any("conv" in t for t in texts)):
            return True
        cells = [c.cell_contents for c in function.__closure__ or () if is_filled(c)]
        values = (*self._values(function, called, of), *cells)
        return any(self.reads_value(value, of) for value in values)

    def _values(self, function: Any, called: set[str], of: type) -> list[Any]:
        """Return what the names refer to: globals, members of modules, and the class's own methods."""
        known = function.__globals__
        found = [known[name] for name in called if name in known]
        packages = [value for value in found if inspect.ismodule(value)]
        members = [vars(p).get(n) for p in packages if not _is_torchs(p) for n in called]
        methods = [inspect.getattr_static(of, name, None) for name in called]
        return [*found, *members, *methods]

    def reads_value(self, value: Any, of: type | None = None) -> bool:
        """Tell whether a value is such a function, or one whose code names it, or has one in it."""
        if isinstance(value, property):
            value = value.fget
        if isinstance(value, type) and issubclass(value, torch.autograd.Function):
            return self.reads(value.forward, of)
        if any(value is function for function in CALLS[True]):
            return True
        if (inside := self._inside(value)) is not None:
            return any(self.reads_value(one, of) for one in inside)
        return callable(value) and not isinstance(value, type) and self.reads(value, of)

    def _inside(self, value: Any) -> list[Any] | None:
        """Return what a collection or a partial function holds.

        Returns an empty list if it was seen before, and None for anything else.
        """
        if not isinstance(value, (dict, list, tuple, set, functools.partial)):
            return None
        if id(value) in self.seen:
            return []
        self.seen.add(id(value))
        if isinstance(value, functools.partial):
            return [value.func, *value.args, *value.keywords.values()]
        return [*(value.values() if isinstance(value, dict) else value)]


def _names_and_texts(code: Any) -> tuple[set[str], set[str]]:
    """Return the names and the string constants of a piece of code, and of those within it."""
    names, texts = set(code.co_names), {c for c in code.co_consts if isinstance(c, str)}
    for inner in (c for c in code.co_consts if inspect.iscode(c)):
        more = _names_and_texts(inner)
        names |= more[0]
        texts |= more[1]
    return names, texts


def _is_torchs(thing: Any) -> bool:
    name = getattr(thing, "__module__", None) or getattr(thing, "__name__", "")
    return isinstance(name, str) and (name == "torch" or name.startswith(_OWN))
