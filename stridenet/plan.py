"""The plan of a twin: all sizes of its layers, of its inputs and of the whole, before any weight."""

from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any

from stridenet.layers import Padding
from stridenet.options import Options
from stridenet.phases import FeatureMap
from stridenet.sizes import NONE, Counts, Size, format_size
from stridenet.tables import aligned, data_frame, filter_columns
from stridenet.taps import Taps, TransposedTapMap, phase_size

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LayerPlan:
    """Describes one operation of the network, and what the twin makes of it."""

    name: str  # the module's path, or the node's name for a function
    operation: str  # "Conv2d", "relu", …
    inputs: tuple[FeatureMap, ...]  # its maps and vectors
    output: FeatureMap
    weight_size: Size = ()  # of the strided filter; () if there is none
    maps: tuple[Taps, ...] = ()  # one an axis; () unless it is a window over positions
    masked: bool = False  # the input's phantoms are filled first
    parameters: Counts = NONE
    strided: bool = False  # it had a stride above one, and lost it
    module: str = ""  # its path in the strided network, where several layers may have one

    @property
    def input(self) -> FeatureMap:
        """Return the first of `inputs`."""
        return self.inputs[0]

    @property
    def unit_stride_weight_size(self) -> Size:
        """Return the size of the twin's filter."""
        if not self.maps or not self.weight_size:
            return self.weight_size
        return (
            self.weight_size[0] * prod(tap_map.output_factor for tap_map in self.maps),
            self.weight_size[1] * prod(tap_map.input_factor for tap_map in self.maps),
            *(tap_map.twin_kernel for tap_map in self.maps),
        )

    @property
    def structural_zeros(self) -> int:
        """Count the entries of the twin's filter that no strided weight stands behind."""
        if not self.maps or not self.weight_size:
            return 0
        taps = prod(int((tap_map.taps >= 0).sum()) for tap_map in self.maps)
        return prod(self.unit_stride_weight_size) - prod(self.weight_size[:2]) * taps

    @property
    def multiply_adds(self) -> Counts:
        """Count the multiply-adds of one image's forward pass through the layer."""
        if not self.weight_size:
            return NONE
        if not self.maps:
            positions = prod(self.output.size) // self.weight_size[0]
            same = prod(self.weight_size) * positions
            return Counts(same, same)
        positions = prod(
            tap_map.size if isinstance(tap_map, TransposedTapMap) else tap_map.output_size
            for tap_map in self.maps
        )
        blocks = (phase_size([m.output_size], [m.output_factor]) for m in self.maps)
        return Counts(
            prod(self.weight_size) * positions,
            prod(self.unit_stride_weight_size) * prod(chain(*blocks)),
        )

    @property
    def largest_table(self) -> int:
        """Count the numbers of its largest map, of its filter or of the table of taps of an axis."""
        maps = (prod(m.unit_stride_size) for m in (*self.inputs, self.output))
        tables = (m.output_factor * m.input_factor * m.twin_kernel for m in self.maps)
        return max(prod(self.unit_stride_weight_size), *maps, *tables)


def changes(layer: LayerPlan) -> bool:
    """Tell whether one of its maps is rearranged, or it has a stride to lose."""
    return layer.strided or any(m.phases > 1 for m in (*layer.inputs, layer.output))


@dataclass(frozen=True)
class InputPlan:
    """Describes one input of the twin."""

    name: str  # of the argument of forward
    size: Size  # (channels, height, width) of the images
    padding: Padding  # zeros put around an image before it is rearranged
    map: FeatureMap  # of the padded image


@dataclass(frozen=True)
class EliminationPlan:
    """Holds every size of a twin, before any weight exists."""

    inputs: tuple[InputPlan, ...]
    layers: tuple[LayerPlan, ...]
    options: Options
    parameters: Counts
    bytes_each: int  # of one parameter

    @property
    def input(self) -> FeatureMap:
        """Return the map that the first input becomes."""
        return self.inputs[0].map

    @property
    def input_size(self) -> tuple:
        """Return what eliminate_stride was given: the size of the image, or of each input."""
        sizes = tuple(given.size for given in self.inputs)
        return sizes[0] if len(sizes) == 1 else sizes

    @property
    def multiply_adds(self) -> Counts:
        """Count the multiply-adds of one image's forward pass through the network."""
        both = [layer.multiply_adds for layer in self.layers]
        return Counts(sum(n.strided for n in both), sum(n.unit_stride for n in both))

    @property
    def strided_layers(self) -> int:
        """Count the layers that lose a stride."""
        return sum(layer.strided for layer in self.layers)

    @property
    def largest_table(self) -> tuple[str, int]:
        """Return the input or layer with the largest map, filter or table of taps, and its size."""
        sizes = {given.name: prod(given.map.unit_stride_size) for given in self.inputs}
        sizes |= {layer.name: layer.largest_table for layer in self.layers}
        return max(sizes.items(), key=lambda item: item[1])

    def to_frame(self) -> "pd.DataFrame":
        """Return a row for each layer: maps, filters, weights, structural zeros, multiply-adds."""
        return data_frame(self.records())

    def records(self) -> list[dict[str, Any]]:
        """Return the rows of to_frame as dictionaries, for which pandas need not be installed."""
        return [
            {
                "layer": layer.name,
                "operation": layer.operation,
                "strided_map": format_size(layer.output.size),
                "unit_stride_map": format_size(layer.output.unit_stride_size),
                **filter_columns(layer.weight_size, layer.unit_stride_weight_size),
                "structural_zeros": layer.structural_zeros,
                "strided_parameters": layer.parameters.strided,
                "unit_stride_parameters": layer.parameters.unit_stride,
                "strided_multiply_adds": layer.multiply_adds.strided,
                "unit_stride_multiply_adds": layer.multiply_adds.unit_stride,
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
            f"multiply-adds {self.multiply_adds.strided:,} -> {self.multiply_adds.unit_stride:,}"
        )
        return "\n".join(lines)


def _is_resized(layer: LayerPlan) -> bool:
    """Tell whether the twin's filter or map has other sizes than the strided one."""
    filters = layer.weight_size, layer.unit_stride_weight_size
    maps = layer.output.size, layer.output.unit_stride_size
    return filters[0] != filters[1] or maps[0] != maps[1]
