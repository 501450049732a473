"""How networks are run to compare them: without a trace in their surroundings, always the same way."""

import copy
import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from stridenet.copies import copied, same_random_states


def runnable_layers(traced: fx.GraphModule) -> nn.Module:
    """Return copies of the layers that a graph calls, whose parameters share their numbers with it."""
    holder = nn.Module()
    for name, value in vars(traced).items():
        if name in ("_modules", "_parameters", "_buffers"):
            setattr(holder, name, value)
        elif name[:1] != "_" and name != "training":  # what is neither, but read by the graph
            object.__setattr__(holder, name, value)
    return copied(holder, share_tensors=True)


class without_dropout(TorchFunctionMode):  # noqa: N801  (it is used as a context)
    """Stops functions that drop numbers at random: two forms of one map would lose other numbers."""

    FUNCTIONS = frozenset({
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
        F.rrelu,
    })  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self.FUNCTIONS:
            return func(*args, **(kwargs or {}))
        bound = inspect.signature(func).bind(*args, **(kwargs or {}))
        bound.arguments["training"] = False
        return func(*bound.args, **bound.kwargs)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run networks without a trace: random states are put back, nothing is recorded or cast."""
    with (
        same_random_states(),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def seed() -> None:
    """Start all random numbers that a forward may draw anew."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


def cloned(tensor: Tensor) -> Tensor:
    """Return a copy with the same strides, gaps between rows included.

    In which order a kernel sums depends on the layout.
    """
    if tensor.is_sparse or tensor.is_complex() or not tensor.numel():
        return tensor.clone()
    once = tensor
    for axis, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        once = once.narrow(axis, 0, 1) if step == 0 and size > 1 else once
    copied = torch.empty_strided(
        once.size(), once.stride(), dtype=tensor.dtype, device=tensor.device
    )
    try:
        return copied.copy_(once).expand(tensor.shape)
    except RuntimeError:  # its rows overlap
        return tensor.clone()


class GraphRunner(fx.Interpreter):
    """Runs a graph of its network; with a dtype, each operation in that, whatever the network's.

    Layers are cast one at a time, so that a network in half precision is never held twice.
    """

    def __init__(
        self, network: nn.Module, graph: fx.Graph, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(network, graph=graph)
        self.extra_traceback = False
        self.dtype = dtype

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module: Any = self.fetch_attr(target)
        if self.dtype is not None:
            module = copy.deepcopy(module).to(self.dtype)
            args, kwargs = tree_map(self._cast, (args, kwargs))
        return module(*args, **kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._cast(super().get_attr(target, args, kwargs))

    def _cast(self, value: Any) -> Any:
        known = self.dtype is not None and isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self.dtype) if known else value


# Outputs and errors ---------------------------------------------------------------------------------


def leaves(value: Any) -> list[Any]:
    """Return all parts of an output, those within dataclasses and dictionaries included."""
    found = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor) or not (is_dataclass(leaf) or isinstance(leaf, dict)):
            found.append(leaf)
        else:
            found += leaves(list(leaf.values() if isinstance(leaf, dict) else vars(leaf).values()))
    return found


def finite(value: Any) -> bool:
    """Tell whether all numbers of an output are finite."""
    return all(bool(t.isfinite().all()) for t in leaves(value) if isinstance(t, Tensor))


def one_line(error: Exception) -> str:
    """Return the text of an error in one line."""
    return " ".join((str(error) or type(error).__name__).split())[:200]
