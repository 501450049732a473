"""Theorem 1 on tensors of any size: each strided operation as a unit-stride one on rearranged maps.

Nothing here depends on the sizes of a map but through arithmetic on them, so that they may be symbols:
torch.export and torch.onnx keep batch, height and width free. Maps are (n, channels, *spatial), or
without n, as torch's own layers take them. Lists stand where generators would do: torch.compile does
not take these as arguments.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stridenet.layers import CONVOLVE
from stridenet.phases import Places, constant_when_compiled, gather_taps, places_of
from stridenet.windows import TransposedWindow, TransposedWindows, Window, Windows

# Convolutions ---------------------------------------------------------------------------------------


def convolve(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    windows: Windows,
    groups: int = 1,
    depthwise: str = "phases",
) -> Tensor:
    """Compute a strided convolution as a convolution of stride one (Theorem 1).

    weight: the expanded filter, (out, in / groups · s_h · s_w, K̃_h, K̃_w).
    depthwise: how a convolution of one channel a group is computed: "grouped" as it is written, s²
        channels a group; "phases" as the sum of the s² depthwise convolutions of the phases, which
        is Theorem 1 as it is printed, and for which there are fast kernels.
    """
    axes = len(windows)
    phases = prod([window.stride for window in windows])
    rearranged = rearrange(maps, windows)
    if groups > 1 and weight.shape[1] == phases and depthwise == "phases":
        return _by_phases(rearranged, weight, bias, groups, phases)
    if groups == 1 and set(weight.shape[2:]) == {1} and maps.ndim > 1 + axes:
        return _matrix_product(rearranged, weight, bias)
    return CONVOLVE[axes](rearranged, weight, bias, groups=groups)


def rearrange(maps: Tensor, windows: Windows) -> Tensor:
    """Return the phase form (n, c·s_h·s_w, blocks…) of what the windows read, zeros around it.

    Raises RuntimeError, as torch does, where a kernel is larger than the padded map.
    """
    axes = len(windows)
    sizes = maps.shape[-axes:]
    extents = []
    for size, window in zip(sizes, windows, strict=True):
        outputs = window.outputs(size)
        if isinstance(outputs, int) and outputs < 1:  # a symbol is not asked
            raise RuntimeError(
                f"Calculated padded input size per channel: {size + sum(window.padding)}. Kernel size: "
                f"{window.reach}. Kernel size can't be greater than actual input size"
            )
        blocks = outputs - 1 + window.blocks
        before = window.padding[0]
        extents.append((before, blocks * window.stride - size - before))
    maps = pad(maps, extents)
    first = maps.ndim - axes
    for axis in reversed(range(axes)):
        maps = split(maps, first + axis, windows[axis].stride)
    order = [*range(first), *range(first + 1, maps.ndim, 2), *range(first, maps.ndim, 2)]
    return maps.permute(order).flatten(first - 1, first - 1 + axes)


def split(maps: Tensor, axis: int, stride: int) -> Tensor:
    """Split an axis of B·stride positions into two, of B and of stride."""
    size = maps.shape[axis]
    if type(size) is int or exported_to_onnx() or _is_seen_to_divide(size, stride):
        return torch.unflatten(maps, axis, (-1, stride))
    # A view asks whether the size, as in 2·((h − 1) // 2) + 8, is a multiple of B, (h − 1) // 2 + 4.
    # torch does not see that, and would refuse torch.export.Dim("h"); a gather asks nothing.
    block, phase = (torch.arange(n, device=maps.device) for n in (size // stride, stride))
    return maps[(slice(None),) * axis + (block[:, None] * stride + phase,)]


def exported_to_onnx() -> bool:
    """Tell whether torch.onnx is exporting: devices compute views better than gathers."""
    return bool(torch.onnx.is_in_onnx_export())


def _is_seen_to_divide(size: Any, stride: int) -> bool:
    if not isinstance(size, torch.SymInt):
        return True
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import

    return statically_known_true(size % (size // stride) == 0)


def pad(maps: Tensor, extents: Sequence[tuple[int, int]], fill: float = 0.0) -> Tensor:
    """Put `fill` before and after each spatial axis; negative: crop."""
    flat = [extent for pair in reversed(extents) for extent in pair]
    if not [extent for extent in flat if not isinstance(extent, int) or extent]:
        return maps
    return F.pad(maps, flat, value=fill)


def _by_phases(
    rearranged: Tensor, weight: Tensor, bias: Tensor | None, groups: int, phases: int
) -> Tensor:
    """Convolve each phase of each channel by itself, and add the phases up."""
    axes, outputs = weight.ndim - 2, weight.shape[0] // groups
    each = torch.unflatten(weight, 0, (groups, outputs)).transpose(1, 2).flatten(0, 2).unsqueeze(1)
    convolved = CONVOLVE[axes](rearranged, each, groups=groups * phases)
    channel = convolved.ndim - axes - 1
    if outputs == 1:
        summed = torch.unflatten(convolved, channel, (groups, phases)).sum(channel + 1)
    else:
        split_channels = torch.unflatten(convolved, channel, (groups, phases, outputs))
        summed = split_channels.sum(channel + 1).flatten(channel, channel + 1)
    return summed if bias is None else summed + bias.view(-1, *[1] * axes)


def _matrix_product(rearranged: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the convolution with a filter of one block: patches times a matrix."""
    matrix, patches = weight.flatten(1), rearranged.flatten(2)
    matrix = matrix.expand(patches.shape[0], -1, -1)
    if bias is None:
        product = torch.bmm(matrix, patches)
    else:
        product = torch.baddbmm(bias[:, None], matrix, patches)
    return torch.unflatten(product, 2, rearranged.shape[2:])


def expanded(weight: Tensor, windows: Windows) -> Tensor:
    """Return the unit-stride filter of a strided one (out, in / groups, *kernel)."""
    return gather_taps(
        weight, [_places(w.kernel, w.stride, w.dilation) for w in windows]
    ).contiguous()


# Transposed convolutions ----------------------------------------------------------------------------


def convolve_transposed(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    windows: TransposedWindows,
    output_padding: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """Compute a transposed convolution as one of stride one, whose phases are then put side by side.

    weight: the expanded filter, (out · s_h · s_w, in / groups, K̃_h, K̃_w); bias likewise.
    """
    axes = len(windows)
    sizes, extents = [], []
    for size, window, more in zip(maps.shape[-axes:], windows, output_padding, strict=True):
        sizes.append(window.outputs(size, more))
        if isinstance(sizes[-1], int) and sizes[-1] < 1:
            raise RuntimeError(f"the transposed convolution has an empty output, of {sizes[-1]}")
        # The dividend is not negative, since ONNX's division of integers rounds towards zero.
        read = (sizes[-1] + window.stride - 1) // window.stride - 1 + window.blocks
        extents.append((window.before, read - size - window.before))
    wide = CONVOLVE[axes](pad(maps, extents), weight, bias, groups=groups)
    strides = [window.stride for window in windows]
    channel = wide.ndim - axes - 1
    wide = torch.unflatten(wide, channel, (-1, *strides))
    symbols = [size for size in sizes if isinstance(size, torch.SymInt)]
    if symbols and not exported_to_onnx():
        return _gathered(wide, channel, strides, sizes)
    order = [*range(channel + 1)]
    for axis in range(channel + 1, channel + 1 + axes):
        order += [axis + axes, axis]
    whole = wide.permute(order)
    for axis in range(channel + 1, channel + 1 + axes):
        whole = whole.flatten(axis, axis + 1)
    behind = [(0, size - n) for size, n in zip(sizes, whole.shape[-axes:], strict=True)]
    return pad(whole, behind).contiguous()


def _gathered(wide: Tensor, channel: int, strides: list[int], sizes: list[Any]) -> Tensor:
    """Put phases side by side by a gather, which asks nothing of symbolic sizes: see split."""
    phases, blocks = [], []
    for axis, (stride, size) in enumerate(zip(strides, sizes, strict=True)):
        position = torch.arange(size, device=wide.device)
        position = position.view(-1, *[1] * (len(sizes) - 1 - axis))
        phases.append(position % stride)
        blocks.append(position // stride)
    return wide[(slice(None),) * (channel + 1) + (*phases, *blocks)]


def expanded_transposed(weight: Tensor, windows: TransposedWindows, groups: int) -> Tensor:
    """Return the unit-stride filter of a transposed one (in, out / groups, *kernel)."""
    forward = torch.unflatten(weight, 0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    axes = [_transposed_places(w.kernel, w.stride, w.dilation, w.padding) for w in windows]
    return gather_taps(forward, axes).contiguous()


@constant_when_compiled
def _places(kernel: int, stride: int, dilation: int) -> Places:
    """Return what is computed by NumPy, as integers: torch.compile need not look into it."""
    return places_of(Window(kernel, stride, dilation).tap_map)


@constant_when_compiled
def _transposed_places(kernel: int, stride: int, dilation: int, padding: int) -> Places:
    return places_of(TransposedWindow(kernel, stride, dilation, padding).tap_map)


# Pooling --------------------------------------------------------------------------------------------


def pool_outputs(size: int, window: Window, ceil_mode: bool) -> int:
    """Return how many windows torch's pooling has on a map of `size`; none may begin behind it."""
    before = window.padding[0]
    if not ceil_mode:
        return window.outputs(size)
    outputs = (size + 2 * before - window.reach + window.stride - 1) // window.stride + 1
    behind = (outputs - 1) * window.stride >= size + before
    if isinstance(behind, bool):
        return outputs - behind
    return torch.sym_ite(behind, outputs - 1, outputs)


def max_pool(maps: Tensor, windows: Windows, ceil_mode: bool = False) -> Tensor:
    """Compute maximum pooling, an axis at a time, as maxima of shifted phases.

    Equal numbers share the gradient.
    """
    lowest = -torch.inf if maps.is_floating_point() else torch.iinfo(maps.dtype).min
    for axis, window in enumerate(windows, maps.ndim - len(windows)):
        outputs = pool_outputs(maps.shape[axis], window, ceil_mode)
        maps = _reduce(maps, axis, window, outputs, torch.maximum, lowest)
    return maps


def average_pool(
    maps: Tensor,
    windows: Windows,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Compute average pooling, an axis at a time, as sums of shifted phases divided by their counts."""
    fixed = divisor_override is not None or (
        not ceil_mode and (count_include_pad or max([max(w.padding) for w in windows]) == 0)
    )
    for axis, window in enumerate(windows, maps.ndim - len(windows)):
        size = maps.shape[axis]
        outputs = pool_outputs(size, window, ceil_mode)
        maps = _reduce(maps, axis, window, outputs, torch.add, 0.0)
        if not fixed:
            counts = _counts(size, window, outputs, count_include_pad, maps.device)
            maps = maps / counts.to(maps.dtype).view(-1, *[1] * (maps.ndim - 1 - axis))
    if not fixed:
        return maps
    return maps / (divisor_override or prod([window.kernel for window in windows]))


def _reduce(
    maps: Tensor,
    axis: int,
    window: Window,
    outputs: int,
    combine: Callable[[Tensor, Tensor], Tensor],
    fill: float,
) -> Tensor:
    """Combine all that each window of one axis reads."""
    size, before = maps.shape[axis], window.padding[0]
    if isinstance(outputs, int) and outputs < 1:
        raise RuntimeError(f"the pooling window {window.reach} is larger than the map {size}")
    if isinstance(outputs, int) and outputs == 1:
        return _reduce_one(maps, axis, window, combine, fill)
    blocks = outputs - 1 + window.blocks
    extents = [(0, 0)] * (maps.ndim - 1 - axis)
    extents = [(before, blocks * window.stride - size - before), *extents]
    maps = pad(maps, extents, fill)
    maps = split(maps, axis, window.stride)
    result: Any = None
    for tap in range(window.kernel):
        block, phase = divmod(tap * window.dilation, window.stride)
        read = maps.select(axis + 1, phase).narrow(axis, block, outputs)
        result = read if result is None else combine(result, read)
    return result


def _reduce_one(
    maps: Tensor,
    axis: int,
    window: Window,
    combine: Callable[[Tensor, Tensor], Tensor],
    fill: float,
) -> Tensor:
    """Combine what a single window reads of the map, however far it reaches beyond it.

    It takes no step, so that nothing needs to be padded or rearranged for it.
    """
    size, before = maps.shape[axis], window.padding[0]
    first = -(-before // window.dilation)  # tap that is on the map
    start = first * window.dilation - before
    last = min(window.kernel - 1, (size - 1 + before) // window.dilation)
    if last < first:  # all of its taps lie beside the map
        return torch.full_like(maps.narrow(axis, 0, 1), fill)
    read = maps.narrow(axis, start, (last - first) * window.dilation + 1)
    if window.dilation > 1:
        taps = torch.arange(0, read.shape[axis], window.dilation, device=maps.device)
        read = read.index_select(axis, taps)
    if combine is torch.maximum:
        return read.amax(axis, keepdim=True)
    return read.sum(axis, keepdim=True)


def _counts(
    size: int, window: Window, outputs: int, count_include_pad: bool, device: torch.device
) -> Tensor:
    """Return the number by which torch divides the sum of each window of one axis."""
    before = window.padding[0]
    start = torch.arange(outputs, device=device) * window.stride - before
    end = (start + window.kernel).clamp(max=size + before)
    if count_include_pad:
        return end - start
    return end.clamp(max=size) - start.clamp(min=0)


def adaptive_windows(sizes: Sequence[int], outputs: Sequence[int | None]) -> Windows | None:
    """Return the windows of adaptive pooling; None where they are not all of one size."""
    steps = [
        1 if wanted is None else size / wanted for size, wanted in zip(sizes, outputs, strict=True)
    ]
    if [step for step in steps if step != int(step)]:
        return None
    return tuple(Window(int(step), int(step)) for step in steps)
