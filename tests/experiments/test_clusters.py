"""Sweeps on engines of other machines, on this one: Dask's scheduler and workers, submitit's executor.

Slow, as most starts Python and torch anew: `make test-all` runs them.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNS = (
    "recipe=smoke",
    "recipe.steps=null",
    "recipe.epochs=12",
    "data.train_size=2000",
    "data.image_size=[16,16]",
    "model.layers.conv3.kernel=3",
    "seed=0,1,2,3",
)
DASK = "hydra/launcher=dask"
pytestmark = pytest.mark.long


def train(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """A sweep that was begun in that folder, into the relative `results`."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", "-m", *RUNS, "outputs=results", *overrides],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(sweep: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = sweep.communicate(timeout=240)
    return sweep.returncode, out, err


def numbers(folder: Path) -> dict[str, Any]:
    """What each run of a folder reached, which neither engine nor faults may change."""
    results = [json.loads(path.read_text()) for path in folder.glob("results/runs/*/result.json")]
    keys = ("test_bits", "test_loss", "fit_loss", "epochs")
    return {
        result["run"]: [
            [{k: v for k, v in point.items() if "seconds" not in k} for point in result[key]]
            if key == "epochs"
            else result[key]
            for key in keys
        ]
        for result in results
    }


def at_once(folder: Path) -> set[int | None]:
    found = folder.glob("results/runs/*/result.json")
    return {json.loads(path.read_text())["jobs_at_once"] for path in found}


def wait_for(condition: Callable[[], Any], seconds: float = 100) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
    return found


@pytest.fixture
def folder(tmp_path: Path, mnist_folder: Path) -> Path:
    """Where a sweep begins: data are there, results will be."""
    (tmp_path / "begun" / "results").mkdir(parents=True)
    (tmp_path / "begun" / "results" / "data").symlink_to(mnist_folder, target_is_directory=True)
    return tmp_path / "begun"


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, mnist_folder: Path) -> dict[str, Any]:
    """The numbers of a sweep on one machine without faults."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / "results").mkdir()
    (folder / "results" / "data").symlink_to(mnist_folder, target_is_directory=True)
    code, out, err = finish(train(folder))
    assert (code, err) == (0, ""), out
    assert len(numbers(folder)) == 4
    return numbers(folder)


class Cluster:
    """A scheduler and workers in a folder of their own, each in a process group that can be killed."""

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("distributed", reason="needs the extra dask")
        folder.mkdir()
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start(
            "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", "scheduler.json"
        )
        file = folder / "scheduler.json"
        wait_for(lambda: file.exists() and file.read_text())
        self.address = json.loads(file.read_text())["address"]

    def worker(self, *options: str) -> subprocess.Popen[bytes]:
        return self._start(
            "worker", self.address, "--no-dashboard", *(options or ("--nthreads", "1"))
        )

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            kill(process)


def kill(process: subprocess.Popen[Any]) -> None:
    """It and its children, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "elsewhere")
    yield cluster
    cluster.end()


@contextmanager
def ending(sweep: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield sweep
    finally:
        kill(sweep)
        for pipe in (sweep.stdout, sweep.stderr):
            if pipe is not None:
                pipe.close()


def has_begun(folder: Path) -> bool:
    return any(folder.glob("results/runs/*/checkpoint.pt"))


def test_workers_on_this_machine_do_what_the_default_does(
    folder: Path, calm: dict[str, Any]
) -> None:
    pytest.importorskip("distributed", reason="needs the extra dask")
    code, out, err = finish(train(folder, DASK, "hydra.launcher.workers=2"))
    assert (code, err) == (0, "")
    assert out.startswith("4 of 4 runs to do, 2 at once: about ")
    assert "[4 of 4] " in out
    assert numbers(folder) == calm
    assert at_once(folder) == {2}


def test_a_cluster_in_another_folder_leaves_its_results_where_the_sweep_began(
    folder: Path, cluster: Cluster, calm: dict[str, Any]
) -> None:
    cluster.worker("--nthreads", "3")  # a process does one job at a time all the same
    code, out, err = finish(train(folder, DASK, f"hydra.launcher.address={cluster.address}"))
    assert (code, err) == (0, "")
    assert out.startswith("4 of 4 runs to do, as the launcher has room: ")
    assert numbers(folder) == calm
    assert at_once(folder) == {None}  # nobody can tell
    assert not [path for path in cluster.folder.rglob("*") if "runs" in path.parts]


def test_of_two_nodes_one_is_killed_and_the_other_does_its_runs(
    folder: Path, cluster: Cluster, calm: dict[str, Any]
) -> None:
    nodes = [cluster.worker(), cluster.worker()]
    with ending(train(folder, DASK, f"hydra.launcher.address={cluster.address}")) as sweep:
        wait_for(lambda: has_begun(folder))
        kill(nodes[0])
        code, _, err = finish(sweep)
    assert code == 0, err
    assert numbers(folder) == calm


def test_a_node_that_joins_late_does_what_no_other_has(
    folder: Path, cluster: Cluster, calm: dict[str, Any]
) -> None:
    with ending(train(folder, DASK, f"hydra.launcher.address={cluster.address}")) as sweep:
        wait_for(lambda: (folder / "results" / "hydra").exists())
        time.sleep(2)
        assert sweep.poll() is None
        cluster.worker()
        code, _, err = finish(sweep)
    assert (code, err) == (0, "")
    assert numbers(folder) == calm


def test_after_the_drivers_death_the_same_command_does_the_rest(
    folder: Path, cluster: Cluster, calm: dict[str, Any]
) -> None:
    cluster.worker()
    address = f"hydra.launcher.address={cluster.address}"
    with ending(train(folder, DASK, address)):
        wait_for(lambda: has_begun(folder))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("results/runs/*/result.json")}
    code, _, err = finish(train(folder, DASK, address))
    assert code == 0, err
    assert numbers(folder) == calm
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_address_where_nobody_answers_is_one_line(folder: Path) -> None:
    pytest.importorskip("distributed", reason="needs the extra dask")
    code, _, err = finish(train(folder, DASK, "hydra.launcher.address=tcp://127.0.0.1:1"))
    assert code == 1
    assert err.startswith("error: hydra.launcher.address=tcp://127.0.0.1:1: no scheduler of Dask")


def test_a_killed_job_of_submitit_is_missing_and_done_by_the_next_command(
    folder: Path, calm: dict[str, Any]
) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm")
    local = "hydra/launcher=submitit_local"
    with ending(train(folder, local)) as sweep:
        begun = wait_for(lambda: [*folder.glob("results/runs/*/checkpoint.pt")])
        lost = begun[0].parent
        os.kill(holder(lost / "lock"), signal.SIGKILL)
        code, _, err = finish(sweep)
    assert code == 1
    assert f"({lost.name}): not finished" in err
    code, _, err = finish(train(folder, local))
    assert code == 0, err
    assert numbers(folder) == calm
    assert at_once(folder) == {None}


def holder(lock: Path) -> int:
    """The process that has the file open."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.path.samefile(link, lock) for link in (process / "fd").iterdir()):
                return int(process.name)
    raise AssertionError(f"nobody has {lock}")


@pytest.mark.skipif(shutil.which("srun") is not None, reason="there is a Slurm here")
def test_without_slurm_the_launcher_says_so_in_one_line(folder: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm")
    code, _, err = finish(train(folder, "hydra/launcher=slurm"))
    assert code == 1
    assert 'error: Could not detect "srun"' in err
