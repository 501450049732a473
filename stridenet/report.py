"""Everything in outputs/report/, from the runs of one experiment."""

import textwrap
from pathlib import Path

import pandas as pd

from stridenet import figures, tables
from stridenet.config import Report, experiment_identity
from stridenet.elimination import plan_elimination
from stridenet.networks import build_strided
from stridenet.runs import finished_runs, tidy, write

WIDTH = 80  # of a terminal
OPTIONAL = {"accuracy_by_epoch", "accuracy_of_seeds", "copied_weights", "training_time"}


def write_report(config: Report) -> list[str]:
    """Write tables, figures and runs.csv into outputs/report; returns what to print."""
    folder = Path(config.outputs) / "report"
    results = finished_runs(config)
    runs = tidy(results)
    height, width = config.data.image_size
    input_size = (1, height, width)
    plan = plan_elimination(build_strided(config.model, input_size), input_size)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "runs.csv", runs.to_csv(index=False).encode())
    about = _about(config, runs)

    table1 = tables.table1(runs, plan, config.data.name)
    readable = tables.for_readers(table1)
    caption = (
        "Test accuracy and training time, mean ± standard deviation over n seeds, beside the paper's "
        f"one run. Seconds are those of the training steps. {about}"
    )
    tables.save(table1, readable, folder / "table1", caption)
    texts = [_printed(f"Table 1: {caption}", readable.drop(columns=["Input", "Layers"]))]

    table2 = tables.table2(plan)
    caption = "Feature maps, channels x height x width."
    tables.save(table2, table2, folder / "table2", caption)
    texts.append(_printed(f"Table 2: {caption}", table2))

    copied = tables.copied_weights(runs)
    if len(copied):
        caption = (
            "Test images on which the unit-stride network with the strided one's weights predicts the "
            f"same class, at the least over n seeds, and the largest difference of a score. {about}"
        )
        readable = copied.assign(largest_difference=copied.largest_difference.map("{:.1e}".format))
        tables.save(copied, readable, folder / "copied_weights", caption)
        texts.append(_printed(f"Copied weights: {caption}", readable))

    drawn = {"feature_maps": figures.feature_maps(plan)}
    if (runs.weights == "scratch").any():
        drawn["accuracy_by_epoch"] = figures.accuracy_by_epoch(results)
        drawn["accuracy_of_seeds"] = figures.accuracy_of_seeds(runs, table1)
        drawn["training_time"] = figures.training_time(runs)
    for name, figure in drawn.items():
        figures.save(figure, folder / name)
    for name in OPTIONAL - drawn.keys() - ({"copied_weights"} if len(copied) else set()):
        for path in folder.glob(f"{name}.*"):
            path.unlink()  # of an earlier report, of other runs
    return [*texts, f"Tables (csv, md, tex) and figures (png, svg) are in {folder}."]


def _about(config: Report, runs: pd.DataFrame) -> str:
    """Where the numbers come from."""

    def all_of(column: str) -> str:
        return " / ".join(map(str, runs[column].unique()))

    data, recipe = config.data, config.recipe
    length = f"{recipe.steps} steps" if recipe.epochs is None else f"{recipe.epochs} epochs"
    images = "" if data.train_size is None else f" (first {data.train_size} training images)"
    text = (
        f"Experiment {experiment_identity(config)}: data {data.name}{images}, "
        f"activation {config.model.activation}, recipe {recipe.name} ({length}, batches of "
        f"{recipe.batch_size}, rate {recipe.learning_rate:g}). On {all_of('device_name')}, "
        f"{all_of('threads')} thread(s), {all_of('jobs_at_once')} job(s) at once, "
        f"torch {all_of('versions.torch')}."
    )
    commits = runs.git_commit.nunique(dropna=False)
    return (
        text if commits == 1 else f"{text} Warning: the runs are of {commits} versions of the code."
    )


def _printed(caption: str, table: pd.DataFrame) -> str:
    return f"{textwrap.fill(caption, WIDTH)}\n\n{table.to_string(index=False, line_width=WIDTH)}"
