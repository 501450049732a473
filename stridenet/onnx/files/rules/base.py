"""Describes what a rule is given, and what it is asked; and has what rules share."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import onnx_ir as ir

from stridenet.onnx.files.building import Builder, GraphSize
from stridenet.onnx.files.filters import FilterExpansion, NewFilters, Weight
from stridenet.onnx.files.options import Kernel, Rearrange
from stridenet.onnx.files.reading import DEFAULT_DOMAINS
from stridenet.onnx.files.windows import Window
from stridenet.sizes import Size


@dataclass(frozen=True)
class Site:
    """Describes one strided node, and what is known of the place where it stands."""

    node: ir.Node
    folder: Path  # of external data
    opset: int  # of the graph or function that the node is in
    trusted: bool  # whether known sizes hold whenever the node runs
    in_function: bool  # whether the node is in a function of the file
    rearrange: Rearrange
    kernel: Kernel

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Return the attributes as numbers and text, without those that a function's caller gives."""
        given = self.node.attributes
        return {name: _as_list(each.value) for name, each in given.items() if not each.is_ref()}

    @property
    def from_caller(self) -> list[str]:
        """Return the names of the attributes that a function's caller gives."""
        return [name for name, each in self.node.attributes.items() if each.is_ref()]

    @property
    def x(self) -> ir.Value:
        """Return the map that the node reads."""
        value = self.node.inputs[0]
        assert value is not None  # onnx's checker refuses a file where it is missing
        return value

    @property
    def strides(self) -> Size:
        """Return the strides as the node has them; () if it has none."""
        return tuple(self.attributes.get("strides", ()))

    def known_size(self, axis: int) -> int | None:
        """Return the size of a spatial axis, from 0; None where only a run of the file knows it."""
        shape = self.x.shape
        if shape is None or not self.trusted:
            return None
        size = shape[2 + axis]
        return size if isinstance(size, int) else None

    @property
    def known_channels(self) -> int | None:
        """Return the channels of the map."""
        shape = self.x.shape
        return shape[1] if shape is not None and isinstance(shape[1], int) else None

    def sizes(self, builder: Builder, axes: int) -> list[GraphSize]:
        """Return the sizes of the map's spatial axes; unknown ones are computed in the graph."""
        known = [self.known_size(axis) for axis in range(axes)]
        return [
            builder.size_of(self.x, 2 + axis) if size is None else size
            for axis, size in enumerate(known)
        ]

    def windows(self, kernel: Size) -> tuple[Window, ...]:
        """Return the windows of the node's axes, from the size of its filter."""
        axes = len(kernel)
        strides, dilations = (
            self.attributes.get(name, [1] * axes) for name in ("strides", "dilations")
        )
        auto = self.attributes.get("auto_pad", "NOTSET")
        pads = self.attributes.get("pads", [0] * 2 * axes) if auto == "NOTSET" else [0] * 2 * axes
        ceil = bool(self.attributes.get("ceil_mode", 0)) and not auto.startswith("SAME")
        same = auto if auto.startswith("SAME") else None
        each = zip(
            kernel, strides, dilations, zip(pads[:axes], pads[axes:], strict=True), strict=True
        )
        return tuple(Window(k, s, d, pair, same, ceil) for k, s, d, pair in each)

    def made_by(self, *operators: str) -> bool:
        """Tell whether the map comes from one of these of ONNX's own operators."""
        return is_made_by(self.x, operators)


def is_made_by(value: ir.Value | None, operators: tuple[str, ...]) -> bool:
    """Tell whether a value comes from one of these of ONNX's own operators."""
    node = value.producer() if value is not None else None
    return node is not None and node.domain in DEFAULT_DOMAINS and node.op_type in operators


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class ExpandedFilter(NamedTuple):
    """Pairs a convolution's strided filter with the value that holds it expanded to unit stride."""

    weight: Weight
    expansion: FilterExpansion
    value: ir.Value


@dataclass(frozen=True)
class Replacement:
    """Says what a rule has built in place of a node."""

    output: ir.Value  # stands for the node's first output
    filter: ExpandedFilter | None = None  # of a convolution
    layout: dict[str, Any] | None = None  # describes the rearrangement that is left to the host


class NodeRule(Protocol):
    """Says how the nodes of one operator are converted."""

    pooling: bool  # whether the operator is converted only with pooling=True

    def declines(self, site: Site) -> str | None:
        """Return None if this node can be converted.

        Otherwise return what it does that prevents this, and the way out, as in "has no weights; …".
        """

    def convert(self, site: Site, b: Builder, new_filters: NewFilters) -> Replacement:
        """Build the nodes that take this node's place."""

    def windows(self, site: Site) -> tuple[Window, ...]:
        """Return the strided window of each axis of a node that is not declined."""


FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
INLINE = (
    'inline functions first: python -c "import onnx, onnx.inliner as i; onnx.save('
    "i.inline_local_functions(onnx.load('in.onnx')), 'out.onnx')\""
)
QUANTIZED = (
    "is of a quantized network, which is not converted yet; convert the float network, "
    "then quantize"
)


def common_objection(site: Site, windows: tuple[Window, ...]) -> str | None:
    """Return what keeps a node from being converted whatever its operator is; None if nothing does."""
    if site.from_caller:
        return f"takes {', '.join(site.from_caller)} from the caller of its function; {INLINE}"
    if site.made_by("DequantizeLinear"):
        return QUANTIZED
    if len(windows) > 3:
        return f"has {len(windows)} spatial axes, and at most three are converted"
    if min(min(window.padding) for window in windows) < 0:
        return "has negative pads, which ONNX does not allow; put a Slice before it instead"
    for axis, window in enumerate(windows):
        size = site.known_size(axis)
        if size is not None and window.outputs(size) < 1:
            return f"has a window of {window.reach} positions, more than its map and padding have"
        if window.same and window.stride - window.reach > 1:
            return (
                f"has auto_pad={window.same} with a stride of {window.stride} over {window.reach} "
                "positions, which onnx and onnxruntime pad differently; write its pads out"
            )
    strides = {window.stride for window in windows}
    if site.rearrange == "space_to_depth" and (len(windows) != 2 or len(strides) > 1):
        return (
            f"has strides {list(site.strides)}, and SpaceToDepth takes two axes of one stride: "
            "rearrange='two-step' does it without, or leave it out of only=[…]"
        )
    return None
