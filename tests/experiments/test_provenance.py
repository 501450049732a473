"""Where the code is from: its commit, or a hash of its files, said once. Nothing hangs on clocks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments import sweep
from experiments.reporting.provenance import about_runs
from experiments.runs import machine
from experiments.runs.folder import run_folder
from experiments.runs.machine import short_commit
from experiments.runs.results import read_result
from experiments.runs.run import run_once
from experiments.settings.schema import RunConfig

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HASH = r"sources-[0-9a-f]{40}"


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(machine.ALREADY_SAID, raising=False)
    yield
    os.environ.pop(machine.ALREADY_SAID, None)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The sources as out of a zip."""
    for name in machine.CODE_FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=ignored)
    return tmp_path / "copy"


def told(folder: Path, program: str = "", **environment: str) -> tuple[str, str]:
    """What the code in this folder calls itself, and what it says meanwhile."""
    program = program or "from experiments.runs.machine import commit; print(commit()); commit()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


def git(folder: Path, *command: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@y.z")
    done = subprocess.run(["git", "-C", folder, *who, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_a_repository_a_hash_of_the_sources_is_said_once(copied: Path) -> None:
    name, said = told(copied)
    assert pd.Series([name]).str.fullmatch(HASH).all()
    (line,) = said.splitlines()
    assert line.startswith("git tells no commit (")
    assert name in line
    assert told(copied)[0] == name
    assert told(copied, LC_ALL="C", PYTHONHASHSEED="3", TZ="Asia/Tokyo")[0] == name
    (copied / "experiments" / "runs" / "__pycache__").mkdir(exist_ok=True)
    (copied / "notes.txt").write_text("mine")
    assert told(copied)[0] == name


LONG = [
    pytest.param(part, marks=pytest.mark.long) for part in ("stridenet/taps.py", "conf/train.yaml")
]


@pytest.mark.parametrize("part", ["experiments/runs/run.py", *LONG])
def test_another_source_has_another_hash(copied: Path, part: str) -> None:
    name, _ = told(copied)
    path = copied / part
    path.write_text(path.read_text() + "# more\n")
    assert told(copied)[0] != name
    path.write_text(path.read_text().removesuffix("# more\n"))
    assert told(copied)[0] == name
    (copied / part).with_stem("another").write_text("")
    assert told(copied)[0] != name


def test_a_commit_is_told_and_what_has_changed_since(copied: Path) -> None:
    git(copied, "init", "-q")
    git(copied, "add", ".")
    git(copied, "commit", "-qm", "all")
    head = git(copied, "rev-parse", "HEAD")
    assert told(copied) == (head, "")
    assert told(copied, GIT_DIR="/nowhere", GIT_WORK_TREE="/") == (head, "")  # of a hook, say
    (copied / "conf" / "train.yaml").write_text("{}\n")
    assert told(copied)[0] == f"{head}+"


def test_a_checkout_of_another_owner_is_said_with_gits_own_reason(copied: Path) -> None:
    git(copied, "init", "-q")
    git(copied, "add", ".")
    git(copied, "commit", "-qm", "all")
    nobodys = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    name, said = told(copied, GIT_TEST_ASSUME_DIFFERENT_OWNER="1", **nobodys)
    assert name.startswith("sources-")
    (line,) = said.splitlines()
    assert "dubious ownership" in line


def test_where_git_is_missing_that_is_said(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    name, said = told(copied, PATH=str(tmp_path / "empty"))
    assert name.startswith("sources-")
    assert "git is not installed" in said


def test_processes_that_are_started_do_not_say_it_again(copied: Path) -> None:
    program = (
        "import subprocess, sys; from experiments.runs.machine import commit; print(commit())\n"
        "if len(sys.argv) == 1:\n"
        "    subprocess.run([sys.executable, '-c', 'import sys; sys.argv.append(1)\\n' + PROGRAM])\n"
    )
    out, said = told(copied, f"PROGRAM = {program!r}\n{program}")
    assert len(set(out.splitlines())) == 1
    assert len(said.splitlines()) == 1


def test_short_commits_can_be_told_apart() -> None:
    assert short_commit("0123456789abcdef+") == "01234567+"
    assert short_commit("sources-0123456789abcdef") == "sources-01234567"
    assert short_commit(None) == "None"


def test_hashes_of_two_versions_are_two_versions(composed: Any) -> None:
    runs = pd.DataFrame(
        {"git_commit": ["sources-1", "sources-2"], "device_name": "a", "threads": 1,
         "jobs_at_once": 1, "versions.torch": "9"}
    )  # fmt: skip
    assert "of 2 versions of the code" in about_runs(composed(command="report"), runs)


# No clocks


def test_a_result_says_where_its_code_is_from(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    _, result, _ = run_once(config)
    assert result["git_commit"] == f"sources-{machine._hash_of_sources()}"
    assert read_result(run_folder(config)) == result


@pytest.mark.parametrize("hours", [-1000, 0, 1000])
def test_the_reason_of_a_failure_is_its_sweeps_whatever_the_clocks_say(
    config: RunConfig, hours: float
) -> None:
    wrong = replace(config, recipe=replace(config.recipe, batch_size=5000))
    job = sweep.Job([], wrong, run_folder(wrong))
    with pytest.raises(ValueError, match="batch_size"):
        run_once(wrong, sweep="this one")
    path = job.folder / "failure.json"
    at = path.stat().st_mtime + 3600 * hours
    os.utime(path, (at, at))
    assert job.reason("this one").startswith("recipe.batch_size=5000 is more than")
    assert job.reason("another") == "not finished"
    older = {key: value for key, value in json.loads(path.read_text()).items() if key != "sweep"}
    path.write_text(json.dumps(older))
    assert job.reason("this one") == "not finished"


def test_the_pace_is_told_by_the_runs_and_not_by_the_times_of_their_files(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, result, _ = run_once(config)
    for path in run_folder(config).iterdir():
        os.utime(path, (0, 0))
    jobs = [
        sweep.Job([], one, run_folder(one), seconds=2 * result["run_seconds"])
        for one in (config, replace(config, seed=1))
    ]
    watch = sweep.Watch(jobs, [*jobs], 1)
    monkeypatch.setattr(sweep, "_watch", watch)
    watch.start()
    assert len(sweep.missing()) == 1
    assert jobs[0].took == result["run_seconds"]
    assert watch._left([jobs[1]], 0.0) == f"{sweep._duration(2 * result['run_seconds'])} left"
