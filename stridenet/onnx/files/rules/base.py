"""What a rule is given, and what it is asked."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from stridenet.onnx.files.building import Builder, Size
from stridenet.onnx.files.expansion import Expansion
from stridenet.onnx.files.options import Kernel, Rearrange
from stridenet.onnx.files.reading import DEFAULT_DOMAINS
from stridenet.onnx.files.weights import Expanded, Weight
from stridenet.onnx.files.windows import Window
from stridenet.sizes import Size as Sizes


@dataclass(frozen=True)
class Site:
    """One strided node where it stands."""

    node: ir.Node
    folder: Path  # of external data
    opset: int  # of the graph or function that the node is in
    trusted: bool  # whether sizes that are known hold whenever the node runs
    in_function: bool
    rearrange: Rearrange
    kernel: Kernel

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes as numbers and text, but for those that a function's caller gives."""
        given = self.node.attributes
        return {name: _plain(each.value) for name, each in given.items() if not each.is_ref()}

    @property
    def borrowed(self) -> list[str]:
        """The attributes that a function's caller gives."""
        return [name for name, each in self.node.attributes.items() if each.is_ref()]

    @property
    def x(self) -> ir.Value:
        """The map that it reads."""
        value = self.node.inputs[0]
        assert value is not None  # the checker has seen to it
        return value

    @property
    def strides(self) -> Sizes:
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

    def sizes(self, builder: Builder, axes: int) -> list[Size]:
        """Return the sizes of the map's spatial axes; unknown ones are computed in the graph."""
        known = [self.known_size(axis) for axis in range(axes)]
        return [
            builder.size_of(self.x, 2 + axis) if size is None else size
            for axis, size in enumerate(known)
        ]

    def windows(self, kernel: Sizes) -> tuple[Window, ...]:
        """The node's axes; `kernel` is the size of its filter."""
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
        """Whether the map comes from one of these of ONNX's own operators."""
        return is_made_by(self.x, operators)


def is_made_by(value: ir.Value | None, operators: tuple[str, ...]) -> bool:
    """Whether a value comes from one of these of ONNX's own operators."""
    node = value.producer() if value is not None else None
    return node is not None and node.domain in DEFAULT_DOMAINS and node.op_type in operators


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Converted:
    """What a rule has made of a node."""

    output: ir.Value  # that stands for the node's first
    filter: tuple[Weight, Expansion, ir.Value] | None = None  # of a convolution: its new one last
    layout: dict[str, Any] | None = None  # of what is left to the host


class Rule(Protocol):
    """How nodes of one operator are converted."""

    pooling: bool  # whether it is converted only where pooling is to be, too

    def declines(self, site: Site) -> str | None:
        """Why this node is not converted, as what it does, with the way out; None: it is."""

    def convert(self, site: Site, b: Builder, expanded: Expanded) -> Converted:
        """Build what stands for it."""

    def windows(self, site: Site) -> tuple[Window, ...]:
        """The strided window, axis by axis; of a node that is not declined."""


INLINE = (
    'inline functions first: python -c "import onnx, onnx.inliner as i; onnx.save('
    "i.inline_local_functions(onnx.load('in.onnx')), 'out.onnx')\""
)
QDQ = "is of a quantized network, which is not converted yet; convert the float network, then quantize"


def common_objection(site: Site, windows: tuple[Window, ...]) -> str | None:
    """What keeps a node of any operator from being converted."""
    if site.borrowed:
        return f"takes {', '.join(site.borrowed)} from the caller of its function; {INLINE}"
    if site.made_by("DequantizeLinear"):
        return QDQ
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
