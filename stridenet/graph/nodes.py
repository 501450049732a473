"""What is read from one node of a traced network: its operation, its sizes, where its channels are."""

from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from stridenet.sizes import Size, format_size

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH = 10_007  # images while tracing: a prime, so that sizes that come from it are recognised


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors of a value: itself, or those of a tuple."""
    if isinstance(value, Tensor):
        return [value]
    return [v for v in value if isinstance(v, Tensor)] if isinstance(value, (tuple, list)) else []


def operations(traced: fx.GraphModule) -> list[fx.Node]:
    """Return the operations of a traced network on tensors, in order; a plan has a layer for each."""
    others = ("placeholder", "output", "get_attr")
    nodes = traced.graph.nodes
    return [n for n in nodes if n.op not in others and tensors(n.meta["value"])]


def nodes_with_op(traced: fx.GraphModule, op: str) -> list[fx.Node]:
    """Return the nodes of one kind ("placeholder", "get_attr", …), in order."""
    return [node for node in traced.graph.nodes if node.op == op]


def operation_of(traced: Any, node: fx.Node) -> Any:
    """Return the operation of a node: a module's type, a function, or a method's name."""
    if node.op == "call_module":
        return operation_type(traced.get_submodule(str(node.target)))
    return node.target


def operation_type(module: nn.Module) -> Any:
    """Return the class of torch.nn whose forward a module has; else its own class."""
    forwards = ("forward", "_conv_forward", "_check_input_dim")
    own = type(module)
    if parametrize.is_parametrized(module):
        own = own.__mro__[1]
    for base in own.__mro__:
        if base.__module__.startswith("torch.nn.modules") and base is not nn.Module:
            same = all(getattr(own, f, None) is getattr(base, f, None) for f in forwards)
            return base if same else own
    return own


def describe_node(traced: Any, node: fx.Node) -> str:
    """Return a node's name and operation as errors give them: "features.0 (Conv2d)"."""
    if node.op == "call_module":
        return f"{node.target} ({type(traced.get_submodule(str(node.target))).__name__})"
    return f"{node.name} ({getattr(node.target, '__name__', node.target)})"


def describe_size(node: fx.Node) -> str:
    """Return the sizes of a node's result, without the batch, as errors give them."""
    values = tensors(node.meta["value"])
    return (
        ", ".join(format_size(v.shape[1:]) for v in values) if values else repr(node.meta["value"])
    )


def shape(node: fx.Node) -> Size:
    """Return the shape of what a node gives, with the batch; of several tensors, the first one's."""
    return tuple(tensors(node.meta["value"])[0].shape)


def channel(node: fx.Node) -> int:
    """Return the dimension that holds the channels.

    It is 0 if none does, as after a maximum over channels.
    """
    return int(node.meta.get("channel", 1))


def plain(node: fx.Node) -> tuple[int, ...]:
    """Return the dimensions that hold neither images, nor positions, nor channels with their phases.

    There are some where channels were split in several dimensions, or maps were stacked. They are
    called plain.
    """
    return tuple(node.meta.get("plain", ()))


def layout(node: fx.Node) -> tuple[int, tuple[int, ...]]:
    """Return the dimension of a node's channels, and its plain dimensions."""
    return channel(node), plain(node)


def of_model(node: fx.Node) -> bool:
    """Tell whether a node depends on the model's own tensors and on sizes alone: it has no factor."""
    return bool(node.meta.get("of_model", node.op == "get_attr"))


def is_loose(node: fx.Node) -> bool:
    """Tell whether nothing says where a node's channels are, as after an operation without a rule.

    Its map is in ordinary form, and the next operation with a rule takes them to be in dimension 1.
    """
    return bool(node.meta.get("loose", False))


def spatial(node: fx.Node) -> list[int]:
    """Return the spatial dimensions: all but those of images and channels, and plain ones."""
    rank = len(shape(node))
    others = (channel(node), *plain(node))
    return [d for d in range(1, rank) if d not in others] if rank > 2 or not others[0] else []


def axes(node: fx.Node) -> list[tuple[fx.Node, int]]:
    """Return the spatial axes of a node's result, each as the node and the axis's number."""
    return [(node, axis) for axis in range(len(spatial(node)))]


def extents(node: fx.Node) -> list[int]:
    """Return the sizes of a node's spatial axes."""
    return [shape(node)[d] for d in spatial(node)]
