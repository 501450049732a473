"""The searches of docs/protocol.md on validation images: rates, and the steps to the paper's level."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.reporting.formats import blank_or, mean_and_deviation, printed
from experiments.reporting.published import PAPER
from experiments.reporting.section import Section
from experiments.reporting.style import MARKERS, colour_of, new_figure
from experiments.runs.results import arms

STEP = 2  # between two rates of the grid
DIVERGED = 0.5  # a run with less than this share of the validation images right counts as diverged
CAPTION = (
    "Validation error in percent at the end of training, mean ± standard deviation over {n} seeds; * "
    "is the rate that docs/protocol.md chooses: the least mean error without a diverged seed."
)

LENGTHS = (
    "Validation accuracy of Non-Unity Stride in percent after so many steps, mean ± standard deviation "
    "over n seeds; * is the first whose mean is at least the paper's, "
    f"{PAPER.paper_accuracy_percent[0]:.2f}."
)


def diverged(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Tell which published runs diverged: the loss became infinite, or too few images are right."""
    right = runs.validation_correct.astype(float) / runs.validation_images
    return runs.diverged.astype(bool) | ~(right >= DIVERGED)  # not a number counts, too


def rates_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each number of training images, network and rate of a search.

    runs: as published.read_published gives them. Columns: train_size, arm, learning_rate, n, diverged
    (how many seeds), error_percent_mean, error_percent_std, chosen, and inside: whether rates on both
    sides of the chosen one were tried.
    """
    right = runs.validation_correct.astype(float) / runs.validation_images
    table = runs.assign(arm=arms(runs), error=100 * (1 - right), diverged=diverged(runs))
    keys = ["train_size", "arm", "learning_rate"]
    table = table.groupby(keys, dropna=False, as_index=False).agg(
        n=("seed", "nunique"),
        diverged=("diverged", "sum"),
        error_percent_mean=("error", "mean"),
        error_percent_std=("error", "std"),
    )
    table[["chosen", "inside"]] = False
    for _, group in table.groupby(["train_size", "arm"], dropna=False):
        eligible = group[group.diverged == 0]
        if len(eligible):
            # The first of equal ones is the smaller rate; they are equal but for their rounding.
            best = eligible.error_percent_mean.round(9).idxmin()
            table.loc[best, "chosen"] = True
            edges = group.learning_rate.min(), group.learning_rate.max()
            table.loc[best, "inside"] = table.learning_rate[best] not in edges
    return table


def to_try(table: pd.DataFrame) -> list[float]:
    """Return the rates that the protocol adds for every arm, where a chosen one is at an edge."""
    edges = table[table.chosen & ~table.inside].learning_rate
    low, high = table.learning_rate.min(), table.learning_rate.max()
    beyond = [low / STEP] * bool((edges == low).any()) + [high * STEP] * bool((edges == high).any())
    return sorted(float(rate) for rate in beyond)


def rates_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each rate and number of training images, a column for each network."""
    error = table.error_percent_mean.map("{:.2f}".format)
    error += table.error_percent_std.map(blank_or(" ± {:.2f}")) + table.chosen.map(
        {True: " *", False: ""}
    )
    lost = table.diverged.astype(str) + " of " + table.n.astype(str) + " diverged"
    entries = table.assign(entry=error.where(table.diverged == 0, lost), arm=table.arm.map(printed))
    keys = ["train_size", "learning_rate"]
    wide = entries.pivot(index=keys, columns="arm", values="entry").fillna("")
    wide = wide[[*dict.fromkeys(entries.arm)]].reset_index().rename_axis(columns=None)
    readable = wide.rename(columns={"train_size": "Images", "learning_rate": "Rate"})
    readable["Images"] = readable.Images.map(blank_or("{:,.0f}"))
    readable["Rate"] = readable.Rate.map("{:g}".format)
    return readable if table.train_size.notna().any() else readable.drop(columns="Images")


def rates_section(name: str, table: pd.DataFrame, about: str) -> Section:
    """Return the search as a table of the report. about: a sentence for the end of its caption."""
    n = " or ".join(map(str, sorted(table.n.unique())))
    caption = f"{CAPTION.format(n=n)} {about}".strip()
    readable = rates_for_readers(table)
    return Section(name, "The search of rates", caption, "", table, readable)


def lengths_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each number of steps: n, validation accuracy in percent, and chosen.

    Chosen is the least number with which the mean accuracy is at least the paper's of its strided
    network; none is, where no number reaches it. runs: of the strided network.
    """
    accuracy = 100 * runs.validation_correct.astype(float) / runs.validation_images
    table = runs.assign(accuracy=accuracy).groupby("steps", as_index=False)
    table = table.agg(
        n=("seed", "nunique"),
        accuracy_percent_mean=("accuracy", "mean"),
        accuracy_percent_std=("accuracy", "std"),
    )
    reached = table.accuracy_percent_mean.round(9) >= PAPER.paper_accuracy_percent[0]
    return table.assign(chosen=reached & (reached.cumsum() == 1))


def lengths_section(name: str, table: pd.DataFrame) -> Section:
    """Return the search of the number of steps as a table of the report."""
    readable = pd.DataFrame(
        {
            "Steps": table.steps.map("{:,}".format) + table.chosen.map({True: " *", False: ""}),
            "n": table.n,
            "Validation accuracy %": mean_and_deviation(table, "accuracy_percent", 2),
        }
    )
    return Section(name, "The paper's level", LENGTHS, "", table, readable)


def rates_figure(table: pd.DataFrame) -> Figure:
    """Draw validation error against rate, with the standard error of the mean.

    A ring is around what is chosen.

    Rates with a diverged seed are left out. table: of one number of training images.
    """
    figure, axes = new_figure()
    for name, rows in table[table.diverged == 0].groupby("arm", sort=False):
        spread = rows.error_percent_std / rows.n**0.5
        style: dict[str, Any] = {
            "color": colour_of(str(name)),
            "marker": MARKERS.get(str(name), "o"),
        }
        axes.errorbar(
            rows.learning_rate,
            rows.error_percent_mean,
            spread,
            lw=1.4,
            label=printed(str(name)),
            **style,
        )
        best = rows[rows.chosen]
        axes.plot(
            best.learning_rate,
            best.error_percent_mean,
            "o",
            ms=14,
            mfc="none",
            color=style["color"],
        )
    axes.set(xscale="log", xlabel="learning rate", ylabel="validation error (%)")
    axes.set_title("Validation error by rate; a ring: chosen")
    axes.set_xticks(
        [*table.learning_rate.unique()], [f"{r:g}" for r in table.learning_rate.unique()]
    )
    axes.minorticks_off()
    axes.legend()
    return figure
