"""Paired differences of two networks, as docs/protocol.md judges them.

Direction and size are two questions. Direction: is the mean difference above or below zero? Student's
t, with Wilcoxon's signed-rank test beside it. Size: does it lie within a margin? Two one-sided t-tests
(TOST). Both are about these test images, with seeds as the sample; `new_images` gives an interval for
other images, too. All differences are in the units of what was measured.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.05
CONFIDENCE = 1 - LEVEL
POWER = 0.80
MOST = 1_000_000  # seeds that we are ready to ask for
FEWEST = 3  # pairs to judge by
FEWEST_FOR_IMAGES = 10  # pairs: of fewer seeds, a bootstrap's percentiles are too close together
RESAMPLES = 9_999


class Interval(NamedTuple):
    """Holds the bounds of an interval."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Holds the mean of paired differences, and what can be said of it.

    What too few pairs cannot give is None, and `blank` is the reason.
    """

    n: int
    ahead: int = 0  # pairs whose difference is above zero
    mean: float | None = None
    deviation: float | None = None  # standard deviation of the differences
    low: float | None = None  # 95 % interval of the mean (Student's)
    high: float | None = None
    p: float | None = None  # of the paired t-test, two-sided
    median: float | None = None  # the Hodges–Lehmann estimate
    wilcoxon_p: float | None = None  # of the signed-rank test, two-sided
    margin: float | None = None
    margin_p: float | None = None  # of TOST: small where the mean lies within ±margin
    blank: str = ""

    @property
    def within(self) -> bool | None:
        """Tell whether the mean lies within ±margin, at 5 %; None without a margin or a test."""
        return None if self.margin_p is None else self.margin_p < LEVEL


def paired_difference(differences: ArrayLike, margin: float | None = None) -> PairedDifference:
    """Return what can be said of the differences, one for each pair, in the units of `margin`."""
    values = np.asarray(differences, dtype=float).round(9)  # 1e-14 is no spread
    n, ahead = len(values), int((values > 0).sum())
    if n < FEWEST:
        few = "one pair is" if n == 1 else f"{n} pairs are"
        blank = f"{few} too few to judge by: {FEWEST} are needed"
        return PairedDifference(n, ahead, margin=margin, blank=blank)
    known = PairedDifference(
        n,
        ahead,
        mean=float(values.mean()),
        deviation=float(values.std(ddof=1)),
        median=hodges_lehmann(values),
        margin=margin,
    )
    if len({*values}) == 1:
        return replace(known, blank="all differences are equal, which is no spread to judge by")
    tested = stats.ttest_1samp(values, 0)
    bounds = tested.confidence_interval(CONFIDENCE)
    return replace(
        known,
        low=float(bounds.low),
        high=float(bounds.high),
        p=float(tested.pvalue),
        wilcoxon_p=float(stats.wilcoxon(values, zero_method="pratt").pvalue),
        margin_p=None if margin is None else tost(values, margin),
    )


def tost(values: np.ndarray, margin: float) -> float:
    """Return the p-value of "the mean does not lie within ±margin".

    It is the larger of those of two one-sided t-tests.
    """
    from statsmodels.stats.weightstats import DescrStatsW  # slow to import

    return float(DescrStatsW(values).ttost_mean(-margin, margin)[0])


def tost_of_share(values: ArrayLike, gaps: ArrayLike, share: float) -> float:
    """Return the p-value of "the mean does not lie within ±share of the mean gap", pair by pair.

    gaps: one for each of the values. Unlike `tost` with a margin from the same pairs, this counts the
    error of the gap, and how it goes with the values. Fewer than three pairs show nothing.
    """
    tested, of_gap = np.asarray(values, dtype=float), share * np.asarray(gaps, dtype=float)
    if len(tested) < FEWEST:
        return 1.0
    of_gap = of_gap * np.sign(of_gap.mean())
    below = stats.ttest_1samp(tested - of_gap, 0, alternative="less").pvalue
    above = stats.ttest_1samp(tested + of_gap, 0, alternative="greater").pvalue
    return float(max(below, above))


def hodges_lehmann(values: np.ndarray) -> float:
    """Return the median of the means of all pairs of differences, each with itself too."""
    first, second = np.triu_indices(len(values))
    return float(np.median((values[first] + values[second]) / 2))


def new_images(first: np.ndarray, second: np.ndarray, resamples: int = RESAMPLES) -> Interval:
    """Return a 95 % interval of the mean difference first − second, for new seeds and images.

    It is the percentile interval of a bootstrap that draws both again (crossed), in points.

    first, second: bool (seeds, images), which images each network classifies rightly. The interval is
    too wide, as the noise of one image and seed counts three times in it (Owen, The pigeonhole
    bootstrap, 2007): by 15 % in Table 1 (docs/protocol.md, Deviations).
    """
    wins = first.astype(np.float32) - second.astype(np.float32)

    def mean(seeds: np.ndarray, images: np.ndarray, axis: int) -> np.ndarray:
        """Return the mean of each resample: seeds (resamples, seeds), images (resamples, images)."""
        means = []
        for start in range(0, len(seeds), 256):  # a part at a time, for the sake of memory
            part = slice(start, start + 256)
            # Averaging over the seeds first leaves one gather a resample: drawn is how often each is.
            drawn = (seeds[part, :, None] == np.arange(len(wins))).sum(1, dtype=wins.dtype)
            of_images = drawn @ wins / len(wins)
            means.append(np.take_along_axis(of_images, images[part], axis).mean(axis, dtype=float))
        return np.concatenate(means)

    drawn = stats.bootstrap(
        tuple(np.arange(extent) for extent in wins.shape),
        mean,
        n_resamples=resamples,
        vectorized=True,
        paired=False,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(100 * float(drawn.low), 100 * float(drawn.high))


def holm(p_values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the p-values of a family of claims, adjusted by Holm's method.

    A missing one counts as 1.
    """
    from statsmodels.stats.multitest import multipletests  # slow to import

    given = [1.0 if p is None else p for p in p_values.values()]
    return dict(zip(p_values, map(float, multipletests(given, method="holm")[1]), strict=True))


def verdict(mean: float | None, p: float | None) -> str:
    """Return the verdict on the claim that a difference is above zero.

    It is supported, contradicted or undecided.
    """
    if mean is None or p is None or not p < LEVEL:
        return "undecided"
    return "supported" if mean > 0 else "contradicted"


def seeds_needed(difference: float, deviation: float) -> int | None:
    """Return the fewest pairs with which a paired t-test (5 %) finds the difference at 80 % power.

    deviation: of the paired differences. None if more than a million are needed.
    """

    def power(n: int) -> float:
        # This uses F, as t² is distributed: scipy's noncentral t is not a number for some effects.
        critical = stats.f.ppf(CONFIDENCE, 1, n - 1)
        return float(stats.ncf.sf(critical, 1, n - 1, n * (difference / deviation) ** 2))

    n = 2 + bisect_left(range(2, MOST), POWER, key=power)  # power grows with n
    return n if n < MOST else None
