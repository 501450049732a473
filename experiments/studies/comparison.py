"""How the unit-stride network's accuracy differs from the strided one's, pair by pair.

Numbers only: a verdict on the paper's claim is spoken by `experiments.evidence`, on all the runs that
docs/protocol.md asks for.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from experiments.reporting.formats import blank_or
from experiments.reporting.published import PAPER_DIFFERENCE
from experiments.reporting.section import Section
from experiments.reporting.statistics import (
    FEWEST_FOR_IMAGES,
    new_images,
    paired_difference,
    seeds_needed,
)
from experiments.runs.results import arms, unpack_bits
from experiments.settings.schema import ReportConfig
from experiments.studies.table2 import is_the_papers
from stridenet.plan import EliminationPlan

CLAIM = "For a verdict on the paper's claim, run what docs/protocol.md asks for: make evidence."


def compare_accuracy(runs: pd.DataFrame, paper: float | None = None) -> pd.DataFrame:
    """Return one row on the difference in test accuracy, unit stride − strided, in points.

    runs: as results.tidy gives them; a pair is a seed with which both networks were trained from
    scratch. paper: the paper's difference in points, if this is its experiment; it is the margin of the
    question of size. Columns: those of statistics.PairedDifference; within; new_low and new_high (95 %
    interval on new images); paper; seeds_needed: how many pairs show the paper's difference in 80 %
    of experiments.
    """
    scratch = runs[runs.weights == "scratch"].assign(network=arms)
    of = {network: scratch[scratch.network == network].set_index("seed")
          for network in ("strided", "unit_stride")}  # fmt: skip
    seeds = of["strided"].index.intersection(of["unit_stride"].index).sort_values()
    strided, twin = (rows.loc[seeds] for rows in of.values())
    found = paired_difference(100 * (twin.test_accuracy - strided.test_accuracy), paper)
    row: dict[str, Any] = {**asdict(found), "within": found.within, "paper": paper}
    row |= dict.fromkeys(("new_low", "new_high", "seeds_needed"))
    if found.low is not None and found.deviation:
        if "test_bits" in runs and found.n >= FEWEST_FOR_IMAGES:
            row["new_low"], row["new_high"] = new_images(
                _right_images(twin), _right_images(strided)
            )
        if paper is not None:
            row["seeds_needed"] = seeds_needed(paper, found.deviation)
    return pd.DataFrame([row])


def _right_images(runs: pd.DataFrame) -> np.ndarray:
    """Return which images each run classifies rightly: bool (runs, images)."""
    return np.stack([unpack_bits(*of) for of in zip(runs.test_bits, runs.test_images, strict=True)])


def sentence(row: "pd.Series[Any]") -> str:
    """Return what the numbers say, in one or two sentences. row: as compare_accuracy gives it."""
    if row.blank:
        return f"The twin's test accuracy minus the strided network's: {row.blank}. {CLAIM}"
    text = (
        f"The twin's test accuracy minus the strided network's is {row['mean']:+.3f} points on these "
        f"test images (95 % interval {row.low:+.3f} to {row.high:+.3f}, n = {row.n}); the twin is "
        f"ahead in {row.ahead} of {row.n} pairs"
    )
    if row.paper is not None:
        inside = "within" if row.low <= row.paper <= row.high else "outside"
        text += f"; the paper's {row.paper:+}, of one pair, lies {inside} that interval"
    return f"{text}. {CLAIM}"


def comparison_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each quantity, which is blank where there are too few pairs."""
    row = table.iloc[0]
    points, p = blank_or("{:+.3f}"), blank_or("{:.2g}")

    def interval(low: float | None, high: float | None) -> str:
        return "" if pd.isna(low) else f"{points(low)} to {points(high)}"

    few = f"needs {FEWEST_FOR_IMAGES} pairs" if row.n < FEWEST_FOR_IMAGES else ""
    rows = {
        "pairs of runs": str(row.n),
        "pairs in which the twin is ahead": str(row.ahead),
        "mean difference": points(row["mean"]),
        "standard deviation of the differences": blank_or("{:.3f}")(row.deviation),
        "direction: 95 % interval on these images": interval(row.low, row.high),
        "direction: p of the paired t-test": p(row.p),
        "direction: Hodges–Lehmann estimate": points(row["median"]),
        "direction: p of Wilcoxon's signed-rank test": p(row.wilcoxon_p),
        f"size: p of TOST, ±{row.margin}" if row.margin else "size": p(row.margin_p),
        "95 % interval on new images": interval(row.new_low, row.new_high) or few,
        "the paper's difference, of one pair": points(row.paper),
        "pairs needed to see the paper's difference": blank_or("{:,.0f}")(row.seeds_needed),
    }
    return pd.DataFrame({"Accuracy, twin minus strided": [*rows], "points": [*rows.values()]})


def comparison_section(
    config: ReportConfig, runs: pd.DataFrame, plan: EliminationPlan, about: str
) -> Section:
    """Return the comparison as a table of the report."""
    papers = is_the_papers(plan, config.data.name)
    table = compare_accuracy(runs, PAPER_DIFFERENCE if papers else None)
    title, readable = "Unity Stride − Non-Unity Stride", comparison_for_readers(table)
    return Section("comparison", title, sentence(table.iloc[0]), about, table, readable)
