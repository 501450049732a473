"""What a survey sees without the library's help: strides, traces on a model, differences."""

import copy
import dataclasses
import functools
import hashlib
import inspect
import random
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

# Strided calls --------------------------------------------------------------------------------------


class StridedCalls(TorchDispatchMode):
    """Notes the convolutions and poolings with a stride above one that torch computes meanwhile.

    It stands below everything that Python code can do: whatever calls a convolution comes through here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: list[str] = []
        self.poolings: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = _arguments(func, args, kwargs or {})
        if "conv" in name and max(_numbers(given.get("stride")), default=1) > 1:
            self.convolutions.append(name)
        elif "pool" in name and _pools_with_stride(name, given, result):
            self.poolings.append(name)
        return result


def _arguments(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of an operator by name."""
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


def _numbers(value: Any) -> list[int]:
    """Return one number or several, as a list."""
    if value is None:
        return []
    return [*value] if isinstance(value, (list, tuple)) else [value]


def _pools_with_stride(name: str, given: dict[str, Any], result: Any) -> bool:
    """Tell whether the pooling has a stride above one.

    Windows of different sizes, which adaptive pooling has where the sizes do not divide, have no
    stride.
    """
    if "kernel_size" in given:
        strides = _numbers(given.get("stride")) or _numbers(given["kernel_size"])
        return max(strides) > 1
    if "adaptive" in name and "output_size" in given:
        maps = result[0] if isinstance(result, tuple) else result
        axes = len(_numbers(given["output_size"]))
        sizes = [*zip(given["self"].shape[-axes:], maps.shape[-axes:], strict=True)]
        even = all(before % after == 0 for before, after in sizes)
        return even and any(before > after > 1 for before, after in sizes)
    return False


# Traces on a model ----------------------------------------------------------------------------------


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Return everything that a user could find changed, by its place.

    It has what the attributes of each module hold, their identity and numbers, classes and hooks;
    the random state; and what torch's own classes have.
    """
    seen: dict[int, str] = {}
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name}: class"] = id(type(module))
        for attribute, value in vars(module).items():
            _describe(f"{name}.{attribute}", value, seen, found)
    found["random state"] = random_state()
    for owner in (nn.Module, Tensor, torch, F):
        found[f"{owner.__name__} itself"] = {n: id(value) for n, value in vars(owner).items()}
    return found


def random_state() -> tuple[str, ...]:
    """Return the random states of torch, Python and NumPy."""
    numpy_state = repr(np.random.get_state())  # noqa: NPY002
    return (_digest(torch.get_rng_state()), repr(random.getstate()), numpy_state)


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the places at which two fingerprints differ."""
    return [
        place for place in before | after if before.get(place, _NONE) != after.get(place, _NONE)
    ]


_NONE = object()
_SIMPLE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_OPAQUE = (type, types.FunctionType, types.ModuleType, types.BuiltinFunctionType, types.MethodType)


def _describe(place: str, value: Any, seen: dict[int, str], found: dict[str, Any]) -> None:
    """Put what is at a place, and below it, into `found`."""
    if isinstance(value, _SIMPLE):
        found[place] = repr(value)
        return
    found[place] = (type(value).__name__, id(value))
    if id(value) in seen or isinstance(value, (nn.Module, *_OPAQUE)):
        return
    seen[id(value)] = place
    if isinstance(value, Tensor):
        numbers = value.detach()
        held = (numbers.dtype, numbers.shape, value.requires_grad, value.grad is None)
        found[place] = (id(value), held, _digest(numbers))
    elif isinstance(value, Mapping):
        found[f"{place} in order"] = [
            repr(key) if isinstance(key, _SIMPLE) else id(key) for key in value
        ]
        for key in value:
            _describe(f"{place}[{key!r}]", value[key], seen, found)
    elif isinstance(value, (list, tuple)):
        found[f"{place} length"] = len(value)
        for index, item in enumerate(value):
            _describe(f"{place}[{index}]", item, seen, found)
    elif isinstance(value, (set, frozenset)):
        found[f"{place} members"] = sorted(map(repr, value))
    elif place.count(".") < 12 and hasattr(value, "__dict__"):
        for key in [*vars(value)]:
            _describe(f"{place}.{key}", vars(value)[key], seen, found)


def _digest(tensor: Tensor) -> str:
    """Return a digest of a tensor's numbers, bit by bit."""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        return repr(tensor)
    flat = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return hashlib.blake2b(flat.view(torch.uint8).numpy().data).hexdigest()


# Differences ----------------------------------------------------------------------------------------


def output_error(expected: Any, obtained: Any) -> float:
    """Return how far two results of a forward pass lie apart, whatever they are made of.

    The largest error of any tensor in them, as a share of that tensor's largest number; infinite where
    types, sizes, or anything but floating-point numbers differ.
    """
    if isinstance(expected, Tensor) and isinstance(obtained, Tensor):
        return _tensor_difference(expected, obtained)
    if type(expected) is not type(obtained):
        return float("inf")
    parts = _parts(expected), _parts(obtained)
    if parts[0] is None or parts[1] is None:
        return 0.0 if _same(expected, obtained) else float("inf")
    if [*parts[0]] != [*parts[1]]:
        return float("inf")
    return max((output_error(parts[0][key], parts[1][key]) for key in parts[0]), default=0.0)


def _parts(value: Any) -> dict[Any, Any] | None:
    """Return the parts of a value by name; None where it has no parts."""
    if isinstance(value, Mapping):
        return {repr(key): value[key] for key in value}
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, (*_SIMPLE, *_OPAQUE)) or not hasattr(value, "__dict__"):
        return None
    return vars(value)


def _same(expected: Any, obtained: Any) -> bool:
    """Compare what is no container; objects that say nothing of their equality count as equal."""
    return not isinstance(expected, _SIMPLE) or expected == obtained or expected != expected


def _tensor_difference(expected: Tensor, obtained: Tensor) -> float:
    if expected.shape != obtained.shape or expected.dtype != obtained.dtype:
        return float("inf")
    if not expected.is_floating_point() and not expected.is_complex():
        return 0.0 if torch.equal(expected, obtained) else float("inf")
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(obtained)):
        return float("inf")
    numbers, others = expected[finite], obtained[finite]
    if not numbers.numel():
        return 0.0
    error, largest = float((numbers - others).abs().max()), float(numbers.abs().max())
    return error / largest if largest else (float("inf") if error else 0.0)


# Calls ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class ModuleCall:
    """Holds one call of a module: its arguments and its result."""

    name: str
    args: Any
    kwargs: Any
    result: Any


@contextmanager
def calls_of(model: nn.Module, names: list[str]) -> Iterator[list[ModuleCall]]:
    """Yield the calls of some of a model's modules, with copies of their inputs and results."""
    calls: list[ModuleCall] = []
    handles = []
    waiting: list[tuple[Any, Any]] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        waiting.append((copied(args), copied(kwargs)))

    def after(name: str, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        calls.append(ModuleCall(name, *waiting.pop(), copied(result)))

    for name in names:
        module = model.get_submodule(name)
        # A hook that raises would leave the others waiting; ours do not.
        handles += [
            module.register_forward_pre_hook(before, with_kwargs=True, prepend=False),
            module.register_forward_hook(
                functools.partial(after, name), with_kwargs=True, prepend=True
            ),
        ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def copied(value: Any) -> Any:
    """Copy the tensors in a value, so that what is written into them later is not seen."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    return copy.copy(value)


def share_of_bound(layer: nn.Module, call: ModuleCall) -> float:
    """Return how far a converted call lies from the strided one, as a share of the bound.

    Both have the same input. The bound is what rounding can explain: above 1, the call is wrong.

    layer: the strided one. Two orders of summing n products differ by no more than 2·n·ε times the sum
    of their absolute values, which the layer gives for absolute weights and inputs. Of a module that
    is no single convolution that sum is not known; there the bound is 4,096·ε times its largest number.
    """
    expected = layer(*call.args, **call.kwargs)
    if not isinstance(expected, Tensor) or not isinstance(call.result, Tensor):
        return output_error(expected, call.result) / (4096 * torch.finfo(_dtype(call)).eps)
    if expected.shape != call.result.shape or expected.dtype != call.result.dtype:
        return float("inf")
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(call.result)):
        return float("inf")
    bound = _bound(layer, call, expected)
    error = (expected - call.result).abs()
    exceeds = torch.where(error > 0, error / bound.clamp(min=torch.finfo(bound.dtype).tiny), 0.0)
    return float(exceeds[finite].max()) if bool(finite.any()) else 0.0


def _bound(layer: nn.Module, call: ModuleCall, expected: Tensor) -> Tensor:
    eps = torch.finfo(expected.dtype).eps
    weight = getattr(layer, "weight", None)
    known = isinstance(layer, _CONVOLUTIONS) and inspect.unwrap(type(layer).forward) in _FORWARDS
    if known and isinstance(weight, nn.Parameter):
        summed = (
            weight[0].numel() if not layer.transposed else weight.shape[0] * weight[0, 0].numel()
        )
        absolute = {name: tensor.abs() for name, tensor in layer.named_parameters()}
        args = tuple(arg.abs() if isinstance(arg, Tensor) else arg for arg in call.args)
        kwargs = {k: v.abs() if isinstance(v, Tensor) else v for k, v in call.kwargs.items()}
        sums: Tensor = functional_call(layer, absolute, args, kwargs)
        return 2 * (summed + 2) * eps * sums
    largest = expected[torch.isfinite(expected)].abs().max() if expected.numel() else expected.sum()
    return (4096 * eps * largest).expand(expected.shape)


_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip
_FORWARDS: tuple[Callable[..., Any], ...] = tuple(kind.forward for kind in _CONVOLUTIONS)


def _dtype(call: ModuleCall) -> torch.dtype:
    return next((v.dtype for v in call.args if isinstance(v, Tensor) and v.is_floating_point()),
                torch.get_default_dtype())  # fmt: skip
