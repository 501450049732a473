"""Writes a converted file: filters are made one at a time as they are written, data is streamed."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import onnx

from stridenet.onnx.files.conversion import ConvertedFile
from stridenet.onnx.files.reading import ExternalData, external_data, is_external, tensors_of
from stridenet.onnx.layout import layout_of, write_layout

LARGEST_FILE = 2**31 - 2**20  # bytes: protobuf's limit, less a margin for what is not counted
SMALLEST_EXTERNAL = 1024  # bytes
ALIGNMENT = 4096  # of external data, so that it can be mapped into memory
CHUNK = 2**24
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # field numbers in ModelProto, GraphProto, TensorProto


def write_onnx(conversion: ConvertedFile, path: Path, data: str) -> None:
    """Write the file that has been grafted; its protobuf is empty afterwards.

    data: the name of the file of external data beside it, which appears where the original has one, or
        where protobuf would not hold it all.
    """
    proto = conversion.file.proto
    pending = _PendingFilters(conversion)
    # The size is estimated, since for proto.ByteSize() protobuf would write it all into memory.
    inline = conversion.file.path.stat().st_size + sum(map(pending.bytes_of, pending.names))
    external = any(map(is_external, tensors_of(proto)))
    if external or inline > LARGEST_FILE:
        with (path.parent / data).open("wb") as file:
            _externalise(proto, pending, conversion.file.folder, file, inline > LARGEST_FILE)
    with path.open("wb") as file:
        _write_model(proto, pending, file)


def write_host_layout(conversion: ConvertedFile, path: Path) -> None:
    """Write how the host rearranges inputs, as stridenet.host reads it, if it rearranges any."""
    if conversion.layouts:
        write_layout(layout_of(conversion.layouts.values()), path)


class _PendingFilters:
    """Holds the new filters of the main graph, which are neither in memory nor in a file yet."""

    def __init__(self, conversion: ConvertedFile) -> None:
        main = conversion.file.model.graph.initializers
        self._filters = {n: f for n, f in conversion.new_filters.pending.items() if n in main}
        self.external: dict[str, Any] = {}  # headers of those that the file of external data has

    @property
    def names(self) -> list[str]:
        """Return the filters' names, in the order in which they were added."""
        return list(self._filters)

    def header(self, name: str) -> Any:
        """Return a filter's TensorProto without its numbers."""
        filter_ = self._filters[name]
        dtype = int(filter_.weight.dtype)
        return onnx.TensorProto(name=name, dims=filter_.shape, data_type=dtype)

    def bytes_of(self, name: str) -> int:
        """Return how many bytes a filter's numbers take."""
        filter_ = self._filters[name]
        return prod(filter_.shape) * int(filter_.weight.dtype.itemsize)

    def numbers(self, name: str) -> bytes:
        """Return the numbers as a file has them."""
        return self._filters[name].tensor().tobytes()


# External data


def _externalise(
    proto: Any, pending: _PendingFilters, folder: Path, file: BinaryIO, too_large: bool
) -> None:
    """Write into one file the data that lay in others, and the new filters.

    too_large: whether everything else that is large goes into this file, too.
    """
    for tensor in tensors_of(proto):
        if is_external(tensor):
            start = _align(file)
            _refer(tensor, file, start, _copy(external_data(folder, tensor), file))
        elif too_large and len(tensor.raw_data) > SMALLEST_EXTERNAL:
            start = _align(file)
            length = file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            _refer(tensor, file, start, length)
    for name in pending.names:
        if pending.bytes_of(name) > SMALLEST_EXTERNAL:
            start = _align(file)
            header = pending.header(name)
            _refer(header, file, start, file.write(pending.numbers(name)))
            pending.external[name] = header


def _align(file: BinaryIO) -> int:
    file.write(bytes(-file.tell() % ALIGNMENT))
    return file.tell()


def _copy(data: ExternalData, file: BinaryIO) -> int:
    """Copy a part of another file, and return how many bytes it had."""
    left = data.file.stat().st_size - data.offset if data.length < 0 else data.length
    copied = 0
    with data.file.open("rb") as source:
        source.seek(data.offset)
        while copied < left and (chunk := source.read(min(CHUNK, left - copied))):
            copied += file.write(chunk)
    return copied


def _refer(tensor: Any, file: BinaryIO, offset: int, length: int) -> None:
    """Set in a TensorProto where its numbers are."""
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": Path(file.name).name, "offset": str(offset), "length": str(length)}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


# The file itself


def _write_model(proto: Any, pending: _PendingFilters, file: BinaryIO) -> None:
    """Write the file as protobuf does, but without ever holding all of it in memory once more.

    A message is the concatenation of its fields in any order, each with its number and length, so
    that the graph is written by hand: all other fields first, then one initializer after another.
    """
    graph = proto.graph
    tensors = list(graph.initializer)
    del graph.initializer[:]
    start = graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    sizes = [_field_size(tensor.ByteSize()) for tensor in tensors]
    sizes += [_field_size(_size_of(pending, name)) for name in pending.names]
    file.write(proto.SerializeToString(deterministic=True))
    file.write(_field_header(GRAPH, len(start) + sum(sizes)))
    file.write(start)
    for tensor in tensors:
        file.write(_field_header(INITIALIZER, tensor.ByteSize()))
        file.write(tensor.SerializeToString(deterministic=True))
    for name in pending.names:
        for piece in _pieces(pending, name):
            file.write(piece)


def _pieces(pending: _PendingFilters, name: str) -> Iterator[bytes]:
    yield _field_header(INITIALIZER, _size_of(pending, name))
    if name in pending.external:
        yield pending.external[name].SerializeToString(deterministic=True)
        return
    yield pending.header(name).SerializeToString(deterministic=True)
    yield _field_header(RAW_DATA, pending.bytes_of(name))
    yield pending.numbers(name)


def _size_of(pending: _PendingFilters, name: str) -> int:
    """Return how many bytes the filter takes as a message."""
    if name in pending.external:
        return int(pending.external[name].ByteSize())
    length = pending.bytes_of(name)
    return int(pending.header(name).ByteSize()) + len(_field_header(RAW_DATA, length)) + length


def _field_size(length: int) -> int:
    return len(_field_header(INITIALIZER, length)) + length


def _field_header(field: int, length: int) -> bytes:
    """Return what comes before a message in a message: the number of its field, and its length."""
    return bytes([field << 3 | 2]) + _varint(length)  # 2 is the wire type of fields with a length


def _varint(number: int) -> bytes:
    """Return a number as protobuf has it: seven bits a byte, whose highest bit says that more come."""
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])
