"""The classes of converted layers: torch's own, or the user's subclass of one, with another forward.

A layer is not replaced: its class is exchanged for a subclass of the one it had, as
torch.nn.utils.parametrize does. A new object in its place would lose what others hold of the layer
(lists, closures and hooks of the user, names in an optimiser, a weight that two layers share), and a
forward that asks isinstance(layer, nn.Conv2d) would go another way. With a new class the object, its
__dict__ and all references to it stay, and only the forward differs. The price is three details, all
here: the class is made for each class that comes (`_class_after`, cached, so that layers of one class
have one class afterwards); pickle and copy cannot find it by its name, and make it again from the class
before and the mixin (`Exchanged`); and the class of a parametrized module is made for that one module,
so that the exchange goes below it (`_set_class`). Attributes (weight, kernel_size, stride, …)
describe the unit-stride filter; those of the original are in `strided`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stridenet.by_layer.arithmetic import (
    convolve,
    convolve_transposed,
    expanded,
    expanded_transposed,
)
from stridenet.by_layer.calls import POOLING_CALLS, UnitStrideCalls, numbers, unit_stride_call
from stridenet.graph.nodes import CONVOLUTIONS, TRANSPOSED
from stridenet.phases import expand_bias
from stridenet.taps import Taps
from stridenet.windows import TransposedWindow, TransposedWindows, Window, Windows

Numbers = tuple[int, ...]
# The function that each of torch's pooling layers calls, with attributes of the arguments' names.
POOLINGS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MaxPool1d: F.max_pool1d, nn.MaxPool2d: F.max_pool2d, nn.MaxPool3d: F.max_pool3d,
    nn.AvgPool1d: F.avg_pool1d, nn.AvgPool2d: F.avg_pool2d, nn.AvgPool3d: F.avg_pool3d,
    nn.LPPool1d: F.lp_pool1d, nn.LPPool2d: F.lp_pool2d, nn.LPPool3d: F.lp_pool3d,
    nn.AdaptiveMaxPool1d: F.adaptive_max_pool1d, nn.AdaptiveMaxPool2d: F.adaptive_max_pool2d,
    nn.AdaptiveMaxPool3d: F.adaptive_max_pool3d, nn.AdaptiveAvgPool1d: F.adaptive_avg_pool1d,
    nn.AdaptiveAvgPool2d: F.adaptive_avg_pool2d, nn.AdaptiveAvgPool3d: F.adaptive_avg_pool3d,
}  # fmt: skip


# What a layer was -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StridedConvolution:
    """Describes a convolution before its conversion, in the names of torch's own attributes."""

    operation: str  # the name of its class: "Conv2d", "ConvTranspose2d", …
    in_channels: int
    out_channels: int
    kernel_size: Numbers
    stride: Numbers
    padding: Numbers | str
    dilation: Numbers
    transposed: bool
    output_padding: Numbers
    groups: int
    padding_mode: str

    @classmethod
    def of(cls, layer: Any) -> "StridedConvolution":
        """Describe a convolution layer, with a number for each axis even where it has one for all."""
        own = {name: getattr(layer, name) for name in _CONVOLUTION_ATTRIBUTES}
        axes = next(
            n
            for n, kinds in enumerate(zip(CONVOLUTIONS, TRANSPOSED, strict=True), 1)
            if isinstance(layer, kinds)
        )
        for name in ("kernel_size", "stride", "dilation", "padding", "output_padding"):
            if not isinstance(own[name], str):
                own[name] = numbers(own[name], axes)
        return cls(operation=class_before(layer).__name__, **own)

    def __str__(self) -> str:
        shown = [str(self.in_channels), str(self.out_channels), f"kernel_size={self.kernel_size}"]
        shown += [f"stride={self.stride}"]
        for name, default in (("padding", 0), ("dilation", 1), ("output_padding", 0)):
            given = getattr(self, name)
            if given not in ("valid", (default,) * len(self.stride)):
                shown.append(f"{name}={given}")
        if self.groups > 1:
            shown.append(f"groups={self.groups}")
        if self.padding_mode != "zeros":
            shown.append(f"padding_mode={self.padding_mode}")
        return f"{self.operation}({', '.join(shown)})"

    @property
    def weight_size(self) -> Numbers:
        """Return its filter's size: (out, in / groups, *kernel); transposed, in and out swap places."""
        first, second = self.out_channels, self.in_channels
        if self.transposed:
            first, second = second, first
        return (first, second // self.groups, *self.kernel_size)

    @property
    def windows(self) -> Windows:
        """Return a window for each axis.

        It has no padding where that is not with zeros, as the forward then pads the map itself.
        """
        plain = self.padding_mode == "zeros" and self.padding != "valid"
        padding: Any = self.padding if plain else (0,) * len(self.stride)
        axes = zip(self.kernel_size, self.stride, self.dilation, padding, strict=True)
        return tuple(Window(k, s, d, (p, p)) for k, s, d, p in axes)

    @property
    def transposed_windows(self) -> TransposedWindows:
        """Return the windows of a transposed convolution, one for each axis."""
        padding: Any = self.padding
        axes = zip(self.kernel_size, self.stride, self.dilation, padding, strict=True)
        return tuple(TransposedWindow(*axis) for axis in axes)

    @property
    def tap_maps(self) -> tuple[Taps, ...]:
        """Return which of its taps stands where in the unit-stride filter, one for each axis."""
        windows = self.transposed_windows if self.transposed else self.windows
        return tuple(window.tap_map for window in windows)

    def expand(self, weight: Tensor) -> Tensor:
        """Return the unit-stride filter of a strided one."""
        if self.transposed:
            return expanded_transposed(weight, self.transposed_windows, self.groups)
        return expanded(weight, self.windows)

    def expand_bias(self, bias: Tensor) -> Tensor:
        """Return the unit-stride layer's bias."""
        return expand_bias(bias, self.tap_maps).contiguous() if self.transposed else bias


_CONVOLUTION_ATTRIBUTES = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed",
    "output_padding", "groups", "padding_mode",
)  # fmt: skip


@dataclass(frozen=True)
class StridedPooling:
    """Describes a pooling before its conversion."""

    operation: str
    options: tuple[tuple[str, Any], ...]  # by the names of torch's attributes

    @classmethod
    def of(cls, layer: Any) -> "StridedPooling":
        """Describe a pooling layer."""
        names = [n for n in POOLING_CALLS[_pooling_function(layer)].names if n != "return_indices"]
        options = tuple((n, getattr(layer, n)) for n in names if hasattr(layer, n))
        return cls(class_before(layer).__name__, options)

    def __getattr__(self, name: str) -> Any:
        options = dict(vars(self).get("options", ()))
        if name in options:
            return options[name]
        raise AttributeError(name)

    def __str__(self) -> str:
        return f"{self.operation}({', '.join(f'{n}={v}' for n, v in self.options)})"


def _pooling_function(layer: Any) -> Callable[..., Any]:
    """Return the function of torch that a pooling layer calls."""
    for kind, function in POOLINGS.items():
        if isinstance(layer, kind):
            return function
    raise TypeError(f"{type(layer)} is no pooling")


# What it becomes ------------------------------------------------------------------------------------


class Exchanged:
    """The base class of modules whose class was exchanged: they can be copied and pickled as before."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (class_before(self), mixin_of(self)), self.__getstate__()


class UnitStrideLayer(Exchanged):
    """The base class of converted layers, which pad, rearrange and apply a unit-stride operation."""

    strided: Any  # StridedConvolution or StridedPooling


class UnitStrideConvolution(UnitStrideLayer):
    """Stands for a convolution with a stride above one after its conversion."""

    strided: StridedConvolution
    depthwise: str
    weight: Tensor
    bias: Tensor | None

    @property
    def tap_maps(self) -> tuple[Taps, ...]:
        """Return which strided tap stands where in its filter, one for each axis."""
        return self.strided.tap_maps

    def forward(self, input: Tensor) -> Tensor:
        """Return what the strided layer returns."""
        was = self.strided
        if was.padding_mode != "zeros":
            padding: Any = numbers(was.padding, len(was.stride)) if was.padding != "valid" else ()
            flat = [extent for p in reversed(padding) for extent in (p, p)]
            input = F.pad(input, flat, mode=was.padding_mode)
        return convolve(input, self.weight, self.bias, was.windows, was.groups, self.depthwise)


class UnitStrideTransposed(UnitStrideLayer):
    """Stands for a transposed convolution with a stride above one after its conversion."""

    strided: StridedConvolution
    weight: Tensor
    bias: Tensor | None
    _output_padding: Callable[..., list[int]]

    tap_maps = UnitStrideConvolution.tap_maps

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return what the strided layer returns; output_size: as of the strided layer."""
        was = self.strided
        more = was.output_padding
        if output_size is not None:
            sizes: Any = (was.stride, was.padding, was.kernel_size, len(was.stride), was.dilation)
            more = tuple(self._output_padding(input, output_size, *sizes))
        windows = was.transposed_windows
        return convolve_transposed(input, self.weight, self.bias, windows, more, was.groups)


class UnitStridePooling(UnitStrideLayer):
    """Stands for a pooling with a stride above one after its conversion."""

    strided: StridedPooling

    def forward(self, input: Tensor) -> Tensor:
        """Return what the strided layer returns."""
        function = _pooling_function(self)
        options = dict(self.strided.options)
        result = unit_stride_call(function, (input,), options, pooling=True)
        return function(input, **options) if result is None else result


class UnitStrideForward(Exchanged):
    """Stands for a user's module whose forward makes strided calls, after its conversion."""

    unit_stride_calls: dict[str, Any]  # what UnitStrideCalls is given


def _with_unit_strides(inner: Any) -> Callable[..., Any]:
    """Return a forward whose strided calls have unit strides.

    Its signature stays, as torch reads it.
    """

    @wraps(inner)
    def forward(self: UnitStrideForward, *args: Any, **kwargs: Any) -> Any:
        with UnitStrideCalls(**self.unit_stride_calls):
            return inner(self, *args, **kwargs)

    return forward


Mixin = Any  # one of the classes above


@cache
def _class_after(before: Any, mixin: Any) -> Any:
    """Return the class of a converted module whose class was `before`, always the same object.

    It has the __module__ of `before`, as torch.fx takes torch's own modules for leaves.
    """
    layer = issubclass(mixin, UnitStrideLayer)
    name = f"UnitStride{before.__name__}" if layer else before.__name__
    own: dict[str, Any] = {"__module__": before.__module__, "__qualname__": name}
    if mixin is UnitStrideForward:
        own["forward"] = _with_unit_strides(before.forward)
        if before.__call__ is not nn.Module.__call__:  # some write it in place of a forward
            own["__call__"] = _with_unit_strides(before.__call__)
    return type(name, (mixin, before), own)


def _blank(before: type, mixin: Mixin) -> Any:
    """Return an empty module of the exchanged class, for copy and pickle to fill."""
    kind = _class_after(before, mixin)
    return kind.__new__(kind)


def mixin_of(module: Any) -> Mixin:
    """Return the mixin (one of the classes above) of a converted module."""
    return next(kind for kind in type(module).__mro__ if _is_mixin(kind))


def class_before(module: Any) -> type:
    """Return the class that a module had before its conversion, or has, without parametrization."""
    kind = type(module)
    if parametrize.is_parametrized(module):
        kind = kind.__bases__[0]
    return kind.__bases__[1] if issubclass(kind, Exchanged) else kind


def _is_mixin(kind: type) -> bool:
    return issubclass(kind, Exchanged) and not issubclass(kind, nn.Module)


def exchange(module: nn.Module, mixin: Mixin) -> None:
    """Give a module its converted class, in place; below that of its parametrization, if any."""
    _set_class(module, _class_after(class_before(module), mixin))


def exchange_back(module: nn.Module) -> None:
    """Give a module the class that it had, in place."""
    _set_class(module, class_before(module))


def _set_class(module: nn.Module, kind: Any) -> None:
    if parametrize.is_parametrized(module):  # whose class is made for one module, and its own
        parametrized = type(module)
        own = {k: v for k, v in vars(parametrized).items() if k not in ("__dict__", "__weakref__")}
        kind = type(parametrized.__name__, (kind,), own)
    module.__class__ = kind


class Expand(nn.Module):
    """Expands a parametrized filter or bias: it is the last parametrization of a converted layer."""

    def __init__(self, strided: StridedConvolution, name: str) -> None:
        super().__init__()
        self.strided, self.name = strided, name

    def forward(self, tensor: Tensor) -> Tensor:
        """Return the unit-stride filter of a strided one."""
        if self.name == "bias":
            return self.strided.expand_bias(tensor)
        return self.strided.expand(tensor)


def describe_unit_strides(layer: Any, depthwise: str) -> None:
    """Make a converted layer's attributes those of the unit-stride operation, in place."""
    if isinstance(layer, UnitStridePooling):
        _describe_pooling(layer)
        return
    was = layer.strided
    ones, zeros = (1,) * len(was.stride), (0,) * len(was.stride)
    size = was.expand(torch.empty(was.weight_size, device="meta")).shape
    layer.out_channels, layer.in_channels = size[0], size[1] * was.groups
    layer.kernel_size = tuple(size[2:])
    layer.stride, layer.dilation, layer.padding = ones, ones, zeros
    layer.output_padding, layer.transposed, layer.padding_mode = zeros, False, "zeros"
    layer._reversed_padding_repeated_twice = (0, 0) * len(was.stride)
    layer.depthwise = depthwise
    layer.strided = was


def _describe_pooling(layer: Any) -> None:
    options = dict(layer.strided.options)
    if "kernel_size" not in options:
        return  # adaptive: its windows depend on the size that comes
    given = options["kernel_size"]
    stride = options.get("stride") or given
    axes = max(len(numbers(given, 1)), len(numbers(stride, 1)))
    dilation = numbers(options.get("dilation", 1), axes)
    windows = map(Window, numbers(given, axes), numbers(stride, axes), dilation)
    kernel = tuple(window.tap_map.twin_kernel for window in windows)
    layer.kernel_size = kernel[0] if isinstance(given, int) and len(set(kernel)) == 1 else kernel
    for name, plain in (("stride", 1), ("padding", 0), ("dilation", 1)):
        if hasattr(layer, name):
            setattr(layer, name, plain)


def describe_original(layer: Any) -> None:
    """Give a layer back the attributes that it had, in place."""
    was = layer.strided
    if isinstance(was, StridedPooling):
        for name, value in was.options:
            setattr(layer, name, value)
    else:
        for name in _CONVOLUTION_ATTRIBUTES:
            setattr(layer, name, getattr(was, name))
        padding = () if isinstance(was.padding, str) else was.padding
        flat = [extent for p in reversed(padding) for extent in (p, p)]
        layer._reversed_padding_repeated_twice = tuple(flat) or (0, 0) * len(was.stride)
        if "depthwise" in vars(layer):
            del layer.depthwise
    del layer.strided
