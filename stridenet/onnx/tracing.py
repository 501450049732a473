"""Prepares what torch.export traces: which axes are free, and that its messages stay out of the way."""

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

TRACED_BATCH = 2  # torch.export takes an axis of size 1 for one that is always 1
CHECKED_BATCHES = (1, 3)  # where the batch is free


@contextlib.contextmanager
def without_torch_output() -> Iterator[None]:
    """Suppress what torch's exporter prints, logs and warns of: its errors come as exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def another_size(size: int, axis: Any) -> int:
    """Return another size, a quarter larger, for an axis that is free; a fixed one is an int."""
    return size if isinstance(axis, int) else size + size // 4 + 1


def free_axes(
    network: nn.Module, inputs: tuple[Tensor, ...], batch: int | None, free: bool
) -> tuple[Any, ...] | None:
    """Return for each parameter of forward which axes may have any size, as torch.export takes it.

    batch: images at once; None: any number.
    free: whether spatial axes are free, too, as far as the network lets them.
    """
    if batch and not free:
        return None

    def free_axes_of(value: Tensor) -> dict[int, Any]:
        if not free:
            return {0: torch.export.Dim("batch")}
        axes = range(1 if batch else 0, value.ndim)
        return {axis: torch.export.Dim.AUTO for axis in axes if axis != 1}

    arguments = inspect.signature(network.forward).bind(*inputs).arguments.values()
    return tuple(
        free_axes_of(each)
        if isinstance(each, Tensor)
        else tuple(map(free_axes_of, each))  # of *inputs
        for each in arguments
    )
