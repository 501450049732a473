"""The reporter's figures: accuracy by epoch and by seed, training time, feature maps to scale."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stridenet.elimination import EliminationPlan
from stridenet.findings import ARMS, STARTS
from stridenet.phases import FeatureMap, phase_size
from stridenet.runs import arms, write
from stridenet.tables import NETWORKS, PRINTED, printed
from stridenet.tracing import written

COLOURS = {  # Okabe and Ito's, for all kinds of sight
    "strided": "#0072B2",
    "unit_stride": "#D55E00",
    "unit_stride tied": "#56B4E9",
    "unit_stride masked": "#009E73",
    "unit_stride masked rate_by_copies": "#CC79A7",
    "unit_stride rate_by_copies": "#E69F00",
    "unit_stride masked fan_in=filter": "#F0E442",
    "pooling": "#000000",
}
MARKERS = dict(zip(COLOURS, "osD^vPX*", strict=True))
GAP = 0.1  # between channels and between phases, over the size of one


def accuracy_by_epoch(results: Sequence[dict[str, Any]]) -> Figure:
    """Test accuracy after each epoch: a thin line a seed, a thick one their mean."""
    kinds = ["network", "variant", "weights", "seed"]
    epochs = pd.json_normalize(results, "epochs", kinds, errors="ignore").assign(network=arms)
    epochs = epochs[(epochs.weights == "scratch") & (epochs.epoch > 0)]
    figure, axes = _figure()
    for network, rows in epochs.groupby("network"):
        style: dict[str, Any] = {"color": _colour(network), "marker": MARKERS.get(network, "o")}
        for _, run in rows.groupby("seed"):
            axes.plot(run.epoch, 100 * run.test_accuracy, lw=0.8, alpha=0.4, ms=3, **style)
        mean = rows.groupby("epoch").test_accuracy.mean()
        label = f"{printed(network)}, mean of {rows.seed.nunique()}"
        axes.plot(mean.index, 100 * mean, lw=2.2, label=label, **style)
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title="Test accuracy by epoch")
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    networks = epochs.network.nunique()  # none where nothing was trained, recipe.epochs=0
    if networks > len(NETWORKS):
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)  # where it hides no curve
    elif networks:
        axes.legend()
    return figure


def accuracy_of_seeds(runs: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """The last test accuracy of every seed, the two networks of a seed joined by a line."""
    figure, axes = _figure()
    scratch = runs[runs.weights == "scratch"].assign(network=arms)
    wide = 100 * scratch.pivot(index="seed", columns="network", values="test_accuracy")
    for network in wide:
        axes.scatter(wide.index, wide[network], c=_colour(network), marker=MARKERS.get(network, "o"),
                     label=printed(network), zorder=2)  # fmt: skip
    both = wide.dropna()
    axes.vlines(both.index, both.min(axis=1), both.max(axis=1), color="0.7", lw=1, zorder=1)
    for row in table.itertuples():
        if row.network in COLOURS and not pd.isna(row.paper_accuracy_percent):
            label = f"{PRINTED[row.network]}, the paper's one run"
            axes.axhline(
                row.paper_accuracy_percent, ls="--", lw=1.2, c=COLOURS[row.network], label=label
            )
    axes.set(xlabel="seed", ylabel="test accuracy (%)", title="Test accuracy of every seed")
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)  # where it hides no seed
    return figure


def training_time(runs: pd.DataFrame) -> Figure:
    """Seconds of training steps of every run, the mean as a bar."""
    scratch = runs[runs.weights == "scratch"].assign(network=arms)
    networks = sorted({*scratch.network}, key=_order)
    figure, axes = _figure(width=max(6.4, 1.6 * len(networks)))  # inches; for the labels
    for place, network in enumerate(networks):
        seconds = scratch[scratch.network == network].training_wall_seconds
        name = printed(network).replace("Stride ", "Stride\n").replace(" rate", "\nrate")
        label = f"{name}\n{seconds.mean():.1f} s, n = {len(seconds)}"
        axes.bar(label, seconds.mean(), width=0.5, color=_colour(network), alpha=0.45)
        axes.scatter([place] * len(seconds), seconds, c=_colour(network), s=14, zorder=2)
    axes.set(ylabel="training steps (seconds)", title="Training time of every run")
    axes.set_ylim(bottom=0)
    return figure


def sharing(epochs: pd.DataFrame) -> Figure:
    """The arms of experiment=sharing by epoch: mean and standard deviation over seeds, from scratch
    above and fine-tuned below. epochs: as findings.by_epoch gives them."""
    panels = {
        "test_accuracy": ("Test accuracy (%)", 100),
        "training_loss": ("Mean training loss of the epoch", 1),
        "zeros": ("Weight at structural zeros (%)", 100),
        "copies": ("Copies from their mean (%)", 100),
    }
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    grid = figure.subplots(len(STARTS), len(panels), squeeze=False)
    for row, (weights, start) in zip(grid, STARTS.items(), strict=True):
        for axes, (column, (title, scale)) in zip(row, panels.items(), strict=True):
            rows = epochs[(epochs.weights == weights) & epochs[column].notna()]
            if column == "test_accuracy" and weights == "scratch":
                rows = rows[rows.epoch > 0]  # before, it is that of chance
            for place, (name, arm) in enumerate(ARMS.items()):
                seeds = rows[rows.arm == arm].groupby("epoch")[column]
                mean, deviation = scale * seeds.mean(), scale * seeds.std()
                aside = mean.index + 0.03 * (place - len(ARMS) / 2)  # so that none hides another
                style: dict[str, Any] = {
                    "color": _colour(name),
                    "marker": MARKERS[name],
                    "label": arm,
                }
                axes.errorbar(aside, mean, deviation, ms=5, lw=1.4, elinewidth=0.8, **style)
            axes.set_title(title, fontsize=11)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, min_n_ticks=1))
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="0.9")
        row[0].set_ylabel(start, fontsize=12, fontweight="bold")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(ARMS))
    return figure


def feature_maps(plan: EliminationPlan) -> Figure:
    """Every map of both networks, each channel a rectangle, all to one scale. A channel's phases stand
    where the channel stands in the strided network: the twin computes the same maps, cut up."""
    layers = [layer for layer in plan.layers if layer.weight_size][:-1]
    maps = {"input": plan.input, **{layer.name: layer.output for layer in layers}}
    tiles = {name: _channels(feature_map, strided=False) for name, feature_map in maps.items()}
    height = max(tile.get_y() + tile.get_height() for row in tiles.values() for tile in row)
    widths = [max(tile.get_x() + tile.get_width() for tile in row) for row in tiles.values()]
    room = max(sum(widths) / 9, 1)  # for a label

    figure = Figure(figsize=(10, 6), layout="constrained")
    grid = figure.subplots(2, 1, sharex=True, sharey=True)
    for axes, network in zip(grid, NETWORKS, strict=True):
        left = 0.0
        for (name, feature_map), width in zip(maps.items(), widths, strict=True):
            strided = network == "strided"
            size = feature_map.size if strided else feature_map.unit_stride_size
            middle = left + max(width, room) / 2
            shift = mpl.transforms.Affine2D().translate(middle - width / 2, 0) + axes.transData
            patches = PatchCollection(_channels(feature_map, strided), facecolor=COLOURS[network])
            patches.set(transform=shift, linewidth=0)
            axes.add_collection(patches)
            label = f"{name}\n{written(size)}"
            axes.text(middle, -height / 30, label, ha="center", va="bottom", fontsize=10)
            left += max(width, room) + room / 4
        axes.set(xlim=(0, left), ylim=(height, -height / 5), aspect="equal", xticks=[], yticks=[])
        axes.set_title(PRINTED[network], loc="left", fontsize=11, fontweight="bold")
        axes.spines[:].set_visible(False)
    figure.suptitle("Feature maps to scale: equal areas hold equally many values", fontsize=12)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write `path` with .png and .svg, the same bytes for the same figure."""
    for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
        content = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": path.name}):
            figure.savefig(content, format=suffix[1:], dpi=150, metadata=metadata)
        write(path.with_suffix(suffix), content.getvalue())


def _colour(network: str) -> str:
    return COLOURS.get(network, "0.5")


def _order(network: str) -> tuple[int, str]:
    return [*COLOURS, network].index(network), network


def _figure(width: float = 6.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _channels(feature_map: FeatureMap, strided: bool) -> list[Rectangle]:
    """A rectangle for each channel of a strided map, or for each phase of each channel.

    The phases of a channel stand where the channel stands in the strided network.
    """
    channels, *size = feature_map.size
    height, width = size or (1, 1)
    f_h, f_w = (1, 1) if strided or not size else feature_map.factor
    block_h, block_w = phase_size(
        (height, width), (f_h, f_w)
    )  # with phantoms where sizes are ragged
    columns = math.ceil(math.sqrt(channels))
    return [
        Rectangle(
            (
                channel % columns * f_w * block_w * (1 + GAP) + q * block_w,
                channel // columns * f_h * block_h * (1 + GAP) + p * block_h,
            ),
            block_w * (1 - GAP),
            block_h * (1 - GAP),
        )
        for channel in range(channels)
        for p in range(f_h)
        for q in range(f_w)
    ]
