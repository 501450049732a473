"""Networks as graphs of steps, each a line of code and what it reads; their weights and images.

A network prints as the code that makes it, so that a failure can be pasted into a test.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Network(nn.Module):
    """Steps like ("nn.Conv2d(2, 3, 3)", "x") or ("x + y", "x", 0), and the names of the results.

    A step makes a module or an expression in x, y, z, w, which stand for its operands in order: the
    inputs "x" and "y", or numbers of earlier steps. A number in place of the code is that step's
    module again; a Parameter has no operands. result is a name, or a tuple or dict of names.
    """

    consistent = True  # all maps that are merged have one rate

    def __init__(self, *steps: tuple, result: Any = None) -> None:
        super().__init__()
        self.steps, self.result = steps, len(steps) - 1 if result is None else result
        # A number stands for that step's module, None for this step's Parameter.
        self.functions: list[Callable | int | None] = []
        for number, (code, *_) in enumerate(steps):
            made = code if isinstance(code, int) else evaluate(code)
            if isinstance(made, nn.Module | nn.Parameter):
                setattr(self, f"step{number}", made)
                made = None if isinstance(made, nn.Parameter) else number
            self.functions.append(made)

    def __repr__(self) -> str:
        steps = "".join(f"    {step!r},\n" for step in self.steps)
        return f"{type(self).__name__}(\n{steps}    result={self.result!r},\n)"

    def run(self, **inputs: Any) -> Any:
        known: dict[Any, Any] = inputs
        for number, function in enumerate(self.functions):
            if function is None:
                known[number] = getattr(self, f"step{number}")
                continue
            made = getattr(self, f"step{function}") if isinstance(function, int) else function
            known[number] = made(*[known[name] for name in self.steps[number][1:]])
        return pytree.tree_map(known.__getitem__, self.result)

    def forward(self, x: Tensor) -> Any:
        return self.run(x=x)


class TwoInputs(Network):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.run(x=x, y=y)


def evaluate(code: str) -> Any:
    """A module, a Parameter, or a function of up to four operands."""
    if not code.startswith("nn."):
        code = f"lambda x, y=None, z=None, w=None: {code}"
    return eval(code, {"torch": torch, "nn": nn, "F": F})


class Forward(nn.Module):
    """A module with this state (layers, parameters, buffers), whose forward is the given function."""

    def __init__(self, forward: Callable[..., Any], **state: Any) -> None:
        super().__init__()
        self.function = forward
        for name, value in state.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Use float64, evaluation mode, and weights that have no zeros and keep a map's magnitude,
    and with the statistics of a trained network."""
    generator = torch.Generator().manual_seed(seed)
    network.double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
            parameter /= math.sqrt(parameter[0].numel() if parameter.ndim else 1)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(generator=generator)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return network


def images(input_size: tuple, seed: int = 0) -> list[Tensor]:
    """Two for each input."""
    generator = torch.Generator().manual_seed(seed)
    sizes = input_size if isinstance(input_size[0], tuple) else (input_size,)
    return [torch.randn(2, *size, generator=generator, dtype=torch.float64) for size in sizes]
