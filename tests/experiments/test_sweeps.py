"""Sweeps: every job once, also where jobs fail, processes are killed, or two sweeps go on at once."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import joblib
import pytest
import torch

from tests.experiments.processes import (
    FEW,
    LONG,
    alive,
    command,
    outputs_in,
    runs_in,
    snapshot,
    sweep_in_the_background,
    wait_for,
)

pytestmark = pytest.mark.slow


def assert_same_numbers(one: Path, other: Path) -> None:
    """Bit for bit the same weights, and the same history."""
    assert one.name == other.name
    here, there = (torch.load(run / "weights.pt", weights_only=True) for run in (one, other))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    histories = [json.loads((run / "result.json").read_text())["epochs"] for run in (one, other)]
    assert histories[0] == histories[1]


ANNOUNCED = r"(\d+) of (\d+) runs to do, (\d+) at once: about \d+ (seconds|minutes), \d+ MB of disk"


LEFT = r"( \(about \d+ (seconds|minutes) left\))?"


def test_a_sweep_does_every_job_and_each_can_be_repeated_alone_bit_for_bit(
    outputs: Path, tmp_path: Path, mnist_folder: Path
) -> None:
    jobs = ["-m", "model=strided,unit_stride", "seed=0,1"]
    done = command("train", *jobs, *FEW, outputs=outputs)
    assert (done.returncode, done.stderr) == (0, "")
    announced, *lines = done.stdout.splitlines()
    match = re.fullmatch(ANNOUNCED, announced)
    assert match is not None
    assert match.groups()[:3] == ("4", "4", str(min(4, joblib.cpu_count())))
    told = [re.fullmatch(rf"\[(\d) of 4\] (\S+): test accuracy .*%{LEFT}", line) for line in lines]
    assert [match and match[1] for match in told] == ["1", "2", "3", "4"]
    names = {path.parent.name for path in outputs.glob("runs/*/result.json")}
    assert {match and match[2] for match in told} == names
    found = runs_in(outputs)
    assert set(found) == {(n, seed) for n in ("strided", "unit_stride") for seed in (0, 1)}
    weights = {(run / "weights.pt").read_bytes() for run in found.values()}
    assert len(weights) == 4  # each job has its own

    elsewhere = outputs_in(tmp_path / "elsewhere", mnist_folder)
    for network, seed in (("unit_stride", 1), ("strided", 0)):
        command("train", f"seed={seed}", f"model={network}", *FEW, outputs=elsewhere)
        assert_same_numbers(found[network, seed], runs_in(elsewhere)[network, seed])


def test_the_experiment_on_sharing_does_its_arms_from_both_starts(outputs: Path) -> None:
    tiny = ("recipe.epochs=null", "recipe.learning_rate=0.1", *FEW[1:])
    chosen = ("experiment=sharing", "arm=strided,tied", "seed=3")
    # One at once: else, of one seed, fine-tuning might begin before the strided network is trained.
    done = command("train", *chosen, *tiny, "hydra.launcher.n_jobs=1", outputs=outputs)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("4 of 4 runs to do, 1 at once: ")
    losses, experiments = {}, set()
    for path in outputs.glob("runs/*/result.json"):
        result = json.loads(path.read_text())
        beginning = result["run"].rpartition("-")[0]
        losses[beginning] = [row["validation_loss"] for row in result["epochs"]]
        experiments.add(result["experiment"])
    assert len(experiments) == 1
    trained = losses.pop("strided-scratch-sharing-s3")
    tuned = losses.pop("strided-fine_tune-sharing-s3")
    assert trained[0] > 1.001 * trained[1]
    assert trained[1] == tuned[0]
    assert tuned[0] > 1.0005 * tuned[1]
    assert losses == {  # tied, the twin is the strided network
        "unit_stride-tied-scratch-sharing-s3": pytest.approx(trained, rel=1e-4),
        "unit_stride-tied-fine_tune-sharing-s3": pytest.approx(tuned, rel=1e-4),
    }


def test_a_failing_run_is_named_the_others_go_on_and_the_next_sweep_does_what_is_missing(
    outputs: Path,
) -> None:
    sweep = ["-m", *FEW, "seed=0,1"]
    done = command("train", *sweep, "recipe.batch_size=2000,64", outputs=outputs)
    assert done.returncode == 1
    *errors, summary, first, second = done.stderr.splitlines()
    assert len(errors) == 2
    for line in errors:
        assert line.startswith("error: ")
        assert "recipe.batch_size=2000 is more than the 1000 training images" in line
    assert summary == "error: 2 runs are missing:"
    for seed, line in enumerate((first, second)):
        assert line.startswith(f"  seed={seed} recipe.batch_size=2000 (strided-scratch-")
        assert "): recipe.batch_size=2000 is more than " in line
    assert {seed for _, seed in runs_in(outputs)} == {0, 1}
    assert len(list(outputs.glob("runs/*/failure.json"))) == 2

    before = snapshot(outputs)
    again = command("train", *sweep, "recipe.batch_size=64,32", outputs=outputs)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("2 of 4 runs to do, ")
    assert [line.split("]")[0] for line in again.stdout.splitlines()[1:]] == ["[3 of 4", "[4 of 4"]
    assert before.items() <= snapshot(outputs).items()


def test_a_run_that_diverges_is_done_and_the_sweep_goes_on(outputs: Path) -> None:
    rates = "recipe.learning_rate=1e9,0.01"
    done = command("train", "-m", *FEW, "recipe.steps=30", rates, outputs=outputs)
    assert (done.returncode, done.stderr) == (0, "")
    said = [line for line in done.stdout.splitlines() if "(diverged)" in line]
    assert len(said) == 1
    results = [json.loads(path.read_text()) for path in outputs.glob("runs/*/result.json")]
    assert {result["learning_rate"]: result["diverged"] for result in results} == {
        1e9: True,
        0.01: False,
    }


def test_a_sweep_with_a_mistake_in_a_job_starts_none(outputs: Path) -> None:
    for overrides, told in (
        (["seed=0,-1"], "seed=-1 must be from 0"),
        (["seed=0,abc"], "seed=abc"),
        (["model=strided,nonsense"], "nonsense"),
        (["weights=scratch,copy"], "weights=copy"),
    ):
        done = command("train", "-m", *FEW, *overrides, outputs=outputs)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert told in line
    assert not (outputs / "runs").exists()


ELSEWHERE = """\
from hydra._internal.core_plugins.basic_launcher import BasicLauncher

class Elsewhere(BasicLauncher):
    pass
"""


def test_how_many_jobs_are_done_at_once_is_told_only_where_it_is_known(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joblib and Hydra's own launcher tell; of any other it is unknown."""
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "elsewhere.py").write_text(ELSEWHERE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    other = "hydra.launcher._target_=hydra_plugins.elsewhere.Elsewhere"
    for seed, launched, expected in (
        (1, ["-m", "hydra/launcher=basic"], 1),
        (2, ["-m", "hydra.launcher.n_jobs=2"], 1),  # of one run
        (3, ["-m", "hydra/launcher=basic", other], None),
    ):
        done = command("train", *launched, *FEW, f"seed={seed}", outputs=outputs)
        assert (done.returncode, done.stderr) == (0, "")
        (path,) = outputs.glob(f"runs/*-s{seed}-*/result.json")
        assert json.loads(path.read_text())["jobs_at_once"] == expected
    assert done.stdout.startswith("1 of 1 runs to do, as the launcher has room: about ")
    assert "[1 of 1] " in done.stdout


def test_a_sweep_into_a_file_names_it(outputs: Path) -> None:
    (outputs / "file").write_text("")
    done = command("train", "-m", *FEW, "seed=0,1", outputs=outputs / "file")
    assert done.returncode == 1
    assert (
        done.stderr
        == f"error: outputs={outputs / 'file'} cannot be made: {outputs / 'file'} is a file\n"
    )


BOTH = "model=strided,unit_stride"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, mnist_folder: Path) -> Path:
    """The results of a sweep that nothing stopped."""
    outputs = outputs_in(tmp_path_factory.mktemp("uninterrupted") / "outputs", mnist_folder)
    assert command("train", "-m", *LONG, BOTH, outputs=outputs).returncode == 0
    return outputs


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_sweep_goes_on_to_the_numbers_of_an_uninterrupted_one(
    outputs: Path, uninterrupted: Path, sent: signal.Signals
) -> None:
    sweep = sweep_in_the_background(outputs, BOTH)
    wait_for(outputs, "runs/*/checkpoint.pt")
    os.killpg(sweep.pid, sent)
    out, errors = sweep.communicate(timeout=60)
    if sent == signal.SIGINT:
        assert sweep.returncode == 130, errors
        assert errors == "stopped, 2 runs are missing: the same command goes on from here\n"
    assert not alive(sweep.pid)
    assert len(out.splitlines()) == 1
    assert not list(outputs.glob("runs/*/result.json"))
    stopped = list(outputs.glob("runs/*/checkpoint.pt"))
    assert all(torch.load(path, weights_only=True)["history"]["steps"] > 0 for path in stopped)

    resumed = command("train", "-m", *LONG, BOTH, outputs=outputs)
    assert resumed.returncode == 0
    assert sorted(resumed.stderr.splitlines()) == [
        f"{path.parent.name}: going on from its checkpoint" for path in sorted(stopped)
    ]
    for key, run in runs_in(uninterrupted).items():
        assert_same_numbers(runs_in(outputs)[key], run)


def test_a_sweep_goes_on_when_one_of_its_processes_is_killed(outputs: Path) -> None:
    sweep = sweep_in_the_background(outputs, BOTH, "hydra.launcher.n_jobs=2")
    wait_for(outputs, "runs/*/checkpoint.pt")
    listed = subprocess.run(["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True)
    workers = [
        int(line.split()[0])
        for line in listed.stdout.splitlines()
        if line.split()[1] == str(sweep.pid) and "popen_loky" in line
    ]
    os.kill(workers[0], signal.SIGKILL)
    out, errors = sweep.communicate(timeout=200)
    assert sweep.returncode == 0
    assert "error: a run was killed (for lack of memory?); going on with 2 runs" in errors
    assert "[2 of 2] " in out
    assert len(runs_in(outputs)) == 2


def test_two_sweeps_at_once_do_every_run_once(outputs: Path) -> None:
    sweeps = [sweep_in_the_background(outputs, "recipe.epochs=2", "seed=0,1,2") for _ in range(2)]
    ends = [(*sweep.communicate(timeout=200), sweep.returncode) for sweep in sweeps]
    assert [code for *_, code in ends] == [0, 0]
    for out, errors, _ in ends:
        assert sum("test accuracy" in line for line in out.splitlines()) == 3
        assert all(
            "waiting, another process holds this run" in line for line in errors.splitlines()
        )
    assert len(runs_in(outputs)) == 3
