"""Which recipes bring the strided network to the paper's accuracy: runs of experiment=calibrate."""

from pathlib import Path

import pandas as pd
from scipy import stats

from experiments.reporting.formats import blank_or, mean_and_deviation
from experiments.reporting.published import PAPER_PERCENT
from experiments.reporting.section import Section
from experiments.reporting.statistics import CONFIDENCE
from experiments.runs.results import all_results
from experiments.settings.identity import experiment_identity
from experiments.settings.schema import Calibration, Experiment, Recipe
from stridenet.errors import InputError

SEEDS = range(1000, 1010)  # of no published result


def calibration(experiment: Calibration | Experiment) -> pd.DataFrame:
    """Test accuracy of the strided network under every recipe tried, the nearest to 98.17 % first.

    Every epoch of a run is a recipe of its own: to stop there. A row has those of the recipe's settings
    that differ, n seeds, mean and deviation of the accuracy in percent, the 95 % interval of the mean
    (Student's), whether 98.17 lies in it, and the mean seconds of training. Raises InputError if there
    are no such runs.
    """
    results = [result for result in all_results(experiment) if _belongs(result, experiment)]
    if not any(len(result["epochs"]) > 1 for result in results):
        raise InputError(
            f"no calibration run is done in outputs={experiment.outputs}; first run "
            "`python -m experiments.train experiment=calibrate`"
        )
    others = ("name", "note", "epochs", "steps", "fan_in", "rate_by_copies")  # the last of twins
    settings = [key for key in Recipe.__annotations__ if key not in others]
    epochs = pd.json_normalize(
        results,
        "epochs",
        ["run", "seed", "training_cpu_seconds", *(["config", "recipe", key] for key in settings)],
    ).rename(columns=lambda name: name.removeprefix("config.recipe."))
    epochs = epochs[epochs.epoch > 0]
    last = epochs.groupby("run").epoch.transform("max")
    epochs["seconds"] = epochs.training_cpu_seconds * epochs.epoch / last
    # Runs that differ in their length alone have their first epochs in common.
    epochs = epochs.drop_duplicates(["seed", *settings, "epoch"])
    epochs["percent"] = 100 * epochs.test_accuracy
    differing = [key for key in settings if len(epochs[key].unique()) > 1]
    table = epochs.groupby([*differing, "epoch"], as_index=False).agg(
        n=("seed", "nunique"),
        accuracy_percent_mean=("percent", "mean"),
        accuracy_percent_std=("percent", "std"),
        training_cpu_seconds_mean=("seconds", "mean"),
    )
    half = stats.t.ppf((1 + CONFIDENCE) / 2, table.n - 1) * table.accuracy_percent_std
    half /= table.n**0.5
    table["low"] = table.accuracy_percent_mean - half
    table["high"] = table.accuracy_percent_mean + half
    table["matches"] = (table.low <= PAPER_PERCENT) & (table.high >= PAPER_PERCENT)
    distance = (table.accuracy_percent_mean - PAPER_PERCENT).abs()
    return table.iloc[distance.argsort()].reset_index(drop=True)


def _belongs(result: dict, experiment: Calibration | Experiment) -> bool:
    """Whether it is a calibration run of this network and data, under whatever recipe."""
    if result["network"] != "strided" or result["weights"] != "scratch":
        return False
    try:
        recipe = Recipe(**result["config"]["recipe"])
    except TypeError:  # of another version of the code
        return False
    same = Experiment(experiment.model, experiment.data, recipe)
    return result["seed"] in SEEDS and result["experiment"] == experiment_identity(same)


def calibration_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Settings, accuracy and interval, and a star for the recipes whose interval has the paper's."""
    settings = table.loc[:, :"epoch"].rename(columns={"learning_rate": "rate"})
    settings = settings.map(lambda value: f"{value:g}" if isinstance(value, float) else value)
    return settings.assign(
        n=table.n,
        **{
            "Accuracy %": mean_and_deviation(table, "accuracy_percent", 2),
            "95 % interval": table.low.map(blank_or("{:.2f}–"))
            + table.high.map(blank_or("{:.2f}")),
            "matches": table.matches.map({True: "*", False: ""}),
            "CPU s a run": table.training_cpu_seconds_mean.map("{:.0f}".format),
        },
    )


def write_calibration(config: Calibration) -> list[str]:
    """Write the table of experiment=calibrate into outputs/report; returns what to print."""
    table = calibration(config)
    folder = Path(config.outputs) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    caption = (
        f"Test accuracy of the strided network alone, seeds {SEEDS[0]} to {SEEDS[-1]}, for each recipe "
        f"tried, the nearest to the paper's {PAPER_PERCENT} % first; * where that lies in the 95 % "
        "interval of the mean. Recipes are thus chosen by their accuracy on the test images."
    )
    readable = calibration_for_readers(table)
    section = Section("calibration", "Calibration", caption, "", table, readable)
    return [section.save(folder)]
