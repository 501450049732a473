"""One axis of a strided operator of an ONNX file in integers: what it reads, and how its twin lies.

Positions are those of the map without padding. Sizes of maps may be known, or be computed in the graph:
all that depends on them has the form (size + constant) // stride, whose constants are here. What is
divided is never negative, as ONNX's division rounds towards zero.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stridenet import windows
from stridenet.taps import TapMap

Same = Literal["SAME_UPPER", "SAME_LOWER"]


@dataclass(frozen=True)
class Window(windows.Window):
    """Describes one axis of a convolution or pooling of a file; padding may depend on the size."""

    same: Same | None = None  # padding for ceil(size / stride) outputs, in place of `padding`
    ceil: bool = False  # the last window may reach beyond the padding, but not begin behind the map

    @property
    def surplus(self) -> int:
        """Return c: all windows together read (size + c) // stride blocks from the first's start on."""
        before, after = self.padding
        rest = self.blocks * self.stride
        if self.same:
            return rest - 1
        if self.ceil:
            return before + rest - 1 + min(after - self.reach + self.stride, 0)
        return before + after + rest - self.reach

    def outputs(self, size: int) -> int:
        """Return how many outputs it gives on a map of `size` positions."""
        return (size + self.surplus) // self.stride - self.blocks + 1

    def at(self, size: int) -> "Window":
        """Return the window for maps of one size: padding as numbers, instead of `same`."""
        if not self.same:
            return self
        total = max(0, (self.outputs(size) - 1) * self.stride + self.reach - size)
        before = (total + (self.same == "SAME_LOWER")) // 2
        return replace(self, same=None, padding=(before, total - before))

    @property
    def may_pad(self) -> bool:
        """Tell whether some size needs zeros behind the map."""
        return self._behind[1] > 0

    @property
    def may_crop(self) -> bool:
        """Tell whether at some size no window reads the last positions of the map."""
        return self._behind[0] < 0

    @property
    def _behind(self) -> tuple[int, int]:
        """Return the least and the most zeros that may stand behind the map, over all sizes."""
        if self.same:
            return 0, self.surplus
        most = self.surplus - self.padding[0]
        return most - self.stride + 1, most


@dataclass(frozen=True)
class FilterAxis:
    """Says where the taps of one axis stand in the unit-stride filter.

    Tap k is of position dilation·k + shift: its quotient by the stride is the place, its remainder the
    phase.
    """

    taps: int
    stride: int
    dilation: int
    shift: int  # from 0 to the kernel's size times the stride
    kernel: int  # places, K̃

    @property
    def places(self) -> np.ndarray:
        """Return integers (stride, kernel): the strided tap at each place of each phase, or −1."""
        tap_map = TapMap(self.taps, self.stride, self.dilation, (-self.shift, 0), 0, 1)
        places = np.full((self.stride, self.kernel), -1)
        first = self.shift // self.stride
        taps = tap_map.taps[0]
        places[:, first : first + taps.shape[1]] = taps
        return places


def unmoved(window: Window) -> FilterAxis:
    """Return an axis without a stride, which stays as it is, with its dilation."""
    return FilterAxis(window.kernel, 1, 1, 0, window.kernel)
