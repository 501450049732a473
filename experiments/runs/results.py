"""What finished runs say: result.json of one, of an experiment, and all as one table."""

import base64
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.runs.files import sha256_of
from experiments.runs.result_keys import Result
from experiments.runs.trust import DamagedError, require
from experiments.settings.identity import LOOP, experiment_identity
from experiments.settings.schema import ExperimentConfig
from stridenet.errors import InputError
from stridenet.files import read

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


class DamagedResultError(InputError):
    """Says that a result cannot be trusted. reason: what is wrong with it, and where."""

    def __init__(self, path: Path, what: str) -> None:
        self.reason = f"{path} is damaged ({what})"
        folder = shlex.quote(str(path.parent))
        super().__init__(
            f"{self.reason}; the experiments.train command of this run does it anew, or leave it out: "
            f"rm -r {folder}"
        )


class NoRunsError(InputError):
    """Says that there is no finished run to report on."""


def read_result(folder: Path, loop: int | None = None, weights: bool = True) -> Result | None:
    """Return the result of a finished run; None if it is not finished.

    loop: the training loop that it must be of; None stands for any. weights: whether weights.pt must
    be as the result says, too. Raises DamagedResultError where the result cannot be trusted.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result: Result = json.loads(read(path), parse_constant=_no_number, parse_float=_finite)
        require(result, folder.name)
        if loop is not None and result.get("loop", 1) != loop:
            raise DamagedError(f"it is of training loop {result.get('loop', 1)}, not {loop}")
        if weights and "sha256" in result:
            _check_weights(folder / "weights.pt", result["sha256"]["weights"])
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):  # no file at all
            raise
        raise DamagedResultError(path, " ".join(str(error).split())) from error
    return result


def _check_weights(path: Path, expected: str) -> None:
    if not path.exists():
        raise DamagedError(f"{path.name} is missing beside it")
    if sha256_of(path) != expected:
        raise DamagedError(f"{path.name} beside it has another SHA-256")


def _no_number(name: str) -> float:
    raise DamagedError(f"{name} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise DamagedError(f"{text} is too large a number")
    return float(text)


def pack_bits(right: "Tensor") -> str:
    """Return which of some examples are classified rightly, as text: eight in a byte, in base64."""
    return base64.b64encode(np.packbits(right.numpy()).tobytes()).decode()


def unpack_bits(packed: str, many: int) -> np.ndarray:
    """Return the inverse of pack_bits, for so many examples: bool (many,)."""
    octets = np.frombuffer(base64.b64decode(packed), dtype=np.uint8)
    return np.unpackbits(octets, count=many).astype(bool)


def all_results(experiment: ExperimentConfig) -> list[Result]:
    """Return the results of all finished runs in the experiment's outputs, whatever they are of."""
    folder = Path(experiment.outputs) / "runs"
    paths = sorted(folder.glob("*/"))
    return [result for path in paths if (result := read_result(path, weights=False))]


def finished_runs(experiment: ExperimentConfig) -> list[Result]:
    """Return the results of the experiment's runs.

    Raises InputError if there are none, which is a NoRunsError where the folder has no runs at all.
    """
    results, wanted = all_results(experiment), experiment_identity(experiment)
    chosen = [result for result in results if result["experiment"] == wanted]
    earlier = {result.get("loop", 1) for result in results} - {LOOP}
    if not chosen and earlier:
        raise InputError(
            f"the runs in {Path(experiment.outputs) / 'runs'} are of training loop "
            f"{', '.join(map(str, sorted(earlier)))}, and this is loop {LOOP} (docs/protocol.md): they "
            "cannot stand in one table; run experiments.train again, or take another outputs="
        )
    if not chosen:
        kinds = ("data", "recipe")
        others = {" ".join(f"{k}={r['config'][k]['name']}" for k in kinds) for r in results}
        runs_of = f"runs of {' and '.join(sorted(others))}" if others else "none at all"
        # With other runs there, the settings are at fault, and what was written of these runs stays.
        raise (InputError if others else NoRunsError)(
            f"no finished run in {Path(experiment.outputs) / 'runs'} has these layers, "
            f"data={experiment.data.name} and recipe={experiment.recipe.name}, each with these "
            "settings; run experiments.train first, or give the report the settings of the runs that "
            f"you mean (there are {runs_of})"
        )
    for result in chosen:
        read_result(Path(experiment.outputs, "runs", result["run"]))  # with its weights
    return chosen


def tidy(results: Sequence[Result]) -> "pd.DataFrame":
    """Return one row a run: which it was, what it reached and how long it took."""
    import pandas as pd

    frame = pd.json_normalize(results).drop(columns=["epochs", "rho"], errors="ignore")
    of_the_run = frame.columns.str.startswith(("config.", "sha256.")) | (
        frame.columns == "run_seconds"
    )
    frame = frame.loc[:, ~of_the_run]
    frame["jobs_at_once"] = frame.jobs_at_once.astype("Int64")  # blank where it is not known
    return frame.sort_values(["network", "weights", "seed"], ignore_index=True)


def arms(runs: "pd.DataFrame") -> "pd.Series[str]":
    """Return the network of each run and its treatment: "unit_stride masked by_copies"."""
    treated = runs.variant.fillna("") if "variant" in runs else ""  # which older runs do not say
    return (runs.network + " " + treated).str.strip()
