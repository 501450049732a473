"""A table of the report: all its numbers, as people read it, and its files."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.reporting.formats import LATEX
from stridenet.files import write

WIDTH = 80  # of a terminal


@dataclass
class Section:
    """Holds a table of the report: all its numbers, and the form in which people read it."""

    name: str  # of its files
    title: str
    caption: str
    about: str  # where the numbers come from
    table: pd.DataFrame
    readable: pd.DataFrame
    unprinted: tuple[str, ...] = ()  # columns that are too wide for a terminal

    def save(self, folder: Path) -> str:
        """Write it as csv, md and tex; returns it as text."""
        caption = f"{self.caption} {self.about}".strip()
        save_table(self.table, self.readable, folder / self.name, caption)
        printed = self.readable.drop(columns=[*self.unprinted], errors="ignore")
        text = printed.to_string(index=False)
        if max(map(len, text.splitlines())) > WIDTH:
            # The rest stands below, behind the first column again.
            rows = printed.set_index(printed.columns[0]).rename_axis(None)
            text = rows.to_string(line_width=WIDTH)
        return f"{textwrap.fill(f'{self.title}: {self.caption}', WIDTH)}\n\n{text}"


def remove_earlier(folder: Path, names: Iterable[str]) -> None:
    """Remove the files of tables and figures that an earlier report had, of other runs."""
    for name in names:
        for suffix in ("csv", "md", "tex", "png", "svg"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)


def save_table(table: pd.DataFrame, readable: pd.DataFrame, path: Path, caption: str) -> None:
    """Write `path` with .csv (all numbers), .md and .tex (as people read it)."""
    write(path.with_suffix(".csv"), table.to_csv(index=False).encode())
    markdown = readable.to_markdown(index=False, disable_numparse=True)
    write(path.with_suffix(".md"), f"{markdown}\n\n{caption}\n".encode())
    style = readable.style.format(escape="latex").format_index(escape="latex", axis="columns")
    latex = style.hide(axis="index").to_latex(hrules=True, caption=caption.translate(LATEX))
    write(path.with_suffix(".tex"), latex.replace("±", r"$\pm$").encode())
