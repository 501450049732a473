"""Finds the graphs of a file as protobuf has them, each with the constants that it can see."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from stridenet.onnx.files.reading import external_data, is_external, subgraphs


class Scope:
    """Is a graph or function of a file: it sees its own constants and those of graphs around it."""

    def __init__(self, proto: Any, outer: "Scope | None", folder: Path) -> None:
        self.proto = proto
        self.nodes = list(proto.node)
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.constants = {t.name: t for t in getattr(proto, "initializer", ())}
        for node in self.nodes:
            if node.op_type == "Constant":
                found = [a.t for a in node.attribute if a.name == "value"]
                self.constants.update(zip(node.output, found, strict=False))
        self._outer, self.folder = outer, folder

    def constant(self, name: str) -> Any:
        """Return the TensorProto of this name; None if no constant has it."""
        found = self.constants.get(name)
        return self._outer.constant(name) if found is None and self._outer else found

    def reads(self, names: Iterable[str]) -> bool:
        """Tell whether a node of this graph reads one of these values."""
        wanted = set(names)
        return any(wanted & set(node.input) for node in self.nodes)

    def numbers(self, tensor: Any) -> np.ndarray:
        """Return the numbers of a TensorProto, from wherever they lie."""
        if not is_external(tensor):
            return ir.from_proto(tensor).numpy()
        data = external_data(self.folder, tensor)
        dtype = ir.DataType(tensor.data_type).numpy()
        count = -1 if data.length < 0 else data.length // dtype.itemsize
        array = np.fromfile(data.file, dtype, count, offset=data.offset)
        return array.reshape(tuple(tensor.dims))


# Names of the function, or of the nodes and attributes, in which a graph lies; () for the main graph.
ScopePath = tuple[str, ...]


def scopes_of(proto: Any, folder: Path) -> dict[ScopePath, Scope]:
    """Return every graph and function of a file, by its path."""
    found: dict[ScopePath, Scope] = {}
    _add((), proto.graph, None, folder, found)
    for function in proto.functions:
        _add(("function", function.domain, function.name), function, None, folder, found)
    return found


def _add(
    path: ScopePath, proto: Any, outer: Scope | None, folder: Path, found: dict[ScopePath, Scope]
) -> None:
    found[path] = Scope(proto, outer, folder)
    for node in proto.node:
        for attribute in node.attribute:
            for number, graph in enumerate(subgraphs(attribute)):
                inner = (*path, *node.output, attribute.name, str(number))
                _add(inner, graph, found[path], folder, found)
