"""Helps torch.export to trace a network: which axes are free, and on what the result is checked."""

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stridenet.errors import StrideEliminationError
from stridenet.onnx.check import Images, outputs_of
from stridenet.onnx.strides import reason
from stridenet.sizes import Size

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


@contextlib.contextmanager
def tracing(model: nn.Module, batch: int | None) -> Iterator[None]:
    """Let torch trace a network, and raise StrideEliminationError where it cannot.

    model, batch: the network and the number of images that the user gave, for the message.
    """
    try:
        with without_torch_output():
            yield
    except Exception as error:  # what the user's forward raises while it is traced varies
        fixed = "" if batch else ", or give batch=1 if they depend on sizes or the number of images"
        raise StrideEliminationError(
            f"{type(model).__name__} cannot be exported ({reason(error)}); write its forward without "
            f"decisions on values{fixed}"
        ) from error


def random_images(sizes: Sequence[Size], count: int) -> Images:
    """Return random images (count, c, h, w) for each size, other ones for each count."""
    generator = torch.Generator().manual_seed(count)
    return tuple(
        torch.randn(count, *size, generator=generator, dtype=torch.float32, device="cpu")
        for size in sizes
    )


def images_of_other_sizes(
    network: nn.Module, sizes: Sequence[Size], shapes: Sequence[Sequence[Any]], count: int
) -> list[Images]:
    """Return a batch whose images are a quarter larger along each axis that is free.

    sizes: of one image of each input.
    shapes: of the inputs as they have been traced: an int for each axis that is fixed.

    Return [] where no axis is free, or the network does not take these images: that sizes of its
    inputs must go together, no traced program can say.
    """
    others = [
        tuple(
            n if isinstance(axis, int) else n + n // 4 + 1
            for n, axis in zip(size, shape[1:], strict=True)
        )
        for size, shape in zip(sizes, shapes, strict=True)
    ]
    if others == [*sizes]:
        return []
    images = random_images(others, count)
    try:
        outputs_of(network, images)
    except StrideEliminationError:
        return []
    return [images]


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
