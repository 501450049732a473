"""What an operation is given, and does, on the meta device: real shapes, without numbers."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stridenet.sizes import format_size

# These functions make tensors from numbers.
FACTORIES = {
    torch.arange, torch.as_tensor, torch.bartlett_window, torch.blackman_window, torch.empty,
    torch.eye, torch.full, torch.hamming_window, torch.hann_window, torch.kaiser_window,
    torch.linspace, torch.logspace, torch.normal, torch.ones, torch.rand, torch.randint, torch.randn,
    torch.randperm, torch.range, torch.scalar_tensor, torch.tensor, torch.tril_indices,
    torch.triu_indices, torch.zeros,
}  # fmt: skip


class Strides(TorchDispatchMode):
    """Notes each convolution and pooling with a stride above one, whoever calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        stride: Iterable[int] = ()
        if name.startswith("convolution"):
            stride = args[3]
        elif "_pool" in name and "adaptive" not in name and "backward" not in name:
            stride = (args[2] if len(args) > 2 else ()) or args[1]
        if any(step > 1 for step in stride):
            self.found.append(f"{name} of stride {format_size(tuple(stride))}")
        return func(*args, **(kwargs or {}))


def multiples(arguments: Any, batch: int) -> bool:
    """Tell whether some arguments hold the number of images, or a multiple of it."""
    found = []

    def look(leaf: Any) -> Any:
        if is_multiple(leaf, batch):
            found.append(leaf)
        return leaf

    fx.node.map_aggregate(arguments, look)
    return bool(found)


def is_multiple(leaf: Any, batch: int) -> bool:
    """Tell whether a number is the number of images or a multiple, so that it must come from it."""
    return type(leaf) in (int, float) and leaf != 0 and leaf % batch == 0


def without_batch(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Return a transposed convolution's arguments, output_size without the batch and channels."""
    named = dict(zip(("input", "output_size"), args, strict=False)) | kwargs
    size = named.pop("output_size", None)
    if size is None:
        return args, kwargs
    axes = len(cast(Any, layer).kernel_size)
    return (named["input"],), {"output_size": [int(extent) for extent in size[-axes:]]}


def without_devices(node: fx.Node, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments with every device replaced by the meta device."""

    def meta(leaf: Any) -> Any:
        return torch.device("meta") if isinstance(leaf, torch.device) else leaf

    args, kwargs = fx.node.map_aggregate((args, kwargs), meta)
    if node.target == "to":
        args = tuple(
            "meta" if isinstance(a, (str, int)) and not isinstance(a, bool) else a for a in args
        )
    named = dict(kwargs)
    if "device" in named or node.target in FACTORIES:
        named["device"] = "meta"
    named.pop("pin_memory", None)
    return args, named


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type."""
    return (str(error) or type(error).__name__).splitlines()[0]
