"""A strided filter as a unit-stride one, and folded back, in NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from stridenet.onnx.files.windows import FilterAxis


@dataclass(frozen=True)
class Expansion:
    """How a filter (out, in / groups, *kernel) becomes one of unit stride.

    Its channels are those of the rearranged map: phases behind each channel (CRD, as pixel_unshuffle),
    or channels behind each phase (DCR, as ONNX's SpaceToDepth).
    """

    axes: tuple[FilterAxis, ...]
    depth_first: bool = False  # DCR

    def size(self, strided: Sequence[int]) -> tuple[int, ...]:
        """Return the size of the unit-stride filter."""
        phases = prod(axis.stride for axis in self.axes)
        return (strided[0], strided[1] * phases, *(axis.kernel for axis in self.axes))

    def expand(self, weight: np.ndarray) -> np.ndarray:
        """The unit-stride filter; of the same type."""
        strides, kernels = self._sizes
        if self.depth_first:
            wide = np.zeros((len(weight), *strides, weight.shape[1], *kernels), weight.dtype)
        else:
            wide = np.zeros((*weight.shape[:2], *strides, *kernels), weight.dtype)
        view: Any = self._channels_first(wide)
        given: Any = weight
        view[:, :, *self._where] = given[:, :, *self._taps]
        return wide.reshape(self.size(weight.shape))

    def fold(self, wide: np.ndarray) -> tuple[np.ndarray, bool]:
        """The strided filter, and whether all that is not of it is zero.

        By division with remainder, not by the taps that expand goes by.
        """
        strides, kernels = self._sizes
        channels = wide.shape[1] // prod(strides)
        order = (*strides, channels) if self.depth_first else (channels, *strides)
        view: Any = self._channels_first(wide.reshape(len(wide), *order, *kernels))
        positions = [axis.dilation * np.arange(axis.taps) + axis.shift for axis in self.axes]
        phases = np.ix_(*(p % a.stride for p, a in zip(positions, self.axes, strict=True)))
        blocks = np.ix_(*(p // a.stride for p, a in zip(positions, self.axes, strict=True)))
        folded = view[:, :, *phases, *blocks]
        taken = np.zeros(view.shape[2:], bool)
        taken[(*phases, *blocks)] = True
        return folded, not view[:, :, ~taken].any()

    @property
    def _sizes(self) -> tuple[list[int], list[int]]:
        return [axis.stride for axis in self.axes], [axis.kernel for axis in self.axes]

    def _channels_first(self, wide: np.ndarray) -> np.ndarray:
        """A view (out, in, *strides, *kernels)."""
        return np.moveaxis(wide, 1 + len(self.axes), 1) if self.depth_first else wide

    @property
    def _found(self) -> list[tuple[np.ndarray, ...]]:
        """Return phase and place of each tap, and the tap, for each axis."""
        found: list[tuple[np.ndarray, ...]] = []
        for axis in self.axes:
            places = axis.places
            phase, place = np.nonzero(places >= 0)
            found.append((phase, place, places[phase, place]))
        return found

    @property
    def _where(self) -> tuple[np.ndarray, ...]:
        phases, places, _ = zip(*self._found, strict=True)
        return (*np.ix_(*phases), *np.ix_(*places))

    @property
    def _taps(self) -> tuple[np.ndarray, ...]:
        return np.ix_(*(taps for _, _, taps in self._found))
