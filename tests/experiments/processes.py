"""The commands as users run them, in processes of their own, on the real MNIST."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


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


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file of every run, but the locks."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.glob("runs/*/*")
        if path.name != "lock"
    }


# Sweeps


def runs_in(outputs: Path) -> dict[tuple[str, int], Path]:
    """The folders of finished runs by network and seed."""
    paths = outputs.glob("runs/*/result.json")
    found = {path.parent: json.loads(path.read_text()) for path in paths}
    return {(result["network"], result["seed"]): folder for folder, result in found.items()}


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
