"""Checks where a command may write before it does any work, and lays out text for 80 columns."""

import difflib
import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from stridenet.errors import InputError
from stridenet.files import destination

WIDTH = 80
SHORTEST = 10  # columns that a name keeps in a table, however little room there is
GAP = "  "


def checked_output(typed: str, endings: Sequence[str], reads: Iterable[Path]) -> Path:
    """Return the file that a command may write. Raises InputError where it may not.

    endings: what its name may end in.
    reads: files that the command reads, none of which may be written over.
    """
    path = Path(typed)
    if path.suffix not in endings:
        near = difflib.get_close_matches(path.suffix, endings, n=1, cutoff=0.5)
        meant = f"; did you mean {path.with_suffix(near[0])}?" if near and path.stem else ""
        raise InputError(f"{typed} must end in {' or '.join(endings)}{meant}")
    if path.is_symlink():
        raise InputError(f"{path} is a link to {os.readlink(path)}; name the file itself")
    destination(path)
    if not path.parent.is_dir():
        raise InputError(
            f"there is no folder {path.parent} for {path.name}: mkdir -p {path.parent}"
        )
    for read in reads:
        if path.resolve() == read.resolve() or (path.exists() and path.samefile(read)):
            raise InputError(
                f"{path} would be written over {read}, which is read from; name another"
            )
    return path


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Return rows below their heading: the first `names` columns flush left, the others flush right.

    A name for which there is no room stands on a line of its own, above its row.
    """
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    while sum(widths) + len(GAP) * (len(widths) - 1) > WIDTH and max(widths[:names]) > SHORTEST:
        widths[widths.index(max(widths[:names]))] -= 1
    lines = []
    for row in (heading, *rows):
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            if column < names and len(cell) > width:
                lines.append(cell)
                cell = ""
            cells.append(cell.ljust(width) if column < names else cell.rjust(width))
        lines.append(GAP.join(cells).rstrip())
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """Return the text with its long lines continued below, indented."""
    wrapper = textwrap.TextWrapper(
        WIDTH, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
    )
    return "\n".join(map(wrapper.fill, text.splitlines()))


def compact(number: int | None) -> str:
    """Return thousands with commas, larger numbers in M or G; "" for a number that is not known."""
    if number is None:
        return ""
    for unit, name in ((10**9, "G"), (10**6, "M")):
        if number >= unit:
            return f"{number / unit:,.2f} {name}"
    return f"{number:,}"


def counted(number: int, one: str, several: str = "") -> str:
    """Return "1 layer" or "2 layers"."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"
