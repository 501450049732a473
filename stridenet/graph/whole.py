"""Functions and modules of other packages that tracing keeps whole, as if they were torch's own."""

import types
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch

if TYPE_CHECKING:
    from stridenet.graph.tracer import Tracer

# What these do cannot be seen from their parts.
KEPT_WHOLE = {
    "torchvision.models.shufflenetv2.channel_shuffle",
    "torchvision.ops.stochastic_depth.StochasticDepth",
}


def keep_functions_whole(module: nn.Module, tracer: "Tracer") -> None:
    """Let a module's methods record the functions that are kept whole (by us, or by torch.fx.wrap).

    The methods are exchanged for copies with other globals, as the Python module that holds the
    functions is not to be changed.
    """
    for owner in type(module).__mro__:
        for name, method in vars(owner).items():
            if not isinstance(method, types.FunctionType) or name in vars(module):
                continue
            known = method.__globals__
            whole = {
                n: partial(_recorded, tracer, known[n])
                for n in method.__code__.co_names
                if n in known
                and callable(known[n])
                and (
                    (id(known), n) in _wrapped_fns_to_patch
                    or qualified_name(known[n]) in KEPT_WHOLE
                )
                and not isinstance(known[n], type)
            }
            if whole:
                new = types.FunctionType(
                    method.__code__,
                    {**known, **whole},
                    name,
                    method.__defaults__,
                    method.__closure__,
                )
                new.__kwdefaults__ = method.__kwdefaults__
                vars(module)[name] = types.MethodType(new, module)


def _recorded(tracer: "Tracer", function: Any, *args: Any, **kwargs: Any) -> Any:
    if tracer.concerns((args, kwargs)):
        return tracer.create_proxy("call_function", function, args, kwargs)
    return function(*args, **kwargs)


def qualified_name(thing: Any) -> str:
    """Return module and name of a function or class; empty for what has none."""
    try:
        return f"{thing.__module__}.{thing.__qualname__}"
    except Exception:  # a name of a module's may be anything, even something that refuses questions
        return ""
