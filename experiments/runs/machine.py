"""The machine that a run is done on: device, threads, processor, versions, commit."""

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from experiments.settings.schema import Bench, Config, ConversionBench, Survey, Zoo
from stridenet.errors import InputError

M_TRIM_THRESHOLD = -1  # of glibc's malloc.h
M_MMAP_THRESHOLD = -3


SOURCES = (":/stridenet", ":/experiments", ":/conf")  # what decides a run's numbers
PACKAGES = ("stridenet", "torch", "torchvision", "numpy", "hydra-core")


def choose_device(name: str) -> torch.device:
    """The device that `device=` means; auto takes an accelerator if there is one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return found or torch.device("cpu")
    if name != "cpu" and (found is None or found.type != name):
        raise InputError(f"device={name} is not here; take device={found.type if found else 'cpu'}")
    return torch.device(name)


def prepare(threads: int) -> None:
    """Set this process up to train: repeatable bit for bit on the same machine, build and threads."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        # By default every step gives its feature maps back to the kernel and gets them again page by
        # page, which takes a fifth of the time. Other C libraries than glibc lack the function.
        keep = getattr(ctypes.CDLL(None), "mallopt", None)
        if keep is not None:
            keep(M_MMAP_THRESHOLD, 1 << 25)  # what is larger, as data sets are, is still given back
            keep(M_TRIM_THRESHOLD, 1 << 30)


def circumstances(
    config: Config | Bench | ConversionBench | Survey | Zoo,
    device: torch.device,
    jobs_at_once: int | None = 1,
) -> dict[str, Any]:
    """What a reader needs to judge the seconds, or to do the run again."""
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else _processor(),
        "threads": config.threads,
        "jobs_at_once": jobs_at_once,
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "git_commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    """The processor's name, from where Linux has it or from Python's best guess."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # stridenet run from its folder without being installed
        return None


def _commit() -> str | None:
    """The source's git commit, with + behind it if files have changed since; None outside git."""
    here = Path(__file__)

    def git(*command: str) -> str:
        arguments = ["git", "-C", str(here.parent), *command]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # not the repository that we are installed in
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--", *SOURCES) else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
