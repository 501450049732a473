"""Is the unit-stride network the more accurate one? Paired by seed, with what the numbers can carry."""

from bisect import bisect_left
from dataclasses import dataclass, replace

import pandas as pd
from scipy import stats

PAPER_POINTS = 0.06  # 98.23 % − 98.17 %, one run of each network (Table 1)
CONFIDENCE = 0.95
POWER = 0.80
MOST = 1_000_000  # seeds that we are ready to ask for


@dataclass
class Comparison:
    """Test accuracy of the twin minus that of the strided network, in points, over n paired seeds.

    What too few seeds cannot give is None, and `blank` is the reason.
    """

    n: int
    mean: float | None = None
    low: float | None = None  # of the 95 % interval
    high: float | None = None
    deviation: float | None = None  # of the differences
    strided_deviation: float | None = None
    unit_stride_deviation: float | None = None
    n_needed: int | None = None  # to see the paper's 0.06 points in 80 % of experiments
    blank: str = ""

    @property
    def verdict(self) -> str:
        """supported, contradicted or undecided: does the interval leave zero, and on which side?"""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "undecided"
        return "supported" if self.low > 0 else "contradicted"

    def sentence(self, under: str) -> str:
        """What the numbers say of the paper's claim, under a recipe on some data."""
        claim = "The paper's claim that the unit-stride network is the more accurate one is "
        under = f"{claim}{self.verdict} under {under}"
        if self.low is None or self.high is None:
            return f"{under}: {self.blank}."
        contains = self.low <= PAPER_POINTS <= self.high
        needed = f"; to see {PAPER_POINTS} points would take {self.n_needed} seeds"
        return (
            f"{under}: the difference is {self.mean:+.3f} points, 95 % interval {self.low:+.3f} to "
            f"{self.high:+.3f}, n = {self.n}; the paper's {PAPER_POINTS:+} lies "
            f"{'within' if contains else 'outside'} it{needed if self.n_needed else ''}."
        )


def compare(runs: pd.DataFrame) -> Comparison:
    """Compare the networks trained from scratch, seed by seed.

    runs: as runs.tidy gives them; a seed counts if both networks have it. The interval is Student's
    for the mean of paired differences.
    """
    scratch = runs[runs.weights == "scratch"]
    wide = 100 * scratch.pivot(index="seed", columns="network", values="test_accuracy")
    pairs = wide.reindex(columns=["strided", "unit_stride"]).dropna()
    n = len(pairs)
    if n < 2:
        seeds = {0: "no seed has", 1: "only one seed has"}[n]
        return Comparison(n, blank=f"{seeds} both networks, and an interval needs two")
    differences = (pairs.unit_stride - pairs.strided).round(9)  # 1e-14 is no spread
    found = Comparison(
        n,
        float(differences.mean()),
        deviation=float(differences.std()),
        strided_deviation=float(pairs.strided.std()),
        unit_stride_deviation=float(pairs.unit_stride.std()),
    )
    if len(differences.unique()) == 1:
        return replace(found, blank="all differences are equal, which is no spread to judge by")
    interval = stats.ttest_rel(pairs.unit_stride, pairs.strided).confidence_interval(CONFIDENCE)
    needed = seeds_needed(PAPER_POINTS, float(differences.std()))
    return replace(found, low=float(interval.low), high=float(interval.high), n_needed=needed)


def seeds_needed(difference: float, deviation: float) -> int | None:
    """The fewest pairs with which a paired t-test (two-sided, 5 %) sees a difference in 80 % of cases.

    deviation: of the paired differences. None if more than a million are needed.
    """

    def power(
        n: int,
    ) -> float:  # t² follows F; scipy's noncentral t is not a number for some effects
        critical = stats.f.ppf(CONFIDENCE, 1, n - 1)
        return float(stats.ncf.sf(critical, 1, n - 1, n * (difference / deviation) ** 2))

    n = 2 + bisect_left(range(2, MOST), POWER, key=power)  # power grows with n
    return n if n < MOST else None
