"""Tables hold the numbers that they were given, the paper's only where they belong."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.reporting.section import save_table
from experiments.runs.networks import build_strided
from experiments.studies.copied_weights import copied_weights
from experiments.studies.sharing import freedom_for_readers
from experiments.studies.table1 import busy, table1, table1_for_readers
from experiments.studies.table2 import table2
from stridenet import plan_elimination
from stridenet.plan import EliminationPlan
from stridenet.sharing_measures import degrees_of_freedom
from tests.experiments.results import LENET, RUNS, TREATED, Planned, runs

TABLE_1 = [
    "network", "input", "layers", "n",
    "accuracy_percent_mean", "accuracy_percent_std", "paper_accuracy_percent",
    "training_seconds_mean", "training_seconds_std",
    "training_cpu_seconds_mean", "training_cpu_seconds_std", "paper_training_seconds",
]  # fmt: skip


PAPERS = ["paper_accuracy_percent", "paper_training_seconds"]


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


# What people read


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
