"""Sizes of feature maps without their batch: (channels, height, width), checked and as text."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from stridenet.errors import StrideEliminationError

Size = tuple[int, ...]


class Counts(NamedTuple):
    """Holds a number of the strided network, and that of its unit-stride twin."""

    strided: int
    unit_stride: int


NONE = Counts(0, 0)


def checked_sizes(input_size: Sequence[Any]) -> tuple[Size, ...]:
    """Return the size (channels, height, width) of each input, from one size or one for each input.

    Raises StrideEliminationError for anything but positive integers.
    """
    several = isinstance(input_size, Sequence) and not isinstance(input_size, str)
    if several and input_size and all(isinstance(size, Sequence) for size in input_size):
        return tuple(_checked_size(size, input_size) for size in input_size)
    return (_checked_size(input_size, input_size),)


def _checked_size(size: Any, given: Any) -> Size:
    try:
        checked = tuple(map(operator.index, size))
    except TypeError:
        checked = ()
    if not checked or min(checked) < 1 or not isinstance(size, Sequence):
        raise StrideEliminationError(
            f"input_size={given!r}: give the positive sizes of one image, as in (1, 28, 28), or of "
            "each input, as in ((1, 28, 28), (3, 14, 14))"
        )
    return checked


def format_size(size: Sequence[int]) -> str:
    """Return a size as text: 1x28x28 for (1, 28, 28)."""
    return "x".join(map(str, size))
