"""The verdicts of the page: each claim, what was measured, direction, size, and where it is from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from experiments.runs.machine import short_commit
from experiments.runs.published import Published
from experiments.studies.table1 import busy

SIGNS = {"supported": "✓", "contradicted": "✗", "undecided": "≈"}
WIDTH = 160  # of the drawing of an interval, in its own units
ROOM = 1.15  # what is drawn over the largest number in it


@dataclass(frozen=True)
class Interval:
    """Describes the drawing of a mean, its interval and a margin around zero; all are places on a line.

    margin: the left end and the width of ±margin; None where there is none.
    """

    mean: float
    low: float
    width: float
    margin: tuple[float, float] | None
    zero: float = WIDTH / 2


@dataclass(frozen=True)
class Verdict:
    """Holds a claim as the page shows it. blank: why nothing was judged; "" where it was."""

    claim: str
    text: str
    experiment: str
    quantity: str
    measured: str
    bounds: str
    direction: str
    sign: str
    certainty: str
    size: str
    n: str
    provenance: str
    blank: str
    interval: Interval | None


def verdicts_of(table: pd.DataFrame, published: Mapping[str, Published]) -> list[Verdict]:
    """Return the claims. table: of claims.claims_table."""
    verdicts, said = [], dict[str, str]()
    for row in table.to_dict("records"):
        name = row["experiment"]
        where = (
            f"experiment={name}: the runs of {said[name]}."
            if name in said
            else provenance_of(name, published.get(name))
        )
        said.setdefault(name, row["claim"])
        verdicts.append(_verdict(row, where))
    return verdicts


def _verdict(row: Mapping[Any, Any], provenance: str) -> Verdict:
    judged = bool(row["verdict"])
    digits = 3 if row["unit"] == "points" else 4
    mean, low, high = (
        "" if pd.isna(row[key]) else f"{row[key]:+.{digits}f}".replace("-", "−")
        for key in ("mean", "low", "high")
    )
    size = ""
    if not pd.isna(row["margin"]):
        within = {True: "within", False: "not shown to be within"}.get(row["within"], "")
        p = "" if pd.isna(row["margin_p"]) else f" (TOST, p = {row['margin_p']:.2g})"
        size = f"{within} ±{row['margin']:.2g} {row['unit']}{p}".strip()
    return Verdict(
        row["claim"],
        row["text"],
        row["experiment"],
        row["quantity"],
        f"{mean} {row['unit']}" if judged else "",
        f"95 % interval {low} to {high}" if judged and low else "",
        row["verdict"],
        SIGNS.get(row["verdict"], ""),
        f"p = {row['holm_p']:.2g} (Holm)" if judged else "",
        size if judged else "",
        f"{row['n']} pairs" if judged else "",
        provenance,
        "" if judged else row["blank"],
        _interval(row) if judged and low else None,
    )


def _interval(row: Mapping[Any, Any]) -> Interval:
    margin = None if pd.isna(row["margin"]) else float(row["margin"])
    most = ROOM * max(abs(row["low"]), abs(row["high"]), margin or 0)

    def place(value: float) -> float:
        return round(WIDTH / 2 * (1 + value / most), 2)

    low = place(row["low"])
    around = None if margin is None else (place(-margin), place(margin) - place(-margin))
    return Interval(place(row["mean"]), low, round(place(row["high"]) - low, 2), around)


def provenance_of(experiment: str, found: Published | None) -> str:
    """Return in a few words where an experiment's numbers are from."""
    if found is None:
        return f"experiment={experiment}: no run is published."
    runs = found.runs
    days = sorted({str(date)[:10] for date in runs.date})
    commits = sorted(
        {short_commit(part) for commit in runs.git_commit for part in str(commit).split(" then ")}
    )
    shown = ", ".join(commits[:3]) + (f" and {len(commits) - 3} more" if len(commits) > 3 else "")
    until = " to ".join(dict.fromkeys((days[0], days[-1])))
    machines, versions = (
        " / ".join(map(str, runs[key].unique())) for key in ("device_name", "torch")
    )
    text = (
        f"experiment={experiment}: {len(runs)} runs, {until}, {machines}, torch {versions}, "
        f"commit {shown}. {busy(runs)}"
    )
    return text.strip()
