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
    """The layers of a model that convert_layers has converted, by their names.

    Each has `strided`, the sizes of the original, and, if it has a filter, `tap_maps`: which strided
    tap stands where in it.
    """
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, UnitStrideLayer)}


def convolutions(model: nn.Module) -> dict[str, Any]:
    """Those of converted_layers that have a filter."""
    layers = converted_layers(model)
    return {n: layer for n, layer in layers.items() if not isinstance(layer, UnitStridePooling)}


def is_converted(model: Any) -> bool:
    """Whether a module is of convert_layers, or has such modules in it."""
    return isinstance(model, nn.Module) and any(isinstance(m, Exchanged) for m in model.modules())


def layer_origins(layer: Any) -> dict[str, Origin]:
    """Say where the numbers of a converted convolution's filter, and of a transposed one's bias, are
    from, by the tensor's name."""
    was: StridedConvolution = layer.strided
    size = torch.Size(was.weight_size)
    found = {"weight": _origin("weight", size, was.expand)}
    if was.transposed and layer.bias is not None:
        found["bias"] = _origin("bias", torch.Size([was.out_channels]), was.expand_bias)
    return found


def _origin(name: str, size: torch.Size, expand: Callable[[Tensor], Tensor]) -> Origin:
    """A tensor whose numbers are 1, 2, 3, … is expanded: its numbers say where they are from."""
    return Origin(name, size, expand(torch.arange(1, 1 + size.numel()).reshape(size)) - 1)


def network_origins(network: nn.Module) -> dict[str, Origin]:
    """Say it of each tensor that convert_layers has changed, by its name; not of those computed from
    the strided ones (parametrized before)."""
    found = {}
    for path, layer in convolutions(network).items():
        for name, origin in layer_origins(layer).items():
            chain = getattr(layer, "parametrizations", {})
            if name not in chain or not isinstance(chain[name][-1], Expand):
                key = f"{path}.{name}" if path else name
                found[key] = replace(origin, source=key)
    return found
