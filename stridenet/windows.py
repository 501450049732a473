"""One axis of a strided operation: the window that it moves, in integers. Imports no torch.

A window knows no map. Sizes of maps are given to its methods, and may be symbols of torch.export.
"""

from dataclasses import dataclass

from stridenet.taps import TapMap, TransposedTapMap


@dataclass(frozen=True)
class Window:
    """Describes one axis of a convolution or pooling."""

    kernel: int
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] = (0, 0)  # before and after the map; negative: positions not read

    @property
    def reach(self) -> int:
        """Return the number of positions from the first that it reads to the last, both included."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def blocks(self) -> int:
        """Return K̃, the number of blocks of `stride` positions that it reaches over."""
        return -(-self.reach // self.stride)

    @property
    def tap_map(self) -> TapMap:
        """Return which of its taps stands where, on the smallest map that gives one output."""
        return TapMap(self.kernel, self.stride, self.dilation, (0, 0), self.blocks * self.stride, 1)

    def on(self, size: int, output_factor: int = 1, single: int | None = None) -> TapMap:
        """Return which of its taps stands where, on a map of `size`; see TapMap for the others."""
        axis = (self.kernel, self.stride, self.dilation, self.padding)
        return TapMap(*axis, size, output_factor, single)

    def outputs(self, size: int) -> int:
        """Return how many outputs it gives on a map of `size` positions."""
        return (size + sum(self.padding) - self.reach) // self.stride + 1


@dataclass(frozen=True)
class TransposedWindow:
    """Describes one axis of a transposed convolution."""

    kernel: int
    stride: int
    dilation: int
    padding: int

    @property
    def before(self) -> int:
        """Return how many blocks of the input before its own an output reaches back to."""
        return (self.dilation * (self.kernel - 1) - self.padding) // self.stride

    @property
    def blocks(self) -> int:
        """Return K̃, the number of blocks of the input that an output reads."""
        return self.before + 1 - (-self.padding // self.stride)

    @property
    def tap_map(self) -> TransposedTapMap:
        """Return which of its taps stands where, on a map of one position."""
        outputs = max(1, self.outputs(1, 0))
        axis = (self.kernel, self.stride, self.dilation, self.padding)
        return TransposedTapMap(*axis, 1, outputs, 1)

    def outputs(self, size: int, output_padding: int) -> int:
        """Return how many outputs it gives on a map of `size` positions."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (size - 1) * self.stride - 2 * self.padding + reach + output_padding


Windows = tuple[Window, ...]  # one for each axis
TransposedWindows = tuple[TransposedWindow, ...]
