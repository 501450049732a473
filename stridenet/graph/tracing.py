"""A network's operations as a graph, and the size of every feature map in it.

torch.fx gives the operations under the modules' own names. While it traces, each operation also runs
on meta tensors: real shapes, without weights or arithmetic. To the network's forward, sizes are thus
plain numbers that it may compute with and branch on; only the number of images stays open.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stridenet.errors import StrideEliminationError
from stridenet.graph.nodes import (
    BATCH,
    CONVOLUTIONS,
    TRANSPOSED,
    operation_type,
    place,
    size_of,
    tensors,
)
from stridenet.sizes import Size, format_size

# Not torch's own, but kept whole: what they do cannot be seen from their parts.
WHOLE = {
    "torchvision.models.shufflenetv2.channel_shuffle",
    "torchvision.ops.stochastic_depth.StochasticDepth",
}


class _Proxy(fx.Proxy):
    """A value while tracing; its sizes are known, so that they are numbers."""

    tracer: "_Tracer"

    def _extent(self, axis: int) -> Any:
        extent = self.node.meta["value"].shape[axis]
        if extent % BATCH:
            return extent
        return self.tracer.create_proxy("call_method", "size", (self, axis), {})

    @property
    def shape(self) -> tuple:
        return tuple(map(self._extent, range(self.ndim)))

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self._extent(dim)

    @property
    def ndim(self) -> int:
        return self.node.meta["value"].ndim

    def dim(self) -> int:
        return self.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.node.meta["value"].dtype

    def __len__(self) -> int:
        return len(self.node.meta["value"])

    def __iter__(self) -> Iterator[fx.Proxy]:
        return (operator.getitem(self, index) for index in range(len(self)))


def _in_place(function: Any) -> Any:
    def method(self: _Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv"):  # torch.fx would take x += y for x = x + y
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Traces one model, and runs each operation on meta tensors of the inputs' sizes."""

    def __init__(self, model: nn.Module, sizes: Sequence[Size]) -> None:
        wrapped = (getattr(module.forward, "__globals__", {}) for module in model.modules())
        functions = {f for names in wrapped for f in names.values() if _qualified(f) in WHOLE}
        super().__init__(autowrap_functions=tuple(f for f in functions if not isinstance(f, type)))
        self.sizes = iter(sizes)
        self.running = False
        self.inputs = 0
        self.float = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def proxy(self, node: fx.Node) -> _Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Whole, too, are those of a forward of their own: so that errors can name them.
        whole = isinstance(m, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear))
        known = operation_type(m)
        return (
            whole
            or (known.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential))
            or _qualified(known) in WHOLE
        )

    def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except StrideEliminationError:
            raise
        except Exception as error:  # tracing runs the user's forward, which may raise anything
            raise _untraceable(f"{path} ({type(m).__name__})", error) from error

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any
    ) -> Any:
        value = None
        if kind == "placeholder":
            size = next(self.sizes, None)
            if size is None and args:
                return args[0]  # the default of an optional argument
            self.inputs += 1
            value = torch.empty(BATCH, *(size or ()), dtype=self.float, device="meta")
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **named)
        if kind == "placeholder":
            proxy.node.meta["value"] = value
        elif kind != "output":
            self._run(proxy.node)
        return proxy

    def _run(self, node: fx.Node) -> None:
        """Leave in node.meta what the node gives on meta tensors, and the strides within it."""
        for source in node.all_input_nodes:
            if "value" not in source.meta:
                self._run(source)  # a tensor of the model, which torch.fx finds by itself
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        with _Strides() as strides:
            self.running = True  # torch.fx has replaced the call of every module
            try:
                node.meta["value"] = self._result(node, args, kwargs)
            except Exception as error:  # what a map that does not fit makes it raise varies
                sizes = " and ".join(size_of(n) for n in node.all_input_nodes)
                raise StrideEliminationError(
                    f"{place(self.root, node)} on a map {sizes}: {_first_line(error)}; give the "
                    "input_size that the network takes"
                ) from error
            finally:
                self.running = False
        node.meta["strides"] = strides.found
        for value in tensors(node.meta["value"]):
            if 0 in value.shape:
                raise StrideEliminationError(
                    f"{place(self.root, node)} gives an empty map {format_size(value.shape[1:])}"
                )

    def _result(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        if node.op == "call_function":
            return cast(Any, node.target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "get_attr":
            return torch.empty_like(operator.attrgetter(str(node.target))(self.root), device="meta")
        module = self.root.get_submodule(str(node.target))
        state = chain(module.named_parameters(), module.named_buffers())
        meta = {  # but counters, which a module in training mode may want as numbers
            name: torch.empty_like(tensor, device="meta")
            if tensor.is_floating_point()
            else torch.zeros_like(tensor, device="cpu")
            for name, tensor in state
        }
        return torch.func.functional_call(module, meta, args, kwargs)


class _Strides(TorchDispatchMode):
    """Notes every convolution and pooling with a stride above one, whoever calls it."""

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


def trace(model: nn.Module, sizes: Sequence[Size], buffers_by_name: bool = True) -> fx.GraphModule:
    """The model's operations in order, each with what it gives on meta tensors in node.meta["value"].

    sizes: of each input, without batch. Raises StrideEliminationError if the model cannot be traced.
    buffers_by_name: arithmetic with buffers is traced, so that these keep their names; else it is done
        once, with their values, on which a forward may then depend.
    """
    _require_ordinary(model)
    tracer = _Tracer(model, sizes)
    tracer.proxy_buffer_attributes = buffers_by_name
    root = nn.Sequential(model) if tracer.is_leaf_module(model, "") else model
    before = set(vars(root))
    try:
        graph = tracer.trace(root)
        traced = fx.GraphModule(root, graph)
    except StrideEliminationError:
        _require_size_of_each_input(tracer, sizes)  # of which other errors may be a consequence
        raise
    except Exception as error:
        raise _untraceable(type(model).__name__, error) from error
    finally:
        for constant in set(vars(root)) - before:
            delattr(root, constant)  # torch.fx keeps tensors that forward makes in the model itself
    _require_size_of_each_input(tracer, sizes)
    for node in reversed(traced.graph.nodes):
        if not node.users and node.op == "call_method" and node.target == "size":
            traced.graph.erase_node(node)
    return traced


def _require_size_of_each_input(tracer: _Tracer, sizes: Sequence[Size]) -> None:
    inputs = [node.name for node in tracer.graph.nodes if node.op == "placeholder"]
    if len(inputs) != len(sizes) or tracer.inputs != len(sizes):
        raise StrideEliminationError(
            f"the model has the inputs {inputs}, but input_size gives {len(sizes)} size(s); give one "
            "for each, as in ((3, 32, 32), (1, 8, 8))"
        )


def _untraceable(where: str, error: Exception) -> StrideEliminationError:
    return StrideEliminationError(
        f"{where} cannot be traced by torch.fx ({_first_line(error)}); its forward must not depend on "
        "the values of tensors or on the number of images"
    )


def _require_ordinary(model: nn.Module) -> None:
    """Refuse what tracing would lose without a word."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    owners: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        named = f"{name or 'the model'} ({type(module).__name__})"
        if any(getattr(module, kind) for kind in hooks):
            raise StrideEliminationError(
                f"{named} has hooks, which a twin could not keep: remove them (those of pruning or of "
                "the old weight_norm too; a lazy layer loses its own when it is run once)"
            )
        if "forward" in vars(module):
            raise StrideEliminationError(f"the forward of {named} was replaced on this one object")
        for parameter in module.parameters(recurse=False):
            if owners.setdefault(parameter, named) != named:
                raise StrideEliminationError(
                    f"{owners[parameter]} and {named} share a weight, which their twins could not"
                )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _qualified(thing: Any) -> str:
    try:
        return f"{thing.__module__}.{thing.__qualname__}"
    except Exception:  # a name of a module's may be anything, even something that refuses questions
        return ""
