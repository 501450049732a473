"""Tables: as text, and as pandas' DataFrames, for which alone pandas has to be installed."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from stridenet.errors import InputError
from stridenet.sizes import Size, format_size

if TYPE_CHECKING:
    import pandas as pd


def aligned(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text: the rows below their heading, every column flush right."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    return "\n".join(" ".join(map(str.rjust, row, widths)) for row in (heading, *rows))


def filter_columns(strided: Size, unit_stride: Size) -> dict[str, Any]:
    """Return the columns of a plan that describe a layer's filters; () for a layer without one."""
    return {
        "strided_filter": format_size(strided),
        "unit_stride_filter": format_size(unit_stride),
        "strided_weights": prod(strided) if strided else 0,
        "unit_stride_weights": prod(unit_stride) if unit_stride else 0,
    }


def data_frame(rows: Iterable[dict[str, Any]], columns: list[str] | None = None) -> "pd.DataFrame":
    """Return the rows as a DataFrame. Raises InputError where pandas is not installed."""
    try:
        import pandas as pd  # slow to import, and not among what the library needs
    except ImportError as error:
        raise InputError(f"a DataFrame needs pandas ({error}): pip install pandas") from error
    return pd.DataFrame(rows, columns=columns)
