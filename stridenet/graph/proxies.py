"""What a forward is given while it is traced: tensors without numbers, and a number of images.

A proxy answers what can be asked of a tensor (its type, shape, dtype, device) as the tensor itself
would, so that the forward takes the branches that it always takes. What needs numbers is refused.
"""

import dis
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from stridenet.graph.aliasing import IN_PLACE_OPERATORS

if TYPE_CHECKING:
    from stridenet.graph.tracer import Tracer

current = threading.local()  # .tracer: the one at work in this thread

# These a meta tensor would answer for itself; a proxy answers for the tensor that it stands for.
_OF_DEVICE = {
    "device", "is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu", "is_mtia", "is_ipu", "is_xla",
    "is_maia", "is_vulkan", "is_hpu", "get_device", "type", "is_pinned", "is_shared",
}  # fmt: skip
_VIEWS = {"T", "mT", "H", "mH", "real", "imag", "data"}  # attributes that are tensors
_NUMBERS = {
    "item",
    "tolist",
    "numpy",
    "data_ptr",
    "untyped_storage",
    "storage",
    "equal",
    "is_nonzero",
}


@cache
def _asks_for_a_class(code: CodeType, offset: int) -> bool:
    """Tell whether the instruction there is isinstance(…), x.__class__ or a case of match.

    Torch's functions, in C++, ask for the class of what they are given as well, and would read the
    memory of what says that it is a tensor: torch.where(c, x, 0.0) would crash the process.
    """
    positions = list(code.co_positions())
    asking = positions[offset // 2]
    for instruction in dis.get_instructions(code):
        if instruction.offset == offset and "CALL" not in instruction.opname:
            return True
        place = positions[instruction.offset // 2]
        begins = place[0] == asking[0] and place[2] == asking[2] and place != asking
        if begins and instruction.opname.startswith("LOAD_"):  # of the function that is called
            return instruction.argval in ("isinstance", "hasattr", "getattr")
    return False


# The number of images ----------------------------------------------------------------------------


class Images(int):
    """Stands for the number of images while tracing, or for a multiple of it.

    It is a number like others, but tells the tracer when something is decided by it. It holds no
    tracer, as whoever keeps it (a cache of shapes) would keep that too.
    """


def counted(number: Any) -> Any:
    """Return the number, as Images if it is a multiple of the images that are traced now."""
    batch = current.tracer.facts.batch if hasattr(current, "tracer") else 1
    return Images(number) if batch > 1 and number and number % batch == 0 else number


def _note() -> None:
    if hasattr(current, "tracer"):
        current.tracer.asked.add("images")


def _deciding(name: str) -> Any:
    plain = getattr(int, name)

    def method(self: Images, *others: Any) -> Any:
        if not (others and isinstance(others[0], Images)):  # between two, the same for all batches
            _note()
        return plain(self, *others)

    return method


def _counting(name: str) -> Any:
    plain = getattr(int, name)

    def method(self: Images, other: Any) -> Any:
        result = plain(self, other)
        if type(result) is int:
            result = counted(result)
            if type(result) is int:
                _note()  # no multiple: it looks like any other number from now on
        return result

    return method


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul"):
    setattr(Images, f"__{_name}__", _counting(f"__{_name}__"))
for _name in (
    "eq", "ne", "lt", "le", "gt", "ge", "bool", "float", "truediv", "rtruediv", "pow", "rpow",
    "floordiv", "rfloordiv", "mod", "rmod", "divmod", "rdivmod",
):  # fmt: skip
    setattr(Images, f"__{_name}__", _deciding(f"__{_name}__"))
Images.__hash__ = int.__hash__  # type: ignore[method-assign]  # lost with __eq__


# Tensors -----------------------------------------------------------------------------------------


class TensorProxy(fx.Proxy):
    """Stands for a tensor while tracing, or for a tuple of tensors.

    value: of its shape and dtype, on the meta device. known: its numbers, if they depend on no input
    and no parameter. path: of a tensor of the model, whose node is made when it is first used.
    """

    tracer: "Tracer"

    def __init__(
        self, tracer: "Tracer", value: Any, node: fx.Node | None = None, path: str = ""
    ) -> None:
        self.tracer, self.value, self.path = tracer, value, path
        self._node = node

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """Return its node in the graph."""
        if self._node is None:
            self._node = self.tracer.attribute_node(self.path)
        return self._node

    @property
    def known(self) -> Any:
        """Return its numbers if they depend on no input and no parameter; else None."""
        if self._node is None:
            return self.tracer.known_attribute(self.path)
        return self._node.meta.get("known")

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # what isinstance asks for, too
        frame = sys._getframe(1)
        if not _asks_for_a_class(frame.f_code, frame.f_lasti):
            return TensorProxy
        if not isinstance(self.value, Tensor):
            return type(self.value)
        return nn.Parameter if self.path in self.tracer.parameters else Tensor

    @property
    def keys(self) -> Any:
        """Raise AttributeError: tensors have no keys, though fx.Proxy does."""
        raise AttributeError("'Tensor' object has no attribute 'keys'")

    # Facts

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("tracer", "value", "path", "_node"):
            raise AttributeError(name)  # what protocols look for, and what is not set yet
        if not isinstance(self.value, Tensor):
            return self._field(name)
        if name == "_is_param":
            return self.path in self.tracer.parameters
        if name == "shape":
            return torch.Size(map(counted, self.value.shape))
        if name in _VIEWS:
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        if not hasattr(Tensor, name):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        if callable(getattr(Tensor, name)):
            return Method(self, name)
        return self._fact(name)

    def _fact(self, name: str) -> Any:
        if name in _OF_DEVICE:
            self.tracer.asked.add("device")
            with torch._C.DisableTorchFunction():  # we are not the forward
                like = torch.empty(0, dtype=self.value.dtype, device=self.tracer.facts.device)
            return getattr(like, name)
        if name == "dtype":
            self.tracer.asked.add("dtype")
        return getattr(self.value, name)

    def _field(self, name: str) -> Any:
        """Return a field of a tuple that has names, as that of torch.max(x, 1)."""
        found = getattr(self.value, name)
        for index, value in enumerate(self.value):
            if value is found:
                get: Any = operator.getitem
                return get(self, index)
        return found

    def __len__(self) -> int:
        if isinstance(self.value, Tensor) and self.value.ndim and isinstance(self.shape[0], Images):
            _note()
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.value, Tensor):
            if self.value.ndim == 0:
                raise TypeError("iteration over a 0-d tensor")
            if isinstance(self.shape[0], Images):
                self.tracer.refuse("goes through the images of a batch one by one")
        get: Any = operator.getitem
        return (get(self, index) for index in range(len(self.value)))

    # Numbers, which only what depends on no input has

    def numbers(self, what: str, read: Callable[[Tensor], Any]) -> Any:
        """Return what `read` reads from its numbers.

        Refuses the forward, with `what` as the reason, if they are not known.
        """
        known = self.known
        if known is None:
            whose = f"the parameter {self.path}" if self.path else "a tensor"
            self.tracer.refuse(f"reads the numbers of {whose} ({what})")
        with torch._C.DisableTorchFunction():  # it is no operation of the forward
            return read(known)

    def __bool__(self) -> bool:
        return self.numbers("if, while, and, or", bool)

    def __int__(self) -> int:
        return self.numbers("int", int)

    def __float__(self) -> float:
        return self.numbers("float", float)

    def __complex__(self) -> complex:
        return self.numbers("complex", complex)

    def __index__(self) -> int:
        return self.numbers("as a number", int)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numbers("NumPy", lambda known: known.__array__(*args, **kwargs))

    def __contains__(self, value: Any) -> bool:
        return self.numbers("in", lambda known: value in known)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.set_item(self, index, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.clone()

    @classmethod
    def __torch_function__(
        cls, orig_method: Any, types: Any, args: Any = None, kwargs: Any = None
    ) -> Any:
        tracer = getattr(current, "tracer", None)
        if tracer is None:
            raise RuntimeError("a proxy of torch.fx is used, but nothing is traced here")
        return tracer.record(orig_method, args or (), kwargs or {})


class Method:
    """Stands for a method of a tensor, until it is called."""

    def __init__(self, owner: TensorProxy, name: str) -> None:
        self.__self__, self.__name__ = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the method of the tensor gives, as a proxy or, if it is no tensor, as it is."""
        owner, name = self.__self__, self.__name__
        if name in _NUMBERS:
            return owner.numbers(f".{name}()", lambda t: getattr(t, name)(*args, **kwargs))
        if name in _OF_DEVICE and not (args or kwargs):
            return owner._fact(name)()
        if name == "size":
            return (
                owner.shape[args[0] if args else kwargs["dim"]] if args or kwargs else owner.shape
            )
        if name in ("numel", "nelement"):
            return counted(owner.value.numel())
        return owner.tracer.create_proxy("call_method", name, (owner, *args), kwargs)


def _in_place(function: Any) -> Any:
    def method(self: TensorProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in IN_PLACE_OPERATORS:
    # torch.fx would take x += y for x = x + y
    setattr(TensorProxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class Foreign(Exception):  # noqa: N818  (it is always caught)
    """Raised for a proxy of an earlier pass, which the forward has kept in its own state."""

    def __init__(self, proxy: TensorProxy) -> None:
        super().__init__("a tensor of an earlier forward")
        self.proxy = proxy
