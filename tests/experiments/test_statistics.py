"""Paired statistics: small cases by hand, blanks with reasons, and simulations whose truth is known."""

import itertools
import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.reporting.statistics import (
    hodges_lehmann,
    holm,
    new_images,
    paired_difference,
    seeds_needed,
    tost,
    tost_of_share,
    verdict,
)
from tests.examples import examples

SPREAD = np.array([-0.2, 0.1, 0.0, 0.2, -0.1])  # of mean 0, deviation sqrt(0.1 / 4)
DEVIATION = math.sqrt(0.1 / 4)
ERROR = DEVIATION / math.sqrt(5)  # of the mean of five such
T_4 = 2.776445  # 97.5 % quantile of Student's t, 4 degrees of freedom
T_4_ONE_SIDED = 2.131847  # 95 %
HALF = T_4 * ERROR  # 0.196324


# Direction


def test_mean_deviation_and_interval_are_the_textbooks() -> None:
    found = paired_difference(0.3 + SPREAD)
    assert (found.n, found.ahead, found.blank) == (5, 5, "")
    assert found.mean == pytest.approx(0.3)
    assert found.deviation == pytest.approx(0.158114, abs=1e-6)
    assert found.low == pytest.approx(0.103676, abs=1e-6)
    assert found.high == pytest.approx(0.496324, abs=1e-6)


def p_of_t(t: float, degrees: int) -> float:
    """P(|T| > t) by integrating the density of Student's t."""
    x = np.linspace(0, abs(t), 20_001)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    density = scale / math.sqrt(degrees * math.pi) * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    return 1 - 2 * float(np.trapezoid(density, x))


@pytest.mark.parametrize("mean", [0.3, 0.1, 0.0, -0.15])
def test_p_is_the_area_beyond_t_on_both_sides(mean: float) -> None:
    assert paired_difference(mean + SPREAD).p == pytest.approx(p_of_t(mean / ERROR, 4), abs=1e-6)


def test_p_is_five_percent_where_the_interval_ends_at_zero() -> None:
    found = paired_difference(HALF + SPREAD)
    assert found.p == pytest.approx(0.05, abs=1e-6)
    assert found.low == pytest.approx(0, abs=1e-6)


def test_hodges_lehmann_is_the_median_of_all_means_of_two() -> None:
    values = [0.1, 0.7, 0.3, -2.0, 0.4]
    means = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2)]
    assert len(means) == 15
    expected = sorted(means)[7]
    assert hodges_lehmann(np.array(values)) == pytest.approx(expected)
    assert paired_difference(values).median == pytest.approx(expected)
    assert abs(expected - np.mean(values)) > 0.1  # and no mean


@pytest.mark.parametrize(
    "values", [[0.1, 0.7, 0.3, -0.2, 0.4], [0.1, 0.2, 0.3, 0.4, 0.5], [-0.5, 0.1, -0.2, 0.3, 0.05]]
)
def test_wilcoxons_p_is_that_of_all_signs(values: list[float]) -> None:
    ranks = np.argsort(np.argsort(np.abs(values))) + 1
    sums = [sum(ranks[np.array(signs)]) for signs in itertools.product([False, True], repeat=5)]
    seen = sum(ranks[np.array(values) > 0])
    tail = min(np.mean([s <= seen for s in sums]), np.mean([s >= seen for s in sums]))
    assert paired_difference(values).wilcoxon_p == pytest.approx(min(2 * tail, 1))


def test_the_pair_in_which_both_are_equal_is_not_ahead() -> None:
    assert paired_difference([0.1, 0.0, -0.1, -0.1]).ahead == 1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "0 pairs are too few to judge by: 3 are needed"),
        ([0.1], "one pair is too few"),
        ([0.1, 0.2], "2 pairs are too few"),
        ([0.1, 0.1, 0.1], "all differences are equal"),
        ([98.1 - 98.0, 98.3 - 98.2, 97.4 - 97.3], "all differences are equal"),  # 1e-14 apart
    ],
)
def test_too_few_or_equal_differences_have_blanks_and_the_reason(
    values: list[float], reason: str
) -> None:
    found = paired_difference(values, margin=0.06)
    assert reason in found.blank
    assert (found.low, found.high, found.p, found.wilcoxon_p, found.margin_p) == (None,) * 5
    assert found.within is None
    assert (found.n, found.ahead) == (len(values), len(values))
    assert found.mean == (pytest.approx(0.1) if len(values) >= 3 else None)


@given(st.lists(st.integers(-10_000, 10_000), max_size=7))
@examples(40)
def test_nothing_is_ever_not_a_number_and_what_is_missing_has_a_reason(images: list[int]) -> None:
    found = paired_difference(np.array(images) / 100, margin=0.06)
    numbers = [value for value in astuple(found) if isinstance(value, float)]
    assert all(map(math.isfinite, numbers))
    tested = len(images) >= 3 and len({*images}) > 1
    assert bool(found.blank) == (not tested)
    for value in (found.low, found.high, found.p, found.wilcoxon_p, found.margin_p):
        assert (value is not None) == tested
    if found.mean is not None and found.low is not None and found.high is not None:
        assert found.low < found.mean < found.high
        assert found.low + found.high == pytest.approx(2 * found.mean, abs=1e-9)
        turned = paired_difference(-np.array(images) / 100)
        assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


@pytest.mark.parametrize(
    ("mean", "p", "expected"),
    [
        (0.2, 0.049, "supported"),
        (-0.2, 0.049, "contradicted"),
        (0.2, 0.05, "undecided"),
        (-0.2, 0.05, "undecided"),
        (None, 0.001, "undecided"),
        (0.2, None, "undecided"),
        (0.2, math.nan, "undecided"),
    ],
)
def test_a_verdict_needs_a_p_below_five_percent_and_goes_by_the_sign(
    mean: float | None, p: float | None, expected: str
) -> None:
    assert verdict(mean, p) == expected


# Size


def test_tost_is_the_larger_of_two_one_sided_t_tests() -> None:
    found = paired_difference(0.02 + SPREAD, margin=0.2)
    nearer = (0.2 - 0.02) / ERROR  # errors from the mean to the nearer end
    assert nearer > 0
    assert found.margin == 0.2
    assert found.margin_p == pytest.approx(p_of_t(nearer, 4) / 2, abs=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("beyond", "within"), [(0.999, True), (1.001, False)])
def test_a_mean_is_within_the_margin_where_its_90_percent_interval_is(
    sign: int, beyond: float, within: bool
) -> None:
    mean = sign * (0.2 - beyond**-1 * T_4_ONE_SIDED * ERROR)
    found = paired_difference(mean + SPREAD, margin=0.2)
    reach = abs(mean) + T_4_ONE_SIDED * ERROR  # of the interval
    assert (reach < 0.2) == within
    assert found.within == within


def test_without_a_margin_there_is_no_question_of_size() -> None:
    found = paired_difference(0.02 + SPREAD)
    assert (found.margin, found.margin_p, found.within) == (None, None, None)


# Families of claims


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_never_falls() -> None:
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.5})
    # sorted 0.01, 0.03, 0.04, 0.5, times 4, 3, 2, 1: 0.04, 0.09, 0.08 (raised to 0.09), 0.5
    expected = {"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.5}
    assert found == {name: pytest.approx(p) for name, p in expected.items()}
    assert [*found] == ["a", "b", "c", "d"]


def test_a_claim_without_a_p_counts_as_one_and_makes_the_others_stricter() -> None:
    assert holm({"a": 0.02}) == {"a": pytest.approx(0.02)}
    found = holm({"a": 0.02, "b": None, "c": None})
    assert found == {"a": pytest.approx(0.06), "b": 1, "c": 1}


# A margin that is a share of a gap


@pytest.mark.parametrize("gap", [0.8, -0.8])
def test_of_a_gap_without_spread_the_share_is_a_margin_as_any_other(gap: float) -> None:
    for mean in (0.05, -0.05, 0.3):
        found = tost_of_share(mean + SPREAD, [gap] * 5, 0.25)
        assert found == pytest.approx(tost(mean + SPREAD, 0.2))


@pytest.mark.long
@pytest.mark.parametrize("sign", [1, -1])
def test_a_mean_at_the_share_of_an_uncertain_gap_lies_within_it_in_5_percent(sign: int) -> None:
    """With the mean gap as a margin like any other it does so more often."""
    generator = np.random.default_rng(0)
    gaps = generator.normal(0.06, 0.03, (SIMULATIONS, 10))
    values = sign * 0.015 - sign * 0.8 * (gaps - 0.06) + generator.normal(0, 0.01, gaps.shape)
    within = [tost_of_share(v, g, 0.25) < 0.05 for v, g in zip(values, gaps, strict=True)]
    as_any = [tost(v, 0.25 * abs(g.mean())) < 0.05 for v, g in zip(values, gaps, strict=True)]
    assert np.mean(within) <= 0.05 + two_errors(0.05)
    assert np.mean(as_any) > 0.05 + two_errors(0.05)


# New images


def test_new_images_have_the_interval_of_the_resampled_table() -> None:
    """One network is right on a quarter of the images more, whatever the seed: only images vary."""
    first = np.zeros((6, 400), dtype=bool)
    first[:, ::4] = True
    low, high = new_images(first, np.zeros_like(first), resamples=2_000)
    half = 1.959964 * 100 * math.sqrt(0.25 * 0.75 / 400)  # of a binomial share, in points
    assert (low, high) == pytest.approx((25 - half, 25 + half), abs=0.4)


def test_new_images_and_new_seeds_both_widen_the_interval() -> None:
    second = np.zeros((40, 400), dtype=bool)
    by_seed = second.copy()
    by_seed[::4] = True  # every fourth network is right everywhere: only seeds vary
    low, high = new_images(by_seed, second, resamples=2_000)
    half = 1.959964 * 100 * math.sqrt(0.25 * 0.75 / 40)
    assert (low, high) == pytest.approx((25 - half, 25 + half), abs=2.6)  # steps of 1/40 are 2.5


def test_the_interval_on_new_images_is_the_same_every_time_and_turns_with_its_sign() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.random((2, 5, 60)) < 0.5
    low, high = new_images(first, second, resamples=500)
    assert (low, high) == new_images(first, second, resamples=500)
    assert new_images(second, first, resamples=500) == pytest.approx((-high, -low))
    assert low < 100 * (first.mean() - second.mean()) < high


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
    """Tell whether n pairs, but not n − 1, see the effect in 80 % of cases."""
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


@pytest.mark.parametrize("effect", [5.5, 6.3, 8.5, 10.0, 11.0])
def test_two_pairs_do_not_see_even_a_large_effect(effect: float) -> None:
    pairs = np.random.default_rng(0).normal(effect, 1, (100_000, 2))
    t = pairs.mean(1) / (pairs.std(1, ddof=1) / 2**0.5)
    assert (abs(t) > 12.7062).mean() < 0.8
    assert seeds_needed(effect, 1.0) == 3


# Simulations whose truth is known: slow

SIMULATIONS = 2_000


def two_errors(share: float) -> float:
    """Two standard errors of a share that so many simulations estimate."""
    return 2 * math.sqrt(share * (1 - share) / SIMULATIONS)


class Simulated:
    """Two networks that classify an image rightly with a probability of its own, moved by each seed.

    So what is true is known: on given images, the mean difference of their probabilities; on new ones,
    its mean over both kinds of images, which are equally frequent.
    """

    def __init__(self, seeds: int, images: int) -> None:
        self.seeds, self.images = seeds, images
        self.shares = np.array([[0.7, 0.8], [0.4, 0.9]])  # of each network: on images of each kind
        self.moved = 0.05  # up or down, by each seed of each network
        self.differences = 100 * (self.shares[0] - self.shares[1])  # in points, on each kind

    def draw(self, generator: np.random.Generator, kinds: np.ndarray) -> np.ndarray:
        """Which images are right: bool (networks, seeds, images). kinds: of each image, 0 or 1."""
        moved = generator.choice([-self.moved, self.moved], (2, self.seeds, 1))
        return generator.random((2, self.seeds, self.images)) < self.shares[:, None, kinds] + moved

    def errors(self) -> tuple[float, float]:
        """The standard error of the mean difference on new images, in points: the true one, and what a
        crossed bootstrap takes for it, in which the noise of one seed and image counts three times
        (Owen, The pigeonhole bootstrap, 2007)."""
        images = self.differences.var() / 100**2 / self.images
        seeds = 2 * self.moved**2 / self.seeds
        noise = (self.shares * (1 - self.shares)).mean(1).sum() - 2 * self.moved**2
        noise /= self.seeds * self.images
        true, taken = images + seeds + noise, images + seeds + 3 * noise
        return 100 * math.sqrt(true), 100 * math.sqrt(taken)


@pytest.mark.long
def test_students_interval_holds_the_truth_on_these_images_in_95_percent() -> None:
    generator = np.random.default_rng(0)
    model = Simulated(seeds=20, images=200)  # scipy takes long over ties in few pairs
    kinds = generator.integers(2, size=model.images)  # these images, in all simulations
    truth = model.differences[kinds].mean()
    held = 0
    for _ in range(SIMULATIONS):
        first, second = model.draw(generator, kinds).mean(2)
        found = paired_difference(100 * (first - second))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert held / SIMULATIONS == pytest.approx(0.95, abs=two_errors(0.95))


@pytest.mark.long
def test_the_interval_on_new_images_holds_the_truth_in_95_percent_or_slightly_more() -> None:
    """It is too wide by what counting the noise of one image and seed three times makes of it, and no
    more: here that is 97.6 % instead of 95."""
    generator = np.random.default_rng(0)
    model = Simulated(seeds=20, images=200)
    true, taken = model.errors()
    expected = 1 - 2 * stats.norm.sf(1.959964 * taken / true)
    assert expected == pytest.approx(0.976, abs=5e-4)
    truth = model.differences.mean()
    held, means = 0, []
    for _ in range(SIMULATIONS):
        first, second = model.draw(generator, generator.integers(2, size=model.images))
        low, high = new_images(first, second, resamples=299)
        held += low <= truth <= high
        means.append(100 * (first.mean() - second.mean()))
    assert np.std(means) == pytest.approx(true, rel=0.04)  # so the model's truth is known
    coverage = held / SIMULATIONS
    assert 0.95 - two_errors(0.95) <= coverage <= expected + two_errors(expected)


@pytest.mark.long
@pytest.mark.parametrize("sign", [1, -1])
def test_tost_finds_a_mean_that_lies_on_the_margin_within_it_in_5_percent(sign: int) -> None:
    generator = np.random.default_rng(0)
    samples = generator.normal(sign * 0.06, 0.02, (SIMULATIONS, 10))
    found = np.mean([tost(values, 0.06) < 0.05 for values in samples])
    assert 0.05 - two_errors(0.05) <= found <= 0.05 + two_errors(0.05)


@pytest.mark.long
def test_holm_contradicts_any_of_seven_true_nulls_in_at_most_5_percent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "gc.collect", lambda *_: 0
    )  # statsmodels' wish each time: most of the seconds
    generator = np.random.default_rng(0)
    samples = generator.normal(0, 1, (SIMULATIONS, 7, 10))
    families = stats.ttest_1samp(samples, 0, axis=2).pvalue
    wrong = [
        min(holm({str(k): float(p) for k, p in enumerate(f)}).values()) < 0.05 for f in families
    ]
    plain = np.mean(families.min(axis=1) < 0.05)
    assert plain > 0.25  # without it, in 30 %
    assert np.mean(wrong) <= 0.05 + two_errors(0.05)
    assert np.mean(wrong) >= 0.03  # nor does it never find anything
