"""A network's operations in order, and the size of every feature map between them.

torch.fx gives the operations under the modules' own names; running them on meta tensors gives the
sizes of a real forward pass, without its weights or its arithmetic.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

Size = tuple[int, ...]


class StrideEliminationError(ValueError):
    """The network, or an input, that has no unit-stride form here; says where and what would help."""


class _Sizes(fx.Interpreter):
    """Runs a traced network on meta tensors and leaves each result's size (without batch) in
    node.meta["size"]: real shapes, no weights and no arithmetic."""

    BATCH = 2

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            sizes = " and ".join(written(i.meta.get("size", ())) for i in n.all_input_nodes)
            reason = str(error).splitlines()[0]
            raise StrideEliminationError(
                f"{place(self.module, n)} on a map {sizes}: {reason}"
            ) from error
        if isinstance(result, Tensor):
            if result.ndim == 0 or result.shape[0] != self.BATCH:
                raise StrideEliminationError(
                    f"{place(self.module, n)} mixes the images of a batch; every operation must keep "
                    "dimension 0 (torch.flatten(x, 1), not torch.flatten(x))"
                )
            n.meta["size"] = tuple(result.shape[1:])
        return result

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> Any:
        module = cast(nn.Module, self.fetch_attr(target))
        state = chain(module.named_parameters(), module.named_buffers())
        return torch.func.functional_call(
            module, {name: tensor.to("meta") for name, tensor in state}, args, kwargs
        )


def trace(model: nn.Module, input_size: Size) -> fx.GraphModule:
    """The model's operations in order, each with the size of its result."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    for name, module in model.named_modules():
        if any(getattr(module, kind) for kind in hooks):
            raise StrideEliminationError(
                f"{name or 'the model'} ({type(module).__name__}) has hooks, which a twin could not "
                "keep; remove them first (torch.nn.utils.remove_weight_norm and the like)"
            )
    tracer = fx.Tracer()
    root = nn.Sequential(model) if tracer.is_leaf_module(model, "") else model
    try:
        graph = tracer.trace(root)
    except Exception as error:  # tracing runs the user's forward, which may raise anything
        raise StrideEliminationError(
            f"{type(model).__name__} cannot be traced by torch.fx ({str(error).splitlines()[0]}); its "
            "forward must not depend on values or sizes of tensors"
        ) from error
    traced = fx.GraphModule(root, graph)
    traced.graph.eliminate_dead_code()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    images = torch.empty(_Sizes.BATCH, *input_size, dtype=dtype, device="meta")
    _require_chain(traced)
    sizes = _Sizes(traced)
    sizes.extra_traceback = False  # our errors name the place themselves
    sizes.run(images)
    return traced


def checked_size(input_size: Sequence[int]) -> Size:
    """The size of one image (channels, height, width); raises StrideEliminationError."""
    size = tuple(input_size) if isinstance(input_size, Sequence) else ()
    if not size or not all(isinstance(extent, int) and extent > 0 for extent in size):
        raise StrideEliminationError(
            f"input_size={input_size!r}: give the positive sizes of one image, as in (1, 28, 28)"
        )
    return size


def _require_chain(traced: fx.GraphModule) -> None:
    inputs = [node.name for node in traced.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise StrideEliminationError(f"the model has the inputs {inputs}; it must have exactly one")
    for node in traced.graph.nodes:
        if node.op == "get_attr" or len(node.all_input_nodes) > 1 or len(node.users) > 1:
            raise StrideEliminationError(
                f"{place(traced, node)} branches, merges or reads a tensor of the model: only chains "
                "of layers are supported, where each reads just the one before (instead of "
                "x.view(x.size(0), -1), write torch.flatten(x, 1))"
            )


def operations(traced: fx.GraphModule) -> list[fx.Node]:
    """What a traced network does, in order; a plan has a layer for each."""
    return [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]


def operation_of(traced: nn.Module, node: fx.Node) -> Any:
    """What a node does, as the rules know it: a module's type, a function, or a method's name."""
    if node.op == "call_module":
        return type(traced.get_submodule(str(node.target)))
    return node.target


def place(traced: nn.Module, node: fx.Node) -> str:
    """A node as errors name it: "features.0 (Conv2d)"."""
    operation = operation_of(traced, node)
    name = node.target if node.op == "call_module" else node.name
    return f"{name} ({getattr(operation, '__name__', operation)})"


def written(size: Sequence[int]) -> str:
    """(1, 28, 28) as 1x28x28."""
    return "x".join(map(str, size))
