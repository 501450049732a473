"""The step account of docs/protocol.md beside what experiment=sharing measured: losses, and ρ.

The account says by how much a layer's output moves in a step of a twin, relative to the strided
network's: (1/copies) × (fan-in of the twin's filter / of the strided filter), times the number by which
the arm multiplies its rates. ρ is ‖gradient of the twin's filter‖² / ‖its sum over copies‖².
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting.formats import blank_or, mean_and_deviation, seeds_of
from experiments.reporting.section import Section
from experiments.reporting.statistics import LEVEL, paired_difference, verdict
from experiments.reporting.style import colour_of
from experiments.runs.networks import build_strided, twin_of
from experiments.runs.published import Published
from experiments.runs.results import arms
from experiments.runs.starting import fan_in_ratio, rate_scales
from experiments.settings.schema import DataConfig, LayerConfig, ModelConfig
from experiments.studies.claims import EFFECTIVE, FREE, MASKED_BY_COPIES, SHARE_OF_GAP
from experiments.studies.sharing import ARMS, STARTS, by_run, differences
from stridenet.errors import InputError
from stridenet.sharing import layer_name, origins

FIRST = "loss of the first epoch"
CLAIMED = {ARMS[FREE]: "C2", ARMS[MASKED_BY_COPIES]: "C6", ARMS[EFFECTIVE]: "C7"}
ANSWERS = {"supported": "yes", "contradicted": "no", "undecided": "undecided"}
STEPS = (0, 100, 800)  # at which the table shows ρ, and at the last one where it was seen
TICKS = (0.03, 0.1, 0.3, 1, 3, 10)
STEPS_CAPTION = (
    "What docs/protocol.md predicts, and mean training loss of the first epoch ± standard "
    "deviation over n seeds, every arm at the strided network's rate ({seeds}). Step: of {layers}, "
    "relative to the strided network's, as the account predicts it. Seen: ρ times the arm's factor "
    "on its rates, the median over seeds and steps: by so much a step of that layer lowers the "
    "loss, to first order, relative to a strided step along the sum over copies. Difference: of the "
    "loss from the strided network of the same seed and start, in nats, with its 95 % interval; p "
    "of the paired t-test, not adjusted. Holds, from scratch: whether the loss is the same (p of at "
    "least 0.05, and within ±{margin:.2g}, TOST), larger where all predicted steps are smaller, or "
    "smaller where they are larger; C2, C6 and C7 are the verdicts on these claims, the others are "
    "descriptive. Apart: the largest difference of the loss on validation images before the first "
    "step."
)
RHO_CAPTION = (
    "ρ = ‖gradient of the twin's filter‖² / ‖its sum over copies‖², from scratch, by layer and "
    "step: median (quartiles) over {seeds}. The lower bound is 1/copies ({bounds}), where all "
    "copies have one gradient."
)


def factors(about: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row for each arm of a network and filter that the twin changes.

    Columns: arm, layer, copies, scale (by which the arm multiplies the layer's rate), and step, which
    the account predicts, relative to the strided network's.

    about: of published runs. Raises InputError where it does not say which network it is.
    """
    if not about.get("model"):
        raise InputError("about.json of experiment=sharing is missing or has no model; restore it")
    layers = {name: LayerConfig(**layer) for name, layer in about["model"]["layers"].items()}
    model = ModelConfig(**{**about["model"], "layers": layers})
    size = DataConfig(**about["data"]).input_size
    twin = twin_of(build_strided(model, size), size)
    found = origins(twin)
    rows = []
    for key, arm in ARMS.items():
        network, *treated = key.split()
        sharing = next((each for each in treated if each in ("tied", "masked")), "free")
        scaling = next((each[3:] for each in treated if each.startswith("by_")), "none")
        scales = rate_scales(twin, found, scaling, sharing)
        for name, origin in found.items():
            if len(origin.size) < 2 or origin.copied:
                continue
            row = {"arm": arm, "layer": layer_name(name), "copies": origin.copies}
            # Strided and tied networks have one parameter for all copies.
            alone = network != "unit_stride" or sharing == "tied"
            scale = 1.0 if alone else scales.get(name, 1.0)
            step = 1.0 if alone else scale / origin.copies * fan_in_ratio(origin, sharing)
            rows.append({**row, "scale": scale, "step": step})
    return pd.DataFrame(rows)


def expected(steps: "pd.Series[float]") -> str:
    """Return what the account predicts of an arm whose layers take these steps."""
    if all(math.isclose(step, 1) for step in steps):
        return "equal"
    apart = [step for step in steps if not math.isclose(step, 1)]
    if min(apart) < 1 < max(apart):
        return "mixed"
    return "smaller steps" if max(apart) < 1 else "larger steps"


def rho_table(found: Published) -> pd.DataFrame:
    """Return one row for each start, arm, layer and step: n, and ρ as median, low and high quartile."""
    runs = found.runs.assign(arm=arms(found.runs).map(ARMS), start=found.runs.weights.map(STARTS))
    rho = found.rho.merge(runs[["run", "arm", "start", "seed"]], on="run")
    rho["layer"] = rho.layer.map(layer_name)
    groups = rho.groupby(["start", "arm", "layer", "step"], sort=False).rho
    table = groups.agg(
        n="count",
        rho_median="median",
        rho_low=lambda values: values.quantile(0.25),
        rho_high=lambda values: values.quantile(0.75),
    ).reset_index()
    orders = {"start": [*STARTS.values()], "arm": [*ARMS.values()]}
    return table.sort_values(
        ["start", "arm", "layer", "step"],
        key=lambda column: (
            column.map(orders[str(column.name)].index) if column.name in orders else column
        ),
        ignore_index=True,
    )


def steps_table(found: Published, claims: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each start and arm: the prediction, and the loss of the first epoch.

    claims: as claims_table gives them; the arms of C2, C6 and C7 have their verdicts.
    """
    account, runs, rho = factors(found.about), by_run(found), _seen(found)
    steps = account.pivot(index="arm", columns="layer", values="step")
    gap = SHARE_OF_GAP * abs(float(differences(runs, FIRST, "scratch", ARMS[FREE]).mean()))
    verdicts = claims.set_index("claim").verdict
    rows = []
    for (weights, arm), of in runs.groupby(["weights", "arm"], sort=False):
        scratch, predicted = weights == "scratch", expected(steps.loc[arm])
        row: dict[str, Any] = {"start": STARTS[weights], "arm": arm}
        row |= {f"step_{layer}": step for layer, step in steps.loc[arm].items()}
        row |= {f"seen_{layer}": rho.get((weights, arm, layer)) for layer in steps.columns}
        row |= {"loss_mean": of[FIRST].mean(), "loss_std": of[FIRST].std(), "expected": predicted}
        alone = arm == ARMS["strided"]  # which is compared with nothing
        margin = gap if scratch and predicted == "equal" and not alone else None
        values = [] if alone else differences(runs, FIRST, weights, arm)
        difference = paired_difference(values, margin)
        row |= {**asdict(difference), "n": len(of), "within": difference.within}
        row |= {"apart": _apart(found, weights, arm), "claim": CLAIMED.get(arm, "") * scratch}
        row["holds"] = ""
        if scratch and difference.p is not None:
            row["holds"] = ANSWERS[verdicts[row["claim"]] if row["claim"] else _judged(row)]
        rows.append(row)
    return pd.DataFrame(rows)


def _judged(row: Mapping[str, Any]) -> str:
    """Return the verdict on what the account predicts, without an adjustment of p."""
    if row["expected"] == "equal":
        if row["p"] < LEVEL:
            return "contradicted"
        return "supported" if row["within"] else "undecided"
    sign = {"smaller steps": 1, "larger steps": -1}.get(row["expected"])
    return "undecided" if sign is None else verdict(sign * row["mean"], row["p"])


def _seen(found: Published) -> dict[tuple[str, str, str], float]:
    """Return the median of ρ times the factor on the rate, by weights, arm and layer."""
    runs = found.runs.assign(arm=arms(found.runs).map(ARMS))
    rho = found.rho.assign(layer=found.rho.layer.map(layer_name))
    rho = rho.merge(runs[["run", "arm", "weights"]], on="run")
    rho = rho.merge(factors(found.about)[["arm", "layer", "scale"]], on=["arm", "layer"])
    medians = (
        rho.assign(seen=rho.rho * rho.scale).groupby(["weights", "arm", "layer"]).seen.median()
    )
    return {key: float(value) for key, value in medians.items()}


def _apart(found: Published, weights: str, arm: str) -> float | None:
    """Return how far an arm's loss on validation images is from the strided one's before training."""
    first = found.epochs[found.epochs.epoch == 0].set_index("run").validation_loss
    runs = found.runs[found.runs.weights == weights]
    wide = runs.assign(arm=arms(runs).map(ARMS), loss=runs.run.map(first).astype(float))
    wide = wide.pivot(index="seed", columns="arm", values="loss")
    apart = (wide[arm] - wide["strided"]).abs().max() if "strided" in wide else None
    return None if apart is None or pd.isna(apart) else float(apart)


def numbers(row: "pd.Series[Any]", prefix: str) -> str:
    """Return the numbers of an arm's layers in one entry; blank where there are none."""
    values = [value for name, value in row.items() if str(name).startswith(prefix)]
    return "" if any(pd.isna(value) for value in values) else ", ".join(f"{v:.3g}" for v in values)


def steps_section(found: Published, claims: pd.DataFrame) -> Section:
    """Return the step account as a table of the report."""
    table = steps_table(found, claims)
    bounds = table.low.map(blank_or(" [{:+.3f}, ")) + table.high.map(blank_or("{:+.3f}]"))
    readable = pd.DataFrame(
        {
            "Arm": table.arm,
            "Start": table.start,
            "n": table.n,
            "Step": [numbers(row, "step_") for _, row in table.iterrows()],
            "Seen": [numbers(row, "seen_") for _, row in table.iterrows()],
            "First epoch": mean_and_deviation(table, "loss", 3),
            "Difference": table["mean"].map(blank_or("{:+.3f}")) + bounds,
            "p": table.p.map(blank_or("{:.2g}")),
            "Predicted": table.expected.where(table.arm != ARMS["strided"], ""),
            "Holds": table.holds + table.claim.map(lambda claim: f" ({claim})" if claim else ""),
            "Apart": table.apart.map(blank_or("{:.0e}")),
        }
    )
    layers = [name.removeprefix("step_") for name in table if str(name).startswith("step_")]
    margin = table.margin.dropna().astype(float)
    caption = STEPS_CAPTION.format(
        seeds=seeds_of(found.runs),
        layers=", ".join(layers),
        margin=margin.max() if len(margin) else math.nan,
    )
    wide = ("n", "Seen", "p", "Apart")
    return Section("sharing_steps", "The step account", caption, "", table, readable, wide)


def _copies(found: Published) -> dict[str, int]:
    """Return the copies of a strided weight in each layer."""
    copies = factors(found.about).drop_duplicates("layer").set_index("layer").copies
    return {str(layer): int(many) for layer, many in copies.items()}


def rho_section(found: Published) -> Section:
    """Return ρ at some steps as a table of the report; all steps and starts are in its csv file."""
    table, copies = rho_table(found), _copies(found)
    rows = table[(table.start == STARTS["scratch"]) & table.step.isin([*STEPS, table.step.max()])]
    entry = [f"{r.rho_median:.2g} ({r.rho_low:.2g}–{r.rho_high:.2g})" for r in rows.itertuples()]
    wide = rows.assign(entry=entry).pivot(index=["arm", "step"], columns="layer", values="entry")
    wide = wide.reindex(rows.arm.unique(), level="arm").reset_index().rename_axis(columns=None)
    at_bound = {layer for layer, of in table.groupby("layer")
                if np.allclose(of[["rho_low", "rho_high"]], 1 / copies[str(layer)])}  # fmt: skip
    readable = wide.rename(columns={"arm": "Arm", "step": "Step"}).drop(columns=[*at_bound])
    bounds = ", ".join(
        f"{layer} 1/{many}" for layer, many in copies.items() if layer not in at_bound
    )
    caption = RHO_CAPTION.format(seeds=seeds_of(found.runs), bounds=bounds)
    if at_bound:
        caption += f" Left out: {', '.join(sorted(at_bound))}, where ρ is at that bound throughout."
    return Section("rho", "Do the copies agree", caption, "", table, readable.fillna(""))


def rho_figure(found: Published, start: str) -> Figure:
    """Draw ρ against the step, a panel a layer: median and quartiles over seeds, and the lower bound.

    start: one of STARTS' values.
    """
    table, copies = rho_table(found), _copies(found)
    table = table[table.start == start]
    layers = [*dict.fromkeys(table.layer)]
    high = -(-len(layers) // 2)
    figure = Figure(figsize=(10, 0.8 + 3.2 * high), layout="constrained")
    panels = figure.subplots(high, 2, squeeze=False, sharex=True, sharey=True)
    lowest = min([table.rho_low.min(), *(1 / copies[layer] for layer in layers)])
    panels[0, 0].set(yscale="log", ylim=(lowest / 1.5, table.rho_high.max() * 1.5))
    panels[0, 0].set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    panels[0, 0].minorticks_off()
    panels[0, 0].set_ylim(lowest / 1.5, table.rho_high.max() * 1.5)
    for axes, layer in zip(panels.flat, layers, strict=False):
        _draw_rho(axes, table[table.layer == layer], copies[layer])
        axes.set_title(f"{layer}: {copies[layer]} {'copies' if copies[layer] > 1 else 'copy'}")
    for axes in [*panels.flat][len(layers) :]:
        axes.set_axis_off()
    figure.supxlabel("step")
    figure.supylabel("ρ")
    figure.suptitle(f"ρ {start}, {seeds_of(found.runs)}: median, and quartiles as bands")
    return figure


def _draw_rho(axes: Axes, rows: pd.DataFrame, copies: int) -> None:
    """Draw the curves of one layer with their names, and the lower bound."""
    axes.axhline(1 / copies, color="0.2", lw=1.2, ls="--", zorder=1)
    bound = "1" if copies == 1 else f"1/{copies}"
    axes.text(
        0.02, 1 / copies, f"{bound}: the lower bound", ha="left", va="bottom", fontsize=9,
        transform=axes.get_yaxis_transform(),
    )  # fmt: skip
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    ends = {}
    for name, arm in ARMS.items():
        of = rows[rows.arm == arm]
        if len(of):
            axes.plot(of.step, of.rho_median, color=colour_of(name), lw=1.6)
            axes.fill_between(
                of.step, of.rho_low, of.rho_high, color=colour_of(name), alpha=0.2, lw=0
            )
            ends[name] = float(of.rho_median.iloc[-1])
    if not np.allclose(rows.rho_median, 1 / copies):
        _label(axes, ends)
    else:
        axes.text(1.01, 1 / copies, "all twins", va="center", fontsize=9,
                  transform=axes.get_yaxis_transform())  # fmt: skip


def _label(axes: Axes, ends: Mapping[str, float]) -> None:
    """Write each arm's name in its colour beside the end of its line, none over another."""
    low, high = (math.log(bound) for bound in axes.get_ylim())
    gap, names = (high - low) / 17, sorted(ends, key=lambda name: ends[name])
    places: list[float] = []
    for number, name in enumerate(names):
        most = high - gap * (len(names) - 1 - number)  # so that the others fit above it
        least = places[-1] + gap if places else low
        places.append(max(least, min(math.log(ends[name]), most)))
    for name, place in zip(names, places, strict=True):
        axes.text(
            1.01, math.exp(place), ARMS[name], color=colour_of(name), va="center", fontsize=9,
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
