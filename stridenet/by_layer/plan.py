"""What convert_layers would make of a model, layer by layer: filters; with an input, maps and cost."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from stridenet.by_layer.calls import POOLING_CALLS, numbers
from stridenet.by_layer.check import as_inputs, run
from stridenet.by_layer.converted import converted_layers
from stridenet.by_layer.exchange import exchanged, planned_steps
from stridenet.by_layer.modules import StridedConvolution, StridedPooling, UnitStrideForward
from stridenet.checking.running import undisturbed
from stridenet.copies import copied, unwrapped
from stridenet.layers_plan import ConvertedLayer, LayersPlan
from stridenet.sizes import NONE, Counts

__all__ = ["ConvertedLayer", "LayersPlan", "plan_layers"]


def plan_layers(
    model: nn.Module,
    only: Sequence[str] | None = None,
    pooling: bool = False,
    example_inputs: Any = None,
) -> LayersPlan:
    """Plan what convert_layers would make of `model`: each layer's filters, and all parameters.

    example_inputs: as of convert_layers; with them a copy of the model runs once, and the plan has maps
        and multiply-adds too, and the strided calls of functions in the model's forward.

    Raises StrideEliminationError for what cannot be converted.

    >>> print(plan_layers(nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3))))
    layer operation              filter
        0    Conv2d 8x3x7x7 -> 8x12x4x4
    strided layers: 1; parameters 1,184 -> 1,544 (360 structural zeros)
    """
    model = unwrapped(model)
    if example_inputs is None:
        same = _without_numbers(model, only, pooling)
        found = [_planned(n, layer.strided) for n, layer in converted_layers(same).items()]
    else:
        with undisturbed():
            same = exchanged(copied(model).eval(), only, pooling, inplace=True)
            try:
                found = _run(same, example_inputs)
            except Exception:
                # Inputs that do not fit are refused in the model's words, and not in the copy's sizes.
                run(copied(model).eval(), as_inputs(example_inputs))
                raise
    both = (sum(p.numel() for p in network.parameters()) for network in (model, same))
    return LayersPlan(tuple(found), Counts(*both), example_inputs is not None)


def _without_numbers(model: nn.Module, only: Sequence[str] | None, pooling: bool) -> nn.Module:
    """Return the converted model on the meta device, where tensors have sizes and no numbers."""
    planned_steps(model, only, pooling)  # refuses before anything is copied
    meta = copied(model, share_tensors=True).to("meta")
    return exchanged(meta, only, pooling, inplace=True)


def _planned(name: str, was: Any) -> ConvertedLayer:
    """Plan one layer or call; was: its description before the conversion."""
    if isinstance(was, StridedPooling):
        return ConvertedLayer(name, was.operation)
    size = was.weight_size
    wide = tuple(was.expand(torch.empty(size, device="meta")).shape)
    taps = prod(int((tap_map.taps >= 0).sum()) for tap_map in was.tap_maps)
    zeros = prod(wide) - prod(size[:2]) * taps
    return ConvertedLayer(name, was.operation, size, wide, zeros)


def _run(same: nn.Module, example_inputs: Any) -> list[ConvertedLayer]:
    """Run the model, and return its layers in order, then its calls in the order in which they came."""
    layers = converted_layers(same)
    found = {name: _planned(name, layer.strided) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.register_forward_hook(_noting(found, name))
    for name, module in same.named_modules():
        if isinstance(module, UnitStrideForward):
            observe = {"observe": _noting_calls(found, name)}
            module.unit_stride_calls = {**module.unit_stride_calls, **observe}
    run(same, as_inputs(example_inputs))
    return list(found.values())


def _noting(found: dict[str, ConvertedLayer], name: str) -> Callable[..., None]:
    def note(layer: Any, args: tuple, result: Tensor) -> None:
        found[name] = _with_call(found[name], layer.strided, args[0], result)

    return note


def _noting_calls(found: dict[str, ConvertedLayer], path: str) -> Callable[..., None]:
    """Note calls of functions: a row for each kind of call in the forward of one module."""

    def note(function: Any, args: Any, kwargs: Any, given: dict[str, Any], result: Tensor) -> None:
        was = _strided_call(function, given)
        name = f"{path}: {function.__name__}" if path else function.__name__
        each = _planned(name, was)
        key = f"{name} {was}"
        found[key] = _with_call(found.get(key, each), was, given["input"], result)

    return note


def _strided_call(function: Any, given: dict[str, Any]) -> StridedConvolution | StridedPooling:
    """Describe a call of a function as if a layer had made it."""
    if function in POOLING_CALLS:
        options = tuple((n, v) for n, v in given.items() if not isinstance(v, Tensor))
        return StridedPooling(function.__name__, options)
    first, second, *kernel = given["weight"].shape
    axes, groups = len(kernel), given.get("groups", 1)
    transposed = bool(given.get("transposed")) or "transpose" in function.__name__
    padding = given.get("padding", 0)
    return StridedConvolution(
        operation=function.__name__,
        in_channels=first if transposed else second * groups,
        out_channels=second * groups if transposed else first,
        kernel_size=tuple(kernel),
        stride=numbers(given["stride"], axes),
        padding=padding if isinstance(padding, str) else numbers(padding, axes),
        dilation=numbers(given.get("dilation", 1), axes),
        transposed=transposed,
        output_padding=numbers(given.get("output_padding", 0), axes),
        groups=groups,
        padding_mode="zeros",
    )


def _with_call(each: ConvertedLayer, was: Any, x: Tensor, result: Tensor) -> ConvertedLayer:
    """Return the row with one more call added, counted for one image."""
    axes = len(each.strided_filter) - 2 if each.strided_filter else x.ndim - 2
    read, gave = (tuple(t.shape[-axes - 1 :]) for t in (x, result))
    each = replace(each, maps=(*each.maps, (read, gave)))
    if not each.strided_filter:
        return each
    positions = blocks = prod(gave[1:])
    if was.transposed:
        positions = prod(read[1:])
        blocks = prod(-(-size // step) for size, step in zip(gave[1:], was.stride, strict=True))
    before, weights = each.multiply_adds or NONE, each.weights
    strided = before.strided + weights.strided * positions
    unit_stride = before.unit_stride + weights.unit_stride * blocks
    return replace(each, multiply_adds=Counts(strided, unit_stride))
