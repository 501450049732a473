"""Which strided tap stands where in the twin's filter: the theorem in integers, NumPy alone.

The twin's filter is the strided one taken apart. A TapMap says, for one axis, which strided tap stands
at each place of it, and where there is none; everything else about the twin is read from that. Axes are
independent, so that the same code serves 1-D, 2-D and 3-D. `//` and `%` are floor division and its
remainder throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


def phase_size(size: Sequence[int], factor: Sequence[int]) -> tuple[int, ...]:
    """Return the spatial size of a phase form: ceil(size / factor) on each axis."""
    return tuple(-(-n // f) for n, f in zip(size, factor, strict=True))


@dataclass(frozen=True)
class TapMap:
    """Describes one axis of a strided convolution, and of its twin between phase forms.

    Output u of the strided convolution reads the positions stride·u + dilation·k − padding[0] of a
    map of `size`, one for each tap k. The twin's output is wanted in phase form with factor S, so its
    input comes with factor F = stride·S (Eq. 26).
    """

    kernel: int
    stride: int
    dilation: int
    padding: tuple[int, int]  # zeros before and after
    size: int  # N, of the strided input
    output_factor: int  # S
    single: int | None = None  # F where there is one output only, so that no stride is ever taken

    @property
    def input_factor(self) -> int:
        """Return F = stride·S."""
        return self.single or self.stride * self.output_factor

    @property
    def output_size(self) -> int:
        """Return M, the size of the output; below one if the kernel is larger than the padded map."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (self.size + sum(self.padding) - reach) // self.stride + 1

    @cached_property
    def taps(self) -> np.ndarray:
        """Return integers (S, F, K̃): the strided tap behind each tap of the twin's filter, or −1.

        Row (m, p) is the filter from input phase p to output phase m: T_p(O_m(H)) of Lemma 1 and
        Eq. 29. −1 marks a structural zero. Lemma 1, Theorem 1 (S = 1) and the induction step of
        Theorem 2 are all in this array.

        An output block holds the S outputs m = 0, …, S − 1. Output m reads, by tap k, the position
        stride·m + dilation·k − padding. In the phase form of its input, position u stands in block
        u // F of phase u mod F. So tap k belongs in the row (m, u mod F), at the place u // F, counted
        from the first block that any output of the block reads. The next output block reads
        stride·S = F positions further, which is exactly one block: the twin's stride is one, and the
        same filter serves all blocks. No two taps of one output read the same position, so that
        none falls on another; what is left between them are the structural zeros.
        """
        outputs = np.arange(self.output_factor)[:, None]
        block, phase = np.divmod(self._positions_read(outputs), self.input_factor)
        taps = np.full((self.output_factor, self.input_factor, np.ptp(block) + 1), -1)
        taps[outputs, phase, block - block.min()] = np.arange(self.kernel)
        return taps

    @property
    def twin_kernel(self) -> int:
        """Return K̃: the number of blocks from the first position that is read to the last."""
        last = self.stride * (self.output_factor - 1) + self.dilation * (self.kernel - 1)
        first, last = -self.padding[0], last - self.padding[0]
        return last // self.input_factor - first // self.input_factor + 1

    @property
    def twin_padding(self) -> tuple[int, int]:
        """Return how many blocks to pad before and after the twin's input, for ceil(M / S) outputs.

        Negative numbers crop the input.
        """
        before = -(-self.padding[0] // self.input_factor)
        return _blocks_around(self, before)

    @property
    def taps_inside(self) -> np.ndarray:
        """Return how many taps of each of the M outputs lie on the map, and not on its padding."""
        position = self._positions_read(np.arange(self.output_size)[:, None])
        return ((position >= 0) & (position < self.size)).sum(1)

    @property
    def reads_phantoms(self) -> bool:
        """Tell whether an output that the strided network has reads a phantom of the twin's input.

        Phantoms are the positions from N to the next multiple of F: the strided network has padding
        there, or nothing; in the twin they hold whatever the layer before put there.
        """
        (blocks,) = phase_size([self.size], [self.input_factor])
        position = self._positions_read(np.arange(self.output_size)[:, None])
        return bool(((position >= self.size) & (position < blocks * self.input_factor)).any())

    def _positions_read(self, outputs: np.ndarray) -> np.ndarray:
        """Return the input position that each tap (columns) of each of `outputs` (rows) reads."""
        return self.stride * outputs + self.dilation * np.arange(self.kernel) - self.padding[0]


@dataclass(frozen=True)
class TransposedTapMap:
    """Describes one axis of a transposed convolution, and of the ordinary one that is its twin.

    Input i of the strided layer adds to the outputs u = stride·i + dilation·k − padding, one for each
    tap k. With factor F at its input, the output comes with factor S = stride·F.
    """

    kernel: int
    stride: int
    dilation: int
    padding: int
    size: int  # N, of the input
    output_size: int  # M
    input_factor: int  # F

    @property
    def output_factor(self) -> int:
        """Return S = stride·F."""
        return self.stride * self.input_factor

    @cached_property
    def _meetings(self) -> tuple[np.ndarray, ...]:
        """Return output phase q, input phase p, tap k and block a wherever the input meets the output.

        They meet where dilation·k = q + padding − S·a − stride·p.
        """
        q, p, k = np.ogrid[: self.output_factor, : self.input_factor, : self.kernel]
        position = q + self.padding - self.stride * p - self.dilation * k
        where = np.nonzero(position % self.output_factor == 0)
        return (*where, position[where] // self.output_factor)

    @cached_property
    def taps(self) -> np.ndarray:
        """Return integers (S, F, K̃) as TapMap does.

        Row (q, p) has the taps from input phase p to output phase q, or −1.
        """
        q, p, k, block = self._meetings
        taps = np.full((self.output_factor, self.input_factor, np.ptp(block) + 1), -1)
        taps[q, p, block - block.min()] = k
        return taps

    @property
    def _blocks_met(self) -> tuple[int, int]:
        """Return the first and the last input block that an output block reads, relative to its own."""
        reach = self.stride * (self.input_factor - 1) + self.dilation * (self.kernel - 1)
        first, last = self.padding - reach, self.padding
        return -(-first // self.output_factor), -(-last // self.output_factor)

    @property
    def twin_kernel(self) -> int:
        """Return K̃, the number of blocks that an output block reads."""
        first, last = self._blocks_met
        return last - first + 1

    @property
    def twin_padding(self) -> tuple[int, int]:
        """Return how many blocks to pad before and after the twin's input, for ceil(M / S) outputs.

        Negative numbers crop the input.
        """
        before = -self._blocks_met[0]
        return _blocks_around(self, before)

    @property
    def reads_phantoms(self) -> bool:
        """Tell whether an output that the strided network has reads a phantom of the twin's input."""
        (blocks,) = phase_size([self.size], [self.input_factor])
        phantoms = np.arange(self.size, blocks * self.input_factor)[:, None]
        reached = self.stride * phantoms + self.dilation * np.arange(self.kernel) - self.padding
        return bool(((reached >= 0) & (reached < self.output_size)).any())


Taps = TapMap | TransposedTapMap


def _blocks_around(axis: Taps, before: int) -> tuple[int, int]:
    (blocks_in,) = phase_size([axis.size], [axis.input_factor])
    (blocks_out,) = phase_size([axis.output_size], [axis.output_factor])
    return before, blocks_out - 1 + axis.twin_kernel - blocks_in - before
