"""The state of docs/protocol.md: how far its experiments are, the chosen rates, the verdicts."""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from experiments.reporting.documents import with_tables
from experiments.reporting.figures import save_figure
from experiments.reporting.section import WIDTH, Section, remove_earlier
from experiments.runs.published import Published, read_published
from experiments.settings.schema import EvidenceConfig
from experiments.studies.accuracy import EXPERIMENTS as WITH_TEST_ACCURACY
from experiments.studies.accuracy import accuracy_sections, differences_figure
from experiments.studies.claims import claims_section, claims_table, verdicts_figure
from experiments.studies.rates import (
    lengths_section,
    lengths_table,
    rates_figure,
    rates_section,
    rates_table,
    to_try,
)
from experiments.studies.sharing import STARTS, by_epoch, by_run, sharing_figure, sharing_section
from experiments.studies.steps import rho_figure, rho_section, steps_section
from experiments.studies.train_size import train_size_figure, train_size_sections
from stridenet.files import make_folder, read, write

EXPERIMENTS = (
    "rates", "table1", "swapped", "caffe", "sharing", "train_size_rates", "train_size",
    "fashion_rates", "fashion", "paper_level_steps", "paper_level", "adam_rates", "adam",
)  # fmt: skip
LENGTHS = "paper_level_steps"
OF_COMPLETE = (  # what there is of experiments that are complete alone
    "accuracy", "differences", LENGTHS, "sharing", "sharing_steps", "rho", "rho_fine_tune",
    "train_size", "train_size_differences",
)  # fmt: skip
PROGRESS = (
    "The experiments of docs/protocol.md in their order: how many of their runs are published. A run "
    "that is missing is done by `make evidence EXPERIMENT=NAME`, from wherever the repository is."
)


def write_evidence(config: EvidenceConfig, wanted: Mapping[str, list[str] | None]) -> list[str]:
    """Write the tables and figures of what is published into outputs/report; returns what to print.

    wanted: the names of each experiment's runs; None where its settings have not been chosen yet.
    """
    folder = Path(config.outputs) / "report"
    make_folder(folder)
    published = read_experiments(Path(config.published), wanted)
    progress = progress_table(published, wanted)
    missing = missing_runs(progress)
    remove_earlier(folder, OF_COMPLETE)  # once what is published could be read
    sections = [Section("evidence", "Evidence", PROGRESS, "", progress, progress)]
    for name, each in published.items():
        if name.endswith("rates"):
            sections += _search(name, each, folder, complete=missing[name] == 0)
    complete = {name: found for name, found in published.items() if missing[name] == 0}
    claims = claims_table(published, missing)
    sections += [*_accuracy(complete, folder), *_others(complete, claims, folder)]
    verdicts = claims_section(claims, "")
    texts = [section.save(folder) for section in sections]
    verdicts.save(folder)  # too wide for a terminal, which gets a line or two a claim
    _write_documents(config.documents or [], [*sections, verdicts])
    save_figure(verdicts_figure(verdicts.table, verdicts.readable), folder / "verdicts")
    return [
        *texts,
        textwrap.fill(f"Verdicts: {verdicts.caption}", WIDTH),
        *(_lines(row) for row in verdicts.readable.to_dict("records")),
        f"Tables (csv, md, tex) and figures (png, svg) are in {folder}.",
    ]


def _write_documents(paths: Iterable[str], sections: Iterable[Section]) -> None:
    """Write the marked tables of these documents anew."""
    tables = {section.name: section.readable for section in sections}
    for path in map(Path, paths):
        write(path, with_tables(read(path).decode(), tables).encode())


def read_experiments(folder: Path, wanted: Mapping[str, list[str] | None]) -> dict[str, Published]:
    """Return the published results of each experiment that has any.

    A run that is not among the wanted names has other settings, and is left out.
    """
    published = {}
    for name, names in wanted.items():
        found = read_published(folder / name)
        if names is not None and len(found.runs):
            found.runs = found.runs[found.runs.run.isin(names)]
        if len(found.runs):
            published[name] = found
    return published


def progress_table(
    published: Mapping[str, Published], wanted: Mapping[str, list[str] | None]
) -> pd.DataFrame:
    """Return one row for each experiment: its runs, how many are published, and what is missing."""
    rows = []
    for name, names in wanted.items():
        runs = published[name].runs.run if name in published else pd.Series(dtype=str)
        done = len(runs) if names is None else len({*names} & {*runs})
        state = "complete" if names is not None and done == len(names) else "incomplete"
        rows.append(
            {
                "experiment": name,
                "published": done,
                "runs": pd.NA if names is None else len(names),
                "state": state if names is not None else "its settings are not chosen yet",
            }
        )
    return pd.DataFrame(rows).astype({"runs": "Int64"})


def missing_runs(progress: pd.DataFrame) -> dict[str, int | None]:
    """Return how many runs each experiment lacks; None where they are not known."""
    return {
        row.experiment: None if pd.isna(row.runs) else int(row.runs) - int(row.published)
        for row in progress.itertuples()
    }


def _search(name: str, found: Published, folder: Path, complete: bool) -> list[Section]:
    """Return the table of a search of rates, and save its figures.

    There is one figure for each number of training images.
    """
    table = rates_table(found.runs)
    about = "" if complete else "The search is not complete: nothing is chosen yet."
    if not complete:
        table["chosen"] = False
    elif beyond := to_try(table):
        rates = ", ".join(f"{rate:g}" for rate in beyond)
        about = (
            f"A chosen rate lies at the edge: by the protocol, {rates} is tried for every network."
        )
    for size, rows in table.groupby("train_size", dropna=False):
        save_figure(rates_figure(rows), folder / (name if pd.isna(size) else f"{name}_{size}"))
    return [rates_section(name, table, about)]


def _others(complete: Mapping[str, Published], claims: pd.DataFrame, folder: Path) -> list[Section]:
    """Return the tables of what else is complete, and save the figures."""
    sections = []
    if LENGTHS in complete:
        sections += [lengths_section(LENGTHS, lengths_table(complete[LENGTHS].runs))]
    if "sharing" in complete:
        sections += _sharing(complete["sharing"], claims, folder)
    if "train_size" in complete:
        save_figure(train_size_figure(complete["train_size"]), folder / "train_size")
        sections += train_size_sections(complete["train_size"])
    return sections


def _sharing(found: Published, claims: pd.DataFrame, folder: Path) -> list[Section]:
    """Return the tables of experiment=sharing, and save its figures."""
    save_figure(sharing_figure(by_epoch(found)), folder / "sharing")
    for weights, start in STARTS.items():
        name = "rho" if weights == "scratch" else f"rho_{weights}"
        save_figure(rho_figure(found, start), folder / name)
    section = sharing_section(by_run(found), "")
    return [section, steps_section(found, claims), rho_section(found)]


def _accuracy(complete: Mapping[str, Published], folder: Path) -> list[Section]:
    """Return the tables of accuracy of the experiments that are complete, and draw Table 1's pairs."""
    lacking = [name for name in WITH_TEST_ACCURACY if name not in complete]
    about = f"Not complete, and left out: {', '.join(lacking)}." if lacking else ""
    if "table1" in complete:
        save_figure(differences_figure(complete["table1"]), folder / "differences")
    return accuracy_sections(complete, about)


def _lines(row: dict[str, str]) -> str:
    """Return a claim with its outcome as lines for a terminal."""
    text = f"{row['Claim']}: {row['Verdict']}."
    if row["Difference"]:
        text += (
            f" {row['Outcome']}: {row['Difference']}, n = {row['n']}, Holm's p = {row['p (Holm)']}."
        )
        if row["Within (TOST)"]:
            text += f" Within (TOST) {row['Within (TOST)']}."
    return textwrap.fill(text, WIDTH, subsequent_indent="    ")
