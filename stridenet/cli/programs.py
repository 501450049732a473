"""Writes files that PyTorch reads: programs of torch.export, and state_dicts, each of them checked."""

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from stridenet.errors import NotEqualError
from stridenet.files import disk_errors, write
from stridenet.onnx.check import compare_outputs, pytorch_outputs
from stridenet.onnx.tracing import (
    CHECKED_BATCHES,
    TRACED_BATCH,
    free_axes,
    images_of_other_sizes,
    random_images,
    tracing,
    without_torch_output,
)
from stridenet.sizes import Size, format_size


def save_program(
    model: nn.Module,
    network: nn.Module,
    path: Path,
    sizes: Sequence[Size],
    batch: int | None,
    any_size: bool,
) -> str:
    """Write `network` as a program of torch.export, and return a text on what was written.

    model: the strided network, whose outputs the program must give.
    sizes: of one image of each input.
    batch: how many images the program takes at once; None: any number.
    any_size: whether the program takes any spatial size, too, as far as the network does.

    Raises StrideEliminationError where the network cannot be exported, and NotEqualError where the
    program is not the model.
    """
    inputs = random_images(sizes, batch or TRACED_BATCH)
    with tracing(model, batch):
        axes = free_axes(network, inputs, batch, any_size)
        program = torch.export.export(network, inputs, dynamic_shapes=axes)
    counts = [batch] if batch else [*CHECKED_BATCHES]
    batches = [random_images(sizes, count) for count in counts]
    if any_size:
        names = program.graph_signature.user_inputs
        shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in names]
        batches += images_of_other_sizes(model, sizes, shapes, counts[-1])
    # It is written in memory, since torch's own writer ends the process where a disk is full.
    content = io.BytesIO()
    with without_torch_output():
        torch.export.save(program, content)
        content.seek(0)
        loaded = torch.export.load(content).module()
    outputs = partial(pytorch_outputs, loaded, torch.float32, batches)
    found = compare_outputs(path.name, "the program", outputs, model, batches)
    with disk_errors(path):
        write(path, content.getvalue())
    return (
        f"{path}: a program of torch.export, as torch.export.load reads it\n"
        f"equal to the model on {', '.join(format_size(each[0].shape) for each in batches)}: largest "
        f"difference {found.difference:.2g} of at most {found.tolerance:.2g} (largest output "
        f"{found.largest_output:.2g})"
    )


def save_state(network: nn.Module, path: Path) -> str:
    """Write the network's state_dict, and return a text on what was written."""
    state = network.state_dict()
    content = io.BytesIO()
    torch.save(state, content)
    content.seek(0)
    read = torch.load(content, weights_only=True)
    if [*read] != [*state] or not all(map(_is_equal, read.values(), state.values())):
        raise NotEqualError(f"{path.name} does not hold the network's numbers when it is read")
    with disk_errors(path):
        write(path, content.getvalue())
    return f"{path}: a state_dict of {len(state)} tensors, equal to the bit when it is read again"


def _is_equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
