"""A run's folder: its place, its lock, its checkpoint."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from experiments.runs.files import load_tensors, lock_file
from experiments.settings.identity import run_name
from experiments.settings.schema import RunConfig
from stridenet.errors import InputError
from stridenet.files import make_folder

if TYPE_CHECKING:
    from torch import nn


def run_folder(config: RunConfig) -> Path:
    """Return the folder of this run, which need not exist."""
    return Path(config.outputs) / "runs" / run_name(config)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold it alone; waits, and says so, while another process has it."""
    make_folder(folder)
    lock = lock_file(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(
            f"{folder.name}: waiting, another process holds this run …", file=sys.stderr, flush=True
        )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def load_checkpoint(path: Path, network: "nn.Module") -> dict[str, Any] | None:
    """Return the checkpoint of the run in this folder, for this network; None if there is none.

    A checkpoint that cannot be used is reported and ignored: the run then starts anew.
    """
    if not path.exists():
        return None
    sizes = {name: value.shape for name, value in network.state_dict().items()}
    try:
        checkpoint = load_tensors(path, sealed=True)
        if checkpoint["run"] != path.parent.name:
            raise InputError(f"{path} is of the run {checkpoint['run']}")
        if {name: value.shape for name, value in checkpoint["network"].items()} != sizes:
            raise InputError(f"{path} is of another network")
        if not all(isinstance(commit, str | None) for commit in checkpoint["commits"]):
            raise InputError(f"{path} is not a checkpoint")
    except (InputError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, InputError) else f"{path} is not a checkpoint"
        print(f"{reason}: starting from the beginning", file=sys.stderr, flush=True)
        return None
    return checkpoint
