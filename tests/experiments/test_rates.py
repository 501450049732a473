"""The search of rates: the rule of docs/protocol.md, on runs whose numbers were chosen."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from experiments.command import CONF
from experiments.reporting.style import COLOURS
from experiments.runs.published import read_published
from experiments.studies.rates import (
    lengths_section,
    lengths_table,
    rates_figure,
    rates_section,
    rates_table,
    to_try,
)

ROOT = Path(__file__).parents[2]
VALIDATION = 5_000
Seeds = Sequence[int | None]


def searched(
    arm: str, right: Mapping[float, Seeds], train_size: int | None = None
) -> list[dict[str, Any]]:
    """Runs of one arm. right: of each rate and seed, how many validation images; None: diverged."""
    network, _, variant = arm.partition(" ")
    return [
        {
            "network": network,
            "variant": variant,
            "seed": seed,
            "learning_rate": rate,
            "train_size": train_size,
            "validation_correct": correct,
            "validation_images": VALIDATION,
            "diverged": correct is None,
        }
        for rate, seeds in right.items()
        for seed, correct in enumerate(seeds)
    ]


def table_of(*arms: list[dict[str, Any]]) -> pd.DataFrame:
    kinds = {"validation_correct": "Int64", "train_size": "Int64"}
    return rates_table(pd.DataFrame([row for arm in arms for row in arm]).astype(kinds))


def chosen(table: pd.DataFrame) -> dict[str, tuple[float, bool]]:
    """Return each arm's chosen rate, and whether it has tried ones on both sides."""
    rows = table[table.chosen]
    return {row.arm: (row.learning_rate, bool(row.inside)) for row in rows.itertuples()}


GOOD = {0.01: [4900, 4910, 4905], 0.02: [4930, 4920, 4940], 0.04: [4800, 4950, 4910]}


def test_the_least_mean_error_is_chosen_and_not_the_best_seed() -> None:
    table = table_of(searched("strided", GOOD))
    assert chosen(table) == {"strided": (0.02, True)}
    row = table[table.learning_rate == 0.04].iloc[0]
    assert row.error_percent_mean == pytest.approx(100 * (200 + 50 + 90) / 3 / VALIDATION)
    assert row.error_percent_std == pytest.approx(100 * math.sqrt(12_066.667 / 2) / VALIDATION)
    assert (row.n, row.diverged) == (3, 0)


@pytest.mark.parametrize(
    "equal", [([4930, 4920, 4940], [4920, 4940, 4930]), ([4961, 4921, 4897], [4969, 4913, 4897])]
)
def test_of_equal_rates_the_smaller_is_chosen_however_their_numbers_round(
    equal: tuple[Seeds, Seeds],
) -> None:
    for first, second in (equal, equal[::-1]):
        right = {0.01: [4800] * 3, 0.02: first, 0.04: second, 0.08: [4800] * 3}
        assert chosen(table_of(searched("strided", right))) == {"strided": (0.02, True)}
        right = dict(reversed(right.items()))  # whatever the order of the rows
        assert chosen(table_of(searched("strided", right))) == {"strided": (0.02, True)}


@pytest.mark.parametrize("bad", [None, 2499])
def test_a_rate_with_a_diverged_seed_is_not_eligible_and_still_a_tried_one(bad: int | None) -> None:
    table = table_of(searched("strided", {**GOOD, 0.04: [4990, 4990, bad]}))
    assert chosen(table) == {"strided": (0.02, True)}  # inside: what is beyond may have diverged
    assert table[table.learning_rate == 0.04].diverged.item() == 1


def test_half_of_the_validation_images_are_enough() -> None:
    table = table_of(searched("strided", {0.01: [2500] * 3, 0.02: [2499] * 3}))
    assert chosen(table) == {"strided": (0.01, False)}


def test_where_every_rate_diverged_nothing_is_chosen() -> None:
    table = table_of(searched("strided", {0.01: [None, 4900], 0.02: [4900, None]}))
    assert chosen(table) == {}
    assert to_try(table) == []


def test_each_arm_and_number_of_images_has_its_own_rate() -> None:
    other = {0.01: [4950], 0.02: [4900], 0.04: [4800]}
    table = table_of(
        searched("strided", GOOD, 300),
        searched("unit_stride", other, 300),
        searched("unit_stride masked", GOOD, 300),
        searched("unit_stride", GOOD, 1000),
    )
    rows = table[table.chosen].set_index(["train_size", "arm"])
    assert rows.learning_rate.to_dict() == {
        (300, "strided"): 0.02,
        (300, "unit_stride"): 0.01,
        (300, "unit_stride masked"): 0.02,
        (1000, "unit_stride"): 0.02,
    }
    assert [*rows.inside] == [True, False, True, True]


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ({"strided": 0.02, "unit_stride": 0.02}, []),
        ({"strided": 0.01, "unit_stride": 0.02}, [0.005]),
        ({"strided": 0.02, "unit_stride": 0.04}, [0.08]),
        ({"strided": 0.01, "unit_stride": 0.04}, [0.005, 0.08]),
    ],
)
def test_beyond_an_edge_one_more_rate_is_to_be_tried(
    best: dict[str, float], expected: list[float]
) -> None:
    arms = [
        searched(arm, {rate: [4900 + 50 * (rate == at)] for rate in (0.01, 0.02, 0.04)})
        for arm, at in best.items()
    ]
    assert to_try(table_of(*arms)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("right", "chosen"),
    [((4908, 4909, 4950), 200), ((4800, 4908, 4909), 300), ((4800, 4850, 4908), None),
     ((4909, 4800, 4909), 100)],
)  # fmt: skip
def test_the_first_number_of_steps_at_the_papers_level_is_chosen(
    right: tuple[int, ...], chosen: int | None
) -> None:
    """98.17 % of 5,000 images are 4,908.5: the mean of two seeds reaches it where they have 9,817."""
    runs = pd.DataFrame(
        [{"seed": seed, "steps": steps, "validation_correct": many,
          "validation_images": VALIDATION}
         for steps, many in zip((100, 200, 300), right, strict=True) for seed in range(2)]
    )  # fmt: skip
    table = lengths_table(runs)
    assert [*table.steps[table.chosen]] == [chosen] * (chosen is not None)
    assert [*table.accuracy_percent_mean] == pytest.approx([many / 50 for many in right])
    runs.loc[runs.steps.eq(100), "validation_correct"] = [4908, 4909]  # 98.17 % to the last digit
    table = lengths_table(runs)
    assert [*table.steps[table.chosen]] == [100]
    readable = lengths_section("x", table).readable
    assert readable.iloc[0].tolist() == ["100 *", 2, "98.17 ± 0.01"]


def test_readers_see_the_chosen_rate_and_images_only_where_they_differ() -> None:
    table = table_of(searched("unit_stride", GOOD))
    section = rates_section("rates", table, "")
    assert "over 3 seeds" in section.caption
    assert [*section.readable.columns] == ["Rate", "Unity Stride"]
    assert section.readable.iloc[1].tolist() == ["0.02", "1.40 ± 0.20 *"]
    assert [entry.endswith("*") for entry in section.readable["Unity Stride"]] == [
        False,
        True,
        False,
    ]
    lost = table_of(searched("strided", {**GOOD, 0.08: [None, 4900, None]}))
    assert rates_section("rates", lost, "").readable.iloc[-1].tolist() == [
        "0.08",
        "2 of 3 diverged",
    ]
    sizes = table_of(searched("strided", GOOD, 300), searched("strided", GOOD, 1000))
    images = rates_section("rates", sizes, "").readable.Images
    assert [*images] == ["300"] * 3 + ["1,000"] * 3


def test_the_figure_has_a_curve_an_arm_without_diverged_rates_and_rings_the_chosen() -> None:
    table = table_of(searched("strided", {**GOOD, 0.08: [None]}), searched("unit_stride", GOOD))
    (axes,) = rates_figure(table).axes
    curves = [(c.lines[0].get_color(), [*c.lines[0].get_xdata()]) for c in axes.containers]
    assert curves == [(COLOURS[a], [0.01, 0.02, 0.04]) for a in ("strided", "unit_stride")]
    rings = [line for line in axes.get_lines() if line.get_markersize() == 14]
    assert [[*ring.get_xdata()] for ring in rings] == [[0.02], [0.02]]


# What the settings say

SEARCHES = {
    "rates": (Path(CONF) / "recipe" / "validated.yaml", None),
    "fashion_rates": (Path(CONF) / "experiment" / "fashion.yaml", None),
    "adam_rates": (Path(CONF) / "experiment" / "adam.yaml", None),
    **{f"train_size_rates {size}": (Path(CONF) / "size" / f"images_{size}.yaml", size)
       for size in (300, 1000, 3000, 10000)},
}  # fmt: skip
ARMS = {"strided": "strided", "unit_stride": "free", "unit_stride masked": "masked"}


@pytest.mark.parametrize("search", SEARCHES)
def test_the_rates_in_the_settings_are_those_that_the_published_search_chooses(search: str) -> None:
    path, size = SEARCHES[search]
    name = search.partition(" ")[0]
    settings = yaml.safe_load((Path(CONF) / "experiment" / f"{name}.yaml").read_text())
    params = settings["hydra"]["sweeper"]["params"]
    arms, rates = (params[key].split(",") for key in ("arm", "recipe.learning_rate"))
    runs = read_published(ROOT / "outputs" / "reference" / name).runs
    parts = [key for key in SEARCHES if key.partition(" ")[0] == name]  # one a size
    if len(runs) < len(parts) * len(arms) * len(rates) * 3:  # nothing is chosen before
        pytest.skip(f"{len(runs)} runs of experiment={name} are published, which is not all of it")
    if size is not None:
        runs = runs[runs.train_size == size]
    table = rates_table(runs)
    assert {*zip(table.arm.map(ARMS), table.learning_rate, table.n, strict=True)} == {
        (arm, float(rate), 3) for arm in arms for rate in rates
    }
    assert to_try(table) == []
    names = {**ARMS, "unit_stride": "unit_stride"}  # as rates are given
    expected = {names[row.arm]: row.learning_rate for row in table[table.chosen].itertuples()}
    content = yaml.safe_load(path.read_text())
    assert content.get("recipe", content)["learning_rate"] == expected


def test_the_length_in_the_settings_is_the_one_that_the_published_search_chooses() -> None:
    runs = read_published(ROOT / "outputs" / "reference" / "paper_level_steps").runs
    if len(runs) < 50:
        pytest.skip(f"{len(runs)} of the 50 runs of experiment=paper_level_steps are published")
    table = lengths_table(runs)
    settings = yaml.safe_load((Path(CONF) / "experiment" / "paper_level.yaml").read_text())
    assert [settings["recipe"]["steps"]] == [*table.steps[table.chosen]]
