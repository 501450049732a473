"""What of a network convert_layers has converted, and where the numbers of its layers come from."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stridenet.by_layer.modules import (
    Exchanged,
    Expand,
    StridedConvolution,
    UnitStrideLayer,
    UnitStridePooling,
)
from stridenet.origins import Origin


def converted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers of a model that convert_layers has converted, by name.

    Each has `strided`, the sizes of the original, and, if it has a filter, `tap_maps`: which strided
    tap stands where in it.
    """
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, UnitStrideLayer)}


def convolutions(model: nn.Module) -> dict[str, Any]:
    """Return the converted layers of a model that have a filter, by name."""
    layers = converted_layers(model)
    return {n: layer for n, layer in layers.items() if not isinstance(layer, UnitStridePooling)}


def is_converted(model: Any) -> bool:
    """Tell whether convert_layers has converted a module, or a module in it."""
    return isinstance(model, nn.Module) and any(isinstance(m, Exchanged) for m in model.modules())


def layer_origins(layer: Any) -> dict[str, Origin]:
    """Return where the numbers of a converted convolution's tensors come from, by the tensors' names.

    These are its filter and, if it is transposed, its bias.
    """
    was: StridedConvolution = layer.strided
    size = torch.Size(was.weight_size)
    found = {"weight": _origin("weight", size, was.expand)}
    if was.transposed and layer.bias is not None:
        found["bias"] = _origin("bias", torch.Size([was.out_channels]), was.expand_bias)
    return found


def _origin(name: str, size: torch.Size, expand: Callable[[Tensor], Tensor]) -> Origin:
    """Return where the numbers of an expanded tensor come from.

    A tensor whose numbers are 1, 2, 3, … is expanded, so that the result says it.
    """
    return Origin(name, size, expand(torch.arange(1, 1 + size.numel()).reshape(size)) - 1)


def network_origins(network: nn.Module) -> dict[str, Origin]:
    """Return the origin of each tensor that convert_layers has changed, by its name.

    Tensors that are computed from the strided ones (parametrized before) have none.
    """
    found = {}
    for path, layer in convolutions(network).items():
        for name, origin in layer_origins(layer).items():
            chain = getattr(layer, "parametrizations", {})
            if name not in chain or not isinstance(chain[name][-1], Expand):
                key = f"{path}.{name}" if path else name
                found[key] = replace(origin, source=key)
    return found
