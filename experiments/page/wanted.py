"""Which runs the page's experiments ask for, remembered, as composing them takes seconds."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.runs.files import write_json
from experiments.studies.accuracy import EXPERIMENTS as WITH_TEST_ACCURACY
from experiments.studies.claims import CLAIMS
from stridenet.errors import InputError
from stridenet.files import read

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = tuple(
    dict.fromkeys([claim.experiment for claim in CLAIMS.values()] + [*WITH_TEST_ACCURACY])
)
Runs = Mapping[str, Sequence[str]]  # by name: the settings in which a sweep's runs differ


def wanted_runs(
    remembered: Path, compose: Callable[[str], Runs | None]
) -> Mapping[str, Runs | None]:
    """Return the runs of each experiment on the page; None where its settings are not chosen yet.

    remembered: a file that this writes, and takes them from as long as no setting has changed.
    """
    key = _state()
    try:
        kept = json.loads(read(remembered))
        if kept["state"] == key and [*kept["runs"]] == [*EXPERIMENTS]:
            runs: Mapping[str, Runs | None] = kept["runs"]
            return runs
    except (OSError, ValueError, KeyError, TypeError, InputError):
        pass  # there is none yet, or it is not ours: it is written anew
    runs = {name: compose(name) for name in EXPERIMENTS}
    write_json(remembered, {"state": key, "runs": runs})
    return runs


def _state() -> str:
    """Return a hash of all that decides which runs there are."""
    found = hashlib.sha256()
    code = [*(ROOT / "experiments/settings").glob("*.py"), ROOT / "experiments/sweep.py"]
    for path in sorted([*(ROOT / "conf").rglob("*.yaml"), *code]):
        found.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()
