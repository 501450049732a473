"""The commands from anywhere: one-line mistakes, full disks, make, help, and what importing changes."""

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import stridenet
from experiments.settings.identity import LOOP
from tests.experiments.processes import FEW, ROOT, command, outputs_in, python, runs_in, snapshot
from tests.whole import whole

pytestmark = pytest.mark.slow


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
    # This environment, without site's .pth files, has the libraries that we need and not us.
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
        "  model=pooling                   which network: pooling | strided | unit_stride\n",
        "  recipe.momentum=0.9  recipe.weight_decay=0.0005 ",
        "  outputs=a$b                     folder of data",
        "  python -m experiments.train model=unit_stride weights=copy\n",
        "  seed=0                          decides the weights and the images' order\n",
    ):
        assert told in done.stdout
    part = python("-m", "experiments.train", "--help", "recipe").stdout
    assert "\n  recipe.schedule=linear          linear | constant | inverse: " in part
    assert "model.activation" not in part


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
