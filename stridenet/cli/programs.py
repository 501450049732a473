"""Files that PyTorch reads: programs of torch.export, and state_dicts; each is read and checked."""

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from stridenet.cli.models import random_inputs
from stridenet.cli.output import appearing
from stridenet.errors import NotEqualError, StrideEliminationError
from stridenet.onnx.check import Images, compare_outputs, outputs_of, pytorch_outputs
from stridenet.onnx.export import CHECKED_BATCHES, TRACED_BATCH, another_size, free_axes, quietly
from stridenet.onnx.strides import reason

Sizes = Sequence[tuple[int, ...]]


def save_program(
    model: nn.Module, network: nn.Module, path: Path, sizes: Sizes, batch: int | None, free: bool
) -> str:
    """Write `network` as a program of torch.export, which gives what `model` gives.

    sizes: of one image of each input.
    batch: images at once; None: any.
    free: whether any spatial size is taken, too, as far as the network does.

    Returns what there is to say of it. Raises StrideEliminationError where the network cannot be
    exported, and NotEqualError where the program is not the model.
    """
    inputs = _drawn(sizes, batch or TRACED_BATCH)
    try:
        with quietly():
            axes = free_axes(network, inputs, batch, free)
            program = torch.export.export(network, inputs, dynamic_shapes=axes)
    except Exception as error:  # what the user's forward raises while it is traced varies
        raise StrideEliminationError(
            f"{type(model).__name__} cannot be exported ({reason(error)}); write its forward without "
            f"decisions on values{'' if batch else ', or give batch=1 if they depend on sizes'}"
        ) from error
    batches = [_drawn(sizes, count) for count in ([batch] if batch else CHECKED_BATCHES)]
    if free:
        batches += _other_sizes(model, program, sizes)
    with appearing(path) as temporary:
        with quietly():
            _write(temporary, lambda file: torch.export.save(program, file))
            loaded = torch.export.load(temporary).module()
        outputs = partial(pytorch_outputs, loaded, torch.float32, batches)
        found = compare_outputs(path.name, "the program", outputs, model, batches)
    tried = ", ".join("x".join(map(str, images[0].shape)) for images in batches)
    return (
        f"{path}: a program of torch.export, as torch.export.load reads it\n"
        f"equal to the model on {tried}: largest difference {found.difference:.2g} of at most "
        f"{found.tolerance:.2g} (largest output {found.largest_output:.2g})"
    )


def _drawn(sizes: Sizes, batch: int) -> Images:
    drawn = random_inputs(sizes, batch, seed=batch)
    assert drawn is not None
    return drawn


def _other_sizes(
    model: nn.Module, program: torch.export.ExportedProgram, sizes: Sizes
) -> list[Images]:
    """One batch of sizes that differ where the program leaves them free, if the model takes them."""
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.name in names]
    shapes = [[*node.meta["val"].shape] for node in nodes]
    others = [
        tuple(map(another_size, size, axes[1:])) for size, axes in zip(sizes, shapes, strict=True)
    ]
    if others == [*sizes]:
        return []
    images = _drawn(others, CHECKED_BATCHES[-1])
    try:
        outputs_of(model, images)
    except StrideEliminationError:
        return []
    return [images]


def save_state(network: nn.Module, path: Path) -> str:
    """Write the network's state_dict. Returns what there is to say of it."""
    state = network.state_dict()
    with appearing(path) as temporary:
        _write(temporary, lambda file: torch.save(state, file))
        read = torch.load(temporary, weights_only=True)
        if [*read] != [*state] or not all(map(_is_same, read.values(), state.values())):
            raise NotEqualError(f"{path.name} does not hold the network's numbers when it is read")
    return f"{path}: a state_dict of {len(state)} tensors, equal to the bit when it is read again"


def _write(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Write by Python what torch makes: where a disk is full, torch's own writer ends the process."""
    made = io.BytesIO()
    save(made)
    path.write_bytes(made.getbuffer())


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
