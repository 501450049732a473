"""One pass through a model's forward, which leaves its operations as a graph.

Nothing outside of the model's copy is changed: its modules are intercepted by an attribute of their
own, its tensors are exchanged in it, and functions are seen by a mode of this thread. Other threads
may trace, run and train meanwhile.
"""

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from itertools import chain
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from stridenet.errors import StrideEliminationError
from stridenet.graph.constants import MOST_KNOWN, known_value
from stridenet.graph.meta import FACTORIES, Strides, first_line, without_batch, without_devices
from stridenet.graph.nodes import (
    CONVOLUTIONS,
    TRANSPOSED,
    describe_node,
    describe_size,
    operation_type,
    tensors,
)
from stridenet.graph.places import users_line
from stridenet.graph.proxies import Foreign, TensorProxy, counted, current
from stridenet.graph.whole import KEPT_WHOLE, keep_functions_whole, qualified_name
from stridenet.sizes import Size, format_size

_MOST_OF_A_LINE = 5_000  # operations: a loop over BATCH images has more


@dataclass(frozen=True)
class Facts:
    """Holds what a forward can ask of its inputs, beside their sizes."""

    batch: int
    dtype: torch.dtype
    device: torch.device


class Refusal(StrideEliminationError):  # noqa: N818  (it ends as a StrideEliminationError)
    """Raised for what cannot be traced; its text ends a sentence that begins with "its forward"."""


class Tracer(fx.Tracer):
    """Runs the forward of `stage`, which it spoils; nodes name the modules and tensors of `root`.

    Both are copies of one model. Each operation also runs on meta tensors of the inputs' sizes.
    """

    def __init__(self, root: nn.Module, sizes: Sequence[Size], facts: Facts) -> None:
        super().__init__()
        self.root, self.sizes, self.facts = root, tuple(sizes), facts
        self.graph = fx.Graph()
        self.asked: set[str] = set()  # of the facts, what the forward has read
        self.refused: StrideEliminationError | None = None  # the forward may have caught it
        self.parameters: set[str] = set()
        self.inputs: list[str] = []
        self.output: Any = None
        self._meta: dict[str, Tensor] = {}
        self._attributes: dict[str, fx.Node] = {}
        self._lines: Counter[str] = Counter()
        self._made: dict[tuple[int, int], Tensor] = {}
        self._alive: list[Any] = []  # an id is nobody else's as long as its thing lives

    # From the model to its graph

    def run(self, stage: nn.Module) -> fx.Graph:
        """Run the forward of `stage` and return its graph. Raises whatever that raises."""
        outer = getattr(current, "tracer", None)
        current.tracer = self
        try:
            self._take(stage)
            arguments = self._arguments(stage)
            with _Recording(self):
                self.output = stage(*arguments)
            self.create_node("output", "output", (self.create_arg(self.output),), {})
            for node in self.graph.nodes:
                if node.op == "get_attr" and "value" not in node.meta:
                    self._run(node)
        finally:
            if outer is None:
                del current.tracer
            else:
                current.tracer = outer
        if self.refused is not None:
            raise self.refused
        return self.graph

    def _take(self, stage: nn.Module) -> None:
        """Have the stage's modules call us, and its tensors be proxies."""
        self.modules = {id(m): name for name, m in stage.named_modules()}
        self._alive += stage.modules()
        self.leaves = {name for name, m in stage.named_modules() if self.is_leaf_module(m, name)}
        self.parameters = {n for n, _ in self.root.named_parameters(remove_duplicate=False)}
        self.originals: dict[str, Any] = {}
        self.own: dict[int, str] = {}  # the stage's own tensors, which lists may hold as well
        self.tensor_attrs = {}
        self.taken: dict[tuple[str, str], TensorProxy] = {}
        proxies: dict[int, TensorProxy] = {}
        for path, module in stage.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and not isinstance(value, TensorProxy):
                    self.tensor_attrs.setdefault(value, f"{path}.{name}".lstrip("."))
            for tensors_of in (module._parameters, module._buffers):
                for name in tensors_of:
                    self._exchange(tensors_of, name, f"{path}.{name}".lstrip("."), proxies)
            keep_functions_whole(module, self)
            module._compiled_call_impl = partial(self.called, module)

    def _exchange(self, held: Any, name: str, path: str, proxies: dict[int, TensorProxy]) -> None:
        root, _, last = path.rpartition(".")
        module = self.root.get_submodule(root)
        real = module._parameters.get(last, module._buffers.get(last))
        if real is None:
            return
        if id(real) not in proxies:
            proxies[id(real)] = TensorProxy(self, self.meta(path), path=path)
        if isinstance(held[name], Tensor) and type(held[name]) is not TensorProxy:
            self.own[id(held[name])] = path
            self.originals[path] = held[name]
            self._alive.append(held[name])
        held[name] = proxies[id(real)]
        self.taken[root, last] = held[name]

    def _arguments(self, stage: nn.Module) -> list[TensorProxy]:
        """Return a placeholder for each size; other arguments of the forward keep their defaults."""
        sizes = list(self.sizes)
        arguments: list[TensorProxy] = []
        for given in signature(stage.forward).parameters.values():
            if given.kind is Parameter.VAR_POSITIONAL:
                many = range(len(sizes))
                arguments += [self._placeholder(f"{given.name}_{i}", sizes.pop(0)) for i in many]
            elif given.kind is Parameter.VAR_KEYWORD:
                continue
            elif given.kind is Parameter.KEYWORD_ONLY:
                if given.default is Parameter.empty:
                    self.inputs.append(given.name)
            elif sizes:
                arguments.append(self._placeholder(given.name, sizes.pop(0)))
            elif given.default is Parameter.empty:
                self.inputs.append(given.name)
        if sizes or len(self.inputs) != len(self.sizes):
            raise StrideEliminationError(
                f"the model has the inputs {self.inputs}, but input_size gives {len(self.sizes)} "
                "size(s); give one for each, as in ((3, 32, 32), (1, 8, 8))"
            )
        return arguments

    def _placeholder(self, name: str, size: Size) -> TensorProxy:
        self.inputs.append(name)
        node = self.create_node("placeholder", name, (), {})
        value = torch.empty(self.facts.batch, *size, dtype=self.facts.dtype, device="meta")
        node.meta["value"] = value
        return TensorProxy(self, value, node)

    # Modules

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Whole, too, are those of a forward of their own: so that errors can name them.
        known = operation_type(m)
        return (
            isinstance(m, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear))
            or (known.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential))
            or qualified_name(known) in KEPT_WHOLE
        )

    def called(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Handle the call of a module of the stage: record a leaf, run any other."""
        path = self.modules[id(module)]
        try:
            if path in self.leaves:
                leaf = self.root.get_submodule(path)
                if leaf.training != module.training:
                    leaf.train(module.training)  # the forward has changed its mode
                if isinstance(leaf, TRANSPOSED):
                    args, kwargs = without_batch(leaf, args, kwargs)
                return self.create_proxy("call_module", path, args, kwargs)
            if hasattr(module, "_orig_mod"):  # torch.compile's
                return module._orig_mod(*args, **kwargs)
            return module._call_impl(*args, **kwargs)
        except Exception as error:
            if not hasattr(error, "stridenet_module"):
                error.stridenet_module = f"{path or type(module).__name__}" + (  # type: ignore[attr-defined]
                    f" ({type(module).__name__})" if path else ""
                )
            raise

    # Tensors of the model

    def meta(self, path: str) -> Tensor:
        """Return a tensor of the model on the meta device."""
        if path not in self._meta:
            real = operator.attrgetter(path)(self.root)
            with torch._C.DisableTorchFunction():
                meta = torch.empty_like(real, device="meta")
                self._meta[path] = meta.requires_grad_(real.requires_grad and real.is_leaf)
        return self._meta[path]

    def attribute_node(self, path: str) -> fx.Node:
        """Return the node of a tensor of the model."""
        if path not in self._attributes:
            node = self.create_node("get_attr", path, (), {})
            node.meta.update(value=self.meta(path), known=self.known_attribute(path))
            self._attributes[path] = node
        return self._attributes[path]

    def known_attribute(self, path: str) -> Any:
        """Return the numbers of a buffer; None for a parameter, which training changes."""
        real = self.originals.get(path)
        if path in self.parameters or real is None:
            return None
        with torch._C.DisableTorchFunction():  # we are not the forward
            return real if not real.is_meta and real.numel() <= MOST_KNOWN else None

    # Operations

    def record(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Handle a call of torch's function: record it if it is given proxies or makes tensors."""
        if function not in FACTORIES and not self.concerns((args, kwargs)):
            return function(*args, **kwargs)
        if not is_tensor_method_or_property(function):
            return self.create_proxy("call_function", function, args, kwargs)
        name = function.__name__
        if isinstance(args[0], TensorProxy):
            if name == "__get__":
                return getattr(args[0], function.__self__.__name__)
            method = getattr(args[0], name, None)
            if method is not None and not name.startswith("__"):
                return method(*args[1:], **kwargs)
        return self.create_proxy("call_method", name, args, kwargs)

    def concerns(self, thing: Any) -> bool:
        """Tell whether a proxy, or a tensor of the model, is in an argument of a function."""
        kind = type(thing)
        if kind is TensorProxy:
            return True
        if isinstance(thing, Tensor):
            return id(thing) in self.own
        if isinstance(thing, dict):
            thing = thing.values()
        elif not isinstance(thing, (list, tuple)):
            return kind is slice and self.concerns((thing.start, thing.stop, thing.step))
        return any(map(self.concerns, thing))

    def create_arg(self, a: Any) -> Any:
        if type(a) is TensorProxy:
            if a.tracer is not self:
                raise Foreign(a)
            return a.node
        if isinstance(a, int) and not isinstance(a, bool):
            return int.__add__(a, 0)
        if isinstance(a, (np.integer, np.floating)):
            return a.item()
        if isinstance(a, tuple) and (hasattr(a, "_fields") or isinstance(a, torch.Size)):
            parts = [self.create_arg(part) for part in a]
            return tuple(parts) if isinstance(a, torch.Size) else type(a)(*parts)
        if id(a) in self.own:
            return self.attribute_node(self.own[id(a)])
        if isinstance(a, nn.Parameter):
            self.refuse("uses a parameter that none of the model's modules holds")
        if isinstance(a, Tensor) and a not in self.tensor_attrs:
            a = self._as_it_is_now(a)
        return super().create_arg(a)

    def _as_it_is_now(self, made: Tensor) -> Tensor:
        """Return a copy of a tensor that the forward has made, and may change later."""
        key = (id(made), made._version)
        if key not in self._made:
            with torch._C.DisableTorchFunction():
                self._made[key] = made.detach().clone()
            self._alive.append(made)
        return self._made[key]

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any
    ) -> Any:
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs))
        value = self._run(node)
        where = node.meta["where"]
        self._lines[where] += kind != "call_module"
        if where and self._lines[where] > _MOST_OF_A_LINE:
            self.refuse(
                f"has a line that runs more than {_MOST_OF_A_LINE:,} times, as for each image"
            )
        if tensors(value):
            return TensorProxy(self, value, node)
        self.graph.erase_node(node)
        if isinstance(value, torch.Size):
            return torch.Size(map(counted, value))
        return counted(value) if type(value) is int else value

    def set_item(self, proxy: TensorProxy, index: Any, value: Any) -> None:
        """Set proxy[index] = value, where the forward has made the tensor from numbers alone."""
        known = None if proxy.path else proxy.known
        if known is None or "made" not in proxy.node.meta:
            self.refuse("assigns to a part of a tensor (x[…] = …)")
        args = (proxy, index, value)
        node = self.create_node("call_function", operator.setitem, self.create_arg(args), {})
        given = fx.node.map_arg(node.args, lambda n: n.meta.get("known"))
        if any(n.meta.get("known") is None for n in node.all_input_nodes):
            self.refuse("assigns a computed value to a part of a tensor (x[…] = …)")
        node.meta.update(value=None, strides=[])
        with torch._C.DisableTorchFunction(), torch.no_grad():
            operator.setitem(*cast(Any, given))

    def refuse(self, what: str) -> NoReturn:
        """Raise a Refusal: what the forward does, and where."""
        self.refused = self.refused or Refusal(f"{what}{users_line()}")
        raise self.refused

    def _run(self, node: fx.Node) -> Any:
        """Leave in node.meta what the node gives on meta tensors, and the strides within it."""
        for source in node.all_input_nodes:
            if "value" not in source.meta:
                self._run(source)  # a tensor that the forward made, which is kept as a constant
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        with Strides() as strides, torch._C.DisableTorchFunction():
            try:
                value = self._result(node, args, kwargs)
            except Exception as error:
                error.stridenet_operation = self._failed(node, error)  # type: ignore[attr-defined]
                raise
        made = not any(n.op != "get_attr" and "made" not in n.meta for n in node.all_input_nodes)
        if made and node.op in ("call_function", "call_method"):
            node.meta["made"] = True  # from numbers and the model's own tensors alone
        node.meta.update(value=value, strides=strides.found, where=users_line())
        if node.op in ("call_function", "call_method") and tensors(value):
            node.meta["known"] = known_value(node, value, self.facts.batch)
        for part in tensors(value):
            if 0 in part.shape and not (made or str(node.target).startswith("new_")):
                raise StrideEliminationError(
                    f"{describe_node(self.root, node)} gives an empty map {format_size(part.shape[1:])}"
                    f"{users_line()}"
                )
        return value

    def _failed(self, node: fx.Node, error: Exception) -> str:
        sizes = " and ".join(describe_size(n) for n in node.all_input_nodes)
        return (
            f"{describe_node(self.root, node)} on a map {sizes}: {first_line(error)}{users_line()}"
        )

    def _result(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        if node.op == "get_attr":
            return self.meta(str(node.target))
        if node.op == "call_module":
            return self._result_of_module(str(node.target), args, kwargs)
        args, kwargs = without_devices(node, args, kwargs)
        if node.op == "call_function":
            return cast(Any, node.target)(*args, **kwargs)
        if node.target in ("cpu", "cuda"):
            return args[0]
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)

    def _result_of_module(self, path: str, args: tuple, kwargs: dict) -> Any:
        module = self.root.get_submodule(path)
        state = chain(module.named_parameters(), module.named_buffers())
        meta = {  # but counters, which a module in training mode may want as numbers
            name: self.meta(f"{path}.{name}".lstrip("."))
            if tensor.is_floating_point() or tensor.is_complex()
            else torch.zeros_like(tensor, device="cpu")
            for name, tensor in state
        }
        return torch.func.functional_call(module, meta, args, kwargs)


class _Recording(TorchFunctionMode):
    """Shows the tracer every function of torch that this thread calls."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.tracer.record(func, args, kwargs or {})
