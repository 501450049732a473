"""Is the unit-stride network the more accurate one? Paired by seed, with what the numbers can carry."""

from dataclasses import asdict, dataclass, replace

import pandas as pd

from experiments.reporting.formats import PRINTED, blank_or
from experiments.reporting.published import PAPER_DIFFERENCE
from experiments.reporting.section import Section
from experiments.reporting.statistics import interval, seeds_needed, verdict
from experiments.runs.results import arms
from experiments.settings.schema import Report
from experiments.studies.table2 import is_the_papers
from stridenet.plan import EliminationPlan


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


def comparison_table(found: Comparison) -> pd.DataFrame:
    """The paired comparison of the two networks' accuracy, in points, as one row."""
    return pd.DataFrame([{**asdict(found), "verdict": found.verdict}])


def comparison_for_readers(found: Comparison) -> pd.DataFrame:
    """One line a quantity; blank where too few seeds cannot tell."""
    points = blank_or("{:+.3f}")
    spread = blank_or("{:.3f}")
    interval = "" if found.low is None else f"{points(found.low)} to {points(found.high)}"
    rows = {
        "pairs of runs": str(found.n),
        "pairs in which the twin is ahead": str(found.ahead),
        "mean difference (points)": points(found.mean),
        "95 % interval": interval,
        "the paper's difference, of one pair": points(found.paper),
        "standard deviation of the differences": spread(found.deviation),
        f"standard deviation, {PRINTED['strided']}": spread(found.strided_deviation),
        f"standard deviation, {PRINTED['unit_stride']}": spread(found.unit_stride_deviation),
        "seeds to see the paper's difference": blank_or("{:,.0f}")(found.n_needed),
        "the paper's claim is": found.verdict,
    }
    return pd.DataFrame({"Accuracy, twin minus strided": [*rows], "points": [*rows.values()]})


def comparison_section(
    config: Report, runs: pd.DataFrame, plan: EliminationPlan, about: str
) -> Section:
    papers = is_the_papers(plan, config.data.name)
    comparison = compare(runs, PAPER_DIFFERENCE if papers else None)
    under = f"recipe {config.recipe.name} on {config.data.name}"
    return Section(
        "comparison",
        "Unity Stride − Non-Unity Stride",
        comparison.sentence(under),
        about,
        comparison_table(comparison),
        comparison_for_readers(comparison),
    )
