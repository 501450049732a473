"""A network as an ONNX file, which has passed its checks before it appears under its name.

The file is written, checked and run in a hidden folder beside its place, and moved there last: whoever
finds it finds one that onnx accepts, that computes in onnxruntime what the network computes in PyTorch
and that, of a twin, has no stride above 1.
"""

import contextlib
import importlib
import inspect
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from stridenet import host
from stridenet.by_layer.converted import is_converted
from stridenet.by_layer.exchange import planned_steps
from stridenet.by_layer.modules import UnitStrideForward, UnitStridePooling
from stridenet.copies import copied, unwrapped
from stridenet.errors import InputError, StrideEliminationError
from stridenet.files import destination
from stridenet.onnx.check import Comparison, Images, compare, outputs_of
from stridenet.onnx.files.options import Kernel
from stridenet.onnx.layout import layout_of, layout_path, write_layout
from stridenet.onnx.staging import staged
from stridenet.onnx.strides import POOLING_OPERATORS, StridedNode, check_graph, reason
from stridenet.plan import EliminationPlan
from stridenet.sizes import Size, checked_sizes, format_size
from stridenet.twin import UnitStrideNetwork

ExportRearrange = Literal["graph", "host", "reshape", "two-step", "space_to_depth"]
FILE_SPELLINGS = ("reshape", "two-step", "space_to_depth")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SINGLE_FILE_LIMIT = (
    2**30
)  # bytes of weights; protobuf ends at 2 GiB, so that more lie in a file beside
TRACED_BATCH = 2  # torch.export takes an axis of size 1 for one that is always 1
CHECKED_BATCHES = (1, 3)  # where the batch is free


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what the checks found."""

    path: Path
    layout: Path | None  # of the rearrangement that is left to the host
    operators: dict[str, int]  # how many nodes of each, the most frequent first
    strided: tuple[StridedNode, ...]  # strides above 1; of a twin, those that its plan keeps
    comparison: Comparison

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
    destination(path)  # says so before the work if no file can be there
    path = Path(path)
    _check_arguments(rearrange, batch)
    require_packages()
    if rearrange in FILE_SPELLINGS:
        given = {"example_inputs": example_inputs, "batch": batch, "tolerance": tolerance}
        return _by_file(network, path, input_size, given, (rearrange, kernel, pooling))
    if kernel != "minimal" or pooling:
        raise InputError(
            f"kernel={kernel}, pooling={pooling} are of a file's conversion, which rearrange="
            f"{' or '.join(FILE_SPELLINGS)} asks for; rearrange={rearrange} converts nothing"
        )
    if example_inputs is not None:
        input_size = _sizes_of(example_inputs, input_size)
    subject = _subject(network, input_size, rearrange, free=example_inputs is not None)
    with staged(path) as folder:
        program = _translate(subject, batch)
        batches = _checked_images(program, subject, batch)
        _annotate(program, subject)
        _save(program, folder / path.name)
        if subject.layout:
            write_layout(subject.layout, folder / layout_path(path).name)
        operators, strided = check_graph(folder / path.name, _may_stay(subject))
        feeds = [subject.fed(images) for images in batches]
        comparison = compare(folder / path.name, subject.network, batches, feeds, tolerance)
    layout = layout_path(path) if subject.layout else None
    return ExportReport(path, layout, operators, strided, comparison)


def _by_file(
    network: nn.Module, path: Path, input_size: Any, given: dict[str, Any], spelling: Any
) -> ExportReport:
    """Export a strided network, and convert its file."""
    from stridenet.onnx.files.api import convert_file  # needs onnx, which the library does not

    rearrange, kernel, pooling = spelling
    if isinstance(unwrapped(network), UnitStrideNetwork) or is_converted(unwrapped(network)):
        raise InputError(
            f"rearrange={rearrange} converts the file of a strided network, and this one has been "
            "converted: give the network that it was made of"
        )
    with tempfile.TemporaryDirectory() as folder:
        strided = Path(folder) / path.name
        report = export_onnx(network, strided, input_size, **given)
        options = {"rearrange": rearrange, "kernel": kernel, "pooling": pooling}
        done = convert_file(strided, path, **options)
    return replace(report, path=path, operators=done.operators, strided=done.kept)


def require_packages() -> None:
    """Raise InputError unless everything that an export needs is installed."""
    try:
        with quietly():
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


# What is exported -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Subject:
    """A network ready for export: on the CPU, in evaluation mode, of known inputs."""

    network: nn.Module  # takes ordinary images
    names: tuple[str, ...]  # of its inputs
    sizes: tuple[Size, ...]  # of one image of each
    plan: EliminationPlan | None  # of a twin
    layout: dict[str, Any] | None  # where the host rearranges
    free: bool = False  # spatial sizes, too

    @property
    def exported(self) -> nn.Module:
        """What the file computes: the whole network, or what follows the rearrangement."""
        if self.layout and isinstance(self.network, UnitStrideNetwork):
            return self.network.network
        return self.network

    def images(self, count: int, sizes: Sequence[Size] | None = None) -> Images:
        """Random ordinary images (count, c, h, w) for each input, of its own sizes or of others."""
        generator = torch.Generator().manual_seed(count)
        return tuple(
            torch.randn(count, *size, generator=generator, dtype=torch.float32, device="cpu")
            for size in sizes or self.sizes
        )

    def fed(self, images: Images) -> dict[str, np.ndarray]:
        """What the file's inputs get for these images: where the host rearranges, as it does it."""
        arrays = tuple(tensor.numpy() for tensor in images)
        if self.layout:
            rearranged = host.rearrange(self.layout, *arrays)
            arrays = rearranged if isinstance(rearranged, tuple) else (rearranged,)
        return dict(zip(self.names, arrays, strict=True))


def _sizes_of(example_inputs: Any, input_size: Any) -> tuple[Size, ...]:
    """The sizes of one image of each input."""
    given = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    plain = isinstance(given, (tuple, list)) and given and all(isinstance(x, Tensor) for x in given)
    if not plain or input_size is not None:
        raise InputError(
            f"example_inputs is a {type(example_inputs).__name__}: give a tensor, or a tuple of "
            "tensors (an ONNX file has positional inputs), and no input_size beside it"
        )
    if any(x.ndim < 2 for x in given):
        raise InputError("example_inputs must have a batch first, and at least one axis behind it")
    return tuple(tuple(x.shape[1:]) for x in given)


def _subject(
    network: nn.Module, input_size: Sequence[Any] | None, rearrange: str, free: bool
) -> _Subject:
    network = unwrapped(network)
    _require_float32(network)
    sizes = None if input_size is None else checked_sizes(input_size)
    plan = layout = None
    if isinstance(network, UnitStrideNetwork):
        plan = network.plan
        made_for = tuple(each.size for each in plan.inputs)
        names = tuple(each.name for each in plan.inputs)
        if sizes not in (None, made_for):
            raise InputError(
                f"input_size={input_size}, but this twin was made for "
                f"{' and '.join(map(format_size, made_for))}; leave input_size out"
            )
        sizes = made_for
        layout = describe_layout(plan) if rearrange == "host" else None
    elif rearrange == "host":
        raise InputError(
            f"rearrange=host, but a {type(network).__name__} takes ordinary images; only the twin "
            "that eliminate_stride returns can leave a rearrangement to the host"
        )
    elif sizes is None:
        raise InputError("input_size is missing: give the size of one image, as in (1, 28, 28)")
    else:
        names = _parameter_names(network, len(sizes))
    network = copied(network).to("cpu").eval()
    return _Subject(network, names, sizes, plan, layout, free and plan is None)


def _may_stay(subject: _Subject) -> Callable[[StridedNode], bool]:
    """Return what says of a node with a stride in the file whether it may stay."""
    network = subject.network
    if subject.plan is not None:
        return lambda node: False
    if not is_converted(network):
        return lambda node: True
    kept = [step.mixin for step in planned_steps(network, None, pooling=True)]
    calls = [m for m in network.modules() if isinstance(m, UnitStrideForward)]
    pools_go = any(isinstance(m, UnitStridePooling) for m in network.modules()) or any(
        m.unit_stride_calls["pooling"] for m in calls
    )
    pooling_stays = UnitStridePooling in kept or not pools_go
    others_stay = any(mixin is not UnitStridePooling for mixin in kept)

    def may_stay(node: StridedNode) -> bool:
        return pooling_stays if node.operator in POOLING_OPERATORS else others_stay

    return may_stay


def _require_float32(network: nn.Module) -> None:
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_meta:
            raise StrideEliminationError(f"{name} is on the meta device: load the weights first")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(
                f"{name} is {str(tensor.dtype).removeprefix('torch.')}, for which onnxruntime has no "
                "convolution on the CPU, so that the file could not be checked; export copy.deepcopy("
                "network).float(), and let the tool for the device convert the file"
            )


def _parameter_names(network: nn.Module, count: int) -> tuple[str, ...]:
    """What the network's forward calls its first `count` inputs."""
    names: list[str] = []
    for parameter in inspect.signature(network.forward).parameters.values():
        if parameter.kind == parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{number}" for number in range(len(names), count)]
        else:
            names.append(parameter.name)
    return tuple(names[:count])


# The host's rearrangement ---------------------------------------------------------------------------


def describe_layout(plan: EliminationPlan) -> dict[str, Any]:
    """How a twin's inputs come about: numbers, which stridenet.host reads, and the same in words."""
    return layout_of(
        {
            "name": each.name,
            "dtype": "float32",
            "image_size": list(each.size),
            "padding": [list(pair) for pair in each.padding],
            "factor": list(each.map.factor),
            "phase_form_size": list(each.map.unit_stride_size),
        }
        for each in plan.inputs
    )


# Translation and file -------------------------------------------------------------------------------


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what torch's exporter prints, logs and warns of: its errors come as exceptions."""
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


def _checked_images(
    program: torch.onnx.ONNXProgram, subject: _Subject, batch: int | None
) -> list[Images]:
    """Two batches; where the file's sizes are free, the second one has other sizes, too."""
    counts = [batch] if batch else [*CHECKED_BATCHES]
    given = [[*value.shape] if value.shape else [] for value in program.model.graph.inputs]
    if subject.free and given and isinstance(given[0][0], int):  # the network fixed its batch
        counts = [given[0][0]]
    images = [subject.images(count) for count in counts]
    if not subject.free or subject.layout:
        return images
    sizes = [
        tuple(map(another_size, size, axes[1:]))
        for size, axes in zip(subject.sizes, given, strict=True)
    ]
    if tuple(sizes) == subject.sizes:
        return images
    others = subject.images(counts[-1], sizes)
    try:
        outputs_of(subject.network, others)
    except StrideEliminationError:  # that the sizes must go together, a file cannot say
        return images
    return [*images, others]


def another_size(size: int, axis: Any) -> int:
    """Another size of an axis that is free and spatial: a quarter more."""
    return size if isinstance(axis, int) else size + size // 4 + 1


def _translate(subject: _Subject, batch: int | None) -> torch.onnx.ONNXProgram:
    network = subject.exported
    arrays = subject.fed(subject.images(batch or TRACED_BATCH)).values()
    inputs = tuple(map(torch.from_numpy, arrays))
    outputs = len(outputs_of(network, inputs))
    names = ["output"] if outputs == 1 else [f"output_{number}" for number in range(outputs)]
    try:
        with quietly():
            program = torch.onnx.export(
                network,
                inputs,
                dynamo=True,
                verbose=False,
                input_names=subject.names,
                output_names=names,
                dynamic_shapes=free_axes(network, inputs, batch, subject.free),
            )
    except Exception as error:  # what the user's forward raises while it is traced varies
        fixed = "" if batch else ", or give batch=1 if they depend on the number of images"
        raise StrideEliminationError(
            f"{type(subject.network).__name__} cannot be exported ({reason(error)}); write its "
            f"forward without decisions on values{fixed}"
        ) from error
    assert program is not None
    return program


def free_axes(
    network: nn.Module, inputs: tuple[Tensor, ...], batch: int | None, free: bool
) -> tuple[Any, ...] | None:
    """For each parameter of forward which axes may have any size, a tuple for *inputs."""
    if batch and not free:
        return None

    def of(value: Tensor) -> dict[int, Any]:
        if not free:
            return {0: torch.export.Dim("batch")}
        axes = range(1 if batch else 0, value.ndim)
        return {axis: torch.export.Dim.AUTO for axis in axes if axis != 1}

    given = inspect.signature(network.forward).bind(*inputs).arguments.values()
    return tuple(of(v) if isinstance(v, Tensor) else tuple(map(of, v)) for v in given)


def _annotate(program: torch.onnx.ONNXProgram, subject: _Subject) -> None:
    """Say in the file what it is; take out in which folders of this machine the code lay."""
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    properties = program.model.metadata_props
    unit_stride = subject.plan is not None or is_converted(subject.network)
    properties["stridenet.network"] = "unit_stride" if unit_stride else "strided"
    if subject.layout:
        properties["stridenet.layout"] = json.dumps(subject.layout)


def _save(program: torch.onnx.ONNXProgram, path: Path) -> None:
    weights = program.model.graph.initializers.values()
    size = sum(value.const_value.nbytes for value in weights if value.const_value is not None)
    with quietly():
        program.save(path, external_data=size > SINGLE_FILE_LIMIT)
