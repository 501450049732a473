"""Prepares a network for its export to ONNX, and knows what its file reads and may have."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stridenet import host
from stridenet.by_layer.converted import is_converted
from stridenet.by_layer.exchange import planned_steps
from stridenet.by_layer.modules import UnitStrideForward, UnitStridePooling
from stridenet.copies import copied, unwrapped
from stridenet.errors import InputError, StrideEliminationError
from stridenet.onnx.check import Images
from stridenet.onnx.layout import layout_of
from stridenet.onnx.strides import POOLING_OPERATORS, StridedNode
from stridenet.plan import EliminationPlan
from stridenet.sizes import Size, checked_sizes, format_size
from stridenet.twin import UnitStrideNetwork


@dataclass(frozen=True)
class ExportableNetwork:
    """Holds a network that is ready for export: on the CPU, in evaluation mode, with known inputs."""

    network: nn.Module  # takes ordinary images
    names: tuple[str, ...]  # of its inputs
    sizes: tuple[Size, ...]  # of one image of each input
    plan: EliminationPlan | None  # of a twin
    layout: dict[str, Any] | None  # describes the host's rearrangement, if there is one
    free: bool = False  # whether the file takes any spatial size, as far as the network does

    @property
    def exported(self) -> nn.Module:
        """Return what the file computes: the whole network, or the part behind the rearrangement."""
        if self.layout and isinstance(self.network, UnitStrideNetwork):
            return self.network.network
        return self.network

    def feed(self, images: Images) -> dict[str, np.ndarray]:
        """Return what the file's inputs get for these images: rearranged, if the host does that."""
        arrays = tuple(tensor.numpy() for tensor in images)
        if self.layout:
            rearranged = host.rearrange(self.layout, *arrays)
            arrays = rearranged if isinstance(rearranged, tuple) else (rearranged,)
        return dict(zip(self.names, arrays, strict=True))


def sizes_of(example_inputs: Any, input_size: Any) -> tuple[Size, ...]:
    """Return the size of one image of each input. Raises InputError for other example inputs."""
    given = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    valid = isinstance(given, (tuple, list)) and given and all(isinstance(x, Tensor) for x in given)
    if not valid or input_size is not None:
        raise InputError(
            f"example_inputs is a {type(example_inputs).__name__}: give a tensor, or a tuple of "
            "tensors (an ONNX file has positional inputs), and no input_size beside it"
        )
    if any(x.ndim < 2 for x in given):
        raise InputError("example_inputs must have a batch first, and at least one axis behind it")
    return tuple(tuple(x.shape[1:]) for x in given)


def prepare_network(
    network: nn.Module, input_size: Sequence[Any] | None, rearrange: str, free: bool
) -> ExportableNetwork:
    """Return a copy of the network that is ready for export.

    input_size, rearrange: as for export_onnx. free: whether the file is to take any spatial size.

    Raises InputError where these do not fit the network, or it is not of float32.
    """
    network = unwrapped(network)
    _require_float32(network)
    sizes = None if input_size is None else checked_sizes(input_size)
    plan = layout = None
    if isinstance(network, UnitStrideNetwork):
        plan = network.plan
        made_for = tuple(each.size for each in plan.inputs)
        names = tuple(each.name for each in plan.inputs)
        if sizes not in (None, made_for):
            raise InputError(
                f"input_size={input_size}, but this twin was made for "
                f"{' and '.join(map(format_size, made_for))}; leave input_size out"
            )
        sizes = made_for
        layout = describe_layout(plan) if rearrange == "host" else None
    elif rearrange == "host":
        raise InputError(
            f"rearrange=host, but a {type(network).__name__} takes ordinary images; only the twin "
            "that eliminate_stride returns can leave a rearrangement to the host"
        )
    elif sizes is None:
        raise InputError("input_size is missing: give the size of one image, as in (1, 28, 28)")
    else:
        names = _parameter_names(network, len(sizes))
    network = copied(network).to("cpu").eval()
    return ExportableNetwork(network, names, sizes, plan, layout, free and plan is None)


def may_have_stride(exportable: ExportableNetwork) -> Callable[[StridedNode], bool]:
    """Return a function that tells of a node with a stride whether the file may have it.

    A twin's file may have none, a strided network's all, and that of a network converted by layers
    those of the kinds of layers that convert_layers was not to convert.
    """
    network = exportable.network
    if exportable.plan is not None:
        return lambda node: False
    if not is_converted(network):
        return lambda node: True
    kept = [step.mixin for step in planned_steps(network, None, pooling=True)]
    calls = [m for m in network.modules() if isinstance(m, UnitStrideForward)]
    pools_go = any(isinstance(m, UnitStridePooling) for m in network.modules()) or any(
        m.unit_stride_calls["pooling"] for m in calls
    )
    pooling_stays = UnitStridePooling in kept or not pools_go
    others_stay = any(mixin is not UnitStridePooling for mixin in kept)

    return lambda node: pooling_stays if node.operator in POOLING_OPERATORS else others_stay


def _require_float32(network: nn.Module) -> None:
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_meta:
            raise StrideEliminationError(f"{name} is on the meta device: load the weights first")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(
                f"{name} is {str(tensor.dtype).removeprefix('torch.')}, for which onnxruntime has no "
                "convolution on the CPU, so that the file could not be checked; export copy.deepcopy("
                "network).float(), and let the tool for the device convert the file"
            )


def _parameter_names(network: nn.Module, count: int) -> tuple[str, ...]:
    """Return what the network's forward calls its first `count` inputs."""
    names: list[str] = []
    for parameter in inspect.signature(network.forward).parameters.values():
        if parameter.kind == parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{number}" for number in range(len(names), count)]
        else:
            names.append(parameter.name)
    return tuple(names[:count])


def describe_layout(plan: EliminationPlan) -> dict[str, Any]:
    """Describe how a twin's inputs are made: in numbers, which stridenet.host reads, and in words."""
    return layout_of(
        {
            "name": each.name,
            "dtype": "float32",
            "image_size": list(each.size),
            "padding": [list(pair) for pair in each.padding],
            "factor": list(each.map.factor),
            "phase_form_size": list(each.map.unit_stride_size),
        }
        for each in plan.inputs
    )
