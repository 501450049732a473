"""How a network is to be converted: the choices, their defaults, and the check of what a user gives.

Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stridenet.errors import StrideEliminationError

SHARING = ("tied", "masked", "free")


MOST_PARAMETERS = 300_000_000


@dataclass(frozen=True)
class Options:
    """How a network is to be converted."""

    scope: str = "network"
    only: tuple[str, ...] | None = None
    pooling: bool = False
    output_factor: int | tuple[int, ...] = 1
    batch_norm: str = "shared"


def checked_options(scope: Any, only: Any, pooling: Any, factor: Any, batch_norm: Any) -> Options:
    """The options, or StrideEliminationError for one that means nothing."""
    for name, value, allowed in (
        ("scope", scope, ("network", "layer")),
        ("batch_norm", batch_norm, ("shared", "per_phase")),
        ("pooling", pooling, (True, False)),
    ):
        if value not in allowed:
            raise StrideEliminationError(f"{name}={value!r}: it is one of {allowed}")
    if isinstance(only, str) or (only is not None and scope == "network"):
        raise StrideEliminationError(f"only={only!r}: a list of layers' names, with scope='layer'")
    factors = factor if isinstance(factor, Sequence) else (factor,)
    if not all(isinstance(f, int) and f > 0 for f in factors) or not factors:
        raise StrideEliminationError(f"output_factor={factor!r}: a positive number, or one an axis")
    if scope == "layer" and set(factors) != {1}:
        raise StrideEliminationError(
            "output_factor needs scope='network': maps keep their form here"
        )
    factor = tuple(factor) if isinstance(factor, Sequence) else factor
    return Options(scope, None if only is None else tuple(only), pooling, factor, batch_norm)
