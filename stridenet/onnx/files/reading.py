"""Reads an ONNX file: as protobuf has it, and as a graph of onnx-ir with its sizes."""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from stridenet.errors import InputError
from stridenet.onnx.files.building import FreshNames
from stridenet.onnx.files.options import did_you_mean
from stridenet.onnx.strides import reason

OLDEST_OPSET = 11  # the first one whose Pad takes sizes that are computed
DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class OnnxFile:
    """Holds a file that has been read; the graph of onnx-ir refers to the tensors of `proto`."""

    path: Path
    proto: Any  # onnx.ModelProto
    opset: int
    model: ir.Model
    names: FreshNames

    @property
    def folder(self) -> Path:
        """Return the folder that has the file and its external data."""
        return self.path.parent


def read_onnx(path: str | os.PathLike[str]) -> OnnxFile:
    """Read a file, and check that this package can work on it.

    Raises InputError for a file that is no ONNX, is truncated, is newer than the installed onnx or
    older than opset 11, or refers to external data that is missing or lies outside of its folder.
    """
    path = Path(path)
    proto = parse(path)
    opset = _checked_versions(path, proto)
    check_external_data(path, proto)
    try:
        with without_onnx_ir_logs():
            model = ir.from_proto(proto)
            _infer_sizes(model)
    except Exception as error:  # onnx-ir has no common class of errors
        if "Sparse" in reason(error):
            raise InputError(
                f"{path} has a Constant with sparse_value, which onnx-ir does not read: write a value"
            ) from error
        raise InputError(f"{path} is not valid ONNX: {reason(error)}") from error
    return OnnxFile(path, proto, opset, model, FreshNames(_all_names(proto)))


def parse(path: Path) -> Any:
    """Return the file as an onnx.ModelProto, without its external data. Raises InputError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path} is no file; name an ONNX file, as in model.onnx")
        proto = onnx.ModelProto.FromString(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist{_similar(path)}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # protobuf's own class differs with its implementation
        raise InputError(
            f"{path} is no ONNX file, or only part of one ({reason(error)}); copy or download it again"
        ) from error
    if not proto.graph.node or not proto.ir_version:
        raise InputError(
            f"{path} is no ONNX file, or only part of one (it has no nodes); copy or download it again"
        )
    return proto


def _similar(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    return did_you_mean(path.name, [each.name for each in folder.iterdir()])


def _checked_versions(path: Path, proto: Any) -> int:
    """Return the version of ONNX's own operators. Raises InputError for one that is not supported."""
    if proto.ir_version > onnx.IR_VERSION:
        raise InputError(
            f"{path} has IR version {proto.ir_version}, and onnx {onnx.__version__} knows up to "
            f"{onnx.IR_VERSION}: pip install --upgrade onnx"
        )
    versions = [each.version for each in proto.opset_import if each.domain in DEFAULT_DOMAINS]
    opset = max(versions, default=0)
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise InputError(
            f"{path} has opset {opset}, and onnx {onnx.__version__} knows up to {newest}: "
            "pip install --upgrade onnx"
        )
    if opset < OLDEST_OPSET:
        raise InputError(
            f"{path} has opset {opset}, and {OLDEST_OPSET} is the oldest that is converted: "
            f'python -c "import onnx, onnx.version_converter as v; onnx.save(v.convert_version('
            f"onnx.load('{path}'), 13), '{path.stem}-13.onnx')\""
        )
    return int(opset)


# External data


def tensors_of(proto: Any) -> Iterator[Any]:
    """Yield all tensors of a file: initializers and attributes, in subgraphs and functions too."""
    training = (g for info in proto.training_info for g in (info.initialization, info.algorithm))
    for graph in (proto.graph, *training):
        yield from _tensors_of_graph(graph)
    for function in proto.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in subgraphs(attribute):
                yield from _tensors_of_graph(graph)


def subgraphs(attribute: Any) -> Iterator[Any]:
    """Yield the graphs in an attribute of a node."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def is_external(tensor: Any) -> bool:
    """Tell whether a TensorProto's numbers lie in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


class ExternalData(NamedTuple):
    """Names the part of a file that has a tensor's numbers."""

    file: Path
    offset: int  # in bytes
    length: int  # in bytes; −1 for all the rest


def external_data(folder: Path, tensor: Any) -> ExternalData:
    """Return where the numbers of a tensor lie. Raises ValueError where that is no number."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    return ExternalData(folder / entries.get("location", ""), offset, length)


def check_external_data(path: Path, proto: Any) -> None:
    """Raise InputError where external data is missing, or lies outside of the file's folder."""
    folder = path.parent.resolve()
    for tensor in tensors_of(proto):
        if not is_external(tensor):
            continue
        try:
            place, offset, length = external_data(folder, tensor)
        except ValueError as error:
            raise InputError(
                f"{path} is not valid ONNX: tensor {tensor.name!r}: {error}"
            ) from error
        if not place.resolve().is_relative_to(folder) or place.resolve() == folder:
            raise InputError(
                f"{path}: tensor {tensor.name!r} refers to {place}, outside of the file's folder; put "
                "the data beside the file, and its name alone into the file"
            )
        if not place.is_file():
            raise InputError(
                f"{path}: tensor {tensor.name!r} lies in {place.name}, which is missing; copy it from "
                "where the file came from, into the same folder"
            )
        if offset < 0 or place.stat().st_size < offset + max(length, 0):
            raise InputError(
                f"{path}: {place.name} ends before tensor {tensor.name!r} does (at byte "
                f"{offset + max(length, 0):,}, of {place.stat().st_size:,}); copy or download it again"
            )


# The graph


@contextmanager
def without_onnx_ir_logs() -> Iterator[None]:
    """Suppress what onnx-ir logs: what matters of it comes as an exception."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _infer_sizes(model: ir.Model) -> None:
    """Infer the sizes that follow from those of the inputs, and from nothing else.

    The sizes that the file has for the maps between may be wrong: a tool that frees the batch, say, may
    have left them as they were. Sizes that do not follow are computed in the graph when it runs.
    """
    for graph in model.graphs():
        given = {*graph.inputs, *graph.initializers.values()}
        for node in graph:
            for value in node.outputs:
                if value not in given:
                    value.shape = None
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _all_names(proto: Any) -> Iterator[str]:
    """Yield all names of values and nodes, in subgraphs and functions too."""
    for function in proto.functions:
        yield from (*function.input, *function.output)
        yield from _names_of_nodes(function.node)
    yield from _names_of_graph(proto.graph)


def _names_of_graph(graph: Any) -> Iterator[str]:
    yield from (each.name for each in (*graph.input, *graph.output, *graph.initializer))
    yield from (each.values.name for each in graph.sparse_initializer)
    yield from _names_of_nodes(graph.node)


def _names_of_nodes(nodes: Any) -> Iterator[str]:
    for node in nodes:
        yield node.name
        yield from (*node.input, *node.output)
        for attribute in node.attribute:
            for graph in subgraphs(attribute):
                yield from _names_of_graph(graph)
