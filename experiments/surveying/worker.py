"""The process in which a source's models are made: python -m experiments.surveying.worker.

It imports the source once, and forks a process for each model, with limits on time and memory. Requests
come in as lines of JSON, and lines of JSON go out, so that nothing of a model's is unpickled:

    {"source": "package.module:Class"}                  first, once
    {"list": true}                                      names by family
    {"model": …, "seed": …, "pooling": …, "network": …, "threads": …, "seconds": …, "gigabytes": …}

What a model or its package prints goes to standard error.
"""

import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from experiments.runs.parents import end_with

Say = Any
_STARTER = os.getppid()


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # packages print; that is not to stand between our lines

    def say(line: dict[str, Any]) -> None:
        answers.write(f"\n{json.dumps(line)}\n")  # a process that was killed may have begun one
        answers.flush()

    source = _load_source(json.loads(sys.stdin.readline()), say)
    if source is None:
        return
    for line in sys.stdin:
        request = json.loads(line)
        if "list" in request:
            say(_listed(source))
        else:
            _in_a_process(source, request, say)


def _load_source(request: dict[str, Any], say: Say) -> Any:
    """Import the package of the source, and return the source.

    Says why and returns None where that fails.
    """
    from experiments.surveying.sources import imported, load, version_of
    from stridenet.cli import torchvision_import

    torchvision_import.watch()
    _warm_up()
    try:
        source = load(request["source"])
        imported(source.package)
    except Exception as error:  # importing runs the package's code, which may raise anything
        say({"missing": " ".join(f"{type(error).__name__}: {error}".split())[:400]})
        return None
    say({"version": version_of(source)})
    return source


def _listed(source: Any) -> dict[str, Any]:
    """Return the names of the source's models by family, or why there are none."""
    try:
        return {"families": source.families()}
    except Exception as error:  # packages change the names of what they list
        return {"missing": " ".join(f"{type(error).__name__}: {error}".split())[:400]}


def _warm_up() -> None:
    """Import all that measuring a model does, once: it takes ten times as long as a small model."""
    import torch

    from experiments.surveying.measure import Task, measure
    from experiments.surveying.sources import Toy

    torch.set_num_threads(1)  # threads would not be in the processes that are forked
    measure(Task(Toy(), "", 0, pooling=True, network=True), lambda line: None)


def _in_a_process(source: Any, request: dict[str, Any], say: Say) -> None:
    """Measure a model in a process of its own, and say how that ended."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            end_with(os.getppid())
            _measure(source, request, say)
            code = 0
        finally:  # nothing of the parent's is to be cleaned up by a child
            os._exit(code)
    status = _waited(child, began + request["seconds"])
    say({"ended": _ending(status), "seconds": time.monotonic() - began})


def _measure(source: Any, request: dict[str, Any], say: Say) -> None:
    """Measure one model, in the process that is forked for it."""
    import warnings

    import torch

    from experiments.surveying.measure import Task, measure

    with suppress(ValueError, OSError):  # where the system has no such limit
        most = int(request["gigabytes"] * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    torch.set_num_threads(request["threads"])
    warnings.simplefilter("ignore")
    options = {key: request[key] for key in ("seed", "pooling", "network")}
    try:
        measure(Task(source, request["model"], **options), say)
    except MemoryError:
        say({"exhausted": True})
    except BaseException as error:  # a fault of the survey's own, or of the package's (SystemExit)
        say({"fault": " ".join(f"{type(error).__name__}: {error}".split())[:400]})


def _waited(child: int, deadline: float) -> int | None:
    """Return the exit status; None where the child had to be killed.

    Its time was over, or nobody is left to be told.
    """
    pause = 0.001
    while time.monotonic() < deadline and os.getppid() == _STARTER:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _ending(status: int | None) -> str:
    if status is None:
        return "timeout"
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code else "ok"


if __name__ == "__main__":
    main()
