"""The arms of experiment=sharing side by side: accuracy, losses, and distance from the tied twins.

What they say of the paper's claims is in studies/claims.py.
"""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting.figures import save_figure
from experiments.reporting.formats import blank_or, mean_and_deviation
from experiments.reporting.provenance import about_runs, circumstances_of
from experiments.reporting.section import WIDTH, Section
from experiments.reporting.statistics import paired_difference
from experiments.reporting.style import MARKERS, colour_of
from experiments.runs.files import write_json
from experiments.runs.published import Published, as_published
from experiments.runs.results import arms, finished_runs, tidy
from experiments.settings.schema import ReportConfig
from experiments.studies.claims import percent_right
from stridenet.errors import InputError
from stridenet.files import make_folder, write
from stridenet.plan import EliminationPlan
from stridenet.sharing_measures import degrees_of_freedom

ARMS = {  # as they are called here, by what they are in the runs
    "strided": "strided",
    "unit_stride tied": "tied",
    "unit_stride masked": "masked",
    "unit_stride": "free",
    "unit_stride masked by_copies": "masked by copies",
    "unit_stride by_copies": "free by copies",
    "unit_stride by_effective": "free effective",
    "pooling": "pooling",
}
STARTS = {"scratch": "from scratch", "fine_tune": "fine-tuned"}
MEASURED = ("training_loss", "zeros", "copies")  # at a point of the curves
QUANTITIES = {  # of a run: the unit of its differences
    "test accuracy": "points",
    "loss of the first epoch": "nats",
    "loss on training images": "nats",
    "test loss": "nats",
    "test loss − loss on training images": "nats",
    "CPU time of training": "%",
}


def by_epoch(found: Published) -> pd.DataFrame:
    """Return one row for each run and epoch.

    It has arm, weights, seed, epoch, accuracy on validation images, training loss, and the distance
    from the tied twins in its two parts (published.distance).
    """
    runs = found.runs.assign(arm=arms(found.runs).map(ARMS))
    about = runs[["run", "arm", "weights", "seed", "validation_images"]]
    table = found.epochs.merge(about, on="run")
    right = table.validation_correct.astype(float) / table.validation_images
    columns = [*about.columns[:-1], "epoch", "validation_accuracy", *MEASURED]
    table = table.assign(validation_accuracy=right)[columns].astype(dict.fromkeys(MEASURED, float))
    return table[table.arm.notna() & table.weights.isin([*STARTS])]


def by_run(found: Published) -> pd.DataFrame:
    """Return one row for each run: arm, weights, seed and QUANTITIES.

    The distance from the tied twins is that after the last epoch.
    """
    epochs = by_epoch(found)
    last = epochs.sort_values("epoch").groupby("run").tail(1).set_index("run")
    first = epochs[epochs.epoch > 0].sort_values("epoch").groupby("run").head(1).set_index("run")
    of_runs = found.runs.set_index("run").reindex(last.index)
    table = last[["arm", "weights", "seed", "zeros", "copies"]].copy()
    table["test accuracy"] = percent_right(of_runs)
    table["loss of the first epoch"] = first.training_loss
    table["loss on training images"] = of_runs.fit_loss.astype(float)
    table["test loss"] = of_runs.test_loss.astype(float)
    table["test loss − loss on training images"] = of_runs.test_loss - of_runs.fit_loss
    table["CPU time of training"] = of_runs.training_cpu_seconds
    table = table[table["loss of the first epoch"].notna()]  # trained at all
    order = {arm: place for place, arm in enumerate(ARMS.values())}
    starts = {start: place for place, start in enumerate(STARTS)}
    keys = [table.weights.map(starts), table.arm.map(order), table.seed]
    return table.iloc[np.lexsort([key.to_numpy() for key in reversed(keys)])].reset_index()


def differences(runs: pd.DataFrame, quantity: str, weights: str, arm: str) -> "pd.Series[float]":
    """Return an arm's quantity minus the strided network's, for each seed that both have.

    Times are compared in percent.
    """
    wide = runs[runs.weights == weights].pivot(index="seed", columns="arm", values=quantity)
    pairs = wide.reindex(columns=[arm, "strided"]).dropna()
    if QUANTITIES[quantity] == "%":
        return 100 * (pairs[arm] / pairs.strided - 1)
    return pairs[arm] - pairs.strided


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each start and arm: n, mean and deviation of every quantity.

    It also has the paired difference of accuracy from the strided network, with its interval.
    """
    rows = []
    for (weights, arm), group in runs.groupby(["weights", "arm"], sort=False):
        row: dict[str, Any] = {"start": STARTS[weights], "arm": arm, "n": len(group)}
        for quantity in (*QUANTITIES, "zeros", "copies"):
            row |= {
                f"{quantity}_mean": group[quantity].mean(),
                f"{quantity}_std": group[quantity].std(),
            }
        paired = differences(runs, "test accuracy", weights, arm)
        found = paired_difference([] if arm == "strided" else paired)
        row |= {f"difference_{key}": getattr(found, key) for key in ("mean", "low", "high")}
        rows.append(row)
    return pd.DataFrame(rows)


def sharing_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table of arms as people read it, a mean and its deviation in one entry."""
    mean = table.difference_mean.map(blank_or("{:+.2f}"))
    bounds = table.difference_low.map(blank_or(" [{:+.2f}, ")) + table.difference_high.map(
        blank_or("{:+.2f}]")
    )
    percent = table.assign(
        **{f"{part}_{of}": 100 * table[f"{part}_{of}"]
           for part in ("zeros", "copies") for of in ("mean", "std")}
    )  # fmt: skip
    return pd.DataFrame(
        {
            "Start": table.start,
            "Arm": table.arm,
            "n": table.n,
            "Accuracy %": mean_and_deviation(table, "test accuracy", 2),
            "Difference": mean + bounds,
            "First epoch": mean_and_deviation(table, "loss of the first epoch", 3),
            "Training images": mean_and_deviation(table, "loss on training images", 4),
            "Gap": mean_and_deviation(table, "test loss − loss on training images", 4),
            "Zeros %": mean_and_deviation(percent, "zeros", 1),
            "Copies %": mean_and_deviation(percent, "copies", 1),
            "CPU s": mean_and_deviation(table, "CPU time of training", 0),
        }
    )


def freedom_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Format the table for people to read, and add a line of sums."""
    total = table.sum(numeric_only=True)
    whole = pd.concat([table, pd.DataFrame([{"layer": "all", **total}])], ignore_index=True)
    numbers = whole.drop(columns="layer").map(blank_or("{:,.0f}"))
    return whole[["layer"]].join(numbers).rename(columns={"paper": "paper's formula"})


OF_ARMS = (
    "After the last epoch, mean ± standard deviation over n seeds. Difference: of accuracy from the "
    "strided network of the same seed, in points, with its 95 % interval. Training images: the loss "
    "on the first of them, as many as there are test images; gap: how much higher the test loss is. "
    "Zeros and copies: distance from the tied subspace, in percent of the weights' norm: of what "
    "stands at structural zeros, and of copies from their mean."
)


def write_findings(config: ReportConfig) -> list[str]:
    """Write tables and figure of experiment=sharing into outputs/report; returns what to print."""
    results = finished_runs(config)
    found = as_published("sharing", results)
    runs, epochs = by_run(found), by_epoch(found)
    if runs.empty:
        raise InputError(
            f"outputs={config.outputs} has no trained run of an arm of experiment=sharing; first run "
            "`python -m experiments.train experiment=sharing`"
        )
    folder = Path(config.outputs) / "report"
    make_folder(folder)
    every = tidy(results)
    about = about_runs(config, every)
    write_json(folder / "sharing_about.json", circumstances_of(config, every))
    write(folder / "sharing_runs.csv", runs.to_csv(index=False).encode())
    write(folder / "sharing_epochs.csv", epochs.to_csv(index=False).encode())
    save_figure(sharing_figure(epochs), folder / "sharing")
    return [
        sharing_section(runs, about).save(folder),
        textwrap.fill(about, WIDTH),
        f"Tables (csv, md, tex) and the figure (png, svg) are in {folder}.",
    ]


def sharing_section(runs: pd.DataFrame, about: str) -> Section:
    """Return the arms as a table of the report. runs: as by_run gives them."""
    table = summary(runs)
    wide = ("Difference", "Training images", "Gap")
    return Section("sharing", "Sharing", OF_ARMS, about, table, sharing_for_readers(table), wide)


def freedom_section(plan: EliminationPlan) -> Section:
    table = degrees_of_freedom(plan)
    caption = (
        "Weights of each convolution that training can choose: of the strided filter (tied), of the "
        "twin's without its structural zeros (masked), and all (free). Striding is these equalities "
        "and zeros; the paper's formula for the twin's filter counts the masked one."
    )
    readable = freedom_for_readers(table)
    return Section("degrees_of_freedom", "Degrees of freedom", caption, "", table, readable)


def sharing_figure(epochs: pd.DataFrame) -> Figure:
    """Draw the arms of experiment=sharing by epoch: mean and standard deviation over seeds.

    Runs from scratch are above, fine-tuned ones below; a start that has no runs is left out. epochs: as
    by_epoch gives them.
    """
    panels = {
        "training_loss": ("mean training loss of the epoch (nats)", 1),
        "validation_accuracy": ("validation accuracy (%)", 100),
    }
    starts = {key: name for key, name in STARTS.items() if (epochs.weights == key).any()}
    figure = Figure(figsize=(9, 1.6 + 3.4 * len(starts)), layout="constrained")
    grid = figure.subplots(len(starts), len(panels), squeeze=False)
    for row, (weights, start) in zip(grid, starts.items(), strict=True):
        of_start = epochs[epochs.weights == weights]
        for axes, (column, (title, scale)) in zip(row, panels.items(), strict=True):
            rows = of_start[of_start[column].notna()]
            if column == "validation_accuracy" and weights == "scratch":
                rows = rows[rows.epoch > 0]  # before, it is that of chance
            _draw_arms(axes, rows, column, scale)
            axes.set(xlabel="epoch", ylabel=title, title=f"{start}, {_seeds(of_start)}")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle("Points: means over n seeds. Bars: ± one standard deviation over these seeds.")
    return figure


def _draw_arms(axes: Axes, rows: pd.DataFrame, column: str, scale: float) -> None:
    """Draw mean and deviation of a column by epoch, for each arm that has runs."""
    for place, (name, arm) in enumerate(ARMS.items()):
        seeds = rows[rows.arm == arm].groupby("epoch")[column]
        mean, deviation = scale * seeds.mean(), scale * seeds.std()
        aside = mean.index + 0.03 * (place - len(ARMS) / 2)  # so that none hides another
        style: dict[str, Any] = {"color": colour_of(name), "marker": MARKERS[name]}
        if len(mean):
            axes.errorbar(aside, mean, deviation, ms=6, lw=1.4, elinewidth=1, label=arm, **style)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")


def _seeds(epochs: pd.DataFrame) -> str:
    """Return how many seeds an arm has: "n = 10", or "n = 8 to 10" where arms differ."""
    counts = epochs.groupby("arm").seed.nunique()
    few, many = counts.min(), counts.max()
    return f"n = {few}" if few == many else f"n = {few} to {many}"
