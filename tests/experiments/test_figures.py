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
from matplotlib.collections import LineCollection, PatchCollection, PathCollection
from matplotlib.figure import Figure

from experiments.reporting.figures import save_figure
from experiments.reporting.style import COLOURS
from experiments.studies import table1 as table1_study
from experiments.studies import table2 as table2_study
from experiments.studies.table1 import accuracy_by_epoch, accuracy_of_seeds, table1, training_time
from experiments.studies.table2 import feature_maps, table2
from stridenet.plan import EliminationPlan
from tests.experiments.results import LENET, RUNS, TREATED, Planned, runs

# Figures


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


def test_accuracy_by_epoch_draws_every_seed_and_the_mean_from_the_first_epoch_on() -> None:
    figure = accuracy_by_epoch(
        [
            results("strided", 0, [0.90, 0.96]),
            results("strided", 1, [0.92, 0.98]),
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
        (blue, close([1, 2]), close([91, 97])),
        (red, close([1, 2]), close([80, 95])),
        (red, close([1, 2]), close([80, 95])),
    ]
    means = {line.get_label(): line.get_linewidth() for line in axes.get_legend().get_lines()}
    assert list(means) == ["Non-Unity Stride, mean of 2", "Unity Stride, mean of 1"]
    thin = [axes.get_lines()[index].get_linewidth() for index in (0, 1, 3)]
    assert min(means.values()) > max(thin)


def test_each_treatment_has_its_own_curve_and_colour() -> None:
    tied = {**results("unit_stride", 0, [0.7, 0.8]), "variant": "tied"}
    strange = {**results("unit_stride", 0, [0.3, 0.4]), "variant": "tied otherwise"}
    figure = accuracy_by_epoch([results("unit_stride", 0, [0.8, 0.9]), tied, strange])
    assert {colour: y for colour, _, y in curves(figure)} == {
        COLOURS["unit_stride"]: close([80, 90]),
        COLOURS["unit_stride tied"]: close([70, 80]),
        "0.5": close([30, 40]),
    }
    (legend,) = figure.legends  # below, where it hides no curve
    labels = [line.get_label() for line in legend.get_lines()]
    assert labels == [
        "Unity Stride, mean of 1",
        "Unity Stride tied, mean of 1",
        "Unity Stride tied otherwise, mean of 1",
    ]
    of_seeds = accuracy_of_seeds(TREATED, RUNS.assign(paper_accuracy_percent=math.nan))
    assert points(of_seeds) == [[(0, 95)], [(0, 60), (1, 80)]]
    seconds = training_time(pd.concat([RUNS, TREATED]))
    names = [label.get_text().split("\n")[:-1] for label in seconds.axes[0].get_xticklabels()]
    assert names == [["Non-Unity Stride"], ["Unity Stride"], ["Unity Stride", "tied"], ["Pooling"]]


def points(figure: Figure) -> list[list[tuple[float, float]]]:
    """Every scattered series, without what is missing."""
    (axes,) = figure.axes
    series = [c.get_offsets() for c in axes.collections if isinstance(c, PathCollection)]
    return [
        [(float(x), float(y)) for x, y in np.ma.filled(offsets, np.nan) if not math.isnan(y)]
        for offsets in series
    ]


def test_accuracy_of_seeds_draws_all_seeds_and_the_papers_runs(lenet: EliminationPlan) -> None:
    figure = accuracy_of_seeds(RUNS, table1(RUNS, lenet, "mnist"))
    (axes,) = figure.axes
    assert axes.get_xlabel() == "seed"
    assert axes.get_ylabel() == "test accuracy (%)"
    assert points(figure) == [
        [close((0, 98)), close((1, 99)), close((2, 97))],
        [close((0, 97.5))],
    ]
    (joined,) = [c for c in axes.collections if isinstance(c, LineCollection)]
    assert [segment.ravel() for segment in joined.get_segments()] == [close((0, 97.5, 0, 98))]
    levels = {line.get_label(): line.get_ydata()[0] for line in axes.get_lines()}
    assert levels == {
        "Non-Unity Stride, the paper's one run": 98.17,
        "Unity Stride, the paper's one run": 98.23,
    }


def test_accuracy_of_seeds_draws_no_level_where_the_paper_has_no_number(
    lenet: EliminationPlan,
) -> None:
    figure = accuracy_of_seeds(RUNS, table1(RUNS, lenet, "fashion_mnist"))
    assert figure.axes[0].get_lines() == []


def test_training_time_draws_every_run_and_the_means_from_zero() -> None:
    figure = training_time(RUNS)
    (axes,) = figure.axes
    assert axes.get_ylabel() == "training steps (seconds)"
    assert axes.get_ylim()[0] == 0
    assert [bar.get_height() for bar in axes.patches] == close([13, 20])
    assert points(figure) == [[close((0, 10)), close((0, 12)), close((0, 17))], [close((1, 20))]]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["Non-Unity Stride\n13.0 s, n = 3", "Unity Stride\n20.0 s, n = 1"]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    assert centres == close([0, 1])


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
    shares = set()
    for axes, maps in zip(figure.axes, (strided, twin), strict=True):
        assert len(axes.collections) == len(maps)
        assert [text.get_text() for text in axes.texts] == [
            f"{name}\n{written}" for name, written in zip(names, maps, strict=True)
        ]
        right = -math.inf
        for collection, written in zip(axes.collections, maps, strict=True):
            channels, height, width = [*map(int, written.split("x")), 1, 1][:3]
            drawn = patches(collection)
            assert len(drawn) == channels
            shares |= {(round(w / width, 9), round(h / height, 9)) for w, h in drawn}
            limits = collection.get_datalim(axes.transData)
            assert limits.x0 > right  # no map is drawn over its neighbour
            right = limits.x1
            assert -1e-9 < limits.x0 < limits.x1 <= axes.get_xlim()[1]
            assert -1e-9 < limits.y0 < limits.y1 <= axes.get_ylim()[0]
        assert axes.get_aspect() == 1
    assert len(shares) == 1  # in all maps of both networks a value has the same area
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
        "feature_maps": lenet,
        "accuracy_by_epoch": [results("strided", 0, [0.9, 0.95])],
        "training_time": RUNS,
    }
    study = table2_study if draw == "feature_maps" else table1_study
    figure = getattr(study, draw)(given[draw])
    save_figure(figure, tmp_path / draw)
    assert {path.name for path in tmp_path.iterdir()} == {f"{draw}.png", f"{draw}.svg"}
    pixels = matplotlib.image.imread(io.BytesIO((tmp_path / f"{draw}.png").read_bytes()))
    assert pixels.shape[:2] == tuple(int(150 * inches) for inches in figure.get_size_inches()[::-1])
    assert pixels[..., :3].std() > 0.01  # not one colour
    root = ElementTree.parse(tmp_path / f"{draw}.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_runs_that_were_only_evaluated_are_drawn_without_a_warning(lenet: EliminationPlan) -> None:
    figure = accuracy_by_epoch([results("strided", 0, [])])
    assert curves(figure) == []
    evaluated = runs(("strided", "scratch", 0, 0.1, None))
    accuracy_of_seeds(evaluated, table1(evaluated, lenet, "mnist"))
    training_time(evaluated)
