"""An ONNX file that can be converted: as protobuf has it, and as a graph of onnx-ir with its sizes."""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from stridenet.errors import InputError
from stridenet.onnx.files.building import Names
from stridenet.onnx.strides import reason

OLDEST_OPSET = 11  # the first one whose Pad takes sizes that are computed
DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class OnnxFile:
    """A file that has been read. The graph of onnx-ir refers to the tensors of `proto`."""

    path: Path
    proto: Any  # onnx.ModelProto
    opset: int
    model: ir.Model
    names: Names

    @property
    def folder(self) -> Path:
        """Where its external data lies."""
        return self.path.parent


def read(path: str | os.PathLike[str]) -> OnnxFile:
    """Read a file, and look whether it is one that this package can work on.

    Raises InputError for what is no ONNX, is truncated, is newer than the installed onnx or older than
    opset 11, or refers to external data that is missing or lies outside of its folder.
    """
    path = Path(path)
    proto = parsed(path)
    opset = _checked_versions(path, proto)
    check_external_data(path, proto)
    try:
        with quietly():
            model = ir.from_proto(proto)
            _infer_sizes(model)
    except Exception as error:  # onnx-ir has no common class of errors
        if "Sparse" in reason(error):
            raise InputError(
                f"{path} has a Constant with sparse_value, which onnx-ir does not read: write a value"
            ) from error
        raise InputError(f"{path} is not valid ONNX: {reason(error)}") from error
    return OnnxFile(path, proto, opset, model, Names(_names(proto)))


def parsed(path: Path) -> Any:
    """The file as an onnx.ModelProto, without its external data. Raises InputError."""
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
    from stridenet.onnx.files.options import did_you_mean

    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    return did_you_mean(path.name, [each.name for each in folder.iterdir()])


def _checked_versions(path: Path, proto: Any) -> int:
    """The version of ONNX's own operators. Raises InputError where it cannot be worked on."""
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
    """All tensors of a file: initializers and attributes, of subgraphs and functions too."""
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
    """The graphs in an attribute of a node."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def is_external(tensor: Any) -> bool:
    """Whether a TensorProto's numbers lie in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def external_place(folder: Path, tensor: Any) -> tuple[Path, int, int]:
    """The file of a tensor's numbers, their offset and length in bytes (−1: to the end)."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    return folder / entries.get("location", ""), offset, length


def check_external_data(path: Path, proto: Any) -> None:
    """Raise InputError where numbers are missing, or would be read from outside of the folder."""
    folder = path.parent.resolve()
    for tensor in tensors_of(proto):
        if not is_external(tensor):
            continue
        try:
            place, offset, length = external_place(folder, tensor)
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
def quietly() -> Iterator[None]:
    """Without what onnx-ir logs: what is wrong comes as an exception, or does not matter here."""
    logger = logging.getLogger("onnx_ir")
    level, logger.level = logger.level, logging.CRITICAL
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _infer_sizes(model: ir.Model) -> None:
    """Sizes that follow from those of the inputs, and from nothing else.

    What the file says of the maps between is not believed: a tool that frees the batch, say, may have
    left it as it was. What does not follow is computed in the graph, which is right for every size.
    """
    for graph in model.graphs():
        given = {*graph.inputs, *graph.initializers.values()}
        for node in graph:
            for value in node.outputs:
                if value not in given:
                    value.shape = None
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _names(proto: Any) -> Iterator[str]:
    """All names of values and nodes, in subgraphs and functions too."""
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
