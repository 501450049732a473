"""Which operations share memory: a map that is changed in place must not be read later."""

import operator
from functools import lru_cache
from inspect import Signature, signature
from typing import Any

import torch
from torch import fx, nn

from stridenet.errors import StrideEliminationError
from stridenet.graph.nodes import place, tensors

VIEWS = {
    operator.getitem, torch.flatten, torch.permute, torch.transpose, torch.split, torch.chunk,
    "flatten", "view", "reshape", "permute", "transpose", "contiguous", "split", "chunk", "detach",
    torch.squeeze, torch.unsqueeze, "squeeze", "unsqueeze", "view_as", "expand", "narrow", "unflatten",
}  # fmt: skip
_IN_PLACE = {
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "iand", "ior", "ixor",
}  # fmt: skip


def refuse_late_readers(traced: fx.GraphModule) -> None:
    """A map that an operation changes in place must not be read later, save by way of its result."""
    nodes = list(traced.graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    memory: dict[fx.Node, fx.Node] = {}  # of each node: the first that has the same memory
    for node in nodes:
        sources = node.all_input_nodes
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        view = node.target in VIEWS or isinstance(module, (nn.Identity, nn.Flatten, nn.Dropout))
        changes = is_in_place(node, module)
        memory[node] = memory[sources[0]] if sources and (view or changes) else node
        if not sources or not changes:
            continue
        for other in nodes[: order[node]]:
            late = [user for user in other.users if order[user] > order[node]]
            if late and memory.get(other) is memory[node] and tensors(other.meta["value"]):
                raise StrideEliminationError(
                    f"{place(traced, node)} changes {place(traced, sources[0])} in place, which "
                    f"{place(traced, late[0])} reads later; write it out of place (x = F.relu(x))"
                )


def is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether an operation changes what it is given first; module: its own, if it is one."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    if name in _IN_PLACE or (name.endswith("_") and name[-2:] != "__"):
        return True
    known = _signature(node.target)
    try:
        given = known.bind(*node.args, **node.kwargs) if known is not None else None
    except TypeError:
        return False
    return given is not None and given.arguments.get("inplace") is True


@lru_cache(maxsize=1024)
def _signature(function: Any) -> Signature | None:
    """That of a function if it has an option to work in place: reading it takes a millisecond."""
    try:
        known = signature(function)
    except (TypeError, ValueError):
        return None
    return known if "inplace" in known.parameters else None
