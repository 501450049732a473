"""The engines of a sweep: a sweeper that asks nothing twice, and a launcher for Dask.

Hydra takes sweepers and launchers from the package hydra_plugins alone, so that these two are known to
it by names in that package (register).
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from stridenet.errors import InputError

Plugins.instance()  # executes Hydra's own plugins, so that classes from before would be others
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402

if TYPE_CHECKING:
    from distributed import Client

PACKAGE = "hydra_plugins.experiments"
SWEEPER = f"{PACKAGE}.Sweeper"
# A process does one job at a time, however many threads a worker of Dask has: Hydra's state is global.
_one_at_a_time = threading.Lock()


def register() -> None:
    """Let Hydra find the classes of this module."""
    for plugin in (Sweeper, DaskLauncher):
        Plugins.instance().class_name_to_class[f"{PACKAGE}.{plugin.__name__}"] = plugin


class Sweeper(BasicSweeper):
    """Is Hydra's own sweeper, but composes no job a second time: each takes a tenth of a second."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do not compose each job once more only to see whether it can be."""


class DaskLauncher(Launcher):
    """Sends each job to the workers of a Dask cluster, as they become free or join.

    Dask gives a job whose worker is gone to another one; after three such losses the job counts as
    not done, and the others go on.
    """

    def __init__(self, address: str | None, workers: int) -> None:
        self.address, self.workers = address, workers
        self.config: DictConfig | None = None
        self.task: tuple[Any, ...] = ()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives for each job."""
        self.config = config
        self.task = (hydra_context, config, task_function)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Do all jobs; those that are lost are missing in what is returned."""
        setup_globals()
        with _cluster(self.address, self.workers) as client:
            do = partial(_do, (*self.task, Singleton.get_state()), Path.cwd())
            numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
            jobs = client.map(do, list(numbers), [list(job) for job in job_overrides], pure=False)
            return list(client.gather(jobs, errors="skip"))


@contextmanager
def _cluster(address: str | None, workers: int) -> Iterator["Client"]:
    """Yield a client of the Dask cluster at the address.

    Without an address, its workers are processes on this machine.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise InputError(
            "hydra/launcher=dask needs the extra dask: pip install '.[dask]'"
        ) from error
    if address is not None:
        try:
            client = Client(address, timeout=20)
        except (OSError, ValueError) as error:
            raise InputError(
                f"hydra.launcher.address={address}: no scheduler of Dask answers there ({error}); "
                "start one with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads 1`"
            ) from error
        with client:
            yield client
        return
    quiet = {"dashboard_address": None, "silence_logs": 50, "threads_per_worker": 1}
    with LocalCluster(n_workers=workers, **quiet) as cluster, Client(cluster) as client:
        yield client


def _do(shared: tuple[Any, ...], folder: Path, number: int, overrides: list[str]) -> JobReturn:
    """Do one job in a worker's process, in the folder in which the sweep began."""
    from hydra_plugins.hydra_joblib_launcher._core import execute_job

    context, config, task, state = shared
    with _one_at_a_time:
        if not folder.is_dir():
            raise InputError(f"{folder}, where the sweep began, is not seen from this machine")
        os.chdir(folder)
        return execute_job(number, overrides, context, config, task, state)
