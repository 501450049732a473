"""Copies of models to work on, so that the user's own model is never run, traced or changed by us.

copy.deepcopy fails on tensors that were computed, on locks and on open files, and it takes functions
as they are: a hook or a forward whose closure holds the model would still act on the user's. Here
functions are rebuilt around the copy, and what cannot be copied is kept by reference.
"""

import copy
import copyreg
import enum
import random
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from stridenet.errors import InputError, StrideEliminationError

Model = TypeVar("Model", bound=nn.Module)

_ATOMIC = (
    type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, types.CodeType,
    range, property, enum.Enum, type(...), type(NotImplemented),
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_WEAK_PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def copied(model: Model, share_tensors: bool = False) -> Model:
    """Return a copy of a model, whatever its attributes hold; nothing done to it reaches the model.

    Functions in attributes and hooks are rebuilt where their closures hold something of the model's,
    so that they act on the copy. What cannot be copied (locks, files, iterators) is kept by reference,
    as are functions and classes that a Python module holds.

    share_tensors: the copy's parameters are objects of their own, but share their numbers with the
        model's; buffers and all other tensors are copied, since a forward may write into them.
    """
    inside = {id(thing) for module in model.modules() for thing in (module, *vars(module).values())}
    inside |= {id(tensor) for tensor in model.parameters()}
    with torch.no_grad():
        result: Model = _Copier(share_tensors, inside)(model)
    return result


class _Copier:
    """Copies one thing after the other, each once, and remembers what stands for which."""

    def __init__(self, share_tensors: bool, inside: set[int]) -> None:
        self.share_tensors = share_tensors
        self.inside = inside  # what the model holds, by id: weak references to it follow the copy
        self.memo: dict[int, Any] = {}  # as copy.deepcopy has it, which some types ask for
        self.alive: list[Any] = []  # an id is nobody else's as long as its thing lives
        self.started: set[int] = set()

    def __call__(self, thing: Any) -> Any:
        """Return the copy of a thing, or the thing itself if it cannot change or cannot be copied."""
        if id(thing) in self.memo:
            return self.memo[id(thing)]
        if type(thing) in _WEAK_PROXIES:
            return self._weak_proxy(thing)
        if isinstance(thing, _ATOMIC):
            return thing
        new = self._copier_of(thing)(thing)
        return self._remember(thing, new)

    def _remember(self, thing: Any, new: Any) -> Any:
        if id(thing) not in self.memo:
            self.memo[id(thing)] = new
            self.alive.append(thing)
        return self.memo[id(thing)]

    def _copier_of(self, thing: Any) -> Callable[[Any], Any]:
        kind = type(thing)
        known = _KNOWN.get(kind)
        if known is not None:
            return lambda thing: known(self, thing)
        if isinstance(thing, Tensor):
            return self._tensor
        if isinstance(thing, nn.Module) and not _has_deepcopy_of_its_own(thing):
            return self._module
        return self._own if hasattr(kind, "__deepcopy__") else self._reduced

    # Tensors

    def _tensor(self, old: Tensor) -> Tensor:
        if isinstance(old, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            # A lazy module's, which has no numbers yet.
            lazy: Tensor = copy.deepcopy(old)
            return lazy
        parameter = isinstance(old, nn.Parameter)
        numbers = old.detach()
        if not (self.share_tensors and parameter):
            try:  # by way of deepcopy: views of one storage stay views of one
                numbers = copy.deepcopy(numbers, self.memo)
            except Exception:  # a subclass may forbid it
                numbers = numbers.clone()
        if parameter and type(numbers) is Tensor:
            new: Tensor = Tensor._make_subclass(type(old), numbers, old.requires_grad)
        elif parameter:
            new = nn.Parameter(numbers, old.requires_grad)
        else:
            new = numbers.requires_grad_(old.requires_grad) if old.is_leaf else numbers
        self._remember(old, new)
        if old.is_leaf and old.grad is not None and not self.share_tensors:
            new.grad = self(old.grad)
        vars(new).update({name: self(value) for name, value in vars(old).items()})
        return new

    # Modules and other things that have attributes

    def _module(self, old: nn.Module) -> nn.Module:
        new: nn.Module = self._remember(old, object.__new__(type(old)))
        state = {k: v for k, v in vars(old).items() if k != "_compiled_call_impl"}
        vars(new).update({name: self(value) for name, value in state.items()})
        return new

    def _own(self, old: Any) -> Any:
        """Copy a thing by its own __deepcopy__, which finds the copies of what it holds in the memo."""
        if id(old) not in self.started:
            self.started.add(id(old))
            for value in getattr(old, "__dict__", {}).values():
                self(value)
        try:
            return copy.deepcopy(old, self.memo)
        except Exception:  # it may do anything
            return old

    def _reduced(self, old: Any) -> Any:
        """Copy a thing as pickle and copy.deepcopy do: make it anew, and set its state."""
        try:
            reduced: Any = old.__reduce_ex__(4)
        except Exception:  # a lock, a file; or a class that does not want to be pickled
            return self._by_attributes(old)
        if isinstance(reduced, str):
            return old
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        try:
            new = self._remember(old, make(*map(self, arguments)))
            self._set_state(new, state)
            for item in items or ():
                new.append(self(item))
            for key, value in pairs or ():
                new[self(key)] = self(value)
        except Exception:  # a constructor that wants what its copy has not
            self.memo[id(old)] = old
            return old
        return new

    def _set_state(self, new: Any, state: Any) -> None:
        if state is None:
            return
        state = self(state)
        if hasattr(new, "__setstate__"):
            new.__setstate__(state)
            return
        attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        if attributes:
            vars(new).update(attributes)
        for name, value in (slots or {}).items():
            setattr(new, name, value)

    def _by_attributes(self, old: Any) -> Any:
        """Copy an object attribute by attribute; one that cannot be made anew is returned as it is."""
        try:
            new = object.__new__(type(old))
        except TypeError:
            return old
        if not hasattr(old, "__dict__"):
            return old
        self._remember(old, new)
        vars(new).update({name: self(value) for name, value in vars(old).items()})
        for name in copyreg._slotnames(type(old)):  # type: ignore[attr-defined]
            if hasattr(old, name):
                setattr(new, name, self(getattr(old, name)))
        return new

    # Containers

    def _list(self, old: list) -> list:
        new: list = self._remember(old, [])
        new.extend(map(self, old))
        return new

    def _dict(self, old: dict) -> dict:
        new: dict = self._remember(old, {})
        for key, value in old.items():
            new[self(key)] = self(value)
        return new

    def _tuple(self, old: tuple) -> tuple:
        new = tuple(map(self, old))
        return old if all(a is b for a, b in zip(old, new, strict=True)) else new

    # Functions

    def _function(self, old: types.FunctionType) -> types.FunctionType:
        """Return the function around copied cells and defaults; itself if it holds nothing to copy."""
        inner = [
            *(old.__defaults__ or ()),
            *(old.__kwdefaults__ or {}).values(),
            *vars(old).values(),
        ]
        plain = not old.__closure__ and all(isinstance(thing, _ATOMIC) for thing in inner)
        # Cells are copied whatever they hold, since the function may write to them.
        if plain or _is_importable(old):
            return old
        cells = tuple(map(self._cell, old.__closure__ or ()))
        new = types.FunctionType(old.__code__, old.__globals__, old.__name__, None, cells)
        self._remember(old, new)
        for name in ("__qualname__", "__module__", "__doc__", "__annotations__"):
            setattr(new, name, getattr(old, name))
        new.__defaults__, new.__kwdefaults__ = self(old.__defaults__), self(old.__kwdefaults__)
        vars(new).update({name: self(value) for name, value in vars(old).items()})
        for cell, filled in zip(cells, old.__closure__ or (), strict=True):
            if is_filled(filled) and not is_filled(cell):
                cell.cell_contents = self(filled.cell_contents)
        return new

    def _cell(self, old: types.CellType) -> types.CellType:
        """Return an empty cell, the same for all functions that share it; _function fills it."""
        return self._remember(old, types.CellType())

    def _method(self, old: types.MethodType) -> types.MethodType:
        return types.MethodType(self(old.__func__), self(old.__self__))

    def _builtin(self, old: types.BuiltinMethodType) -> Any:
        owner = old.__self__
        copied_owner = self(owner)
        return old if copied_owner is owner else getattr(copied_owner, old.__name__)

    # Weak references

    def _weak(self, old: weakref.ref) -> weakref.ref:
        target = old()
        return weakref.ref(self(target)) if id(target) in self.inside else old

    def _weak_proxy(self, old: Any) -> Any:
        try:
            target = old.__init__.__self__
        except ReferenceError:
            return old
        return weakref.proxy(self(target)) if id(target) in self.inside else old


_KNOWN: dict[type, Callable[[_Copier, Any], Any]] = {
    list: _Copier._list,
    dict: _Copier._dict,
    tuple: _Copier._tuple,
    types.FunctionType: _Copier._function,
    types.MethodType: _Copier._method,
    types.BuiltinMethodType: _Copier._builtin,
    types.CellType: _Copier._cell,
    weakref.ref: _Copier._weak,
}


def _has_deepcopy_of_its_own(module: nn.Module) -> bool:
    """Tell whether a module's class has a way to copy it; that of parametrize is the ordinary one."""
    method = getattr(type(module), "__deepcopy__", None)
    return method is not None and method.__module__ != "torch.nn.utils.parametrize"


def is_filled(cell: types.CellType) -> bool:
    """Tell whether a closure's cell has a value yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _is_importable(function: types.FunctionType) -> bool:
    """Tell whether a function is found under its name in a Python module, as pickle needs it to be."""
    found: Any = sys.modules.get(function.__module__ or "")
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def unwrapped(model: Any) -> nn.Module:
    """Return the module inside of torch.compile, DataParallel or DistributedDataParallel, if any.

    Raises InputError for what is no module, and StrideEliminationError for a ScriptModule or quantized
    modules, whose weights and operations cannot be reached.
    """
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif type(model).__name__ == "OptimizedModule" and hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            break
    if not isinstance(model, nn.Module):
        raise InputError(_no_module(model))
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise StrideEliminationError(
                f"{label} is a ScriptModule, which cannot be taken apart: convert the model that it "
                "was made from, and apply torch.jit to what comes out"
            )
        home, kind = type(module).__module__, type(module).__name__
        # A FloatFunctional is there to be quantized one day; until then it adds up ordinary numbers.
        if ".quantized" in home and home.startswith("torch.") and kind != "FloatFunctional":
            raise StrideEliminationError(
                f"{label} is quantized, its weights are packed integers: convert the model before it "
                "is quantized"
            )
    return model


def _no_module(given: Any) -> str:
    if isinstance(given, type) and issubclass(given, nn.Module):
        return f"{given.__name__} is a class, not a model: make one, as in {given.__name__}(…)"
    if isinstance(given, dict):
        return (
            f"the model is a {type(given).__name__}, no torch.nn.Module: load it with load_state_dict "
            "into the model that it belongs to, and give that"
        )
    return (
        f"the model is a {type(given).__name__}, no torch.nn.Module: give the module; a function "
        "becomes one as the forward of a class that is derived from torch.nn.Module"
    )


@contextmanager
def same_random_states() -> Iterator[None]:
    """Put all global random generators back to where they were, whatever runs meanwhile.

    Those of torch (of CUDA if it is in use), Python and NumPy.
    """
    ours, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if in_use else []
    try:
        yield
    finally:
        torch.set_rng_state(ours)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
