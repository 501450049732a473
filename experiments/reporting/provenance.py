"""Where numbers come from: settings, machine, versions, commits."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from experiments.settings.identity import experiment_identity
from experiments.settings.schema import ReportConfig


def circumstances_of(config: ReportConfig, runs: pd.DataFrame) -> dict[str, Any]:
    """Return what is needed to judge the numbers or to get them again; a list where runs differ."""
    columns = ["device_name", "threads", "jobs_at_once", "git_commit"]
    columns += [name for name in runs if name.startswith("versions.")]
    return {
        "experiment": experiment_identity(config),
        "runs": len(runs),
        "seeds": sorted(map(int, runs.seed.unique())),
        "dates": [runs.date.min(), runs.date.max()],
        **{
            name: [*runs[name].astype(object).where(runs[name].notna(), None).unique()]
            for name in columns
        },
        "model": asdict(config.model),
        "data": asdict(config.data),
        "recipe": asdict(config.recipe),
    }


def about_runs(config: ReportConfig, runs: pd.DataFrame) -> str:
    """Return a paragraph that says where the numbers come from."""
    data, recipe = config.data, config.recipe
    note = f" {recipe.note}" if recipe.note else ""
    length = f"{recipe.steps} steps" if recipe.epochs is None else f"{recipe.epochs} epochs"
    images = "" if data.train_size is None else f" ({data.train_size} training images)"
    text = (
        f"Experiment {experiment_identity(config)}: data {data.name}{images}, "
        f"activation {config.model.activation}, recipe {recipe.name} ({length}, batches of "
        f"{recipe.batch_size}, rate {_rates(recipe.learning_rate)}, momentum {recipe.momentum:g}). "
        f"Run {machine_of(runs)}.{note}"
    )
    commits = {part for commit in runs.git_commit for part in str(commit).split(" then ")}
    if len(commits) == 1:
        return text
    return f"{text} Warning: the runs are of {len(commits)} versions of the code."


def _rates(given: float | dict[str, float]) -> str:
    if not isinstance(given, dict):
        return f"{given:g}"
    return ", ".join(f"{rate:g} ({name})" for name, rate in given.items())


def machine_of(runs: pd.DataFrame) -> str:
    """Return on which machine the runs were done, with all values where runs differ."""

    def all_of(column: str) -> str:
        return " / ".join(map(str, runs[column].unique()))

    at_once = [
        "an unknown number of" if pd.isna(jobs) else f"{jobs:g}"
        for jobs in runs.jobs_at_once.unique()
    ]
    return (
        f"on {all_of('device_name')}, {all_of('threads')} thread(s), "
        f"{' / '.join(at_once)} job(s) at once, torch {all_of('versions.torch')}"
    )
