"""Converts MaxPool and AveragePool: padding, a rearrangement, and the phases' results combined."""

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from stridenet.onnx.files.building import TO_THE_END, Builder, GraphSize
from stridenet.onnx.files.filters import NewFilters
from stridenet.onnx.files.grids import Grid, minimal_grid
from stridenet.onnx.files.rearranging import fit_to_blocks, to_phases
from stridenet.onnx.files.rules.base import FLOATS, INLINE, Replacement, Site, common_objection
from stridenet.onnx.files.windows import Window

Blocks = list[int]  # along one axis: the blocks in which one phase of the window has taps


class _Pooling:
    """Has what both kinds of pooling share."""

    pooling = True

    def declines(self, site: Site) -> str | None:
        """Decline maps that are not of floating point, and what no operator's rule converts."""
        windows = self.windows(site)
        dtype = site.x.dtype
        if dtype is None:
            way = INLINE if site.in_function else "leave it out with only=[…]"
            return f"reads a map whose type does not follow from the inputs'; {way}"
        if dtype not in FLOATS:
            return f"reads a map of {dtype.name}, and only floating point is converted yet"
        if any(window.same and window.dilation > 1 for window in windows):
            return (
                "has auto_pad=SAME with dilations, which onnx and onnxruntime pad differently; write "
                "its pads out"
            )
        if any(w.same == "SAME_LOWER" and w.stride > w.reach for w in windows):
            return (
                "has auto_pad=SAME_LOWER with gaps, which onnxruntime refuses; write its pads out"
            )
        if site.rearrange == "host":
            return "is a pooling, and only what a convolution reads is left to the host"
        return common_objection(site, windows)

    def windows(self, site: Site) -> tuple[Window, ...]:
        """Return the windows of kernel_shape."""
        return site.windows(tuple(site.attributes.get("kernel_shape", ())))

    def phases(self, site: Site, b: Builder, fill: float) -> "list[Phase]":
        """Build the map's phases, which has `fill` around it: those that the windows read."""
        windows = self.windows(site)
        grids = [
            minimal_grid(b, window, size)
            for window, size in zip(windows, site.sizes(b, len(windows)), strict=True)
        ]
        x = fit_to_blocks(b, site.x, grids, _number(fill, site.x))
        x = to_phases(b, x, grids, site.known_channels, site.rearrange, depth_first=True)
        return _split_phases(b, x, windows)


class Phase(NamedTuple):
    """Holds one phase of the map, and says where the windows have taps in it."""

    map: ir.Value
    taps: tuple[Blocks, ...]  # one an axis


def _split_phases(b: Builder, x: ir.Value, windows: tuple[Window, ...]) -> list[Phase]:
    """Split the channels (p, q, c) of a phase form into its phases, those without taps left out."""
    maps = b.split(x, prod(window.stride for window in windows))
    taps = product(*(_taps(window) for window in windows))
    return [Phase(map_, each) for map_, each in zip(maps, taps, strict=True) if all(each)]


def _taps(window: Window) -> list[Blocks]:
    """Return for each phase of one axis the blocks in which the window has taps."""
    positions = [window.dilation * tap for tap in range(window.kernel)]
    return [
        [p // window.stride for p in positions if p % window.stride == phase]
        for phase in range(window.stride)
    ]


def _crop_to_blocks(
    b: Builder,
    part: ir.Value,
    windows: tuple[Window, ...],
    firsts: Sequence[int],
    lasts: Sequence[int],
) -> ir.Value:
    """Return what the windows find from their `firsts` to their `lasts` block on each axis."""
    axes, starts, ends = [], [], []
    for axis, (window, first, last) in enumerate(zip(windows, firsts, lasts, strict=True)):
        behind = window.blocks - 1 - last
        if first or behind:
            axes.append(2 + axis)
            starts.append(first)
            ends.append(-behind if behind else TO_THE_END)
    return b.cut(part, axes, starts, ends) if axes else part


def _map_of_each_tap(
    b: Builder, phases: list[Phase], windows: tuple[Window, ...]
) -> list[ir.Value]:
    """Return one map for each tap of the window: what each window finds at that tap."""
    return [
        _crop_to_blocks(b, phase.map, windows, blocks, blocks)
        for phase in phases
        for blocks in product(*phase.taps)
    ]


def _combine(b: Builder, kind: str, values: list[ir.Value]) -> ir.Value:
    return values[0] if len(values) == 1 else b.one(kind, *values)


class MaxPooling(_Pooling):
    """Converts MaxPool into one of unit stride in each phase, and the largest of their results."""

    def declines(self, site: Site) -> str | None:
        """Decline indices that another node reads, and what no pooling's rule converts."""
        if len(site.node.outputs) > 1 and _is_read(site.node.outputs[1]):
            return (
                f"gives Indices ({site.node.outputs[1].name}), which its phases do not know; leave it "
                "out with only=[…]"
            )
        return super().declines(site)

    def convert(self, site: Site, b: Builder, new_filters: NewFilters) -> Replacement:
        """Build the pooling of each phase, and the largest of the results.

        With kernel=odd, windows of an even size are not pooled: their taps are taken one by one.
        """
        windows = self.windows(site)
        found: list[ir.Value] = []
        for phase in self.phases(site, b, -np.inf):
            kernel = [len(blocks) for blocks in phase.taps]
            if site.kernel == "odd" and any(size % 2 == 0 for size in kernel):
                found += _map_of_each_tap(b, [phase], windows)
            else:
                found.append(_unit_stride_pool(b, phase, windows))
        return Replacement(_combine(b, "Max", found))


def _unit_stride_pool(b: Builder, phase: Phase, windows: tuple[Window, ...]) -> ir.Value:
    firsts, lasts = [t[0] for t in phase.taps], [t[-1] for t in phase.taps]
    x = _crop_to_blocks(b, phase.map, windows, firsts, lasts)
    kernel = [len(blocks) for blocks in phase.taps]
    if max(kernel) == 1:
        return x
    # Taps of one phase are equally far apart, so that a window with dilation reads them all.
    steps = [blocks[1] - blocks[0] if len(blocks) > 1 else 1 for blocks in phase.taps]
    ones = [1] * len(kernel)
    return b.one("MaxPool", x, kernel_shape=kernel, strides=ones, dilations=steps)


class AveragePooling(_Pooling):
    """Converts AveragePool into the sum over the taps, divided by their number."""

    def convert(self, site: Site, b: Builder, new_filters: NewFilters) -> Replacement:
        """Build a sum. A convolution with ones and zeros would spread infinities, as 0 · ∞ is NaN."""
        windows = self.windows(site)
        phases = self.phases(site, b, 0)
        total = _combine(b, "Sum", _map_of_each_tap(b, phases, windows))
        return Replacement(b.one("Div", total, self._count(site, b, windows)))

    def _count(self, site: Site, b: Builder, windows: tuple[Window, ...]) -> ir.Value:
        """Return what each sum is divided by: the taps on the map, or on the padding, too."""
        sizes = site.sizes(b, len(windows))
        padded = bool(site.attributes.get("count_include_pad", 0))
        always_full = all(
            not w.ceil and (padded or not (w.same or any(w.padding))) for w in windows
        )
        known = [size for size in sizes if isinstance(size, int)]
        if always_full:
            return b.constant(_number(prod(w.kernel for w in windows), site.x))
        if len(known) == len(sizes):
            return b.constant(_known_counts(windows, known, padded, site.x))
        return self._computed_counts(site, b, windows, sizes, padded)

    def _computed_counts(
        self,
        site: Site,
        b: Builder,
        windows: tuple[Window, ...],
        sizes: list[GraphSize],
        padded: bool,
    ) -> ir.Value:
        """Count the taps when the file runs, as the same sum over a map of ones."""
        one = b.constant(_number(1, site.x))
        ones = b.one("Expand", one, b.vector([1, 1, *sizes]))
        grids = [minimal_grid(b, w, size) for w, size in zip(windows, sizes, strict=True)]
        if padded:  # with ceil_mode, windows reach beyond the padding, where nothing counts
            before, after = ([w.padding[i] for w in windows] for i in (0, 1))
            ones = b.pad(ones, before, after, _number(1, site.x))
            grids = [_behind_padding(b, g, w) for g, w in zip(grids, windows, strict=True)]
        ones = fit_to_blocks(b, ones, grids, _number(0, site.x))
        ones = to_phases(b, ones, grids, 1, site.rearrange, depth_first=True)
        return _combine(b, "Sum", _map_of_each_tap(b, _split_phases(b, ones, windows), windows))


def _behind_padding(b: Builder, grid: Grid, window: Window) -> Grid:
    """Return the grid for a map that has its padding already."""
    size = b.add(grid.size, sum(window.padding))
    return Grid(grid.stride, size, 0, grid.blocks, grid.filter, may_pad=True, may_crop=True)


def _known_counts(
    windows: tuple[Window, ...], sizes: list[int], padded: bool, x: ir.Value
) -> np.ndarray:
    """Return how many taps count in each window, (1, 1, *outputs); one number if all have as many."""
    axes = []
    for strided, size in zip(windows, sizes, strict=True):
        window = strided.at(size)
        before, after = window.padding
        starts = window.stride * np.arange(window.outputs(size))[:, None] - before
        position = starts + window.dilation * np.arange(window.kernel)
        first, end = (-before, size + after) if padded else (0, size)
        axes.append(((position >= first) & (position < end)).sum(1))
    counts = np.ones((1, 1), np.int64)
    for axis in axes:
        counts = counts[..., None] * axis
    counts = counts if np.ptp(counts) else counts.reshape(-1)[0]
    return _number(counts, x)


def _number(value: Any, x: ir.Value) -> np.ndarray:
    """Return numbers of x's type."""
    assert x.dtype is not None  # a map without a type has been declined
    return np.asarray(value).astype(x.dtype.numpy())


def _is_read(value: ir.Value) -> bool:
    return bool(value.name) and (bool(value.uses()) or value.is_graph_output())
