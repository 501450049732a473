"""What experiment=sharing found: the paper's claims about training, judged by paired differences."""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from stridenet.comparison import interval, verdict
from stridenet.runs import arms

ARMS = {  # as they are called here, by what they are in the runs
    "strided": "strided",
    "unit_stride tied": "tied",
    "unit_stride masked": "masked",
    "unit_stride": "free",
    "unit_stride masked rate_by_copies": "masked, rate by copies",
    "unit_stride rate_by_copies": "free, rate by copies",
    "pooling": "pooling",
}
STARTS = {"scratch": "from scratch", "fine_tune": "fine-tuned"}
QUANTITIES = {  # of a run: the unit of its differences
    "test accuracy": "points",
    "loss of the first epoch": "nats",
    "loss on training images": "nats",
    "test loss": "nats",
    "test loss − loss on training images": "nats",
    "CPU time of training": "%",
}
TWINS = (("free", "strided"), ("free, rate by copies", "strided"))
PARTS = (("masked", "tied"), ("free", "masked"))  # without equalities; without zeros


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and the quantity of which a pair's first arm should have more."""

    text: str
    quantity: str
    pairs: tuple[tuple[str, str], ...] = TWINS
    starts: tuple[str, ...] = ("scratch", "fine_tune")


CLAIMS = (
    Claim("The twin is more accurate", "test accuracy"),
    Claim("It learns more slowly", "loss of the first epoch"),
    Claim("It takes more time to train", "CPU time of training", TWINS[:1], ("scratch",)),
    Claim("Its capacity ruins the training", "loss on training images"),
    Claim("Sharing parameters helps generalisation", "test loss", (*TWINS, *PARTS)),
    Claim("The gap between test and training is larger", "test loss − loss on training images"),
)


def by_epoch(results: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a run and epoch: arm, weights, seed, epoch, accuracy, losses, and the distance from the
    tied subspace in its two parts, as a share of the norm of all shared parameters."""
    rows = [
        {
            "run": result["run"],
            "arm": ARMS.get(arm),
            "weights": result["weights"],
            "seed": result["seed"],
            "epoch": row["epoch"],
            "test_accuracy": row["test_accuracy"],
            "test_loss": row["test_loss"],
            "training_loss": row["training_loss"],
            **_distance(row.get("distance", {} if arm == "strided" else None)),
        }
        for result, arm in zip(results, arms(pd.DataFrame(results)), strict=True)
        for row in result["epochs"]
    ]
    table = pd.DataFrame(rows)
    return table[table.arm.notna() & table.weights.isin([*STARTS])]


def _distance(layers: dict[str, dict[str, float]] | None) -> dict[str, float]:
    if not layers:  # the strided network is where distance is measured from; pooling has none
        return dict.fromkeys(("zeros", "copies"), math.nan if layers is None else 0.0)
    parts = pd.DataFrame(layers).pow(2).sum(axis=1).pow(0.5)
    return {part: float(parts[part] / parts["norm"]) for part in ("zeros", "copies")}


def by_run(results: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a run: arm, weights, seed, and QUANTITIES, with the distance after the last epoch."""
    epochs = by_epoch(results)
    last = epochs.sort_values("epoch").groupby("run").tail(1).set_index("run")
    first = epochs[epochs.epoch > 0].sort_values("epoch").groupby("run").head(1).set_index("run")
    measured = ["fit_loss", "training_cpu_seconds"]  # which runs of older versions may lack
    of_runs = pd.DataFrame(results).set_index("run").reindex(columns=measured)
    table = last[["arm", "weights", "seed", "zeros", "copies"]].copy()
    table["test accuracy"] = 100 * last.test_accuracy
    table["loss of the first epoch"] = first.training_loss
    table["loss on training images"] = of_runs.fit_loss
    table["test loss"] = last.test_loss
    table["test loss − loss on training images"] = last.test_loss - of_runs.fit_loss
    table["CPU time of training"] = of_runs.training_cpu_seconds
    table = table[table["loss of the first epoch"].notna()]  # trained at all
    order = {arm: place for place, arm in enumerate(ARMS.values())}
    starts = {start: place for place, start in enumerate(STARTS)}
    keys = [table.weights.map(starts), table.arm.map(order), table.seed]
    return table.iloc[np.lexsort([key.to_numpy() for key in reversed(keys)])].reset_index()


def differences(
    runs: pd.DataFrame, quantity: str, weights: str, arm: str, against: str = "strided"
) -> "pd.Series[float]":
    """Of one arm from the other, for each seed that both have; of time, in percent."""
    wide = runs[runs.weights == weights].pivot(index="seed", columns="arm", values=quantity)
    pairs = wide.reindex(columns=[arm, against]).dropna()
    if QUANTITIES[quantity] == "%":
        return 100 * (pairs[arm] / pairs[against] - 1)
    return pairs[arm] - pairs[against]


def claims(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a claim, start and pair of arms: the mean difference, paired by seed, its interval, and
    whether it supports that the first arm has more of the quantity.

    runs: as by_run gives them.
    """
    rows = []
    for claim in CLAIMS:
        for weights, (arm, against) in product(claim.starts, claim.pairs):
            found = interval(differences(runs, claim.quantity, weights, arm, against))
            rows.append(
                {
                    "claim": claim.text,
                    "start": STARTS[weights],
                    "arm": arm,
                    "against": against,
                    "quantity": claim.quantity,
                    "unit": QUANTITIES[claim.quantity],
                    **found,
                    "verdict": verdict(found["low"], found["high"]),
                }
            )
    return pd.DataFrame(rows)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a start and arm: n, mean and deviation of every quantity, and the paired difference of
    accuracy from the strided network with its interval."""
    rows = []
    for (weights, arm), group in runs.groupby(["weights", "arm"], sort=False):
        row: dict[str, Any] = {"start": STARTS[weights], "arm": arm, "n": len(group)}
        for quantity in (*QUANTITIES, "zeros", "copies"):
            row |= {
                f"{quantity}_mean": group[quantity].mean(),
                f"{quantity}_std": group[quantity].std(),
            }
        paired = differences(runs, "test accuracy", weights, arm)
        found = interval(paired if arm != "strided" else paired.iloc[:0])
        row |= {f"difference_{key}": found[key] for key in ("mean", "low", "high")}
        rows.append(row)
    return pd.DataFrame(rows)
