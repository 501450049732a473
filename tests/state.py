"""All that a conversion could leave changed: a model's state, and the generators of random numbers."""

import itertools
import random

import numpy as np
import torch
from torch import nn


def fingerprint(network: nn.Module) -> list:
    """Every tensor's identity, version and bytes, every module's attributes, flags and hooks."""
    state = itertools.chain(network.named_parameters(), network.named_buffers())
    tensors = [
        (name, id(t), t._version, t.requires_grad, t.grad, t.detach().numpy().tobytes())
        for name, t in state
    ]
    modules = [
        (name, id(m), {k: list(v) if isinstance(v, dict) else v for k, v in vars(m).items()})
        for name, m in network.named_modules()
    ]
    return [tensors, modules]


def random_states() -> list:
    """The states of the generators of torch, Python and NumPy."""
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]  # noqa: NPY002
