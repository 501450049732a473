"""Exit code 0 is for what was seen to succeed, whatever a user's module does, or only asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf.errors import OmegaConfBaseException

from experiments import sweep
from experiments.command import CONF, one_line
from stridenet.errors import InputError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

LENET = ("model._target_=stridenet.zoo.lenet", "input_size=[1,28,28]")
MODULE = """
import sys
import torch
from stridenet.zoo import lenet

def quits():
    sys.exit()

def system_exit():
    raise SystemExit(0)

def other_end():
    class End(BaseException):
        pass
    raise End

class Forward(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 2, 2)
    def forward(self, images):
        sys.exit(0)

class Named(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(1, 2, 2, 2))
    def named_modules(self, *_, **__):
        sys.exit(0)

def at_exit():
    import atexit
    atexit.register(sys.exit, 0)
    raise ValueError("no")
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "quits.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def command(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def only_line(done: "subprocess.CompletedProcess[str]") -> str:
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("name", ["zoo"])
def test_a_module_that_exits_on_import_is_an_error(here: Path, name: str) -> None:
    target = ("model._target_=quits.network", "input_size=[1,8,8]")
    line = only_line(command(here, f"experiments.{name}", *target))
    assert "model._target_=quits.network cannot be imported: it calls sys.exit(0)" in line


LONG = [pytest.param(target, marks=pytest.mark.long) for target in ("system_exit", "Named")]


@pytest.mark.parametrize("target", ["quits", "Forward", *LONG])
def test_a_network_that_exits_is_an_error(here: Path, target: str) -> None:
    arguments = (f"model._target_=mine.{target}", "input_size=[1,8,8]")
    assert "sys.exit(" in only_line(command(here, "experiments.zoo", *arguments))


@pytest.mark.parametrize("target", ["at_exit", "other_end"])
def test_other_ends_are_no_success(here: Path, target: str) -> None:
    arguments = (f"model._target_=mine.{target}", "input_size=[1,8,8]")
    done = command(here, "experiments.zoo", *arguments)
    assert done.returncode == 1
    assert "error: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train", "-m", "seed=range(0,0)"), "seed=range(0,0) makes no run"),
        (("train", "-m", "model=strided,unit_stride", "seed=range(3,1)"), "makes no run"),
        (("train", "-m", "seed=0,1", "~hydra.callbacks.sweep", "seed=range(0,0)"), "error: "),
        (("zoo", "-m", "seed=range(0,0)"), "nothing was seen to be done"),
        (("zoo", "models=[]"), "models=[] names nothing"),
        (("survey", "models=[]"), "models=[] names nothing"),
        (("survey", "sources=[]"), "sources=[] names nothing"),
        (("zoo", *LENET, "theorem=1", "only=[]"), "only=[] names nothing"),
        (("train", "outputs="), "outputs='' names no file or folder"),
        (("train", "-m", "outputs=", "seed=0,1"), "outputs='' names no file or folder"),
    ],
)
def test_nothing_to_do_and_nowhere_to_write_are_errors(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    name, *rest = arguments
    assert told in only_line(command(tmp_path, f"experiments.{name}", *rest))
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {"multirun.yaml"}  # Hydra's own


@pytest.mark.parametrize("of", ["run", "sweep"])
def test_hydra_gets_no_folder_at_the_root_where_outputs_is_empty(of: str) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        settings = compose("zoo", ["outputs="], return_hydra_config=True)
        assert compose("zoo", [], return_hydra_config=True).hydra[of].dir == "outputs/hydra"
    with pytest.raises(OmegaConfBaseException, match="outputs='' names no") as caught:
        _ = settings.hydra[of].dir  # which Hydra makes before it asks for our checks
    assert (
        one_line(caught.value)
        == "outputs='' names no file or folder; name one, or leave outputs= out"
    )


def test_jobs_that_another_process_did_are_no_success_of_this_one(here: Path) -> None:
    """Their failures would not be seen, either."""
    jobs = ("-m", "layer=conv1,conv2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = command(here, "experiments.figures", *jobs)
    assert done.returncode == 1
    assert "error: nothing was seen to be done" in done.stderr
    assert command(here, "experiments.figures", *jobs[:2]).returncode == 0


@pytest.mark.parametrize("asked", ["--help", "--hydra-help", "--version", "--cfg=job", "-c=hydra"])
def test_what_is_only_asked_is_answered(tmp_path: Path, asked: str) -> None:
    done = command(tmp_path, "experiments.figures", asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_info_is_answered(tmp_path: Path) -> None:
    assert command(tmp_path, "experiments.train", "--info", "defaults").returncode == 0


def test_the_place_of_an_exit_is_told() -> None:
    with pytest.raises(SystemExit) as caught:
        sys.exit(7)
    line = one_line(caught.value)
    assert "sys.exit(7)" in line
    assert f"{Path(__file__)}:" in line


def test_a_sweep_without_jobs_is_refused_before_it_is_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Settings:
        class hydra:  # noqa: N801
            class overrides:  # noqa: N801
                task = ("seed=range(0,0)",)

    monkeypatch.setattr(sweep, "_jobs", lambda _: [])
    with pytest.raises(InputError, match=r"seed=range\(0,0\) makes no run"):
        sweep.Sweep()._begin(Settings)
