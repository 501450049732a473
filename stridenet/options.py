"""How a network is to be converted: the choices, their defaults, and the check of what a user gives.

Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from stridenet.errors import StrideEliminationError

SHARING = ("tied", "masked", "free")
BatchNorm = Literal["shared", "per_phase"]
BATCH_NORM = get_args(BatchNorm)
Depthwise = Literal["phases", "grouped"]
DEPTHWISE = get_args(Depthwise)

MOST_PARAMETERS = 300_000_000


@dataclass(frozen=True)
class Options:
    """Says how eliminate_stride converts a network."""

    output_factor: int | tuple[int, ...] = 1
    batch_norm: str = "shared"


def checked_options(factor: Any, batch_norm: Any) -> Options:
    """Return the options. Raises StrideEliminationError for an invalid value."""
    if batch_norm not in BATCH_NORM:
        raise StrideEliminationError(f"batch_norm={batch_norm!r}: it is one of {BATCH_NORM}")
    factors = factor if isinstance(factor, Sequence) else (factor,)
    if not all(isinstance(f, int) and f > 0 for f in factors) or not factors:
        raise StrideEliminationError(
            f"output_factor={factor!r}: give a positive number, or one for each axis"
        )
    factor = tuple(factor) if isinstance(factor, Sequence) else factor
    return Options(factor, batch_norm)
