"""Which recipes bring the strided network to the paper's accuracy: runs of experiment=calibrate."""

import pandas as pd
from scipy import stats

from stridenet.comparison import CONFIDENCE
from stridenet.config import Experiment, InputError, Recipe, experiment_identity
from stridenet.runs import all_results
from stridenet.tables import PAPER

SEEDS = range(1000, 1010)  # of no published result
PAPER_PERCENT = float(PAPER.paper_accuracy_percent[0])  # of the strided network


def calibration(experiment: Experiment) -> pd.DataFrame:
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


def _belongs(result: dict, experiment: Experiment) -> bool:
    """Whether it is a calibration run of this network and data, under whatever recipe."""
    if result["network"] != "strided" or result["weights"] != "scratch":
        return False
    try:
        recipe = Recipe(**result["config"]["recipe"])
    except TypeError:  # of another version of the code
        return False
    same = Experiment(experiment.model, experiment.data, recipe)
    return result["seed"] in SEEDS and result["experiment"] == experiment_identity(same)
