"""Every size of the twin, before any weight exists: of its layers, of its inputs, of the whole."""

from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any

from stridenet.layers import Padding
from stridenet.options import Options
from stridenet.phases import FeatureMap
from stridenet.sizes import Size, format_size
from stridenet.tables import aligned, data_frame
from stridenet.taps import Taps, TransposedTapMap, phase_size

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LayerPlan:
    """One operation of the network, and what the twin makes of it."""

    name: str  # the module's path, or the node's name for a function
    operation: str  # "Conv2d", "relu", …
    inputs: tuple[FeatureMap, ...]  # those that are maps or vectors
    output: FeatureMap
    weight_size: Size = ()  # of the strided filter; () if there is none
    maps: tuple[Taps, ...] = ()  # one an axis; () unless it is a window over positions
    masked: bool = False  # the input's phantoms are filled first
    parameters: tuple[int, int] = (0, 0)  # strided, unit-stride
    strided: bool = False  # had a stride above one, and lost it
    module: str = ""  # its path in the strided network, where several layers may have one

    @property
    def input(self) -> FeatureMap:
        """The first of `inputs`."""
        return self.inputs[0]

    @property
    def unit_stride_weight_size(self) -> Size:
        """Size of the twin's filter."""
        if not self.maps or not self.weight_size:
            return self.weight_size
        return (
            self.weight_size[0] * prod(tap_map.output_factor for tap_map in self.maps),
            self.weight_size[1] * prod(tap_map.input_factor for tap_map in self.maps),
            *(tap_map.twin_kernel for tap_map in self.maps),
        )

    @property
    def structural_zeros(self) -> int:
        """Entries of the twin's filter that no strided weight stands behind."""
        if not self.maps or not self.weight_size:
            return 0
        taps = prod(int((tap_map.taps >= 0).sum()) for tap_map in self.maps)
        return prod(self.unit_stride_weight_size) - prod(self.weight_size[:2]) * taps

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Count those of one image's forward pass: in the strided layer, and in the twin's."""
        if not self.weight_size:
            return 0, 0
        if not self.maps:
            positions = prod(self.output.size) // self.weight_size[0]
            return (prod(self.weight_size) * positions,) * 2
        positions = prod(
            tap_map.size if isinstance(tap_map, TransposedTapMap) else tap_map.output_size
            for tap_map in self.maps
        )
        blocks = (phase_size([m.output_size], [m.output_factor]) for m in self.maps)
        return (
            prod(self.weight_size) * positions,
            prod(self.unit_stride_weight_size) * prod(chain(*blocks)),
        )

    @property
    def largest_table(self) -> int:
        """How many numbers its largest map has, or its filter, or the table of taps of an axis."""
        maps = (prod(m.unit_stride_size) for m in (*self.inputs, self.output))
        tables = (m.output_factor * m.input_factor * m.twin_kernel for m in self.maps)
        return max(prod(self.unit_stride_weight_size), *maps, *tables)


def changes(layer: LayerPlan) -> bool:
    """Whether a map of its is rearranged, or its stride is to go."""
    return layer.strided or any(m.phases > 1 for m in (*layer.inputs, layer.output))


@dataclass(frozen=True)
class InputPlan:
    """One input of the twin."""

    name: str  # of the argument of forward
    size: Size  # (channels, height, width) of the images
    padding: Padding  # zeros put around an image before it is rearranged
    map: FeatureMap  # of the padded image


@dataclass(frozen=True)
class EliminationPlan:
    """Every size of the twin, before any weight exists."""

    inputs: tuple[InputPlan, ...]
    layers: tuple[LayerPlan, ...]
    options: Options
    parameters: tuple[int, int]  # of the strided and of the unit-stride network
    bytes_each: int  # of a parameter

    @property
    def input(self) -> FeatureMap:
        """The map that the first input becomes."""
        return self.inputs[0].map

    @property
    def input_size(self) -> tuple:
        """Return what eliminate_stride was given: the size of the image, or of each input."""
        sizes = tuple(given.size for given in self.inputs)
        return sizes[0] if len(sizes) == 1 else sizes

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Count those of one image's forward pass: through the strided network, and the twin."""
        both = [layer.multiply_adds for layer in self.layers]
        return sum(strided for strided, _ in both), sum(twin for _, twin in both)

    @property
    def strided_layers(self) -> int:
        """How many layers lose a stride."""
        return sum(layer.strided for layer in self.layers)

    @property
    def largest_table(self) -> tuple[str, int]:
        """Which input or layer has the largest map, filter or table of taps, and its numbers."""
        sizes = {given.name: prod(given.map.unit_stride_size) for given in self.inputs}
        sizes |= {layer.name: layer.largest_table for layer in self.layers}
        return max(sizes.items(), key=lambda item: item[1])

    def to_frame(self) -> "pd.DataFrame":
        """One row a layer: maps, filters, weights, structural zeros, multiply-adds of both networks."""
        return data_frame(self.records())

    def records(self) -> list[dict[str, Any]]:
        """The rows of to_frame, for which pandas need not be installed."""
        return [
            {
                "layer": layer.name,
                "operation": layer.operation,
                "strided_map": format_size(layer.output.size),
                "unit_stride_map": format_size(layer.output.unit_stride_size),
                "strided_filter": format_size(layer.weight_size),
                "unit_stride_filter": format_size(layer.unit_stride_weight_size),
                "strided_weights": prod(layer.weight_size) if layer.weight_size else 0,
                "unit_stride_weights": prod(layer.unit_stride_weight_size)
                if layer.weight_size
                else 0,
                "structural_zeros": layer.structural_zeros,
                "strided_parameters": layer.parameters[0],
                "unit_stride_parameters": layer.parameters[1],
                "strided_multiply_adds": layer.multiply_adds[0],
                "unit_stride_multiply_adds": layer.multiply_adds[1],
                "masked": layer.masked,
                "stride_eliminated": layer.strided,
            }
            for layer in self.layers
        ]

    def __str__(self) -> str:
        filters = [layer for layer in self.layers if layer.weight_size]
        shown = filters if len(filters) <= 20 else [f for f in filters if _is_resized(f)]
        rows = [
            (
                layer.name,
                f"{format_size(layer.output.size)} -> {format_size(layer.output.unit_stride_size)}",
                f"{format_size(layer.weight_size)} -> {format_size(layer.unit_stride_weight_size)}",
            )
            for layer in shown
        ]
        inputs = (
            f"{format_size(i.size)} -> {format_size(i.map.unit_stride_size)}" for i in self.inputs
        )
        lines = [f"input {', '.join(inputs)}"]
        if rows:
            lines.append(aligned(("layer", "map", "filter"), rows))
        if len(rows) < len(filters):
            lines.append(f"... and {len(filters) - len(rows)} layers with filters as they were")
        before, after = self.parameters
        zeros = sum(layer.structural_zeros for layer in self.layers)
        lines.append(
            f"strides eliminated in {self.strided_layers} layers; parameters {before:,} -> {after:,} "
            f"({zeros:,} structural zeros; "
            f"{before * self.bytes_each / 1e6:,.1f} -> {after * self.bytes_each / 1e6:,.1f} MB), "
            f"multiply-adds {self.multiply_adds[0]:,} -> {self.multiply_adds[1]:,}"
        )
        return "\n".join(lines)


def _is_resized(layer: LayerPlan) -> bool:
    """Whether the twin's filter or map has other sizes than the strided one."""
    filters = layer.weight_size, layer.unit_stride_weight_size
    maps = layer.output.size, layer.output.unit_stride_size
    return filters[0] != filters[1] or maps[0] != maps[1]
