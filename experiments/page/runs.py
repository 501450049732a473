"""The runs of the page: a row each with its command, and the points of its curves."""

import contextlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.runs.published import Published
from experiments.runs.results import arms
from experiments.studies.rates import diverged
from stridenet.errors import InputError
from stridenet.files import read

OWN = "yours"  # the source of runs in outputs/runs; others have their experiment's name
ARMS = {  # conf/arm/NAME.yaml, by what is in the runs
    "strided": "strided",
    "unit_stride": "free",
    "unit_stride tied": "tied",
    "unit_stride masked": "masked",
    "unit_stride masked by_copies": "masked_by_copies",
    "unit_stride by_copies": "free_by_copies",
    "unit_stride by_effective": "free_effective",
}
OF_AN_ARM = ("model.eliminate_stride=", "model.max_pooling=", "recipe.rate_scaling=", "recipe.fan_in=",
             "sharing=", "arm=", "weights=", "seed=")  # fmt: skip
COLUMNS = (
    "source", "run", "network", "weights", "seed", "learning_rate", "accuracy_percent",
    "diverged", "cpu_seconds", "wall_seconds", "jobs_at_once", "device_name", "git_commit", "date",
    "command",
)  # fmt: skip
OF_RUN = ("run", "network", "seed")
POINTS = ("epoch", "training_loss", "validation_loss", "validation_percent")


def own_runs(results: Sequence[Mapping[str, Any]], overrides: Sequence[str]) -> pd.DataFrame:
    """Return a row for each of the report's runs. overrides: those of the report's command line."""
    rows = []
    if not results:
        return pd.DataFrame(columns=[*COLUMNS])
    for result, arm in zip(results, arms(pd.DataFrame(results)), strict=True):
        rows.append(
            {
                "source": OWN,
                "network": arm,
                "accuracy_percent": 100 * result["test_correct"] / result["test_images"],
                "cpu_seconds": result["training_cpu_seconds"],
                "wall_seconds": result["training_wall_seconds"],
                "jobs_at_once": result.get("jobs_at_once"),
                "command": own_command(arm, result["weights"], result["seed"], overrides),
                **{key: result.get(key) for key in ("run", "weights", "seed", "learning_rate")},
                **{
                    key: result.get(key)
                    for key in ("diverged", "device_name", "git_commit", "date")
                },
            }
        )
    return pd.DataFrame(rows, columns=[*COLUMNS])


def own_command(arm: str, weights: str, seed: int, overrides: Sequence[str]) -> str:
    """Return the command that does a run of the report again.

    It has the report's own settings of model, data and recipe, and so the same experiment. What the
    report was told of one arm or another is the row's instead.
    """
    given = [each for each in overrides if not each.startswith(("reference=", "hydra"))]
    kept = [each for each in given if not each.lstrip("+").startswith(OF_AN_ARM)]
    by_file = kept == given and not any(each.startswith("model=") for each in kept)
    if arm == "pooling" and by_file:
        chosen = ["model=pooling"]
    elif arm in ARMS and by_file:
        chosen = [f"arm={ARMS[arm]}"]
    else:  # in full, where a file of conf/arm does not say it, or would choose another model
        chosen = _in_full(arm)
    # Which file it was, a result does not say.
    start = {"scratch": [], "file": ["weights=FILE"]}.get(weights, [f"weights={weights}"])
    return shlex.join(["python", "-m", "experiments.train", *kept, *chosen, *start, f"seed={seed}"])


def _in_full(arm: str) -> list[str]:
    network, *treated = arm.split()
    settings = {
        "model.eliminate_stride": str(network == "unit_stride").lower(),
        "model.max_pooling": str(network == "pooling").lower(),
    }
    for part in treated:
        if part.startswith("by_"):
            settings["recipe.rate_scaling"] = part.removeprefix("by_")
        elif part.startswith("fan_in="):
            settings["recipe.fan_in"] = part.removeprefix("fan_in=")
        else:
            settings["sharing"] = part
    return [f"{key}={value}" for key, value in settings.items()]


def published_runs(
    published: Mapping[str, Published], overrides: Mapping[str, Mapping[str, Sequence[str]]]
) -> pd.DataFrame:
    """Return a row for each published run whose command is known.

    overrides: by experiment and run, the settings in which its sweep's runs differ.
    """
    tables = []
    for name, found in published.items():
        of_runs = overrides.get(name, {})
        runs = found.runs[found.runs.run.isin([*of_runs])]
        if runs.empty:
            continue
        commands = [
            shlex.join(["python", "-m", "experiments.train", f"experiment={name}", "hydra.mode=RUN",
                        *(o for o in of_runs[run] if not o.startswith("experiment="))])
            for run in runs.run
        ]  # fmt: skip
        tables.append(
            runs.assign(
                source=name,
                network=arms(runs),
                accuracy_percent=100 * runs.test_correct / runs.test_images,
                cpu_seconds=runs.training_cpu_seconds,
                wall_seconds=runs.training_wall_seconds,
                diverged=diverged(runs),
                command=commands,
            )[[*COLUMNS]]
        )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*COLUMNS])


def own_epochs(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row for each of the report's runs from scratch and point of its curves."""
    named = zip(results, arms(pd.DataFrame(results)), strict=True)
    rows = [
        {
            "run": result["run"],
            "network": arm,
            "seed": result["seed"],
            **{key: row.get(key) for key in POINTS[:3]},
            "validation_percent": None
            if row.get("validation_accuracy") is None
            else 100 * row["validation_accuracy"],
        }
        for result, arm in named
        if result["weights"] == "scratch"
        for row in result["epochs"]
    ]
    return pd.DataFrame(rows, columns=[*OF_RUN, *POINTS])


def published_epochs(found: Published) -> pd.DataFrame:
    """Return one row for each published run from scratch and point of its curves."""
    scratch = found.runs[found.runs.weights == "scratch"]
    of_runs = scratch.assign(network=arms(scratch))[[*OF_RUN, "validation_images"]]
    epochs = found.epochs.merge(of_runs, on="run")
    percent = 100 * epochs.validation_correct.astype(float) / epochs.validation_images.astype(float)
    return epochs.assign(validation_percent=percent)[[*OF_RUN, *POINTS]]


def unfinished(outputs: Path) -> list[dict[str, str]]:
    """Return the runs' folders that have no result, each with what is known of the reason."""
    found = []
    for folder in sorted((outputs / "runs").glob("*/")):
        if (folder / "result.json").exists():
            continue
        reason = "It has been begun, and is not finished."
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, InputError):
            reason = " ".join(str(json.loads(read(folder / "failure.json"))["error"]).split())
        found.append({"run": folder.name, "reason": reason})
    return found
