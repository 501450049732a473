"""Signals stop a command in order: no process left, one line, true exit codes, and it goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.experiments.processes import (
    LONG,
    ROOT,
    alive,
    sweep_in_the_background,
    wait_for,
)

pytestmark = pytest.mark.slow

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
MISSING = "stopped, 2 runs are missing: the same command goes on from here\n"


@pytest.mark.parametrize(
    ("sent", "to"),
    [
        (signal.SIGTERM, "all"),
        (signal.SIGHUP, "the first"),
        pytest.param(signal.SIGTERM, "the first", marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, "all", marks=pytest.mark.long),
    ],
)
def test_a_signal_stops_a_sweep_with_all_its_workers(
    outputs: Path, sent: signal.Signals, to: str
) -> None:
    sweep = sweep_in_the_background(outputs, "model=strided,unit_stride")
    wait_for(outputs, "runs/*/checkpoint.pt")
    send = os.killpg if to == "all" else os.kill
    send(sweep.pid, sent)
    if to == "the first":  # a second one breaks nothing off
        os.kill(sweep.pid, sent)
    _, errors = sweep.communicate(timeout=60)
    assert (sweep.returncode, errors) == (CODES[sent], MISSING)
    assert not alive(sweep.pid)
    assert list(outputs.glob("runs/*/checkpoint.pt"))
    assert not list(outputs.glob("runs/*/.*"))


@pytest.mark.parametrize("sent", CODES)
def test_a_signal_stops_a_single_run_which_then_goes_on(
    outputs: Path, sent: signal.Signals
) -> None:
    command = [sys.executable, "-m", "experiments.train", *LONG, f"outputs={outputs}"]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(outputs, "runs/*/checkpoint.pt")
    run.send_signal(sent)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == CODES[sent]
    assert errors == "stopped: the same command goes on from here\n"
    if sent == signal.SIGTERM:
        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert again.returncode == 0
        assert "going on from its checkpoint" in again.stderr


def test_workers_end_when_the_process_that_started_them_is_gone(outputs: Path) -> None:
    long = ("recipe.epochs=1000", "model=strided,unit_stride")
    sweep = sweep_in_the_background(outputs, *long)
    wait_for(outputs, "runs/*/checkpoint.pt")
    os.kill(sweep.pid, signal.SIGKILL)  # nobody can do anything about it
    sweep.communicate(timeout=60)  # until no worker holds its output any more
    assert not alive(sweep.pid)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """A signal is ignored under nohup, whose commands outlive the terminal."""
    program = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from experiments.command import _listen; _listen(); signal.raise_signal(signal.SIGHUP)\n"
        "assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_that_has_gone_changes_no_exit_code() -> None:
    program = (
        "import signal, time; from experiments.command import start\n"
        "def main(): print('x', end=''); signal.raise_signal(signal.SIGHUP)\n"
        "start(main)\n"
    )
    gone, writing = os.pipe()
    os.close(gone)
    buffered = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=buffered, stdout=writing, stderr=writing)
    os.close(writing)
    assert done.returncode == 129


STUBBORN = """
import signal, time
from experiments import command
command.PATIENCE = 1
def main():
    signal.raise_signal(signal.SIGTERM)
def missing():
    while True:
        time.sleep(0.1)
command.start(main, missing)
"""


def test_a_program_that_does_not_stop_is_ended() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STUBBORN], cwd=ROOT, timeout=60)
    assert done.returncode == 143
    assert time.monotonic() - began < 30


ORPHAN = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import os, time
from experiments.runs.parents import end_with
end_with({parent})
print("started", flush=True)
time.sleep(60)
'''.format(parent=os.getpid() + int(sys.argv[1]))], stdout=subprocess.PIPE)
child.stdout.readline()
if sys.argv[1] == "0":
    assert child.poll() is None
    time.sleep(1)
    assert child.poll() is None
    os._exit(0)  # what it started stays behind
assert child.wait(10) == 1
"""


@pytest.mark.parametrize("other", [0, 1])  # the parent ends; it had ended before
def test_a_process_ends_with_its_parent(other: int) -> None:
    command = [sys.executable, "-c", ORPHAN, str(other)]
    parent = subprocess.run(command, cwd=ROOT, start_new_session=True, timeout=60)
    assert parent.returncode == 0
    listed = subprocess.run(["ps", "-eo", "ppid=,args="], capture_output=True, text=True).stdout
    time.sleep(1)
    listed = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True).stdout
    assert "from experiments.runs.parents import end_with" not in listed.replace(ORPHAN, "")
