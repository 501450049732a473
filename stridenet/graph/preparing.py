"""A traced network made ready for the rules: without what is not used, its buffers as in the model."""

import operator
from typing import Any

import torch
from torch import fx, nn

from stridenet.errors import StrideEliminationError
from stridenet.graph.nodes import of_model, tensors
from stridenet.graph.tracing import trace
from stridenet.sizes import Size

# These depend on the type of what they are called on, or of another tensor, never on numbers.
OF_TYPE_ALONE = ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
OF_FIRST_ALONE = ("to", "type_as", "type")
EXPANSIONS = ("expand", "expand_as", "broadcast_to", torch.broadcast_to)


def traced_network(model: nn.Module, sizes: tuple[Size, ...]) -> fx.GraphModule:
    """Return the model's operations, as `trace` has them, without tensors that are never used.

    Arithmetic with the model's buffers is traced as well, unless the forward depends on their values.
    Raises StrideEliminationError if the model cannot be traced.
    """
    try:
        traced = trace(model, sizes)
    except StrideEliminationError:
        if not any(True for _ in model.buffers()):
            raise
        traced = trace(model, sizes, buffers_by_name=False)
    for node in reversed(traced.graph.nodes):
        if node.op == "get_attr" and not node.users:  # the forward asked for its type alone
            traced.graph.erase_node(node)
        if node.target is getattr:
            _number_of_name(node)
    _drop_identities(traced)
    for node in traced.graph.nodes:
        node.meta["of_model"] = _is_of_model(node)
    bare = unsaved_buffers(model)
    leave_unsaved(traced, bare | {f"0.{name}" for name in bare})  # "0": a model of a single layer
    return traced


def _number_of_name(node: fx.Node) -> None:
    """Turn maximum.values into maximum[0], as a twin's tuple need not have names."""
    value = node.all_input_nodes[0].meta["value"]
    if isinstance(value, tuple):
        fields = [name for name in ("values", "indices") if hasattr(value, name)]
        if node.args[1] in fields:
            node.target = operator.getitem
            node.args = (node.args[0], fields.index(str(node.args[1])))


def _drop_identities(traced: fx.GraphModule) -> None:
    """Erase all steps of a network that does nothing: it has no operations then."""
    others = ("placeholder", "output")
    steps = [node for node in traced.graph.nodes if node.op not in others]
    modules = [
        node.op == "call_module" and traced.get_submodule(str(node.target)) for node in steps
    ]
    if all(type(module) is nn.Identity for module in modules):
        for node in reversed(steps):
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)


def _is_of_model(node: fx.Node) -> bool:
    """Tell whether no number of an input reaches a node."""
    if node.op in ("placeholder", "output"):
        return False
    operation = None if node.op == "call_module" else node.target  # a module may have such a name
    if operation in OF_TYPE_ALONE:
        return True
    read = node.all_input_nodes
    if operation in OF_FIRST_ALONE:
        read = read[:1]
    if operation in EXPANSIONS and _gains_positions(node):
        return False  # the same at all positions: a map, which may have any form
    return all(of_model(source) for source in read if tensors(source.meta["value"]))


def _gains_positions(node: fx.Node) -> bool:
    """Tell whether an expansion makes positions of axes of size one, with channels in dimension 1."""
    before, after = tensors(node.all_input_nodes[0].meta["value"]), tensors(node.meta["value"])
    if not before or after[0].ndim < 3:
        return False
    sizes = (1,) * after[0].ndim + tuple(before[0].shape)
    return sizes[2 - after[0].ndim :] != tuple(after[0].shape[2:])


def unsaved_buffers(network: nn.Module) -> set[str]:
    """Return the names of the buffers that its state_dict leaves out."""
    return {
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        for name in module._non_persistent_buffers_set
    }


def leave_unsaved(network: nn.Module, names: set[str]) -> None:
    """Leave buffers of these names out of a state_dict; torch.fx puts in all buffers that it copies."""
    modules: dict[str, Any] = dict(network.named_modules())
    for name in names:
        path, _, own = name.rpartition(".")
        if path in modules and own in modules[path]._buffers:
            modules[path]._non_persistent_buffers_set.add(own)
