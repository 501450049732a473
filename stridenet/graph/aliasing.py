"""Which operations share memory, and who reads a map that was changed in place before."""

import operator
from functools import lru_cache
from inspect import Signature, signature
from typing import Any

import torch
from torch import Tensor, fx, nn

from stridenet.errors import StrideEliminationError
from stridenet.graph.nodes import describe_node, of_model, tensors

VIEWS = {
    operator.getitem, torch.flatten, torch.permute, torch.transpose, torch.split, torch.chunk,
    torch.swapaxes, torch.swapdims, torch.movedim, torch.moveaxis, torch.reshape, torch.unflatten,
    torch.unbind, torch.broadcast_to, torch.squeeze, torch.unsqueeze,
    "flatten", "view", "reshape", "permute", "transpose", "contiguous", "split", "chunk", "detach",
    "squeeze", "unsqueeze", "view_as", "reshape_as", "expand", "expand_as", "broadcast_to", "narrow",
    "unflatten", "swapaxes", "swapdims", "movedim", "moveaxis", "unbind", "select",
    "to", "type", "type_as", "float", "double", "half",  # of a tensor of that type: itself
}  # fmt: skip
IN_PLACE_OPERATORS = (
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "iand", "ior", "ixor",
)  # fmt: skip
_VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout)


def let_late_readers_follow(traced: fx.GraphModule) -> None:
    """Let nodes that read a map after an in-place operation changed it read that operation's result.

    A graph says who reads whose result, not which results share memory. After y = x.add_(1), whoever
    reads x later gets the changed numbers in the model; in the twin the operation may be out of place,
    and x would still have the old ones. So readers that come after the change are redirected to y. If
    a later reader has the memory by another way, through a view of x, or through what x is a view
    of, there is no node to redirect it to, as a part of it has changed: StrideEliminationError is
    raised.
    """
    nodes = list(traced.graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    memory: dict[fx.Node, fx.Node] = {}  # of each node: the first that has the same memory
    for node in nodes:
        sources = node.all_input_nodes
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        view = isinstance(module, _VIEW_MODULES) if module else node.target in VIEWS
        changes = is_in_place(node, module)
        memory[node] = memory[sources[0]] if sources and (view or changes) else node
        if not sources or not changes:
            continue
        for other in nodes[: order[node]]:
            late = [user for user in other.users if order[user] > order[node]]
            if not late or memory.get(other) is not memory[node]:
                continue
            if other is sources[0]:
                _redirect(other, node, late)
            elif tensors(other.meta["value"]) and not of_model(node):  # that is kept as it is
                changer, changed, reader, by_way = (
                    describe_node(traced, each) for each in (node, sources[0], late[0], other)
                )
                raise StrideEliminationError(
                    f"{changer} changes {changed} in place, which {reader} reads later by way of "
                    f"{by_way}; write it out of place (x = F.relu(x))"
                )


def _redirect(changed: fx.Node, result: fx.Node, late: list[fx.Node]) -> None:
    """Let these nodes read the result, where what was changed is a tensor at all."""
    if isinstance(changed.meta["value"], Tensor):
        for user in late:
            user.replace_input_with(changed, result)


def is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Tell whether an operation changes its first operand in place; module: the one called, if any."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    if name in IN_PLACE_OPERATORS or (name.endswith("_") and name[-2:] != "__"):
        return True
    known = _signature(node.target)
    try:
        given = known.bind(*node.args, **node.kwargs) if known is not None else None
    except TypeError:
        return False
    return given is not None and given.arguments.get("inplace") is True


@lru_cache(maxsize=1024)
def _signature(function: Any) -> Signature | None:
    """Return the signature of a function that has an option `inplace`; None for others.

    It is cached, as reading one takes a millisecond.
    """
    try:
        known = signature(function)
    except (TypeError, ValueError):
        return None
    return known if "inplace" in known.parameters else None
