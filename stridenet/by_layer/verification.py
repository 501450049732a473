"""Is a converted network the model that it was made from? Every number, setting, call and output."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from stridenet.by_layer.check import (
    APART,
    Inputs,
    NetworkComparison,
    as_inputs,
    compare,
    small_reports,
)
from stridenet.by_layer.exchange import exchanged
from stridenet.by_layer.modules import Exchanged, UnitStrideForward, UnitStrideLayer, class_before
from stridenet.checking.noise import add_noise
from stridenet.checking.reports import LayerReport, VerificationReport, compared, failed
from stridenet.checking.running import finite, undisturbed
from stridenet.copies import copied, unwrapped
from stridenet.errors import StrideEliminationError

APART_IN_FLOAT64 = 1e-5  # of the largest output; a forward may compute in float32 within


def verify_layers(model: nn.Module, same: nn.Module, example_inputs: Any) -> VerificationReport:
    """Compare what convert_layers made of a model with it, in float64 on the CPU.

    example_inputs: as of convert_layers. Without them each converted layer is run on a small random
        map, and the networks are not. Both are copies in evaluation mode, with the same noise on their
        parameters. A forward that does not run in float64 runs in the model's own type.
    """
    model, same = unwrapped(model), unwrapped(same)
    with undisturbed():
        own, twin = (copied(network).cpu().eval() for network in (model, same))
        made = converted_like(twin, own)
        reports = [*_differing_settings(made, twin), *_differing_numbers(made, twin)]
        if example_inputs is None:
            reports += small_reports(own, twin)
            return VerificationReport(tuple(reports), 0.0)
        found, allowed = _run_both(own, twin, made, as_inputs(example_inputs))
        bound = found.allowed_difference(allowed)
        numbers = (found.largest, found.difference, found.difference / bound)
        passed = found.difference <= bound
        outputs = LayerReport("(outputs)", type(model).__name__, *numbers, passed)
        return VerificationReport((*reports, *found.reports, outputs), found.difference)


def converted_like(same: nn.Module, model: nn.Module) -> nn.Module:
    """Return a copy of a model in which the same modules are converted as in `same`."""
    names = [name for name, module in same.named_modules() if isinstance(module, Exchanged)]
    missing = set(names) - {name for name, _ in model.named_modules()}
    if missing:
        raise StrideEliminationError(
            f"{min(missing)} is converted, but this model has no such module: give the model that was "
            "converted"
        )
    made = exchanged(model, only=names)
    known = dict(same.named_modules())
    for name, module in made.named_modules():
        if isinstance(module, UnitStrideForward):
            module.unit_stride_calls = dict(known[name].unit_stride_calls)
        elif isinstance(module, UnitStrideLayer) and hasattr(module, "depthwise"):
            module.depthwise = known[name].depthwise
    return made


def _run_both(
    own: nn.Module, twin: nn.Module, made: nn.Module, inputs: Inputs
) -> tuple[NetworkComparison, float]:
    """Compare both networks in the first type, with the most noise, that gives finite numbers.

    Returns the comparison, and the allowed difference as a share of the largest output.
    """
    for kind in ("full", "gentle", None):
        noisy, changed = copied(own), copied(twin)
        if kind is not None:
            add_noise(noisy, kind)
            _add_difference(changed, converted_like(twin, noisy), made)
        for dtype, allowed in ((torch.float64, APART_IN_FLOAT64), (None, APART)):
            networks = [copied(network) for network in (noisy, changed)]
            cast = _cast(inputs, dtype)
            if dtype is not None:
                networks = [network.to(dtype) for network in networks]
            with suppress(Exception):  # the user's forward may raise anything
                outputs = copied(networks[0])(*cast[0], **cast[1])
                if kind is None or finite(outputs):
                    return compare(networks[0], networks[1], cast), allowed
    args, kwargs = _cast(inputs, None)
    own(*args, **kwargs)  # raises what the model raises
    raise StrideEliminationError("the model ran at its second call only: give other example_inputs")


def _cast(inputs: Inputs, dtype: torch.dtype | None) -> Inputs:
    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().cpu()
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value

    result: Inputs = torch.utils._pytree.tree_map(cast, inputs)
    return result


def _add_difference(twin: nn.Module, noisy: nn.Module, made: nn.Module) -> None:
    """Give a twin the noise that its model got: what noise has made of one that is made now."""
    before, after = (dict(_tensors(network)) for network in (made, noisy))
    own = [*twin.named_parameters(), *twin.named_buffers()]  # each once, whatever names it has
    for name, tensor in own:
        same = name in after and tensor.shape == after[name].shape
        if same and tensor.is_floating_point():
            tensor += after[name] - before[name]


# Numbers and settings -------------------------------------------------------------------------------


def _differing_numbers(made: nn.Module, twin: nn.Module) -> Iterator[LayerReport]:
    """Report every parameter and buffer that differs from that of a network converted now."""
    expected, obtained = (dict(_tensors(network)) for network in (made, twin))
    for name in sorted(expected.keys() ^ obtained.keys()):
        which = "is missing" if name in expected else "is not of the model"
        yield failed(name, f"the tensor {which}")
    for name in expected.keys() & obtained.keys():
        a, b = expected[name], obtained[name]
        if a.shape != b.shape or not torch.equal(a.to(b.dtype), b):
            if a.shape == b.shape and (a.is_floating_point() or a.is_complex()):
                yield compared(name, "its numbers", a, b, torch.zeros_like(a.abs()))
            else:
                yield failed(name, f"its numbers are not the model's, of shape {tuple(b.shape)}")


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)


_SETTINGS = (bool, int, float, str, bytes, tuple, type(None), torch.dtype)


def _differing_settings(made: nn.Module, twin: nn.Module) -> Iterator[LayerReport]:
    """Report every module whose class, or a setting of it, differs from that of one converted now."""
    expected, obtained = (
        dict(network.named_modules(remove_duplicate=False)) for network in (made, twin)
    )
    for name in sorted(expected.keys() ^ obtained.keys()):
        which = "is missing" if name in expected else "is not in the model"
        yield failed(name, f"the module {which}")
    for name in expected.keys() & obtained.keys():
        a, b = expected[name], obtained[name]
        if class_before(a) is not class_before(b):
            yield failed(name or "(model)", f"is a {type(b).__name__}, not a {type(a).__name__}")
            continue
        for key, value in vars(a).items():
            if not isinstance(value, _SETTINGS) or key == "training" or key not in vars(b):
                continue
            if vars(b)[key] is not value and vars(b)[key] != value:
                what = f"{key}={vars(b)[key]!r}, not {value!r}"
                yield failed(name or "(model)", what)
