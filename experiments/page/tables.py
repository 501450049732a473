"""Tables of the page: as people read them, each with a link to the csv that has all its numbers."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stridenet.files import read

# A number, and after it what belongs to it: ± 0.07, (0.65–0.76), → 4.53, %.
NUMBER = re.compile(r"[±+−-]?\d[\d,]*\.?\d*(e[+-]?\d+)?( ?[±→(%*/][^A-Za-z]*)?")
WIDE = ("Input", "Layers")  # of Table 1: they stand last, where a page has room for them
BLANK = ("", "—", "nan", "None")


@dataclass(frozen=True)
class Column:
    """Describes a column: its title, and whether it has numbers, which stand to the right."""

    title: str
    number: bool


@dataclass(frozen=True)
class PageTable:
    """Holds a table as people read it, with its caption and the csv of its numbers.

    csv: the path of the csv from the page, as a link has it.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    csv: str
    source: str = ""  # whose numbers these are, where there are several

    @property
    def sortable(self) -> bool:
        """Tell whether there is something to sort: three rows or more."""
        return len(self.rows) > 2


def from_frame(
    name: str, title: str, caption: str, table: pd.DataFrame, csv: str, source: str = ""
) -> PageTable:
    """Return a table of the page from one as people read it."""
    text = table.astype(object).where(table.notna(), "").map(str)
    rows = [tuple(map(str.strip, row)) for row in text.to_numpy().tolist()]
    columns = [
        Column(str(title), _has_numbers(row[place] for row in rows))
        for place, title in enumerate(table.columns)
    ]
    return PageTable(name, title, caption, columns, rows, csv, source)


def _has_numbers(cells: Iterable[str]) -> bool:
    known = [cell for cell in cells if cell not in BLANK]
    return bool(known) and all(NUMBER.fullmatch(cell) for cell in known)


def from_files(folder: Path, name: str, title: str, csv: str, source: str = "") -> PageTable | None:
    """Return the table that a report wrote as NAME.md and NAME.csv; None where there is none.

    The caption is what stands below the table.
    """
    if not (folder / f"{name}.md").is_file() or not (folder / f"{name}.csv").is_file():
        return None
    lines = read(folder / f"{name}.md").decode().splitlines()
    bars = [_cells(line) for line in lines if line.startswith("|")]
    caption = " ".join(line for line in lines if line and not line.startswith("|"))
    if len(bars) < 2:
        return None
    head, _rule, *rows = bars
    frame = pd.DataFrame([(row + [""] * len(head))[: len(head)] for row in rows], columns=head)
    if {*WIDE} <= {*frame}:
        frame = frame[[*frame.columns.drop([*WIDE]), *WIDE]]
    return from_frame(name, title, caption, frame, csv, source)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
