"""Does a forward change its own state, and does its result depend on that?

A twin has the layers of a forward, not its memory: what a forward leaves for the next one is refused
by name. What it only keeps for others to look at (features, shapes, cached grids) does no harm.
"""

import operator
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from stridenet.errors import StrideEliminationError
from stridenet.graph.aliasing import VIEWS, is_in_place
from stridenet.graph.differences import differences
from stridenet.graph.places import line_of_assignment
from stridenet.graph.proxies import Foreign, TensorProxy
from stridenet.graph.tracer import Tracer

_NOT_STATE = {"_parameters", "_buffers", "_modules", "_compiled_call_impl", "training", "forward"}
_MISSING = object()


class Change(NamedTuple):
    """Names an attribute of a module that a forward has changed."""

    path: str  # of the module
    name: str
    value: Any  # the new one


CURE = (
    "a twin would not remember: convert_layers(model) keeps the model's own forward, or, if the "
    "first forward only sets it up, run the model once and convert it then"
)


def refuse_changes(tracer: Tracer, stage: nn.Module, again: Callable[[nn.Module], Tracer]) -> None:
    """Refuse a forward whose result depends on what it changes in its own modules.

    stage: the copy that the forward has run on. again: a second pass through it, which is made where
    attributes have changed, and must not differ from the first.
    """
    read = _ancestors(list(tracer.graph.nodes)[-1])
    _refuse_changed_buffers(tracer, stage, read)
    changed = list(_changed_attributes(stage, tracer.root))
    if not changed:
        return
    try:
        second = again(stage)
        difference = next(differences(tracer, second), None)
    except Foreign as foreign:
        if any(n.op == "placeholder" for n in _ancestors(foreign.proxy.node)):
            raise _refusal(stage, _holders(changed, foreign.proxy) or changed) from None
        return  # a constant that the first forward has made and kept
    except Exception as error:  # the second forward may raise what the first did not
        raise _refusal(stage, changed) from error
    if difference is not None:
        numbers = [c for c in changed if isinstance(c.value, (int, float, str, Tensor))]
        raise _refusal(stage, numbers or changed)


def _refusal(stage: nn.Module, changed: list[Change]) -> StrideEliminationError:
    path, attribute = changed[0].path, changed[0].name
    module = stage.get_submodule(path)
    label = f"{path} ({type(module).__name__})" if path else type(module).__name__
    names = ", ".join(dict.fromkeys(change.name for change in changed))
    return StrideEliminationError(
        f"{label} changes {names} in its forward{line_of_assignment(module, attribute)}, and its "
        f"result depends on that, which {CURE}"
    )


# Buffers and parameters


def _refuse_changed_buffers(tracer: Tracer, stage: nn.Module, read: set[fx.Node]) -> None:
    """Refuse buffers and parameters that are changed or exchanged, if the result depends on them."""
    for node in tracer.graph.nodes:
        base = _base(node)
        if base is not node and base.op == "get_attr" and _changes(node) and base in read:
            raise _refusal(stage, [Change(*_split(str(base.target)), None)])
    for (path, name), before in tracer.taken.items():
        module = stage.get_submodule(path)
        now = module._buffers.get(name, module._parameters.get(name, before))
        used = before._node
        if now is before or used is None or used not in read:
            continue
        if type(now) is not TensorProxy or _base(now.node) is not used:
            raise _refusal(stage, [Change(path, name, None)])


def _split(path: str) -> tuple[str, str]:
    module, _, name = path.rpartition(".")
    return module, name


def _changes(node: fx.Node) -> bool:
    return node.target is operator.setitem or is_in_place(node, None)


def _base(node: fx.Node) -> fx.Node:
    """Return the node that owns the memory of a result, back through views and in-place changes."""
    while node.op in ("call_function", "call_method") and node.all_input_nodes:
        if not (node.target in VIEWS or node.target is getattr or _changes(node)):
            break
        node = node.all_input_nodes[0]
    return node


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, todo = {node}, [node]
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                todo.append(source)
    return found


# Other attributes


def _changed_attributes(stage: nn.Module, root: nn.Module) -> Iterator[Change]:
    """Yield each attribute that is not what it was."""
    for path, module in stage.named_modules():
        try:
            before = vars(root.get_submodule(path))
        except AttributeError:
            continue  # a module that the forward has made
        for name, value in vars(module).items():
            if name in _NOT_STATE or isinstance(value, types.MethodType):
                continue
            if not _same(value, before.get(name, _MISSING), set()):
                yield Change(path, name, value)


def _same(value: Any, before: Any, seen: set[int]) -> bool:
    if value is before or id(value) in seen:
        return True
    if type(value) is not type(before):
        return False
    seen.add(id(value))
    if type(value) is TensorProxy:
        return False
    if isinstance(value, Tensor):
        alike = value.shape == before.shape and value.dtype == before.dtype
        return alike and (value.is_meta or torch.equal(value, before))
    if isinstance(value, dict):
        keys = value.keys() == before.keys()
        return keys and all(_same(value[key], before[key], seen) for key in value)
    if isinstance(value, (list, tuple)):
        pairs = zip(value, before, strict=False)
        return len(value) == len(before) and all(_same(*pair, seen) for pair in pairs)
    if isinstance(value, (bool, int, float, complex, str, bytes)):
        return bool(value == before) or value != value
    if isinstance(value, (nn.Module, types.FunctionType, types.MethodType)):
        return True  # modules are compared by themselves
    return _same(getattr(value, "__dict__", None), getattr(before, "__dict__", None), seen)


def _holders(changed: list[Change], proxy: TensorProxy) -> list[Change]:
    def holds(value: Any) -> bool:
        if value is proxy:
            return True
        parts = value.values() if type(value) is dict else value
        return type(value) in (dict, list, tuple) and any(map(holds, parts))

    return [change for change in changed if holds(change.value)]
