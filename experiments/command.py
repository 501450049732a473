"""What all commands share: where the settings are, and errors that end in one line."""

import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import joblib
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from joblib.externals.loky.process_executor import TerminatedWorkerError
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from experiments.settings.guide import advice, settings_text
from experiments.settings.schema import (
    Bench,
    Config,
    ConversionBench,
    Evidence,
    Figures,
    Report,
    Survey,
    Zoo,
)
from stridenet.errors import InputError

CONF = str(Path(__file__).resolve().parents[1] / "conf")
INSIDES = ("reference_type=", "object_type=", "See https")  # of OmegaConf and Hydra

# As many jobs as the cores allow, where each has so many threads.
OmegaConf.register_new_resolver("jobs", lambda threads: max(joblib.cpu_count() // threads, 1))
# The text of --help below its examples; Hydra's template takes $$ for $.
OmegaConf.register_new_resolver("settings", lambda _root_: settings_text(_root_).replace("$", "$$"))
# Bars belong to one process each; tqdm's own lock would be called leaked where a sweep is stopped.
tqdm.set_lock(threading.RLock())
ConfigStore.instance().store("run_schema", Config)
ConfigStore.instance().store("report_schema", Report)
ConfigStore.instance().store("evidence_schema", Evidence)
ConfigStore.instance().store("figures_schema", Figures)
ConfigStore.instance().store("bench_schema", Bench)
ConfigStore.instance().store("conversion_bench_schema", ConversionBench)
ConfigStore.instance().store("survey_schema", Survey)
zoo_schema = OmegaConf.structured(Zoo)
OmegaConf.set_struct(zoo_schema.model, False)  # takes any argument: model.num_classes=10
ConfigStore.instance().store("zoo_schema", zoo_schema)

RESTARTS = 3  # of a sweep whose runs are killed
failed: list[str] = []
interrupted = False


def guarded(task: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """A Hydra task that says what failed in one line, and lets the other jobs of a sweep go on."""

    @functools.wraps(task)
    def guarded_task(settings: DictConfig) -> None:
        try:
            task(settings)
        except Exception as error:
            if not _is_foreseen(error) or _wants_traceback():
                traceback.print_exc()
            job = " ".join(HydraConfig.get().overrides.task)
            of_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
            print(f"error: {f'{job}: ' if of_sweep else ''}{one_line(error)}", file=sys.stderr)
            failed.append(job)

    return guarded_task


def start(main: Callable[[], None], missing: Callable[[], list[str]] = list) -> None:
    """Run a Hydra main with a guarded task: exit code 1 if settings or a job were at fault.

    missing: what a sweep was to do and has not done, asked at the end.
    """
    wants_traceback = _wants_traceback()
    signal.signal(signal.SIGINT, _interrupt)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets Hydra pass errors on to here
    try:
        for _ in range(RESTARTS):
            try:
                main()
                break
            except TerminatedWorkerError:  # joblib then ends the others of the sweep, too
                if interrupted:
                    raise KeyboardInterrupt from None
                print(f"error: a run was killed (for lack of memory?); going on with "
                      f"{len(missing())} runs", file=sys.stderr)  # fmt: skip
        else:
            failed.append("killed")
    except KeyboardInterrupt:
        stopped = f"stopped, {len(missing())} runs are missing" if missing() else "stopped"
        print(f"{stopped}: the same command goes on from here", file=sys.stderr)
        sys.exit(130)  # as shells have it
    except Exception as error:  # while the settings were composed: the command line is at fault
        if wants_traceback:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        failed.append(str(error))
    undone = missing()
    if undone:
        print(f"error: {len(undone)} runs are missing:", *undone, sep="\n  ", file=sys.stderr)
    sys.exit(bool(undone or failed))


def _interrupt(*_: object) -> None:
    """Ctrl-C: it stops the runs' processes too, of which joblib may tell first."""
    global interrupted
    interrupted = True
    raise KeyboardInterrupt


def _wants_traceback() -> bool:
    return os.environ.get("STRIDENET_TRACEBACK") == "1"


def _is_foreseen(error: BaseException) -> bool:
    """Whether the cause lies outside the program, and the message says what to do."""
    if isinstance(error, (InputError, OSError)):
        return True
    from stridenet.errors import StrideEliminationError  # imports torch: only if still needed

    return isinstance(error, StrideEliminationError)


def one_line(error: BaseException) -> str:
    """The message and its cause, without what OmegaConf and Hydra add about their own insides."""
    if advised := advice(error):
        return advised
    message = str(error).partition("Config search path")[0]
    lines = [line.strip() for line in message.splitlines()]
    text = "; ".join(line for line in lines if line and not line.startswith(INSIDES))
    text = text.replace(":; ", ": ") or type(error).__name__
    if type(error).__module__.startswith("hydra") and error.__cause__ is not None:
        text = f"{text} ({one_line(error.__cause__)})"
    return text
