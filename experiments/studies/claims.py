"""The claims of docs/protocol.md (C1 to C7), with primary outcome, size and verdict."""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting.formats import blank_or
from experiments.reporting.published import PAPER_DIFFERENCE
from experiments.reporting.section import Section
from experiments.reporting.statistics import (
    LEVEL,
    holm,
    paired_difference,
    tost_of_share,
    verdict,
)
from experiments.runs.published import Published
from experiments.runs.results import arms
from experiments.studies.rates import diverged

FREE, STRIDED = "unit_stride", "strided"
MASKED_BY_COPIES, EFFECTIVE = "unit_stride masked by_copies", "unit_stride by_effective"
SIZES = (300, 1000, 3000, 10000)  # training images of experiment=train_size
SHARE_OF_GAP = 0.25  # of the gap of C2: the margin of C6 and C7
PANELS = {  # of the figure: what a quantity begins with, and its axis
    "test accuracy": "difference of test accuracy (points)",
    "loss of the first epoch": "difference of the loss of the first epoch (nats)",
    "loss on training images": "difference of the loss on training images (nats)",
}
MARKS = {"supported": "o", "contradicted": "X", "undecided": "D"}
CAPTION = (
    "Each claim by its one primary outcome: the mean difference over n pairs with its 95 % interval "
    "(Student's), and the p-value of the paired t-test, adjusted by Holm's method over the seven. "
    "Within: whether the mean lies within the margin (TOST at 5 %, not adjusted). Accuracy is on these "
    "10,000 test images, and losses are of training images. No verdict is spoken before an experiment "
    "has all its runs (docs/protocol.md)."
)


@dataclass(frozen=True)
class Claim:
    """Describes a claim: a sentence, and the outcome of one experiment that decides it.

    The outcome is one difference for each seed.
    """

    text: str
    experiment: str
    outcome: Callable[[Published], "pd.Series[float]"]
    unit: str
    quantity: str
    equality: bool = False  # claimed is that there is no difference; else that it is above zero
    margin: float | None = None


def by_arm(runs: pd.DataFrame, values: "pd.Series[float]") -> pd.DataFrame:
    """Return values of runs from scratch, with a row for each seed and a column for each arm."""
    table = pd.DataFrame({"seed": runs.seed, "arm": arms(runs), "value": values.astype(float)})
    return table[runs.weights == "scratch"].pivot(index="seed", columns="arm", values="value")


def paired(table: pd.DataFrame, arm: str, against: str) -> "pd.Series[float]":
    """Return the differences of two arms, for each seed that has both."""
    pairs = table.reindex(columns=[arm, against]).dropna()
    return pairs[arm] - pairs[against]


def percent_right(runs: pd.DataFrame) -> "pd.Series[float]":
    """Return test accuracy in percent."""
    return 100 * runs.test_correct / runs.test_images


def more_accurate(found: Published) -> "pd.Series[float]":
    """Return the outcome of C1 and C5: test accuracy, free − strided, in points."""
    return paired(by_arm(found.runs, percent_right(found.runs)), FREE, STRIDED)


def worse_fit(found: Published) -> "pd.Series[float]":
    """Return the outcome of C3: loss on training images after training, free − strided."""
    return paired(by_arm(found.runs, found.runs.fit_loss), FREE, STRIDED)


def sharing_helps(found: Published) -> "pd.Series[float]":
    """Return the outcome of C4: test accuracy, strided − free, in points.

    It is the mean over all four sizes.
    """
    of_sizes = []
    for size in SIZES:
        runs = found.runs[found.runs.train_size == size]
        of_sizes.append(paired(by_arm(runs, percent_right(runs)), STRIDED, FREE))
    return pd.concat(of_sizes, axis=1).dropna().mean(axis=1)


def first_epoch(arm: str) -> Callable[[Published], "pd.Series[float]"]:
    """Return a function that gives the outcome of C2, C6 or C7.

    It is the mean loss of the first epoch, an arm − strided.
    """

    def outcome(found: Published) -> "pd.Series[float]":
        first = found.epochs[found.epochs.epoch == 1].set_index("run").training_loss
        losses = found.runs.run.map(first).set_axis(found.runs.index)
        return paired(by_arm(found.runs, losses), arm, STRIDED)

    return outcome


CLAIMS = {
    "C1": Claim(
        "The unit-stride network is more accurate",
        "table1", more_accurate, "points", "test accuracy, free − strided", margin=PAPER_DIFFERENCE,
    ),
    "C2": Claim(
        "It learns more slowly",
        "sharing", first_epoch(FREE), "nats", "loss of the first epoch, free − strided",
    ),
    "C3": Claim(
        "Its capacity ruins the training",
        "table1", worse_fit, "nats", "loss on training images, free − strided",
    ),
    "C4": Claim(
        "Sharing parameters helps generalisation",
        "train_size", sharing_helps, "points", "test accuracy at four sizes, strided − free",
    ),
    "C5": Claim(
        "The unit-stride network is more accurate on Fashion-MNIST",
        "fashion", more_accurate, "points", "test accuracy, free − strided",
    ),
    "C6": Claim(
        "Ours: the step account holds for masked by copies",
        "sharing", first_epoch(MASKED_BY_COPIES), "nats",
        "loss of the first epoch, masked by copies − strided", equality=True,
    ),
    "C7": Claim(
        "Ours: the step account holds for free effective",
        "sharing", first_epoch(EFFECTIVE), "nats",
        "loss of the first epoch, free effective − strided", equality=True,
    ),
}  # fmt: skip


def claims_table(
    published: Mapping[str, Published], missing: Mapping[str, int | None]
) -> pd.DataFrame:
    """Return one row for each claim, with its difference and verdict.

    published: of each experiment that has any runs. missing: how many runs each experiment lacks (None:
    its settings are not chosen yet, so that nobody knows); a claim about one that lacks any counts as
    p = 1, and has neither numbers nor a verdict.
    """
    complete = {
        key: claim for key, claim in CLAIMS.items()
        if claim.experiment in published and missing.get(claim.experiment) == 0
    }  # fmt: skip
    all_pairs = _judged(complete, published, lambda found: found)
    trained = _judged(complete, published, without_diverged)
    rows = []
    for key, claim in CLAIMS.items():
        row: dict[str, Any] = {"claim": key, "text": claim.text, "experiment": claim.experiment}
        row |= {"quantity": claim.quantity, "unit": claim.unit, **all_pairs[key]}
        row["left_out"] = 0
        row["verdict_without_diverged"] = trained[key]["verdict"]
        if key not in complete:
            row |= {name: "" for name in row if name.startswith("verdict")}
            lacking = missing.get(claim.experiment)
            of = f"experiment={claim.experiment}"
            are_missing = f"run of {of} is" if lacking == 1 else f"runs of {of} are"
            row["blank"] = (
                f"the settings of {of} are not chosen yet"
                if lacking is None
                else f"{lacking} {are_missing} missing"
            )
        else:  # a run that diverged may have no loss
            runs = published[claim.experiment].runs
            row["left_out"] = runs.seed[runs.weights == "scratch"].nunique() - row["n"]
        rows.append(row)
    return pd.DataFrame(rows)


def _judged(
    complete: Mapping[str, Claim],
    published: Mapping[str, Published],
    select: Callable[[Published], Published],
) -> dict[str, dict[str, Any]]:
    """Return each claim's difference, adjusted p-value and verdicts.

    select: leaves the runs to judge by.
    """
    found = {key: paired_difference([]) for key in CLAIMS}
    of_share: dict[str, bool] = {}
    for key, claim in complete.items():
        runs = select(published[claim.experiment])
        values, margin = claim.outcome(runs), claim.margin
        if claim.equality:
            gaps = CLAIMS["C2"].outcome(runs)
            margin = SHARE_OF_GAP * abs(float(gaps.mean()))
            both = pd.concat([values, gaps], axis=1).dropna().to_numpy()
            of_share[key] = tost_of_share(both[:, 0], both[:, 1], SHARE_OF_GAP) < LEVEL
        found[key] = paired_difference(values, margin)
    by_t = holm({key: each.p for key, each in found.items()})
    by_wilcoxon = holm({key: each.wilcoxon_p for key, each in found.items()})
    return {
        key: {
            **asdict(each),
            "within": each.within,
            "holm_p": by_t[key],
            "verdict": _verdict(CLAIMS[key], each.mean, each.within, by_t[key]),
            "verdict_by_wilcoxon": _verdict(
                CLAIMS[key], each.median, each.within, by_wilcoxon[key]
            ),
            "verdict_by_share": _verdict(CLAIMS[key], each.mean, of_share.get(key), by_t[key]),
        }
        for key, each in found.items()
    }


def _verdict(claim: Claim, centre: float | None, within: bool | None, adjusted: float) -> str:
    """Return the verdict on a claim.

    centre: the mean difference, or the median for Wilcoxon's test.
    """
    if not claim.equality:
        return verdict(centre, adjusted)
    if adjusted < LEVEL:
        return "contradicted"
    return "supported" if within else "undecided"


def without_diverged(found: Published) -> Published:
    """Return the runs that did not diverge."""
    return replace(found, runs=found.runs[~diverged(found.runs)])


def _spoken(row: "pd.Series[Any]") -> str:
    """Return the verdict, and those of other tests where they differ.

    Returns the reason where there is none.
    """
    if not row.verdict:
        return f"none: {row.blank}"
    others = {
        "without diverged runs": row.verdict_without_diverged,
        "by Wilcoxon's test": row.verdict_by_wilcoxon,
        "with the margin's own error": row.verdict_by_share,
    }
    parts = [f"{how}: {other}" for how, other in others.items() if other != row.verdict]
    if row.left_out:
        parts.append(f"pairs left out, as a run has no finite loss: {row.left_out}")
    return "; ".join([row.verdict, *parts])


def claims_section(table: pd.DataFrame, about: str) -> Section:
    """Return the claims as a table of the report."""
    digits = table.unit.map({"points": 3, "nats": 4})

    def number(column: str) -> list[str]:
        pairs = zip(table[column], digits, strict=True)
        return ["" if pd.isna(value) else f"{value:+.{many}f}" for value, many in pairs]

    bounds = zip(number("mean"), number("low"), number("high"), strict=True)
    within = table.within.map({True: "yes", False: "no"})
    size = table.margin.map(blank_or("±{:.2g}: ")) + within.astype(object).fillna("")
    readable = pd.DataFrame(
        {
            "Claim": table.claim + ": " + table.text,
            "Verdict": [_spoken(row) for _, row in table.iterrows()],
            "Difference": [f"{mean} [{low}, {high}]" if mean else "" for mean, low, high in bounds],
            "n": table.n,
            "p (Holm)": table.holm_p.map("{:.2g}".format),
            "Within (TOST)": size,
            "Outcome": table.quantity + " (" + table.unit + ")",
        }
    )
    return Section("verdicts", "Verdicts", CAPTION, about, table, readable)


def verdicts_figure(table: pd.DataFrame, readable: pd.DataFrame) -> Figure:
    """Draw the difference of each claim with its 95 % interval, and its verdict in words.

    There is a panel, with an axis of its own, for each quantity, since they have different units and
    sizes. table, readable: as in claims_section.
    """
    rows = table.join(readable[["Claim", "Difference", "Verdict"]])
    panels = {head: rows[rows.quantity.str.startswith(head)] for head in PANELS}
    figure = Figure(figsize=(9, 1.6 + 0.95 * len(rows)), layout="constrained")
    grid = figure.subplots(len(panels), 1, height_ratios=[len(each) for each in panels.values()])
    for axes, (head, claims) in zip(grid, panels.items(), strict=True):
        axes.use_sticky_edges = False  # so that both ends of a margin can be seen
        for place, (_, row) in enumerate(claims.iterrows()):
            _draw_claim(axes, place, row)
        axes.axvline(0, color="0.3", lw=1, zorder=1)
        axes.set(ylim=(len(claims) - 0.5, -0.5), yticks=range(len(claims)), xlabel=PANELS[head])
        axes.set_yticklabels([_claimed(row) for _, row in claims.iterrows()])
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        if claims["mean"].isna().all():
            axes.set(xlim=(-1, 1), xticks=[0])  # there is no scale yet
    figure.suptitle(
        "The primary outcome of each claim: mean difference over n pairs with its 95 % interval,\n"
        "on these test images. Grey: the margin. Verdicts after Holm's adjustment over all seven.",
        fontsize=11,
    )
    return figure


def _claimed(row: "pd.Series[Any]") -> str:
    """Return a claim, what its outcome subtracts, and what is claimed of the difference."""
    value = "0" if CLAIMS[row.claim].equality else "above 0"
    difference = row.quantity.partition(", ")[2]
    return f"{textwrap.fill(row.Claim, 34)}\n{difference}, claimed: {value}"


def _draw_claim(axes: Axes, place: int, row: "pd.Series[Any]") -> None:
    """Draw one row of the figure; without a complete experiment it has words alone."""
    words = [textwrap.fill(row.Verdict.replace("none:", "no verdict:"), 32)]
    if not pd.isna(row["mean"]):
        if not pd.isna(row.margin):
            band = {"left": -row.margin, "height": 0.6, "color": "0.85", "zorder": 0}
            axes.barh(place, 2 * row.margin, **band)
            words.append(f"{'' if row.within else 'not shown '}within ±{row.margin:.2g} (TOST)")
        if not pd.isna(row.low):
            axes.plot([row.low, row.high], [place, place], color="black", lw=1.6)
        axes.plot([row["mean"]], [place], MARKS[row.verdict], color="black", ms=7)
        words = [*words[:1], f"{row.Difference}, n = {row.n}", *words[1:]]
    elif row.verdict:
        words.append(textwrap.fill(row.blank, 32))
    axes.text(1.03, place, "\n".join(words), transform=axes.get_yaxis_transform(), va="center")
