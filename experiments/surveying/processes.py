"""The processes of a survey, from outside: a worker for each source, and its answers."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.surveying.sources import located

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = {  # packages that would fetch weights, settings or fonts
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "WANDB_MODE": "offline",
    "MPLBACKEND": "Agg",
}
HOMES = ("HF_HOME", "TORCH_HOME", "YOLO_CONFIG_DIR", "XDG_CACHE_HOME", "MPLCONFIGDIR")


class Worker:
    """Runs a process that makes a source's models, each in a process of its own; a context manager.

    version: of the source's package; missing: why there are no models, where it cannot be imported.
    """

    def __init__(self, source: str, threads: int) -> None:
        self.source = source
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        places = [str(ROOT), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
        one = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
        homes = dict.fromkeys(HOMES, self.folder.name)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.surveying.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self.folder.name,
            env=os.environ | OFFLINE | one | homes | {"PYTHONPATH": os.pathsep.join(places)},
            start_new_session=True,  # so that its models' processes end with it
        )
        self._ask({"source": located(source)})
        answer = self._answer() or {"missing": "its process ended while it was imported"}
        self.version: str | None = answer.get("version")
        self.missing: str | None = answer.get("missing")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and those of its models."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self.folder.cleanup()

    @property
    def has_ended(self) -> bool:
        """Tell whether the process has ended."""
        return self.process.poll() is not None

    def families(self) -> dict[str, list[str]]:
        """Return the names of the source's models by family.

        Returns none where that fails, and `missing` says why.
        """
        self._ask({"list": True})
        answer = self._answer() or {"missing": "its process ended while its models were listed"}
        self.missing = answer.get("missing")
        return dict(answer.get("families", {}))

    def measure(self, **request: Any) -> dict[str, Any]:
        """Return all that was said of a model, and how its process ended."""
        self._ask(request)
        said: dict[str, Any] = {}
        while "ended" not in said:
            answer = self._answer()
            if answer is None:
                return said | {"ended": "the worker ended"}
            said |= answer
        return said

    def _ask(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # then it will not answer
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()

    def _answer(self) -> dict[str, Any] | None:
        """Return the next answer of the worker; None if it has ended.

        Lines that a kill cut off are skipped.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError):
                return dict(json.loads(line))
        return None
