"""Published results: the finished runs of one experiment in a few small files, which are committed.

runs.csv has a row a run, epochs.csv a row for each point of its curves, rho.csv what was seen of its
gradients (where asked), correct.npz a bit for each test image, about.json where all of it is from. A
run whose row is there counts as done wherever the work goes on, without its folder or weights.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.runs import files
from experiments.runs.results import unpack_bits
from experiments.settings.identity import LOOP, run_name
from experiments.settings.schema import RunConfig
from stridenet.errors import InputError
from stridenet.files import make_folder, read

if TYPE_CHECKING:
    import pandas as pd

WHOLE_NUMBERS = dict.fromkeys(
    ("train_size", "steps", "validation_correct", "jobs_at_once"), "Int64"
)
TEXTS = dict.fromkeys(("experiment", "variant", "git_commit"), str)  # 12345e67 is no number there
# What reading a damaged file raises.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError)
NEEDED: dict[str, dict[str, Any]] = {  # columns that a file cannot lack, and their kind
    "runs.csv": dict.fromkeys(("loop", "seed", "test_correct", "test_images"), "int64"),
    "epochs.csv": {"epoch": float, "training_loss": float},
    "rho.csv": {"step": "int64", "rho": float},
}


@dataclass
class Published:
    """Holds the published results of one experiment."""

    runs: "pd.DataFrame"  # one row a run
    epochs: "pd.DataFrame"  # one row a run and point of its curves
    rho: "pd.DataFrame"  # one row a run, step and layer
    right: dict[str, np.ndarray] = field(default_factory=dict)  # of each run: bool (test images,)
    about: dict[str, Any] = field(
        default_factory=dict
    )  # about.json: settings of the last run added


def published_result(config: RunConfig) -> dict[str, Any] | None:
    """Return the row of this run in the settings' folder `published`; None if there is none.

    It has the columns of runs.csv, which are fewer than a result's keys.
    """
    path = Path(config.published or "", "runs.csv")
    if config.published is None or not path.exists():
        return None
    found = path.stat()
    state = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return _rows(path, state).get(run_name(config))


@lru_cache(maxsize=8)  # a sweep asks once a job, and each time that it publishes
def _rows(path: Path, _state: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    rows = {str(row["run"]): row for row in _read_csv(path).to_dict("records")}
    return {
        name: {**row, "test_accuracy": row["test_correct"] / row["test_images"]}
        for name, row in rows.items()
    }


def read_published(folder: Path) -> Published:
    """Return the published results in a folder; they have no rows if there is nothing yet.

    Raises InputError where files are damaged, do not belong together, or are of another loop.
    """
    import pandas as pd

    runs, epochs, rho = (
        _read_csv(folder / f"{name}.csv") if (folder / f"{name}.csv").exists() else pd.DataFrame()
        for name in ("runs", "epochs", "rho")
    )
    if runs.empty:
        return Published(runs, epochs.iloc[:0], rho.iloc[:0])
    # What has no run's row was left where publishing was stopped; it comes again with the run.
    epochs, rho = (part[part.run.isin(runs.run)] if len(part) else part for part in (epochs, rho))
    path = folder / "correct.npz"
    try:
        with np.load(io.BytesIO(read(path)), allow_pickle=False) as stored:
            packed = dict(zip(stored["runs"].tolist(), stored["bits"], strict=True))
        right = {
            run: np.unpackbits(packed[run], count=many).astype(bool)
            for run, many in zip(runs.run, runs.test_images, strict=True)
        }
        for run, correct in zip(runs.run, runs.test_correct, strict=True):
            if right[run].sum() != correct:
                raise ValueError(f"the bits of {run} have another sum than its test_correct")
    except (*DAMAGED, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} is damaged or of other runs than runs.csv beside it ({error}); restore both"
        ) from error
    return Published(runs, epochs, rho, right, _read_about(folder / "about.json"))


def _read_about(path: Path) -> dict[str, Any]:
    """Return what is published of the settings; nothing where the file is missing."""
    try:
        return dict(json.loads(read(path))) if path.exists() else {}
    except DAMAGED as error:
        raise InputError(f"{path} is damaged ({error}); restore it") from error


def _read_csv(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        table = pd.read_csv(io.BytesIO(read(path)), dtype=TEXTS)
        table = _with_whole_numbers(table).astype(NEEDED[path.name])
        for column in ("variant", "experiment"):
            if column in table:
                table[column] = table[column].fillna("")
        loops = {int(loop) for loop in table.loop} if "loop" in table else {LOOP}
        if table.run.duplicated().any() and path.name == "runs.csv":
            raise ValueError("a run has two rows")
        if path.name == "runs.csv" and not _possible(table):
            raise ValueError("more test images are right than there are")
        if path.name == "runs.csv" and table.iloc[:, -1].isna().any():
            raise ValueError("a row is cut off")
    except DAMAGED as error:
        raise InputError(f"{path} is damaged ({error}); restore it") from error
    if loops != {LOOP}:
        raise InputError(
            f"{path} has runs of training loop {', '.join(map(str, sorted(loops)))}, and this is loop "
            f"{LOOP}: they cannot stand in one table (docs/protocol.md); take another folder"
        )
    return table


def _possible(runs: "pd.DataFrame") -> bool:
    counted = (runs.test_correct >= 0) & (runs.test_correct <= runs.test_images)
    return bool((counted & (runs.test_images > 0)).all())


def _with_whole_numbers(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the table with whole numbers kept whole.

    Where some are missing, pandas would write 300.0.
    """
    return table.astype({name: kind for name, kind in WHOLE_NUMBERS.items() if name in table})


def publish(name: str, results: Sequence[Mapping[str, Any]], folder: Path) -> int:
    """Add finished runs to the published ones of experiment `name`, and return their number then.

    A run that is published already stays as it is. Each file is written whole, runs.csv last, so that
    a run with a row has everything else too.
    """
    import pandas as pd

    make_folder(folder)
    with files.lock_file(folder / ".lock"):
        before = read_published(folder)
        known = set(before.runs.run) if len(before.runs) else set()
        new = [result for result in results if result["run"] not in known]
        if not new:
            return len(known)
        added = as_published(name, new)
        files.write(folder / "correct.npz", _pack(before.right | added.right))
        files.write_json(folder / "about.json", added.about)
        for table in ("epochs", "rho", "runs"):
            rows = getattr(before, table)
            whole = pd.concat(
                [part for part in (rows, getattr(added, table)) if len(part)] or [rows]
            )
            if len(whole):
                whole = _with_whole_numbers(whole).sort_values("run", kind="stable")
                files.write(folder / f"{table}.csv", whole.to_csv(index=False).encode())
        return len(known) + len(new)


def as_published(name: str, results: Sequence[Mapping[str, Any]]) -> Published:
    """Return finished runs of experiment `name` in the form in which they are published."""
    import pandas as pd

    return Published(
        pd.DataFrame([_run_row(result) for result in results]),
        pd.DataFrame([row for result in results for row in _epoch_rows(result)]),
        pd.DataFrame([row for result in results for row in _rho_rows(result)]),
        {r["run"]: unpack_bits(r["test_bits"], r["test_images"]) for r in results},
        _about(name, results[-1]),
    )


def _pack(right: dict[str, np.ndarray]) -> bytes:
    content, names = io.BytesIO(), sorted(right)
    np.savez_compressed(content, runs=names, bits=np.stack([np.packbits(right[n]) for n in names]))
    return content.getvalue()


def _run_row(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a run in runs.csv."""
    data = result["config"]["data"]
    whole = ("run", "loop", "experiment", "network", "sharing", "variant", "weights", "seed")
    tested = ("learning_rate", "diverged", "test_correct", "test_images", "test_loss")
    about = ("jobs_at_once", "threads", "device", "device_name", "git_commit", "date")
    times = ("training_cpu_seconds", "training_wall_seconds")
    return {
        **{key: result[key] for key in (*whole, *tested)},
        "train_size": data["train_size"],
        "steps": result["config"]["recipe"]["steps"],  # empty where a recipe has epochs
        "validation_correct": result["epochs"][-1].get("validation_correct"),
        "validation_images": data["validation_size"],
        "fit_loss": result.get("fit_loss"),
        **{key: result[key] for key in (*times, *about)},
        "torch": result["versions"]["torch"],
    }


def _epoch_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = ("epoch", "training_loss", "validation_loss", "validation_correct")
    return [
        {"run": result["run"], **{key: row.get(key) for key in keys}, **distance(row)}
        for row in result["epochs"]
    ]


def distance(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Return how far a twin is from the tied ones at a point of its curves.

    There are two parts, as shares of the norm of all shared weights; both are None for a network
    that is no twin.
    """
    layers = row.get("distance") or {}
    parts = {
        part: sum(layer[part] ** 2 for layer in layers.values()) ** 0.5
        for part in ("zeros", "copies", "norm")
    }
    return {part: parts[part] / parts["norm"] if layers else None for part in ("zeros", "copies")}


def _rho_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"run": result["run"], "step": row["step"], "layer": layer, "rho": ratio}
        for row in result["rho"]
        for layer, ratio in row.items()
        if layer != "step"
    ]


def _about(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return where published results are from, with the settings of the last run that was added."""
    config = result["config"]
    return {
        "experiment": name,
        "command": f"make evidence EXPERIMENT={name}",
        "protocol": "docs/protocol.md",
        "loop": LOOP,
        "versions": result["versions"],
        **{part: config[part] for part in ("model", "data", "recipe")},
    }
