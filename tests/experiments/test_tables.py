"""Tables and figures hold the numbers that they were given, the paper's only where they belong."""

import io
import math
import re
from collections.abc import Callable, Sequence
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
from experiments.reporting.section import save_table
from experiments.reporting.style import COLOURS
from experiments.runs.networks import build_strided
from experiments.studies import table1 as table1_study
from experiments.studies import table2 as table2_study
from experiments.studies.copied_weights import copied_weights
from experiments.studies.sharing import freedom_for_readers
from experiments.studies.table1 import (
    accuracy_by_epoch,
    accuracy_of_seeds,
    busy,
    table1,
    table1_for_readers,
    training_time,
)
from experiments.studies.table2 import feature_maps, table2
from stridenet import plan_elimination
from stridenet.plan import EliminationPlan
from stridenet.sharing_measures import degrees_of_freedom

LENET = (1, 28, 28)
TABLE_1 = [
    "network", "input", "layers", "n",
    "accuracy_percent_mean", "accuracy_percent_std", "paper_accuracy_percent",
    "training_seconds_mean", "training_seconds_std",
    "training_cpu_seconds_mean", "training_cpu_seconds_std", "paper_training_seconds",
]  # fmt: skip
PAPERS = ["paper_accuracy_percent", "paper_training_seconds"]
Planned = Callable[..., EliminationPlan]


@pytest.fixture(scope="session")
def planned(composed: Callable[..., Any]) -> Planned:
    """The plan of LeNet with some overrides."""

    def planned(*overrides: str, size: tuple[int, int, int] = LENET) -> EliminationPlan:
        model = composed("recipe=sgd", *overrides).model
        return plan_elimination(build_strided(model, size), size)

    return planned


@pytest.fixture(scope="session")
def lenet(planned: Planned) -> EliminationPlan:
    return planned()


def runs(*rows: tuple[str, str, int, float, float | None]) -> pd.DataFrame:
    """Of network, weights, seed, test accuracy and seconds, nine tenths of which the processor took."""
    columns = ["network", "weights", "seed", "test_accuracy", "training_wall_seconds"]
    table = pd.DataFrame(rows, columns=columns).astype({"training_wall_seconds": float})
    return table.assign(training_cpu_seconds=0.9 * table.training_wall_seconds, device="cpu")


RUNS = runs(
    ("strided", "scratch", 0, 0.98, 10.0),
    ("strided", "scratch", 1, 0.99, 12.0),
    ("strided", "scratch", 2, 0.97, 17.0),
    ("unit_stride", "copy", 0, 0.5, None),
    ("unit_stride", "scratch", 0, 0.975, 20.0),
)


# Table 1


def test_table_1_has_its_columns_and_a_row_for_each_network(lenet: EliminationPlan) -> None:
    table = table1(RUNS, lenet, "mnist")
    assert list(table.columns) == TABLE_1
    assert list(table.network) == ["strided", "unit_stride"]
    assert list(table.input) == ["1x28x28", "16x7x7"]
    assert list(table.layers) == [
        "5x5 conv 20, 2x2 conv 20 stride 2, 5x5 conv 50, 2x2 conv 50 stride 2, fc 500, fc 10",
        "2x2 conv 320, 1x1 conv 80, 3x3 conv 200, 1x1 conv 50, fc 500, fc 10",
    ]


def test_table_1_has_means_and_deviations_over_the_seeds(lenet: EliminationPlan) -> None:
    strided, twin = table1(RUNS, lenet, "mnist").itertuples()
    assert (strided.n, twin.n) == (3, 1)  # the copy is not among them
    assert strided.accuracy_percent_mean == pytest.approx(98)
    assert strided.accuracy_percent_std == pytest.approx(1)  # of a sample: 3 - 1 below the root
    assert strided.training_seconds_mean == pytest.approx(13)
    assert strided.training_seconds_std == pytest.approx(math.sqrt(13))
    assert strided.training_cpu_seconds_mean == pytest.approx(0.9 * 13)
    assert strided.training_cpu_seconds_std == pytest.approx(0.9 * math.sqrt(13))
    assert twin.training_cpu_seconds_mean == pytest.approx(18)
    assert twin.accuracy_percent_mean == pytest.approx(97.5)
    assert twin.training_seconds_mean == pytest.approx(20)
    assert math.isnan(twin.accuracy_percent_std)
    assert math.isnan(twin.training_seconds_std)


@pytest.mark.parametrize("kept", [["strided"], ["unit_stride"]])
def test_a_network_without_runs_is_a_row_of_blanks(lenet: EliminationPlan, kept: list[str]) -> None:
    table = table1(RUNS[RUNS.network.isin(kept)], lenet, "mnist").set_index("network")
    (absent,) = {"strided", "unit_stride"} - set(kept)
    assert list(table.index) == ["strided", "unit_stride"]
    row = table.loc[absent]
    assert row.n == 0
    measured = [column for column in TABLE_1 if column.endswith(("_mean", "_std"))]
    assert row[measured].isna().all()
    assert row[PAPERS].notna().all()
    assert table.loc[kept[0]].n > 0


def test_only_copies_leave_both_rows_blank(lenet: EliminationPlan) -> None:
    table = table1(RUNS[RUNS.weights == "copy"], lenet, "mnist")
    assert list(table.n) == [0, 0]
    assert table.accuracy_percent_mean.isna().all()


def test_only_fine_tuned_runs_have_a_further_row_and_without_the_papers_numbers(
    lenet: EliminationPlan,
) -> None:
    more = runs(
        ("unit_stride", "fine_tune", 0, 0.96, 30.0),
        ("unit_stride", "fine_tune", 1, 0.94, 34.0),
        ("strided", "file", 0, 0.9, 5.0),
    )
    table = table1(pd.concat([RUNS, more]), lenet, "mnist").set_index("network")
    assert list(table.index) == ["strided", "unit_stride", "unit_stride fine_tune"]
    tuned = table.loc["unit_stride fine_tune"]
    assert (tuned.n, tuned.accuracy_percent_mean) == (2, pytest.approx(95))
    assert tuned.layers == table.loc["unit_stride"].layers
    assert list(table.n) == [3, 1, 2]
    assert tuned[PAPERS].isna().all()


@pytest.mark.parametrize(
    ("wall", "cpu", "device", "told"),
    [
        ([100.0, 140.0], [100.0, 100.0], "cpu", ""),  # a single seed may be slow
        ([120.0, 120.0], [100.0, 100.0], "cpu", ""),
        ([121.0, 121.0], [100.0, 100.0], "cpu", "up to 1.2 times"),
        ([75.0, 565.0], [80.0, 84.0], "cpu", "up to 3.9 times"),
        ([75.0, 565.0], [80.0, 84.0], "cuda", ""),
        ([None, None], [None, None], "cpu", ""),
    ],
)
@pytest.mark.parametrize("network", ["strided", "unit_stride"])
def test_a_busy_machine_is_told_from_wall_and_cpu_seconds_where_a_processor_trains(
    network: str, wall: list[float], cpu: list[float], device: str, told: str
) -> None:
    of_one = runs(*[(network, "scratch", seed, 0.9, s) for seed, s in enumerate(wall)])
    of_one = of_one.assign(training_cpu_seconds=cpu, device=device)
    other = runs(("pooling", "scratch", 0, 0.9, 10.0), ("strided", "copy", 0, 0.9, None))
    sentence = busy(pd.concat([of_one, other]))
    assert bool(sentence) == bool(told)
    assert told in sentence
    assert sentence.startswith("The machine was busy") == bool(told)


def treated(*rows: tuple[str, str, str, int, float]) -> pd.DataFrame:
    """Runs of network, variant, weights, seed and test accuracy."""
    columns = ["network", "variant", "weights", "seed", "test_accuracy"]
    return pd.DataFrame(rows, columns=columns).assign(
        training_wall_seconds=10.0, training_cpu_seconds=9.0
    )


TREATED = treated(
    ("unit_stride", "tied", "scratch", 0, 0.6),
    ("unit_stride", "tied", "scratch", 1, 0.8),
    ("unit_stride", "masked by_copies", "fine_tune", 0, 0.9),
    ("unit_stride", "tied", "fine_tune", 0, 0.7),
    ("pooling", "", "scratch", 0, 0.95),
)


def test_networks_treated_in_different_ways_have_rows_of_their_own(
    lenet: EliminationPlan, planned: Planned, composed: Callable[..., Any]
) -> None:
    pooled = plan_elimination(
        build_strided(composed("recipe=sgd").model, LENET, max_pooling=True), LENET
    )
    table = table1(pd.concat([RUNS, TREATED]), lenet, "mnist", pooled).set_index("network")
    assert list(table.index) == [
        "strided",
        "unit_stride",
        "pooling",
        "unit_stride tied",
        "unit_stride masked by_copies fine_tune",
        "unit_stride tied fine_tune",
    ]
    assert list(table.n) == [3, 1, 1, 2, 1, 1]
    assert table.accuracy_percent_mean["unit_stride"] == pytest.approx(97.5)  # the free ones alone
    assert table.accuracy_percent_mean["unit_stride tied"] == pytest.approx(70)
    assert table.layers["unit_stride tied"] == table.layers["unit_stride"]
    assert table.layers["pooling"] == (
        "5x5 conv 20, 2x2 max pooling stride 2, 5x5 conv 50, 2x2 max pooling stride 2, fc 500, fc 10"
    )
    assert table.input["pooling"] == "1x28x28"
    assert table.loc[["strided", "unit_stride"], PAPERS].notna().all(axis=None)
    assert table.drop(["strided", "unit_stride"])[PAPERS].isna().all(axis=None)
    readable = table1_for_readers(table.reset_index())
    assert [*readable.Network][2:4] == ["Pooling", "Unity Stride tied"]
    maps = table2(lenet, pooled)
    assert list(maps.network) == ["strided", "unit_stride", "pooling"]
    assert (
        maps.iloc[2, 1:].tolist() == maps.iloc[0, 1:].tolist()
    )  # it is what pooling was replaced by


def test_degrees_of_freedom_are_read_with_their_sums(lenet: EliminationPlan) -> None:
    table = freedom_for_readers(degrees_of_freedom(lenet))
    assert table.iloc[-1].to_dict() == {
        "layer": "all",
        "tied": "37,100",
        "masked": "124,400",
        "free": "200,080",
        "equalities": "87,300",
        "zeros": "75,680",
        "paper's formula": "124,400",
    }
    assert [*table.layer] == ["conv1", "conv2", "conv3", "conv4", "all"]


def test_the_papers_numbers_stand_beside_the_papers_networks(lenet: EliminationPlan) -> None:
    table = table1(RUNS, lenet, "mnist")
    assert table.paper_accuracy_percent.tolist() == [98.17, 98.23]
    assert table.paper_training_seconds.tolist() == [451.91, 680.97]


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        (["model.layers.conv1.kernel=3"], LENET),
        (["model.layers.conv1.kernel=[5,4]"], LENET),
        (["model.layers.conv2.stride=3"], LENET),
        (["model.layers.conv4.stride=[2,1]"], LENET),
        (["model.layers.conv1.padding=1"], LENET),
        (["model.layers.conv1.padding=1", "model.layers.conv1.kernel=7"], LENET),
        (["model.layers.conv1.dilation=2"], LENET),
        (["model.layers.conv2.groups=2"], LENET),
        (["model.layers.conv3.channels=49"], LENET),
        (["model.layers.fc1.channels=499"], LENET),
        (["model.layers.fc2.channels=11"], LENET),
        (["~model.layers.fc1"], LENET),
        (["+model.layers.fc0={kind: fc, channels: 10}"], LENET),
        (["+model.layers.conv5={channels: 50}"], LENET),
        ([], (1, 32, 28)),
    ],
)
def test_another_network_has_no_numbers_of_the_paper(
    planned: Planned, overrides: list[str], size: tuple[int, int, int]
) -> None:
    table = table1(RUNS, planned(*overrides, size=size), "mnist")
    assert table[PAPERS].isna().all(axis=None)
    assert list(table.n) == [3, 1]


def test_another_network_whose_twin_is_the_papers_leaves_the_twin_its_numbers(
    planned: Planned,
) -> None:
    plan = planned("model.layers.conv1.dilation=2", "model.layers.conv1.kernel=3")
    table = table1(RUNS, plan, "mnist")
    assert table.layers[1] == "2x2 conv 320, 1x1 conv 80, 3x3 conv 200, 1x1 conv 50, fc 500, fc 10"
    assert table.layers[0].startswith("3x3 conv 20 dilation 2, ")
    assert table[PAPERS].notna().to_numpy().tolist() == [[False, False], [True, True]]


def test_other_data_have_no_numbers_of_the_paper(lenet: EliminationPlan) -> None:
    table = table1(RUNS, lenet, "fashion_mnist")
    assert list(table.columns) == TABLE_1
    assert table[PAPERS].isna().all(axis=None)


def test_layers_are_written_with_what_is_not_ordinary(planned: Planned) -> None:
    plan = planned(
        "model.layers.conv1.kernel=[5,3]",
        "model.layers.conv2.stride=[2,3]",
        "model.layers.conv2.groups=20",
        "model.layers.conv3.dilation=2",
        "model.layers.conv3.kernel=2",
    )
    strided, twin = table1(RUNS, plan, "mnist").layers
    assert strided == (
        "5x3 conv 20, 2x2 conv 20 groups 20 stride 2x3, 2x2 conv 50 dilation 2, "
        "2x2 conv 50 stride 2, fc 500, fc 10"
    )
    # Factors 4 and 6, then 2 and 2: the twin has no stride, and no dilation.
    assert twin == ("2x2 conv 480, 1x1 conv 80 groups 20, 2x2 conv 200, 1x1 conv 50, fc 500, fc 10")


# Table 2


def test_table_2_is_the_papers(lenet: EliminationPlan) -> None:
    table = table2(lenet)
    assert list(table.columns) == ["network", "input", "conv1", "conv2", "conv3", "conv4", "fc1"]
    assert table.to_numpy().tolist() == [
        ["strided", "1x28x28", "20x24x24", "20x12x12", "50x8x8", "50x4x4", "500"],
        ["unit_stride", "16x7x7", "320x6x6", "80x6x6", "200x4x4", "50x4x4", "500"],
    ]


def test_table_2_follows_a_changed_network(planned: Planned) -> None:
    plan = planned(
        "model.layers.conv1.kernel=[3,5]",
        "model.layers.conv2.stride=3",
        "model.layers.conv3.kernel=3",
        "+model.layers.conv5={channels: 30, padding: 1}",
        "~model.layers.fc1",
        size=(3, 32, 40),
    )
    table = table2(plan)
    assert list(table.columns) == ["network", "input", "conv1", "conv2", "conv3", "conv4", "conv5"]
    assert table.to_numpy().tolist() == [
        ["strided", "3x32x40", "20x30x36", "20x10x12", "50x8x10", "50x4x5", "30x6x7"],
        ["unit_stride", "108x6x7", "720x5x6", "80x5x6", "200x4x5", "50x4x5", "30x6x7"],
    ]


# Copied weights


def copies(*found: tuple[int, float]) -> pd.DataFrame:
    """Runs that agree on so many of 10,000 images with so large a difference, in float32."""
    frame = runs(*[("unit_stride", "copy", seed, 0.98, None) for seed in range(len(found))])
    frame["copied.float32.images"] = frame["copied.float64.images"] = 10_000.0
    frame["copied.float32.agreeing"] = [float(agreeing) for agreeing, _ in found]
    frame["copied.float32.largest_difference"] = [difference for _, difference in found]
    frame["copied.float64.agreeing"] = 10_000.0
    frame["copied.float64.largest_difference"] = [difference / 1e8 for _, difference in found]
    return frame


def test_copied_weights_tells_the_least_agreement_and_the_largest_difference() -> None:
    frame = pd.concat([RUNS[RUNS.weights == "scratch"], copies((9_999, 3e-6), (9_998, 1e-6))])
    table = copied_weights(frame)
    assert table.to_dict("records") == [
        {"numbers": "float32", "n": 2, "images": 10_000, "agreeing_least": 9_998,
         "largest_difference": 3e-6},
        {"numbers": "float64", "n": 2, "images": 10_000, "agreeing_least": 10_000,
         "largest_difference": pytest.approx(3e-14)},
    ]  # fmt: skip
    assert table.agreeing_least.dtype == table.images.dtype == int


def test_without_copies_there_is_an_empty_table() -> None:
    table = copied_weights(RUNS[RUNS.weights == "scratch"])
    assert len(table) == 0
    assert "agreeing_least" in table


# As people read them


def test_readers_get_the_papers_names_and_a_mean_with_its_deviation(lenet: EliminationPlan) -> None:
    more = runs(("unit_stride", "fine_tune", 0, 0.9, 1.25))
    frame = pd.concat([RUNS[RUNS.network == "strided"], more])
    readable = table1_for_readers(table1(frame, lenet, "mnist"))
    assert list(readable.Network) == ["Non-Unity Stride", "Unity Stride", "Unity Stride fine_tune"]
    assert list(readable.n) == [3, 0, 1]
    assert list(readable["Accuracy %"]) == ["98.00 ± 1.00", "", "90.00"]
    assert list(readable["Training s"]) == ["13.0 ± 3.6", "", "1.2"]
    assert list(readable["paper's %"]) == ["98.17", "98.23", ""]
    assert list(readable["paper's s"]) == ["451.91", "680.97", ""]


CAPTION = "Table: 5 % of a_b ± 1."
SPECIAL = pd.DataFrame(
    {
        "Network": ["unit_stride", "a & b", "50 %", "#1 $x$ {y}"],
        "n": [1, 2, 3, 0],
        "Accuracy %": ["98.00 ± 1.00", "", "90.00", "~x^y"],
    }
)


def read_markdown(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(set(cell) <= set(":-") for cell in cells.pop(1))
    return cells


def read_latex(text: str) -> list[list[str]]:
    """Cells with their escapes undone; fails where LaTeX would stumble over a character."""
    body = text.partition("\\toprule\n")[2].partition("\\bottomrule")[0].replace("\\midrule\n", "")
    rows = [re.split(r"(?<!\\)&", line.removesuffix("\\\\")) for line in body.splitlines()]
    return [[plain_latex(cell.strip()) for cell in row] for row in rows]


def plain_latex(text: str) -> str:
    words = {r"\$": "$", r"$\pm$": "±"}
    words |= {rf"\textasciitilde{end}": "~" for end in (" ", "{}")}
    words |= {rf"\textasciicircum{end}": "^" for end in (" ", "{}")}
    words |= {rf"\{character}": character for character in "_%&#{}"}
    rest = re.sub("|".join(map(re.escape, words)), "", text)
    assert not re.search(r"[\\$_%&#{}~^±]", rest), f"not escaped for LaTeX: {text}"
    return re.sub("|".join(map(re.escape, words)), lambda found: words[found[0]], text)


def as_text(table: pd.DataFrame) -> list[list[str]]:
    return [list(table.columns), *table.astype(str).to_numpy().tolist()]


def test_a_table_is_saved_as_csv_with_all_its_digits(
    tmp_path: Path, lenet: EliminationPlan
) -> None:
    table = table1(RUNS, lenet, "mnist")
    save_table(table, table1_for_readers(table), tmp_path / "table1", CAPTION)
    assert {path.name for path in tmp_path.iterdir()} == {"table1.csv", "table1.md", "table1.tex"}
    read = pd.read_csv(tmp_path / "table1.csv")
    pd.testing.assert_frame_equal(read, table, check_dtype=False, rtol=1e-15)


@pytest.mark.parametrize("kind", ["special", "table1", "table2"])
def test_a_table_is_saved_as_markdown_and_latex_that_say_the_same(
    tmp_path: Path, lenet: EliminationPlan, kind: str
) -> None:
    accuracy = table1(RUNS, lenet, "mnist")
    readable = {
        "special": SPECIAL,
        "table1": table1_for_readers(accuracy),
        "table2": table2(lenet),
    }[kind]
    save_table(accuracy, readable, tmp_path / "table", CAPTION)
    markdown, latex = (tmp_path / f"table.{suffix}" for suffix in ("md", "tex"))
    assert read_markdown(markdown.read_text()) == as_text(readable)
    assert markdown.read_text().endswith(f"\n\n{CAPTION}\n")
    assert read_latex(latex.read_text()) == as_text(readable)
    (caption,) = re.findall(r"^\\caption\{(.*)\}$", latex.read_text(), re.MULTILINE)
    assert plain_latex(caption) == CAPTION
    for environment in ("table", "tabular"):
        assert latex.read_text().count(rf"\begin{{{environment}}}") == 1
        assert latex.read_text().count(rf"\end{{{environment}}}") == 1


@pytest.mark.parametrize("column", ["agreeing_least", "a & b", "#1", "50 %", "$x$", "{y}", "~x^y"])
def test_names_of_columns_are_escaped_for_latex_too(tmp_path: Path, column: str) -> None:
    table = pd.DataFrame({"network": ["strided"], column: ["1x28x28"]})
    save_table(table, table, tmp_path / "table", CAPTION)
    assert read_latex((tmp_path / "table.tex").read_text()) == as_text(table)


@pytest.mark.parametrize("character", ["&", "#", "_", "$", "{", "^", "~"])
def test_any_caption_is_escaped_for_latex(tmp_path: Path, character: str) -> None:
    caption = f"Processor A{character}B"  # a name from outside
    table = pd.DataFrame({"network": ["strided"]})
    save_table(table, table, tmp_path / "table", caption)
    (found,) = re.findall(
        r"^\\caption\{(.*)\}$", (tmp_path / "table.tex").read_text(), re.MULTILINE
    )
    assert plain_latex(found) == caption


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
