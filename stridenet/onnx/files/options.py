"""Has the choices of how an ONNX file is to be converted, and checks those that a user makes."""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from stridenet.errors import InputError

Rearrange = Literal["reshape", "two-step", "space_to_depth", "host"]
Kernel = Literal["minimal", "odd"]


@dataclass(frozen=True)
class FileOptions:
    """Says how convert_file is to convert a file."""

    only: tuple[str, ...] | None = None
    pooling: bool = False
    rearrange: Rearrange = "reshape"
    kernel: Kernel = "minimal"


def checked_file_options(only: Any, pooling: bool, rearrange: Any, kernel: Any) -> FileOptions:
    """Return the options. Raises InputError for an invalid one."""
    for name, given, choices in (
        ("rearrange", rearrange, get_args(Rearrange)),
        ("kernel", kernel, get_args(Kernel)),
    ):
        if given not in choices:
            raise InputError(
                f"{name}={given!r} is unknown{did_you_mean(str(given), choices)}: take one of "
                f"{', '.join(choices)}"
            )
    if isinstance(only, str) or not (only is None or isinstance(only, Sequence)):
        raise InputError(f"only={only!r}: a list of names of outputs or nodes, as in ['conv1']")
    return FileOptions(None if only is None else tuple(only), pooling, rearrange, kernel)


def did_you_mean(name: str, names: Collection[str]) -> str:
    """Return a question for the name most like a mistyped one; "" if none is like it."""
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
