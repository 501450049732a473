"""What all commands share: where the settings are, and errors that end in one line."""

import functools
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import joblib
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from joblib.externals.loky.process_executor import TerminatedWorkerError
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from experiments import engines
from experiments.settings.conversions import ConversionBenchmarkConfig, SurveyConfig, ZooConfig
from experiments.settings.fields import check_path
from experiments.settings.guide import advice, settings_text, without_section
from experiments.settings.line import in_order, require_effect
from experiments.settings.schema import (
    BenchmarkConfig,
    EvidenceConfig,
    FiguresConfig,
    ReportConfig,
    RunConfig,
)
from stridenet.errors import InputError

CONF = str(Path(__file__).resolve().parents[1] / "conf")
INSIDES = ("reference_type=", "object_type=", "See https")  # of OmegaConf and Hydra

# This starts as many jobs as the cores allow, where each has so many threads.
OmegaConf.register_new_resolver("jobs", lambda threads: max(joblib.cpu_count() // threads, 1))
# A folder that Hydra makes before the settings are checked: with none, it would be at the root.
OmegaConf.register_new_resolver("folder", lambda path: check_path("outputs", path))
# The text of --help below its examples; Hydra's template takes $$ for $.
OmegaConf.register_new_resolver("settings", lambda _root_: settings_text(_root_).replace("$", "$$"))
# Bars belong to one process each; tqdm's own lock would be called leaked where a sweep is stopped.
tqdm.set_lock(threading.RLock())
engines.register()
ConfigStore.instance().store("run_schema", RunConfig)
ConfigStore.instance().store("report_schema", ReportConfig)
ConfigStore.instance().store("evidence_schema", EvidenceConfig)
ConfigStore.instance().store("figures_schema", FiguresConfig)
ConfigStore.instance().store("bench_schema", BenchmarkConfig)
ConfigStore.instance().store("conversion_bench_schema", ConversionBenchmarkConfig)
ConfigStore.instance().store("survey_schema", SurveyConfig)
zoo_schema = OmegaConf.structured(ZooConfig)
OmegaConf.set_struct(zoo_schema.model, False)  # takes any argument: model.num_classes=10
ConfigStore.instance().store("zoo_schema", zoo_schema)

RESTARTS = 3  # of a sweep whose runs are killed
STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
PATIENCE = 30.0  # seconds for a program that is told to stop, then it is ended
failed: list[str] = []
succeeded: list[str] = []  # what the code that did it, and saw it done, has put here
stopped_by = 0  # the signal, once there is one
_stopping = threading.Event()


def guarded(task: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Return the Hydra task with its errors caught.

    Each is reported in one line, and other jobs of a sweep go on.
    """

    @functools.wraps(task)
    def guarded_task(settings: DictConfig) -> None:
        job = " ".join(HydraConfig.get().overrides.task)
        try:
            require_effect(HydraConfig.get().overrides.task, settings)
            task(settings)
            succeeded.append(job)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a user's function may call sys.exit(0)
            if not _is_foreseen(error) or _wants_traceback():
                traceback.print_exc()
            of_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
            print(f"error: {f'{job}: ' if of_sweep else ''}{one_line(error)}", file=sys.stderr)
            failed.append(job)

    return guarded_task


def start(main: Callable[[], None], missing: Callable[[], list[str]] = list) -> None:
    """Run a Hydra main with a guarded task: exit code 1 if settings or a job were at fault.

    missing: what a sweep was to do and has not done, asked at the end. Exit code 0 is for what was seen
    to succeed, and for what was only asked, as with --help. SIGINT, SIGTERM and SIGHUP stop all that
    goes on; the exit code is then 128 and their number.
    """
    _listen()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets Hydra pass errors on to here
    try:
        _run(main, missing)
        undone = missing()
        if undone:
            print(f"error: {_missing(len(undone))}:", *undone, sep="\n  ", file=sys.stderr)
        elif not (failed or succeeded or _only_asked()):
            print("error: nothing was seen to be done: with -m, give each setting one value at least, "
                  "and leave hydra/launcher out", file=sys.stderr)  # fmt: skip
            failed.append("nothing")
    except KeyboardInterrupt:
        _say_stopped(missing)
        sys.exit(128 + (stopped_by or signal.SIGINT))  # as shells have it
    sys.exit(bool(undone or failed))


def _missing(runs: int) -> str:
    return f"{runs} runs are missing" if runs > 1 else "1 run is missing"


def _run(main: Callable[[], None], missing: Callable[[], list[str]]) -> None:
    """Run it, and again where a run was killed; what is at fault goes into `failed`."""
    try:
        sys.argv[1:] = in_order(without_section(sys.argv[1:]))
        for _ in range(RESTARTS):
            try:
                return main()
            except TerminatedWorkerError:  # joblib then ends the others of the sweep, too
                if stopped_by:
                    raise KeyboardInterrupt from None
                print(f"error: a run was killed (for lack of memory?); going on with "
                      f"{len(missing())} runs", file=sys.stderr)  # fmt: skip
        failed.append("killed")
    except SystemExit as end:  # of a sweep that is done, or of whatever else: it proves nothing
        if end.code not in (None, 0):
            raise
    except Exception as error:  # while the settings were composed: the command line is at fault
        if _wants_traceback():
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        failed.append(str(error))


def _only_asked() -> bool:
    """Tell whether the command line only asks for information, as --help does."""
    try:
        given, _ = get_args_parser().parse_known_args()
    except SystemExit:  # --version
        return True
    asked = ("help", "hydra_help", "cfg", "info", "shell_completion")
    return any(getattr(given, name, None) for name in asked)


def _listen() -> None:
    """Let the signals that end a program stop it in order. One that is ignored (nohup) stays so."""
    for number in STOPPING:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    threading.Thread(target=_insist, daemon=True, name="insist").start()


def _stop(number: int, _: object) -> None:
    """Handle a signal that ends the program.

    It reaches the runs' processes, too, and joblib may report that first.
    """
    global stopped_by
    if not stopped_by:  # a second one would break off what is done about the first
        stopped_by = number
        _stopping.set()
        raise KeyboardInterrupt


def _insist() -> None:
    """End a program that was told to stop and does not; its workers see that and end, too."""
    _stopping.wait()
    time.sleep(PATIENCE)
    os._exit(128 + stopped_by)


def _say_stopped(missing: Callable[[], list[str]]) -> None:
    """Print the last line. That the terminal may be gone is no error."""
    undone = len(missing())
    stopped = f"stopped, {_missing(undone)}" if undone else "stopped"
    for stream in (sys.stderr, sys.stdout):
        try:
            if stream is sys.stderr:
                print(f"{stopped}: the same command goes on from here", file=stream)
            stream.flush()
        except OSError:  # what is left in the buffer would fail again, with another exit code
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _wants_traceback() -> bool:
    return os.environ.get("STRIDENET_TRACEBACK") == "1"


def _lacks_memory(error: BaseException) -> str | None:
    """Return what to do about an error for lack of memory; None for any other error."""
    of_torch = r"can't allocate memory|out of memory|(calculation|multiplication) overflowed"
    if not isinstance(error, MemoryError) and not re.search(of_torch, str(error)):
        return None
    wanted = re.search(r"tried to allocate ([\d.]+ ?\w*)", str(error))
    many = f" ({wanted[1]} at once)" if wanted else ""
    return (
        f"that needs more memory than there is{many}: take smaller sizes, fewer channels or images"
    )


def _is_foreseen(error: BaseException) -> bool:
    """Tell whether the cause lies outside the program, so that a traceback would not help."""
    if _lacks_memory(error):
        return True
    if isinstance(error, (InputError, OSError, SystemExit)):
        return True
    from stridenet.errors import StrideEliminationError  # imports torch: only if still needed

    return isinstance(error, StrideEliminationError)


def one_line(error: BaseException) -> str:
    """Return the message and its cause in one line.

    What OmegaConf and Hydra add of their internals is left out.
    """
    if isinstance(error, SystemExit):
        return _exited(error)
    if match := re.match(r"InputError raised while resolving interpolation: (.*)", str(error)):
        return match[1]  # of a resolver above
    if advised := advice(error) or _lacks_memory(error):
        return advised
    message = str(error).partition("Config search path")[0]
    lines = [line.strip() for line in message.splitlines()]
    text = "; ".join(line for line in lines if line and not line.startswith(INSIDES))
    text = text.replace(":; ", ": ") or type(error).__name__
    if type(error).__module__.startswith("hydra") and error.__cause__ is not None:
        text = f"{text} ({one_line(error.__cause__)})"
    return text


def _exited(error: SystemExit) -> str:
    """Return a message that says where a job called sys.exit, which must not end the program."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {frame.filename}:{frame.lineno}" for frame in place)
    return (
        f"sys.exit({error.code!r}) was called{where}, so that this is not done; take it out there"
    )
