"""What is installed, and what is left out: the library alone, the reproduction's extra, the wheel."""

import ast
import importlib.metadata
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import experiments
import experiments.settings
import stridenet

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# filelock and jinja2 come with torch, but the library does not need them itself.
ABSENT = {*experiments.NEEDED, "click", "onnx", "onnx_ir", "onnxruntime", "onnxscript"}
# Python imports this module as it starts. Packages in ABSENT are then as if they were not installed.
SITECUSTOMIZE = """
import os
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    absent = os.environ["ABSENT"].split()
    return None if name.partition(".")[0] in absent else find(name, path, target)

PathFinder.find_spec = find_spec
"""
MODULES_OF_THE_LIBRARY = sorted(
    module.name for module in pkgutil.walk_packages(stridenet.__path__, "stridenet.")
)
OF_THE_EXTRA = ("stridenet.onnx.files.", "stridenet.cli.")
COMMANDS = sorted(
    path.stem for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text()
)
ALONE = """
import torch
from stridenet import (
    degrees_of_freedom, distance_from_tied, eliminate_stride, fold_back, plan_elimination, share, verify
)
from stridenet.zoo import lenet

model = lenet().eval()
print(plan_elimination(model, (1, 28, 28)))
twin = eliminate_stride(model, (1, 28, 28))
print(verify(model, twin))
tied = share(twin, "tied")
assert verify(model, tied).passed
assert {distance for name in distance_from_tied(tied).values()
        for part, distance in name.items() if part != "norm"} == {0.0}
folded = fold_back(tied).state_dict()
assert all(torch.equal(tensor, folded[name]) for name, tensor in model.state_dict().items())
for table in (twin.plan.to_frame, verify(model, twin).to_frame, lambda: degrees_of_freedom(twin)):
    try:
        table()
    except ValueError as error:
        print(f"{type(error).__name__}: {error}")
"""


def name_of(requirement: str) -> str:
    """The package, without its versions."""
    return re.split("[^a-z0-9-]", requirement)[0]


def python(
    *arguments: str, folder: Path, absent: set[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python on the repository as it is, without the packages that are said to be absent."""
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "ABSENT": " ".join(absent or ())}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | path,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "modules",
    [
        ["stridenet.taps"],
        [name for name in MODULES_OF_THE_LIBRARY if name.startswith("stridenet.onnx.files")],
        [
            m.name
            for m in pkgutil.iter_modules(experiments.settings.__path__, "experiments.settings.")
        ],
    ],
    ids=["the theorem in integers", "ONNX files", "settings"],
)
def test_these_modules_leave_torch_alone(modules: list[str], tmp_path: Path) -> None:
    assert modules
    program = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    done = python("-c", program, folder=tmp_path)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.slow
def test_who_compiles_nothing_does_not_wait_for_the_compiler(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from stridenet import convert_layers, verify\n"
        "model, images = torch.nn.Conv2d(3, 4, 3, 2).eval(), torch.rand(2, 3, 9, 9)\n"
        "assert verify(model, convert_layers(model, example_inputs=images), images)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = python("-c", program, folder=tmp_path)
    assert (done.stdout, done.stderr) == ("False\n", "")


# The library alone


def test_the_library_has_four_dependencies() -> None:
    assert {name_of(one) for one in PROJECT["dependencies"]} == {"torch", "numpy", "einops", "tqdm"}


@pytest.mark.slow
def test_every_module_of_the_library_can_be_imported_without_the_extras(tmp_path: Path) -> None:
    assert "stridenet.onnx.export" in MODULES_OF_THE_LIBRARY
    modules = [name for name in MODULES_OF_THE_LIBRARY if not name.startswith(OF_THE_EXTRA)]
    done = python("-c", f"import {', '.join(modules)}", folder=tmp_path, absent=ABSENT)
    assert (done.returncode, done.stderr) == (0, "")


def test_onnx_files_say_what_to_install(tmp_path: Path) -> None:
    program = "from stridenet.onnx.files import convert_file"
    done = python("-c", program, folder=tmp_path, absent=ABSENT)
    line = (
        "stridenet.errors.InputError: ONNX files need onnx and onnx-ir (No module named 'onnx'): "
        "pip install '.[onnx]' in stridenet's folder"
    )
    assert done.stderr.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("absent", "told"),
    [
        (ABSENT, "the command stridenet needs click, which is not installed"),
        (ABSENT - {"click"}, "ONNX files need onnx and onnx-ir (No module named 'onnx')"),
    ],
)
def test_the_command_says_what_to_install(absent: set[str], told: str, tmp_path: Path) -> None:
    done = python("-m", "stridenet", "plan", "net.onnx", folder=tmp_path, absent=absent)
    line = f"error: {told}: pip install '.[onnx]' in stridenet's folder\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.slow
def test_the_library_alone_converts_verifies_shares_and_folds_back(tmp_path: Path) -> None:
    done = python("-c", ALONE, folder=tmp_path, absent=ABSENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "conv1 20x24x24 -> 320x6x6  20x1x5x5 -> 320x16x2x2\n" in done.stdout
    assert "\nequal up to rounding; largest difference" in done.stdout
    refused = [line for line in done.stdout.splitlines() if line.startswith("InputError")]
    needs = "InputError: a DataFrame needs pandas (No module named 'pandas'): pip install pandas"
    assert refused == [needs] * 3


def test_what_is_not_installed_has_no_known_version(tmp_path: Path) -> None:
    assert stridenet.__version__ == PROJECT["version"]
    shutil.copytree(ROOT / "stridenet", tmp_path / "stridenet")
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import stridenet; print(stridenet.__version__)"],  # -S: alone
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("0+unknown\n", "")


# The reproduction's extra


def test_the_extra_is_what_the_commands_look_for() -> None:
    distributions = importlib.metadata.packages_distributions()
    looked_for = {name.lower() for module in experiments.NEEDED for name in distributions[module]}
    installed = {name_of(one) for one in PROJECT["optional-dependencies"]["experiments"]}
    assert looked_for >= installed
    assert len(experiments.NEEDED) == len(installed)


def test_the_experiments_import_nothing_that_is_not_installed_with_them() -> None:
    imported: set[str] = set()
    for path in (ROOT / "experiments").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
    packages = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    dependencies = {name_of(one) for one in PROJECT["dependencies"]}
    dependencies |= {
        name_of(one) for one in PROJECT["optional-dependencies"]["dask"]
    }  # imported late
    assert packages - {"experiments", "stridenet"} - dependencies <= set(experiments.NEEDED)
    assert {"hydra", "pandas"} <= packages


@pytest.mark.parametrize("command", COMMANDS)
def test_without_the_extra_every_command_says_in_one_line_what_to_install(
    command: str, tmp_path: Path
) -> None:
    assert {"train", "report", "survey", "zoo"} <= set(COMMANDS)
    done = python("-m", f"experiments.{command}", folder=tmp_path, absent={"hydra", "pandas"})
    line = "error: hydra and 1 more not installed: pip install '.[experiments]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


# The wheel


def test_the_wheel_holds_the_library_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("stridenet", "experiments", "tests", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    program = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert files == {
        path.relative_to(source).as_posix()
        for path in (source / "stridenet").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert {"stridenet/py.typed", "stridenet/rules/registry.py"} <= files
