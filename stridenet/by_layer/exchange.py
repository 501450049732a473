"""Which modules of a model are to be converted, which cannot be, and the exchange of their classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from stridenet.by_layer.calls import calls_strided_functions, numbers
from stridenet.by_layer.modules import (
    POOLINGS,
    Expand,
    Mixin,
    StridedConvolution,
    StridedPooling,
    UnitStrideConvolution,
    UnitStrideForward,
    UnitStrideLayer,
    UnitStridePooling,
    UnitStrideTransposed,
    class_before,
    describe_unit_strides,
    exchange,
)
from stridenet.copies import copied, unwrapped
from stridenet.errors import StrideEliminationError
from stridenet.graph.nodes import CONVOLUTIONS, TRANSPOSED
from stridenet.options import DEPTHWISE
from stridenet.sizes import format_size

Model = TypeVar("Model", bound=nn.Module)
KINDS: tuple[tuple[tuple[type[nn.Module], ...], Mixin], ...] = (
    (CONVOLUTIONS, UnitStrideConvolution),
    (TRANSPOSED, UnitStrideTransposed),
    (tuple(POOLINGS), UnitStridePooling),
)


def exchanged(
    model: Model,
    only: Sequence[str] | None = None,
    pooling: bool = False,
    inplace: bool = False,
    depthwise: str = "phases",
) -> Model:
    """Convert a model as convert_layers does, without its check."""
    if depthwise not in DEPTHWISE:
        raise StrideEliminationError(f"depthwise={depthwise!r}: it is one of {DEPTHWISE}")
    if isinstance(only, str):
        raise StrideEliminationError(f"only={only!r}: a list of layers' names, as in ['conv1']")
    inner: Any = unwrapped(model)
    target = inner if inplace else copied(inner)
    steps = planned_steps(target, only, pooling)
    _require_whole_weights(target, steps)
    done: set[int] = set()
    for step in steps:
        _convert(step, pooling, depthwise, done)
    return model if inplace else target


@dataclass(frozen=True)
class ClassExchange:
    """Says which module gets another class, and the mixin that this class has."""

    name: str
    module: Any
    mixin: Mixin

    @property
    def label(self) -> str:
        """Return its name and class, as errors give them."""
        return f"{self.name or 'the model'} ({type(self.module).__name__})"


def planned_steps(
    model: nn.Module, only: Sequence[str] | None, pooling: bool
) -> list[ClassExchange]:
    """Return the modules whose classes are to be exchanged, in order.

    Raises StrideEliminationError for a module that cannot be converted.
    """
    found = [
        ClassExchange(name, module, mixin)
        for name, module in model.named_modules()
        if (mixin := mixin_for(module, pooling or only is not None)) is not None
    ]
    if only is not None:
        names = {step.name for step in found}
        for name in set(only) - names:
            raise StrideEliminationError(
                f"only: {name!r} is no layer here with a stride above one; these are: {sorted(names)}"
            )
        found = [step for step in found if step.name in only]
    for step in found:
        _require_convertible(step)
    return found


def mixin_for(module: Any, pooling: bool) -> Mixin | None:
    """Return the mixin that a module is to get; None if it has no stride above one to lose."""
    if isinstance(module, UnitStrideLayer):
        return None
    for kinds, mixin in KINDS:
        if isinstance(module, kinds):
            if mixin is UnitStridePooling and not pooling:
                return None
            if not _is_strided(module):
                break
            return mixin if _has_torchs_forward(module, kinds) else UnitStrideForward
    before = class_before(module)
    called = calls_strided_functions(module, pooling, before)
    return UnitStrideForward if called else None


def _is_strided(layer: Any) -> bool:
    """Tell whether a layer has a stride above one; adaptive pooling, whose size decides it, counts."""
    if not hasattr(layer, "kernel_size"):
        return set(numbers(layer.output_size, 1)) != {1}
    stride = layer.kernel_size if layer.stride is None else layer.stride
    return any(step > 1 for step in numbers(stride, 1))


def _has_torchs_forward(layer: Any, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Tell whether a layer has the forward of torch's class, as a user's class may have, too."""
    base: Any = next(kind for kind in kinds if isinstance(layer, kind))
    same = ("forward", "_conv_forward")
    return all(getattr(type(layer), n, None) is getattr(base, n, None) for n in same)


# What cannot be converted ---------------------------------------------------------------------------


def _require_convertible(step: ClassExchange) -> None:
    module = step.module
    if "forward" in vars(module):
        raise StrideEliminationError(
            f"the forward of {step.label} was replaced on this one object, so that a converted class "
            "would not be asked: take the replacement off first (del module.forward; of accelerate, "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True))"
        )
    lazy = isinstance(module, nn.modules.lazy.LazyModuleMixin)
    if lazy and module.has_uninitialized_params():
        raise StrideEliminationError(
            f"{step.label} has no weights yet: run the model once on an input, then convert it"
        )
    if getattr(module, "return_indices", False):
        raise StrideEliminationError(
            f"{step.label} returns indices, which its unit-stride form does not have: leave it out, "
            "with only=[…] or pooling=False"
        )
    if step.mixin in (UnitStrideConvolution, UnitStrideTransposed):
        _require_whole(step)


def _require_whole(step: ClassExchange) -> None:
    """Refuse a convolution whose weight is set by something else, or does not fit its sizes."""
    layer = step.module
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm, prune.BasePruningMethod)):
            return  # is baked in
    held = "weight" in layer._parameters or "weight" in layer._buffers
    if not held and not parametrize.is_parametrized(layer, "weight"):
        raise StrideEliminationError(
            f"the weight of {step.label} is no parameter: something sets it before each forward, which "
            "would undo the conversion; make it a parametrization (torch.nn.utils.parametrize), or set "
            "layer.weight = nn.Parameter(layer.weight.detach()) and remove the hook"
        )
    size = StridedConvolution.of(layer).weight_size
    if tuple(layer.weight.shape) != size:
        raise StrideEliminationError(
            f"{step.label} was changed after it was made: its weight is "
            f"{format_size(layer.weight.shape)}, but its channels, groups and kernel say "
            f"{format_size(size)}; set these to what the weight is"
        )


def _require_whole_weights(model: nn.Module, steps: list[ClassExchange]) -> None:
    """Refuse a tensor of several layers that would become another one in each."""
    converted = {
        id(step.module): step
        for step in steps
        if step.mixin in (UnitStrideConvolution, UnitStrideTransposed)
    }
    users: dict[int, list[tuple[str, str, Any]]] = {}
    for name, module in model.named_modules():
        for held, tensor in module._parameters.items():
            if tensor is not None:
                users.setdefault(id(tensor), []).append((name, held, module))
    for tensor_users in users.values():
        wanted = [_becomes(held, converted.get(id(m))) for _, held, m in tensor_users]
        if len(set(wanted)) > 1:
            names = " and ".join(f"{name}.{held}" for name, held, _ in tensor_users)
            raise StrideEliminationError(
                f"{names} are one parameter, which would become different ones: give each layer its "
                "own (layer.weight = nn.Parameter(layer.weight.detach().clone())), or convert none of "
                "them, with only=[…]"
            )


def _becomes(held: str, step: ClassExchange | None) -> Any:
    """Return a key of what is done to a tensor of a layer: equal for equal changes, None for none."""
    if step is None or held not in ("weight", "bias"):
        return None
    if held == "bias" and step.mixin is not UnitStrideTransposed:
        return None
    was = StridedConvolution.of(step.module)
    return (held, was.transposed, was.groups, was.tap_maps)


# Conversion -----------------------------------------------------------------------------------------


@torch.no_grad()
def _convert(step: ClassExchange, pooling: bool, depthwise: str, done: set[int]) -> None:
    """Convert one module in place; done: the ids of tensors that were expanded for a layer before."""
    module = step.module
    if step.mixin is UnitStrideForward:
        look_after_calls(module, pooling, depthwise)
        return
    if step.mixin is UnitStridePooling:
        module.strided = StridedPooling.of(module)
    else:
        _bake(module)
        module.strided = StridedConvolution.of(module)
        _expand(module, "weight", module.strided.expand, done)
        if step.mixin is UnitStrideTransposed and module.bias is not None:
            _expand(module, "bias", module.strided.expand_bias, done)
    exchange(module, step.mixin)
    describe_unit_strides(module, depthwise)


def look_after_calls(module: Any, pooling: bool, depthwise: str) -> None:
    """Let strided calls in a module's forward, and in the forwards within it, have unit strides."""
    if not isinstance(module, UnitStrideForward):
        exchange(module, UnitStrideForward)
    module.unit_stride_calls = {"pooling": pooling, "depthwise": depthwise}


def _bake(layer: nn.Module) -> None:
    """Remove torch's hooks that set the weight before each forward; it stays as it is now.

    They are those of the old weight_norm, of spectral_norm and of pruning.
    """
    for hook in list(layer._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(layer, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(layer, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(layer, hook._tensor_name)


def _expand(layer: Any, name: str, expand: Any, done: set[int]) -> None:
    """Give a tensor the unit-stride layer's numbers; the object, its attributes and its users stay."""
    if parametrize.is_parametrized(layer, name):
        layer.parametrizations[name].append(Expand(layer.strided, name))
        return
    tensor = getattr(layer, name)
    if id(tensor) not in done:
        channels_last = tensor.ndim == 4 and not tensor.is_contiguous()
        tensor.data = expand(tensor.data)
        if channels_last:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        tensor.grad = None
        done.add(id(tensor))
