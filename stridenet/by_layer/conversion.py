"""From a model to the same model whose strided layers have unit strides (Theorem 1), at any size."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stridenet.by_layer.check import check_layers, check_network
from stridenet.by_layer.converted import convolutions, layer_origins
from stridenet.by_layer.exchange import exchanged, look_after_calls
from stridenet.by_layer.modules import (
    Exchanged,
    Expand,
    UnitStrideForward,
    UnitStrideLayer,
    UnitStridePooling,
    describe_original,
    exchange_back,
)
from stridenet.copies import copied, unwrapped
from stridenet.errors import StrideEliminationError
from stridenet.options import Depthwise
from stridenet.sizes import format_size

Model = TypeVar("Model", bound=nn.Module)


def convert_layers(
    model: Model,
    only: Sequence[str] | None = None,
    pooling: bool = False,
    example_inputs: Any = None,
    inplace: bool = False,
    depthwise: Depthwise = "phases",
    check: bool = True,
) -> Model:
    """Return the same model with unit strides at each of its strided convolutions (Theorem 1).

    In a copy, each strided convolution, transposed or not, becomes padding, a rearrangement and a
    convolution of stride one; nothing is traced. The class, names, arguments and outputs of the model
    stay, also those of the layers, whose class becomes a subclass: isinstance holds. Their weights and
    sizes are then those of the unit-stride filter; the original sizes are in `layer.strided`. Strided
    calls of torch's functions in a forward (F.conv2d) are computed in the same way when they come.

    only: names of the layers to convert; by default all. Modules whose forward calls such functions
        are named like layers.
    pooling: maximum, average, power-average and adaptive pooling, too, but for adaptive pooling
        whose windows differ in size.
    example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments, on which the
        check runs model and converted model; without it, each layer is checked on a small random map.
    inplace: convert the model itself, not a copy. Nothing of it is changed if it is refused.
    depthwise: how a convolution of one channel a group is computed: "phases" convolves each phase by
        itself and adds up, for which there are fast kernels; "grouped" has s² channels a group. Both
        have the same weights.
    check: see, in evaluation mode and on copies that share the parameters, that each converted call is
        equal to the strided one up to rounding.

    Weights set before each forward (the old weight_norm and spectral_norm, pruning) are taken as they
    are; parametrized ones stay so. Raises StrideEliminationError, naming the layer, for what cannot
    be converted: indices of pooling, a forward replaced on one object, lazy layers, one parameter in
    layers that need different ones; TorchScript and quantized modules.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.ReLU())
    >>> convert_layers(model)[0]
    UnitStrideConv2d(12, 8, kernel_size=(4, 4), stride=(1, 1))
    """
    if not check:
        return exchanged(model, only, pooling, inplace, depthwise)
    before: Any = unwrapped(model)
    same, hidden = exchanged(before, only, pooling, depthwise=depthwise), False
    if example_inputs is None:
        check_layers(before, same)
    else:
        left = check_network(before, same, example_inputs, pooling)
        hidden = bool(left) and only is None
        if hidden:  # no code tells of these calls: the whole forward is looked after
            look_after_calls(same, pooling, depthwise)
            _require_none(check_network(before, same, example_inputs, pooling))
    if not inplace:
        return same
    exchanged(model, only, pooling, True, depthwise)  # only now that a copy has passed
    if hidden:
        look_after_calls(before, pooling, depthwise)
    return model


def _require_none(left: list[str]) -> None:
    if left:
        raise StrideEliminationError(
            f"strides are left in {', '.join(dict.fromkeys(left))}, which convert_layers cannot reach; "
            "check=False takes the rest"
        )


# Weights of the strided network, and the way back ----------------------------------------------------


def convert_state_dict(model: nn.Module, strided: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state_dict of the strided network to one of `model`, which convert_layers made of it.

    model: the converted network; it is left as it is. Raises StrideEliminationError for a tensor that
    fits neither the strided layer nor the converted one.
    """
    state = dict(strided)
    for name, layer in convolutions(model).items():
        for held, expand in (("weight", layer.strided.expand), ("bias", layer.strided.expand_bias)):
            key = f"{name}.{held}" if name else held
            if key in state and not parametrize.is_parametrized(layer, held):
                state[key] = _fitted(key, state[key], getattr(layer, held), expand)
    return state


def _fitted(key: str, given: Tensor, wanted: Tensor, expand: Any) -> Tensor:
    try:
        result: Tensor = expand(given)
    except Exception:  # of another size than the layer's
        result = given
    if result.shape != wanted.shape:
        raise StrideEliminationError(
            f"{key} is {format_size(given.shape)} in the state_dict, which becomes "
            f"{format_size(result.shape)}, but this layer's is {format_size(wanted.shape)}: give the "
            "state_dict of the strided network that was converted"
        )
    return result


@torch.no_grad()
def fold_layers_back(model: Model) -> Model:
    """Return a copy of a converted model with strided layers; each number is the mean of its copies.

    What stands at structural zeros is lost. Weights that are as they were made come back to the bit.
    """
    strided = copied(model)
    done: set[int] = set()
    for module in list(strided.modules()):
        if not isinstance(module, Exchanged):
            continue
        if isinstance(module, UnitStrideForward):
            del module.unit_stride_calls
        elif isinstance(module, UnitStrideLayer):
            if not isinstance(module, UnitStridePooling):
                _fold(module, done)
            describe_original(module)
        exchange_back(module)
    return strided


def _fold(layer: Any, done: set[int]) -> None:
    for name, origin in layer_origins(layer).items():
        tensor = getattr(layer, name)
        if parametrize.is_parametrized(layer, name):
            parametrizations = layer.parametrizations[name]
            if isinstance(parametrizations[-1], Expand):
                del parametrizations[-1]
        elif id(tensor) not in done:
            tensor.data = origin.fold(tensor)
            tensor.grad = None
            done.add(id(tensor))
