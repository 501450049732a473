"""What a conversion by layers makes of a network: filters, maps, cost. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from stridenet.sizes import Counts, Size, format_size
from stridenet.tables import aligned, data_frame, filter_columns

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ConvertedLayer:
    """Describes a strided layer, or a strided call of a function, before and after its conversion."""

    layer: str
    operation: str
    strided_filter: Size = ()  # () where there is none
    unit_stride_filter: Size = ()
    structural_zeros: int = 0
    maps: tuple[tuple[Size, Size], ...] = ()  # for each call, the map read and that given, no batch
    multiply_adds: Counts | None = None  # of one image, in all its calls; None: not known

    @property
    def weights(self) -> Counts:
        """Count the weights of both filters."""
        sizes = (self.strided_filter, self.unit_stride_filter)
        return Counts(*(prod(size) if size else 0 for size in sizes))


@dataclass(frozen=True)
class LayersPlan:
    """Describes what convert_layers would make of a model, or convert_file of an ONNX file."""

    layers: tuple[ConvertedLayer, ...]
    parameters: Counts
    ran: bool  # on example inputs, or sizes that a file has: maps and multiply-adds are known

    def to_frame(self) -> "pd.DataFrame":
        """Return a row for each layer: maps, filters, weights, structural zeros, multiply-adds."""
        return data_frame(self.records())

    def records(self) -> Iterable[dict[str, Any]]:
        """Return the rows of to_frame, for which pandas need not be installed."""
        return [
            {
                "layer": each.layer,
                "operation": each.operation,
                "input_map": " ".join(format_size(a) for a, _ in each.maps),
                "output_map": " ".join(format_size(b) for _, b in each.maps),
                **filter_columns(each.strided_filter, each.unit_stride_filter),
                "structural_zeros": each.structural_zeros,
                "strided_multiply_adds": (each.multiply_adds or (None, None))[0],
                "unit_stride_multiply_adds": (each.multiply_adds or (None, None))[1],
            }
            for each in self.layers
        ]

    def __str__(self) -> str:
        heading = ["layer", "operation", "filter"] + ["map", "multiply-adds"] * self.ran
        rows = [self._row(each) for each in self.layers]
        before, after = self.parameters
        zeros = sum(each.structural_zeros for each in self.layers)
        lines = [aligned(heading, rows)] if rows else []
        lines.append(
            f"strided layers: {len(self.layers)}; parameters {before:,} -> {after:,} "
            f"({zeros:,} structural zeros)"
        )
        return "\n".join(lines)

    def _row(self, each: ConvertedLayer) -> list[str]:
        filters = [format_size(s) for s in (each.strided_filter, each.unit_stride_filter) if s]
        row = [each.layer, each.operation, " -> ".join(filters)]
        if self.ran:
            maps = [f"{format_size(a)} -> {format_size(b)}" for a, b in each.maps[:1]]
            more = f" and {len(each.maps) - 1} more" if len(each.maps) > 1 else ""
            costs = [f"{n:,}" for n in each.multiply_adds or ()]
            row += [(maps or ["not called"])[0] + more, " -> ".join(costs)]
        return row
