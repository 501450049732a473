"""What finished runs say: result.json of one, of an experiment, and all as one table."""

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.settings.identity import LOOP, experiment_identity
from experiments.settings.schema import Experiment
from stridenet.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


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


def pack_bits(right: "Tensor") -> str:
    """Which of some examples are classified rightly, as text: eight in a byte, in base64."""
    return base64.b64encode(np.packbits(right.numpy()).tobytes()).decode()


def unpack_bits(packed: str, many: int) -> np.ndarray:
    """The inverse of pack_bits, for so many examples: bool (many,)."""
    octets = np.frombuffer(base64.b64decode(packed), dtype=np.uint8)
    return np.unpackbits(octets, count=many).astype(bool)


def all_results(experiment: Experiment) -> list[dict[str, Any]]:
    """The results of all finished runs in the experiment's outputs, whatever they are of."""
    folder = Path(experiment.outputs) / "runs"
    return [result for path in sorted(folder.glob("*/")) if (result := read_result(path))]


def finished_runs(experiment: Experiment) -> list[dict[str, Any]]:
    """The results of the experiment's runs. Raises InputError if there are none."""
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

    frame = pd.json_normalize(results).drop(columns=["epochs", "rho"], errors="ignore")
    frame = frame.loc[:, ~frame.columns.str.startswith("config.")]
    frame["jobs_at_once"] = frame.jobs_at_once.astype("Int64")  # blank where it is not known
    return frame.sort_values(["network", "weights", "seed"], ignore_index=True)


def arms(runs: "pd.DataFrame") -> "pd.Series[str]":
    """The network of each run and how it is treated, as in "unit_stride masked by_copies"."""
    treated = runs.variant.fillna("") if "variant" in runs else ""  # which older runs do not say
    return (runs.network + " " + treated).str.strip()
