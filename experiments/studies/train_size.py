"""Test accuracy against the number of training images: experiment=train_size of docs/protocol.md."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from experiments.reporting.formats import blank_or, mean_and_deviation, printed, seeds_of
from experiments.reporting.section import Section
from experiments.reporting.statistics import CONFIDENCE, paired_difference
from experiments.reporting.style import MARKERS, colour_of
from experiments.runs.published import Published
from experiments.runs.results import arms
from experiments.studies.claims import FREE, SIZES, STRIDED, by_arm, paired, percent_right

MASKED = "unit_stride masked"
TWINS = {FREE: "strided − free", MASKED: "strided − masked"}
ACCURACY = (
    "Test accuracy in percent after 1,000 steps on so many training images, mean ± standard "
    "deviation over {seeds}, each network at the rate that was chosen for it and for the number "
    "of images."
)
DIFFERENCES = (
    "Test accuracy, Non-Unity Stride − Unity Stride (free) and − Unity Stride masked, in points, "
    "over n pairs of one seed each, with the 95 % interval (Student's) on these test images; above "
    "0, the strided network is the more accurate. All: the mean over the sizes, seed by seed; that "
    "of the free twin is the outcome of claim C4, whose verdict is in the table of verdicts. The "
    "other intervals are descriptive."
)


def accuracy_by_size(found: Published) -> pd.DataFrame:
    """Return one row for each network and number of training images: rate, n, accuracy and its error.

    error: half of the 95 % interval of the mean (Student's), in points.
    """
    runs = found.runs.assign(network=arms(found.runs), accuracy=percent_right(found.runs))
    table = runs.groupby(
        ["train_size", "network", "learning_rate"], as_index=False, sort=False
    ).agg(
        n=("seed", "nunique"),
        accuracy_percent_mean=("accuracy", "mean"),
        accuracy_percent_std=("accuracy", "std"),
    )
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, table.n - 1)
    table["error"] = quantile * table.accuracy_percent_std / np.sqrt(table.n)
    return table.sort_values("train_size", kind="stable", ignore_index=True)


def differences_by_size(found: Published) -> pd.DataFrame:
    """Return one row for each twin and size, and one for the mean over all sizes (train_size: None).

    Columns: twin, train_size, and those of PairedDifference: strided − twin, in points.
    """
    rows = []
    for twin in TWINS:
        of_sizes = {}
        for size in SIZES:
            runs = found.runs[found.runs.train_size == size]
            of_sizes[size] = paired(by_arm(runs, percent_right(runs)), STRIDED, twin)
        mean = pd.concat([*of_sizes.values()], axis=1).dropna().mean(axis=1)
        for train_size, values in (*of_sizes.items(), (None, mean)):
            difference = asdict(paired_difference(values))
            rows.append({"twin": twin, "train_size": train_size, **difference})
    return pd.DataFrame(rows).astype({"train_size": "Int64"})


def train_size_sections(found: Published) -> list[Section]:
    """Return accuracy by size, and the differences by size, as tables of the report."""
    accuracy, differences = accuracy_by_size(found), differences_by_size(found)
    entry = mean_and_deviation(accuracy, "accuracy_percent", 2)
    entry += accuracy.learning_rate.map(" at {:g}".format)
    wide = accuracy.assign(entry=entry).pivot(index="train_size", columns="network", values="entry")
    wide = wide[[*dict.fromkeys(accuracy.network)]].rename(columns=printed)
    wide.insert(0, "Images", wide.index.map("{:,}".format))
    about = ACCURACY.format(seeds=seeds_of(found.runs))
    title = "Accuracy by training images"
    of = differences.assign(entry=[_interval(row) for _, row in differences.iterrows()])
    of["Images"] = of.train_size.map(lambda size: "all" if pd.isna(size) else f"{size:,}")
    pairs = of.pivot(index="Images", columns="twin", values="entry")[[*TWINS]].rename(columns=TWINS)
    pairs.insert(0, "n", of.groupby("Images").n.min())
    pairs = pairs.reindex(of.Images.unique()).reset_index().rename_axis(columns=None)
    return [
        Section("train_size", title, about, "", accuracy, wide.rename_axis(columns=None)),
        Section("train_size_differences", "Differences", DIFFERENCES, "", differences, pairs),
    ]


def train_size_figure(found: Published) -> Figure:
    """Draw accuracy against the number of images, and the paired differences, with 95 % intervals."""
    accuracy, differences = accuracy_by_size(found), differences_by_size(found)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for network, rows in accuracy.groupby("network", sort=False):
        name, place = str(network), [STRIDED, *TWINS].index(str(network)) - 1
        left.errorbar(
            rows.train_size * 1.03**place, rows.accuracy_percent_mean, rows.error, lw=1.4, capsize=2,
            color=colour_of(name), marker=MARKERS[name], label=printed(name),
        )  # fmt: skip
    right.axhline(0, color="0.3", lw=1)
    by_twin = differences.dropna(subset="train_size").groupby("twin", sort=False)
    for place, (twin, rows) in enumerate(by_twin):
        mean, name = rows["mean"].astype(float), str(twin)
        spread = [mean - rows.low.astype(float), rows.high.astype(float) - mean]
        right.errorbar(
            rows.train_size.astype(float) * 1.03 ** (place - 0.5), mean, spread, lw=1.4, capsize=2,
            color=colour_of(name), marker=MARKERS[name], label=TWINS[name],
        )  # fmt: skip
    for axes in (left, right):
        axes.set(xscale="log", xlabel="training images")
        axes.set_xticks([*SIZES], [f"{size:,}" for size in SIZES])
        axes.minorticks_off()
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend()
    left.set_ylabel("test accuracy (%)")
    right.set_ylabel("strided − twin, pair by pair (points)")
    seeds = seeds_of(found.runs)
    figure.suptitle(f"Few images ({seeds}): means with 95 % intervals, on these test images")
    return figure


def _interval(row: "pd.Series[Any]") -> str:
    """Return a mean with its interval in one entry."""
    mean, low, high = (blank_or("{:+.2f}")(row[name]) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if low else mean
