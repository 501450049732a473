"""A run's folder: lock, checkpoint.pt, weights.pt, and last result.json; all folders as one table."""

import io
import json
import os
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from stridenet.config import Config, Experiment, InputError, experiment_identity, run_name

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


def run_folder(config: Config) -> Path:
    """Where this run is, or will be."""
    return Path(config.outputs) / "runs" / run_name(config)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold it alone; waits, and says so, while another process has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(
            f"{folder} cannot be made: part of this path is a file; remove it, or take another outputs="
        ) from None
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder.name}: waiting, another process is at it …", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run; None if it is not finished."""
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
        if not isinstance(result, dict) or "experiment" not in result:
            raise ValueError("not a run's result")
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}); delete {folder} and run it again"
        ) from error
    return result


def write(path: Path, content: bytes) -> None:
    """Write all of a file or nothing of it, whatever happens meanwhile."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp lets nobody else read
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say which file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write all of the file or nothing."""
    write(path, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and what lies beside them, all of it or nothing."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, buffer.getvalue())


def _load(path: Path) -> Any:
    """What `save_tensors` wrote; executes nothing from the file. Raises OSError, InputError."""
    import torch

    content = io.BytesIO(path.read_bytes())
    try:
        return torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises on a foreign or cut-off file varies
        raise InputError(f"{path} is not a whole file of weights, as a run writes them") from error


def load_checkpoint(path: Path, network: "nn.Module") -> dict[str, Any] | None:
    """The checkpoint of the run in this folder, for this network; None if there is none.

    One that cannot be used is told and taken for none: the run then starts anew.
    """
    if not path.exists():
        return None
    sizes = {name: value.shape for name, value in network.state_dict().items()}
    try:
        checkpoint = _load(path)
        if checkpoint["run"] != path.parent.name:
            raise InputError(f"{path} is of the run {checkpoint['run']}")
        if {name: value.shape for name, value in checkpoint["network"].items()} != sizes:
            raise InputError(f"{path} is of another network")
    except (InputError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, InputError) else f"{path} is not a checkpoint"
        print(f"{reason}: starting from the beginning", file=sys.stderr, flush=True)
        return None
    return checkpoint


def load_weights(path: Path, network: "nn.Module") -> None:
    """Put a state_dict into a network of the same layers; executes nothing from the file."""
    state = _load(path)
    try:
        network.load_state_dict(state)
    except Exception as error:  # likewise, on whatever else the file may hold
        reason = textwrap.shorten(" ".join(str(error).split()), 200)
        raise InputError(f"the weights in {path} are of another network ({reason})") from error


def all_results(experiment: Experiment) -> list[dict[str, Any]]:
    """The results of all finished runs in the experiment's outputs, whatever they are of."""
    folder = Path(experiment.outputs) / "runs"
    return [result for path in sorted(folder.glob("*/")) if (result := read_result(path))]


def finished_runs(experiment: Experiment) -> list[dict[str, Any]]:
    """The results of the experiment's runs. Raises InputError if there are none."""
    results, wanted = all_results(experiment), experiment_identity(experiment)
    chosen = [result for result in results if result["experiment"] == wanted]
    if not chosen:
        kinds = ("data", "recipe")
        others = {" ".join(f"{k}={r['config'][k]['name']}" for k in kinds) for r in results}
        raise InputError(
            f"no finished run in {Path(experiment.outputs) / 'runs'} has these layers, "
            f"data={experiment.data.name} and recipe={experiment.recipe.name}, each with these "
            "settings; run experiments.train first, or give the report the settings of the runs that "
            f"you mean (there are runs of {' and '.join(sorted(others)) or 'nothing'})"
        )
    return chosen


def tidy(results: list[dict[str, Any]]) -> "pd.DataFrame":
    """One row a run: what it was, what it reached, what it took."""
    import pandas as pd

    frame = pd.json_normalize(results).drop(columns=["epochs"])
    frame = frame.loc[:, ~frame.columns.str.startswith("config.")]
    return frame.sort_values(["network", "weights", "seed"], ignore_index=True)


def arms(runs: "pd.DataFrame") -> "pd.Series[str]":
    """The network of each run and how it is treated, as in "unit_stride masked rate_by_copies"."""
    treated = runs.variant.fillna("") if "variant" in runs else ""  # which older runs do not say
    return (runs.network + " " + treated).str.strip()
