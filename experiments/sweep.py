"""What a sweep adds to its runs: an estimate before, a line for each that is done, and the account.

Runs are done by whatever launcher Hydra has: processes on this machine, workers of a Dask cluster, jobs
of Slurm. These have no channel back to here, and some end without a word (killed, out of memory, out of
time). So a thread, the watch, learns everything from the runs' folders: a run is done when its
result.json is there and can be trusted, and not before; failure.json says why one is not.

A sweep is in three places. `Sweep` is Hydra's callback: it is made in the process that starts the
sweep, and copied to each process that does jobs. The module's variables `watched`, `jobs_at_once` and
`token` carry what a job has to know of its sweep, and are set in the job's own process. `missing` is
called at the end, in the starting process, and decides the exit code.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import joblib
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from joblib.externals.loky.backend import resource_tracker
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from experiments.command import one_line, succeeded
from experiments.engines import SWEEPER, DaskLauncher
from experiments.runs.folder import run_folder
from experiments.runs.parents import end_with
from experiments.runs.published import publish, published_result
from experiments.runs.result_keys import Result
from experiments.runs.results import read_result
from experiments.settings.checks import resolve
from experiments.settings.identity import LOOP, experiment_identity, variant
from experiments.settings.line import require_effect, require_runs
from experiments.settings.schema import RunConfig
from stridenet.errors import InputError
from stridenet.files import read

POLL = 0.5  # seconds between two looks at the folders
BAR = "{n}/{total} runs |{bar:20}| {elapsed}{postfix}"

# These are set in a process that does jobs.
watched = False  # whether a watch reports the run, so that the run itself has to print nothing
jobs_at_once: int | None = 1  # how many jobs the sweep does side by side; None where nobody knows
token: str | None = None  # of the sweep, which failure.json names
_watch: "Watch | None" = None  # in the process that started the sweep


@dataclass
class Job:
    """Describes one run of the sweep."""

    overrides: list[str]
    config: RunConfig
    folder: Path
    seconds: float = 0.0  # expected
    took: float = 0.0  # from the start of the finished run to its end
    seen: bool = False  # whether its result has been seen, with weights of the right hash
    published: dict[str, Any] | None = None  # its row, if it has been published
    unpublished: str = ""  # why its result could not be published

    def result(self) -> Mapping[str, Any] | None:
        """Return the run's result, or its published row, once it is done; else None."""
        if self.published is not None:
            return self.published
        result: Result | None = None
        with contextlib.suppress(InputError):  # a damaged result counts as none
            result = read_result(self.folder, LOOP, weights=not self.seen)
        self.seen = result is not None
        return result

    def publish(self) -> None:
        """Add the finished run to the published ones, if it is to be, and is not yet."""
        if self.published is not None or self.config.published is None:
            return
        result = self.result()
        if result is not None:
            folder = Path(self.config.published)
            publish(folder.name, [result], folder)

    def reason(self, of_sweep: str) -> str:
        """Return why there is no result, or none published, in the sweep with this token."""
        if self.unpublished:
            return f"done, but not published: {self.unpublished}"
        try:
            read_result(self.folder, LOOP)
            failure = json.loads(read(self.folder / "failure.json"))
            if failure["sweep"] != of_sweep:
                return "not finished"  # this is of another sweep
            return " ".join(str(failure["error"]).split())
        except InputError as error:
            return str(error)
        except (OSError, ValueError, KeyError, TypeError):
            return "not finished"


class Watch(threading.Thread):
    """Prints a line for each run that is done, and below them a progress bar on a terminal.

    It looks at the folders of all runs that are waited for, twice a second. Looking is cheap: a folder
    without result.json costs one look, and weights are hashed only until a result has been seen once.
    Three things are deliberate. The thread is a daemon, so that it cannot keep a program alive that was
    told to stop. `stop` lets it make one more round, because runs may have ended since the last one,
    and each has to be counted, and published, before the account is given. An error in publishing is
    kept with its job: raised here, it would end the watch, and nobody would hear of it.

    The time that is left is estimated from the estimates of the runs (runs/estimate.py) times the pace
    so far, which is what finished runs took over what was expected of them: estimates are made while
    nothing else runs, and runs side by side are slower.
    """

    def __init__(self, jobs: list[Job], missing: list[Job], at_once: int | None) -> None:
        super().__init__(daemon=True)
        self.jobs = jobs
        self._missing, self._at_once = missing, at_once
        self._over = threading.Event()
        self.token = secrets.token_hex(8)

    def run(self) -> None:
        """Look at the folders until `stop` is called, and once more then."""
        began, waiting, over = time.monotonic(), list(self._missing), False
        done_before = len(self.jobs) - len(waiting)
        with tqdm(total=len(self.jobs), initial=done_before, bar_format=BAR, disable=None) as bar:
            while not over:
                over = self._over.wait(POLL)
                for job in list(waiting):
                    result = job.result()
                    if result is not None:
                        waiting.remove(job)
                        job.took = result.get("run_seconds", job.seconds)
                        try:
                            job.publish()
                        except Exception as error:  # raised, it would end the watch, and be lost
                            job.unpublished = one_line(error)
                        bar.update()
                        left = self._left(waiting, time.monotonic() - began)
                        place = f"[{len(self.jobs) - len(waiting)} of {len(self.jobs)}]"
                        bar.write(f"{place} {line(job.folder, result)}{left and f' ({left})'}")
                        sys.stdout.flush()
                bar.set_postfix_str(self._left(waiting, time.monotonic() - began))

    def stop(self) -> None:
        """End the watch once every run that is done has been reported."""
        self._over.set()
        self.join()

    def _left(self, waiting: list[Job], elapsed: float) -> str:
        if not waiting or self._at_once is None:
            return ""
        done = [job for job in self._missing if job not in waiting]
        expected = sum(job.seconds for job in done)
        pace = sum(job.took for job in done) / expected if expected else 1.0
        whole = pace * sum(job.seconds for job in self._missing) / self._at_once
        return f"{_duration(max(whole - elapsed, 0))} left"


class Sweep(Callback):
    """Is Hydra's callback, at the start and end of a sweep and at the start of each job."""

    def __init__(self) -> None:
        # These go along to the processes that do the jobs.
        self.watched, self.at_once, self.token = watched, jobs_at_once, token
        self.folder = Path.cwd()
        # The process to end with, where a launcher starts others on this machine.
        self.starter: int | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Say what is to be done, and begin to watch.

        Ends the program where nothing is to be done.
        """
        if config.hydra.sweeper._target_ != SWEEPER:
            sys.exit("error: hydra/sweeper must be Hydra's own, which knows all runs beforehand")
        try:
            self._begin(config)
        except Exception as error:  # mostly the command line's; Hydra would go on without us
            sys.exit(f"error: {one_line(error)}")

    def _begin(self, config: DictConfig) -> None:
        global _watch
        jobs = _jobs(config)
        if not jobs:
            given = " ".join(config.hydra.overrides.task)
            raise InputError(
                f"{given} makes no run; give each setting one value at least, as in seed=0,1"
            )
        missing = [job for job in jobs if job.result() is None]
        for job in jobs:
            job.publish()  # what was done before
        if not missing:
            print(f"{len(jobs)} of {len(jobs)} runs are done")
            succeeded.append("sweep")
            sys.exit()
        at_once = _at_once(config.hydra.launcher)
        self.watched, self.at_once = True, at_once and min(at_once, len(missing))
        _announce(jobs, missing, self.at_once)
        _fetch_data(missing)
        _start_tracker()
        _watch = Watch(jobs, missing, self.at_once)
        self.token = _watch.token
        if "joblib" in config.hydra.launcher._target_:  # others' workers may have other parents
            self.starter = os.getpid()
        _watch.start()

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Prepare the process that does the job, which may have been started in another folder."""
        global watched, jobs_at_once, token
        os.chdir(self.folder)
        watched, jobs_at_once, token = self.watched, self.at_once, self.token
        if self.starter not in (None, os.getpid()):
            end_with(self.starter)


def _start_tracker() -> None:
    """Start joblib's process that clears up after workers.

    It ignores INT and TERM until it has done so, and is to ignore HUP as well, which a terminal
    that closes sends to all.
    """
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is not None:
        before = signal.signal(hang_up, signal.SIG_IGN)  # what is ignored stays so in a new process
        resource_tracker.ensure_running()
        signal.signal(hang_up, before)


def missing() -> list[str]:
    """Stop watching, and return the runs that the sweep has not done, each with the reason.

    The token tells failures of this sweep from those that an earlier one left in the same folder; their
    times cannot, since the machines of a cluster have clocks of their own.
    """
    if _watch is None:
        return []
    _watch.stop()
    shared = set.intersection(*(set(job.overrides) for job in _watch.jobs))
    undone = [
        f"{' '.join(override for override in job.overrides if override not in shared)} "
        f"({job.folder.name}): {job.reason(_watch.token)}".lstrip()
        for job in _watch.jobs
        # Another sweep may have published it from other outputs meanwhile.
        if job.unpublished or (job.result() is None and published_result(job.config) is None)
    ]
    if not undone:
        succeeded.append("sweep")
    return undone


def line(folder: Path, result: Mapping[str, Any]) -> str:
    """Return the line that reports a run that is done."""
    diverged = " (diverged)" if result.get("diverged") else ""
    return f"{folder.name}: test accuracy {result['test_accuracy']:.2%}{diverged}"


def jobs_of(experiment: str) -> list[Job]:
    """Return the jobs of conf/experiment/NAME.yaml, in a process that Hydra has been started in."""
    loader = GlobalHydra.instance().config_loader()
    overrides = [f"experiment={experiment}"]
    return _jobs(loader.load_configuration("train", overrides, RunMode.MULTIRUN))


def names_of(experiment: str) -> list[str] | None:
    """Return the names of an experiment's runs; None where a setting of it has no value yet."""
    found = overrides_of(experiment)
    return None if found is None else [*found]


def overrides_of(experiment: str) -> dict[str, list[str]] | None:
    """Return the overrides of each of an experiment's runs, by its name; None as names_of does."""
    try:
        return {job.folder.name: job.overrides for job in jobs_of(experiment)}
    except InputError as error:
        if "has no value yet" in str(error):
            return None
        raise


def _jobs(config: DictConfig) -> list[Job]:
    """Return the sweep's jobs as Hydra's sweeper and launcher will make them."""
    loader = GlobalHydra.instance().config_loader()
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=loader)
    overrides = parser.parse_overrides([*given, *config.hydra.overrides.task])
    require_effect([*given, *config.hydra.overrides.task])
    require_runs(overrides)
    ((*jobs,),) = BasicSweeper.split_arguments(overrides, max_batch_size=None)

    @cache
    def composed(overrides: tuple[str, ...]) -> RunConfig:
        settings = loader.load_sweep_config(config, list(overrides))
        of_run = [str(key) for key in settings if key != "hydra"]
        return resolve(OmegaConf.masked_copy(settings, of_run), RunConfig)

    def job_of(overrides: list[str]) -> Job:
        # Composing takes a tenth of a second; most jobs differ in their seeds alone.
        seeds = [override for override in overrides if override.startswith("seed=")]
        try:
            run = composed(tuple(override for override in overrides if override not in seeds))
            for override in seeds:
                run = run.with_seed(override.removeprefix("seed="))
        except Exception as error:
            raise InputError(f"{' '.join(overrides)}: {one_line(error)}") from error
        return Job(overrides, run, run_folder(run), published=published_result(run))

    # Where a terminal shows it, and more than seeds differ, which takes more than two seconds.
    return [
        job_of(job) for job in tqdm(jobs, "reading settings", delay=1, leave=False, disable=None)
    ]


def _at_once(launcher: DictConfig) -> int | None:
    """Return how many jobs the launcher does side by side; None where it does not tell."""
    if launcher._target_.endswith(BasicLauncher.__name__):
        return 1
    if launcher._target_.endswith(DaskLauncher.__name__) and launcher.address is None:
        return int(launcher.workers)
    return joblib.effective_n_jobs(launcher.n_jobs) if "n_jobs" in launcher else None


def _fetch_data(missing: list[Job]) -> None:
    """Have the data sets before any run begins, so that what is wrong with them is said once."""
    from experiments.runs.data import provide  # imports torch

    needed = {(job.config.data.name, job.config.outputs): job.config for job in missing}
    for config in needed.values():
        provide(config.data, Path(config.outputs) / "data")


def _announce(jobs: list[Job], missing: list[Job], at_once: int | None) -> None:
    """Say how many runs there are to do, and what they take. Ends the program without room."""
    from experiments.runs.estimate import estimate
    from experiments.runs.machine import commit  # imports torch

    commit()  # where there is none, it is said here, and by no worker

    known: dict[tuple[str, ...], tuple[float, int]] = {}
    sizes = []
    for job in missing:
        alike = (
            experiment_identity(job.config),
            job.config.model.name,
            variant(job.config),
            job.config.weights,
        )
        if alike not in known:
            try:
                known[alike] = estimate(job.config)
            except Exception:  # whatever it is, the run itself will say
                known[alike] = 0.0, 0
        job.seconds, size = known[alike]
        sizes.append(size)
    # Checkpoints, of twice the weights, do not stay; while one is replaced there are two.
    room = sum(sizes) + 4 * (at_once or len(missing)) * max(sizes)
    outputs = Path(jobs[0].config.outputs).absolute()
    there = next(folder for folder in (outputs, *outputs.parents) if folder.exists())
    if not there.is_dir():
        sys.exit(f"error: outputs={jobs[0].config.outputs} cannot be made: {there} is a file")
    free = shutil.disk_usage(there).free
    seconds = sum(job.seconds for job in missing)
    if at_once is None:
        time_needed = f"as the launcher has room: {_duration(seconds)} if one after the other"
    else:
        time_needed = f"{at_once} at once: {_duration(seconds / at_once)}"
    plan = f"{len(missing)} of {len(jobs)} runs to do, {time_needed}, {room / 1e6:.0f} MB of disk"
    print(plan, flush=True)
    if free < room:
        sys.exit(f"error: outputs={outputs} has {free / 1e6:.0f} MB left, which is not enough")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(round(seconds, -1), 10):.0f} seconds"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {seconds / 3600:.1f} hours"
