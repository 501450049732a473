"""A converted file on disk: filters are made one at a time as they are written; data is streamed."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import onnx_ir as ir

from stridenet.onnx.files.conversion import Conversion
from stridenet.onnx.files.reading import external_place, is_external, tensors_of
from stridenet.onnx.layout import layout_of, write_layout

LARGEST_FILE = 2**31 - 2**20  # of protobuf, and something for what is not counted
SMALLEST_EXTERNAL = 1024  # bytes
ALIGNMENT = 4096  # of external data, so that it can be mapped into memory
CHUNK = 2**24
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # field numbers in ModelProto, GraphProto, TensorProto


def write(conversion: Conversion, path: Path, data: str) -> None:
    """Write the file that has been grafted; its protobuf is empty afterwards.

    data: the name of the file of external data beside it, which appears where the original has one, or
        where protobuf would not hold it all.
    """
    proto = conversion.file.proto
    fresh = _Fresh(conversion)
    # Not by proto.ByteSize(), for which protobuf would write it all into memory.
    inline = conversion.file.path.stat().st_size + sum(map(fresh.bytes_of, fresh.names))
    external = any(map(is_external, tensors_of(proto)))
    if external or inline > LARGEST_FILE:
        with (path.parent / data).open("wb") as file:
            _externalise(proto, fresh, conversion.file.folder, file, inline > LARGEST_FILE)
    with path.open("wb") as file:
        _write_model(proto, fresh, file)


def write_host_layout(conversion: Conversion, path: Path) -> bool:
    """Describe what is left to the host, as stridenet.host reads it; whether anything is."""
    inputs = [d.converted.layout for d in conversion.done if d.converted.layout is not None]
    if inputs:
        write_layout(layout_of(inputs), path)
    return bool(inputs)


class _Fresh:
    """The new filters of the main graph, which are nowhere yet."""

    def __init__(self, conversion: Conversion) -> None:
        main = conversion.file.model.graph.initializers
        self._made = {n: each for n, each in conversion.expanded.lazy.items() if n in main}
        self.external: dict[str, Any] = {}  # the headers of those that have been written already

    @property
    def names(self) -> list[str]:
        """In the order in which they were made."""
        return list(self._made)

    def header(self, name: str) -> Any:
        """Its TensorProto, without numbers."""
        weight, expansion = self._made[name]
        size = expansion.size(weight.shape)
        return onnx.TensorProto(name=name, dims=size, data_type=int(weight.dtype))

    def bytes_of(self, name: str) -> int:
        """How many it has."""
        weight, expansion = self._made[name]
        return prod(expansion.size(weight.shape)) * int(weight.dtype.itemsize)

    def numbers(self, name: str) -> bytes:
        """Return the numbers as a file has them."""
        weight, expansion = self._made[name]
        return ir.Tensor(expansion.expand(weight.numbers()), dtype=weight.dtype).tobytes()


# External data


def _externalise(proto: Any, fresh: _Fresh, folder: Path, file: BinaryIO, too_large: bool) -> None:
    """Put into one file what lay in others, the new filters, and if need be all that is large."""
    for tensor in tensors_of(proto):
        if is_external(tensor):
            place, offset, length = external_place(folder, tensor)
            start = _aligned(file)
            _refer(tensor, file, start, _copied(place, offset, length, file))
        elif too_large and len(tensor.raw_data) > SMALLEST_EXTERNAL:
            start = _aligned(file)
            length = file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            _refer(tensor, file, start, length)
    for name in fresh.names:
        if fresh.bytes_of(name) > SMALLEST_EXTERNAL:
            start = _aligned(file)
            header = fresh.header(name)
            _refer(header, file, start, file.write(fresh.numbers(name)))
            fresh.external[name] = header


def _aligned(file: BinaryIO) -> int:
    file.write(bytes(-file.tell() % ALIGNMENT))
    return file.tell()


def _copied(place: Path, offset: int, length: int, file: BinaryIO) -> int:
    """Copy a piece of another file; how many bytes it had."""
    left = place.stat().st_size - offset if length < 0 else length
    copied = 0
    with place.open("rb") as source:
        source.seek(offset)
        while copied < left and (chunk := source.read(min(CHUNK, left - copied))):
            copied += file.write(chunk)
    return copied


def _refer(tensor: Any, file: BinaryIO, offset: int, length: int) -> None:
    """Say in a TensorProto where its numbers are."""
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": Path(file.name).name, "offset": str(offset), "length": str(length)}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


# The file itself


def _write_model(proto: Any, fresh: _Fresh, file: BinaryIO) -> None:
    """Write the file as protobuf does, but without ever holding all of it in memory once more.

    A message is the concatenation of its fields in any order, so that the initializers can come last.
    """
    graph = proto.graph
    tensors = list(graph.initializer)
    del graph.initializer[:]
    start = graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    sizes = [_field_size(tensor.ByteSize()) for tensor in tensors]
    sizes += [_field_size(_size_of(fresh, name)) for name in fresh.names]
    file.write(proto.SerializeToString(deterministic=True))
    file.write(_head(GRAPH, len(start) + sum(sizes)))
    file.write(start)
    for tensor in tensors:
        file.write(_head(INITIALIZER, tensor.ByteSize()))
        file.write(tensor.SerializeToString(deterministic=True))
    for name in fresh.names:
        for piece in _pieces(fresh, name):
            file.write(piece)


def _pieces(fresh: _Fresh, name: str) -> Iterator[bytes]:
    yield _head(INITIALIZER, _size_of(fresh, name))
    if name in fresh.external:
        yield fresh.external[name].SerializeToString(deterministic=True)
        return
    yield fresh.header(name).SerializeToString(deterministic=True)
    yield _head(RAW_DATA, fresh.bytes_of(name))
    yield fresh.numbers(name)


def _size_of(fresh: _Fresh, name: str) -> int:
    """Return how many bytes the filter takes as a message."""
    if name in fresh.external:
        return int(fresh.external[name].ByteSize())
    length = fresh.bytes_of(name)
    return int(fresh.header(name).ByteSize()) + len(_head(RAW_DATA, length)) + length


def _field_size(length: int) -> int:
    return len(_head(INITIALIZER, length)) + length


def _head(field: int, length: int) -> bytes:
    """What comes before a message in a message: its field's number, and how long it is."""
    return bytes([field << 3 | 2]) + _varint(length)


def _varint(number: int) -> bytes:
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])
