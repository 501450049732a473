"""Table 1: accuracy and training time, beside the paper's, and the figures of both."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting.formats import NETWORKS, blank_or, mean_and_deviation, printed
from experiments.reporting.provenance import machine_of
from experiments.reporting.published import PAPER, PAPER_DIFFERENCE
from experiments.reporting.section import Section
from experiments.reporting.style import MARKERS, colour_of, new_figure, order_of
from experiments.runs.published import read_published
from experiments.runs.result_keys import Result
from experiments.runs.results import arms
from experiments.settings.identity import experiment_identity
from experiments.settings.schema import ReportConfig
from experiments.studies.accuracy import draw_differences
from experiments.studies.table2 import layers_text, maps_of
from stridenet.plan import EliminationPlan

TRAINED = ("scratch", "fine_tune")  # what the runs of Table 1 start from
COLUMNS = (
    "network", "input", "layers", "n",
    "accuracy_percent_mean", "accuracy_percent_std", "paper_accuracy_percent",
    "training_seconds_mean", "training_seconds_std", "training_cpu_seconds_mean",
    "training_cpu_seconds_std", "paper_training_seconds",
)  # fmt: skip
BUSY = 1.2  # wall seconds over CPU seconds: above it, runs waited for the processor


def table1(
    runs: pd.DataFrame, plan: EliminationPlan, data: str, pooling: EliminationPlan | None = None
) -> pd.DataFrame:
    """Return accuracy and training time of each network over n seeds, and the paper's.

    runs: as results.tidy gives them. pooling: the plan of the network with pooling layers, if runs have
    it. One row for each network trained from scratch, n = 0 included, and one for each that is treated
    otherwise, has pooling or was fine-tuned. A deviation of fewer than two runs is missing. Runs that
    started from a file of weights are left out: different files are not repeated measurements.
    """
    plans = dict.fromkeys(NETWORKS, plan) | ({"pooling": pooling} if pooling else {})
    architecture = pd.DataFrame(
        [
            {"built": name, "layers": layers_text(of, name), "maps": " ".join(maps_of(of, name))}
            for name, of in plans.items()
        ]
    )
    architecture["input"] = architecture.maps.str.partition(" ")[0]
    paper = PAPER if data == "mnist" else PAPER.iloc[:0]
    measured = _means_of_networks(runs)
    measured["built"] = measured.network.str.partition(" ")[0]
    table = measured.merge(architecture, how="left").merge(paper, how="left")
    papers = (table.weights == "scratch") & table.network.isin(NETWORKS)
    table.loc[~papers, ["paper_accuracy_percent", "paper_training_seconds"]] = None
    table["network"] += table.weights.map(lambda w: "" if w == "scratch" else f" {w}")
    return table[[*COLUMNS]]


def _means_of_networks(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row a network and start, first the two networks of the paper from scratch."""
    trained = runs[runs.weights.isin(TRAINED)].assign(network=arms)
    measured = trained.groupby(["network", "weights"]).agg(
        n=("seed", "size"),
        accuracy_percent_mean=("test_accuracy", lambda a: 100 * a.mean()),
        accuracy_percent_std=("test_accuracy", lambda a: 100 * a.std()),
        training_seconds_mean=("training_wall_seconds", "mean"),
        training_seconds_std=("training_wall_seconds", "std"),
        training_cpu_seconds_mean=("training_cpu_seconds", "mean"),
        training_cpu_seconds_std=("training_cpu_seconds", "std"),
    )
    scratch = pd.MultiIndex.from_product([NETWORKS, ["scratch"]], names=["network", "weights"])
    others = sorted(measured.index.difference(scratch), key=lambda row: (row[1] != "scratch", row))
    measured = measured.reindex([*scratch, *others]).reset_index()
    measured["n"] = measured.n.fillna(0).astype(int)
    return measured


def table1_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Return table 1 with a mean and its deviation in one entry, and the paper's names.

    With columns reference_…, those of published results stand between ours and the paper's.
    """
    columns = {
        "Network": table.network.map(printed),
        "Input": table["input"],
        "Layers": table["layers"],
        "n": table.n,
    }
    for quantity, title, unit, digits in (
        ("accuracy_percent", "Accuracy", "%", 2),
        ("training_seconds", "Training", "s", 1),
    ):
        columns[f"{title} {unit}"] = mean_and_deviation(table, quantity, digits)
        if "reference_n" in table:
            reference = mean_and_deviation(table, f"reference_{quantity}", digits)
            columns[f"reference's {unit}"] = reference
        if quantity == "training_seconds":
            columns["CPU s"] = table.training_cpu_seconds_mean.map(blank_or("{:.1f}"))
        columns[f"paper's {unit}"] = table[f"paper_{quantity}"].map(blank_or("{:.2f}"))
    return pd.DataFrame(columns)


def busy(runs: pd.DataFrame) -> str:
    """Return a sentence where some network's runs had to wait for the processor; or "".

    Where the device is no processor, CPU seconds say little, and so does this.
    """
    trained = runs[runs.weights.isin(TRAINED) & (runs.device == "cpu")].assign(network=arms)
    means = trained.groupby(["network", "weights"])[
        ["training_wall_seconds", "training_cpu_seconds"]
    ]
    most = means.mean().pipe(lambda m: m.training_wall_seconds / m.training_cpu_seconds).max()
    if not most > BUSY:  # not a number where nothing was trained
        return ""
    return (
        f"The machine was busy: wall seconds are up to {most:.1f} times CPU seconds, "
        "and no measure of the networks."
    )


def table1_section(
    config: ReportConfig, runs: pd.DataFrame, table: pd.DataFrame, plan: EliminationPlan, about: str
) -> Section:
    caption = (
        "Test accuracy and training time, mean ± standard deviation over n seeds, beside the paper's "
        "one run. Seconds are those of the training steps: of the clock, and of the processor (CPU)."
    )
    caption = f"{caption} {busy(runs)}".strip()
    reference = _reference(config, plan)
    if reference is not None:
        measured, machine = reference
        table = table.merge(measured, how="left")
        counts = table.reference_n[table.reference_n > 0].astype(int).unique()
        n = " and ".join(map(str, counts))
        caption += f" The reference is this experiment's published result, n = {n}, {machine}."
    readable = table1_for_readers(table)
    return Section("table1", "Table 1", caption, about, table, readable, ("Input", "Layers"))


def _reference(config: ReportConfig, plan: EliminationPlan) -> tuple[pd.DataFrame, str] | None:
    """Return the published means of this experiment by network, and where they are from.

    Returns None if there are none.
    """
    if config.reference is None:
        return None
    wanted = experiment_identity(config)
    folders = [path.parent for path in sorted(Path(config.reference).glob("*/runs.csv"))]
    all_runs = (read_published(folder).runs for folder in folders)
    runs = next((runs for runs in all_runs if (runs.experiment == wanted).any()), None)
    if runs is None:
        return None
    runs = runs[runs.experiment == wanted].rename(columns={"torch": "versions.torch"})
    runs = runs.assign(test_accuracy=runs.test_correct / runs.test_images)
    table, machine = table1(runs, plan, config.data.name), machine_of(runs)
    measured = table[["n", *(name for name in table if name.endswith(("_mean", "_std")))]]
    return measured.add_prefix("reference_").assign(network=table.network), machine


def accuracy_by_epoch(results: Sequence[Result]) -> Figure:
    """Draw accuracy on validation images after each epoch.

    A thin line is a seed, a thick one the median over seeds.
    """
    kinds = ["network", "variant", "weights", "seed"]
    epochs = pd.json_normalize(results, "epochs", kinds, errors="ignore").assign(network=arms)
    epochs = epochs[(epochs.weights == "scratch") & (epochs.epoch > 0)]
    epochs = epochs.assign(accuracy=100 * epochs.get("validation_accuracy", math.nan))
    figure, axes = new_figure()
    for network, rows in epochs.groupby("network"):
        style: dict[str, Any] = {"color": colour_of(network), "marker": MARKERS.get(network, "o")}
        for _, run in rows.groupby("seed"):
            axes.plot(run.epoch, run.accuracy, lw=0.7, alpha=0.3, ms=2, **style)
        median = rows.groupby("epoch").accuracy.median()
        label = f"{printed(network)}, median of {rows.seed.nunique()}"
        axes.plot(median.index, median, lw=2.2, label=label, **style)
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)", title="Validation accuracy by epoch")
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    if len(epochs):  # there are none where nothing was trained, recipe.epochs=0
        figure.legend(loc="outside lower center", ncols=2)  # where it hides no curve
    return figure


def accuracy_of_seeds(runs: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Draw each network's test accuracy minus the strided one's, pair by pair, sorted.

    A pair is of one seed. Each network that was trained from scratch, other than the strided one, has
    a panel. The paper's difference is the margin of its own network, where table 1 has its numbers.
    """
    scratch = runs[runs.weights == "scratch"].assign(network=arms)
    wide = 100 * scratch.pivot(index="seed", columns="network", values="test_accuracy")
    others = sorted({*wide} - {"strided"}, key=order_of) or ["unit_stride"]
    papers = table.set_index("network").paper_accuracy_percent
    columns = min(len(others), 2)
    rows = math.ceil(len(others) / columns)
    figure = Figure(figsize=(2.2 + 4.2 * columns, 1.6 + 3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    named: dict[str, Artist] = {}
    for axes, network in zip(grid, others, strict=False):
        margin = None if pd.isna(papers.get(network, math.nan)) else PAPER_DIFFERENCE
        draw_differences(axes, wide.reindex(columns=["strided", network]).dropna(), margin)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    for axes in grid[len(others) :]:
        axes.set_axis_off()
    figure.suptitle("Test accuracy after training, pair by pair, on these test images")
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=1 + columns)
    return figure


def training_time(runs: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Draw the CPU seconds of the training steps of every run, and their mean as a bar.

    Where table 1 has the paper's seconds, they stand beside them on an axis of their own: they are of
    another machine and another number of steps, so that only ratios can be compared.
    """
    scratch = runs[runs.weights == "scratch"].assign(network=arms)
    networks = sorted({*scratch.network}, key=order_of)
    papers = table.set_index("network").paper_training_seconds.dropna()
    papers = papers[[network for network in networks if network in papers]]
    bars = [len(networks), *([len(papers)] if len(papers) else [])]
    figure = Figure(figsize=(max(8.3, 1.5 * sum(bars)), 4.4), layout="constrained")
    grid = figure.subplots(1, len(bars), width_ratios=bars, squeeze=False)[0]
    for place, network in enumerate(networks):
        seconds = scratch[scratch.network == network].training_cpu_seconds
        _bar(grid[0], network, seconds.mean(), f"{seconds.mean():.1f} s, n = {len(seconds)}")
        places = np.full(len(seconds), place)
        grid[0].scatter(places, seconds, c="black", s=14, zorder=2, alpha=0.6)
    grid[0].set_title("Ours: a point is a run,\na bar is the mean", fontsize="medium")
    grid[0].set_ylabel("training steps (CPU seconds)")
    for network, second in papers.items():
        _bar(grid[-1], network, second, f"{second:.1f} s")
    if len(papers):
        grid[1].set_title("The paper's: one run each,\non its machine", fontsize="medium")
        grid[1].set_ylabel("training (seconds)")
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    figure.suptitle("Training time")
    return figure


def _bar(axes: Axes, network: str, seconds: float, label: str) -> None:
    name = printed(network).replace("Stride ", "Stride\n").replace(" rate", "\nrate")
    axes.bar(f"{name}\n{label}", seconds, width=0.5, color=colour_of(network), alpha=0.6)
