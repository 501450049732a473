"""The comparison of a report: pairs by seed, numbers that are the statistics', and no verdict."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.reporting.statistics import new_images, seeds_needed
from experiments.runs.results import pack_bits
from experiments.studies import comparison
from experiments.studies.comparison import comparison_for_readers, sentence

T_4 = 2.776445  # 97.5 % quantile of Student's t, 4 degrees of freedom
STRIDED = {0: 98.0, 1: 98.1, 2: 98.2, 3: 98.3, 4: 98.9}
SPREAD = {0: -0.2, 1: 0.1, 2: 0.0, 3: 0.2, 4: -0.1}  # deviation sqrt(0.1 / 4)
HALF = T_4 * math.sqrt(0.1 / 4 / 5)  # 0.196324
IMAGES = 40


def compare_accuracy(runs: pd.DataFrame, paper: float | None = 0.06) -> "pd.Series[Any]":
    (row,) = [row for _, row in comparison.compare_accuracy(runs, paper).iterrows()]
    return row


def runs(
    strided: dict[int, float], unit_stride: dict[int, float], weights: str = "scratch"
) -> pd.DataFrame:
    """Rows of test accuracies, given in percent by seed."""
    rows = [
        (network, weights, seed, percent / 100)
        for network, given in (("strided", strided), ("unit_stride", unit_stride))
        for seed, percent in given.items()
    ]
    return pd.DataFrame(rows, columns=["network", "weights", "seed", "test_accuracy"])


def shifted(mean: float) -> pd.DataFrame:
    """Five pairs whose differences have this mean."""
    return runs(STRIDED, {seed: STRIDED[seed] + mean + SPREAD[seed] for seed in STRIDED})


def same(one: "pd.Series[Any]", other: "pd.Series[Any]") -> bool:
    numbers = [[v for v in row if isinstance(v, (int, float))] for row in (one, other)]
    return one.blank == other.blank and numbers[0] == pytest.approx(numbers[1])


# Pairs


def test_the_row_has_the_numbers_of_the_paired_differences_in_points() -> None:
    found = compare_accuracy(shifted(0.3))
    assert (found.n, found.ahead, found.blank, found.paper, found.margin) == (5, 5, "", 0.06, 0.06)
    assert found["mean"] == pytest.approx(0.3)
    assert found.deviation == pytest.approx(0.158114, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((0.3 - HALF, 0.3 + HALF), abs=1e-6)
    assert found.margin_p > 0.05
    assert not found.within
    assert found.seeds_needed == seeds_needed(0.06, found.deviation)


def test_pairs_are_of_one_seed_in_whatever_order_the_rows_come() -> None:
    frame = shifted(0.3)
    for order in (
        frame[::-1], frame.sample(frac=1, random_state=1), frame.sort_values("test_accuracy")
    ):  # fmt: skip
        assert same(compare_accuracy(order), compare_accuracy(frame))


def test_a_seed_that_only_one_network_has_is_left_out() -> None:
    alone = runs({5: 10.0, 6: 20.0}, {7: 99.9})
    assert same(compare_accuracy(pd.concat([alone, shifted(0.3)])), compare_accuracy(shifted(0.3)))


@pytest.mark.parametrize("weights", ["copy", "fine_tune", "file"])
def test_only_runs_from_scratch_are_compared(weights: str) -> None:
    unit_stride = {seed: 50.0 + seed for seed in range(7)}
    others = runs({5: 40.0, 6: 42.0}, unit_stride, weights)
    assert same(compare_accuracy(pd.concat([others, shifted(0.3)])), compare_accuracy(shifted(0.3)))
    assert compare_accuracy(pd.concat([runs(STRIDED, {}), others])).n == 0


def test_twins_that_share_or_have_other_rates_are_not_the_papers() -> None:
    unit_stride = {seed: 50.0 + seed for seed in range(7)}
    others = runs({}, unit_stride).assign(variant="tied")
    assert same(compare_accuracy(pd.concat([others, shifted(0.3)])), compare_accuracy(shifted(0.3)))
    assert compare_accuracy(pd.concat([runs(STRIDED, {}), others])).n == 0


# New images


def with_bits(right: dict[str, np.ndarray]) -> pd.DataFrame:
    """Runs whose images are right as given: bool (seeds, images) of each network."""
    rows = [
        {"network": network, "weights": "scratch", "seed": seed, "test_accuracy": bits.mean(),
         "test_images": len(bits), "test_bits": pack_bits(torch.from_numpy(bits))}
        for network, of_seeds in right.items() for seed, bits in enumerate(of_seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_where_the_images_are_known_there_is_an_interval_on_new_ones_of_the_same_pairs() -> None:
    generator = np.random.default_rng(0)
    right = {n: generator.random((10, IMAGES)) < 0.8 for n in ("strided", "unit_stride")}
    frame = with_bits(right)
    expected = new_images(right["unit_stride"], right["strided"])
    for order in (frame, frame.sample(frac=1, random_state=1)):
        found = compare_accuracy(order)
        assert (found.new_low, found.new_high) == pytest.approx(expected)
    readable = comparison_for_readers(comparison.compare_accuracy(frame)).set_index(
        "Accuracy, twin minus strided"
    )
    shown = readable.points["95 % interval on new images"]
    assert shown == f"{expected[0]:+.3f} to {expected[1]:+.3f}"


def test_without_bits_or_with_too_few_pairs_there_is_no_interval_on_new_images() -> None:
    nine = np.random.default_rng(0).random((9, IMAGES)) < 0.8
    for frame in (shifted(0.3), with_bits({"strided": nine, "unit_stride": ~nine})):
        found = compare_accuracy(frame)
        assert (found.new_low, found.new_high) == (None, None)


# The sentence


@pytest.mark.parametrize("mean", [0.3, 0.0, -0.3])
def test_nothing_is_judged_here(mean: float) -> None:
    frame = shifted(mean)
    said = (
        sentence(compare_accuracy(frame))
        + comparison_for_readers(comparison.compare_accuracy(frame)).to_string()
    )
    for verdict in ("supported", "contradicted", "undecided"):
        assert verdict not in said
    assert "make evidence" in said


def test_the_sentence_has_the_numbers_and_which_images_they_are_of() -> None:
    said = sentence(compare_accuracy(shifted(0.3)))
    told = [
        "+0.300 points on these test images",
        "+0.104 to +0.496",
        "n = 5",
        "ahead in 5 of 5 pairs",
    ]
    assert [part for part in told if part not in said] == []
    assert "-0.200" in sentence(compare_accuracy(shifted(-0.2)))


@pytest.mark.parametrize(
    ("mean", "place"),
    [
        (0.06 + HALF - 0.001, "within"),
        (0.06 + HALF + 0.001, "outside"),
        (0.06 - HALF + 0.001, "within"),
        (0.06 - HALF - 0.001, "outside"),
    ],
)
def test_the_sentence_says_whether_the_papers_difference_lies_in_the_interval(
    mean: float, place: str
) -> None:
    said = sentence(compare_accuracy(shifted(mean)))
    assert f"the paper's +0.06, of one pair, lies {place} that interval" in said


@pytest.mark.parametrize(
    ("strided", "unit_stride", "n", "reason"),
    [
        ({}, {}, 0, "0 pairs are too few"),
        ({0: 98.0, 1: 98.1}, {2: 98.0}, 0, "0 pairs are too few"),
        ({0: 98.0, 1: 98.1}, {0: 98.1, 1: 98.3}, 2, "2 pairs are too few"),
        # 98.3 − 98.2 and 98.1 − 98.0 differ by 1e-14
        ({0: 98.0, 1: 98.2, 2: 97.3}, {0: 98.1, 1: 98.3, 2: 97.4}, 3, "equal"),
    ],
)
def test_too_few_or_equal_pairs_have_blanks_and_the_sentence_says_why(
    strided: dict[int, float], unit_stride: dict[int, float], n: int, reason: str
) -> None:
    table = comparison.compare_accuracy(runs(strided, unit_stride), 0.06)
    found = table.iloc[0]
    assert found.n == n
    assert (found.low, found.high, found.seeds_needed, found.within) == (None,) * 4
    said = sentence(found)
    assert reason in said
    shown = comparison_for_readers(table).to_string()
    for wrong in ("None", "nan", "interval +"):
        assert wrong not in said
        assert wrong not in shown


def test_without_the_papers_experiment_nothing_is_said_of_its_difference() -> None:
    found = compare_accuracy(shifted(0.3), paper=None)
    assert (found.paper, found.seeds_needed, found.margin, found.within) == (None,) * 4
    assert found.low == compare_accuracy(shifted(0.3)).low
    said = sentence(found)
    assert "0.06" not in said
    assert "None" not in said
    shown = comparison_for_readers(comparison.compare_accuracy(shifted(0.3))).to_string()
    for wrong in ("±", "+0.06", "None"):
        assert wrong not in shown


# What people read


def test_readers_get_every_number_of_the_comparison() -> None:
    table = comparison.compare_accuracy(shifted(0.3), 0.06)
    found = table.iloc[0]
    shown = comparison_for_readers(table).set_index("Accuracy, twin minus strided").points.to_dict()
    assert shown == {
        "pairs of runs": "5",
        "pairs in which the twin is ahead": "5",
        "mean difference": "+0.300",
        "standard deviation of the differences": "0.158",
        "direction: 95 % interval on these images": "+0.104 to +0.496",
        "direction: p of the paired t-test": f"{found.p:.2g}",
        "direction: Hodges–Lehmann estimate": "+0.300",
        "direction: p of Wilcoxon's signed-rank test": "0.062",
        "size: p of TOST, ±0.06": f"{found.margin_p:.2g}",
        "95 % interval on new images": "needs 10 pairs",
        "the paper's difference, of one pair": "+0.060",
        "pairs needed to see the paper's difference": str(found.seeds_needed),
    }
