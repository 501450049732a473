"""Text for a terminal of 80 columns."""

import textwrap
from collections.abc import Sequence

WIDTH = 80
SHORTEST = 10  # a name that is cut
GAP = "  "


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Rows below their heading: the first `names` columns flush left, the others flush right.

    A name for which there is no room stands on a line of its own, above its row.
    """
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    while sum(widths) + len(GAP) * (len(widths) - 1) > WIDTH:
        widest = max(range(names), key=lambda column: widths[column])
        if widths[widest] <= SHORTEST:
            break
        widths[widest] -= 1
    lines = []
    for row in (heading, *rows):
        long = [cell for cell, width in zip(row[:names], widths, strict=False) if len(cell) > width]
        lines += long
        cells = [
            ("" if cell in long else cell).ljust(width) if column < names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(GAP.join(cells).rstrip())
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """Lines that are too long, continued below, indented."""
    return "\n".join(
        textwrap.fill(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False,
                      break_long_words=False)
        for line in text.splitlines()
    )  # fmt: skip


def compact(number: int | None) -> str:
    """Thousands with commas, larger numbers in M or G; "" where it is not known."""
    if number is None:
        return ""
    for unit, name in ((10**9, "G"), (10**6, "M")):
        if number >= unit:
            return f"{number / unit:,.2f} {name}"
    return f"{number:,}"


def counted(number: int, one: str, several: str | None = None) -> str:
    """1 layer, 2 layers."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"
