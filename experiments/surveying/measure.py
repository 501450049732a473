"""One model of a survey: whether it runs, and how Theorems 1 and 2 convert it.

Nothing of the library decides here whether a twin is right: the strided network, made a second time
from the same seed, is what its converted calls and its outputs are held against.
"""

import inspect
import math
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from experiments.surveying.observation import (
    StridedCalls,
    calls_of,
    changes,
    copied,
    fingerprint,
    output_error,
    random_state,
    share_of_bound,
)
from experiments.surveying.sources import Example, Source
from stridenet.by_layer.conversion import convert_layers
from stridenet.elimination import plan_elimination
from stridenet.errors import InputError, StrideEliminationError

Say = Callable[[dict[str, Any]], None]
# This tolerance is for whole networks, which amplify rounding.
OUTPUTS_AGREE = {torch.float64: 1e-6, torch.float32: 1e-2}
LONGEST = 400  # characters of a message


@dataclass
class Task:
    """Names one model of a source, and what is to be tried with it."""

    source: Source
    name: str
    seed: int
    pooling: bool  # whether it is also converted with pooling
    network: bool  # whether Theorem 2 is also planned


class Running:
    """Holds a model that runs, with the inputs that it takes."""

    def __init__(self, task: Task, model: nn.Module, example: Example, poolings: int) -> None:
        self.task = task
        self.model = model
        self.example = example
        self.poolings = poolings  # strided calls of its own forward
        self.last = fingerprint(model)

    @cached_property
    def reference(self) -> "Reference":
        """Return the reference that the model's twins are compared with."""
        return make_reference(self.task, self.example)

    def begin(self) -> None:
        """Set the random state, which forwards have moved since the last look."""
        seed(self.task.seed)
        self.last["random state"] = random_state()

    def touched(self, drawn: bool = False) -> list[str]:
        """Return what has changed since the last call. drawn: ignore the random state."""
        before, self.last = self.last, fingerprint(self.model)
        places = changes(before, self.last)
        return [place for place in places if not drawn or place != "random state"][:5]


@dataclass
class Reference:
    """Holds the model, made a second time, and its outputs: in float64, if it runs in that."""

    model: nn.Module
    example: Example
    outputs: Any

    @property
    def dtype(self) -> torch.dtype:
        """Return the floating-point type of the model and its inputs."""
        wide = any(
            isinstance(value, Tensor) and value.dtype == torch.float64
            for value in tree_leaves((self.example.args, self.example.kwargs))
        )
        return torch.float64 if wide else torch.float32


def measure(task: Task, say: Say) -> None:
    """Say what becomes of a model, piece by piece.

    What was said before a crash is known after it.
    """
    running = _run_itself(task, say)
    if running is None:
        return
    say({"stage": "layers"})
    converted = _by_layers(running, False, say, "layers")
    if task.pooling and converted and running.poolings:
        say({"stage": "pooling"})
        _by_layers(running, True, say, "pooling")
    if task.network:
        say({"stage": "network"})
        _as_network(running, say)


# Its own forward ------------------------------------------------------------------------------------


def make_model(task: Task) -> nn.Module:
    """Return the model in evaluation mode, the same at each call."""
    seed(task.seed)
    return task.source.make(task.name).eval()


def seed(number: int) -> None:
    """Seed everything that a model may draw from."""
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  (the state that models draw from)
    torch.manual_seed(number)


def _run_itself(task: Task, say: Say) -> Running | None:
    """Return the model with the first example that it runs on; None, and say why, without one."""
    say({"stage": "own forward", "runs": False})
    try:
        model = make_model(task)
    except Exception as error:
        say({"why_not": f"cannot be made: {_message(error)}"})
        return None
    reasons = []
    seed(task.seed)
    for example in task.source.examples(task.name, model):
        calls = StridedCalls()
        try:
            began = time.perf_counter()
            with calls:
                call(model, example, task.seed)
            seconds = time.perf_counter() - began
        except Exception as error:
            reasons.append(_message(error))
            continue
        say(
            {
                "runs": True,
                "input": _input_sizes(example),
                "parameters": sum(p.numel() for p in model.parameters()),
                "strided_convolutions": len(calls.convolutions),
                "strided_poolings": len(calls.poolings),
                "own_seconds": seconds,
            }
        )
        return Running(task, model, example, len(calls.poolings))
    say({"why_not": reasons[0] if reasons else "the source has no inputs for it"})
    return None


@torch.no_grad()
def call(model: nn.Module, example: Example, number: int) -> Any:
    """Return what the model gives on copies of its inputs, from the same random state each time."""
    seed(number)
    return model(*copied(example.args), **copied(example.kwargs))


# By layers ------------------------------------------------------------------------------------------


def convert_by_layers(model: nn.Module, example: Example, pooling: bool) -> nn.Module:
    """Return the model by Theorem 1, with the library's own check on the same inputs."""
    return convert_layers(model, pooling=pooling, example_inputs=_as_one(model, example))


def _as_one(model: nn.Module, example: Example) -> Any:
    """Return the inputs as convert_layers takes them: all positional, or all by name."""
    if not example.kwargs or not example.args:
        return example.args or example.kwargs
    names = inspect.signature(model.forward).bind_partial(*example.args).arguments
    return dict(names) | example.kwargs


def _by_layers(running: Running, pooling: bool, say: Say, column: str) -> bool:
    """Say what became of the conversion, and whether it left the model as it was."""
    model = running.model
    running.begin()
    began = time.perf_counter()
    found, twin = _attempt(lambda: convert_by_layers(model, running.example, pooling))
    say({f"{column}_seconds": time.perf_counter() - began})
    touched = running.touched()
    say({f"{column}_touched": touched})
    if twin is not None:
        failed, checked = _attempt(lambda: _checked(running, twin, pooling))
        found = checked or failed
        say({f"{column}_touched": touched or running.touched(drawn=True)})
    say({column if key == "outcome" else f"{column}_{key}": value for key, value in found.items()})
    return bool(found["outcome"] == "converted")


def _attempt(work: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """Return an outcome and what the work gives.

    The outcome is refused or crashed, with None, or empty where the work is done.
    """
    try:
        return {}, work()
    except Exception as error:
        if _is_of_memory(error):
            raise MemoryError from error
        if isinstance(error, StrideEliminationError):
            return {"outcome": "refused", "reason": _message(error)}, None
        reason = f"{_message(error)} ({_where_raised(error)})"
        return {"outcome": "crashed", "reason": reason}, None


def _checked(running: Running, twin: nn.Module, pooling: bool) -> dict[str, Any]:
    """Return whether the twin has no strides left and is equal, in float64 where that runs."""
    task, example = running.task, running.example
    calls = StridedCalls()
    with calls:
        call(twin, example, task.seed)
    left = calls.convolutions + (calls.poolings if pooling else [])
    if left:
        names = ", ".join(sorted(set(left)))
        return {"outcome": "strides left", "reason": f"{len(left)} calls with a stride: {names}"}
    found = _compared(running.reference, twin, task.seed)
    agree = found["output_error"] <= OUTPUTS_AGREE[running.reference.dtype]
    if found["share_of_bound"] > 1 or not agree:
        return {"outcome": "wrong", "reason": "not equal", **_finite(found)}
    return {"outcome": "converted", **_finite(found)}


def make_reference(task: Task, example: Example) -> Reference:
    """Return the model, made again, as a reference.

    It is in float64, or in float32 if it only runs in that.
    """
    model = make_model(task)
    wide = Example(*tree_map(_widened, (example.args, example.kwargs)))
    try:
        return Reference(model, wide, call(model.double(), wide, task.seed))
    except Exception as error:  # it has float32 written somewhere
        if _is_of_memory(error):
            raise
    model = make_model(task)
    return Reference(model, example, call(model, example, task.seed))


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _compared(reference: Reference, twin: nn.Module, number: int) -> dict[str, Any]:
    """Return the largest error of any converted call, at its own input, and that of the outputs."""
    twin = twin.double() if reference.dtype == torch.float64 else twin
    originals = dict(reference.model.named_modules())
    exchanged = [
        name
        for name, module in twin.named_modules()
        if name and name in originals and type(module) is not type(originals[name])
    ]
    with calls_of(twin, exchanged) as made_calls:
        obtained = call(twin, reference.example, number)
    with torch.no_grad():
        shares = {c.name: share_of_bound(originals[c.name], c) for c in made_calls}
    worst = max(shares, key=lambda name: shares[name], default=None)
    return {
        "precision": str(reference.dtype).removeprefix("torch."),
        "calls_compared": len(made_calls),
        "share_of_bound": 0.0 if worst is None else shares[worst],
        "worst_call": worst,
        "output_error": output_error(reference.outputs, obtained),
    }


def _finite(found: dict[str, Any]) -> dict[str, Any]:
    """Replace infinite numbers, which JSON lacks, by None."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()
    }


# As a network ---------------------------------------------------------------------------------------


def _as_network(running: Running, say: Say) -> None:
    """Say whether Theorem 2 has a plan for the model at the size of its inputs, and if not, why."""
    maps = running.example.args
    if running.example.kwargs or not all(isinstance(value, Tensor) for value in maps):
        say({"network": "not asked", "network_reason": "inputs that are no tensors, or have names"})
        return
    sizes = [tuple(value.shape[1:]) for value in maps]
    running.begin()
    began = time.perf_counter()
    found, plan = _attempt(
        lambda: plan_elimination(running.model, sizes[0] if len(sizes) == 1 else tuple(sizes))
    )
    say({"network_seconds": time.perf_counter() - began})
    say({"network_touched": running.touched()})
    if plan is not None:
        found = {"outcome": "planned", "parameters": plan.parameters[1]}
    say({"network" if k == "outcome" else f"network_{k}": v for k, v in found.items()})


def _is_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, as torch and Python say it."""
    told = ("can't allocate memory", "bad_alloc", "not enough memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in told)


# What is said ---------------------------------------------------------------------------------------


def _message(error: BaseException) -> str:
    """Return the message in one line, with the type of an error that is not the library's."""
    message = " ".join(str(error).split())[:LONGEST]
    if isinstance(error, (StrideEliminationError, InputError)):
        return message
    return f"{type(error).__name__}: {message}"


def _where_raised(error: BaseException) -> str:
    """Return where the error was raised: the last place in the library, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "stridenet" in Path(frame.filename).parts]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in ours[-1:] + frames[-1:]]
    return ", ".join(dict.fromkeys(places))


def _input_sizes(example: Example) -> str:
    """Return the sizes of the tensors in the example, batch first."""
    tensors = [v for v in tree_leaves((example.args, example.kwargs)) if isinstance(v, Tensor)]
    return " and ".join("x".join(map(str, tensor.shape)) for tensor in tensors)
