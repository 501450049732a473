"""Exports a network to an ONNX file, which passes its checks before it appears under its name.

The file is written, checked and run in a hidden folder beside its place, and moved there last. So a
file that has appeared is one that onnx accepts, that computes in onnxruntime what the network computes
in PyTorch and that, if it is a twin's, has no stride above 1.
"""

import importlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from stridenet.by_layer.converted import is_converted
from stridenet.copies import unwrapped
from stridenet.errors import InputError
from stridenet.files import destination
from stridenet.onnx.check import Images, OutputComparison, compare, outputs_of
from stridenet.onnx.exportable import ExportableNetwork, may_have_stride, prepare_network, sizes_of
from stridenet.onnx.files.options import Kernel
from stridenet.onnx.layout import layout_path, write_layout
from stridenet.onnx.staging import staged
from stridenet.onnx.strides import StridedNode, check_graph
from stridenet.onnx.tracing import (
    CHECKED_BATCHES,
    TRACED_BATCH,
    free_axes,
    images_of_other_sizes,
    random_images,
    tracing,
    without_torch_output,
)
from stridenet.twin import UnitStrideNetwork

ExportRearrange = Literal["graph", "host", "reshape", "two-step", "space_to_depth"]
FILE_SPELLINGS = ("reshape", "two-step", "space_to_depth")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Bytes of weights in one file; protobuf ends at 2 GiB, so that more of them lie in a file beside it.
SINGLE_FILE_LIMIT = 2**30


@dataclass(frozen=True)
class ExportReport:
    """Says what was written, and what the checks found."""

    path: Path
    layout: Path | None  # describes the rearrangement that is left to the host
    operators: dict[str, int]  # how many nodes of each, the most frequent first
    strided: tuple[StridedNode, ...]  # nodes with a stride above 1; a twin has none
    comparison: OutputComparison

    def __str__(self) -> str:
        found = self.comparison
        lines = [
            f"{self.path}: {', '.join(f'{n} {name}' for name, n in self.operators.items())}",
            f"strides above 1: {'; '.join(map(str, self.strided)) or 'none'}",
            f"onnxruntime against PyTorch, batches of {' and '.join(map(str, found.batches))}: largest "
            f"difference {found.difference:.2g} of at most {found.tolerance:.2g} (largest output "
            f"{found.largest_output:.2g})",
        ]
        if self.layout:
            lines.append(f"{self.layout}: how the host rearranges the images")
        return "\n".join(lines)


def export_onnx(
    network: nn.Module,
    path: str | os.PathLike[str],
    input_size: Sequence[Any] | None = None,
    *,
    example_inputs: Any = None,
    rearrange: ExportRearrange = "graph",
    kernel: Kernel = "minimal",
    pooling: bool = False,
    batch: int | None = None,
    tolerance: float | None = None,
) -> ExportReport:
    """Write `network`, in evaluation mode, into the ONNX file `path`, and check the file.

    network: a twin; or any network, converted by convert_layers or not, of images of `input_size`
        (channels, height, width), or of several inputs, a sequence of sizes. Weights are float32. The
        network is left as it is: a copy on the CPU is exported.
    example_inputs: instead of input_size: a tensor, or a tuple of tensors, one for each input. The file
        then takes any batch and any spatial sizes, as far as the network does; where it needs a size,
        the file has that size.
    rearrange: whether a twin's file takes ordinary images ("graph"), or their phase form, which the
        host makes ("host"). How is then described in NET.layout.json beside NET.onnx and in the file's
        metadata; stridenet.host does it in NumPy. Of a strided network, "reshape", "two-step" and
        "space_to_depth": its file is converted by onnx.files.convert_file, which says what they mean.
    kernel, pooling: as of convert_file.
    batch: images at once; None leaves it free.
    tolerance: largest difference allowed between onnxruntime and PyTorch; by default what rounding
        may do to this network, see onnx.check.compare.

    Weights of more than 1 GiB go into NET.onnx.data. Raises InputError for a wrong argument or a
    missing package, and StrideEliminationError where the network cannot be exported, or the file fails
    a check: a stride above 1 in a twin, or an output that is not PyTorch's. An earlier file then stays.
    """
    destination(path)  # refuses a path that no file can have, before any work
    path = Path(path)
    _check_arguments(rearrange, batch)
    require_packages()
    if rearrange in FILE_SPELLINGS:
        export = {"example_inputs": example_inputs, "batch": batch, "tolerance": tolerance}
        conversion = {"rearrange": rearrange, "kernel": kernel, "pooling": pooling}
        return _export_and_convert(network, path, {"input_size": input_size, **export}, conversion)
    if kernel != "minimal" or pooling:
        raise InputError(
            f"kernel={kernel}, pooling={pooling} are of a file's conversion, which rearrange="
            f"{' or '.join(FILE_SPELLINGS)} asks for; rearrange={rearrange} converts nothing"
        )
    if example_inputs is not None:
        input_size = sizes_of(example_inputs, input_size)
    exportable = prepare_network(network, input_size, rearrange, free=example_inputs is not None)
    with staged(path) as folder:
        program = _translate(exportable, batch)
        batches = _checked_images(program, exportable, batch)
        _annotate(program, exportable)
        _save(program, folder / path.name)
        if exportable.layout:
            write_layout(exportable.layout, folder / layout_path(path).name)
        operators, strided = check_graph(folder / path.name, may_have_stride(exportable))
        feeds = [exportable.feed(images) for images in batches]
        comparison = compare(folder / path.name, exportable.network, batches, feeds, tolerance)
    layout = layout_path(path) if exportable.layout else None
    return ExportReport(path, layout, operators, strided, comparison)


def _export_and_convert(
    network: nn.Module, path: Path, export: dict[str, Any], conversion: dict[str, Any]
) -> ExportReport:
    """Export a strided network, and convert its file.

    export: arguments of export_onnx; conversion: arguments of convert_file.
    """
    from stridenet.onnx.files.api import convert_file  # needs onnx, which the library does not

    if isinstance(unwrapped(network), UnitStrideNetwork) or is_converted(unwrapped(network)):
        raise InputError(
            f"rearrange={conversion['rearrange']} converts the file of a strided network, and this one "
            "has been converted: give the network that it was made of"
        )
    with tempfile.TemporaryDirectory() as folder:
        strided = Path(folder) / path.name
        report = export_onnx(network, strided, **export)
        done = convert_file(strided, path, **conversion)
    return replace(report, path=path, operators=done.operators, strided=done.kept)


def require_packages() -> None:
    """Raise InputError unless everything that an export needs is installed."""
    try:
        with without_torch_output():
            for package in PACKAGES:
                importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"an export to ONNX needs {', '.join(PACKAGES)} ({error}): pip install '.[onnx]' "
            "in stridenet's folder"
        ) from error


def _check_arguments(rearrange: str, batch: int | None) -> None:
    spellings = get_args(ExportRearrange)
    if rearrange not in spellings:
        raise InputError(f"rearrange={rearrange} is unknown; take one of {', '.join(spellings)}")
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise InputError(f"batch={batch} must be at least 1, or None (null) for any")


# Translation and file -------------------------------------------------------------------------------


def _checked_images(
    program: torch.onnx.ONNXProgram, exportable: ExportableNetwork, batch: int | None
) -> list[Images]:
    """Return the batches on which file and network are compared.

    They are two where the number of images is free; and one more, of other sizes, where the sizes are.
    """
    counts = [batch] if batch else [*CHECKED_BATCHES]
    shapes = [[*value.shape] if value.shape else [] for value in program.model.graph.inputs]
    if exportable.free and shapes and isinstance(shapes[0][0], int):  # the network fixed its batch
        counts = [shapes[0][0]]
    batches = [random_images(exportable.sizes, count) for count in counts]
    if exportable.free and not exportable.layout:
        network, sizes = exportable.network, exportable.sizes
        batches += images_of_other_sizes(network, sizes, shapes, counts[-1])
    return batches


def _translate(exportable: ExportableNetwork, batch: int | None) -> torch.onnx.ONNXProgram:
    """Let torch translate the network. Raises StrideEliminationError where it cannot be traced."""
    network = exportable.exported
    feed = exportable.feed(random_images(exportable.sizes, batch or TRACED_BATCH))
    inputs = tuple(map(torch.from_numpy, feed.values()))
    outputs = len(outputs_of(network, inputs))
    with tracing(exportable.network, batch):
        program = torch.onnx.export(
            network,
            inputs,
            dynamo=True,
            verbose=False,
            input_names=exportable.names,
            output_names=["output"] if outputs == 1 else [f"output_{n}" for n in range(outputs)],
            dynamic_shapes=free_axes(network, inputs, batch, exportable.free),
        )
    assert program is not None
    return program


def _annotate(program: torch.onnx.ONNXProgram, exportable: ExportableNetwork) -> None:
    """Note in the file what it is, and remove the paths of the code, which tell of this machine."""
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    properties = program.model.metadata_props
    unit_stride = exportable.plan is not None or is_converted(exportable.network)
    properties["stridenet.network"] = "unit_stride" if unit_stride else "strided"
    if exportable.layout:
        properties["stridenet.layout"] = json.dumps(exportable.layout)


def _save(program: torch.onnx.ONNXProgram, path: Path) -> None:
    weights = program.model.graph.initializers.values()
    size = sum(value.const_value.nbytes for value in weights if value.const_value is not None)
    with without_torch_output():
        program.save(path, external_data=size > SINGLE_FILE_LIMIT)
