"""The paired comparison: numbers by hand, a verdict only where the seeds carry it, never a NaN."""

import functools
import math
from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.reporting.statistics import seeds_needed
from experiments.studies import comparison
from experiments.studies.comparison import (
    Comparison,
    comparison_for_readers,
    comparison_table,
)

compare = functools.partial(comparison.compare, paper=0.06)
T_4 = 2.776445  # 97.5 % quantile of Student's t, 4 degrees of freedom
STRIDED = {0: 98.0, 1: 98.1, 2: 98.2, 3: 98.3, 4: 98.9}
SPREAD = {0: -0.2, 1: 0.1, 2: 0.0, 3: 0.2, 4: -0.1}  # deviation sqrt(0.1 / 4)
HALF = T_4 * math.sqrt(0.1 / 4 / 5)  # 0.196324


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


# Numbers


def test_mean_interval_and_deviations_are_the_textbooks() -> None:
    found = compare(shifted(0.3))
    assert found.n == 5
    assert found.mean == pytest.approx(0.3)
    assert found.deviation == pytest.approx(0.158114, abs=1e-6)
    assert found.low == pytest.approx(0.103676, abs=1e-6)
    assert found.high == pytest.approx(0.496324, abs=1e-6)
    assert found.strided_deviation == pytest.approx(math.sqrt(0.5 / 4))
    # 98.1, 98.5, 98.5, 98.8, 99.1, of mean 98.6
    assert found.unit_stride_deviation == pytest.approx(math.sqrt(0.56 / 4))
    assert found.blank == ""


def test_the_seeds_it_asks_for_follow_from_the_deviation_of_the_differences() -> None:
    found = compare(shifted(0.3))
    assert found.n_needed is not None
    assert is_fewest(found.n_needed, 0.06 / 0.158114)


def test_two_pairs_are_enough() -> None:
    found = compare(runs({0: 98.0, 1: 98.5}, {0: 98.1, 1: 98.3}))
    assert (found.n, found.mean) == (2, pytest.approx(-0.05))
    assert found.deviation == pytest.approx(0.3 / math.sqrt(2))
    # 12.706205 is the quantile of one degree of freedom.
    assert found.low == pytest.approx(-0.05 - 12.706205 * 0.15, abs=1e-5)
    assert found.high == pytest.approx(-0.05 + 12.706205 * 0.15, abs=1e-5)


def test_pairs_are_of_one_seed_in_whatever_order_the_rows_come() -> None:
    frame = shifted(0.3)
    orders = [frame[::-1], frame.sample(frac=1, random_state=1), frame.sort_values("test_accuracy")]
    for order in orders:
        assert astuple(compare(order)) == pytest.approx(astuple(compare(frame)))


def test_a_seed_that_only_one_network_has_is_left_out() -> None:
    alone = runs({5: 10.0, 6: 20.0}, {7: 99.9})
    assert compare(pd.concat([alone, shifted(0.3)])) == compare(shifted(0.3))


@pytest.mark.parametrize("weights", ["copy", "fine_tune", "file"])
def test_only_runs_from_scratch_are_compared(weights: str) -> None:
    unit_stride = {seed: 50.0 + seed for seed in range(7)}
    others = runs({5: 40.0, 6: 42.0}, unit_stride, weights)
    assert compare(pd.concat([others, shifted(0.3)])) == compare(shifted(0.3))
    assert compare(pd.concat([runs(STRIDED, {}), others])).n == 0


def test_twins_that_share_or_have_other_rates_are_not_the_papers() -> None:
    unit_stride = {seed: 50.0 + seed for seed in range(7)}
    others = runs({}, unit_stride).assign(variant="tied")
    assert compare(pd.concat([others, shifted(0.3)])) == compare(shifted(0.3))
    assert compare(pd.concat([runs(STRIDED, {}), others])).n == 0


@given(st.dictionaries(st.integers(0, 9), st.tuples(*[st.integers(0, 10_000)] * 2), max_size=6))
@settings(max_examples=60)
def test_nothing_is_ever_not_a_number_and_what_is_missing_has_a_reason(
    correct: dict[int, tuple[int, int]],
) -> None:
    first, second = ({seed: pair[k] / 100 for seed, pair in correct.items()} for k in (0, 1))
    found = compare(runs(first, second))
    differences = {b - a for a, b in correct.values()}
    assert found.n == len(correct)
    numbers = [value for value in astuple(found) if isinstance(value, float)]
    assert all(map(math.isfinite, numbers))
    assert (found.low is None) == (found.high is None) == (len(differences) < 2)
    assert (found.mean is None) == (found.deviation is None) == (len(correct) < 2)
    assert bool(found.blank) == (found.low is None)
    if found.mean is not None and found.low is not None and found.high is not None:
        assert found.low < found.mean < found.high
        assert found.low + found.high == pytest.approx(2 * found.mean, abs=1e-9)
        turned = compare(runs(second, first))
        assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


# Verdicts


@pytest.mark.parametrize(
    ("mean", "verdict"),
    [
        (0.2, "supported"),  # HALF is 0.196
        (0.19, "undecided"),
        (0.0, "undecided"),
        (-0.19, "undecided"),
        (-0.2, "contradicted"),
    ],
)
def test_a_verdict_needs_an_interval_that_leaves_zero(mean: float, verdict: str) -> None:
    found = compare(shifted(mean))
    assert found.verdict == verdict
    others = {"supported", "undecided", "contradicted"} - {verdict}
    said = found.sentence("recipe sgd on mnist")
    assert verdict in said
    assert not any(other in said for other in others)


def test_an_interval_that_ends_at_zero_decides_nothing() -> None:
    assert Comparison(5, mean=0.1, low=0.0, high=0.2).verdict == "undecided"
    assert Comparison(5, mean=-0.1, low=-0.2, high=0.0).verdict == "undecided"


def test_the_sentence_has_the_numbers() -> None:
    found = compare(shifted(0.3))
    said = found.sentence("recipe sgd on mnist")
    told = ["recipe sgd on mnist", "+0.30", "+0.104 to +0.496", "n = 5", f"{found.n_needed} seeds"]
    assert [part for part in told if part not in said] == []
    assert "-0.20" in compare(shifted(-0.2)).sentence("recipe sgd on mnist")


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
    assert f"+0.06 lies {place}" in compare(shifted(mean)).sentence("recipe sgd on mnist")


@pytest.mark.parametrize(
    ("strided", "unit_stride", "n", "reason"),
    [
        ({}, {}, 0, "no seed"),
        ({0: 98.0, 1: 98.1}, {}, 0, "no seed"),
        ({0: 98.0, 1: 98.1}, {2: 98.0}, 0, "no seed"),
        ({0: 98.0, 1: 98.1}, {1: 98.2}, 1, "only one seed"),
        # 98.3 − 98.2 and 98.1 − 98.0 differ by 1e-14
        ({0: 98.0, 1: 98.2, 2: 97.3}, {0: 98.1, 1: 98.3, 2: 97.4}, 3, "equal"),
    ],
)
def test_too_few_or_equal_pairs_decide_nothing_and_the_sentence_says_why(
    strided: dict[int, float], unit_stride: dict[int, float], n: int, reason: str
) -> None:
    found = compare(runs(strided, unit_stride))
    assert (found.n, found.verdict) == (n, "undecided")
    assert (found.low, found.high, found.n_needed) == (None, None, None)
    said = found.sentence("recipe sgd on mnist")
    assert reason in said
    for wrong in ("None", "nan", "interval +"):
        assert wrong not in said


def test_equal_differences_still_have_a_mean_and_each_networks_deviation() -> None:
    found = compare(runs({0: 98.0, 1: 98.2, 2: 97.3}, {0: 98.1, 1: 98.3, 2: 97.4}))
    assert (found.mean, found.deviation) == (pytest.approx(0.1), pytest.approx(0, abs=1e-9))
    deviation = math.sqrt((1 / 6**2 + 11 / 30 * 11 / 30 + 8 / 15 * 8 / 15) / 2)  # about 97.8333
    assert found.strided_deviation == pytest.approx(deviation)
    assert found.unit_stride_deviation == pytest.approx(deviation)


def test_more_seeds_than_anyone_can_train_are_not_asked_for() -> None:
    found = compare(runs({0: 10.0, 1: 90.0}, {0: 90.0, 1: 10.0}))
    assert found.n_needed is None
    assert "None" not in found.sentence("recipe sgd on mnist")


# Seeds needed


def power_by_integration(n: int, effect: float, critical: float) -> float:
    """P(|Z + effect √n| > critical √(V/(n−1))), over the density of √V, V chi-squared."""
    v = n - 1
    roots = np.linspace(1e-9, math.sqrt(v) + 12, 2001)
    logs = (v - 1) * np.log(roots) - roots**2 / 2 - (v / 2 - 1) * math.log(2) - math.lgamma(v / 2)
    edge, centre = critical * roots / math.sqrt(v), effect * math.sqrt(n)
    tails = [math.erfc((e - centre) / 2**0.5) + math.erfc((e + centre) / 2**0.5) for e in edge]
    return float(np.trapezoid(np.exp(logs) * np.array(tails) / 2, roots))


def is_fewest(n: int, effect: float) -> bool:
    """Whether n pairs, but not n − 1, see the effect in 80 % of cases."""
    powers = []
    for pairs in (n - 1, n):
        low, high = 0.0, 20.0  # the critical value: 5 % without an effect
        for _ in range(40):
            middle = (low + high) / 2
            tails = power_by_integration(pairs, 0.0, middle)
            low, high = (middle, high) if tails > 0.05 else (low, middle)
        powers.append(power_by_integration(pairs, effect, high))
    return powers[0] < 0.8 <= powers[1]


@pytest.mark.parametrize(("effect", "published"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_are_those_of_published_tables(effect: float, published: int) -> None:
    assert seeds_needed(effect, 1.0) == published


@pytest.mark.parametrize(("effect", "expected"), [(1.5, 6), (2.0, 5), (3.0, 4), (4.0, 3)])
def test_large_effects_need_few_seeds(effect: float, expected: int) -> None:
    assert is_fewest(expected, effect)
    assert seeds_needed(effect, 1.0) == expected


def test_seeds_needed_are_the_first_with_80_percent_in_a_simulation() -> None:
    generator = np.random.default_rng(0)
    seen = {}
    # 97.5 % quantiles of Student's t, 8 and 9 degrees of freedom
    for n, quantile in ((9, 2.306004), (10, 2.262157)):
        samples = 0.05 + 0.05 * generator.standard_normal((300_000, n))
        t = samples.mean(axis=1) / (samples.std(axis=1, ddof=1) / n**0.5)
        seen[n] = (abs(t) > quantile).mean()
    assert seen[9] < 0.79 < 0.8 < seen[10]
    assert seeds_needed(0.05, 0.05) == 10


@pytest.mark.parametrize("scale", [1e-3, 0.37, 25.0])
def test_seeds_needed_depend_on_the_ratio_alone(scale: float) -> None:
    for effect in (0.03, 0.2, 0.5, 1.7):
        assert seeds_needed(effect * scale, scale) == seeds_needed(effect, 1.0)


def test_a_smaller_effect_needs_no_fewer_seeds() -> None:
    found = [seeds_needed(0.06, float(deviation)) for deviation in np.geomspace(0.013, 20, 80)]
    numbers = [n for n in found if n is not None]
    assert len(numbers) == 80
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1] > 800_000) == (3, True)


@pytest.mark.parametrize("effect", [0.01, 0.003])
def test_many_seeds_are_counted_as_the_normal_distribution_has_them(effect: float) -> None:
    # (z_0.975 + z_0.8)² / effect², and z_0.975² / 2 more for the deviation being estimated
    expected = ((1.959964 + 0.8416212) / effect) ** 2 + 1.959964**2 / 2
    assert seeds_needed(effect, 1.0) == pytest.approx(expected, rel=1e-5, abs=1.1)


def test_beyond_a_million_there_is_no_number() -> None:
    # (z_0.975 + z_0.8) / 1000 = 0.0028016
    assert seeds_needed(0.00281, 1.0) is not None
    assert seeds_needed(0.00280, 1.0) is None
    assert seeds_needed(0.06, 1e9) is None


# As people read it


def test_readers_get_every_number_of_the_comparison() -> None:
    found = compare(shifted(0.3))
    entries = comparison_for_readers(found).iloc[:, 1].tolist()
    expected = [
        "5",
        "5",
        "+0.300",
        "+0.104 to +0.496",
        "+0.060",
        "0.158",
        "0.354",
        "0.374",
        "supported",
    ]
    assert sorted(entries) == sorted([*expected, str(found.n_needed)])


def test_readers_get_blanks_for_what_too_few_seeds_cannot_tell() -> None:
    for table in (runs({}, {}), runs({0: 98.0}, {0: 98.1})):
        found = compare(table)
        entries = comparison_for_readers(found).iloc[:, 1].tolist()
        assert sorted(entry for entry in entries if entry) == [
            "+0.060", str(found.n), str(found.n), "undecided",
        ]  # fmt: skip


def test_the_row_of_a_comparison_has_the_papers_difference_and_the_verdict() -> None:
    (row,) = comparison_table(compare(shifted(-0.3))).to_dict("records")
    assert (row["verdict"], row["paper"], row["n"]) == ("contradicted", 0.06, 5)
    assert (row["mean"], row["low"]) == (pytest.approx(-0.3), pytest.approx(-0.3 - HALF, abs=1e-6))


@pytest.mark.parametrize("effect", [5.5, 6.3, 8.5, 10.0, 11.0])
def test_two_pairs_do_not_see_even_a_large_effect(effect: float) -> None:
    pairs = np.random.default_rng(0).normal(effect, 1, (100_000, 2))
    t = pairs.mean(1) / (pairs.std(1, ddof=1) / 2**0.5)
    assert (abs(t) > 12.7062).mean() < 0.8
    assert seeds_needed(effect, 1.0) == 3


def test_without_the_papers_experiment_nothing_is_said_of_its_difference() -> None:
    found = comparison.compare(shifted(0.3))
    assert (found.paper, found.n_needed) == (None, None)
    assert (found.low, found.verdict) == (compare(shifted(0.3)).low, "supported")
    said = found.sentence("recipe sgd on fashion_mnist")
    assert "0.06" not in said
    assert "None" not in said
    assert said.endswith("+0.104 to +0.496, n = 5, and the twin is ahead in 5 of 5 pairs.")
    assert "+0.060" not in comparison_for_readers(found).to_string()


def test_the_twin_is_ahead_where_it_is_strictly_better() -> None:
    strided = {0: 98.0, 1: 98.2, 2: 97.3, 3: 99.0}
    unit_stride = {0: 98.1, 1: 98.2, 2: 97.2, 3: 98.9}
    found = compare(runs(strided, unit_stride))
    assert (found.ahead, found.n) == (1, 4)
    assert "ahead in 1 of 4 pairs" in found.sentence("recipe sgd on mnist")
