"""What all commands share: Hydra's start, and errors that end in one line."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from stridenet.config import Config, InputError, Report

CONF = str(Path(__file__).resolve().parents[1] / "conf")

ConfigStore.instance().store("run_schema", Config)
ConfigStore.instance().store("report_schema", Report)


def start(main: Callable[[], None]) -> None:
    """Run a Hydra main. What a user or a machine did wrong ends in one line and exit code 1;
    a fault of ours, or any error with HYDRA_FULL_ERROR=1, in a traceback."""
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets Hydra pass errors on to here
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped")
    except Exception as error:
        if full or not is_foreseen(error):
            raise
        sys.exit(f"error: {one_line(error)}")


def is_foreseen(error: BaseException) -> bool:
    """Whether the cause lies outside the program, and the message says what to do."""
    from stridenet.elimination import StrideEliminationError  # imports torch: only once needed

    kinds = (InputError, StrideEliminationError, HydraException, OmegaConfBaseException, OSError)
    return isinstance(error, kinds)


def one_line(error: BaseException) -> str:
    """The message without what OmegaConf and Hydra add about their own insides."""
    lines = [line.strip() for line in str(error).partition("Config search path")[0].splitlines()]
    insides = ("full_key:", "reference_type=", "object_type=")
    return "; ".join(line for line in lines if line and not line.startswith(insides))
