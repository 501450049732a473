"""Converts Conv into padding, a rearrangement and a Conv of stride one."""

from typing import Any

import numpy as np
import onnx_ir as ir

from stridenet.onnx.files.building import Builder, GraphSize
from stridenet.onnx.files.filters import FilterExpansion, NewFilters, Weight, constant_weight
from stridenet.onnx.files.grids import Grid, convolution_grid
from stridenet.onnx.files.rearranging import fit_to_blocks, to_phases
from stridenet.onnx.files.rules.base import (
    FLOATS,
    INLINE,
    QUANTIZED,
    ExpandedFilter,
    Replacement,
    Site,
    common_objection,
    is_made_by,
)
from stridenet.onnx.files.windows import Window

FOLD = (
    'if they follow from constants, fold these first: python -c "import onnx, '
    "onnxscript.optimizer as o; onnx.save(o.optimize(onnx.load('in.onnx')), 'out.onnx')\"; else "
    "leave it out with only=[…]"
)


class Convolution:
    """Converts Conv with a constant filter."""

    pooling = False

    def declines(self, site: Site) -> str | None:
        """Decline weights that are not constant, and what no operator's rule converts."""
        value = site.node.inputs[1]
        if is_made_by(value, ("DequantizeLinear",)):
            return QUANTIZED
        weight = constant_weight(value, site.folder)
        if isinstance(weight, str):
            return f"{weight}; {INLINE if site.in_function else FOLD}"
        if weight.dtype not in FLOATS:
            return f"has weights of type {weight.dtype.name}, which no Conv of ONNX has"
        return common_objection(site, site.windows(weight.shape[2:]))

    def windows(self, site: Site) -> tuple[Window, ...]:
        """Return the windows of the filter (out, in / groups, *kernel)."""
        return site.windows(_weight(site).shape[2:])

    def convert(self, site: Site, b: Builder, new_filters: NewFilters) -> Replacement:
        """Build a Pad, the rearrangement and a Conv; and a Slice where it gives too many outputs."""
        weight = _weight(site)
        windows = self.windows(site)
        sizes = site.sizes(b, len(windows))
        grids = [
            convolution_grid(b, window, size, site.kernel)
            for window, size in zip(windows, sizes, strict=True)
        ]
        group = site.attributes.get("group", 1)
        expansion = FilterExpansion(
            tuple(grid.filter for grid in grids),
            # Channels of one group lie side by side, which those of SpaceToDepth do not.
            depth_first=site.rearrange == "space_to_depth" and group == 1,
        )
        channels = weight.shape[1] * group
        layout = None
        if site.rearrange == "host":
            layout = _layout(site, grids, channels)
            x = _without_unread_blocks(b, site.x, grids, layout)
        else:
            fill = ir.Tensor(np.zeros((), weight.dtype.numpy()), dtype=weight.dtype).numpy()
            x = fit_to_blocks(b, site.x, grids, fill)
            x = to_phases(b, x, grids, channels, site.rearrange, expansion.depth_first)
        wide = new_filters.filter(weight, expansion, b.initializers)
        output = b.one("Conv", x, wide, *site.node.inputs[2:], **_attributes(grids, group))
        output = b.crop(output, [grid.outputs for grid in grids])
        return Replacement(output, ExpandedFilter(weight, expansion, wide), layout)


def _weight(site: Site) -> Weight:
    weight = constant_weight(site.node.inputs[1], site.folder)
    assert isinstance(weight, Weight)  # else it has been declined
    return weight


def _attributes(grids: list[Grid], group: int) -> dict[str, Any]:
    """Return the attributes of the unit-stride Conv."""
    before, after = zip(*(grid.padding for grid in grids), strict=True)
    return {
        "kernel_shape": [grid.filter.kernel for grid in grids],
        "strides": [1] * len(grids),
        "dilations": [grid.dilation for grid in grids],
        "pads": [*before, *after],
        "group": group,
    }


def _layout(site: Site, grids: list[Grid], channels: int) -> dict[str, Any]:
    """Describe the host's rearrangement, as stridenet.host reads it."""
    sizes = [int(grid.size) for grid in grids]  # type: ignore[arg-type]
    padding = []
    for grid, size in zip(grids, sizes, strict=True):
        front, wanted = int(grid.front), int(grid.blocks)  # type: ignore[arg-type]
        padding.append([front, max(0, wanted * grid.stride - size - front)])
    blocks = [
        -(-(size + sum(pair)) // grid.stride)
        for grid, size, pair in zip(grids, sizes, padding, strict=True)
    ]
    factor = [grid.stride for grid in grids]
    return {
        "name": site.x.name,
        "dtype": site.x.dtype.numpy().name if site.x.dtype else "float32",
        "image_size": [channels, *sizes],
        "padding": padding,
        "factor": factor,
        "phase_form_size": [channels * int(np.prod(factor)), *blocks],
    }


def _without_unread_blocks(
    b: Builder, x: ir.Value, grids: list[Grid], layout: dict[str, Any]
) -> ir.Value:
    """Slice off the last blocks that no window reads, which the host does not leave out."""
    given = layout["phase_form_size"][1:]
    wanted: list[GraphSize | None] = [
        None if grid.blocks == blocks else grid.blocks
        for grid, blocks in zip(grids, given, strict=True)
    ]
    return b.crop(x, wanted)
