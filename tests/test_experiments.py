"""The commands as users run them, in processes of their own, on the real MNIST."""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

import stridenet
from experiments.runs.data import load
from experiments.runs.files import load_weights
from experiments.runs.networks import build_network
from experiments.settings.identity import LOOP, run_name
from experiments.settings.schema import DataConfig
from tests.whole import whole

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ("recipe=smoke", "data.train_size=5000")
PIPELINE = {
    "strided": ["train", *SMOKE, "model=strided"],
    "unit_stride": ["train", *SMOKE, "model=unit_stride"],
    "copy": ["train", *SMOKE, "model=unit_stride", "weights=copy"],
    "report": ["report", *SMOKE],
}
# A run of which most is the start of Python.
FEW = (
    "recipe=smoke",
    "recipe.steps=10",
    "data.train_size=1000",
    "data.image_size=[16,16]",
    "model.layers.conv3.kernel=3",
)
REPORT = {
    "runs.csv",
    "about.json",
    *(f"{name}.{suffix}" for suffix in ("csv", "md", "tex")
      for name in ("table1", "comparison", "table2", "degrees_of_freedom", "copied_weights")),
    *(f"{name}.{suffix}" for suffix in ("png", "svg")
      for name in ("feature_maps", "accuracy_by_epoch", "accuracy_of_seeds", "training_time")),
}  # fmt: skip
Composed = Callable[..., Any]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository's root, as a user would."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("STRIDENET_TRACEBACK", "HYDRA_FULL_ERROR")
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


def command(name: str, *overrides: str, outputs: Path) -> subprocess.CompletedProcess[str]:
    return python("-m", f"experiments.{name}", *overrides, f"outputs={outputs}")


def outputs_in(folder: Path, mnist_folder: Path) -> Path:
    """A folder for results that already has the data."""
    folder.mkdir()
    (folder / "data").symlink_to(mnist_folder, target_is_directory=True)
    return folder


@pytest.fixture
def outputs(tmp_path: Path, mnist_folder: Path) -> Path:
    return outputs_in(tmp_path / "outputs", mnist_folder)


@pytest.fixture(scope="session")
def pipeline(mnist_folder: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The results of all of PIPELINE, made once for all of pytest's processes, and never changed."""
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent
    folder = shared / "pipeline"
    with FileLock(shared / "pipeline.lock"):
        if not folder.exists():
            outputs_in(folder, mnist_folder)
            printed = {
                step: vars(command(*PIPELINE[step], outputs=folder)) | {"args": None}
                for step in PIPELINE
            }
            (folder / "printed.json").write_text(json.dumps(printed))
    return folder


@pytest.fixture(scope="session")
def results(pipeline: Path) -> dict[str, dict[str, Any]]:
    """The result of each run of the pipeline."""
    found = {}
    for path in (pipeline / "runs").glob("*/result.json"):
        result = json.loads(path.read_text())
        found["copy" if result["weights"] == "copy" else result["network"]] = result
    return found


@pytest.fixture
def finished(outputs: Path) -> Path:
    """A folder of results with a finished run, to make mistakes beside."""
    run = outputs / "runs" / "strided-scratch-smoke-s0-00000000"
    run.mkdir(parents=True)
    config: dict[str, Any] = {"data": {"name": "mnist"}, "recipe": {"name": "smoke"}, "model": {}}
    of_run = {"run": run.name, "network": "strided", "weights": "scratch", "seed": 0}
    result = {**of_run, "experiment": "0" * 8, "loop": LOOP, "config": config, "test_accuracy": 0.5}
    (run / "result.json").write_text(json.dumps(whole(result)))
    (run / "weights.pt").write_bytes(b"weights")
    return outputs


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file of every run, but the locks."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.glob("runs/*/*")
        if path.name != "lock"
    }


# The pipeline


@pytest.mark.parametrize("step", PIPELINE)
def test_every_step_succeeds_and_says_what_it_did(pipeline: Path, step: str) -> None:
    printed = json.loads((pipeline / "printed.json").read_text())[step]
    assert printed["returncode"] == 0, printed["stderr"]
    assert printed["stderr"] == ""
    if step == "report":
        for told in ("Table 1:", "Table 2:", "320x6x6", "Non-Unity Stride", "98.17", "10000"):
            assert told in printed["stdout"]
        assert max(map(len, printed["stdout"].splitlines())) <= max(80, len(str(pipeline)) + 70)
    else:
        network = "copy" if step == "copy" else "scratch"
        assert re.fullmatch(
            rf"(un)?\w+-{network}-smoke-s0-[0-9a-f]{{8}}: test accuracy \d+\.\d\d%\n",
            printed["stdout"],
        )


def test_results_have_all_that_a_reader_needs(
    composed: Composed, results: dict[str, dict[str, Any]], pipeline: Path
) -> None:
    assert set(results) == {"strided", "unit_stride", "copy"}
    assert len({result["experiment"] for result in results.values()}) == 1
    for step, result in results.items():
        assert set(result) == {
            "run", "loop", "experiment", "network", "weights", "sharing", "variant", "seed",
            "learning_rate", "diverged",
            "test_accuracy", "test_correct", "test_images", "test_loss", "test_bits",
            *(() if step == "copy" else ("fit_accuracy", "fit_loss", "fit_images")),
            "training_wall_seconds", "training_cpu_seconds", "rearrangement_seconds",
            "copied", "epochs", "rho", "device", "device_name", "threads", "jobs_at_once",
            "versions", "git_commit", "date", "config", "run_seconds", "sha256",
        }  # fmt: skip
        config = composed(*PIPELINE[step][1:], f"outputs={pipeline}")
        assert result["run"] == run_name(config)
        assert (result["seed"], result["threads"], result["test_images"]) == (0, 1, 10_000)
        assert result["test_accuracy"] == result["test_correct"] / 10_000
        assert result["config"]["recipe"]["steps"] == 60
        assert result["versions"]["torch"] == torch.__version__
        files = {path.name for path in (pipeline / "runs" / result["run"]).iterdir()}
        assert files == {"lock", "config.yaml", "weights.pt", "result.json"}


def test_sixty_steps_already_learn_and_their_seconds_are_measured(
    results: dict[str, dict[str, Any]],
) -> None:
    for step in ("strided", "unit_stride"):
        first, last = results[step]["epochs"]
        assert (first["epoch"], last["epoch"]) == (0, 60 / 78)
        assert last["validation_accuracy"] > 2 * first["validation_accuracy"]
        assert last["validation_loss"] < first["validation_loss"]
        assert results[step]["training_wall_seconds"] > 0
    assert results["copy"]["training_wall_seconds"] is None


def test_copied_weights_predict_the_same_class_on_all_test_images(
    results: dict[str, dict[str, Any]],
) -> None:
    copied = results["copy"]["copied"]
    assert copied["float64"]["agreeing"] == copied["float64"]["images"] == 10_000
    assert copied["float32"]["agreeing"] >= 9_999  # two scores may tie up to rounding
    assert copied["float64"]["largest_difference"] < 1e-12
    assert copied["float32"]["largest_difference"] < 1e-3
    assert results["copy"]["test_correct"] == pytest.approx(
        results["strided"]["test_correct"], abs=1
    )


def strided_lenet(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The paper's strided network, written out."""
    w = {name: value.double() for name, value in weights.items()}
    for layer, stride in (("conv1", 1), ("conv2", 2), ("conv3", 1), ("conv4", 2)):
        x = F.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], stride).relu()
    x = F.linear(x.flatten(1), w["fc1.weight"], w["fc1.bias"]).relu()
    return F.linear(x, w["fc2.weight"], w["fc2.bias"])


def test_the_saved_weights_of_both_networks_give_the_same_scores_on_mnist(
    pipeline: Path, results: dict[str, dict[str, Any]], composed: Composed, mnist_folder: Path
) -> None:
    folders = {step: pipeline / "runs" / result["run"] for step, result in results.items()}
    data = load(DataConfig("mnist"), mnist_folder)
    values = data.train_images.double()
    images = (data.test_images[:500].double() - values.mean()) / values.std()
    weights = torch.load(folders["strided"] / "weights.pt", weights_only=True)
    twin = build_network(composed("model=unit_stride").model, (1, 28, 28))
    load_weights(folders["copy"] / "weights.pt", twin)
    with torch.no_grad():
        expected, scores = strided_lenet(weights, images), twin.double()(images)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-12)
    accuracy = float((scores.argmax(1) == data.test_labels[:500]).double().mean())
    assert accuracy == pytest.approx(results["strided"]["test_accuracy"], abs=0.1)


def test_the_report_has_all_its_files_with_the_numbers_of_the_runs(
    pipeline: Path, results: dict[str, dict[str, Any]]
) -> None:
    report = pipeline / "report"
    assert {path.name for path in report.iterdir()} == REPORT

    runs = pd.read_csv(report / "runs.csv").set_index(["network", "weights"])
    assert len(runs) == 3
    table1 = pd.read_csv(report / "table1.csv").set_index("network")
    assert list(table1.index) == ["strided", "unit_stride"]
    for step, key in (("strided", "scratch"), ("unit_stride", "scratch"), ("copy", "copy")):
        network, result = results[step]["network"], results[step]
        row = runs.loc[(network, key)]
        assert (row.run, row.test_correct) == (result["run"], result["test_correct"])
        if key == "scratch":
            entry = table1.loc[network]
            assert entry.n == 1
            assert entry.accuracy_percent_mean == pytest.approx(100 * result["test_accuracy"])
            assert entry.training_seconds_mean == pytest.approx(result["training_wall_seconds"])

    table2 = pd.read_csv(report / "table2.csv", dtype=str)
    assert table2.to_numpy().tolist()[1] == [
        "unit_stride", "16x7x7", "320x6x6", "80x6x6", "200x4x4", "50x4x4", "500",
    ]  # fmt: skip
    copied = pd.read_csv(report / "copied_weights.csv").set_index("numbers")
    assert copied.loc["float64"].agreeing_least == 10_000


def test_a_second_time_nothing_is_trained_and_the_report_is_the_same(
    pipeline: Path, outputs: Path
) -> None:
    for part in ("runs", "report"):
        shutil.copytree(pipeline / part, outputs / part)
    before = snapshot(outputs)
    assert len(before) == 9
    both = command("train", "-m", *SMOKE, "model=strided,unit_stride", outputs=outputs)
    copy = command(*PIPELINE["copy"], outputs=outputs)
    report = command(*PIPELINE["report"], outputs=outputs)
    assert [both.returncode, copy.returncode, report.returncode] == [0, 0, 0]
    assert both.stdout == "2 of 2 runs are done\n"
    assert copy.stdout.endswith("% (done before)\n")
    assert snapshot(outputs) == before
    for name in REPORT:
        again, first = outputs / "report" / name, pipeline / "report" / name
        assert again.read_bytes() == first.read_bytes(), name


# Sweeps


def runs_in(outputs: Path) -> dict[tuple[str, int], Path]:
    """The folders of finished runs by network and seed."""
    paths = outputs.glob("runs/*/result.json")
    found = {path.parent: json.loads(path.read_text()) for path in paths}
    return {(result["network"], result["seed"]): folder for folder, result in found.items()}


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
    """A single run is one, joblib and Hydra's own launcher tell; of any other it is unknown."""
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "elsewhere.py").write_text(ELSEWHERE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    other = "hydra.launcher._target_=hydra_plugins.elsewhere.Elsewhere"
    for seed, launched, expected in (
        (0, [], 1),
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


LONG = (*FEW, "recipe.steps=null", "recipe.epochs=12", "data.train_size=2000")


def sweep_in_the_background(outputs: Path, *overrides: str) -> subprocess.Popen[str]:
    """A sweep with its runs in a process group of its own, as a shell starts it."""
    arguments = ["-m", "experiments.train", "-m", *LONG, *overrides, f"outputs={outputs}"]
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(group: int) -> list[str]:
    """The processes of a group that are still there after a moment."""
    for _ in range(50):
        listed = subprocess.run(
            ["ps", "-wweo", "pgid=,stat=,args="], capture_output=True, text=True
        )
        rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
        left = [row[2] for row in rows if row[0] == str(group) and not row[1].startswith("Z")]
        if not left:
            break
        time.sleep(0.1)
    return left


def wait_for(outputs: Path, pattern: str) -> None:
    for _ in range(1200):
        if next(outputs.glob(pattern), None):
            return
        time.sleep(0.1)
    pytest.fail(f"no {pattern} in two minutes")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_sweep_goes_on_to_the_numbers_of_an_uninterrupted_one(
    outputs: Path, tmp_path: Path, mnist_folder: Path, sent: signal.Signals
) -> None:
    both = "model=strided,unit_stride"
    sweep = sweep_in_the_background(outputs, both)
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

    resumed = command("train", "-m", *LONG, both, outputs=outputs)
    assert resumed.returncode == 0
    assert sorted(resumed.stderr.splitlines()) == [
        f"{path.parent.name}: going on from its checkpoint" for path in sorted(stopped)
    ]
    elsewhere = outputs_in(tmp_path / "elsewhere", mnist_folder)
    command("train", "-m", *LONG, both, outputs=elsewhere)
    for key, run in runs_in(elsewhere).items():
        assert_same_numbers(runs_in(outputs)[key], run)


def test_a_sweep_goes_on_when_one_of_its_processes_is_killed(outputs: Path) -> None:
    sweep = sweep_in_the_background(outputs, "model=strided,unit_stride")
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


# Faults


@pytest.mark.parametrize(
    "blocks", [50, 700]
)  # of 1024 bytes: no weights; weights, but no checkpoint
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing_half_written(
    outputs: Path, blocks: int
) -> None:
    run = [sys.executable, "-m", "experiments.train", *FEW, f"outputs={outputs}"]
    limited = ["bash", "-c", f'ulimit -f {blocks} && exec "$@"', "bash", *run]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "File too large" in line
    (folder,) = outputs.glob("runs/*/")
    assert str(folder / "checkpoint.pt") in line
    assert {path.name for path in folder.iterdir()} == {"lock", "config.yaml", "failure.json"}
    assert subprocess.run(run, cwd=ROOT, capture_output=True, timeout=200).returncode == 0
    assert {path.name for path in folder.iterdir()} == {
        "lock", "config.yaml", "weights.pt", "result.json",
    }  # fmt: skip


# Mistakes


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["recipe.nonsense=1"], "nonsense"),
        (["model=nonsense"], "strided, unit_stride"),
        (["seed=abc"], "seed: 'abc' is not"),
        (["seed="], "seed="),
        (["seed=[1"], "[1"),
        (["+nonsense=1"], "nonsense"),
        (["seed=-1"], "seed=-1"),
        (["weights=nowhere.pt"], "weights=nowhere.pt"),
        (["model=unit_stride", "weights=copy", "seed=5"], "model=strided"),
        (["weights={file}"], "no-weights.pt"),
        (["recipe.batch_size=2000"], "recipe.batch_size=2000"),
        (["outputs={file}"], "no-weights.pt"),
        (["model.layers.conv3.stride=9"], "model.layers.conv4: its window of 2x2"),
    ],
)
def test_a_mistake_ends_in_one_line_and_leaves_earlier_results_alone(
    finished: Path, overrides: list[str], told: str
) -> None:
    file = finished / "no-weights.pt"
    file.write_text("These are no weights.\n")
    before = snapshot(finished)
    assert len(before) == 2
    given = [override.format(file=file) for override in overrides]
    if not any(override.startswith("outputs=") for override in given):
        given.append(f"outputs={finished}")
    done = python("-m", "experiments.train", *FEW, *given)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line
    after = snapshot(finished)
    assert before.items() <= after.items()
    assert all(
        name.endswith(("config.yaml", "failure.json")) for name in after.keys() - before.keys()
    )


def test_a_report_of_runs_that_are_not_there_is_one_line_that_lists_those_that_are(
    finished: Path,
) -> None:
    done = command("report", "recipe=caffe", outputs=finished)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "recipe=caffe" in line
    assert "data=mnist recipe=smoke" in line
    assert not (finished / "report").exists()


def dry_make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """What make would do, called from nowhere: `make test` leaves its own flags in the environment."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))
    }
    command = ["make", "-n", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("SEED=3", "unknown variable SEED. Did you mean SEEDS?"),
        ("seeds=3", "unknown variable seeds. Did you mean SEEDS?"),
        ("RUNARGS=threads=2", "unknown variable RUNARGS. Did you mean RUN_ARGS?"),
        (
            "NONSENSE=1",
            "unknown variable NONSENSE. There are SEEDS RECIPE OUTPUTS ARGS RUN_ARGS EXPERIMENT.",
        ),
    ],
)
@pytest.mark.parametrize("target", ["reproduce", "report", "check"])
def test_make_refuses_a_variable_that_it_does_not_know(target: str, given: str, told: str) -> None:
    done = dry_make(target, given)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert told in line
    assert "SEEDS RECIPE OUTPUTS ARGS RUN_ARGS" in line


@pytest.mark.parametrize(
    "given",
    [
        (
            "reproduce",
            "SEEDS=3",
            "RECIPE=smoke",
            "OUTPUTS=o",
            "ARGS=threads=1",
            "RUN_ARGS=device=cpu",
        ),
        ("help", "SEED=3"),
        ("clean", "SEED=3"),
    ],
)
def test_make_takes_the_variables_that_it_knows_and_help_and_clean_any(given: tuple[str]) -> None:
    done = dry_make(*given)
    assert (done.returncode, done.stderr) == (0, "")
    if given[0] == "reproduce":
        assert "'seed=3'" in done.stdout
        assert "recipe=smoke outputs=o threads=1 device=cpu" in done.stdout


# From where, and how, a command is called

COMMANDS = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)


def test_every_command_can_be_called_from_another_folder_as_a_module(tmp_path: Path) -> None:
    for name in COMMANDS:
        module = [sys.executable, "-m", f"experiments.{name}", "--help"]
        done = subprocess.run(module, cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"python -m experiments.{name}" in done.stdout


def test_every_command_can_be_called_as_a_script_where_nothing_of_ours_is_installed(
    tmp_path: Path,
) -> None:
    # Without site's .pth files, this environment has the libraries that we need and not us.
    libraries = {"PYTHONPATH": sysconfig.get_path("purelib")}
    absent = [sys.executable, "-S", "-c", "import hydra, stridenet"]
    kept = {"cwd": tmp_path, "env": os.environ | libraries, "capture_output": True, "text": True}
    assert "No module named 'stridenet'" in subprocess.run(absent, **kept).stderr
    for name in COMMANDS:
        script = [sys.executable, "-S", str(ROOT / "experiments" / f"{name}.py"), "--help"]
        done = subprocess.run(script, **kept, timeout=100)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"python -m experiments.{name}" in done.stdout


def test_a_sweep_by_a_script_from_another_folder_leaves_its_results_there(
    tmp_path: Path, mnist_folder: Path
) -> None:
    outputs_in(tmp_path / "outputs", mnist_folder)
    script = [sys.executable, str(ROOT / "experiments" / "train.py"), "-m", *FEW, "seed=0,1"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(runs_in(tmp_path / "outputs")) == 2


def test_no_file_of_the_commands_hides_a_library_from_a_script() -> None:
    libraries = sys.stdlib_module_names | importlib.metadata.packages_distributions().keys()
    found = {path.stem for path in (ROOT / "experiments").iterdir()}
    assert {"train", "settings"} <= found
    assert not found & libraries


# Imports

WATCHED = """\
import atexit, runpy, sys
atexit.register(lambda: print("torch" in sys.modules, file=sys.stderr))
sys.argv = ["train", *sys.argv[1:]]
runpy.run_module("experiments.train", run_name="__main__")
"""


@pytest.mark.parametrize("argument", ["--help", "recipe.nonsense=1", "seed=-1"])
def test_help_and_mistyped_settings_do_not_wait_for_torch(argument: str) -> None:
    done = python("-c", WATCHED, argument)
    assert done.stderr.splitlines()[-1] == "False"
    assert done.returncode == (argument != "--help")


def test_help_lists_groups_and_settings_with_their_values_and_meanings() -> None:
    done = python("-m", "experiments.train", "--help", "model=pooling", "outputs=a$b")
    assert (done.returncode, done.stderr) == (0, "")
    for told in (
        "  model=pooling                   pooling | strided | unit_stride\n",
        "  recipe.schedule=linear          linear | constant | inverse: ",
        "  outputs=a$b                     folder of data",
        "  python -m experiments.train model=unit_stride weights=copy\n",
        "  seed=0                          decides the weights and the images' order\n",
    ):
        assert told in done.stdout


CONVERTING = """\
import sys
before = list(sys.meta_path)
import stridenet
assert "torch" not in sys.modules
import torch
import stridenet.zoo
twin = stridenet.eliminate_stride(stridenet.zoo.lenet(), input_size=(1, 28, 28))
twin(torch.zeros(1, 1, 28, 28))
assert sys.meta_path == before, sys.meta_path
"""
WATCHED_IMPORT = """\
from stridenet.cli import torchvision_import
torchvision_import.watch()
import torchvision
from torchvision import datasets, transforms
"""


@pytest.mark.parametrize("program", [CONVERTING, WATCHED_IMPORT])
def test_only_the_commands_change_how_torchvision_is_imported(program: str) -> None:
    done = python("-W", "error", "-c", program)
    assert (done.returncode, done.stderr) == (0, "")


def test_all_public_names_are_there_and_no_others() -> None:
    for name in stridenet.__all__:
        assert getattr(stridenet, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        stridenet.nonsense  # noqa: B018
