"""This module finds where two passes through one forward differ."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from stridenet.graph.tracer import Tracer


class Difference(NamedTuple):
    """Describes a literal that is not the same in two graphs."""

    node: fx.Node | None
    mine: Any
    its: Any


def differences(one: Tracer, other: Tracer) -> Iterator[Difference]:
    """Yield the literals in which two graphs differ, each with its node in the first graph.

    Where graphs differ in more than literals, the last difference has a node of either and None
    twice; it has no node if one graph goes on where the other ends.
    """
    nodes, others = list(one.graph.nodes), list(other.graph.nodes)
    place = {node: index for both in (nodes, others) for index, node in enumerate(both)}
    for a, b in zip(nodes, others, strict=False):
        mine, its = _leaves(one, a, place), _leaves(other, b, place)
        if len(mine) != len(its) or mine[:1] != its[:1]:
            yield Difference(a if "where" in a.meta else b, None, None)
            return
        for x, y in zip(mine[1:], its[1:], strict=True):
            if type(x) is not type(y) or not _equal(x, y):
                yield Difference(a, x, y)
    if len(nodes) != len(others):
        yield Difference(None, len(nodes), len(others))


def _leaves(tracer: Tracer, node: fx.Node, place: dict[fx.Node, int]) -> list[Any]:
    """Return what a node does and all that it is given, with other nodes as their numbers."""
    found: list[Any] = [(node.op, node.target)]
    if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
        found.append(getattr(tracer.root, str(node.target)))  # a tensor that the forward made

    def add(leaf: Any) -> Any:
        found.append((place[leaf],) if isinstance(leaf, fx.Node) else leaf)
        return leaf

    fx.node.map_aggregate((node.args, node.kwargs), add)
    return found


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor):
        same = x.shape == y.shape and x.dtype == y.dtype and x.device == y.device
        return same and (x.is_meta or torch.equal(x, y))
    return bool(x == y) or (x != x and y != y)
