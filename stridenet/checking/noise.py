"""Random numbers added to a network's parameters and statistics, because zeros and ones hide errors.

A residual branch whose last scale starts at zero could be anything. What is added keeps a network
sane: what is positive stays so, and no larger than it was; maps keep their magnitudes, roughly.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["full", "gentle", "parameters"]


@torch.no_grad()
def add_noise(network: nn.Module, kind: Kind = "full") -> None:
    """Change parameters and floating-point buffers of a network in place, always in the same way.

    Tensors that have several names are changed once. Parametrized weights change by way of their
    originals. gentle: every number is only multiplied, by 0.5 to 1; else parameters of both signs, and
    those that are zero, get normal numbers added, half as large as they are
    (vectors: at least 0.5). parameters: as full, but buffers stay: a forward may branch on them.
    """
    generator = torch.Generator().manual_seed(0)
    for _, parameter in network.named_parameters():
        if parameter.is_floating_point() and parameter.numel():
            _change(parameter, kind, generator)
    for name, buffer in () if kind == "parameters" else network.named_buffers():
        inside = "parametrizations." in name  # where it says what its weight is like
        if not buffer.is_floating_point() or not buffer.numel() or inside:
            continue
        if kind == "full" and name.endswith("running_mean"):
            buffer.add_(_normal(buffer, generator) / 2)
        elif kind == "full" and name.endswith("running_var"):
            buffer.mul_(_shrinking(buffer, generator)).add_(_normal(buffer, generator).abs() / 2)
        else:  # it may be a probability, a mask, or below a root
            buffer.mul_(_shrinking(buffer, generator))


def _change(parameter: Tensor, kind: Kind, generator: torch.Generator) -> None:
    one_sign = bool((parameter > 0).all()) or bool((parameter < 0).all())
    if kind == "gentle" or one_sign:
        parameter.mul_(_shrinking(parameter, generator))
        return
    size = float(parameter.double().square().mean().sqrt()) / 2
    if parameter.ndim < 2:  # a bias: maps are to be moved, too
        size = max(size, 0.5)
    elif not size:
        size = parameter[0].numel() ** -0.5
    parameter.add_(_normal(parameter, generator) * size)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    numbers = torch.randn(like.shape, generator=generator, dtype=_drawn(like), device="cpu")
    return numbers.to(like)


def _shrinking(like: Tensor, generator: torch.Generator) -> Tensor:
    numbers = torch.rand(like.shape, generator=generator, dtype=_drawn(like), device="cpu")
    return (1 - numbers / 2).to(like)


def _drawn(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32
