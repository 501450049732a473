"""A network's operations in order, and the size of every feature map between them.

torch.fx gives the operations under the modules' own names; running them on meta tensors gives the
sizes of a real forward pass, without its weights or its arithmetic.
"""

import operator
from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

Size = tuple[int, ...]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class StrideEliminationError(ValueError):
    """The network, or an input, that has no unit-stride form here; says where and what would help."""


class _Sizes(fx.Interpreter):
    """Runs a traced network on meta tensors and leaves each result's size (without batch) in
    node.meta["size"]: real shapes, no weights and no arithmetic."""

    BATCH = 2

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            return None
        try:
            result = super().run_node(n)
        except Exception as error:  # what an operation raises on a map that does not fit it varies
            sizes = " and ".join(written(i.meta["size"]) for i in n.all_input_nodes)
            raise StrideEliminationError(
                f"{place(self.module, n)} on a map {sizes}: {_first_line(error)}"
            ) from error
        if not isinstance(result, Tensor):
            kind = type(result).__name__
            raise StrideEliminationError(f"{place(self.module, n)} gives a {kind}, not one tensor")
        if result.ndim == 0 or result.shape[0] != self.BATCH:
            raise StrideEliminationError(
                f"{place(self.module, n)} mixes the images of a batch; every operation must keep "
                "dimension 0 (torch.flatten(x, 1), not torch.flatten(x))"
            )
        n.meta["size"] = tuple(result.shape[1:])
        if 0 in n.meta["size"]:
            size = written(n.meta["size"])
            raise StrideEliminationError(f"{place(self.module, n)} gives an empty map {size}")
        return result

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> Any:
        module = cast(nn.Module, self.fetch_attr(target))
        state = chain(module.named_parameters(), module.named_buffers())
        return torch.func.functional_call(
            module, {name: tensor.to("meta") for name, tensor in state}, args, kwargs
        )


class _Tracer(fx.Tracer):
    """Keeps subclasses of torch's layers whole, so that errors can name them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, (*CONVOLUTIONS, nn.Linear))
        return whole or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, input_size: Size) -> fx.GraphModule:
    """The model's operations in order, each with the size of its result in node.meta["size"].

    Raises StrideEliminationError unless they are a chain from one input to one output.
    """
    _require_ordinary(model)
    tracer = _Tracer()
    root = nn.Sequential(model) if tracer.is_leaf_module(model, "") else model
    try:
        graph = tracer.trace(root)
    except Exception as error:  # tracing runs the user's forward, which may raise anything
        raise StrideEliminationError(
            f"{type(model).__name__} cannot be traced by torch.fx ({_first_line(error)}); its "
            "forward must not depend on values or sizes of tensors"
        ) from error
    traced = fx.GraphModule(root, graph)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    images = torch.empty(_Sizes.BATCH, *input_size, dtype=dtype, device="meta")
    _require_chain(traced)
    sizes = _Sizes(traced)
    sizes.extra_traceback = False  # our errors name the place themselves
    sizes.run(images)
    return traced


def _require_ordinary(model: nn.Module) -> None:
    """Refuse what tracing would lose without a word."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    owners: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        named = f"{name or 'the model'} ({type(module).__name__})"
        if any(getattr(module, kind) for kind in hooks):
            raise StrideEliminationError(
                f"{named} has hooks, which a twin could not keep: remove them (those of pruning or "
                "weight_norm too; a lazy layer loses its own when it is run once)"
            )
        if "forward" in vars(module):
            raise StrideEliminationError(f"the forward of {named} was replaced on this one object")
        for parameter in module.parameters(recurse=False):
            if owners.setdefault(parameter, named) != named:
                raise StrideEliminationError(
                    f"{owners[parameter]} and {named} share a weight, which their twins could not"
                )


def checked_size(input_size: Sequence[int]) -> Size:
    """The size of one image (channels, height, width); raises StrideEliminationError."""
    try:
        size = tuple(map(operator.index, input_size))
    except TypeError:
        size = ()
    if not size or min(size) < 1 or not isinstance(input_size, Sequence):
        raise StrideEliminationError(
            f"input_size={input_size!r}: give the positive sizes of one image, as in (1, 28, 28)"
        )
    return size


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _require_chain(traced: fx.GraphModule) -> None:
    inputs = [node.name for node in traced.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise StrideEliminationError(f"the model has the inputs {inputs}; it must have exactly one")
    *before, output = traced.graph.nodes
    if not isinstance(output.args[0], fx.Node):
        raise StrideEliminationError("the model must return one tensor")
    for node in before:
        if node.op == "get_attr" or len(node.all_input_nodes) > 1 or len(node.users) != 1:
            raise StrideEliminationError(
                f"{place(traced, node)} branches, merges, leads nowhere or reads a tensor of the "
                "model: only chains are supported, where each operation reads the result of the one "
                "before (write x = F.relu(x) even in place, and torch.flatten(x, 1) instead of "
                "x.view(x.size(0), -1))"
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
