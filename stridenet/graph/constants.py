"""Tensors that a forward makes from numbers alone are constants: they become tensors of the network.

So rules see them as they see the model's own tensors. What follows the input's dtype, device or number
of images is made anew at each run.
"""

import operator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from stridenet.graph.aliasing import is_in_place
from stridenet.graph.meta import multiples
from stridenet.graph.nodes import tensors

_RANDOM = ("rand", "normal", "bernoulli", "multinomial", "dropout", "empty", "poisson")
MOST_KNOWN = 1_000_000  # numbers of a tensor that is computed while tracing


def fold_constants(graph: fx.Graph, root: nn.Module) -> None:
    """Exchange nodes whose numbers are known, and follow from nothing, for constants of `root`."""
    pure: dict[fx.Node, None] = {}
    for node in graph.nodes:
        made = node.op in ("call_function", "call_method")
        if made and all(source in pure for source in node.all_input_nodes) and _is_known(node):
            pure[node] = None
    order = {node: index for index, node in enumerate(graph.nodes)}
    changes = [order[n] for n in pure if n.target is operator.setitem or is_in_place(n, None)]
    last = max(changes, default=-1)
    for node in pure:
        users = [user for user in node.users if user not in pure]
        if users and min(order[user] for user in users) > last:
            _exchange(graph, root, node, users)
    for node in reversed(pure):
        if not node.users and all(order[u] > last for n in pure for u in n.users if u not in pure):
            graph.erase_node(node)


def known_value(node: fx.Node, value: Any, batch: int) -> Any:
    """Return the numbers that a node gives, where they follow from known ones; else None.

    batch: the number of images while tracing; what follows from it is not known.
    """
    inputs = node.all_input_nodes
    random = any(word in str(getattr(node.target, "__name__", node.target)) for word in _RANDOM)
    few = sum(t.numel() for t in tensors(value)) <= MOST_KNOWN
    if random or not few or any(n.meta.get("known") is None for n in inputs):
        return None
    if multiples((node.args, node.kwargs), batch):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["known"])
    with torch._C.DisableTorchFunction(), torch.no_grad():
        try:
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return cast(Any, node.target)(*args, **kwargs)
        except Exception:  # then they are not known
            return None


def _is_known(node: fx.Node) -> bool:
    return isinstance(node.meta.get("known"), Tensor) or node.target is operator.setitem


def _exchange(graph: fx.Graph, root: nn.Module, node: fx.Node, users: list[fx.Node]) -> None:
    name = f"_tensor_constant_of_{node.name}"
    setattr(root, name, node.meta["known"].detach().clone())
    with graph.inserting_before(node):
        constant = graph.get_attr(name)
    constant.meta["value"] = torch.empty_like(node.meta["value"])
    for user in users:
        user.replace_input_with(node, constant)
