"""What becomes of networks that other people wrote: a table by package, and refusals by kind.

Each model is measured in a process of its own (experiments/surveying). A row is kept in a file as soon
as it is measured, so that an interrupted survey goes on where it was.
"""

import json
import queue
import re
import textwrap
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from tqdm import tqdm

from experiments.reporting.provenance import machine_of
from experiments.reporting.section import WIDTH, Section
from experiments.runs.files import write_json
from experiments.runs.machine import circumstances, short_commit
from experiments.runs.result_keys import Circumstances
from experiments.settings.conversions import SurveyConfig
from experiments.surveying.processes import Worker
from experiments.surveying.sources import SOURCES
from stridenet.errors import InputError
from stridenet.files import make_folder, write

Row = dict[str, Any]
ENDED = ("crashed", "timeout", "out of memory")  # without a result of ours
BY_LAYERS = ("layers", "pooling")
COLUMNS = (*BY_LAYERS, "network")  # a conversion each
DECIDING = ("seed", "pooling", "network", "seconds", "gigabytes", "threads")  # a model's row


@dataclass(frozen=True)
class Chosen:
    """Names a model that is to be measured."""

    source: str
    family: str
    model: str


class Surveyed(NamedTuple):
    """Holds what a survey found."""

    rows: list[Row]
    missing: dict[str, str]  # why a source is missing, by its name


def survey_packages(config: SurveyConfig) -> Surveyed:
    """Return a row for each model, and why sources are missing.

    Rows are in the order of sources and families.

    Each row is in outputs/survey/SOURCE/MODEL.json, too. What was measured with the same settings, and
    the same version of the package, is not measured again, unless `force`.
    """
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for source in config.sources or SOURCES:
        with Worker(source, config.threads) as worker:
            families = {} if worker.missing else worker.families()
            if worker.missing:
                missing[source] = worker.missing
                continue
            about = circumstances(config, torch.device("cpu"), config.jobs)  # as its code is now
            chosen = [*choose(config, source, families)]
            found = {} if config.force else _kept_rows(config, chosen, worker.version)
            waiting = [one for one in chosen if one not in found]
            found |= _measure_all(config, about, waiting, worker)
            rows += [found[one] for one in chosen]
    _require_models(config, rows, missing)
    return Surveyed(rows, missing)


def choose(config: SurveyConfig, source: str, families: dict[str, list[str]]) -> Iterator[Chosen]:
    """Yield the first model of each family, or all of them, or those that are named.

    Only the first of every so many families is taken.
    """
    for family in [*families][:: config.every]:
        names = families[family]
        wanted = names if config.all or config.models is not None else names[:1]
        for name in wanted:
            if config.models is None or name in config.models:
                yield Chosen(source, family, name)


def _require_models(config: SurveyConfig, rows: list[Row], missing: dict[str, str]) -> None:
    """Raise InputError where nothing is installed, or a name is of no model."""
    sources = config.sources or [*SOURCES]
    if len(missing) == len(sources):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise InputError(f"none of the sources can be used ({reasons})")
    for name in config.models or ():
        if name not in {row["model"] for row in rows}:
            here = ", ".join(source for source in sources if source not in missing)
            raise InputError(f"models: {name} is in none of {here}")


def _measure_all(
    config: SurveyConfig, about: Circumstances, waiting: list[Chosen], worker: Worker
) -> dict[Chosen, Row]:
    """Measure models of a source, so many at once as `jobs` says; each row is kept at once."""
    tasks: queue.SimpleQueue[Chosen] = queue.SimpleQueue()
    for task in waiting:
        tasks.put(task)
    found: dict[Chosen, Row] = {}
    workers = [worker]
    faults: list[BaseException] = []
    with tqdm(total=len(waiting), disable=None, desc=worker.source) as bar:

        def work(worker: Worker | None) -> None:
            try:
                while not faults:
                    one = tasks.get_nowait()
                    if worker is None or worker.has_ended:
                        worker = Worker(one.source, config.threads)
                        workers.append(worker)
                    row = {**about, **_measure(worker, one, config)}
                    if faults:  # its worker was ended from outside
                        return
                    write_json(_path(config, one), row)
                    found[one] = row
                    bar.write(f"{one.source} {one.model}: {outcome_line(row)}")
                    bar.update()
            except queue.Empty:
                return
            except BaseException as error:  # is raised where the threads are waited for
                faults.append(error)

        started = [worker, *[None] * (min(config.jobs, len(waiting)) - 1)]
        threads = [threading.Thread(target=work, args=(w,), daemon=True) for w in started]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():  # waits in short steps, so that Ctrl-C is heard
                    thread.join(0.2)
        except BaseException as error:
            faults.append(error)
        for each in workers[1:] if not faults else workers:
            each.close()
    if faults:
        raise faults[0]
    return found


def _measure(worker: Worker, one: Chosen, config: SurveyConfig) -> Row:
    """Return the row of a model."""
    said = worker.measure(model=one.model, **_deciding_settings(config))
    row = {**asdict(one), "version": worker.version, "config": _deciding_settings(config), **said}
    return settled(row)


def settled(row: Row) -> Row:
    """Return the row with an outcome for a conversion that was not finished, too."""
    ending = str(row["ended"])
    how = (
        "timeout" if ending == "timeout" else "out of memory" if row.get("exhausted") else "crashed"
    )
    unfinished = ending != "ok" or row.get("exhausted") or row.get("fault")
    reason = row.get("fault") or (ending if ending != "ok" else how)
    stage = row.get("stage", "own forward")
    if unfinished and stage in COLUMNS and stage not in row:
        return row | {stage: how, f"{stage}_reason": reason}
    if unfinished and not row.get("runs") and not row.get("why_not"):
        return row | {"runs": False, "why_not": reason}
    return row


def outcome_line(row: Row) -> str:
    """Return one line that says what became of a model."""
    if not row["runs"]:
        return f"does not run: {row['why_not']}"
    parts = [
        f"{column}: {row[column]}"
        + (f" ({row[f'{column}_reason']})" if row.get(f"{column}_reason") else "")
        + (f", TOUCHED {row[f'{column}_touched']}" if row.get(f"{column}_touched") else "")
        for column in COLUMNS
        if column in row
    ]
    return f"{row['strided_convolutions']} strided convolutions; " + "; ".join(parts)


def faulty(row: Row) -> bool:
    """Tell whether a conversion was wrong, left strides, changed the model or crashed."""
    outcomes = {row.get(column) for column in BY_LAYERS}
    crashed = row.get("network") == "crashed"
    return bool(outcomes & {"wrong", "strides left", "crashed"} or crashed or touched(row))


def touched(row: Row, columns: tuple[str, ...] = COLUMNS) -> list[str]:
    """Return the places in the model that some of the conversions changed."""
    return [place for column in columns for place in row.get(f"{column}_touched", ())]


def _path(config: SurveyConfig, one: Chosen) -> Path:
    folder = Path(config.outputs) / "survey" / re.sub(r"[^\w.\-]", "_", one.source)
    make_folder(folder)
    return folder / f"{re.sub(r'[^a-zA-Z0-9_.-]', '_', one.model)}.json"


def _deciding_settings(config: SurveyConfig) -> Row:
    """Return the settings that decide a row; where it is kept, for one, does not."""
    return {key: getattr(config, key) for key in DECIDING}


def _kept_rows(
    config: SurveyConfig, chosen: list[Chosen], version: str | None
) -> dict[Chosen, Row]:
    """Return the rows that were measured with the same settings and version."""
    wanted = {"config": _deciding_settings(config), "version": version}
    rows: dict[Chosen, Row] = {}
    for one in chosen:
        with suppress(OSError, ValueError, TypeError):  # missing or damaged
            row = dict(json.loads(_path(config, one).read_text()))
            if row | wanted | asdict(one) == row:
                rows[one] = row
    return rows


def by_source(rows: list[Row]) -> pd.DataFrame:
    """Return how many models of each source were tried, ran, have strides and were converted.

    The last line is of all sources.
    """
    sources = [*dict.fromkeys(row["source"] for row in rows)]
    lines = [_counted(source, [r for r in rows if r["source"] == source]) for source in sources]
    return pd.DataFrame([*lines, _counted("all", rows)])


def _counted(source: str, rows: list[Row]) -> Row:
    strided = [row for row in rows if row["runs"] and row["strided_convolutions"]]

    def count(column: str, *outcomes: str) -> int:
        return sum(row.get(column) in outcomes for row in strided)

    asked = [row for row in strided if row.get("pooling")]
    planned_for = [row for row in strided if row.get("network") not in (None, "not asked")]
    converted = count("layers", "converted")
    return {
        "source": source,
        "version": " / ".join(dict.fromkeys(str(row["version"]) for row in rows))
        if source != "all"
        else "",
        "tried": len(rows),
        "run": sum(row["runs"] for row in rows),
        "strided": len(strided),
        "converted": converted,
        "converted_percent": 100 * converted / len(strided) if strided else None,
        "refused": count("layers", "refused"),
        "strides_left": count("layers", "strides left"),
        "wrong": count("layers", "wrong") + count("pooling", "wrong"),
        "touched": sum(bool(touched(row, BY_LAYERS)) for row in rows),
        "crashed": count("layers", "crashed"),
        "stopped": count("layers", "timeout", "out of memory"),
        "pooling_asked": len(asked),
        "pooling_converted": sum(row["pooling"] == "converted" for row in asked),
        "network_asked": len(planned_for),
        "network_planned": sum(row["network"] == "planned" for row in planned_for),
        "network_touched": sum(bool(touched(row, ("network",))) for row in rows),
        "network_crashed": sum(row["network"] in ENDED for row in planned_for),
    }


def by_source_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Write the table by source for readers, its shares in words."""

    def of(part: str, whole: str) -> "pd.Series[str]":
        return table[part].astype(str) + " of " + table[whole].astype(str)

    percent = table.converted_percent.map(lambda p: "" if pd.isna(p) else f" ({p:.1f} %)")
    return pd.DataFrame(
        {
            "Source": (table.source + " " + table.version).str.strip(),
            "Tried": table.tried,
            "Run": table.run,
            "With strides": table.strided,
            "Converted": table.converted.astype(str) + percent,
            "Refused": table.refused,
            "Strides left": table.strides_left,
            "Wrong": table.wrong,
            "Touched": table.touched,
            "Crashed": table.crashed,
            "Stopped": table.stopped,
            "With pooling": of("pooling_converted", "pooling_asked"),
            "Theorem 2": of("network_planned", "network_asked"),
            "Touched by it": table.network_touched,
            "Crashed or stopped in it": table.network_crashed,
        }
    )


def kind_of(reason: str) -> str:
    """Return a message without its names and numbers, so that messages of one kind are equal."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "…", reason)
    text = re.sub(r"[\w.\[\]]+ \([A-Za-z]\w*\)", "… (…)", text)  # layer1.0.conv (Conv2d)
    text = re.sub(r"[\w/.\-]+\.py(:\d+)?", "….py", text)
    text = re.sub(r"\b\w+(\.\w+)+\b", "…", text)  # dotted names and decimal numbers
    text = re.sub(r"\b\w*\d[\w,]*\b", "…", text)  # numbers, sizes, names with numbers
    text = re.sub(r"\b[a-z]+_\w*\b", "…", text)
    text = re.sub(r"(…[\s,×x\-\[\]]*){2,}", "… ", text)
    return textwrap.shorten(" ".join(text.split()), 160, placeholder=" …")


KINDS = {"layers": "by layers", "pooling": "with pooling", "network": "Theorem 2"}


def kinds(rows: list[Row]) -> pd.DataFrame:
    """Return why models were not converted, with numbers, the most frequent reasons first."""
    found = [
        {
            "conversion": KINDS[column],
            "outcome": row[column],
            "kind": kind_of(row.get(f"{column}_reason", "")),
            "example": f"{row['source']} {row['model']}",
            "reason": row.get(f"{column}_reason", ""),
        }
        for column in COLUMNS
        for row in rows
        if row.get(column) not in (None, "converted", "planned", "not asked")
    ]
    found += [
        {
            "conversion": "its own forward",
            "outcome": "does not run",
            "kind": kind_of(row["why_not"]),
            "example": f"{row['source']} {row['model']}",
            "reason": row["why_not"],
        }
        for row in rows
        if not row["runs"]
    ]
    names = ["conversion", "outcome", "kind"]
    table = pd.DataFrame(found, columns=[*names, "example", "reason"])
    groups = table.groupby(names, sort=False).agg(
        models=("example", "size"), example=("example", "first"), reason=("reason", "first")
    )
    order = [*KINDS.values(), "its own forward"]
    groups = groups.reset_index()
    groups["place"] = groups.conversion.map(order.index)
    groups = groups.sort_values(["place", "models"], ascending=[True, False], kind="stable")
    return groups.drop(columns="place")


MODELS = (
    "source", "family", "model", "runs", "input", "parameters", "strided_convolutions",
    "strided_poolings", "layers", "layers_calls_compared", "layers_share_of_bound",
    "layers_output_error", "layers_precision", "layers_seconds", "pooling", "pooling_output_error",
    "network", "network_parameters", "network_seconds", "touched", "seconds", "why_not",
    "layers_reason", "pooling_reason", "network_reason", "git_commit", "date",
)  # fmt: skip


def write_survey(config: SurveyConfig, rows: list[Row], missing: dict[str, str]) -> list[str]:
    """Write the tables, and all rows, into outputs/report; returns what to print."""
    folder = Path(config.outputs) / "report"
    make_folder(folder)
    models = pd.DataFrame([{**row, "touched": " ".join(touched(row))} for row in rows])
    models = models.reindex(columns=[*MODELS]).convert_dtypes()
    write(folder / "survey_models.csv", models.to_csv(index=False).encode())
    about = _about(config, rows)
    table, reasons = by_source(rows), kinds(rows)
    readable = reasons.rename(columns=str.capitalize).drop(columns="Reason")
    sections = [
        Section("survey", "The survey", CAPTION, about, table, by_source_for_readers(table)),
        Section("survey_kinds", "Reasons", KINDS_CAPTION, about, reasons, readable, ("Example",)),
    ]
    skipped = [f"{source} is skipped: {reason}" for source, reason in missing.items()]
    return [section.save(folder) for section in sections] + [*skipped, textwrap.fill(about, WIDTH)]


CAPTION = (
    "Networks of other people's packages, random weights, one of each family: how many run on small "
    "inputs and have convolutions with a stride above one; of those, how many are converted by layers: "
    "the twin computes no convolution with a stride above one, each converted call is equal to the "
    "strided one at its own input up to rounding, and so is the output. Strides left: a convolution "
    "with a stride remains; touched: something of the model, of torch or the random state is another "
    "afterwards; stopped: at the limit of time or memory. With pooling: the same with pooling, of "
    "those that pool. Theorem 2: planned as one unit-stride network, of those whose inputs are tensors."
)
KINDS_CAPTION = (
    "Why models were not converted, or do not run, by kind: messages without names and numbers."
)


def _about(config: SurveyConfig, rows: list[Row]) -> str:
    measured = pd.json_normalize(rows)
    commits = " / ".join(map(short_commit, measured.git_commit.unique()))
    limits = f"{config.seconds:g} s and {config.gigabytes:g} GiB a model"
    which = f"Only one family of every {config.every} of a package. " if config.every > 1 else ""
    return f"{which}Measured {machine_of(measured)}, limits {limits}, commit {commits}."
