"""Tables in documents: what stands between two marks is written anew from the sections of a report.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, where NAME is a section's. With
`NAME COLUMN=a,b` it has only the rows with one of these values in that column, and not that column.
"""

import re
from collections.abc import Mapping

import pandas as pd

from stridenet.errors import InputError

MARK = "<!-- table: "
# No mark stands within: where an end is forgotten, the text up to the next table is not a table.
MARKED = re.compile(rf"({MARK}([^\n]+?) -->\n)(?:(?!{MARK}).)*?(<!-- end -->)", re.DOTALL)


def with_tables(document: str, tables: Mapping[str, pd.DataFrame]) -> str:
    """Return a document with its marked tables as they are now.

    tables: as people read them, by their sections' names. Raises InputError for a mark that names none,
    that selects no row, or that has no end.
    """
    if len(MARKED.findall(document)) != document.count(MARK):
        raise InputError(f"each `{MARK}NAME -->` needs a line `<!-- end -->` before the next one")
    return MARKED.sub(
        lambda mark: f"{mark[1]}\n{_markdown(mark[2], tables)}\n\n{mark[3]}", document
    )


def _markdown(wanted: str, tables: Mapping[str, pd.DataFrame]) -> str:
    name, _, rows = wanted.partition(" ")
    if name not in tables:
        raise InputError(f"there is no table {name} to be marked; there are {', '.join(tables)}")
    table = tables[name]
    if rows:
        column, _, values = rows.partition("=")
        if column not in table:
            raise InputError(
                f"the table {name} has no column {column}; there are {', '.join(table)}"
            )
        table = table[table[column].astype(str).isin(values.split(","))].drop(columns=column)
        if table.empty:
            raise InputError(f"the table {name} has no row with {rows}")
    return str(table.to_markdown(index=False, disable_numparse=True))
