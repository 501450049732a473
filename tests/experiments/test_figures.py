"""Figures draw the numbers that they were given, every one of them."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection, PathCollection
from matplotlib.figure import Figure
from scipy import stats

from experiments.reporting.figures import save_figure
from experiments.reporting.style import COLOURS
from experiments.studies import table1 as table1_study
from experiments.studies import table2 as table2_study
from experiments.studies.table1 import accuracy_by_epoch, accuracy_of_seeds, table1, training_time
from experiments.studies.table2 import feature_maps, table2
from stridenet.plan import EliminationPlan
from tests.experiments.results import LENET, RUNS, TREATED, Planned, runs, treated

# Figures

WITHOUT_PAPER = pd.DataFrame(columns=["network", "paper_training_seconds"])


def results(network: str, seed: int, accuracies: Sequence[float], weights: str = "scratch") -> dict:
    """A run whose row for epoch 0 says 0.1."""
    rows = [
        {"epoch": float(epoch), "validation_accuracy": a}
        for epoch, a in enumerate([0.1, *accuracies])
    ]
    return {"network": network, "weights": weights, "seed": seed, "epochs": rows}


def curves(figure: Figure) -> list[tuple[str, list[float], list[float]]]:
    """Colour, x and y of every line."""
    (axes,) = figure.axes
    return [
        (line.get_color(), [*map(float, line.get_xdata())], [*map(float, line.get_ydata())])
        for line in axes.get_lines()
    ]


def close(values: Sequence[float]) -> Any:
    return pytest.approx(list(values))


def test_accuracy_by_epoch_draws_every_seed_and_the_median_from_the_first_epoch_on() -> None:
    figure = accuracy_by_epoch(
        [
            results("strided", 0, [0.90, 0.96]),
            results("strided", 1, [0.92, 0.98]),
            results("strided", 2, [0.80, 0.97]),
            results("unit_stride", 0, [0.80, 0.95]),
            results("unit_stride", 0, [], weights="copy"),
            results("unit_stride", 1, [0.5, 0.5], weights="fine_tune"),
        ]
    )
    (axes,) = figure.axes
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "validation accuracy (%)"
    blue, red = COLOURS["strided"], COLOURS["unit_stride"]
    assert curves(figure) == [
        (blue, close([1, 2]), close([90, 96])),
        (blue, close([1, 2]), close([92, 98])),
        (blue, close([1, 2]), close([80, 97])),
        (blue, close([1, 2]), close([90, 97])),
        (red, close([1, 2]), close([80, 95])),
        (red, close([1, 2]), close([80, 95])),
    ]
    (legend,) = figure.legends  # below, where it hides no curve
    medians = {line.get_label(): line.get_linewidth() for line in legend.get_lines()}
    assert list(medians) == ["Non-Unity Stride, median of 3", "Unity Stride, median of 1"]
    thin = [axes.get_lines()[index].get_linewidth() for index in (0, 1, 2, 4)]
    assert min(medians.values()) > max(thin)


def test_each_treatment_has_its_own_curve_and_colour() -> None:
    tied = {**results("unit_stride", 0, [0.7, 0.8]), "variant": "tied"}
    strange = {**results("unit_stride", 0, [0.3, 0.4]), "variant": "tied otherwise"}
    figure = accuracy_by_epoch([results("unit_stride", 0, [0.8, 0.9]), tied, strange])
    assert {colour: y for colour, _, y in curves(figure)} == {
        COLOURS["unit_stride"]: close([80, 90]),
        COLOURS["unit_stride tied"]: close([70, 80]),
        "0.5": close([30, 40]),
    }
    (legend,) = figure.legends
    labels = [line.get_label() for line in legend.get_lines()]
    assert labels == [
        "Unity Stride, median of 1",
        "Unity Stride tied, median of 1",
        "Unity Stride tied otherwise, median of 1",
    ]
    seconds = training_time(pd.concat([RUNS, TREATED]), WITHOUT_PAPER)
    names = [label.get_text().split("\n")[:-1] for label in seconds.axes[0].get_xticklabels()]
    assert names == [["Non-Unity Stride"], ["Unity Stride"], ["Unity Stride", "tied"], ["Pooling"]]


def test_accuracy_of_seeds_has_a_panel_of_sorted_pairs_for_each_network(
    lenet: EliminationPlan,
) -> None:
    pairs = [
        (network, variant, "scratch", seed, (98 + by) / 100)
        for network, variant, shifts in (
            ("strided", "", (0, 0, 0, 1)),
            ("unit_stride", "", (0.3, -0.2, 0.1, 1.2)),
            ("unit_stride", "masked", (0.5, 0.2)),
        )
        for seed, by in enumerate(shifts)
    ]
    runs = treated(*pairs, ("unit_stride", "", "scratch", 9, 0.5))  # seed 9 has no partner
    free, masked = accuracy_of_seeds(runs, table1(runs, lenet, "mnist")).axes
    assert drawn_pairs(free) == close([-0.2, 0.1, 0.2, 0.3])
    assert drawn_pairs(masked) == close([0.2, 0.5])
    assert free.get_title(loc="left").split("\n") == [
        "4 pairs", "median 98.00 % Non-Unity Stride", "median 98.20 % Unity Stride"
    ]  # fmt: skip
    expected = stats.t.interval(0.95, 3, 0.1, stats.sem([-0.2, 0.1, 0.2, 0.3]))
    bands = [(p.get_y(), p.get_y() + p.get_height()) for p in free.patches]
    assert bands == [pytest.approx((-0.06, 0.06)), pytest.approx(expected)]
    # The paper's difference is of its own two networks, and two pairs have no interval.
    assert (len(masked.patches), [note.get_text() for note in masked.texts]) == (
        0, ["no interval: 2 pairs are too few\nto judge by: 3 are needed"]
    )  # fmt: skip


def drawn_pairs(axes: Axes) -> list[float]:
    (line,) = [line for line in axes.get_lines() if line.get_label() == "one pair each"]
    return [*map(float, line.get_ydata())]


def test_accuracy_of_seeds_without_pairs_or_the_papers_numbers_says_so(
    lenet: EliminationPlan,
) -> None:
    (one,) = accuracy_of_seeds(RUNS, table1(RUNS, lenet, "fashion_mnist")).axes
    assert drawn_pairs(one) == close([-0.5])
    assert not one.patches  # no margin, no interval
    alone = RUNS[RUNS.network == "strided"]
    (none,) = accuracy_of_seeds(alone, table1(alone, lenet, "mnist")).axes
    assert drawn_pairs(none) == []
    assert none.get_title(loc="left") == "0 pairs"
    assert none.texts[0].get_text().startswith("no interval: 0 pairs are too few")


def points(axes: Axes) -> list[list[tuple[float, float]]]:
    series = [c.get_offsets() for c in axes.collections if isinstance(c, PathCollection)]
    return [[(float(x), float(y)) for x, y in np.ma.filled(each, np.nan)] for each in series]


def test_training_time_draws_cpu_seconds_of_every_run_and_the_papers_on_another_axis(
    lenet: EliminationPlan,
) -> None:
    figure = training_time(RUNS, table1(RUNS, lenet, "mnist"))
    ours, papers = figure.axes
    assert ours.get_ylabel() == "training steps (CPU seconds)"
    assert [bar.get_height() for bar in ours.patches] == close([11.7, 18])  # 0.9 of 13 and 20
    assert points(ours) == [[close((0, 9)), close((0, 10.8)), close((0, 15.3))], [close((1, 18))]]
    assert [bar.get_height() for bar in papers.patches] == [451.91, 680.97]
    assert papers.get_title() == "The paper's: one run each,\non its machine"
    labels = [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes]
    assert labels == [
        ["Non-Unity Stride\n11.7 s, n = 3", "Unity Stride\n18.0 s, n = 1"],
        ["Non-Unity Stride\n451.9 s", "Unity Stride\n681.0 s"],
    ]
    for axes in figure.axes:
        highest = max(bar.get_height() for bar in axes.patches)
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] > highest  # no bar is cut off
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ours.patches]
    assert centres == close([0, 1])
    assert len(training_time(RUNS, table1(RUNS, lenet, "fashion_mnist")).axes) == 1


def patches(collection: PatchCollection) -> list[tuple[float, float]]:
    """Width and height of each rectangle."""
    extents = [path.get_extents() for path in collection.get_paths()]
    return [(extent.width, extent.height) for extent in extents]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ([], LENET),
        (["model.layers.conv1.kernel=4", "model.layers.conv2.stride=[3,1]"], (3, 32, 20)),
        (["~model.layers.fc1", "+model.layers.conv5={channels: 7}"], LENET),
    ],
)
def test_feature_maps_are_as_many_rectangles_as_channels_all_to_one_scale(
    planned: Planned, overrides: list[str], size: tuple[int, int, int]
) -> None:
    plan = planned(*overrides, size=size)
    strided, twin = table2(plan).drop(columns="network").to_numpy().tolist()
    names = list(table2(plan).columns[1:])
    figure = feature_maps(plan)
    assert len(figure.axes) == 2
    shares: set[float] = set()  # of a value in its map's area
    for axes, maps in zip(figure.axes, (strided, twin), strict=True):
        assert len(axes.collections) == len(maps)
        assert [text.get_text() for text in axes.texts] == [
            f"{name}\n{written}" for name, written in zip(names, maps, strict=True)
        ]
        right = -math.inf
        for collection, written in zip(axes.collections, maps, strict=True):
            channels, height, width = [*map(int, written.split("x")), 1, 1][:3]
            drawn = patches(collection)
            vector = "x" not in written  # which is one area, a second one for its last row
            assert len(drawn) in ((1, 2) if vector else (channels,))
            area = sum(w * h for w, h in drawn)
            shares.add(round(area / (channels * height * width), 9))
            for w, h in () if vector else drawn:
                assert w / width == pytest.approx(h / height)
            limits = collection.get_datalim(axes.transData)
            assert limits.x0 > right  # no map is drawn over its neighbour
            right = limits.x1
            assert -1e-9 < limits.x0 < limits.x1 <= axes.get_xlim()[1]
            assert -1e-9 < limits.y0 < limits.y1 <= axes.get_ylim()[0]
        assert axes.get_aspect() == 1
    assert len(shares) == 1  # in all maps of both networks a value has the same area
    (title,) = figure.texts
    vector = strided[-1] if "x" not in strided[-1] else ""
    assert ("are one area" in title.get_text()) == bool(vector)
    upper, lower = figure.axes
    assert (upper.get_xlim(), upper.get_ylim()) == (lower.get_xlim(), lower.get_ylim())


def boxes(collection: PatchCollection) -> np.ndarray:
    """Left, lower, right and upper side of each rectangle (rows)."""
    return np.array([path.get_extents().extents for path in collection.get_paths()])


def test_the_rectangles_of_a_feature_map_do_not_overlap(lenet: EliminationPlan) -> None:
    for axes in feature_maps(lenet).axes:
        for x0, y0, x1, y1 in (boxes(collection).T for collection in axes.collections):
            meets = (
                (x0[:, None] < x1) & (x0 < x1[:, None]) & (y0[:, None] < y1) & (y0 < y1[:, None])
            )
            assert meets.sum() == len(x0)  # each meets itself


def test_the_phases_of_a_channel_stand_where_the_channel_stands(lenet: EliminationPlan) -> None:
    strided, twin = feature_maps(lenet).axes
    sizes = [28, 24, 12, 8, 4]
    for size, channels, phases in zip(sizes, strided.collections, twin.collections, strict=False):
        channel = boxes(channels)
        grouped = boxes(phases).reshape(len(channel), -1, 4)
        assert np.allclose(grouped[:, 0, :2], channel[:, :2])
        assert (grouped[:, :, :2] >= channel[:, None, :2] - 1e-9).all()
        assert (grouped[:, :, 2:] <= channel[:, None, :2] + size + 1e-9).all()


@pytest.mark.parametrize("draw", ["feature_maps", "accuracy_by_epoch", "training_time"])
def test_a_figure_is_saved_as_png_and_svg(
    tmp_path: Path, lenet: EliminationPlan, draw: str
) -> None:
    given: dict[str, Any] = {
        "feature_maps": (lenet,),
        "accuracy_by_epoch": ([results("strided", 0, [0.9, 0.95])],),
        "training_time": (RUNS, WITHOUT_PAPER),
    }
    study = table2_study if draw == "feature_maps" else table1_study
    figure = getattr(study, draw)(*given[draw])
    save_figure(figure, tmp_path / draw)
    assert {path.name for path in tmp_path.iterdir()} == {f"{draw}.png", f"{draw}.svg"}
    pixels = matplotlib.image.imread(io.BytesIO((tmp_path / f"{draw}.png").read_bytes()))
    assert (pixels[..., 3] == 1).all()  # opaque: a dark page does not shine through
    assert (pixels[0, 0] == 1).all()
    assert pixels.shape[:2] == tuple(int(150 * inches) for inches in figure.get_size_inches()[::-1])
    assert pixels[..., :3].std() > 0.01  # not one colour
    root = ElementTree.parse(tmp_path / f"{draw}.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_runs_that_were_only_evaluated_are_drawn_without_a_warning(lenet: EliminationPlan) -> None:
    figure = accuracy_by_epoch([results("strided", 0, [])])
    assert curves(figure) == []
    evaluated = runs(("strided", "scratch", 0, 0.1, None))
    accuracy_of_seeds(evaluated, table1(evaluated, lenet, "mnist"))
    training_time(evaluated, table1(evaluated, lenet, "mnist"))
