"""The charts of the page as figures, which stand in their place where scripts are off and in print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
from matplotlib.figure import Figure

from experiments.page.runs import OWN
from experiments.reporting.figures import save_figure
from experiments.runs.published import Published
from experiments.runs.result_keys import Result
from experiments.studies.accuracy import differences_figure
from experiments.studies.table1 import accuracy_by_epoch


@dataclass(frozen=True)
class Static:
    """Holds a figure in place of a chart. alt: what it shows, for a reader who does not see it."""

    path: Path
    alt: str
    caption: str


def pairs_figures(
    judged: pd.DataFrame, found: Mapping[str, Published], folder: Path
) -> list[Static]:
    """Draw the sorted differences of each source that has an interval.

    judged: a row for each source, with the fields of PairedDifference. found: the runs by source.
    """
    statics = []
    for _, row in judged.iterrows():
        if pd.isna(row.low):
            continue
        path = folder / f"pairs_{row.source}.svg"
        margin = None if pd.isna(row.margin) else float(row.margin)
        figure = differences_figure(found[row.source], margin)
        save_figure(figure, path.with_suffix(""))
        alt = (
            f"The differences of {row.n} pairs in ascending order: {row.ahead} are above zero; their "
            f"mean is {row['mean']:+.3f} points, its 95 % interval {row.low:+.3f} to {row.high:+.3f}."
        )
        statics.append(Static(path, alt, f"Sorted differences, {row.source}."))
    return statics


def curves_figures(
    results: Sequence[Mapping[str, Any]], published: Published | None, report: Path, folder: Path
) -> list[Static]:
    """Return the report's own figure of the curves, and draw that of the published runs."""
    statics = []
    alt = "Validation accuracy after each epoch: a thin line for each run, a thick one for their mean."
    own = report / "accuracy_by_epoch.svg"
    if results and own.is_file():
        statics.append(Static(own, alt, f"Validation accuracy by epoch, {OWN}."))
    if published is not None:
        path = folder / "curves_table1.svg"
        save_figure(_curves(published), path.with_suffix(""))
        statics.append(Static(path, alt, "Validation accuracy by epoch, table1."))
    return statics


def _curves(found: Published) -> Figure:
    """Draw published curves as the report draws those of its results."""
    images = found.runs.set_index("run").validation_images.astype(float)
    right = found.epochs.validation_correct.astype(float) / found.epochs.run.map(images)
    epochs = found.epochs.assign(validation_accuracy=right)[["run", "epoch", "validation_accuracy"]]
    of_runs = {run: rows.to_dict("records") for run, rows in epochs.groupby("run")}
    kinds = ["run", "network", "variant", "weights", "seed"]
    results = [{**row, "epochs": of_runs.get(row["run"], [])}
               for row in found.runs[kinds].to_dict("records")]  # fmt: skip
    return accuracy_by_epoch(cast("Sequence[Result]", results))
