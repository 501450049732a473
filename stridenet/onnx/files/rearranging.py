"""Rearranges maps into phases, in the spellings that chips take."""

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from stridenet.onnx.files.building import Builder, GraphSize
from stridenet.onnx.files.grids import Grid
from stridenet.onnx.files.options import Rearrange


def fit_to_blocks(b: Builder, x: ir.Value, grids: Sequence[Grid], fill: np.ndarray) -> ir.Value:
    """Pad the map with `fill`, or cut it, so that it has whole blocks on each axis."""
    before, after, totals = [], [], []
    for grid in grids:
        total = b.times(grid.blocks, grid.stride)
        fits = not (grid.may_pad or grid.may_crop)
        behind: GraphSize = 0 if fits else b.subtract(b.subtract(total, grid.size), grid.front)
        before.append(grid.front)
        after.append((b.at_least_zero(behind) if grid.may_crop else behind) if grid.may_pad else 0)
        crops = grid.may_crop and not (isinstance(behind, int) and behind >= 0)
        totals.append(total if crops else None)
    return b.crop(b.pad(x, before, after, fill), totals)


def to_phases(
    b: Builder,
    x: ir.Value,
    grids: Sequence[Grid],
    channels: int | None,
    spelling: Rearrange,
    depth_first: bool,
) -> ir.Value:
    """Rearrange a map of whole blocks into its phase form.

    channels: of x; None if they are not known.
    depth_first: channels (p, q, c) of phases (p, q), as SpaceToDepth has them; else (c, p, q).
    """
    if all(grid.stride == 1 for grid in grids):
        return x
    if spelling == "space_to_depth":
        phases = b.one("SpaceToDepth", x, blocksize=grids[0].stride)
        return phases if depth_first else _channels_first(b, phases, grids, channels)
    if spelling == "two-step":
        return _axis_by_axis(b, x, grids, channels, depth_first)
    return _all_axes_at_once(b, x, grids, channels, depth_first)


def _all_axes_at_once(
    b: Builder, x: ir.Value, grids: Sequence[Grid], channels: int | None, depth_first: bool
) -> ir.Value:
    """Reshape, transpose and reshape the map, with rank 6 for two axes with strides."""
    split: list[GraphSize] = [0, 0]
    blocks, phases = [], []
    for grid in grids:
        blocks.append(len(split))
        split.append(grid.blocks)
        if grid.stride > 1:
            phases.append(len(split))
            split.append(grid.stride)
    order = [0, *phases, 1, *blocks] if depth_first else [0, 1, *phases, *blocks]
    x = b.one("Transpose", b.reshape(x, split), perm=order)
    return b.reshape(x, [0, _phase_channels(channels, grids), *(grid.blocks for grid in grids)])


def _phase_channels(channels: int | None, grids: Sequence[Grid]) -> int:
    return -1 if channels is None else channels * prod(grid.stride for grid in grids)


def _axis_by_axis(
    b: Builder, x: ir.Value, grids: Sequence[Grid], channels: int | None, depth_first: bool
) -> ir.Value:
    """Make the phase form one axis after the other, with rank 5 at most.

    The order of axes is that in which their phases end up among the channels: a later axis puts its
    phases behind all channels so far, or before them if they are to come depth first.
    """
    sizes: list[GraphSize] = [b.times(grid.blocks, grid.stride) for grid in grids]
    axes = [axis for axis, grid in enumerate(grids) if grid.stride > 1]
    for axis in reversed(axes) if depth_first else axes:
        grid = grids[axis]
        before, after = sizes[:axis], sizes[axis + 1 :]
        x, channels = _one_axis(b, x, grid, (before, after), channels, depth_first)
        sizes[axis] = grid.blocks
    return x


def _one_axis(
    b: Builder,
    x: ir.Value,
    grid: Grid,
    around: tuple[list[GraphSize], list[GraphSize]],
    channels: int | None,
    depth_first: bool,
) -> tuple[ir.Value, int | None]:
    """Split one axis into blocks and phases, and move the phases to the channels.

    around: the sizes of the axes before and behind this one, which are merged into one axis each, so
        that the rank stays small.

    Returns the map and its channels.
    """
    before, after = ([_product(b, sizes)] if sizes else [] for sizes in around)
    wide = None if channels is None else channels * grid.stride
    block = 2 + len(before)
    lead: list[GraphSize] = [0, 0, *before]
    final: list[GraphSize] = [0, -1 if wide is None else wide, *around[0], grid.blocks, *around[1]]
    if before and after:
        # Batch, channels, axes before, blocks, phases and axes behind would be rank 6. So the channels
        # are merged with their neighbour that keeps its place relative to them: with the axes before if
        # phases go before the channels, else with the batch.
        lead, block = [0, -1] if depth_first else [-1, *before], 2
        final[0] = 0 if depth_first else -1
        order = [0, 3, 1, 2, 4]
    else:
        rest = [axis for axis in range(2, 4 + len(before) + len(after)) if axis != block + 1]
        order = [0, block + 1, 1, *rest] if depth_first else [0, 1, block + 1, *rest]
    x = b.reshape(x, [*lead, grid.blocks, grid.stride, *after])
    return b.reshape(b.one("Transpose", x, perm=order), final), wide


def _product(b: Builder, sizes: Sequence[GraphSize]) -> GraphSize:
    product: GraphSize = 1
    for size in sizes:
        if isinstance(product, int) and isinstance(size, int):
            product *= size
        elif isinstance(product, int):
            product = b.times(size, product)
        elif isinstance(size, int):
            product = b.times(product, size)
        else:
            product = b.one("Mul", product, size)
    return product


def _channels_first(
    b: Builder, x: ir.Value, grids: Sequence[Grid], channels: int | None
) -> ir.Value:
    """Reorder channels (p, q, c) to (c, p, q), so that groups of a convolution lie side by side."""
    assert channels is not None  # a convolution knows its channels
    order = np.arange(channels * prod(grid.stride for grid in grids)).reshape(-1, channels)
    return b.one("Gather", x, b.constant(order.T.reshape(-1)), axis=1)
