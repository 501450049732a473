"""Is the unit-stride network the more accurate one? Paired by seed, with what the numbers can carry."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from scipy import stats

from stridenet.runs import arms

CONFIDENCE = 0.95
POWER = 0.80
MOST = 1_000_000  # seeds that we are ready to ask for


@dataclass
class Comparison:
    """Test accuracy of the twin minus that of the strided network, in points, over n paired seeds.

    What too few seeds cannot give is None, and `blank` is the reason.
    """

    n: int
    ahead: int = 0  # pairs in which the twin is the more accurate one
    mean: float | None = None
    low: float | None = None  # of the 95 % interval
    high: float | None = None
    deviation: float | None = None  # of the differences
    strided_deviation: float | None = None
    unit_stride_deviation: float | None = None
    paper: float | None = None  # the paper's difference, where this is its experiment
    n_needed: int | None = None  # to see that difference in 80 % of experiments
    blank: str = ""

    @property
    def verdict(self) -> str:
        """supported, contradicted or undecided: does the interval leave zero, and on which side?"""
        return verdict(self.low, self.high)

    def sentence(self, under: str) -> str:
        """What the numbers say of the paper's claim, under a recipe on some data."""
        claim = "The paper's claim that the unit-stride network is the more accurate one is "
        under = f"{claim}{self.verdict} under {under}"
        if self.low is None or self.high is None:
            return f"{under}: {self.blank}."
        text = (
            f"{under}: the difference is {self.mean:+.3f} points, 95 % interval {self.low:+.3f} to "
            f"{self.high:+.3f}, n = {self.n}, and the twin is ahead in {self.ahead} of {self.n} pairs"
        )
        if self.paper is not None:
            inside = "within" if self.low <= self.paper <= self.high else "outside"
            text += f"; the paper's {self.paper:+} lies {inside} it"
        if self.n_needed is not None:
            text += f"; to see {self.paper} points would take {self.n_needed} seeds"
        return f"{text}."


def interval(differences: "pd.Series[float]") -> dict[str, Any]:
    """n, mean and the 95 % interval of the mean (Student's), None where no two differences differ."""
    differences = differences.round(9)  # 1e-14 is no spread
    found: dict[str, Any] = {"n": len(differences), "mean": None, "low": None, "high": None}
    if len(differences):
        found["mean"] = float(differences.mean())
    if len({*differences}) > 1:
        bounds = stats.ttest_1samp(differences, 0).confidence_interval(CONFIDENCE)
        found |= {"low": float(bounds.low), "high": float(bounds.high)}
    return found


def verdict(low: float | None, high: float | None) -> str:
    """On a claim that a difference is above zero, by its interval."""
    if low is None or high is None or low <= 0 <= high:
        return "undecided"
    return "supported" if low > 0 else "contradicted"


def compare(runs: pd.DataFrame, paper: float | None = None) -> Comparison:
    """Compare the networks trained from scratch, seed by seed.

    runs: as runs.tidy gives them; a seed counts if both networks have it. The interval is Student's
    for the mean of paired differences. paper: the paper's difference, in points, if there is one.
    """
    scratch = runs[runs.weights == "scratch"].assign(network=arms)
    wide = 100 * scratch.pivot(index="seed", columns="network", values="test_accuracy")
    pairs = wide.reindex(columns=["strided", "unit_stride"]).dropna()
    differences = pairs.unit_stride - pairs.strided
    measured = interval(differences)
    n, ahead = measured["n"], int((differences.round(9) > 0).sum())
    if n < 2:
        seeds = {0: "no seed has", 1: "only one seed has"}[n]
        blank = f"{seeds} both networks, and an interval needs two"
        return Comparison(n, ahead, paper=paper, blank=blank)
    found = Comparison(
        n,
        ahead,
        measured["mean"],
        measured["low"],
        measured["high"],
        paper=paper,
        deviation=float(differences.std()),
        strided_deviation=float(pairs.strided.std()),
        unit_stride_deviation=float(pairs.unit_stride.std()),
    )
    if found.low is None:
        return replace(found, blank="all differences are equal, which is no spread to judge by")
    needed = None if paper is None else seeds_needed(paper, float(differences.std()))
    return replace(found, n_needed=needed)


def seeds_needed(difference: float, deviation: float) -> int | None:
    """The fewest pairs with which a paired t-test (two-sided, 5 %) sees a difference in 80 % of cases.

    deviation: of the paired differences. None if more than a million are needed.
    """

    def power(n: int) -> float:
        # By F, as which t² is distributed: scipy's noncentral t is not a number for some effects.
        critical = stats.f.ppf(CONFIDENCE, 1, n - 1)
        return float(stats.ncf.sf(critical, 1, n - 1, n * (difference / deviation) ** 2))

    n = 2 + bisect_left(range(2, MOST), POWER, key=power)  # power grows with n
    return n if n < MOST else None
