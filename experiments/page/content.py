"""What is on the page, collected: tables of the report, published evidence, and data of the charts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.page.runs import (
    OWN,
    own_epochs,
    own_runs,
    published_epochs,
    published_runs,
    unfinished,
)
from experiments.page.statics import Static, curves_figures, pairs_figures
from experiments.page.tables import PageTable, from_files, from_frame
from experiments.page.verdicts import Verdict, verdicts_of
from experiments.page.wanted import Runs
from experiments.reporting.formats import NETWORKS, printed
from experiments.reporting.published import PAPER, PAPER_DIFFERENCE
from experiments.reporting.section import Section
from experiments.reporting.statistics import PairedDifference, paired_difference
from experiments.runs.networks import build_strided
from experiments.runs.published import Published
from experiments.settings.schema import ReportConfig
from experiments.studies.accuracy import accuracy_section, differences_for_readers
from experiments.studies.claims import (
    FREE,
    STRIDED,
    by_arm,
    claims_section,
    claims_table,
    paired,
    percent_right,
)
from experiments.studies.evidence import missing_runs, progress_table, read_experiments
from experiments.studies.table2 import is_the_papers
from stridenet.elimination import plan_elimination
from stridenet.files import make_folder, read, write

FOLDER = "page"  # beside the page, with the csv of what no table of the report has
MOST_ROWS = 1000  # of the table of runs, and curves
DIFFERENCES = (
    "Test accuracy, Unity Stride − Non-Unity Stride, in points, over n pairs of one seed each, on "
    "these test images: the mean with its 95 % interval (Student's) and the p-value of the paired "
    "t-test, not adjusted; the Hodges–Lehmann estimate with Wilcoxon's p. Ahead: the number of pairs "
    "in which Unity Stride is the more accurate. On new images: a 95 % interval where seeds and images "
    "vary (crossed bootstrap); it needs ten pairs."
)
READY = ("zoo", "survey", "survey_kinds", "benchmark", "conversion", "stems")


@dataclass
class Content:
    """Holds what the template shows. `tables` are by name, and may lack any."""

    verdicts: list[Verdict] = field(default_factory=list)
    caption: str = ""  # of the verdicts
    tables: dict[str, PageTable] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0  # runs that are only in the csv
    undrawn: int = 0  # curves that are only in the csv
    charts: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] | None = None  # about.json of the report
    unfinished: list[dict[str, str]] = field(default_factory=list)
    figures: dict[str, Path] = field(default_factory=dict)
    statics: dict[str, list[Static]] = field(default_factory=dict)  # of charts, by their names


@dataclass(frozen=True)
class Given:
    """Holds what the page is made of.

    results: the report's own runs, as result.json has them. wanted: the runs of the experiments that
    decide claims. overrides: the settings of the report's command line.
    """

    config: ReportConfig
    results: Sequence[Mapping[str, Any]]
    wanted: Mapping[str, Runs | None]
    overrides: Sequence[str]

    @property
    def report(self) -> Path:
        """Return the folder of the report."""
        return Path(self.config.outputs) / "report"

    @property
    def published(self) -> Path | None:
        """Return the folder of published results; None where there is none."""
        folder = self.config.reference
        return Path(folder) if folder and Path(folder).is_dir() else None

    def save(self, name: str, table: pd.DataFrame) -> str:
        """Write the csv of a table, and return its path from the page."""
        make_folder(self.report / FOLDER)
        write(self.report / FOLDER / f"{name}.csv", table.to_csv(index=False).encode())
        return f"{FOLDER}/{name}.csv"


def collect(given: Given) -> Content:
    """Return the content of the page, and write the csv files that it links to."""
    content = Content(unfinished=unfinished(Path(given.config.outputs)))
    published = _published(given)
    _evidence(given, published, content)
    _own_tables(given, content)
    _paper_maps(given, content)
    _ready_tables(given, content)
    _runs(given, published, content)
    _pairs(given, published, content)
    _epochs(given, published, content)
    about = given.report / "about.json"
    if given.results and about.is_file():
        content.made = json.loads(read(about))
    for name in (f"figure_{number}" for number in range(1, 5)):
        folders = [Path(given.config.outputs) / "figures", given.published or given.report]
        found = [path for folder in folders if (path := folder / f"{name}.png").is_file()]
        content.figures |= {name: found[0]} if found else {}
    return content


def _published(given: Given) -> dict[str, Published]:
    """Return the published runs of the wanted experiments, or of Table 1 where none is wanted."""
    if given.published is None:
        return {}
    wanted: dict[str, list[str] | None] = {
        name: None if runs is None else [*runs] for name, runs in given.wanted.items()
    }
    return read_experiments(given.published, wanted or {"table1": None})


def _evidence(given: Given, published: Mapping[str, Published], content: Content) -> None:
    """Add the verdicts, the progress of the experiments, and accuracy in those that are complete."""
    if given.published is None or not given.wanted:
        return
    wanted = {name: None if runs is None else [*runs] for name, runs in given.wanted.items()}
    progress = progress_table(published, wanted)
    missing = missing_runs(progress)
    table = claims_table(published, missing)
    section = claims_section(table, "")
    given.save("verdicts", table)
    content.verdicts, content.caption = verdicts_of(table, published), section.caption
    content.tables["progress"] = _of_section(
        given, Section("progress", "Published runs of the experiments that decide claims",
                       "Runs that are missing are done by `make evidence EXPERIMENT=NAME`; "
                       "`python -m experiments.evidence` says it of all experiments.", "",
                       progress, progress)
    )  # fmt: skip
    complete = {name: found for name, found in published.items() if missing.get(name) == 0}
    for each in accuracy_section(complete, ""):
        content.tables["accuracy"] = _of_section(given, each, "published runs")


def _of_section(given: Given, section: Section, source: str = "") -> PageTable:
    csv = given.save(section.name, section.table)
    caption = f"{section.caption} {section.about}".strip()
    return from_frame(section.name, section.title, caption, section.readable, csv, source)


def _own_tables(given: Given, content: Content) -> None:
    """Add the tables that this report wrote of its own runs."""
    titles = {
        "table1": "Table 1",
        "comparison": "Unity Stride − Non-Unity Stride",
        "copied_weights": "Copied weights",
    }
    for name, title in titles.items() if given.results else ():
        if found := from_files(given.report, name, title, f"{name}.csv", "your runs"):
            content.tables[name] = found
    _first_found(given, content, "degrees_of_freedom", "Weights that training can choose")


def _first_found(given: Given, content: Content, name: str, title: str) -> None:
    """Add a table of this report, or else the published one, whose csv is copied here."""
    if found := from_files(given.report, name, title, f"{name}.csv"):
        content.tables[name] = found
    elif given.published and (given.published / f"{name}.csv").is_file():
        csv = f"{FOLDER}/{name}.csv"
        if found := from_files(given.published, name, title, csv, "published"):
            make_folder(given.report / FOLDER)
            write(given.report / csv, read(given.published / f"{name}.csv"))
            content.tables[name] = found


def _ready_tables(given: Given, content: Content) -> None:
    """Add the tables that other commands wrote: the zoo, the survey, what conversion costs."""
    titles = {
        "zoo": "The zoo", "survey": "The survey", "survey_kinds": "What was not converted, and why",
        "benchmark": "A training step", "conversion": "A conversion", "stems": "First layers",
    }  # fmt: skip
    for name in READY:
        _first_found(given, content, name, titles[name])


def _paper_maps(given: Given, content: Content) -> None:
    """Add Table 2 with the paper's maps below ours, where they are as many."""
    folders = [folder for folder in (given.report, given.published) if folder is not None]
    paths = [path for folder in folders if (path := folder / "table2.csv").is_file()]
    if not paths:
        return
    ours = pd.read_csv(paths[0], dtype=str)
    rows = []
    for row in ours.to_dict("records"):
        network = row.pop("network")
        rows.append({"network": network, "whose": "ours", **row})
        paper = dict(zip(NETWORKS, PAPER.maps, strict=True)).get(network, "").split()
        if len(paper) == len(row) and given.config.data.name == "mnist":
            rows.append(
                {"network": network, "whose": "the paper's", **dict(zip(row, paper, strict=True))}
            )
    table = pd.DataFrame(rows)
    readable = table.assign(network=table.network.map(printed))
    readable = readable.rename(columns={"network": "Network", "whose": "Whose"})
    caption = (
        "Feature maps, channels x height x width. Ours are derived from the strided network and its "
        "theorem; the paper's are those that it prints."
    )
    section = Section("table2", "Table 2", caption, "", table, readable)
    content.tables["table2"] = _of_section(given, section)


def _runs(given: Given, published: Mapping[str, Published], content: Content) -> None:
    """Add a row for each run, the report's own first."""
    known = {name: runs for name, runs in given.wanted.items() if runs is not None}
    parts = [own_runs(given.results, given.overrides), published_runs(published, known)]
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    given.save("runs", table)
    content.left_out = max(len(table) - MOST_ROWS, 0)
    rows = table.head(MOST_ROWS)
    content.runs = rows.assign(printed=rows.network.map(printed)).to_dict("records")


def _pairs(given: Given, published: Mapping[str, Published], content: Content) -> None:
    """Add the differences of pairs, sorted, of the published Table 1 and of the report's runs."""
    sources = {"table1": published["table1"]} if "table1" in published else {}
    if given.results:
        sources[OWN] = Published(pd.DataFrame(given.results), pd.DataFrame(), pd.DataFrame())
    charts, rows, judged = [], [], []
    for source, found_runs in sources.items():
        runs = found_runs.runs
        values = paired(by_arm(runs, percent_right(runs)), FREE, STRIDED)
        ordered = values.round(9).sort_values(kind="stable")
        if ordered.empty:
            continue
        papers = source == "table1" or _is_the_papers(given.config)
        margin = PAPER_DIFFERENCE if papers else None
        found = paired_difference(ordered, margin)
        new = _on_new_images(given, source, found)
        judged.append({"source": source, **asdict(found), "within": found.within, **new})
        rows += [{"source": source, "seed": s, "points": v} for s, v in ordered.items()]
        charts.append(
            {"source": source, "seeds": [*map(int, ordered.index)], "values": [*ordered],
             "mean": found.mean, "low": found.low, "high": found.high, "paper": margin}
        )  # fmt: skip
    if not rows:
        return
    content.charts["pairs"] = charts
    frame = pd.DataFrame(judged)
    content.tables["differences"] = _differences(given, frame)
    content.statics["pairs"] = pairs_figures(frame, sources, given.report / FOLDER)
    table = pd.DataFrame(rows)
    shown = table.points.map("{:+.2f}".format)
    readable = pd.DataFrame(
        {"Runs": table.source, "Seed": table.seed, "Difference (points)": shown}
    )
    caption = (
        "Test accuracy of Unity Stride minus that of Non-Unity Stride with the same seed, sorted."
    )
    section = Section("pairs", "Every pair", caption, "", table, readable)
    content.tables["pairs"] = _of_section(given, section)


def _is_the_papers(config: ReportConfig) -> bool:
    """Tell whether the report is of the paper's networks and data."""
    size = config.data.input_size
    return is_the_papers(
        plan_elimination(build_strided(config.model, size), size), config.data.name
    )


def _on_new_images(given: Given, source: str, found: PairedDifference) -> dict[str, float | None]:
    """Return the interval on new images from the table that has it: its bootstrap takes seconds.

    It is blank where the table is of other pairs.
    """
    blank = dict[str, float | None](new_low=None, new_high=None)
    folder = given.report if source == OWN else given.published
    path = folder and folder / ("comparison.csv" if source == OWN else "differences.csv")
    if found.mean is None or path is None or not path.is_file():
        return blank
    table = pd.read_csv(path)
    if source != OWN:
        table = table[table.experiment == source]
    same = table[(table.n == found.n) & np.isclose(table["mean"].astype(float), found.mean)]
    return dict(same.iloc[0][[*blank]]) if len(same) else blank


def _differences(given: Given, table: pd.DataFrame) -> PageTable:
    readable = differences_for_readers(table)
    readable.insert(0, "Runs", table.source)
    csv = given.save("differences", table)
    return from_frame("differences", "The mean of the pairs", DIFFERENCES, readable, csv)


def _epochs(given: Given, published: Mapping[str, Published], content: Content) -> None:
    """Add the curves by epoch of the report's runs, and of the published Table 1."""
    parts = {}
    if "table1" in published:
        parts["table1"] = published_epochs(published["table1"])
    if given.results:
        parts[OWN] = own_epochs(given.results)
    tables = [part.assign(source=source) for source, part in parts.items() if len(part)]
    if not tables:
        return
    epochs = pd.concat(tables, ignore_index=True)
    given.save("epochs", epochs)
    curves = [
        {"run": run, "source": source, "network": network, "seed": int(seed),
         "points": _points(rows)}
        for (source, run, network, seed), rows in epochs.groupby(
            ["source", "run", "network", "seed"], sort=False)
    ]  # fmt: skip
    content.charts["curves"] = curves[:MOST_ROWS]
    content.undrawn = max(len(curves) - MOST_ROWS, 0)
    content.statics["curves"] = curves_figures(
        given.results, published.get("table1"), given.report, given.report / FOLDER
    )
    content.tables["epochs"] = _means_by_epoch(epochs)


def _points(rows: pd.DataFrame) -> list[list[float | None]]:
    """Return epoch, training loss, validation loss and validation accuracy in percent of each point."""
    values = rows[["epoch", "training_loss", "validation_loss", "validation_percent"]]
    return [
        [None if pd.isna(value) else round(float(value), 5) for value in row]
        for row in values.to_numpy(dtype=float).tolist()
    ]


def _means_by_epoch(epochs: pd.DataFrame) -> PageTable:
    columns = ["training_loss", "validation_loss", "validation_percent"]
    means = epochs.astype(dict.fromkeys(columns, float)).groupby(
        ["source", "network", "epoch"], sort=False, as_index=False
    )  # fmt: skip
    table = means[columns].mean().join(means.size()["size"])
    readable = pd.DataFrame(
        {
            "Runs": table.source,
            "Network": table.network.map(printed),
            "Epoch": table.epoch.map("{:.3g}".format),
            "n": table["size"],
            "Training loss": table.training_loss.map(lambda v: "" if pd.isna(v) else f"{v:.4f}"),
            "Validation loss": table.validation_loss.map(
                lambda v: "" if pd.isna(v) else f"{v:.4f}"
            ),
            "Validation accuracy %": table.validation_percent.map(
                lambda v: "" if pd.isna(v) else f"{v:.2f}"
            ),
        }
    )
    caption = "Means over n runs. Every run's curve is in the csv."
    return from_frame("epochs", "Means by epoch", caption, readable, f"{FOLDER}/epochs.csv")
