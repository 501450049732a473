"""Paired differences: their interval, what it says of a claim, and how many seeds would be needed."""

from bisect import bisect_left
from typing import Any

import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.80
MOST = 1_000_000  # seeds that we are ready to ask for


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
