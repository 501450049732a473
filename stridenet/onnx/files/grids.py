"""Cuts the map that a strided operator reads into blocks of one stride, one axis at a time."""

from dataclasses import dataclass

from stridenet.onnx.files.building import Builder, GraphSize
from stridenet.onnx.files.options import Kernel
from stridenet.onnx.files.windows import FilterAxis, Window, unmoved


@dataclass(frozen=True)
class Grid:
    """Describes one axis of the rearrangement, and of the unit-stride convolution behind it."""

    stride: int
    size: GraphSize  # of the map
    front: GraphSize  # zeros before it
    blocks: GraphSize  # `blocks · stride` positions in all: zeros are added behind it, or it is cut
    filter: FilterAxis
    dilation: int = 1  # of the unit-stride convolution
    padding: tuple[int, int] = (0, 0)  # of the unit-stride convolution, in blocks
    outputs: GraphSize | None = None  # how many of its outputs are kept, if not all
    may_pad: bool = True  # whether some size needs zeros behind the map
    may_crop: bool = False  # whether at some size the end of the map is cut


def minimal_grid(b: Builder, window: Window, size: GraphSize) -> Grid:
    """Return blocks that begin with the first window: the kernel is the smallest, of K̃ places."""
    known = window.at(size) if isinstance(size, int) else window
    blocks = b.divide(b.add(size, known.surplus), window.stride)
    axis = FilterAxis(window.kernel, window.stride, window.dilation, 0, window.blocks)
    front = _front(b, known, size)
    return Grid(
        window.stride, size, front, blocks, axis, may_pad=known.may_pad, may_crop=known.may_crop
    )


def convolution_grid(b: Builder, window: Window, size: GraphSize, kernel: Kernel) -> Grid:
    """Return the grid of an axis of a convolution, with the minimal or the odd kernel.

    An axis without a stride stays as it is.
    """
    if window.stride == 1:
        known = window.at(0)  # the padding of SAME does not depend on the size here
        axis = unmoved(window)
        return Grid(1, size, 0, size, axis, window.dilation, known.padding, None, False)
    if kernel == "minimal":
        return minimal_grid(b, window, size)
    known = window.at(size) if isinstance(size, int) else window
    if known.same:
        return _odd_behind_padding(b, known, size)
    return _odd_grid(b, known, size)


def _front(b: Builder, window: Window, size: GraphSize) -> GraphSize:
    """Return the zeros before the map; with SAME, half of what ceil(size / stride) outputs need."""
    if not window.same:
        return window.padding[0]
    blocks = b.divide(b.add(size, window.surplus), window.stride)
    reached = b.add(b.times(blocks, window.stride), window.reach - window.blocks * window.stride)
    total = b.subtract(reached, size)
    if window.reach < window.stride:
        total = b.at_least_zero(total)
    return b.divide(b.add(total, int(window.same == "SAME_LOWER")), 2)


def _odd_behind_padding(b: Builder, window: Window, size: GraphSize) -> Grid:
    """Return an odd kernel where padding depends on an unknown size, and is all in the Pad."""
    kernel = window.blocks | 1
    blocks = b.divide(b.add(size, window.surplus), window.stride)
    axis = FilterAxis(window.kernel, window.stride, window.dilation, 0, kernel)
    blocks = b.add(blocks, kernel - window.blocks)
    return Grid(window.stride, size, _front(b, window, size), blocks, axis)


def _odd_grid(b: Builder, window: Window, size: GraphSize) -> Grid:
    """Return blocks that begin with the map: the smallest odd kernel whose padding is symmetric.

    Among the paddings that this kernel allows, the smallest is taken with which the map's own blocks
    give at least the strided operator's outputs, of which the first are kept. Where none gives enough,
    blocks of zeros are added behind the map.
    """
    stride = window.stride
    before = -(-window.padding[0] // stride)  # blocks that the first window reaches beyond the map
    last = (window.reach - 1 - window.padding[0]) // stride  # the last block that it reads
    kernel = max(last + 1 + before, 1) | 1
    wanted = window.surplus - (window.blocks - 1) * stride  # (size + wanted) // stride outputs
    for padding in range(before, kernel - last):
        # The map's own ceil(size / stride) blocks give (size + given) // stride outputs.
        given = stride - 1 + stride * (2 * padding - kernel + 1)
        if _outputs(size, given, stride) == _outputs(size, wanted, stride):
            outputs = None
            break
        if given >= wanted:
            outputs = b.divide(b.add(size, wanted), stride)
            break
    else:
        padding, outputs = before, None
        given = wanted
    more = stride * (2 * padding - kernel + 1)
    blocks = b.divide(b.add(size, given - more), stride)
    axis = FilterAxis(
        window.kernel, stride, window.dilation, padding * stride - window.padding[0], kernel
    )
    return Grid(stride, size, 0, blocks, axis, 1, (padding, padding), outputs)


def _outputs(size: GraphSize, more: int, stride: int) -> int:
    """Return (size + more) // stride, or `more` where the size is not known.

    Two numbers of outputs are compared. If they are to be equal at every size, so must be `more`.
    """
    return (size + more) // stride if isinstance(size, int) else more
