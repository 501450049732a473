"""Accuracy in the experiments of docs/protocol.md: Table 1, and the difference of the pairs."""

import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting.formats import NETWORKS, blank_or, mean_and_deviation, printed
from experiments.reporting.published import PAPER, PAPER_DIFFERENCE
from experiments.reporting.section import Section
from experiments.reporting.statistics import FEWEST_FOR_IMAGES, new_images, paired_difference
from experiments.reporting.style import MARKERS, colour_of, new_figure
from experiments.runs.published import Published
from experiments.runs.results import arms
from experiments.studies.claims import FREE, STRIDED, percent_right, without_diverged
from experiments.studies.rates import diverged

EXPERIMENTS = ("table1", "swapped", "caffe", "fashion", "paper_level", "adam")
ACCURACY = (
    "Accuracy on the test images after training from scratch, loss on the first 10,000 training images "
    "(where it is finite), and CPU seconds of the training steps: mean ± standard deviation over n "
    "seeds, each network at the rate given. The paper's accuracy is of one run each. The runs were "
    "done beside other work: for the ratio of training times, see `make bench`."
)
DIFFERENCES = (
    "Test accuracy, Unity Stride − Non-Unity Stride, in points, over n pairs of one seed each. On "
    "these images: the mean and its 95 % interval (Student's), where seeds vary and the test images "
    "are these; p of the paired t-test, not adjusted; beside it the Hodges–Lehmann estimate and "
    "Wilcoxon's p. On new images: a 95 % interval where seeds and images vary (crossed bootstrap). "
    "Ahead: the number of pairs in which Unity Stride is the more accurate."
)


class Pairs(NamedTuple):
    """Holds the runs of two networks that are compared, under a label."""

    experiment: str
    label: str
    found: Published


def accuracy_table(published: Mapping[str, Published]) -> pd.DataFrame:
    """Return a row for each network and rate of each experiment: n, accuracy, loss and CPU seconds.

    published: of the experiments that are complete, by name; only those of EXPERIMENTS are taken.
    """
    rows = []
    for name in EXPERIMENTS:
        if name not in published:
            continue
        runs = published[name].runs.assign(network=lambda r: arms(r), accuracy=percent_right)
        for (network, rate), of in runs.groupby(["network", "learning_rate"], sort=False):
            row: dict[str, Any] = {"experiment": name, "network": network, "learning_rate": rate}
            row |= {"n": len(of), "diverged": int(diverged(of).sum())}
            for column, title in (
                ("accuracy", "accuracy_percent"),
                ("fit_loss", "fit_loss"),
                ("training_cpu_seconds", "cpu_seconds"),
            ):
                row |= {f"{title}_mean": of[column].mean(), f"{title}_std": of[column].std()}
            rows.append(row)
    columns = ["experiment", "network", "learning_rate", "n"]
    table = pd.DataFrame(rows, columns=None if rows else columns)
    paper = dict(zip(NETWORKS, PAPER.paper_accuracy_percent, strict=True))
    table["paper_accuracy_percent"] = table.network.map(paper).where(table.experiment == "table1")
    return table


def pairs_of(published: Mapping[str, Published]) -> list[Pairs]:
    """Return what is compared: each experiment's two networks, and both networks at one rate.

    The latter joins `swapped`, where each network has the other's rate, with the pairs of `table1`
    that have the same seeds. What has a diverged run comes again without its pair.
    """
    found = [
        Pairs(name, _rates(published[name].runs), published[name])
        for name in EXPERIMENTS
        if name in published and name != "swapped"
    ]
    if "table1" in published and "swapped" in published:
        own, swapped = published["table1"], published["swapped"]
        runs = pd.concat([own.runs[own.runs.seed.isin(swapped.runs.seed)], swapped.runs])
        right = {**own.right, **swapped.right}
        for rate, of in runs.groupby("learning_rate"):
            at_rate = Published(of, own.epochs, own.rho, right)
            found.append(Pairs("swapped", f"both at {rate:g}", at_rate))
    trained = [
        pairs._replace(
            label=f"{pairs.label}, without diverged", found=without_diverged(pairs.found)
        )
        for pairs in found
        if diverged(pairs.found.runs).any()
    ]
    return found + trained


def _rates(runs: pd.DataFrame) -> str:
    rates = runs.learning_rate.unique()
    return f"both at {rates[0]:g}" if len(rates) == 1 else "each at its rate"


def differences_table(published: Mapping[str, Published]) -> pd.DataFrame:
    """Return a row for each comparison: the columns of PairedDifference, new_low and new_high.

    The margin of the question of size is the paper's difference, and only `table1` has one.
    """
    rows = []
    for experiment, label, found in pairs_of(published):
        strided, twin = _runs_by_seed(found)
        values = percent_right(twin) - percent_right(strided)
        main = experiment == "table1"
        difference = paired_difference(values, PAPER_DIFFERENCE if main else None)
        row = {"experiment": experiment, "label": label, **asdict(difference)}
        row |= {"within": difference.within, "new_low": None, "new_high": None}
        if difference.n >= FEWEST_FOR_IMAGES and difference.low is not None:
            right = [np.stack([found.right[run] for run in of.run]) for of in (twin, strided)]
            row["new_low"], row["new_high"] = new_images(right[0], right[1])
        rows.append(row)
    return pd.DataFrame(rows)


def _runs_by_seed(found: Published) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs of the strided network and of its twin, of the seeds that both have."""
    runs = found.runs[found.runs.weights == "scratch"]
    strided, twin = (runs[arms(runs) == arm].set_index("seed") for arm in (STRIDED, FREE))
    seeds = strided.index.intersection(twin.index).sort_values()
    return strided.loc[seeds], twin.loc[seeds]


def accuracy_section(published: Mapping[str, Published], about: str) -> list[Section]:
    """Return the table of accuracy, which takes no time; none where nothing is complete."""
    accuracy = accuracy_table(published)
    if accuracy.empty:
        return []
    readable = pd.DataFrame(
        {
            "Experiment": accuracy.experiment,
            "Network": accuracy.network.map(printed),
            "Rate": accuracy.learning_rate.map("{:g}".format),
            "n": accuracy.n.astype(str) + accuracy.diverged.map(_diverged),
            "Accuracy %": mean_and_deviation(accuracy, "accuracy_percent", 2),
            "paper's %": accuracy.paper_accuracy_percent.map(blank_or("{:.2f}")),
            "Loss": mean_and_deviation(accuracy, "fit_loss", 4),
            "CPU s": mean_and_deviation(accuracy, "cpu_seconds", 0),
        }
    )
    return [Section("accuracy", "Accuracy", ACCURACY, about, accuracy, readable, ("Loss",))]


def accuracy_sections(published: Mapping[str, Published], about: str) -> list[Section]:
    """Return both tables of the report. about: what is missing, as a sentence."""
    sections, differences = accuracy_section(published, about), differences_table(published)
    if not sections:
        return []
    if len(differences):
        readable = differences_for_readers(differences)
        readable.insert(0, "Experiment", differences.experiment + ", " + differences.label)
        title = "Unity Stride − Non-Unity Stride"
        wide = ("Ahead", "Hodges–Lehmann", "p (Wilcoxon)")
        sections.append(
            Section("differences", title, DIFFERENCES, about, differences, readable, wide)
        )
    return sections


def _diverged(many: int) -> str:
    return f" ({many} diverged)" if many else ""


def differences_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each comparison, intervals in one entry; what is compared is not in it."""
    points, p = blank_or("{:+.3f}"), blank_or("{:.2g}")

    def interval(low: str, high: str) -> list[str]:
        bounds = zip(table[low], table[high], strict=True)
        return ["" if pd.isna(a) else f"{points(a)} to {points(b)}" for a, b in bounds]

    size = [
        "" if pd.isna(row.margin) else f"±{row.margin:g}: {'yes' if row.within else 'no'}"
        for row in table.itertuples()
    ]
    return pd.DataFrame(
        {
            "n": table.n,
            "Ahead": table.ahead,
            "Difference": table["mean"].map(points),
            "95 % on these images": interval("low", "high"),
            "p": table.p.map(p),
            "Hodges–Lehmann": table["median"].map(points),
            "p (Wilcoxon)": table.wilcoxon_p.map(p),
            "Within (TOST)": size,
            "95 % on new images": interval("new_low", "new_high"),
        }
    )


def differences_figure(found: Published, margin: float | None = PAPER_DIFFERENCE) -> Figure:
    """Draw the difference of every pair, with the paper's difference as the margin if there is one."""
    strided, twin = _runs_by_seed(found)
    pairs = pd.DataFrame({STRIDED: percent_right(strided), FREE: percent_right(twin)})
    figure, axes = new_figure()
    draw_differences(axes, pairs, margin)
    figure.suptitle("Test accuracy of both networks, pair by pair, on these test images")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def draw_differences(axes: Axes, pairs: pd.DataFrame, margin: float | None) -> None:
    """Draw the difference of every pair, sorted, with their mean, its interval and the margin.

    pairs: accuracy in percent of two networks, a column each, that of the strided one first. With
    fewer than three pairs there is no mean, and the reason is written.
    """
    strided, network = pairs.columns
    values = np.sort(pairs[network] - pairs[strided])
    found = paired_difference(values, margin)
    colour = colour_of(network)
    axes.axhline(0, color="0.3", lw=1)
    if margin is not None:
        axes.axhspan(-margin, margin, color="0.9", label=f"±{margin:g}, the paper's difference")
        axes.axhline(margin, color="0.3", lw=1, ls=":", label="the paper's one pair")
    marker = MARKERS.get(network, "o")
    axes.plot(range(1, len(values) + 1), values, marker, ms=4, color=colour, label="one pair each")
    if found.mean is not None:
        axes.axhline(found.mean, color=colour, lw=1.4, label="their mean")
    if found.low is not None and found.high is not None:
        label = "its 95 % interval (Student's)"
        axes.axhspan(found.low, found.high, color=colour, alpha=0.25, label=label)
    else:
        reason = textwrap.fill(f"no interval: {found.blank}", 32)
        axes.annotate(
            reason, (0.03, 0.97), xycoords="axes fraction", va="top", backgroundcolor="white"
        )
    axes.set(xlabel="pairs, sorted", ylabel=f"{printed(network)} −\n{printed(strided)} (points)")
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    medians = [f"median {pairs[each].median():.2f} % {printed(each)}" for each in pairs]
    title = [f"{len(pairs)} pairs", *(medians if len(pairs) else [])]
    axes.set_title("\n".join(title), fontsize="medium", loc="left")
